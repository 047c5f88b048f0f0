"""Blocks of Markdown files that a machine writes: published results, a paper's settings, its map to the code. No torch.

A block stands between `<!-- KIND: NAME -->` and `<!-- end KIND -->`, each on a line of its own. KIND is "results" (NAME
is PAPER/PRESET, read from `results/PAPER/PRESET/results.json`), "claim" (PAPER/ID: one claim at each published preset),
"config" or "map" (NAME is the paper), "cost" (NAME is runs: what published runs took), or "memory" (NAME is cards: what
fits on which). What stands outside of blocks is prose and is left alone.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from lightbox.claims import registry
from lightbox.claims.document import Document, load
from lightbox.claims.published import DOCUMENT
from lightbox.config import leaf_docs
from lightbox.errors import RequestError
from lightbox.files import replace_text
from lightbox.report.claim_rows import beside, cells, claim_row, measured, verdict
from lightbox.report.claim_view import budget_words
from lightbox.report.gpus import TITLES, table
from lightbox.report.numbers import NONE, duration, number
from lightbox.report.paper_map import read_map

KINDS = "results|claim|config|cost|map|memory"
BLOCK = re.compile(rf"^<!-- ({KINDS}): ([\w/-]+) -->\n(.*?)^<!-- end \1 -->$", re.DOTALL | re.MULTILINE)
OPENING = re.compile(rf"^<!-- (?:{KINDS}): .*$", re.MULTILINE)
BUILT = ("lightbox-out", "site", "__pycache__")
SIZES = ("quick", "full", "real")
COMMIT_DIGITS = 7  # a longer one reads like a key; keys stand in results.json


def write_blocks(root: Path) -> list[Path]:
    """Bring every block of every Markdown file of a checkout up to date; the files that changed.

    Raises:
        RequestError: see `rewritten`; then no file has been touched.
    """
    changed = rewritten(root)
    for path, text in changed.items():
        replace_text(path, text)
    return list(changed)


def rewritten(root: Path) -> dict[Path, str]:
    """New text of each Markdown file of a checkout in which a block is out of date.

    Raises:
        RequestError: for a block that is not closed, or whose results, paper or map do not exist.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in documents(root)}
    new = {path: filled(text, root=root, document=path) for path, text in texts.items() if OPENING.search(text)}
    return {path: text for path, text in new.items() if text != texts[path]}


def documents(root: Path) -> Iterator[Path]:
    """Markdown files of a checkout, without hidden folders, environments and what runs wrote."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in BUILT)
        yield from (Path(folder, file) for file in sorted(files) if file.endswith(".md"))


def filled(text: str, *, root: Path, document: Path) -> str:
    """A document's text with every block written anew.

    Args:
        text: of the document.
        root: the checkout.
        document: its path; links of blocks are relative to it.

    Raises:
        RequestError: see `rewritten`.
    """
    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        why = "A block that is not closed would swallow the prose after it"
        raise RequestError(f"A generated block of {document}", why, "End it with a line '<!-- end KIND -->'")

    def block(match: re.Match[str]) -> str:
        kind, name = match[1], match[2]
        inside = "\n".join(WRITERS[kind](name, root=root, folder=document.parent))
        return f"<!-- {kind}: {name} -->\n\n{inside}\n\n<!-- end {kind} -->"

    return BLOCK.sub(block, text)


def results_lines(name: str, *, root: Path, folder: Path) -> list[str]:
    """The claim table of a publication, and under it its origin and what stands beside each verdict."""
    path = root / "results" / name / DOCUMENT
    document = load(path)
    return [
        "| claim | statement | paper | measured, deciding interval | minimum | seeds × items | budget | verdict |",
        "|---|---|---|---|---|---|---|---|",
        *(claim_row(claim) for claim in document.claims),
        "",
        f"{origin_words(document)} Runs and scores: [results.json]({os.path.relpath(path, folder)}).",
        "",
        _family(document),
        "",
        *(f"- {claim.id}: {'; '.join(beside(claim))}." for claim in document.claims),
    ]


def origin_words(document: Document) -> str:
    """Size, dates, commits, machines and time of the jobs behind a publication."""
    jobs = document.jobs
    dates = sorted({(job.ended or document.started)[:10] for job in jobs}) or [document.started[:10]]
    commits = sorted({job.commit for job in jobs if job.commit}) or [document.commit]
    machines = sorted({job.hardware for job in jobs if job.hardware}) or [document.machine["hardware"]]
    return (
        f"Preset {document.preset}; run {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; "
        f"commit {', '.join(dict.fromkeys(_short(commit) for commit in commits))}; on {'; '.join(machines)}; "
        f"{duration(document.job_s)} of job time in all."
        + " Jobs ran on several machines, and another processor gives other bits."
        * (len(machines) > 1)
    )


def _short(commit: str) -> str:
    digits, _, dirty = commit.partition("-")
    return f"{digits[:COMMIT_DIGITS]}{' with uncommitted changes' if dirty else ''}"


def _family(document: Document) -> str:
    family = document.family
    return (
        f"{document.meaning} Verdicts drawn: {family.verdicts}; if no effect existed, "
        f'{number(family.expected_false)} false "reproduced" would be expected among them.'
    )


def claim_lines(name: str, *, root: Path, folder: Path) -> list[str]:
    """One claim as it came out at every preset that has been published, smallest first, each with its runs.

    Raises:
        RequestError: where nothing is published of it.
    """
    paper, _, claim_id = name.partition("/")
    rows = []
    for path in _publications(root, paper):
        document = load(path)
        for claim in (own for own in document.claims if own.id == claim_id):
            runs = f"[{len(claim.run_ids)} runs]({os.path.relpath(path, folder)})"
            size = f"{len(claim.seeds)} × {claim.items}"
            rows.append(cells(document.preset, measured(claim), size, budget_words(claim), verdict(claim), runs))
    if not rows:
        why = f"No results.json of {paper} under results/ holds it"
        raise RequestError(f"A generated block 'claim: {name}'", why, "Name a published claim as PAPER/ID")
    return [
        "| preset | measured, deciding interval | seeds × items | budget | verdict | runs and scores |",
        "|---|---|---|---|---|---|",
        *rows,
    ]


def cost_lines(name: str, *, root: Path, folder: Path) -> list[str]:
    """What published runs took: jobs, minutes of one core, the most memory of a worker, the machine.

    Raises:
        RequestError: for another name than runs.
    """
    if name != "runs":
        raise RequestError(f"A generated block 'cost: {name}'", "There is one table of costs", "Name it runs")
    rows = []
    for path in (path for paper in registry.installed_packages() for path in _publications(root, paper)):
        document = load(path)
        keys = {job.key: job for job in document.jobs}
        peaks = [job.peak_gib for job in keys.values() if job.peak_gib is not None]
        machines = sorted({job.hardware for job in keys.values() if job.hardware})
        minutes = document.job_s / 60
        cost = str(len(keys)), f"{minutes:.0f}", f"{minutes / 2:.0f}", f"{max(peaks):.1f}" if peaks else NONE
        rows.append(cells(path.parent.parent.name, document.preset, *cost, "; ".join(machines)))
    return [
        "| paper | preset | jobs | minutes of one core | on two cores, at least | GiB, most of a worker | machine |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _publications(root: Path, paper: str) -> list[Path]:
    """Documents of a paper's published presets, in the order in which sizes grow."""
    presets = sorted((root / "results" / paper).glob(f"*/{DOCUMENT}"), key=lambda path: path.parent.name)
    return sorted(presets, key=lambda path: SIZES.index(path.parent.name) if path.parent.name in SIZES else len(SIZES))


def config_lines(name: str, *, root: Path, folder: Path) -> list[str]:
    """Every setting of a paper: key, default of its schema, and its one line of meaning."""
    schema = registry.load_papers([name])[0].config().Config
    defaults = schema_defaults(schema)
    rows = [cells(f"`{key}`", defaults[key], doc) for key, doc in leaf_docs(schema).items()]
    return ["| key | default | meaning and cost |", "|---|---|---|", *rows]


def schema_defaults(schema: type) -> dict[str, str]:
    """Default of each dotted leaf as text; "required" where the schema has none and a preset or the user sets it."""
    types = get_type_hints(schema)
    defaults: dict[str, str] = {}
    for field in dataclasses.fields(schema):
        kind = types[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            defaults |= {f"{field.name}.{key}": value for key, value in schema_defaults(kind).items()}
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = str(field.default) if field.default != "" else "empty"
        else:
            defaults[field.name] = "required" if field.default_factory is dataclasses.MISSING else "empty"
    return defaults


def map_lines(name: str, *, root: Path, folder: Path) -> list[str]:
    """What the paper says, the name that implements it, and a link to its line."""
    rows = [
        cells(a.item, f"`{a.name}`", f"[{a.path.name}:{a.line}]({os.path.relpath(a.path, folder)}#L{a.line})")
        for a in read_map(root, name)
    ]
    return ["| in the paper | in the code | where |", "|---|---|---|", *rows]


def memory_lines(name: str, *, root: Path, folder: Path) -> list[str]:
    """Published models, and the largest batch that is predicted to fit each card.

    Raises:
        RequestError: for another name than cards.
    """
    if name != "cards":
        raise RequestError(f"A generated block 'memory: {name}'", "There is one table of memory", "Name it cards")
    rows = [cells(*row) for row in table(root / "benchmarks" / "results.csv")]
    return [cells(*TITLES), "|---" * len(TITLES) + "|", *rows]


WRITERS = {
    "results": results_lines,
    "claim": claim_lines,
    "config": config_lines,
    "cost": cost_lines,
    "map": map_lines,
    "memory": memory_lines,
}
"""Who writes the inside of a block, by its kind; each takes its name, the checkout and the document's folder."""
