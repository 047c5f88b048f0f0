"""What `reproduce`, `report` and `explain` print: a plan with its cost, verdicts, one claim on a screen. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightbox import machine
from lightbox.claims.budget import FILE, Convergence, judge, load_pilot, steps
from lightbox.claims.document import ClaimEntry, Document
from lightbox.claims.jobs import Job, Plan, budgets_of, seeds_of
from lightbox.claims.registry import Paper
from lightbox.claims.spec import Claim, Contrast, Kind, Role, base_arm
from lightbox.claims.statistics import Ends
from lightbox.claims.verdicts import PRESETS_WITHOUT_VERDICT
from lightbox.eval.intervals import half_width
from lightbox.report.numbers import decimals

ASSUMED_SD = 0.02  # standard deviation of d_s where no pilot has been published: 2 points of accuracy


def plain_console(**options: Any) -> Console:
    """A console that neither wraps nor colours numbers, so that a script can read what it prints."""
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, **options)


def show_plan(
    console: Console,
    plan: Plan,
    waiting: Sequence[Job],
    *,
    workers: int,
    published: Mapping[tuple[str, str], ClaimEntry],
    root: Path,
) -> None:
    """Print a dry run: jobs, minutes, memory, and for each claim the half-width to expect and its plateau."""
    workers = max(1, min(workers, machine.cores(), len(waiting)))
    minutes = max(sum(job.minutes for job in waiting) / workers, max((job.minutes for job in waiting), default=0))
    memory = workers * max((job.mem_gib for job in waiting), default=0)
    console.print(f"{len(plan.jobs)} jobs, {len(plan.jobs) - len(waiting)} of them finished, {len(waiting)} to run")
    console.print(f"about {minutes:.1f} minutes with {workers} worker(s), about {memory:.1f} GiB at the peak")
    for paper, claim in plan.claims:
        count = len(seeds_of(claim, plan.preset))
        width = expected_width(claim, count, published.get((paper.name, claim.id)))
        console.print(f"{paper.name} {claim.id}: {count} seed(s), {width}")
        if claim.budget and plan.preset not in PRESETS_WITHOUT_VERDICT:
            console.print(f"  {planned_convergence(paper, claim, plan, root).summary()}")


def planned_convergence(paper: Paper, claim: Claim, plan: Plan, root: Path) -> Convergence:
    """Whether a claim will be on its plateau, as far as the pilot of its paper tells."""
    named = {base_arm(arm)[0]: plan.jobs[key] for (name, arm, _), key in plan.keys.items() if name == paper.name}
    run = budgets_of(claim, plan.preset, plan.usual_budget(paper))[-1]
    return judge(claim, run, load_pilot(root, paper.claims), named)[0]


def expected_width(claim: Claim, seeds: int, published: ClaimEntry | None) -> str:
    """Half-width to expect of the claim's interval, from the SD of a published run or from an assumed one."""
    if claim.kind is Kind.EXACT:
        return "an exact number, no interval"
    if seeds < 2:
        return "no interval from one seed"
    links = [c for c in published.contrasts if c.role is Role.PRIMARY] if published is not None else []
    sd = max((c.seed_sd or 0.0 for c in links), default=0.0)
    origin = "SD of the published run" if sd else "assumed; a published run would tell"
    sd = sd or ASSUMED_SD * claim.unit_scale
    return f"interval of about +-{half_width(sd, seeds):.1f} {claim.unit} (d_s with SD {sd:.1f}, {origin})"


def show_verdicts(console: Console, document: Document) -> None:
    """Print one row a claim and what to expect by chance."""
    table = Table(box=None, pad_edge=False)
    for name in ("claim", "verdict", "effect", "interval", "seeds", "published"):
        # on a narrow terminal these two wrap, so that no claim and no verdict is cut
        table.add_column(name, no_wrap=name not in ("effect", "published"))
    for claim in document.claims:
        table.add_row(
            f"{claim.paper} {claim.id}",
            str(claim.verdict),
            "-" if claim.effect is None else f"{_signed(claim.effect, claim)} {claim.unit}",
            _brackets(*claim.deciding_interval(claim.deciding)) or "-",
            f"{len(claim.seeds)}/{claim.planned_seeds}",
            _agreement(claim),
        )
    console.print(table)
    family = document.family
    if family.verdicts:
        console.print(
            f"{family.verdicts} verdicts drawn, {family.reproduced} reproduced; "
            f"if every true effect were 0, {family.expected_false:.2f} of them would be expected to be false"
        )
    console.print(document.meaning)


def _signed(effect: float, claim: ClaimEntry) -> str:
    """Two digits, or more where the bound of an exact claim is smaller."""
    return f"{effect:+.{max(2, decimals(1.0, claim.bound))}f}"


def _brackets(ends: Ends | None, percent: int = 95) -> str:
    return f"[{ends[0]:+.2f}, {ends[1]:+.2f}]" + f" at {percent} %" * (percent != 95) if ends else ""


def _agreement(claim: ClaimEntry) -> str:
    published = claim.published
    if published is None or published.effect is None:
        return "-"
    agrees = {True: "agrees", False: "DISAGREES", None: ""}[published.agrees]
    return f"{_signed(published.effect, claim)} {agrees}".strip()


def explanation(paper: Paper, claim: Claim, entries: Sequence[tuple[str, ClaimEntry]]) -> list[str]:
    """One claim in at most 20 lines.

    Args:
        paper: whose claim it is, for the titles of its arms.
        claim: to explain.
        entries: published entries of the claim, each with its preset.
    """
    scale, unit = claim.unit_scale, claim.unit
    arxiv = paper.claims.arxiv  # a study of the core has no article
    named = f"{paper.claims.title}, arXiv {arxiv}" if arxiv else paper.claims.title
    lines = [
        f"{claim.id} ({named}; {claim.kind}{', primary' * claim.is_primary})",
        f"Statement: {claim.statement}",
        f"In the paper: {claim.location}; numbers: {claim.paper_numbers}",
    ]
    titles = [f"{name} ({paper.claims.arms[name].title})" for name in claim.arms]
    lines.append(f"Arms: {'; '.join(titles)}")
    for role, most in ((Role.PRIMARY, 4), (Role.CONTROL, 3), (Role.PREMISE, 2), (Role.SECONDARY, 2)):
        formulas = [f"{c.name}: {formula(paper, c)}" for c in claim.by_role(role)]
        lines += [f"{str(role).capitalize()}: {text}" for text in _at_most(formulas, most)]
    lines.append(_gate_line(paper, claim))
    if claim.kind is Kind.EXACT:
        lines.append(f"Bound: {'at most' if claim.is_upper_bound else 'at least'} {claim.bound * scale:g} {unit}")
    else:
        margin = "Equivalence margin" if claim.kind is Kind.EQUIVALENCE else "Minimum effect"
        lines.append(f"{margin}: {claim.min_effect * scale:g} {unit}; at least {claim.min_items} items a seed")
    budget = f"; budget {claim.budget}, pilot results/{paper.name}/{FILE}" if claim.budget else ""
    lines.append(f"Runs at: {', '.join(_size(claim, preset) for preset in claim.presets)}{budget}")
    lines += [f"Caveats: {' '.join(claim.caveats)}"] if claim.caveats else []
    lines += [_verdict_line(preset, entry) for preset, entry in entries] or ["Verdict: no published run"]
    return lines


def _size(claim: Claim, preset: str) -> str:
    own = claim.budget_by_preset.get(preset)
    return f"{preset} ({claim.seeds[preset]} seeds{f', {own} {steps(claim.budget)}' if own else ''})"


def formula(paper: Paper, contrast: Contrast) -> str:
    """A contrast as a sum of measures, for example ``true - none (accuracy)``, and the minimum that is its own."""
    terms = " ".join(f"{'-' if weight < 0 else '+'} {abs(weight):g} {m.label}" for weight, m in contrast.terms)
    metrics = ", ".join(dict.fromkeys(m.metric or paper.claims.headline for _, m in contrast.terms))
    least = "" if contrast.min_effect is None else f", at least {contrast.min_effect:g}"
    return f"{terms.replace(' 1 ', ' ').removeprefix('+ ')} ({metrics}{least})"


def _at_most(texts: Sequence[str], count: int) -> list[str]:
    if len(texts) <= count:
        return list(texts)
    return [*texts[: count - 1], "; ".join(texts[count - 1 :])]


def _gate_line(paper: Paper, claim: Claim) -> str:
    gate = claim.gate
    if gate is None:
        return "Gate: none"
    arms, baselines = (", ".join(m.label for m in group) for group in (gate.arms, gate.baselines))
    return (
        f"Gate: the best of {arms} beats the strongest of {baselines} by {gate.margin:g}, interval above 0, "
        f"and stays {gate.headroom:g} under {gate.ceiling:g} ({gate.arms[0].metric or paper.claims.headline})"
    )


def _verdict_line(preset: str, claim: ClaimEntry) -> str:
    several = len(claim.links) > 1
    links = ""
    for link in claim.links:
        ends = _brackets(*claim.deciding_interval(link))
        said = "no seed" if link.effect is None else f"{_signed(link.effect, claim)} {claim.unit} {ends}".rstrip()
        links += f", {link.name} {said} ({link.state or 'not decided'})" if several else f", {said}"
    judged = claim.convergence.summary() if claim.convergence is not None else claim.withdrawn
    seeds = f"{len(claim.seeds)} seeds, commit {', '.join(claim.commits)}"
    return f"Verdict at {preset}: {claim.verdict}{links}, {seeds}{judged and f'; {judged}'}"
