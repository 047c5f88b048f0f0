"""What K2Sight claims, written before the model: K1-K6, KR1 and KR2, their contrasts, controls and gates. No torch.

The text beyond the abstracts of both papers was not available; numbers are those of the project page, and of a
recomputation from predictions that the first author published.
"""

from collections.abc import Sequence
from functools import partial

from lightbox.claims.spec import BEST, REAL, Arm, Claim, Contrast, Gate, Kind, Measure, PaperClaims, Role, difference
from lightbox.knowledge import ATTRIBUTES

_claim = partial(Claim, "k2sight", unit="points of IoU")
UNTRAINED = "objective.is_trained=false"
LONG = {"full": 1600}
"""Steps of claims whose effect stands later than that of K2, by the pilot. K4 stands nowhere up to 6,400 steps, and has
the most that the preset affords."""
PRETRAINED = (
    "The tiny model was pretrained to find what a phrase of attributes describes, on known classes and in other words "
    "than those of the definitions. What is tested is whether it learns new words for them, and names."
)
KNOWN, UNSEEN = "known", "unseen_composition"
SHARES = (20, 5)
"""Percent of the training items, beside all of them."""
DEFINED, REGION, BANK = "data.prompt=defined", "objective.region_weight=0.05", "model.bank_words=5"
TEXTS = "eval.texts=[swapped,nearest,only_location,other]"
SMEARS = (
    "data.source=blood_smear_csv",
    "data.root='${oc.env:LIGHTBOX_DATA_ROOT,$LIGHTBOX_DATA_ROOT}/blood_smear_csv'",
    "data.split=by_image",
    "data.eval_split=test",
)
"""The second set of preset `real`: 40 images, divided by image, since its makers did not divide them."""


def _arm(name: str, title: str, method: str, *overrides: str, rate_of: str = "") -> Arm:
    overrides = (f"objective.method={method}", *overrides)
    return Arm(name, title, overrides, is_trained=UNTRAINED not in overrides, rate_of=rate_of)


def _defined(name: str, title: str, definition: str) -> Arm:
    return _arm(name, title, "ground", DEFINED, f"data.definition={definition}")


def _share(arm: str, prompt: str, pct: int) -> Arm:
    title = f"{arm} with {pct} % of the training items"
    return _arm(f"{arm}_{pct}", title, "ground", f"data.prompt={prompt}", f"data.share_pct={pct}", rate_of=arm)


# What `experiment=NAME` means, and nothing else. All trained arms of a seed share images, classes, boxes, steps and
# initial weights. They differ in the words of the prompt and, each tuned on its own, in the learning rate. NR's
# definition of a training item stays the same from epoch to epoch. Arms with a share of the data see fewer images, each
# more often. defined_region and defined_bank have the words of ND, and another loss or another way to read them.
ARMS = (
    _arm("untouched", "arm 0: shipped weights, asked by definition", "ground", "data.prompt=definition", UNTRAINED),
    _arm("location_prior", "median box of the class in training", "location_prior", UNTRAINED),
    _arm("blob", "the most conspicuous region of the image", "blob", UNTRAINED),
    _arm("oracle", "the true boxes", "oracle", UNTRAINED),
    _arm("name", "N: name only", "ground", "data.prompt=name"),
    _arm("defined", "ND: name and definition", "ground", DEFINED, TEXTS),
    _arm("definition", "D: definition only", "ground", "data.prompt=definition"),
    _defined("scrambled", "NS: name and another class's definition, always the same one", "scrambled"),
    _defined("random", "NR: name and a definition drawn anew for each item", "random"),
    _defined("long", "NL: name and definition, with three times as many filler words behind it", "long"),
    *(_defined(f"no_{kind}", f"ND without {kind}", f"no_{kind}") for kind in ATTRIBUTES),
    _defined("only_location", "ND with location words only", "only_location"),
    _arm("defined_region", "ND with a contrast of regions (MedRPG)", "ground", DEFINED, REGION, rate_of="defined"),
    _arm("defined_bank", "ND that selects words of the definition (StructuralGLIP)", "ground", DEFINED, BANK),
    *(_share(arm, arm, pct) for pct in SHARES for arm in ("name", "defined")),
    _arm("smear_defined", "ND on the second set of smears", "ground", DEFINED, *SMEARS, rate_of="defined"),
    _arm("smear_prior", "median box of the class on that set", "location_prior", UNTRAINED, *SMEARS),
    _arm("smear_blob", "the most conspicuous region on that set", "blob", UNTRAINED, *SMEARS),
)


def _in(part: str, measure: Measure | str, condition: str = "") -> Measure:
    measure = Measure(measure) if isinstance(measure, str) else measure
    return Measure(measure.arm, measure.metric, condition or measure.condition, (("kind", part),))


def _gap(
    part: str, name: str, arm: Measure | str, rival: Measure | str, role: Role = Role.PRIMARY, *, under: str = ""
) -> Contrast:
    """A difference on one part; `under` is the prompt under which the rival is asked."""
    return difference(name, _in(part, arm), _in(part, rival, under), role)


def _gate(part: str, *arms: str) -> Gate:
    """The best of `arms` against what needs no name or no image, and arm 0."""
    baselines = [_in(part, name) for name in ("location_prior", "blob", "untouched")]
    baselines += [_in(part, BEST, "blank"), _in(part, BEST, "shuffled")]
    return Gate(tuple(_in(part, arm) for arm in arms), tuple(baselines))


def _gain(share: int) -> tuple[tuple[float, Measure], ...]:
    """Terms of ND minus N on known classes, with a share of the data; 100 is all."""
    suffix = "" if share == 100 else f"_{share}"
    return (1.0, _in(KNOWN, f"defined{suffix}")), (-1.0, _in(KNOWN, f"name{suffix}"))


_K1 = _claim(
    id="K1",
    kind=Kind.DIRECTIONAL,
    statement="On classes that were trained on, a definition beside the name gives better boxes than the name alone.",
    location="VinDr-CXR test set; AG-KD's teaser figure compares with RadVLM, which was trained without definitions",
    paper_numbers="mAP50 25.5 against 21.9 for RadVLM 7B; without definitions: not found; a recomputation "
    "from dumped 2B predictions: mean best IoU -0.3 points [-0.9, 0.2]",
    contrasts=(
        _gap(KNOWN, "ND - N", "defined", "name"),
        *(Contrast(f"{pct} % of the data: ND - N", _gain(pct), Role.SECONDARY) for pct in SHARES),
        Contrast(
            "gain with 5 % of the data - gain with all of it",
            (*_gain(5), *((-weight, measure) for weight, measure in _gain(100))),
            Role.SECONDARY,
        ),
        _gap(KNOWN, "ND - NS", "defined", "scrambled", Role.SECONDARY),
        _gap(KNOWN, "ND - D: what the name adds", "defined", "definition", Role.SECONDARY),
        _gap(KNOWN, "ND - NL: what filler costs", "defined", "long", Role.SECONDARY),
    ),
    gate=_gate(KNOWN, "defined", "name"),
    caveats=(PRETRAINED,),
    note="Where the gain is there with little data and gone with all of it, it is a matter of scarce data.",
    budget_by_preset=LONG,
)
_K2 = _claim(
    id="K2",
    kind=Kind.CHAIN,
    statement="A definition lets the model find a class that it has never seen.",
    location="zero-shot grounding on PadChest-GR after training on VinDr-CXR; AG-KD, unseen abnormalities",
    paper_numbers="not found; a recomputation from dumped 2B predictions: mean best IoU -0.1 to +1.5 points",
    contrasts=(
        _gap(UNSEEN, "ND - NR", "defined", "random"),
        _gap(UNSEEN, "ND - arm 0 with the definition", "defined", "untouched"),
        _gap(UNSEEN, "ND - ND with the nearest known definition", "defined", "defined", under="nearest"),
        _gap(UNSEEN, "ND - trained with location words only", "defined", "only_location"),
        _gap(
            UNSEEN,
            "ND - ND asked by location alone",
            "defined",
            "defined",
            Role.SECONDARY,
            under="only_location",
        ),
        _gap(UNSEEN, "ND - N", "defined", "name", Role.SECONDARY),
        _gap(UNSEEN, "ND - ND with another class's definition", "defined", "defined", Role.SECONDARY, under="other"),
    ),
    gate=_gate(UNSEEN, "defined"),
    is_primary=True,
    presets=("smoke", "quick", "full"),
    seeds={"smoke": 1, "quick": 5, "full": 8},
    caveats=(PRETRAINED, "Arm 0 has never read the words of the definitions."),
    note="N knows nothing of an unseen pseudo-word, so ND minus N is shown and does not decide.",
)
_K3 = _claim(
    id="K3",
    kind=Kind.DIRECTIONAL,
    statement="The gain on unseen classes comes from what the definition says, not from a longer prompt.",
    location="not in the paper: the control that its comparison lacks",
    paper_numbers="not found",
    contrasts=(
        _gap(UNSEEN, "ND - NS", "defined", "scrambled"),
        _gap(UNSEEN, "ND - NR", "defined", "random", Role.CONTROL),
        _gap(KNOWN, "known: ND - NS", "defined", "scrambled", Role.SECONDARY),
        _gap(KNOWN, "known: ND - N", "defined", "name", Role.SECONDARY),
    ),
    gate=_gate(UNSEEN, "defined"),
    presets=("smoke", "quick", "full"),
    caveats=(
        "A scrambled or random definition says nothing about an unseen class, so this holds by construction once "
        "definitions are read at all. On known classes it need not.",
    ),
    note="On known classes a scrambled sentence may serve as a second name.",
)


def _loss_without(kind: str, where: str) -> Contrast:
    """ND minus ND without an attribute, on items beside something that differs in it alone, or apart from any."""
    metric = f"paired_iou_{where}_{kind}"
    place = f"beside a look-alike of another {kind}" if where == "beside" else f"no look-alike of another {kind} near"
    name = f"{place}: ND - ND without {kind}"
    role = Role.PRIMARY if where == "beside" else Role.SECONDARY
    return _gap(UNSEEN, name, Measure("defined", metric), Measure(f"no_{kind}", metric), role)


def _more_beside(kind: str) -> Contrast:
    """How much more an attribute is worth beside a look-alike that it tells apart; the items are others."""
    beside, apart = (_loss_without(kind, where).terms for where in ("beside", "apart"))
    terms = (*beside, *((-weight, measure) for weight, measure in apart))
    return Contrast(f"{kind}: beside - apart", terms, Role.SECONDARY, is_paired=False)


_K4 = _claim(
    id="K4",
    kind=Kind.CHAIN,
    statement="Each attribute is read: without it, look-alikes that differ in it alone are no longer told apart.",
    location="the abstract names shape, density and location; an ablation was not found",
    paper_numbers="not found",
    contrasts=(
        *(_loss_without(kind, where) for where in ("beside", "apart") for kind in ATTRIBUTES),
        *(_more_beside(kind) for kind in ATTRIBUTES),
        difference(
            "boxes that go over to the look-alike whose definition is given - that lie there anyhow",
            _in(UNSEEN, Measure("defined", "moved"), "swapped"),
            _in(UNSEEN, Measure("defined", "moved"), "image"),
            Role.SECONDARY,
        ),
    ),
    gate=_gate(UNSEEN, "defined"),
    caveats=(
        "Look-alikes are of the same part of the ontology, which holds few pairs: densities that differ are dense and "
        "lucent, locations are mirrored, or a hilum or an angle beside a zone.",
    ),
    budget_by_preset=LONG,
)
_K5 = _claim(
    id="K5",
    kind=Kind.DIRECTIONAL,
    statement="With definitions, a fifth of the data does better on unseen classes than all of it with names only.",
    location="0.23B model on 16,087 samples, 1.5 % of RadVLM's data, against RadVLM 7B",
    paper_numbers="mAP50 25.5 against 21.9",
    contrasts=(
        _gap(UNSEEN, "ND with 20 % - N with all", "defined_20", "name"),
        _gap(KNOWN, "known: ND with 20 % - N with all", "defined_20", "name", Role.SECONDARY),
    ),
    gate=_gate(UNSEEN, "defined_20", "name"),
    caveats=(
        "There is one tiny model, so data are compared and not model sizes, as they are in the paper.",
        "N cannot know an unseen name: on unseen classes this is true by construction once definitions help. The "
        "known classes are shown beside it.",
    ),
)
_K6 = _claim(
    id="K6",
    kind=Kind.EXACT,
    statement="RoDeO rewards boxes that lie roughly in place: the location prior, which looks at nothing, gets 20 "
    "points more of it than of mAP50.",
    location="the authors' own table: RoDeO .43 to .49 for models with mAP50 below .003",
    paper_numbers="Qwen2-VL-2B on VinDr-CXR: RoDeO .39, mAP50 .0002",
    contrasts=(
        Contrast(
            "location prior: RoDeO - mAP50",
            (
                (1.0, Measure("location_prior", "rodeo", where=(("kind", f"set {KNOWN}"),))),
                (-1.0, Measure("location_prior", "map50", where=(("kind", f"set {KNOWN}"),))),
            ),
        ),
    ),
    gate=None,
    bound=0.2,
    min_items=1,
    unit="points",
    budget="",
    caveats=(
        "A caution about a metric, not a claim of the paper.",
        "A box counts as one of the class asked for, so RoDeO's part for the class is nearly given; every box of the "
        "location prior is equally sure, so its mAP50 is ranked by the order of the items.",
    ),
)

_K1_REGION = _claim(
    id="K1-region",
    kind=Kind.DIRECTIONAL,
    statement="A contrast between phrase and region beside the loss gives better boxes on known classes.",
    location="MedRPG, MS-CXR, against TransVG without the contrast; neither K2Sight nor AG-KD has it",
    paper_numbers="mIoU 59.37 against 58.91; on ChestX-ray8 34.59 against 33.98",
    contrasts=(
        _gap(KNOWN, "ND with the contrast - ND", "defined_region", "defined"),
        _gap(UNSEEN, "unseen: ND with the contrast - ND", "defined_region", "defined", Role.SECONDARY),
    ),
    gate=_gate(KNOWN, "defined_region", "defined"),
    caveats=(
        PRETRAINED,
        "An encoder that reads patches and words together stands in for TransVG, see `losses.regions`.",
    ),
    budget_by_preset=LONG,
)
_K2_BANK = _claim(
    id="K2-bank",
    kind=Kind.DIRECTIONAL,
    statement="On unseen classes, selecting words of the definition by the image does better than reading all of it in "
    "the prompt.",
    location="StructuralGLIP, zero-shot detection on eight sets; neither K2Sight nor AG-KD has it",
    paper_numbers="4.1 points of AP over earlier zero-shot methods",
    contrasts=(
        _gap(UNSEEN, "ND that selects - ND", "defined_bank", "defined"),
        _gap(KNOWN, "known: ND that selects - ND", "defined_bank", "defined", Role.SECONDARY),
    ),
    gate=_gate(UNSEEN, "defined_bank", "defined"),
    caveats=(
        PRETRAINED,
        "Definitions of the phantom hold three to five words, so there is little to select; pretraining had words of "
        "appearance in the prompt. One selection behind the encoder stands in for one in each layer of a detector.",
    ),
    budget_by_preset=LONG,
)


def _mean(name: str, arm: str, metric: str) -> Contrast:
    """A score that is shown and decides nothing; AP is one of the whole set."""
    kind = "set all" if metric.startswith("map") else "all"
    return Contrast(name, ((1.0, Measure(arm, metric, where=(("kind", kind),))),), Role.SECONDARY)


def _on_real(claim_id: str, arms: Sequence[str], *, smears: str, min_items: int, caveats: tuple[str, ...]) -> Claim:
    """Boxes on a real set against two rivals that do not learn from its pixels; `arms` are ND, prior and blob.

    The control is what a model that has learnt the set's usual layout, and does not look, would draw.
    """
    titles = dict(zip(("ND", "location prior", "largest blob"), arms, strict=True))
    metrics = {"best overlap": "best_iou", "AP50": "map50", "AP50:95": "map50_95"}
    return _claim(
        id=claim_id,
        kind=Kind.CHAIN,
        statement=f"On real blood smears ({smears}), cells are found better than by the location prior and by the "
        "largest blob.",
        location="not in the paper: a real number beside the phantom's",
        paper_numbers="not found",
        contrasts=(
            *(difference(f"ND - {title}", titles["ND"], arm) for title, arm in titles.items() if title != "ND"),
            difference(
                "ND - ND shown another image", titles["ND"], Measure(titles["ND"], condition="shuffled"), Role.CONTROL
            ),
            *(
                _mean(f"{name}, {title}", arm, metric)
                for name, metric in metrics.items()
                for title, arm in titles.items()
            ),
        ),
        gate=None,
        presets=("real",),
        seeds={"real": 5},
        images=REAL,
        budget="",
        min_items=min_items,
        caveats=(
            "Photographs of one public set, made small, and a tiny model trained on them: this says whether boxes are "
            "learnt from real pixels, and nothing about clinical use.",
            "Each rival draws one box, where most images show many red cells, so that much of the difference is in "
            "drawing more than one; AP and the mean best overlap stand beside it.",
            "Seeds redraw the training and not the scored images: the interval is that of the training. Patients are "
            "unknown.",
            *caveats,
        ),
    )


_KR1 = _on_real(
    "KR1",
    ("defined", "location_prior", "blob"),
    smears="BCCD",
    min_items=50,  # the set's second part has 59 findings, on 24 images
    caveats=(),
)
_KR2 = _on_real(
    "KR2",
    ("smear_defined", "smear_prior", "smear_blob"),
    smears="A. Aslan's set",
    min_items=8,  # red and white cells on each scored image
    caveats=("Forty images, of which four are scored, with a hundred cells.",),
)

PAPER = PaperClaims(
    paper="k2sight",
    title="Knowledge to Sight: reasoning over visual attributes via knowledge decomposition for abnormality grounding",
    arxiv="2508.04572",
    arms={arm.name: arm for arm in ARMS},
    claims=(_K1, _K1_REGION, _K2, _K2_BANK, _K3, _K4, _K5, _K6, _KR1, _KR2),
    headline="paired_iou",
    condition="image",
    default_arm="defined",
)
