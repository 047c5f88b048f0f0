"""What Lightbox claims of its own lesion-safe pruning: PR1 to PR5, their contrasts, controls and gates. No torch.

Lesion-safe keeps a token for every region of the tower's finding map; its rivals are published methods, top-k of the
same map, and choices that look at nothing.
"""

from collections.abc import Sequence
from functools import partial

from lightbox.claims.spec import Arm, Claim, Contrast, Gate, Kind, Measure, PaperClaims, Role, difference

_claim = partial(Claim, "core", location="Lightbox's own", paper_numbers="none: our own method", budget="")
OURS, WHOLE, TOPK, TOPK_GRID = "lesion_safe", "unpruned", "finding_topk", "finding_topk_grid"
BUDGET_PCT, BUDGETS_PCT = 20, (5, 10, 40)
"""Percent of the tokens that stay: where the claims are made, and beside it."""
GRID = "pruning.floor_uniform=0.25"
MARKER = "data.burned_in_text=marker"
PHANTOM = (
    "One tiny model on phantoms with lesions of half size: this speaks about a mechanism, and not about patients.",
    "Seeds redraw the images; the model is always the shipped one, so the interval is that of the images.",
)
SAME_MAP = (
    "The finding map was taught with the masks of the phantom, and finds nearly every lesion; a map that misses them "
    "protects nothing."
)


def _arm(name: str, title: str, method: str, *overrides: str, pct: int = BUDGET_PCT) -> Arm:
    chosen = () if method == "none" else (f"pruning.method={method}", f"pruning.budget={pct / 100}")
    return Arm(name, title, (*chosen, *overrides), is_trained=False)


RIVALS = {
    "cls_topk": "patches that the class token looks at (FasterVLM)",
    "hired": "tiles by what is seen of them (HiRED); without tiles the class token's top-k",
    "visionzip": "dominant and merged tokens (VisionZip)",
    "divprune": "tokens far apart (DivPrune)",
    "cdpruner": "a diverse set by conditional DPP (CDPruner)",
    "uniform_grid": "an even grid",
    "avg_pool": "means over areas",
    "random": "drawn at random",
}
BY_BUDGET = {OURS: "lesion-safe", "divprune": RIVALS["divprune"], "uniform_grid": "an even grid", "random": "random"}
ARMS = (
    _arm(WHOLE, "all tokens", "none", "eval.has_other_images=true"),
    _arm(OURS, "lesion-safe", "lesion_safe"),
    _arm(TOPK, "top-k of the finding map", "finding_topk"),
    _arm(TOPK_GRID, "top-k of the finding map beside an even grid", "finding_topk", GRID),
    _arm("usual_places", "where lesions usually are, the same tokens in every image", TOPK, "eval.map=usual"),
    _arm("lesion_safe_compact", "lesion-safe, kept tokens renumbered", "lesion_safe", "pruning.positions=compact"),
    *(_arm(name, title, name) for name, title in RIVALS.items()),
    *(
        _arm(f"{name}_{pct}", f"{title}, {pct} % kept", name, pct=pct)
        for pct in BUDGETS_PCT
        for name, title in BY_BUDGET.items()
    ),
    _arm("unpruned_marker", "all tokens, a letter burned in", "none", MARKER),
    _arm("lesion_safe_marker", "lesion-safe, a letter burned in", "lesion_safe", MARKER),
)


def _mean(name: str, arm: str, metric: str, role: Role = Role.SECONDARY, size: str = "") -> Contrast:
    """A score of one arm, on lesions of one size or all."""
    return Contrast(name, ((1.0, Measure(arm, metric, where=(("kind", size),) if size else ())),), role)


def _gap(name: str, rival: str, role: Role = Role.PRIMARY, metric: str = "acc50", size: str = "") -> Contrast:
    """Lesion-safe minus a rival."""
    own, other = (Measure(arm, metric, where=(("kind", size),) if size else ()) for arm in (OURS, rival))
    return difference(name, own, other, role)


_GATE = Gate(
    (Measure(WHOLE, "acc50"), Measure(OURS, "acc50")),
    (Measure(WHOLE, "acc50", "blank"), Measure(WHOLE, "acc50", "shuffled")),
)
_PR1 = _claim(
    id="PR1",
    kind=Kind.EXACT,
    statement="With a fifth of the tokens, lesion-safe leaves a token on at least 99 % of all lesions.",
    contrasts=(
        _mean("share of lesions with a token", OURS, "kept", Role.PRIMARY),
        *(_mean(f"of {size} lesions that are asked for", OURS, "asked_kept", size=size) for size in ("small", "large")),
        _mean("top-k of the same map", TOPK, "kept"),
        _mean("where lesions usually are, without a look at the image", "usual_places", "kept"),
        _mean("with a letter burned in", "lesion_safe_marker", "kept"),
    ),
    gate=None,
    bound=0.99,
    presets=("smoke", "quick", "full"),
    seeds={"smoke": 1, "quick": 5, "full": 8},
    caveats=(
        *PHANTOM,
        SAME_MAP,
        "Lesions of the phantom have their usual places, and tokens that stand there in every image are shown beside "
        "this share. What the model does with them is PR3's.",
    ),
    note="A lesion has a token where a kept patch shows any of its pixels.",
)
_PR2 = _claim(
    id="PR2",
    kind=Kind.EQUIVALENCE,
    statement="With a fifth of the tokens, lesion-safe draws as many boxes right as with all of them, to 2 points.",
    contrasts=(
        _gap("lesion-safe - all tokens", WHOLE),
        *(
            _gap(f"{size} lesions: lesion-safe - all tokens", WHOLE, Role.SECONDARY, size=size)
            for size in ("small", "large")
        ),
        _gap("answers: lesion-safe - all tokens", WHOLE, Role.SECONDARY, "right"),
        _gap("lesion-safe - lesion-safe renumbered", "lesion_safe_compact", Role.SECONDARY),
        difference(
            "with a letter burned in: lesion-safe - all tokens",
            Measure("lesion_safe_marker", "acc50"),
            Measure("unpruned_marker", "acc50"),
            Role.SECONDARY,
        ),
    ),
    gate=_GATE,
    presets=("smoke", "full"),
    seeds={"smoke": 1, "full": 8},
    caveats=(*PHANTOM, SAME_MAP),
    note="The claim to be shown is a loss of at most 2 points; as an equivalence it also bounds a gain.",
)
_PR3 = _claim(
    id="PR3",
    kind=Kind.DIRECTIONAL,
    statement="Lesion-safe draws more boxes right than the top-k of the same finding map, by what it promises each "
    "lesion and not by the even grid beside it, nor by where lesions usually are.",
    contrasts=(
        _gap("lesion-safe - top-k of the map", TOPK),
        _gap("lesion-safe - top-k of the map beside the same grid", TOPK_GRID, Role.CONTROL),
        _gap("lesion-safe - where lesions usually are", "usual_places", Role.CONTROL),
        _gap("lesion-safe - random", "random", Role.SECONDARY),
        _gap("answers: lesion-safe - top-k of the map", TOPK, Role.SECONDARY, "right"),
    ),
    gate=_GATE,
    is_primary=True,
    presets=("smoke", "quick", "full"),
    seeds={"smoke": 1, "quick": 5, "full": 8},
    caveats=(*PHANTOM, SAME_MAP),
    note="Why top-k of the map points badly is not tested here; the grid beside it helps, and does not make up for it.",
)


def _against(names: Sequence[str], role: Role, metric: str = "acc50") -> tuple[Contrast, ...]:
    what = "answers: " if metric == "right" else ""
    return tuple(_gap(f"{what}lesion-safe - {name}", name, role, metric) for name in names)


_PR4 = _claim(
    id="PR4",
    kind=Kind.CHAIN,
    statement="Lesion-safe draws more boxes right than each method that does not know where lesions are.",
    contrasts=(
        *_against(list(RIVALS), Role.PRIMARY),
        *_against(list(RIVALS), Role.SECONDARY, "right"),
        *(_mean(f"lesions with a token, {name}", name, "kept") for name in RIVALS if name != "avg_pool"),
    ),
    gate=_GATE,
    presets=("full",),
    seeds={"full": 5},
    caveats=(
        *PHANTOM,
        SAME_MAP,
        "The rivals are told nothing of lesions, and it is.",
        "HiRED divides a budget among tiles; this model has one, so that hired is cls_topk.",
    ),
)


def _lead(pct: int, rival: str) -> tuple[tuple[float, Measure], ...]:
    suffix = "" if pct == BUDGET_PCT else f"_{pct}"
    return (1.0, Measure(f"{OURS}{suffix}", "acc50")), (-1.0, Measure(f"{rival}{suffix}", "acc50"))


_PR5 = _claim(
    id="PR5",
    kind=Kind.PATTERN,
    statement="The fewer tokens are kept, the further lesion-safe is ahead of an even grid.",
    contrasts=(
        Contrast(
            "lead over an even grid, 5 % - 40 %",
            (*_lead(5, "uniform_grid"), *((-weight, measure) for weight, measure in _lead(40, "uniform_grid"))),
        ),
        *(
            Contrast(f"{pct} %: lesion-safe - {name}", _lead(pct, name), Role.SECONDARY)
            for pct in sorted((*BUDGETS_PCT, BUDGET_PCT))
            for name in BY_BUDGET
            if name != OURS
        ),
        *(
            _mean(f"{pct} %: lesions with a token, {name}", f"{name}_{pct}", "kept")
            for pct in BUDGETS_PCT
            for name in BY_BUDGET
        ),
    ),
    gate=_GATE,
    presets=("full",),
    seeds={"full": 5},
    caveats=(*PHANTOM, SAME_MAP),
)

PAPER = PaperClaims(
    paper="core",
    title="Visual-token pruning that keeps every lesion",
    arxiv="",
    arms={arm.name: arm for arm in ARMS},
    claims=(_PR1, _PR2, _PR3, _PR4, _PR5),
    headline="acc50",
    condition="image",
    default_arm=OURS,
)
