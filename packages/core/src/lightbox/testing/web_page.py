"""A written page as tests read it: tags, visible text, balance, and a text that must come out escaped."""

from html.parser import HTMLParser

PAYLOAD = "<script>alert(1)</script>\"'&{{ 7 * 7 }}$x^2$"
VOID = ("meta", "br", "img", "link", "input")


class Page(HTMLParser):
    """Tags with their attributes, visible text, and whether every tag that was opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.is_balanced = True
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag, and that it is open."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the tag opened last."""
        self.is_balanced &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text that is no style."""
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All visible text, single spaces."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every tag of a name."""
        return [attrs for name, attrs in self.tags if name == tag]
