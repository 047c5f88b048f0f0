"""Look at built pages: every link leads somewhere, every anchor exists, and nothing is fetched from elsewhere.

Sphinx checks what it resolves itself; this sees what a browser will see, whoever wrote it.
"""

import os
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHING = ("src", "srcset", "poster", "data", "xlink:href")
"""Attributes that make a browser fetch, on whatever tag."""
FETCHED_BY_HREF = ("link", "use", "image", "base")
"""Tags whose `href` is fetched and not followed."""
NAMED = re.compile(r"""url\(\s*['"]?([^'")\s]+)|@import\s+['"]([^'"]+)""")
"""What a style sheet fetches."""
FOLLOWED_LINKS = ("next", "prev", "search", "author", "license", "canonical", "help", "index")


class Seen(HTMLParser):
    """What a page holds: its anchors, what it links to, what it fetches."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.is_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag's anchors and addresses."""
        values = {name: value for name, value in attrs if value}
        self.is_style = tag == "style"
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        self.fetched += [values[name] for name in FETCHING if name in values]
        self.fetched += _addresses(values.get("style", ""))
        if "href" in values:
            is_followed = tag not in FETCHED_BY_HREF or tag == "link" and values.get("rel") in FOLLOWED_LINKS
            (self.links if is_followed else self.fetched).append(values["href"])

    def handle_data(self, data: str) -> None:
        """Note what a style fetches."""
        if self.is_style:
            self.fetched += _addresses(data)


def faults(site: Path) -> list[str]:
    """What is wrong with the pages of a folder, a line each, by page; empty where nothing is."""
    found = []
    pages = {path: Seen(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    anchors = {path: seen.anchors for path, seen in pages.items()}
    for page, seen in pages.items():
        name = page.relative_to(site)
        found += [f"{name} fetches {address}" for address in seen.fetched if _is_elsewhere(address)]
        for link in (*seen.links, *(address for address in seen.fetched if not _is_elsewhere(address))):
            why = _why_dead(page, link, site, anchors)
            found += [f"{name} names {link}, {why}"] * bool(why)
    for sheet in sorted(site.rglob("*.css")):
        addresses = _addresses(sheet.read_text(encoding="utf-8"))
        found += [f"{sheet.relative_to(site)} fetches {one}" for one in addresses if _is_elsewhere(one)]
    return found


def _addresses(style: str) -> list[str]:
    return [first or second for first, second in NAMED.findall(style)]


def _is_elsewhere(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def _why_dead(page: Path, link: str, site: Path, anchors: Mapping[Path, set[str]]) -> str:
    """Why a link of a page leads nowhere; "" where it does not, or leaves the site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    target = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
    if not target.is_relative_to(site):
        return "which is outside of the site"
    if not target.is_file():
        return "which is not there"
    anchor = unquote(parts.fragment)
    if anchor and target in anchors and anchor not in anchors[target]:
        return "where that anchor is not"
    return ""
