"""`results.json` as typed records: what a `reproduce` came to, for the page, READMEs, `explain` and scripts. No torch.

Numbers of a claim are in its printed unit ("points" are hundredths of an accuracy). Examples name image files by path
relative to the document; curves hold, by paper, metric and arm, one thinned curve a seed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lightbox.claims.budget import Convergence
from lightbox.claims.spec import PHANTOM, REAL, Kind, Role, Verdict
from lightbox.claims.statistics import Effect, Ends, agreement
from lightbox.claims.verdicts import Family, family
from lightbox.errors import RequestError
from lightbox.files import digest, replace_text
from lightbox.runs.examples import Example

SCHEMA = 1
MEANING = {
    PHANTOM: "A verdict on phantom images speaks about a mechanism, never about patients.",
    REAL: "A number on real images speaks about one small model and one public set, never about patients.",
}
SEAL = "sha256"

Curve = list[tuple[int, float | None]]
Curves = dict[str, dict[str, list[Curve]]]


@dataclass(frozen=True)
class Level:
    """Mean of one arm or baseline over seeds; in the claim's unit where a contrast reads that metric, else as is."""

    metric: str
    mean: float | None
    per_seed: tuple[float, ...]


@dataclass(frozen=True)
class Published:
    """A committed effect beside ours, and whether it `agrees`: a test at 95 % finds no difference; None without a test.

    `detectable` is the smallest difference that the test would find with a power of 80 %. Only a claim has a verdict,
    commits and the `hardware` that the committed run was made on.
    """

    effect: float | None
    ci95: Ends | None
    agrees: bool | None
    detectable: float | None = None
    verdict: str = ""
    commits: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContrastEntry(Effect):
    """An effect in printed units; `state` is what it came to as a link or control, "" for a secondary one."""

    state: str = ""
    published: Published | None = None


@dataclass(frozen=True)
class GateEntry:
    """The gate; `passed` is None before a seed is complete, `effect` the lead of the best arm over the baseline."""

    passed: bool | None
    failures: tuple[str, ...]
    unit: str
    best: str
    best_mean: float | None
    baseline: str
    baseline_mean: float | None
    effect: float | None
    ci95: Ends | None
    margin: float
    ceiling: float
    headroom: float


@dataclass(frozen=True)
class BudgetPoint:
    """A mean over `seeds` seeds at one training budget, with its 95 % t interval, in printed units."""

    budget: int
    mean: float
    ci95: Ends | None
    seeds: int


@dataclass(frozen=True)
class BudgetCurve:
    """A link, a control or an arm's score (`role` "arm") by budget; `is_pilot` False is by the verdict's own seeds."""

    name: str
    role: str
    is_pilot: bool
    points: tuple[BudgetPoint, ...]


@dataclass(frozen=True)
class ClaimEntry:
    """One claim; effect and interval are those of its primary contrast, of several the weakest link.

    `arms` and `baselines` are levels by label. `budget` is the budget axis, "" where the claim has none, None in a
    document of before claims had one; `convergence` judges it, `by_budget` are the curves behind that. `older_source`
    names the commits behind scores that today's source, settings and data would not make, `retrained` those whose
    scores today's source gave again (`claims.same_source`); only a recomputed document knows them. `hardware` is what
    the jobs ran on.
    """

    paper: str
    id: str
    kind: Kind
    statement: str
    location: str
    paper_numbers: str
    note: str
    is_primary: bool
    verdict: Verdict
    reason: str
    effect: float | None
    ci95: Ends | None
    unit: str
    min_effect: float
    bound: float | None
    seeds: tuple[int, ...]
    planned_seeds: int
    items: int
    gate: GateEntry | None
    contrasts: tuple[ContrastEntry, ...]
    controls: tuple[str, ...]
    baselines: dict[str, Level]
    arms: dict[str, Level]
    run_ids: tuple[str, ...]
    commits: tuple[str, ...]
    wall_s: float
    published: Published | None = None
    older_source: tuple[str, ...] = ()
    retrained: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    images: str = PHANTOM
    hardware: tuple[str, ...] = ()
    budget: str | None = None
    convergence: Convergence | None = None
    by_budget: tuple[BudgetCurve, ...] = ()

    @property
    def withdrawn(self) -> str:
        """Why a verdict stands no longer: it was drawn before claims had a training budget; "" for others."""
        return "" if self.budget is not None else "withdrawn: no pilot says whether it turns with more training"

    def deciding_contrasts(self) -> list[ContrastEntry]:
        """Links, controls and premises."""
        return [contrast for contrast in self.contrasts if contrast.role is not Role.SECONDARY]

    def deciding_interval(self, contrast: ContrastEntry) -> tuple[Ends | None, int]:
        """The interval that decides a contrast, and its level in percent: two one-sided tests are read at 90 %."""
        is_two_tests = self.kind is Kind.EQUIVALENCE and contrast.role is Role.PRIMARY
        return (contrast.ci90, 90) if is_two_tests else (contrast.ci95, 95)

    def shown_arms(self) -> dict[str, Level]:
        """Arms by label, without those that are baselines as well."""
        return {name: level for name, level in self.arms.items() if self.baselines.get(name) != level}

    def shown_baselines(self) -> dict[str, Level]:
        """Baselines by label; one that is read from every arm, such as a blank image, only of the gate's best."""
        best = self.gate.best if self.gate is not None else ""
        return {name: lv for name, lv in self.baselines.items() if "[" not in name or name.startswith(f"{best} [")}

    @property
    def links(self) -> list[ContrastEntry]:
        """Primary contrasts, in the order declared."""
        return [contrast for contrast in self.contrasts if contrast.role is Role.PRIMARY]

    @property
    def deciding(self) -> ContrastEntry:
        """The link whose effect is the claim's."""
        return next((link for link in self.links if link.effect == self.effect), self.links[0])

    def beside(self, earlier: "ClaimEntry | None") -> "ClaimEntry":
        """The same claim with the committed effect beside each effect, and whether the two agree.

        Beside the claim stands the committed effect of its own deciding contrast, which need not have decided there.
        """
        by_name = {contrast.name: contrast for contrast in earlier.contrasts} if earlier is not None else {}
        contrasts = tuple(replace(c, published=_published(c, by_name.get(c.name))) for c in self.contrasts)
        published = _published(self.deciding, by_name.get(self.deciding.name))
        if published is not None and earlier is not None:
            of_claim = {"verdict": str(earlier.verdict), "commits": earlier.commits, "hardware": earlier.hardware}
            published = replace(published, **of_claim)
        return replace(self, contrasts=contrasts, published=published)


def _published(ours: ContrastEntry, theirs: ContrastEntry | None) -> Published | None:
    if theirs is None:
        return None
    agrees, detectable = agreement(ours, theirs)
    return Published(theirs.effect, theirs.ci95, agrees, detectable)


@dataclass(frozen=True)
class JobEntry:
    """A finished job of one (paper, arm, seed); several arms may share a key."""

    paper: str
    arm: str
    seed: int
    key: str
    reused: bool
    commit: str | None
    source: str | None
    hardware: str | None
    wall_s: float | None
    peak_gib: float | None
    ended: str | None
    budget: int | None = None
    settings: str | None = None


@dataclass(frozen=True)
class ErrorEntry:
    """A job that failed, and the error's text."""

    paper: str
    arm: str
    seed: int
    key: str
    error: str


@dataclass(frozen=True)
class ShownExample:
    """An example and whose it is."""

    paper: str
    arm: str
    seed: int
    example: Example


@dataclass(frozen=True)
class Document:
    """All of `results.json`; `skipped` are the ids of claims that the preset does not run.

    `machine` holds "hardware", and "versions" by distribution.
    """

    schema: int
    preset: str
    commit: str
    started: str
    wall_s: float
    machine: dict[str, Any]
    claims: tuple[ClaimEntry, ...]
    family: Family
    skipped: tuple[str, ...] = ()
    jobs: tuple[JobEntry, ...] = ()
    errors: tuple[ErrorEntry, ...] = ()
    examples: tuple[ShownExample, ...] = ()
    curves: dict[str, Curves] = field(default_factory=dict)

    @property
    def is_real(self) -> bool:
        """True where the images of its claims are real ones."""
        return any(claim.images == REAL for claim in self.claims)

    @property
    def meaning(self) -> str:
        """What its verdicts speak about, in a sentence."""
        return MEANING[REAL if self.is_real else PHANTOM]

    @property
    def job_s(self) -> float:
        """Seconds that its jobs took, all together; those of several arms once."""
        return sum({job.key: job.wall_s or 0.0 for job in self.jobs}.values())


_DOCUMENT = TypeAdapter(Document)


def family_of(claims: tuple[ClaimEntry, ...]) -> Family:
    """How many verdicts some claims drew, and the share of false "reproduced" to expect."""
    return family((claim.kind, claim.verdict) for claim in claims)


def to_json(document: Document) -> dict[str, Any]:
    """The document as JSON holds it."""
    return _DOCUMENT.dump_python(document, mode="json")


def write(document: Document, path: Path) -> None:
    """Replace `results.json` as a whole; it ends with a digest of the rest."""
    content = to_json(document)
    content[SEAL] = digest(content)
    replace_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def load(path: Path) -> Document:
    """Read `results.json`.

    Raises:
        RequestError: where there is none, it is no results document, another version of Lightbox wrote it, or it was
            edited since. A document from before there were digests, whose claims have no budget, is read as it is.
    """
    again = "Run `lightbox reproduce` again, which keeps finished jobs"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        why = f"It cannot be read: {err.strerror or err}"
        raise RequestError(f"The results are {path}", why, "Run `lightbox reproduce` first, or correct --from") from err
    except ValueError as err:
        raise RequestError(f"The results are {path}", f"It is not JSON: {err}", again) from err
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        why = f"This version of Lightbox reads schema {SCHEMA}"
        raise RequestError(f"{path} has schema {schema!r}", why, f"{again}, or use the version that wrote it")
    seal = content.pop(SEAL, None)
    if seal != digest(content) and (seal is not None or _has_budget(content)):
        why = "It does not match the digest at its end, so it was edited, or merged by hand"
        why = why if seal is not None else "The digest at its end was taken away"
        raise RequestError(f"The results are {path}", why, f"Restore it, or delete it: {again[0].lower()}{again[1:]}")
    try:
        return _DOCUMENT.validate_python(content)
    except ValidationError as err:
        first = err.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise RequestError(f"The results are {path}", f"They hold what no results hold: {why}", again) from err


def _has_budget(content: Mapping[str, Any]) -> bool:
    """Whether a document is of the time when claims had a training budget, which is later than digests."""
    claims = content.get("claims")
    entries = [claim for claim in claims if isinstance(claim, dict)] if isinstance(claims, list) else []
    return any(claim.get("budget") is not None for claim in entries)
