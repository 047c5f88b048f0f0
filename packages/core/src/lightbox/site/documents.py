"""Which documents the site has, in which order, and what hangs below each."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lightbox.report.readme import documents
from lightbox.site.walkthroughs import NAME

START = "README.md"
EXERCISES = "exercises.py"
CLAIMS = "published.md"
"""The page of a paper's published claims; made, not written by hand."""
PRESETS = ("quick", "full", "real")


@dataclass(frozen=True)
class Section:
    """One part of the table of contents: its title, and its documents as patterns, in order.

    A document stands where a pattern first takes it, and those of one pattern go by name. So a new document needs no
    word here, and one that is to stand before its neighbours is named before the pattern that takes all of them.

    Args:
        title: as shown.
        patterns: of paths relative to the checkout; a star takes folders, too.
    """

    title: str
    patterns: tuple[str, ...]


CONTENTS = (
    Section("Start", ("docs/index.md", "docs/glossary.md")),
    Section("Course", ("docs/course/index.md", "docs/course/README.md", "docs/course/*.md")),
    Section("Papers", ("*/medthink/*.md", "*/mmedpo/*.md", "*/vitar/*.md", "*/k2sight/*.md", "projects/*.md")),
    Section("Library", ("packages/core/pruning/*.md", "docs/*.md")),
    Section("Kernels", ("*/kernels/*.md", "packages/*.md")),
    Section("Project", ("CONTRIBUTING.md", "CHANGELOG.md", "*.md")),
)
"""The last pattern takes whatever is left, so that no document is without a page."""


def contents(root: Path, sections: Sequence[Section] = CONTENTS) -> dict[str, list[str]]:
    """Documents by title of section, as paths relative to the checkout, without those that hang below a README."""
    left = [str(path.relative_to(root)) for path in sorted(documents(root))]
    left = [path for path in left if path != START and not _hangs_below(root, path)]
    found: dict[str, list[str]] = {}
    for section in sections:
        for pattern in section.patterns:
            taken = [path for path in left if fnmatchcase(path, pattern)]
            left = [path for path in left if path not in taken]
            found.setdefault(section.title, []).extend(taken)
    return {title: paths for title, paths in found.items() if paths}


def pages_below(root: Path, document: str) -> list[tuple[str, str]]:
    """Title and path of each page below the README of a folder with a walkthrough, in the order of reading."""
    folder = Path(document).parent
    if Path(document).name != START or not (root / folder / NAME).is_file():
        return []
    pages = [("Walkthrough", NAME)]
    pages += [("Exercises", EXERCISES)] * (root / folder / EXERCISES).is_file()
    pages += [("Published claims", CLAIMS)] * bool(presets_of(root, paper_of(folder)))
    others = sorted(path.name for path in (root / folder).glob("*.md") if path.name != START)
    pages += [(name.removesuffix(".md").capitalize(), name) for name in others]
    return [(title, str(folder / name)) for title, name in pages]


def paper_of(folder: Path) -> str:
    """Paper whose claims a folder is about; those about a part of core are of the paper `core`."""
    return "core" if folder.parts[0] == "packages" else folder.name


def presets_of(root: Path, paper: str) -> list[str]:
    """Presets of which something is published, in the order of their size."""
    names = [path.parent.name for path in root.glob(f"results/{paper}/*/results.json")]
    return sorted(names, key=lambda name: (PRESETS.index(name) if name in PRESETS else len(PRESETS), name))


def _hangs_below(root: Path, document: str) -> bool:
    path = root / document
    return path.name != START and (path.parent / NAME).is_file()
