"""Verdicts: fixed rules in a fixed order, applied to effects, their intervals and the gate.

The order is: not testable, absent, reproduced, control failed, contradicted, still learning, inconclusive. Each primary
contrast is a *link* and gets a state of its own; most claims have one. Below, m is the link's minimum effect, I its
95 % t interval.

| kind | a link is absent | holds | is contradicted |
|---|---|---|---|
| directional, chain, pattern | I inside +-m | I above 0 and effect >= m | I below 0 and effect <= -m |
| equivalence (two one-sided tests) | never: no effect is the claim | 90 % interval inside +-m | I outside +-m |
| exact | never | every seed's number within the bound | otherwise |

All else is inconclusive. The claim, whatever its kind, then is: *absent* if any link is absent, even where another is
contradicted (the order above; the links are printed with their own states); *reproduced* if every link holds and every
control holds; *control failed* if every link holds and a control fails; *contradicted* if any link is contradicted;
*inconclusive* otherwise, which includes a control too wide to tell. A control holds if its interval is above 0, and
fails if the interval reaches 0 or below and its upper end stays under the minimum. An exact claim has no interval: a
control holds if it is above 0 in every seed, and fails otherwise.

A *premise* is what must be true of the run for the claim to say anything, such as a model that over-fits. It holds if
I is above 0 and the effect at least m; where it does not, the claim is not testable, as where the gate fails.

Off its plateau (`claims.budget`), a claim that would be absent, reproduced, control failed or contradicted is *still
learning*; so is one that would be absent, control failed or contradicted by a contrast that the pilot leaves unsettled.

No verdict is drawn below `MIN_SEEDS` seeds (an exact number needs one), before every planned seed has ended, or at the
presets that only exercise code. Waiting for all planned seeds keeps a lucky early look, or a seed that crashed, from
choosing the verdict. "Inside" is strict; "at least" includes the minimum itself, up to rounding.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lightbox.claims.budget import Convergence
from lightbox.claims.gate import ROUNDING, GateResult
from lightbox.claims.spec import Claim, Kind, Role, Verdict
from lightbox.claims.statistics import Effect
from lightbox.errors import RequestError

MIN_SEEDS = 5
PRESETS_WITHOUT_VERDICT = ("smoke",)
# Chance that a claim whose true effect is 0 (for an equivalence: at the margin) comes out "reproduced", at most.
FALSE_SHARE = {Kind.DIRECTIONAL: 0.025, Kind.CHAIN: 0.025, Kind.PATTERN: 0.025, Kind.EQUIVALENCE: 0.05, Kind.EXACT: 0.0}


@dataclass(frozen=True)
class Decision:
    """A verdict, one sentence why, and the state of each link, and of each control and premise, by contrast name."""

    verdict: Verdict
    reason: str
    links: dict[str, Verdict]
    controls: dict[str, str]


def decide(
    claim: Claim,
    effects: Sequence[Effect],
    gate: GateResult | None,
    *,
    planned_seeds: int,
    preset: str = "full",
    convergence: Convergence | None = None,
) -> Decision:
    """Apply the rules of this module to one claim.

    Args:
        claim: kind, bound, minimum number of items.
        effects: of the claim's contrasts; secondary ones are ignored.
        gate: its result; None where the claim has no gate.
        planned_seeds: seeds the preset takes; all must have ended.
        preset: name of the size preset.
        convergence: whether the claim is on its plateau; None where it has no training budget.

    Raises:
        RequestError: where a verdict would rest on fewer than `claim.min_items` items.
    """
    links = [e for e in effects if e.role is Role.PRIMARY]
    controls = [e for e in effects if e.role is Role.CONTROL]
    premises = [e for e in effects if e.role is Role.PREMISE]
    lead = [gate.difference] if gate is not None and gate.difference is not None else []
    refusal = _too_few_seeds(claim, [*links, *controls, *premises, *lead], gate, planned_seeds, preset)
    if preset not in PRESETS_WITHOUT_VERDICT and (planned_seeds >= MIN_SEEDS or claim.kind is Kind.EXACT):
        check_items(claim, [*links, *controls])
    if refusal:
        return Decision(Verdict.NONE, refusal, {}, {})
    states = {e.name: _link_state(claim, e) for e in links}
    guards = {e.name: _control_state(claim, e) for e in controls}
    premised = {e.name: _premise_state(e) for e in premises}
    verdict, reason = _combine(states, guards, gate, premised)
    if convergence is not None and (doubt := _still_learning(verdict, states | guards | premised, convergence)):
        verdict, reason = Verdict.STILL_LEARNING, f"{doubt}; at this budget it would be {verdict}: {reason}"
    return Decision(verdict, reason, states, guards | premised)


def _still_learning(verdict: Verdict, states: Mapping[str, Verdict | str], convergence: Convergence) -> str:
    """Why a verdict does not stand at the budget of its run, or ""."""
    if verdict in (Verdict.NOT_TESTABLE, Verdict.INCONCLUSIVE):
        return ""
    if not convergence.is_on_plateau:
        return f"off the plateau: {convergence.reason}"
    state = "failed" if verdict is Verdict.CONTROL_FAILED else verdict
    rests_on = [name for name in convergence.unsettled if verdict is not Verdict.REPRODUCED and states[name] == state]
    return f"the pilot does not rule out that it moves: {', '.join(rests_on)}" if rests_on else ""


def check_items(claim: Claim, effects: Sequence[Effect]) -> None:
    """Raise `RequestError` where a contrast with scores has fewer items a seed than the claim needs."""
    if claim.kind is Kind.EXACT:
        return
    for effect in effects:
        if effect.seeds and effect.items < claim.min_items:
            raise RequestError(
                f"Claim {claim.id}, contrast '{effect.name}', has {effect.items} test items a seed",
                f"The test set is smaller than the claim needs: a verdict rests on at least {claim.min_items}",
                "Raise the preset's number of test items (data.n_test), or run --preset smoke, which draws no verdict",
            )


@dataclass(frozen=True)
class Family:
    """How many verdicts were drawn, and how many false "reproduced" to expect among them if every effect were 0.

    Args:
        verdicts: drawn, "no verdict" left out; reproduced: of them.
        expected_false: the sum of the rules' own error rates.
        chance_of_any_false: that at least one is false, for independent claims.
        share_false_at_most: expected_false over reproduced, at most 1, and 0 where nothing was reproduced.
    """

    verdicts: int
    reproduced: int
    expected_false: float
    chance_of_any_false: float
    share_false_at_most: float


def family(outcomes: Iterable[tuple[Kind, Verdict]]) -> Family:
    """Count the verdicts of some claims, and what to expect of them by chance."""
    drawn = [(kind, verdict) for kind, verdict in outcomes if verdict is not Verdict.NONE]
    reproduced = sum(verdict is Verdict.REPRODUCED for _, verdict in drawn)
    expected, none_false = 0.0, 1.0
    for kind, _ in drawn:
        expected += FALSE_SHARE[kind]
        none_false *= 1 - FALSE_SHARE[kind]
    return Family(
        verdicts=len(drawn),
        reproduced=reproduced,
        expected_false=expected,
        chance_of_any_false=1 - none_false,
        share_false_at_most=min(1.0, expected / reproduced) if reproduced else 0.0,
    )


def _too_few_seeds(claim: Claim, effects: Sequence[Effect], gate: GateResult | None, planned: int, preset: str) -> str:
    """Why no verdict may be drawn, or ""."""
    if preset in PRESETS_WITHOUT_VERDICT:
        return f"The preset {preset} exercises the code; its sizes decide nothing"
    if planned < MIN_SEEDS and claim.kind is not Kind.EXACT:
        return f"{planned} of the {MIN_SEEDS} seeds that a verdict needs"
    ended = min((len(e.seeds) for e in effects), default=0)
    if ended < planned or (gate is not None and gate.is_passed is None):
        return f"{ended} of {planned} seeds have ended"
    return ""


def _link_state(claim: Claim, effect: Effect) -> Verdict:
    if claim.kind is Kind.EXACT:
        return Verdict.REPRODUCED if all(_within(claim, d) for d in effect.per_seed) else Verdict.CONTRADICTED
    (low, high), least = effect.ci95, effect.min_effect
    if claim.kind is Kind.EQUIVALENCE:
        low90, high90 = effect.ci90
        if -least < low90 and high90 < least:
            return Verdict.REPRODUCED
        return Verdict.CONTRADICTED if low > least or high < -least else Verdict.INCONCLUSIVE
    if -least < low and high < least:
        return Verdict.ABSENT
    if low > 0 and effect.effect >= least - ROUNDING:
        return Verdict.REPRODUCED
    if high < 0 and effect.effect <= -least + ROUNDING:
        return Verdict.CONTRADICTED
    return Verdict.INCONCLUSIVE


def _within(claim: Claim, value: float) -> bool:
    return value <= claim.bound + ROUNDING if claim.is_upper_bound else value >= claim.bound - ROUNDING


def _control_state(claim: Claim, effect: Effect) -> str:
    """Say whether a control contrast "holds", "failed", or is too "wide" to tell."""
    low, high = (min(effect.per_seed), -1.0) if claim.kind is Kind.EXACT else effect.ci95
    if low > 0:
        return "holds"
    return "failed" if high < effect.min_effect else "wide"


def _premise_state(effect: Effect) -> str:
    """Say whether a premise "holds" or is "missing"."""
    return "holds" if effect.ci95[0] > 0 and effect.effect >= effect.min_effect - ROUNDING else "missing"


def _combine(
    states: dict[str, Verdict], guards: dict[str, str], gate: GateResult | None, premises: dict[str, str]
) -> tuple[Verdict, str]:
    def named(state: Verdict | str, among: dict) -> str:
        return ", ".join(name for name, value in among.items() if value == state)

    if gate is not None and not gate.is_passed:
        return Verdict.NOT_TESTABLE, "; ".join(gate.failures)
    if missing := named("missing", premises):
        return Verdict.NOT_TESTABLE, f"what the claim presupposes was not found: {missing}"
    if Verdict.ABSENT in states.values():
        return Verdict.ABSENT, f"the interval lies inside the minimum effect: {named(Verdict.ABSENT, states)}"
    if all(state is Verdict.REPRODUCED for state in states.values()):
        if "failed" in guards.values():
            return Verdict.CONTROL_FAILED, f"a control does as well: {named('failed', guards)}"
        if "wide" in guards.values():
            return Verdict.INCONCLUSIVE, f"a control is too wide to tell: {named('wide', guards)}"
        return Verdict.REPRODUCED, "every primary contrast holds, and every control"
    if Verdict.CONTRADICTED in states.values():
        return Verdict.CONTRADICTED, f"the paper's direction is reversed: {named(Verdict.CONTRADICTED, states)}"
    return Verdict.INCONCLUSIVE, f"the interval leaves it open: {named(Verdict.INCONCLUSIVE, states)}"
