"""Blocks of Markdown files that a machine writes: published results, a paper's settings, its map to the code. No torch.

A block stands between `<!-- KIND: NAME -->` and `<!-- end KIND -->`, each on a line of its own. KIND is "results" (NAME
is PAPER/PRESET, read from `results/PAPER/PRESET/results.json`), "config" or "map" (NAME is the paper), or "memory"
(NAME is cards: what fits on which). What stands outside of blocks is prose and is left alone.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from lightbox.claims import registry
from lightbox.claims.document import ClaimEntry, ContrastEntry, Document, load
from lightbox.claims.published import DOCUMENT
from lightbox.claims.spec import Role
from lightbox.claims.statistics import Ends
from lightbox.config import leaf_docs
from lightbox.errors import RequestError
from lightbox.files import replace_text
from lightbox.report.claim_view import CHIPS, budget_words
from lightbox.report.gpus import TITLES, table
from lightbox.report.numbers import decimals, duration, interval, level, number, signed
from lightbox.report.paper_map import read_map

BLOCK = re.compile(r"^<!-- (results|config|map|memory): ([\w/]+) -->\n(.*?)^<!-- end \1 -->$", re.DOTALL | re.MULTILINE)
OPENING = re.compile(r"^<!-- (?:results|config|map|memory): .*$", re.MULTILINE)
BUILT = ("lightbox-out", "site", "__pycache__")
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
        lines = {"results": results_lines, "config": config_lines, "map": map_lines, "memory": memory_lines}[kind]
        inside = "\n".join(lines(name, root=root, folder=document.parent))
        return f"<!-- {kind}: {name} -->\n\n{inside}\n\n<!-- end {kind} -->"

    return BLOCK.sub(block, text)


def results_lines(name: str, *, root: Path, folder: Path) -> list[str]:
    """The claim table of a publication, and under it its origin and what stands beside each verdict."""
    path = root / "results" / name / DOCUMENT
    document = load(path)
    return [
        "| claim | statement | paper | measured, deciding interval | minimum | seeds × items | budget | verdict |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(claim) for claim in document.claims),
        "",
        f"{origin_words(document)} Runs and scores: [results.json]({os.path.relpath(path, folder)}).",
        "",
        _family(document),
        "",
        *(f"- {claim.id}: {'; '.join(_beside(claim))}." for claim in document.claims),
    ]


def _row(claim: ClaimEntry) -> str:
    digits = decimals(claim.min_effect, claim.bound)
    several = len(claim.links) > 1
    links = []
    for link in claim.links:
        said = f"{signed(link.effect, digits)} {interval(*_ends(claim, link))}".strip() + f" {claim.unit}"
        links.append(f"{link.name}: {said}, {link.state or 'not decided'}" if several else said)
    return _cells(
        f"{claim.id}{' (primary)' if claim.is_primary else ''}",
        claim.statement,
        claim.paper_numbers,
        "; ".join(links),
        f"{format(claim.min_effect, 'g') if claim.bound is None else number(claim.bound)} {claim.unit}",
        f"{len(claim.seeds)} × {claim.items}",
        budget_words(claim),
        _verdict(claim),
    )


def _verdict(claim: ClaimEntry) -> str:
    """Every verdict as it was drawn, with the page's mark: a negative one is as visible as a positive one."""
    verdict = f"{CHIPS[claim.verdict].mark} **{claim.verdict}**" if claim.verdict in CHIPS else str(claim.verdict)
    return f"{claim.withdrawn}; it was {verdict}" if claim.withdrawn else verdict


def _beside(claim: ClaimEntry) -> Iterator[str]:
    """Why the verdict is what it is: caveats, reason, links, controls; scores by themselves; best arm and baselines."""
    digits = decimals(claim.min_effect, claim.bound)
    yield from (f"caveat: {caveat.rstrip('.')}" for caveat in claim.caveats)
    yield claim.reason
    for contrast in claim.deciding_contrasts():
        ends = interval(*_ends(claim, contrast))
        state = f", {contrast.state}" if contrast.state else ""
        yield f'{contrast.role} "{contrast.name}" {signed(contrast.effect, digits)} {ends}'.rstrip() + state
    for contrast in claim.contrasts:
        if contrast.role == Role.SECONDARY and not contrast.rival:  # a score and not a difference
            mean = signed(contrast.effect, digits).removeprefix("+")
            yield f"{contrast.name} {mean} {interval(*_ends(claim, contrast))} {claim.unit}"
    gate = claim.gate
    if gate is not None and claim.shown_baselines():
        means = ", ".join(f"{name} {level(baseline.mean)}" for name, baseline in claim.shown_baselines().items())
        yield f"best arm {gate.best} {level(gate.best_mean)} {gate.unit}, baselines {means}"


def _ends(claim: ClaimEntry, contrast: ContrastEntry) -> tuple[Ends | None, int, int]:
    ends, percent = claim.deciding_interval(contrast)
    return ends, decimals(claim.min_effect), percent


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


def config_lines(name: str, *, root: Path, folder: Path) -> list[str]:
    """Every setting of a paper: key, default of its schema, and its one line of meaning."""
    schema = registry.load_papers([name])[0].config().Config
    defaults = schema_defaults(schema)
    rows = [_cells(f"`{key}`", defaults[key], doc) for key, doc in leaf_docs(schema).items()]
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
        _cells(a.item, f"`{a.name}`", f"[{a.path.name}:{a.line}]({os.path.relpath(a.path, folder)}#L{a.line})")
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
    rows = [_cells(*row) for row in table(root / "benchmarks" / "results.csv")]
    return [_cells(*TITLES), "|---" * len(TITLES) + "|", *rows]


def _cells(*texts: str) -> str:
    """One row of a table; a bar in a text would end its cell."""
    return f"| {' | '.join(' '.join(text.split()).replace('|', chr(92) + '|') for text in texts)} |"
