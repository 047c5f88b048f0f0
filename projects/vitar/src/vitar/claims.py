"""What ViTAR claims, before any test result was seen: V1 and V2, their contrasts, controls and gates. No torch.

The text beyond the abstract was not available; what is known of tables is from its reviews. V3 (rewards after traces),
V4 (attention) and V5 (what a reward shapes) need training by rewards, and are declared with it.
"""

from functools import partial

from lightbox.claims.spec import BEST, Arm, Claim, Contrast, Gate, Kind, Measure, PaperClaims, Role, difference

_claim = partial(Claim, "vitar", unit="points of accuracy")
UNTRAINED = "objective.is_trained=false"
KINDS = ("small_50", "large_50", "small_100", "large_100")
"""Sizes of findings as they are drawn; `data.scales_pct` of the size presets gives them."""
SMALLEST, LARGEST = KINDS[0], KINDS[-1]


def _baseline(name: str, title: str, *overrides: str) -> Arm:
    return Arm(name, title, (f"objective.method={name}", UNTRAINED, *overrides), is_trained=False)


def _sft(name: str, title: str) -> Arm:
    return Arm(name, title, ("objective.method=sft", f"objective.feedback={name}"))


# What `experiment=NAME` means, and nothing else. Trained arms of a seed share questions, images, boxes of the traces,
# steps and initial weights, the shipped ones. All but `one` write the same box first and differ in what they are shown.
ARMS = (
    Arm(
        "untouched",
        "arm 0: shipped weights, asked at once and read as they speak",
        ("objective.method=sft", "objective.replies=plain", UNTRAINED),
        is_trained=False,
    ),
    _baseline("majority", "the commonest answer of the kind"),
    _baseline("question_only", "the commonest answer of the same question"),
    _baseline("options", "of the options the one that was right most often"),
    _sft("one", "ONE: one pass, the answer at once"),
    _sft("same", "SAME: a second look at the unchanged view"),
    _sft("mark", "MARK: a second look at the view with the box outlined (ViTAR)"),
    _sft("crop", "CROP: a second look at the box cut from the original and enlarged (DeepEyes)"),
)


def _of(kind: str, measure: Measure | str) -> Measure:
    own = Measure(measure) if isinstance(measure, str) else measure
    return Measure(own.arm, own.metric, own.condition, (("kind", kind),))


def _shown(arm: str, boxes: str) -> Measure:
    """An arm that is shown another's boxes in the place of its own: random or true ones."""
    return Measure(arm, condition=boxes)


def _beside(name: str, arm: Measure | str, rival: Measure | str) -> Contrast:
    return difference(name, arm, rival, Role.SECONDARY)


def _level(name: str, measure: Measure) -> Contrast:
    """A mean that is shown and decides nothing."""
    return Contrast(name, ((1.0, measure),), Role.SECONDARY)


def _growth(arm: str, role: Role) -> Contrast:
    """How much more an arm gains over SAME on the smallest findings than on the largest; the items are others."""
    terms = tuple(
        (sign * weight, _of(kind, name))
        for sign, kind in ((1.0, SMALLEST), (-1.0, LARGEST))
        for weight, name in ((1.0, arm), (-1.0, "same"))
    )
    title = f"{arm.upper()} - SAME: smallest findings - largest"
    return Contrast(title, terms, role, is_paired=False)


def _gate(*arms: str) -> Gate:
    """The best of `arms` against what needs no image, its own blank and shuffled images, and arm 0."""
    baselines = [Measure(name) for name in ("majority", "question_only", "options", "untouched")]
    baselines += [Measure(BEST, condition="blank"), Measure(BEST, condition="shuffled")]
    return Gate(tuple(Measure(arm) for arm in arms), tuple(baselines))


TOY = (
    "A tiny model on phantom images, which reads 64 tokens an image and writes tags with location tokens, where the "
    "paper's 7B model writes JSON with a thought. Here it thinks in no words: a turn is a box or an answer."
)
AFTER_SFT = (
    "The paper's numbers are after training by rewards; this is after traces alone, which that training starts from."
)
_V1 = _claim(
    id="V1",
    kind=Kind.CHAIN,
    statement="A model that marks a region, looks again at the marked image and then answers is right more often than "
    "one that answers at once, and than one that looks a second time at the unchanged image.",
    location="main table, seven medical VQA benchmarks; the rival with a second look at the unchanged image is ours",
    paper_numbers="main table not found; ViToS, by the same authors on the same data and base: 108.27 % of the base",
    contrasts=(
        difference("MARK - ONE", "mark", "one"),
        difference("MARK - SAME", "mark", "same"),
        difference("MARK, own box - random box", "mark", _shown("mark", "random"), Role.CONTROL),
        _beside("MARK, true box - own box", _shown("mark", "true"), "mark"),
        _beside("SAME - ONE: what the second pass is worth", "same", "one"),
        _beside("CROP - MARK", "crop", "mark"),
        _beside("CROP, own box - random box", "crop", _shown("crop", "random")),
        _beside("CROP, true box - own box", _shown("crop", "true"), "crop"),
        *(_beside(f"{kind}: MARK - SAME", _of(kind, "mark"), _of(kind, "same")) for kind in KINDS),
        *(
            _level(f"{arm.upper()}, {title}", Measure(arm, metric))
            for title, metric in {"box overlap": "iou", "acted": "acted", "answered": "parsed"}.items()
            for arm in ("mark", "crop")
        ),
        *(
            _level(f"{arm.upper()}, right among answered", Measure(arm, "parsed_correct", where=(("kind", "set"),)))
            for arm in ("one", "same", "mark", "crop")
        ),
    ),
    gate=_gate("mark", "same", "one"),
    is_primary=True,
    presets=("smoke", "quick", "full"),
    seeds={"smoke": 1, "quick": 5, "full": 8},
    caveats=(TOY, AFTER_SFT),
    note="Both links must hold, so the lead is that over the better of ONE and SAME. Episodes without an answer count "
    "as wrong; the official code's other number, which leaves them out, stands beside.",
)
_V2 = _claim(
    id="V2",
    kind=Kind.PATTERN,
    statement="A closer look is worth more the smaller the finding: what CROP gains over a second look at the "
    "unchanged image is larger on small findings than on large ones.",
    location="the premise of the paper's introduction",
    paper_numbers="not found",
    contrasts=(
        _growth("crop", Role.PRIMARY),
        difference(
            "smallest findings: CROP, own box - random box",
            _of(SMALLEST, "crop"),
            _of(SMALLEST, _shown("crop", "random")),
            Role.CONTROL,
        ),
        _growth("mark", Role.SECONDARY),
        *(
            _beside(f"{kind}: {arm.upper()} - SAME", _of(kind, arm), _of(kind, "same"))
            for arm in ("crop", "mark")
            for kind in KINDS
        ),
        *(
            _level(
                f"{kind}: diameter, 0.01 pixels of the view", Measure("same", "diameter_px", where=(("kind", kind),))
            )
            for kind in KINDS
        ),
    ),
    gate=_gate("crop", "same"),
    presets=("smoke", "quick", "full"),
    caveats=(
        TOY,
        "A mark brings no new pixels, so by construction only CROP can show what the view has lost.",
    ),
    note="Kinds are sizes as drawn, small and large at 50 and 100 percent.",
)

PAPER = PaperClaims(
    paper="vitar",
    title="Think Twice to See More: iterative visual reasoning in medical VLMs",
    arxiv="2510.10052",
    arms={arm.name: arm for arm in ARMS},
    claims=(_V1, _V2),
    headline="correct",
    condition="image",
    default_arm="mark",
    balanced_by="kind",
)
