"""Which papers there are, and their claims: found through the entry-point group `lightbox.papers`, loaded by name.

Every function takes `packages`, a mapping of paper to importable package, in place of the entry points; tests and
papers outside this repository use it. No torch: `<paper>.claims` and `<paper>.config` import none.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType

from lightbox.claims.spec import Claim, Kind, PaperClaims, Role
from lightbox.errors import RequestError

GROUP = "lightbox.papers"


@dataclass(frozen=True)
class Paper:
    """A paper as the runner needs it: its name, its package, and its claims."""

    name: str
    package: str
    claims: PaperClaims

    def config(self) -> ModuleType:
        """Import `<package>.config`, which resolves overrides and knows inputs and cost."""
        return importlib.import_module(f"{self.package}.config")


def installed_packages() -> dict[str, str]:
    """Package of each installed paper, by paper name, in order of name."""
    return {point.name: point.value for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def load_papers(names: Sequence[str] = (), *, packages: Mapping[str, str] | None = None) -> list[Paper]:
    """Load papers and check their claims; no names means all of them.

    Raises:
        RequestError: for an unknown name, listing the known ones, or for claims that contradict themselves.
    """
    packages = installed_packages() if packages is None else packages
    for name in names:
        if name not in packages:
            raise _unknown("paper", name, packages)
    return [load_paper(name, packages[name]) for name in dict.fromkeys(names or packages)]


def declarations(names: Iterable[str]) -> dict[str, PaperClaims]:
    """What those papers declare, by name; one that is recorded and not installed is left out."""
    packages = installed_packages()
    return {name: load_paper(name, packages[name]).claims for name in dict.fromkeys(names) if name in packages}


def load_paper(name: str, package: str) -> Paper:
    """Import `<package>.claims` and check it."""
    claims = importlib.import_module(f"{package}.claims").PAPER
    check_claims(claims)
    return Paper(name, package, claims)


def choose_claims(papers: Sequence[Paper], ids: Sequence[str] = ()) -> list[tuple[Paper, Claim]]:
    """Claims by id, over the given papers, in the order of the papers; no ids means all.

    Raises:
        RequestError: for an unknown id, listing the known ones.
    """
    every = [(paper, claim) for paper in papers for claim in paper.claims.claims]
    every_id = [claim.id for _, claim in every]
    for claim_id in ids:
        if claim_id not in every_id:
            raise _unknown("claim", claim_id, every_id)
    return [(paper, claim) for paper, claim in every if not ids or claim.id in ids]


def check_preset(preset: str, claims: Iterable[tuple[Paper, Claim]]) -> None:
    """Raise `RequestError`, listing the known ones, where no claim knows the preset."""
    presets = sorted({name for _, claim in claims for name in claim.presets})
    if preset not in presets:
        raise _unknown("preset", preset, presets)


def check_claims(paper: PaperClaims) -> None:
    """Raise `RequestError` where a paper's claims contradict themselves: the first fault found, by claim and name."""
    for name, arm in paper.arms.items():
        _refuse_unless(name == arm.name, paper, f"arm '{arm.name}' under the name '{name}'", "The two must agree")
        missing = [need for need in arm.needs if need not in paper.arms]
        _refuse_unless(not missing, paper, f"arm '{name}', which needs {missing}", "Those are no arms of the paper")
    default = f"the default arm '{paper.default_arm}'"
    _refuse_unless(paper.default_arm in paper.arms, paper, default, f"The arms are {', '.join(paper.arms)}")
    arms_in_order(paper, paper.arms)
    ids = [claim.id for claim in paper.claims]
    _refuse_unless(len(set(ids)) == len(ids), paper, f"the claim ids {', '.join(ids)}", "An id names one claim")
    axes = sorted({claim.budget for claim in paper.claims} - {""})
    _refuse_unless(len(axes) < 2, paper, f"claims with the budgets {', '.join(axes)}", "A pilot has one ladder")
    for claim in paper.claims:
        _check_claim(paper, claim)


def arms_in_order(paper: PaperClaims, arms: Iterable[str]) -> list[str]:
    """The arms and everything they need, each once, needs first.

    Raises:
        RequestError: where arms need each other in a circle.
    """
    ordered: list[str] = []

    def visit(name: str, waiting: tuple[str, ...]) -> None:
        circle = " -> ".join((*waiting, name))
        _refuse_unless(name not in waiting, paper, f"the needs {circle}", "No arm of a circle can run first")
        for need in paper.arms[name].needs:
            visit(need, (*waiting, name))
        if name not in ordered:
            ordered.append(name)

    for name in arms:
        visit(name, ())
    return ordered


def _check_claim(paper: PaperClaims, claim: Claim) -> None:
    declared = f"claim {claim.id} of kind {claim.kind}"
    links = claim.by_role(Role.PRIMARY)
    _refuse_unless(bool(links), paper, f"{declared} without a primary contrast", "A verdict needs one")
    if claim.kind in (Kind.DIRECTIONAL, Kind.PATTERN):
        why = "It rests on one number; kind chain takes several"
        _refuse_unless(len(links) == 1, paper, f"{declared} with {len(links)} primary contrasts", why)
    premises = claim.by_role(Role.PREMISE) if claim.kind is Kind.EXACT else ()
    _refuse_unless(not premises, paper, f"{declared} with a premise", "A premise is judged by an interval")
    names = [contrast.name for contrast in claim.contrasts]
    _refuse_unless(len(set(names)) == len(names), paper, f"{declared}, contrasts {names}", "A name is used twice")
    missing = [arm for arm in claim.arms if arm not in paper.arms]
    _refuse_unless(not missing, paper, f"{declared}, which reads {missing}", "Those are no arms of the paper")
    has_bound = claim.bound is not None
    _refuse_unless(
        has_bound == (claim.kind is Kind.EXACT), paper, f"{declared}, bound {claim.bound}", "Exact has a bound"
    )
    uncounted = [preset for preset in claim.presets if claim.seeds.get(preset, 0) < 1]
    _refuse_unless(not uncounted, paper, f"{declared}, presets {uncounted}", "`seeds` says no number for them")


def _refuse_unless(holds: bool, paper: PaperClaims, declared: str, why: str) -> None:
    if not holds:
        raise RequestError(f"{paper.paper} declares {declared}", why, f"Correct {paper.paper}/claims.py")


def _unknown(what: str, name: str, choices: Iterable[str]) -> RequestError:
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Choose a {what} from those"
    return RequestError(f"There is no {what} '{name}'", f"The known ones are: {', '.join(choices) or 'none'}", hint)
