"""What ViTAR claims, before any test result was seen: V1 to V5, VR1 and VR2 on real images, with controls. No torch.

The text beyond the abstract was not available; what is known of tables is from its reviews.
"""

from functools import partial

from lightbox.claims.spec import BEST, REAL, Arm, Claim, Contrast, Gate, Kind, Measure, PaperClaims, Role, difference

_claim = partial(Claim, "vitar", unit="points of accuracy")
UNTRAINED = "objective.is_trained=false"
KINDS = ("small_50", "large_50", "small_100", "large_100")
"""Sizes of findings as they are drawn; `data.scales_pct` of the size presets gives them."""
SMALLEST, LARGEST = KINDS[0], KINDS[-1]
SMEARS = (
    "data.source=blood_smear_csv",
    "data.root='${oc.env:LIGHTBOX_DATA_ROOT,$LIGHTBOX_DATA_ROOT}/blood_smear_csv'",
)
"""The second set of preset `real`."""


def _baseline(name: str, title: str, *overrides: str) -> Arm:
    return Arm(name, title, (f"objective.method={name}", UNTRAINED, *overrides), is_trained=False)


def _sft(name: str, title: str) -> Arm:
    return Arm(name, title, ("objective.method=sft", f"objective.feedback={name}"))


def _on_smears(feedback: str) -> Arm:
    overrides = ("objective.method=sft", f"objective.feedback={feedback}", *SMEARS)
    return Arm(f"smear_{feedback}", f"{feedback.upper()} on the second set of smears", overrides, rate_of=feedback)


def _rewarded(name: str, title: str, *overrides: str, needs: str = "mark_start") -> Arm:
    """Training by rewards from the weights of another arm, one step where traces had four."""
    changes = ("objective.method=grpo", "objective.feedback=mark", "optim.steps_factor=0.25", *overrides)
    return Arm(name, title, changes, needs=(needs,), rate_of="" if name == "mark_a" else "mark_a")


SFT_MARK = ("objective.method=sft", "objective.feedback=mark", "optim.lr=${oc.select:tuned.mark,0.001}")
TENTH = "optim.steps_factor=0.1"
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
    _sft("one", "ONE: one pass, the answer at once"),
    _sft("same", "SAME: a second look at the unchanged view"),
    _sft("mark", "MARK: a second look at the view with the box outlined (ViTAR)"),
    _sft("crop", "CROP: a second look at the box cut from the original and enlarged (DeepEyes)"),
    # no arm that is compared: its steps stay those of the preset while the others' are varied
    Arm("mark_start", "MARK, as training by rewards begins", SFT_MARK, is_trained=False),
    Arm("primed", "MARK after a tenth of the steps: it knows the form", (*SFT_MARK, TENTH), is_trained=False),
    _rewarded("mark_a", "MARK, then rewards A (ViTAR's code)"),
    _rewarded("rewards_only", "rewards A from what knows the form alone", needs="primed"),
    _rewarded("mark_b", "MARK, then rewards B (DeepEyes: an act pays where the answer is right)", "objective.reward=B"),
    _rewarded("mark_c", "MARK, then rewards C (A and the overlap of the box)", "objective.reward=C"),
    _rewarded("mark_d", "MARK, then rewards D (the answer only)", "objective.reward=D"),
    *(_on_smears(feedback) for feedback in ("one", "same", "mark")),
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
    baselines = [Measure(name) for name in ("majority", "question_only", "untouched")]
    baselines += [Measure(BEST, condition="blank"), Measure(BEST, condition="shuffled")]
    return Gate(tuple(Measure(arm) for arm in arms), tuple(baselines))


TOY = (
    "A tiny model on phantom images, which reads 64 tokens an image and writes tags with location tokens, where the "
    "paper's 7B model writes JSON with a thought. Here it thinks in no words: a turn is a box or an answer."
)
AFTER_SFT = (
    "The paper's numbers are after training by rewards; this is after traces alone, which that training starts from."
)
REWARDED = (
    "Rewards train on a small part of the paper's episodes: 8 of each of 8 questions a step, and a quarter as many "
    "steps as traces had."
)
SEEN = {"box overlap": "iou", "box area": "box_area", "acted": "acted"}
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

_V3 = _claim(
    id="V3",
    kind=Kind.CHAIN,
    statement="Rewards after traces beat traces alone, and beat rewards without them.",
    location="the paper's two stages; its ablation was missed by reviewers, the numbers are a student's replication",
    paper_numbers="TB-ViTAR, which shows no marked image: accuracy .800 after traces, .850 with rewards for the "
    "answer, .920 with rewards for the process; boxes above half overlap .222, .250, .308",
    contrasts=(
        difference("traces and rewards - traces", "mark_a", "mark_start"),
        difference("traces and rewards - rewards", "mark_a", "rewards_only"),
        _beside("rewards - what knows the form alone", "rewards_only", "primed"),
        *(
            _beside(f"{title}: traces and rewards - traces", Measure("mark_a", metric), Measure("mark_start", metric))
            for title, metric in SEEN.items()
        ),
        *(
            _beside(f"{kind}: traces and rewards - traces", _of(kind, "mark_a"), _of(kind, "mark_start"))
            for kind in KINDS
        ),
    ),
    gate=_gate("mark_a", "mark_start", "rewards_only"),
    caveats=(TOY, REWARDED),
)
_V4 = _claim(
    id="V4",
    kind=Kind.CHAIN,
    statement="Shown its mark, a model looks more at the finding in the unmarked view than before; a mark elsewhere "
    "does not do that; and its answer rests on the finding.",
    location="attention from think to rethink; layers, heads and formula not found, so the measure is ours",
    paper_numbers="not found",
    contrasts=(
        difference("the view again - at first", Measure("mark", "look_again"), Measure("mark", "look_first")),
        difference(
            "the view again: own mark - a random one",
            Measure("mark", "look_again"),
            Measure("mark", "look_again", condition="random"),
        ),
        difference(
            "answers that change: finding hidden - as much elsewhere",
            Measure("mark", "flipped", condition="hidden"),
            Measure("mark", "flipped", condition="hidden_elsewhere"),
        ),
        _beside("SAME, the view again - at first", Measure("same", "look_again"), Measure("same", "look_first")),
        _beside("what was shown - the view at first", Measure("mark", "look_second"), Measure("mark", "look_first")),
        _beside(
            "what was shown: own mark - a random one",
            Measure("mark", "look_second"),
            Measure("mark", "look_second", condition="random"),
        ),
        *(
            _level(f"{arm.upper()}, attention to the view {when}", Measure(arm, f"allocated_{when}"))
            for arm in ("mark", "same")
            for when in ("first", "again", "second")
        ),
    ),
    gate=_gate("mark", "same"),
    min_effect=0.05,
    unit="hundredths of what chance gives, or of answers",
    caveats=(TOY, "Attention alone explains nothing; the last link is the one that tries the answer."),
    note="Attention to the true box by that to the whole image, over the box's share of it, mean over heads, tokens of "
    "the turn and the later half of the layers; the first items of the test set.",
)
_V5 = _claim(
    id="V5",
    kind=Kind.CHAIN,
    statement="A bonus for any box, wherever it lies, lets boxes drift; a term for their overlap holds them.",
    location="not in the paper: what its code rewards; TB-ViTAR without its spatial term; ViToS adds overlap",
    paper_numbers="TB-ViTAR without the spatial term: overlap above one half falls by .112",
    contrasts=(
        difference("overlap: rewards C - rewards A", Measure("mark_c", "iou"), Measure("mark_a", "iou")),
        difference("overlap: traces - rewards A", Measure("mark_start", "iou"), Measure("mark_a", "iou")),
        *(
            _beside(
                f"{title}: rewards {name.upper()} - traces",
                Measure(f"mark_{name}", metric),
                Measure("mark_start", metric),
            )
            for title, metric in {"accuracy": "correct", **SEEN}.items()
            for name in "abcd"
        ),
    ),
    gate=_gate("mark_a", "mark_c", "mark_start"),
    unit="points of overlap",
    caveats=(TOY, REWARDED),
    note="Area and acts tell in which way boxes drift: to the whole image, or to none.",
)


def _on_real(
    claim_id: str, *, cells: str, prefix: str, gate: Gate, rewarded: str, min_items: int, caveats: tuple[str, ...]
) -> Claim:
    """MARK against ONE and SAME on a real set; `prefix` of their arms, `rewarded` the arm that goes on, "" for none."""
    one, same, mark = (f"{prefix}{name}" for name in ("one", "same", "mark"))
    trained = {"ONE": one, "SAME": same, "MARK": mark} | ({"MARK, then rewards": rewarded} if rewarded else {})
    after = (
        {"traces and rewards - traces": "correct", "overlap: traces and rewards - traces": "iou"} if rewarded else {}
    )
    return _claim(
        id=claim_id,
        kind=Kind.CHAIN,
        statement=f"On real blood smears ({cells}), a model that marks the cell asked about, and looks again, names it "
        "better than one that answers at once, and than one that looks a second time at the unchanged image.",
        location="not in the paper: a real number beside the phantom's",
        paper_numbers="not found",
        contrasts=(
            difference("MARK - ONE", mark, one),
            difference("MARK - SAME", mark, same),
            difference("MARK, own box - random box", mark, _shown(mark, "random"), Role.CONTROL),
            _beside("MARK, true box - own box", _shown(mark, "true"), mark),
            _beside("MARK - MARK shown another image", mark, Measure(mark, condition="shuffled")),
            *(_beside(name, Measure(rewarded, metric), Measure(mark, metric)) for name, metric in after.items()),
            *(_level(f"{name}, accuracy", Measure(arm)) for name, arm in trained.items()),
            *(_level(f"{name}, box overlap", Measure(arm, "iou")) for name, arm in trained.items() if arm != one),
        ),
        gate=gate,
        min_effect=0.05,
        presets=("real",),
        seeds={"real": 5},
        images=REAL,
        budget="",
        min_items=min_items,
        caveats=(
            "Photographs of one public set, made small, and a tiny model whose pretraining saw radiographs of the "
            "phantom alone: this says whether traces are learnt from real pixels, and nothing about clinical use.",
            "The question names a point in the cell, so its place is told and its outline is not; classes differ in "
            "size and colour, of which a view of 48 pixels still shows something.",
            "Each seed holds out another fifth of the images, so seeds differ in images too. Patients are unknown.",
            *caveats,
        ),
    )


def _unseen(*arms: str) -> Gate:
    """The best of `arms` against what it says to a blank image and to another one."""
    blind = (Measure(BEST, condition="blank"), Measure(BEST, condition="shuffled"))
    return Gate(tuple(Measure(arm) for arm in arms), blind)


_VR1 = _on_real(
    "VR1",
    cells="BCCD: red and white cells, platelets",
    prefix="",
    gate=_gate("mark", "same", "one"),
    rewarded="mark_a",
    min_items=30,  # a fifth of the images has 12 to 20 of each class
    caveats=(REWARDED,),
)
_VR2 = _on_real(
    "VR2",
    cells="A. Aslan's set: red and white cells",
    prefix="smear_",
    gate=_unseen("smear_mark", "smear_same", "smear_one"),
    rewarded="",
    min_items=12,
    caveats=("Forty images, of which a seed scores eight, with fourteen to sixteen cells.",),
)

PAPER = PaperClaims(
    paper="vitar",
    title="Think Twice to See More: iterative visual reasoning in medical VLMs",
    arxiv="2510.10052",
    arms={arm.name: arm for arm in ARMS},
    claims=(_V1, _V2, _V3, _V4, _V5, _VR1, _VR2),
    headline="correct",
    condition="image",
    default_arm="mark",
    balanced_by="kind",
)
