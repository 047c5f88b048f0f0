"""One page over everything published: a row a claim, verdicts on phantoms and the number on real images side by side.

Every number is that of the pages of single sizes: the same recomputed entries, shown by the same views. What is not
published is said. No torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Template

from lightbox.claims import document as documents
from lightbox.claims.budget import steps
from lightbox.claims.document import ClaimEntry, Document, Level
from lightbox.claims.registry import Paper
from lightbox.claims.replays import Replay, Replayed, replays_of
from lightbox.claims.spec import PHANTOM, REAL, Claim
from lightbox.claims.verdicts import PRESETS_WITHOUT_VERDICT
from lightbox.files import replace_text
from lightbox.report import figures
from lightbox.report.claim_view import CHIPS, ClaimView, budget_alt, budget_lines, budget_words, turn
from lightbox.report.page import template_of
from lightbox.report.readme import origin_words

FIRST = ("quick", "full")
"""Sizes in the order of their columns; others follow by name."""


@dataclass(frozen=True)
class PublishedSize:
    """What is published of a paper at one preset.

    Args:
        paper: whose; preset: the size.
        document: recomputed, see `published.recompute`.
        committed: claims by id as they were published, also those that are decided at this preset no more.
        is_compared: whether the keys of its jobs could be compared with those of today.
        page: where its own page lies, relative to the overview; "" where none was written.
    """

    paper: Paper
    preset: str
    document: Document
    committed: Mapping[str, ClaimEntry] = field(default_factory=dict)
    is_compared: bool = True
    page: str = ""


@dataclass(frozen=True)
class Cell:
    """What one preset says of a claim: a view where it is published, else a sentence why there is none."""

    preset: str
    view: ClaimView | None = None
    said: str = ""
    budget: str = ""
    source: str = ""
    is_older: bool = False
    replayed: Replayed | None = None
    levels: Mapping[str, Level] = field(default_factory=dict)
    link: str = ""


@dataclass(frozen=True)
class Row:
    """A declared claim, with a cell a preset."""

    claim: Claim
    anchor: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class BudgetPanel:
    """A small figure of one claim's pilot: source and alternative text, and what stands below it, line by line."""

    label: str
    source: str
    alt: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A paper on the page: rows of its claims on phantoms, those on real images, and figures of its pilots.

    `gone` are claims that are published and no longer declared.
    """

    name: str
    title: str
    arxiv: str
    rows: tuple[Row, ...]
    real: tuple[Row, ...]
    panels: tuple[BudgetPanel, ...]
    gone: tuple[str, ...]

    @property
    def cells(self) -> list[tuple[Row, Cell]]:
        """Every cell with its row."""
        return [(row, cell) for row in (*self.rows, *self.real) for cell in row.cells]


def write_overview(
    path: Path, papers: Sequence[Paper], publications: Sequence[PublishedSize], replays: Sequence[Replay]
) -> Path:
    """Write the page; its path.

    Args:
        path: the HTML file; replaced as a whole.
        papers: in the order of the page.
        publications: of those papers.
        replays: rows of the replay log.
    """
    replace_text(path, render_overview(papers, publications, replays))
    return path


def render_overview(papers: Sequence[Paper], publications: Sequence[PublishedSize], replays: Sequence[Replay]) -> str:
    """The page as text."""
    presets = phantom_presets(papers)
    parts = [part_of(paper, publications, replays, presets) for paper in papers]
    published = {preset: [p.document for p in publications if p.preset == preset] for preset in presets}
    families = {
        preset: documents.family_of(tuple(claim for one in own for claim in one.claims))
        for preset, own in published.items()
    }
    names = {paper.name for paper in papers}
    return _template().render(
        parts=parts,
        presets=presets,
        families=families,
        meanings=documents.MEANING,
        phantom=PHANTOM,
        real=REAL,
        counts=_counts(parts),
        glossary=CHIPS.values(),
        replays=[row for row in replays if row.paper in names],
        origins=[(p.paper.name, p.preset, origin_words(p.document), p.page) for p in publications],
    )


def phantom_presets(papers: Sequence[Paper]) -> list[str]:
    """Presets that decide claims on phantoms, in the order of their columns."""
    claims = [claim for paper in papers for claim in paper.claims.claims if claim.images == PHANTOM]
    names = {preset for claim in claims for preset in claim.presets} - set(PRESETS_WITHOUT_VERDICT)
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def part_of(
    paper: Paper, publications: Sequence[PublishedSize], replays: Sequence[Replay], presets: Sequence[str]
) -> Part:
    """What the page shows of one paper."""
    own = {p.preset: p for p in publications if p.paper.name == paper.name}
    claims = paper.claims.claims
    ids = [claim.id for claim in claims]

    def row(claim: Claim, sizes: Sequence[str]) -> Row:
        cells = tuple(_cell(claim, size, own.get(size), replays) for size in sizes)
        return Row(claim, f"{paper.name}-{claim.id}", cells)

    rows = tuple(row(claim, presets) for claim in claims if claim.images == PHANTOM)
    sizes = {claim.id: [p for p in claim.presets if p not in PRESETS_WITHOUT_VERDICT] for claim in claims}
    real = tuple(row(claim, sizes[claim.id]) for claim in claims if claim.images == REAL)
    gone = [f"{entry.id} at {p.preset} ({_former(entry)})" for p in own.values() for entry in p.committed.values()
            if entry.id not in ids]  # fmt: skip
    return Part(
        name=paper.name,
        title=paper.claims.title,
        arxiv=paper.claims.arxiv,
        rows=rows,
        real=real,
        panels=tuple(panel for one in rows for panel in budget_panels(one)),
        gone=tuple(gone),
    )


def _cell(claim: Claim, preset: str, publication: PublishedSize | None, replays: Sequence[Replay]) -> Cell:
    if publication is None:
        return Cell(preset, said=_no_run(claim, preset))
    entry = next((one for one in publication.document.claims if one.id == claim.id), None)
    earlier = publication.committed.get(claim.id)
    if entry is None:
        return Cell(preset, said=_former(earlier) if earlier is not None else _no_run(claim, preset))
    if ended := _too_few_seeds(entry):
        was = f"; {_former(earlier)}" if earlier is not None else ""
        return Cell(preset, said=f"what is published holds {ended} seeds of what is claimed today{was}")
    view = ClaimView(entry, publication.document, claim.id, publication.paper.claims)
    source = "source, settings and data of today"
    if entry.older_source:
        source = f"older source, settings or data (commit {', '.join(entry.older_source)})"
    elif entry.retrained:
        source = (
            f"earlier source (commit {', '.join(entry.retrained)}); one job of each arm, trained again, scored alike"
        )
    elif not publication.is_compared:
        source = "not compared with the source of today, as the images are not on this machine"
    return Cell(
        preset=preset,
        view=view,
        budget="" if entry.budget == "" else budget_words(entry),
        source=source,
        is_older=bool(entry.older_source),
        replayed=replays_of(replays, earlier or entry, preset),
        levels={name: own for name, own in entry.shown_arms().items() if "[" not in name and own.mean is not None},
        link=f"{publication.page}#{view.anchor}" if publication.page else "",
    )


def _too_few_seeds(entry: ClaimEntry) -> str:
    """How many seeds of how many a published claim has, where it was published before its arms were those of today."""
    ended = min((len(contrast.per_seed) for contrast in entry.deciding_contrasts()), default=0)
    return f"{ended} of {entry.planned_seeds}" if entry.verdict not in CHIPS and ended < entry.planned_seeds else ""


def _no_run(claim: Claim, preset: str) -> str:
    return "no published run" if preset in claim.presets else f"does not run at {preset}"


def _former(entry: ClaimEntry) -> str:
    """What was published of a claim that is not decided at that preset any more."""
    chip = CHIPS.get(entry.verdict)
    verdict = f"{chip.mark} {chip.label}" if chip else str(entry.verdict)
    return f"{entry.withdrawn or 'not decided here any more'}; it was {verdict}"


def budget_panels(row: Row) -> list[BudgetPanel]:
    """Figures of effect against budget, one a pilot: published runs that the same pilot speaks for share one."""
    views = [(cell.preset, cell.view.claim) for cell in row.cells if cell.view is not None]
    panels: list[BudgetPanel] = []
    drawn: list[ClaimEntry] = []
    for _, entry in views:
        if not entry.by_budget or any(entry.by_budget == other.by_budget for other in drawn):
            continue
        drawn.append(entry)
        same = [(preset, other) for preset, other in views if other.by_budget == entry.by_budget]
        others = [(preset, other) for preset, other in views if not other.by_budget and other.budget]
        panels.append(_panel(entry, same, others))
    return panels


def _panel(
    entry: ClaimEntry, same: Sequence[tuple[str, ClaimEntry]], others: Sequence[tuple[str, ClaimEntry]]
) -> BudgetPanel:
    """One figure.

    Args:
        entry: whose curves are drawn.
        same: published runs that the curves speak for; others: those that they do not.
    """
    judged = [(preset, one.convergence) for preset, one in same if one.convergence is not None]
    plateau = next((own.plateau for _, own in judged if own.plateau), None)
    marks = tuple((own.budget, preset) for preset, own in judged if own.budget)
    unit = steps(entry.budget or "")
    svg = figures.effects_by_budget(
        budget_lines(entry, is_arm=False),
        units=(f"effect ({entry.unit})", unit),
        min_effect=entry.min_effect,
        marks=marks,
        plateau=plateau,
    )
    said: dict[str, list[str]] = {}  # sizes of which the same is said share a line
    for preset, own in (*judged, *((preset, one.convergence) for preset, one in others)):
        if own is not None:
            said.setdefault(own.summary().rstrip("."), []).append(preset)
    notes = [f"{', '.join(sizes)}: {sentence}." for sentence, sizes in said.items()]
    notes += [] if plateau else ["The pilot shows no plateau."]
    notes += [f"{turned}."] if (turned := turn(entry)) else []
    marked = [f"Published: {', '.join(f'{preset} at {budget}' for budget, preset in marks)}."] if marks else []
    marked += [f"The plateau begins at {plateau} {unit}."] if plateau else []
    return BudgetPanel(entry.id, figures.data_uri(svg), " ".join([budget_alt(entry), *marked]), tuple(notes))


def _counts(parts: Sequence[Part]) -> dict[str, int]:
    """How many claims there are on phantoms and on real images, and how many of each have a published run."""
    counts = {}
    for name, rows in (("phantom", "rows"), ("real", "real")):
        every = [row for part in parts for row in getattr(part, rows)]
        counts[name] = len(every)
        counts[f"{name}_published"] = sum(any(cell.view is not None for cell in row.cells) for row in every)
    return counts


@cache
def _template() -> Template:
    return template_of("overview.html.j2")
