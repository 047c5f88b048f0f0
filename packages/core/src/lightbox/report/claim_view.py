"""One claim of the results document as the page shows it: formatted numbers, verdict chip, figure data. No torch."""

import textwrap
from collections.abc import Mapping
from typing import Any

from lightbox.report import figures
from lightbox.report.numbers import NONE, decimals, interval, interval_words, level, number, signed

WRAP, SHORT = 36, 70
# A mark beside each verdict: it must be told apart without colour.
CHIPS = {
    "reproduced": ("●", "good"),
    "absent": ("○", "plain"),
    "contradicted": ("▼", "bad"),
    "control failed": ("◆", "bad"),
    "inconclusive": ("◐", "open"),
    "not testable": ("∅", "plain"),
}
GLOSS = {
    "reproduced": "effect at least the minimum, interval above 0, every control holds",
    "absent": "the interval lies inside the minimum effect",
    "contradicted": "the effect has the other sign, interval below 0",
    "control failed": "the effect is there, but a control does as well",
    "inconclusive": "the interval leaves it open",
    "not testable": "the gate failed: no arm beats the baselines, or the task is solved already",
}


def glossary() -> list[dict[str, str]]:
    """Every verdict with its mark and meaning."""
    return [{"label": name, "mark": mark, "tone": tone, "gloss": GLOSS[name]} for name, (mark, tone) in CHIPS.items()]


def view(
    claim: Mapping[str, Any], results: Mapping[str, Any], *, label: str, titles: Mapping[str, str]
) -> dict[str, Any]:
    """Everything the template prints about one claim.

    Args:
        claim: an entry of `results["claims"]`.
        results: the document, for its preset and errors.
        label: what the claim is called on this page.
        titles: a phrase for each arm, where known.
    """
    digits = decimals(claim["min_effect"])
    chip = _chip(claim, results)
    contrasts = [_contrast(contrast, claim, digits) for contrast in claim["contrasts"]]
    return {
        "anchor": f"{claim['paper']}-{claim['id']}",
        **{name: claim[name] for name in ("paper", "id", "kind", "statement", "paper_numbers", "unit")},
        "n_items": claim["items"],
        "run_ids": claim["run_ids"],
        "label": label,
        "location": claim.get("location", ""),
        "note": claim.get("note", ""),
        "is_primary": claim.get("is_primary", False),
        "chip": chip,
        "is_waiting": chip["tone"] == "wait",
        "reason": claim.get("reason", ""),
        "effect": signed(claim["effect"], digits),
        "interval": _deciding_interval(claim, digits),
        "min_effect": f"{claim['min_effect']:g}",
        "bound": number(claim["bound"]) if claim.get("bound") is not None else "",
        "published": _published(claim.get("published"), digits, claim["unit"]),
        "seeds": len(claim["seeds"]),
        "planned": claim.get("planned_seeds", len(claim["seeds"])),
        "older_source": ", ".join(claim.get("older_source", [])),
        "gate": _gate(claim.get("gate"), digits, is_decided=claim["verdict"] in CHIPS),
        "contrasts": contrasts,
        "panel": _panel(claim, label),
        "levels": _level_rows(claim, titles),
        "figure": _level_figure(claim),
    }


def _chip(claim: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, str]:
    verdict = claim["verdict"]
    if verdict in CHIPS:
        mark, tone = CHIPS[verdict]
        return {"label": verdict, "mark": mark, "tone": tone, "gloss": GLOSS[verdict]}
    planned = claim.get("planned_seeds", len(claim["seeds"]))
    decisive = [c for c in claim["contrasts"] if c["role"] != "secondary"]
    ended = min((len(c["per_seed"]) for c in decisive), default=0)
    failed = [row for row in results.get("errors", []) if row["paper"] == claim["paper"]]
    if results["preset"] == "smoke":
        gloss = "this size only exercises the code"
        return {"label": "smoke: no verdict", "mark": "·", "tone": "plain", "gloss": gloss}
    if ended < planned and failed:
        label = f"incomplete, {ended} of {planned} seeds"
        return {"label": label, "mark": "!", "tone": "bad", "gloss": f"{len(failed)} jobs failed"}
    if ended < planned:
        label = f"running, {ended} of {planned} seeds"
        return {"label": label, "mark": "…", "tone": "wait", "gloss": "drawn once every planned seed has ended"}
    return {"label": "no verdict", "mark": "·", "tone": "plain", "gloss": claim.get("reason", "")}


def _deciding_interval(claim: Mapping[str, Any], digits: int) -> str:
    """The interval that decides: 95 %, or for an equivalence 90 %, named where it is not the usual one."""
    if claim["kind"] == "exact":
        return "exact, no interval"
    if claim["kind"] == "equivalence":
        primary = next((c for c in claim["contrasts"] if c["role"] == "primary" and c["effect"] == claim["effect"]), {})
        return f"{interval(primary['ci90'], digits)} at 90 %" if primary.get("ci90") else ""
    return interval(claim["ci95"], digits)


def _published(published: Mapping[str, Any] | None, digits: int, unit: str) -> dict[str, str] | None:
    if not published:
        return None
    agrees = {True: "agrees", False: "differs", None: "not comparable"}[published.get("agrees")]
    return {
        "text": f"{signed(published.get('effect'), digits)} {interval(published.get('ci95'), digits)} {unit}",
        "agrees": agrees,
        "mark": {"agrees": "=", "differs": "≠"}.get(agrees, "?"),
        "verdict": published.get("verdict", ""),
        "commits": ", ".join(published.get("commits", [])),
    }


def _contrast(contrast: Mapping[str, Any], claim: Mapping[str, Any], digits: int) -> dict[str, Any]:
    return {
        "name": contrast["name"],
        "role": contrast["role"],
        "effect": signed(contrast["effect"], digits),
        "interval": interval(contrast["ci95"], digits) or NONE,
        "interval_words": interval_words(contrast["ci95"], digits),
        "ci90": interval(contrast.get("ci90"), digits) if claim["kind"] == "equivalence" else "",
        "boot": interval(contrast.get("boot95"), digits) or NONE,
        "sd": number(contrast.get("seed_sd")),
        "per_seed": ", ".join(signed(value, digits) for value in contrast["per_seed"]) or NONE,
        "state": contrast.get("state", ""),
        "published": _published(contrast.get("published"), digits, ""),
    }


def _gate(gate: Mapping[str, Any] | None, digits: int, *, is_decided: bool) -> dict[str, Any] | None:
    """The gate; without a verdict it is not said to have failed, which too few seeds alone can cause."""
    if not gate:
        return None
    passed = gate.get("passed") if is_decided else None
    state = {True: "passed", False: "failed", None: "not decided"}[passed]
    lead = f"{signed(gate.get('effect'), digits)} {gate.get('unit', '')} {interval(gate.get('ci95'), digits)}".strip()
    values = {name: level(gate.get(name)) for name in ("best_mean", "baseline_mean")}
    values |= {name: number(gate.get(name)) for name in ("margin", "ceiling", "headroom")}
    return {
        "state": state,
        "mark": {True: "✓", False: "✗", None: "…"}[passed],
        "tone": {True: "good", False: "bad", None: "wait"}[passed],
        "best": gate.get("best", ""),
        "baseline": gate.get("baseline", ""),
        "lead": lead,
        "failures": gate.get("failures", []) if is_decided else [],
        **values,
    }


def _panel(claim: Mapping[str, Any], label: str) -> figures.ForestPanel:
    rows = []
    for contrast in claim["contrasts"]:
        published = contrast.get("published") or {}
        is_drawn = published.get("effect") is not None and published.get("ci95") is not None
        rows.append(
            figures.ForestRow(
                label=textwrap.fill(contrast["name"], WRAP),
                role=contrast["role"],
                effect=contrast["effect"],
                ci95=tuple(contrast["ci95"]) if contrast["ci95"] else None,
                per_seed=tuple(contrast["per_seed"]),
                published=(published["effect"], *published["ci95"]) if is_drawn else None,
            )
        )
    statement = textwrap.shorten(claim["statement"], SHORT, placeholder=" …")
    band = 0.0 if claim["kind"] == "exact" else claim["min_effect"]
    return figures.ForestPanel(label, statement, claim["unit"], band, tuple(rows))


def _level_rows(claim: Mapping[str, Any], titles: Mapping[str, str]) -> list[dict[str, str]]:
    """Arms, then sanity baselines, then the oracle, which by construction is at the ceiling."""
    kinds = (("arm", claim.get("arms") or {}), ("baseline", claim.get("baselines") or {}))
    rows = [
        {
            "kind": kind,
            "name": name,
            "title": titles.get(name, ""),
            "metric": found.get("metric", ""),
            "mean": level(found.get("mean")),
            "per_seed": ", ".join(level(value) for value in found.get("per_seed", [])) or NONE,
        }
        for kind, levels in kinds
        for name, found in levels.items()
    ]
    gate = claim.get("gate")
    if gate and gate.get("ceiling") is not None:
        oracle = {"kind": "oracle", "name": "oracle", "title": "the truth itself", "metric": "ceiling"}
        rows.append(oracle | {"mean": level(gate["ceiling"]), "per_seed": "by construction"})
    return rows


def _level_figure(claim: Mapping[str, Any]) -> dict[str, str] | None:
    """Arms and baselines that share the first arm's metric; None where no seed has ended.

    A baseline that is read from every arm, such as a blank image, is drawn for the best arm only.
    """
    arms, baselines = claim.get("arms") or {}, claim.get("baselines") or {}
    metric = next((found.get("metric") for found in arms.values()), None)
    best = (claim.get("gate") or {}).get("best", "")
    groups = [
        figures.Level(name, tuple(found["per_seed"]), is_baseline=levels is baselines)
        for levels in (arms, baselines)
        for name, found in levels.items()
        if found.get("metric") == metric and found["per_seed"]
        if levels is arms or "[" not in name or name.startswith(f"{best} [")
    ]
    if not groups:
        return None
    said = ", ".join(f"{group.label} {level(sum(group.per_seed) / len(group.per_seed))}" for group in groups)
    svg = figures.levels(groups, unit=f"{metric} ({claim['unit']})")
    alt = f"Mean {metric} of arms and sanity baselines of {claim['id']}: {said}."
    return {"source": figures.data_uri(svg), "alt": alt}
