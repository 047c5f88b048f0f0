"""Claims as rows of Markdown tables, for blocks that a machine writes. No torch."""

from collections.abc import Iterator

from lightbox.claims.document import ClaimEntry, ContrastEntry
from lightbox.claims.spec import Role
from lightbox.claims.statistics import Ends
from lightbox.report.claim_view import CHIPS, budget_words
from lightbox.report.numbers import decimals, interval, level, number, signed


def claim_row(claim: ClaimEntry) -> str:
    """One claim: what is claimed, the paper's numbers, what was measured, the verdict."""
    return cells(
        f"{claim.id}{' (primary)' if claim.is_primary else ''}",
        claim.statement,
        claim.paper_numbers,
        measured(claim),
        f"{format(claim.min_effect, 'g') if claim.bound is None else number(claim.bound)} {claim.unit}",
        f"{len(claim.seeds)} × {claim.items}",
        budget_words(claim),
        verdict(claim),
    )


def measured(claim: ClaimEntry) -> str:
    """The effect of each link with the interval that decides it."""
    digits = decimals(claim.min_effect, claim.bound)
    several = len(claim.links) > 1
    links = []
    for link in claim.links:
        said = f"{signed(link.effect, digits)} {interval(*_ends(claim, link))}".strip() + f" {claim.unit}"
        links.append(f"{link.name}: {said}, {link.state or 'not decided'}" if several else said)
    return "; ".join(links)


def verdict(claim: ClaimEntry) -> str:
    """Every verdict as it was drawn, with the page's mark: a negative one is as visible as a positive one."""
    verdict = f"{CHIPS[claim.verdict].mark} **{claim.verdict}**" if claim.verdict in CHIPS else str(claim.verdict)
    return f"{claim.withdrawn}; it was {verdict}" if claim.withdrawn else verdict


def beside(claim: ClaimEntry) -> Iterator[str]:
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


def cells(*texts: str) -> str:
    """One row of a table; a bar in a text would end its cell."""
    return f"| {' | '.join(' '.join(text.split()).replace('|', chr(92) + '|') for text in texts)} |"
