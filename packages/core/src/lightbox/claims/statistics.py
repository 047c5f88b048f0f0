"""From per-item scores to the effect of a contrast: paired within a seed, one number a seed, an interval over seeds.

No torch. Scores are the tables that jobs write: one row per item and condition, a float column per metric, null where
a metric does not apply.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightbox.claims.spec import Contrast, Measure, Role
from lightbox.errors import WorkError
from lightbox.eval.intervals import hierarchical_bootstrap, t_interval, t_quantile

Ends = tuple[float, float]


@dataclass(frozen=True)
class Scores:
    """Per-item scores of one paper, and what a measure reads that names no metric or condition.

    Args:
        tables: by (arm, seed).
        headline: metric column, as the paper declares it; condition and balanced_by: likewise.
    """

    tables: Mapping[tuple[str, int], pa.Table]
    headline: str
    condition: str
    balanced_by: str = ""

    def metric(self, measure: Measure) -> str:
        """Column that a measure reads."""
        return measure.metric or self.headline

    def complete_seeds(self, arms: Iterable[str], seeds: Sequence[int]) -> tuple[int, ...]:
        """Those of `seeds` for which every arm has scores."""
        arms = list(arms)
        return tuple(seed for seed in seeds if all((arm, seed) in self.tables for arm in arms))

    def values(self, measure: Measure, *, seed: int) -> tuple[pa.ChunkedArray, np.ndarray]:
        """The measure of every item of one seed; rows where the metric is null do not apply and are left out.

        Returns:
            Item ids, ascending and distinct, and their values, float64. Where the paper balances by a column, a value
            is scaled so that the mean of all is the mean over groups of the mean in each.

        Raises:
            WorkError: for a column that is not there, an item that appears twice, or a value that is not finite.
        """
        table, metric = self.tables[measure.arm, seed], self.metric(measure)
        where = {"condition": measure.condition or self.condition, **dict(measure.where)}
        scored = f"Arm '{measure.arm}', seed {seed}, holds {table.num_rows} rows"
        if absent := [column for column in ("item", metric, *where) if column not in table.column_names]:
            why = f"There is no column '{absent[0]}'; the columns are {', '.join(table.column_names)}"
            raise WorkError(scored, why, "Correct the measure in claims.py, or the scores that the evaluation writes")
        for column, value in where.items():
            table = table.filter(pc.equal(table[column], value))
        table = table.filter(pc.is_valid(table[metric])).sort_by("item")
        values = table[metric].to_numpy().astype(np.float64)
        if count := int((~np.isfinite(values)).sum()):
            why = f"{count} of {values.size} values of '{metric}' are not finite, so their mean says nothing"
            raise WorkError(scored, why, "Write null where a metric does not apply, and a number elsewhere")
        distinct = pc.count_distinct(table["item"]).as_py()
        if distinct != values.size:
            why = f"{values.size} rows match {where} and only {distinct} items differ; a pair needs one row"
            raise WorkError(scored, why, "Narrow the measure's `where` until each item has one row")
        if self.balanced_by and values.size:
            groups = table[self.balanced_by].combine_chunks().dictionary_encode().indices.to_numpy()
            counts = np.bincount(groups)
            values = values * (values.size / counts.size / counts[groups])
        return table["item"], values

    def means(self, measure: Measure, seeds: Sequence[int]) -> list[float]:
        """Mean of the measure over the items of each seed."""
        return [float(self.values(measure, seed=seed)[1].mean()) for seed in seeds]


@dataclass(frozen=True)
class Effect:
    """What one contrast came to, in the metric's recorded unit.

    Args:
        name: of the contrast, as declared.
        arm: its first arm with a positive weight; rival: with a negative one, "" where it has none.
        role: what it does for its claim.
        effect: mean of `per_seed`; None without seeds.
        ci95: the t interval over seeds, which decides; None below 2 seeds. `ci90` is the same at 90 %.
        boot95: the hierarchical bootstrap, which decides nothing; None where it was not asked for.
        per_seed: d_s, the mean paired difference on the items of each of `seeds`.
        seeds: those with every score the contrast needs, ascending.
        seed_sd: standard deviation of `per_seed`, from seeds and items together; None below 2 seeds.
        between_sd: between seeds alone: `seed_sd` less what sampling the items explains; None where that is not known.
        items: fewest items in any of `seeds`; 0 without seeds.
        min_effect: the smallest effect that counts; the margin of an equivalence.
    """

    name: str
    arm: str
    rival: str
    role: Role
    effect: float | None
    ci95: Ends | None
    ci90: Ends | None
    boot95: Ends | None
    per_seed: tuple[float, ...]
    seeds: tuple[int, ...]
    seed_sd: float | None
    between_sd: float | None
    items: int
    min_effect: float


def paired_differences(contrast: Contrast, scores: Scores, *, seed: int) -> np.ndarray:
    """Weighted sum of the contrast's measures for each item of one seed, in order of item id.

    Raises:
        WorkError: where no item is left, or the terms do not hold the same items.
    """
    terms = [(weight, m, *scores.values(m, seed=seed)) for weight, m in contrast.terms]
    _, first, first_items, _ = terms[0]
    for _, measure, items, _ in terms:
        if len(items) == 0 or not items.equals(first_items):
            shared = len(set(items.to_pylist()) & set(first_items.to_pylist()))
            raise WorkError(
                f"Contrast '{contrast.name}', seed {seed}, pairs {len(first_items)} items of '{first.label}' "
                f"with {len(items)} of '{measure.label}'",
                f"They share {shared} items, and a paired difference needs the same items on both sides, at least one",
                "Evaluate the arms on one test set and give their measures the same condition and `where`",
            )
    return sum(weight * values for weight, _, _, values in terms)


def contrast_effect(
    contrast: Contrast, scores: Scores, *, seeds: Sequence[int], min_effect: float, bootstrap: bool = True
) -> Effect:
    """Effect of a contrast over the seeds that have all its scores.

    Args:
        contrast: weighted measures.
        scores: of the paper.
        seeds: seeds of the claim.
        min_effect: the claim's, used where the contrast declares none.
        bootstrap: also draw the hierarchical bootstrap, about 0.02 s.

    Raises:
        WorkError: see `Scores.values` and `paired_differences`.
    """
    ready = scores.complete_seeds([measure.arm for _, measure in contrast.terms], seeds)
    if not contrast.is_paired:
        return _unpaired_effect(contrast, scores, seeds=ready, min_effect=min_effect)
    differences = [paired_differences(contrast, scores, seed=seed) for seed in ready]
    boot95 = hierarchical_bootstrap(differences) if bootstrap and len(ready) > 1 else None
    item_sd = float(np.sqrt(np.mean([items.var() for items in differences]))) if differences else None
    return effect_of(
        contrast,
        [float(items.mean()) for items in differences],
        seeds=ready,
        items=min((items.size for items in differences), default=0),
        min_effect=min_effect,
        boot95=boot95,
        item_sd=item_sd,
    )


def _unpaired_effect(contrast: Contrast, scores: Scores, *, seeds: Sequence[int], min_effect: float) -> Effect:
    """Effect of a contrast whose terms hold other items: weighted means, one number a seed."""
    values = {seed: [(weight, scores.values(m, seed=seed)[1]) for weight, m in contrast.terms] for seed in seeds}
    for seed, terms in values.items():
        if empty := [m.label for (_, m), (_, own) in zip(contrast.terms, terms, strict=True) if not own.size]:
            given = f"Contrast '{contrast.name}', seed {seed}, reads no item of '{empty[0]}'"
            why = "A mean needs at least one item"
            raise WorkError(given, why, "Correct the condition and `where` of its measures")
    per_seed = [sum(weight * own.mean() for weight, own in terms) for terms in values.values()]
    items = min((own.size for terms in values.values() for _, own in terms), default=0)
    return effect_of(contrast, per_seed, seeds=seeds, items=items, min_effect=min_effect)


def effect_of(
    contrast: Contrast,
    per_seed: Sequence[float],
    *,
    seeds: Sequence[int],
    items: int,
    min_effect: float,
    boot95: Ends | None = None,
    item_sd: float | None = None,
) -> Effect:
    """Effect from the mean paired differences of the seeds; `contrast_effect` and the simulation share it.

    `item_sd` is the pooled standard deviation of the paired differences of items.
    """
    d = np.asarray(per_seed, dtype=np.float64)
    has_spread = d.size > 1
    seed_sd = float(d.std(ddof=1)) if has_spread else None
    is_known = seed_sd is not None and item_sd is not None
    return Effect(
        name=contrast.name,
        arm=contrast.arm,
        rival=contrast.rival,
        role=contrast.role,
        effect=float(d.mean()) if d.size else None,
        ci95=_ends(d, 0.95) if has_spread else None,
        ci90=_ends(d, 0.90) if has_spread else None,
        boot95=boot95,
        per_seed=tuple(d.tolist()),
        seeds=tuple(seeds),
        seed_sd=seed_sd,
        between_sd=max(0.0, seed_sd**2 - item_sd**2 / items) ** 0.5 if is_known else None,
        items=items,
        min_effect=min_effect if contrast.min_effect is None else contrast.min_effect,
    )


def agreement(ours: Effect, theirs: Effect) -> tuple[bool | None, float | None]:
    """Whether two runs of a contrast agree: a two-sided t test of the difference of their effects, at 5 %.

    Runs that share seeds share cases, initialisation and order of data seed by seed, so the shared seeds are compared
    in pairs; runs of other seeds are independent and are compared by Welch's test.

    Returns:
        True where no difference is found, and the smallest one that would be found with a power of 80 %, in the
        effects' unit; (None, None) where a run has fewer than 2 seeds to compare.
    """
    one, other = (dict(zip(effect.seeds, effect.per_seed, strict=True)) for effect in (ours, theirs))
    shared = sorted(one.keys() & other.keys())
    if shared:
        samples = [np.array([one[seed] - other[seed] for seed in shared])]
    else:
        samples = [np.array(list(values.values())) for values in (one, other)]
    if min(sample.size for sample in samples) < 2:
        return None, None
    difference = samples[0].mean() - (0.0 if shared else samples[1].mean())
    errors = [sample.var(ddof=1) / sample.size for sample in samples]
    if sum(errors) == 0:
        return bool(difference == 0), 0.0
    degrees = sum(errors) ** 2 / sum(e**2 / (sample.size - 1) for e, sample in zip(errors, samples, strict=True))
    critical, error = t_quantile(0.975, degrees), sum(errors) ** 0.5
    return bool(abs(difference) <= critical * error), float((critical + t_quantile(0.8, degrees)) * error)


def _ends(d: np.ndarray, level: float) -> Ends:
    low, high = t_interval(d, level=level)
    return float(low), float(high)
