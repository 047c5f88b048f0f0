"""XML read strictly: a small tree with line numbers, and no document type.

Without a document type there are no entities, so neither a file outside nor gigabytes out of a few lines can be asked
for. expat of the standard library does the parsing; its own guards against amplification stay on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from lightbox.errors import RequestError
from lightbox.readers.documents import read_bytes
from lightbox.readers.rows import RowError

MAX_DEPTH = 64


@dataclass
class Element:
    """One element; `line` is where it starts (from 1), `text` its own text, stripped."""

    tag: str
    line: int
    attributes: dict[str, str]
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> Iterator["Element"]:
        return (child for child in self.children if child.tag == tag)

    def child(self, tag: str) -> "Element":
        """The only child called `tag`; none, or more than one, is a `RowError`."""
        children = list(self.all(tag))
        if len(children) != 1:
            raise RowError(tag, "is missing" if not children else f"stands {len(children)} times in <{self.tag}>")
        return children[0]

    def fields(self, *tags: str) -> dict[str, str]:
        """Texts of the children called so, as fields of a row; errors as `child`."""
        return {tag: self.child(tag).text for tag in tags}


def read_xml(path: Path, root_tag: str) -> Element:
    """The tree of an XML file whose root is `<root_tag>`.

    Raises:
        RequestError: not XML, another root, a document type, or nested deeper than `MAX_DEPTH`; with the line.
    """
    stack: list[Element] = [Element("", 0, {})]
    parser = expat.ParserCreate()

    def refuse(why: str) -> None:
        raise RequestError(f"File '{path}', line {parser.CurrentLineNumber}", why, "Save the file plainly, without it")

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(stack) > MAX_DEPTH:
            refuse(f"Its elements are nested more than {MAX_DEPTH} deep")
        stack.append(Element(tag, parser.CurrentLineNumber, attributes))
        stack[-2].children.append(stack[-1])

    def end(_: str) -> None:
        element = stack.pop()
        element.text = element.text.strip()

    def characters(text: str) -> None:
        stack[-1].text += text

    parser.buffer_text = True  # one call a text: adding up thousands of pieces would take quadratic time
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = lambda *_: refuse("It declares a document type, which can name other files")
    try:
        parser.Parse(read_bytes(path), True)
    except (expat.ExpatError, ValueError, LookupError) as err:  # the last two: an encoding that is not known
        raise RequestError(f"File '{path}'", f"It is not XML: {err}", "Fetch the file again, or correct it") from err
    (root,) = stack[0].children
    if root.tag != root_tag:
        raise RequestError(
            f"File '{path}' holds <{root.tag}>", f"This format is <{root_tag}>", "Check that it belongs to this dataset"
        )
    return root
