"""What MedPLIB claims, before any test result was seen: E3 and E4, contrasts, controls and gates. No torch.

The paper's tables were not found; its numbers are those of its abstract and of others who ran the released checkpoint.
"""

from functools import partial

from lightbox.claims.spec import BEST, Arm, Claim, Contrast, Gate, Kind, Measure, PaperClaims, Role, difference

_claim = partial(Claim, "medplib", unit="points of accuracy")
UNTRAINED = "objective.is_trained=false"
FORMS = ("point", "box", "scribble", "polygon", "mask")


def _stage(name: str, title: str, *overrides: str, needs: tuple[str, ...] = ()) -> Arm:
    return Arm(name, title, (f"objective.method={name}", *overrides), needs=needs)


def _baseline(name: str, title: str) -> Arm:
    return Arm(name, title, (f"objective.method={name}", UNTRAINED), is_trained=False)


ARMS = (
    _baseline("majority", "the commonest answer of the kind; no mask"),
    _baseline("question_only", "the commonest answer of the same question; the class's mean mask"),
    # as many steps for all, with a rate of its own: no arm that is compared, which is_trained=False says to the runner
    Arm("align", "stage 1: pictures aligned with words", ("objective.method=align",), is_trained=False),
    _stage(
        "vl", "stage 2: the visual-language expert", f"eval.regions=[whole,other,{','.join(FORMS)}]", needs=("align",)
    ),
    Arm("cost", "what two copies cost beside one network", ("objective.method=cost", UNTRAINED), is_trained=False),
)

TOY = (
    "Questions, answers and pictures are those of a toy world, and the model has a million weights: this says whether "
    "the mechanism works, and nothing about clinical use."
)


def _beside(name: str, arm: Measure | str, rival: Measure | str) -> Contrast:
    return difference(name, arm, rival, Role.SECONDARY)


def _shown(name: str, measure: Measure) -> Contrast:
    """A score that is shown and decides nothing."""
    return Contrast(name, ((1.0, measure),), Role.SECONDARY)


def _region(region: str = "", metric: str = "region") -> Measure:
    return Measure("vl", metric, region)


_E3 = _claim(
    id="E3",
    kind=Kind.EXACT,
    statement="A mixture with one expert a token computes what one expert's model does: operations of reading a prompt "
    "and of saying a word, and rows that enter experts, are within one percent.",
    location="abstract: the computational cost of a single expert in inference",
    paper_numbers='"equivalent"; the released settings pad experts to 1.5 rows a token in training, 2.0 in evaluation',
    contrasts=(
        *(
            Contrast(f"{title}: mixture / one expert", ((1.0, Measure("cost", metric)),))
            for title, metric in {
                "operations, prompt": "flops_prefill",
                "operations, one word": "flops_decode",
                "rows in experts": "rows",
            }.items()
        ),
        _shown("rows in experts as the official code pads them in training", Measure("cost", "rows_official_train")),
        _shown("rows in experts as the official code pads them in evaluation", Measure("cost", "rows_official_eval")),
    ),
    gate=None,
    bound=1.01,
    is_upper_bound=True,
    unit="times",
    unit_scale=1.0,
    min_items=1,
    presets=("smoke", "quick", "full"),
    seeds={"smoke": 1, "quick": 5, "full": 5},
    budget="",
    caveats=(
        "Operations are counted and not timed, of the language model alone; both experts' weights are in memory.",
        "The worst of sixteen questions; the counts do not depend on trained weights.",
    ),
)
_E3_COPIES = _claim(
    id="E3-copies",
    kind=Kind.EXACT,
    statement="Two copies of a network as experts, whoever routes, give the logits of the network.",
    location="not in the paper: what building experts from trained networks presupposes",
    paper_numbers="not found",
    contrasts=(Contrast("largest difference of logits", ((1.0, Measure("cost", "copied_gap")),)),),
    gate=None,
    bound=1e-6,
    is_upper_bound=True,
    unit="logits",
    unit_scale=1.0,
    min_items=1,
    presets=("smoke", "quick", "full"),
    seeds={"smoke": 1, "quick": 5, "full": 5},
    budget="",
    caveats=("With the weight of an expert 1, as it is here; the paper's is its probability, and shrinks the output.",),
)
_BLIND = (Measure(BEST, "region", "blank"), Measure(BEST, "region", "shuffled"))
_E4_GATE = Gate((_region(),), (Measure("majority", "region"), Measure("question_only", "region"), *_BLIND))
_E4 = _claim(
    id="E4",
    kind=Kind.CHAIN,
    statement="A region as a prompt tells the model what neither question nor picture does.",
    location="abstract: answers about regions given as points, boxes and free shapes",
    paper_numbers="not found; the released evaluation answers region questions without the regions",
    contrasts=(
        difference("its region - all of the picture as the region", _region(), _region("whole")),
        difference("its region - one over the possible answers", _region(), _region(metric="chance")),
        difference("its region - another region of the picture", _region(), _region("other"), Role.CONTROL),
        difference("its picture - another picture", _region(), _region("shuffled"), Role.CONTROL),
        _beside(
            "all of the picture as the region - one over the possible answers",
            _region("whole"),
            _region(metric="chance"),
        ),
        Contrast(
            "of a patch and more - of less than a patch",
            ((1.0, _region(metric="region_large")), (-1.0, _region(metric="region_small"))),
            Role.SECONDARY,
            is_paired=False,
        ),
        *(_shown(f"region as a {form}", _region(form)) for form in FORMS),
        _shown("presence questions", Measure("vl", "presence")),
    ),
    gate=_E4_GATE,
    min_effect=0.05,
    is_primary=True,
    presets=("smoke", "quick", "full"),
    seeds={"smoke": 1, "quick": 5, "full": 8},
    caveats=(
        TOY,
        "A question is asked only where regions of the picture have several answers, and a coin chooses the answer: "
        "without the region one over their number is the best that can be had, so that much of this holds by "
        "construction once the region is read at all.",
    ),
    note="Half of a picture could be told from where a region's tag stands only if it were told; it is not.",
)
_E4_FORMS = _claim(
    id="E4-forms",
    kind=Kind.EQUIVALENCE,
    statement="Point, box, scribble and polygon tell as much as the mask, on regions of a patch's area and more.",
    location="abstract: regions of any shape",
    paper_numbers="not found",
    contrasts=tuple(
        difference(f"mask - {form}", _region("mask", "region_large"), _region(form, "region_large"))
        for form in FORMS
        if form != "mask"
    )
    + tuple(
        _beside(f"less than a patch: mask - {form}", _region("mask", "region_small"), _region(form, "region_small"))
        for form in FORMS
        if form != "mask"
    ),
    gate=_E4_GATE,
    min_effect=0.05,
    presets=("smoke", "quick", "full"),
    seeds={"smoke": 1, "quick": 5, "full": 8},
    min_items=50,
    caveats=(TOY, "All kinds of prompts are met in training, as many of each."),
    note="A point lies on what no smaller thing covers, a box covers what lies around its region too.",
)

PAPER = PaperClaims(
    paper="medplib",
    title="Towards a multimodal large language model with pixel-level insight for biomedicine",
    arxiv="2412.09278",
    arms={arm.name: arm for arm in ARMS},
    claims=(_E3, _E3_COPIES, _E4, _E4_FORMS),
    headline="score",
    condition="image",
    default_arm="vl",
    balanced_by="kind",
)
