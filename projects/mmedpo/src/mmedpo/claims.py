"""What MMedPO claims, before any test result was seen: P1-P5, MR1 and MR2, contrasts, controls and gates. No torch.

The paper's numbers are single runs without intervals, and some contradict each other (README, "what the numbers hide").
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lightbox.claims.spec import BEST, REAL, Arm, Claim, Contrast, Gate, Kind, Measure, PaperClaims, Role, difference

_claim = partial(Claim, "mmedpo", unit="points of accuracy")
UNTRAINED = "objective.is_trained=false"
START = ("start",)
STEPS = (300, 700, 900)
"""Noise steps beside the usual one, for P5."""
_ROOT = "${oc.env:LIGHTBOX_DATA_ROOT,$LIGHTBOX_DATA_ROOT}"
RAD = (
    "data.source=vqa_rad",
    f"data.root='{_ROOT}/vqa_rad'",
    f"data.given='{_ROOT}/mmedpo_preferences/data/vqa-rad_dpo_weighted.json'",
    "data.leaves_out=''",
    "data.kinds=[]",
    "data.parts=5",
    "data.mask=full",
)
"""The second set of preset `real`: released pairs and the questions about their images, a fifth of which a seed holds
out. The start has not seen any of these images: its own set leaves them out."""


def _arm(name: str, title: str, method: str, *overrides: str, rate_of: str = "") -> Arm:
    return Arm(name, title, (f"objective.method={method}", *overrides), needs=START, rate_of=rate_of)


def _baseline(name: str, title: str, method: str, *overrides: str) -> Arm:
    return Arm(name, title, (f"objective.method={method}", UNTRAINED, *overrides), is_trained=False)


def _pairs(name: str, title: str, *overrides: str) -> Arm:
    """DPO on the union of pairs, at the rate of `mmedpo`: what differs is what a pair weighs."""
    return _arm(name, title, "dpo", *overrides, rate_of="mmedpo")


def _image(name: str, title: str, *overrides: str) -> Arm:
    """DPO on image pairs, at the rate of `image_dpo`: what differs is the noise."""
    return _arm(name, title, "dpo", "data.pairs=image", *overrides, rate_of="image_dpo")


RELEVANT = "objective.weights=relevance"
WIDE = ("objective.weight_low=0", "objective.weight_high=2")

# What `experiment=NAME` means, and nothing else. All arms that need `start` begin from the weights it left on their
# seed and take as many steps of as many pairs. `start` has steps and a rate of its own, the same for all: it is no arm
# that is compared, so it is neither tuned nor has a budget, which is what is_trained=False says to the runner.
ARMS = (
    _baseline("untouched", "arm 0: shipped weights", "start"),
    _baseline("majority", "the commonest answer of the kind", "majority"),
    _baseline("question_only", "the commonest answer of the same question", "question_only"),
    Arm("start", "SFT on questions whose text suggests the answer", ("objective.method=start",), is_trained=False),
    _arm("sft", "continued SFT on the preferred answers of the same pairs", "sft"),
    _arm("dpo", "DPO on text pairs", "dpo", "data.pairs=text"),
    _arm("image_dpo", "DPO on image pairs", "dpo", "data.pairs=image"),
    _arm("svco", "S-VCO on image pairs", "svco", "data.pairs=image"),
    _pairs("both", "DPO on the union of pairs, each weighs 1"),
    _arm("mmedpo", "MMedPO: the union, weighted by relevance", "dpo", RELEVANT),
    _pairs("permuted", "the union, weights permuted among pairs of a kind", "objective.weights=permuted"),
    _pairs("inverted", "the union, the least relevant weigh most", "objective.weights=inverted"),
    _pairs("wide", "MMedPO with weights in [0, 2]", RELEVANT, *WIDE),
    _pairs("wide_permuted", "permuted weights in [0, 2]", "objective.weights=permuted", *WIDE),
    _pairs("single_judge", "MMedPO by one judge's scores", RELEVANT, "data.scorer=single"),
    _pairs("mean_judges", "MMedPO by the mean of four judges", RELEVANT, "data.scorer=mean"),
    _pairs("judges", "MMedPO by four judges who debate", RELEVANT, "data.scorer=debate"),
    _image("global_noise", "image pairs, all of the image noised", "data.mask=full"),
    _image("random_mask", "image pairs, as large an area elsewhere noised", "data.mask=random"),
    _image("degraded_mask", "image pairs, the mask moved to IoU 0.3-0.7", "data.mask=degraded"),
    _image("tower_mask", "image pairs, where a tower sees findings", "data.mask=tower"),
    _image("mean_std_mask", "image pairs, the official threshold of that map", "data.mask=mean_std"),
    *(_image(f"step_{step}", f"image pairs, noise step {step}", f"data.noise_step={step}") for step in STEPS),
    _baseline("rad_majority", "the commonest answer, VQA-RAD", "majority", *RAD),
    _baseline("rad_question_only", "that of the same question", "question_only", *RAD),
    Arm(
        "rad_start",
        "the start asked about VQA-RAD",
        ("objective.method=start", UNTRAINED, *RAD),
        START,
        is_trained=False,
    ),
    _arm("rad_sft", "continued SFT on the preferred answers of released pairs", "sft", *RAD, rate_of="sft"),
    _arm("rad_mmedpo", "MMedPO on released pairs", "dpo", RELEVANT, *RAD, rate_of="mmedpo"),
)


def _beside(name: str, arm: Measure | str, rival: Measure | str) -> Contrast:
    return difference(name, arm, rival, Role.SECONDARY)


def _control(name: str, arm: Measure | str, rival: Measure | str) -> Contrast:
    return difference(name, arm, rival, Role.CONTROL)


def _also(arm: str, rival: str, names: dict[str, str]) -> tuple[Contrast, ...]:
    """The same two arms on further columns, by what a column is called."""
    return tuple(
        _beside(f"{title}: {arm} - {rival}", Measure(arm, metric), Measure(rival, metric))
        for title, metric in names.items()
    )


def _gate(*arms: str) -> Gate:
    baselines = [Measure(name) for name in ("majority", "question_only")]
    baselines += [Measure(BEST, condition="blank"), Measure(BEST, condition="shuffled")]
    return Gate(tuple(Measure(arm) for arm in arms), tuple(baselines))


FACTS = {"facts of reports": "fact_f1", "false statements of reports": "hallucinated"}
WORDING = {"BLEU-4 of reports": "bleu4", "ROUGE-L of reports": "rouge_l", "METEOR of reports": "meteor"}
AGAINST = {"answers against the text": "against_prior", "answers with the text": "with_prior"}
LOOKS = {"sensitivity inside, 0.01 nats": "sensitivity_in", "sensitivity outside, 0.01 nats": "sensitivity_out"}
REAL_METRICS = {
    "closed questions": "closed",
    "open questions": "open",
    "true answer against all of the image noised, 0.01 nats": "sensitivity_noised",
    "true answer against another case's image, 0.01 nats": "sensitivity_other",
}
TOY = (
    "Questions, answers and images are those of a toy world, and the model has a million weights: this says whether "
    "the mechanism works, and nothing about clinical use."
)

_P1 = _claim(
    id="P1",
    kind=Kind.CHAIN,
    statement="Weighted multimodal DPO beats plain DPO, DPO beats the model it starts from, and the former beats SFT "
    "that goes on with the preferred answers of the same pairs for as many steps.",
    location="Table 1, LLaVA-Med-1.5, and the rows that begin with SFT",
    paper_numbers="SLAKE open / closed: 53.99 / 73.08 (MMedPO), 49.30 / 62.02 (DPO), 44.26 / 61.30 (base); after SFT "
    "55.23 / 75.24, 53.50 / 69.47, 50.45 / 65.62; VQA-RAD 36.36 / 66.54, 29.76 / 64.70, 29.24 / 63.97",
    contrasts=(
        difference("MMedPO - DPO", "mmedpo", "dpo"),
        difference("DPO - start", "dpo", "start"),
        difference("MMedPO - continued SFT", "mmedpo", "sft"),
        _control("MMedPO - permuted weights", "mmedpo", "permuted"),
        _beside("DPO - continued SFT", "dpo", "sft"),
        _beside("start - arm 0: what the text cost", "start", "untouched"),
        *_also("mmedpo", "sft", FACTS | WORDING | AGAINST | LOOKS),
        *_also("mmedpo", "start", FACTS | WORDING | AGAINST | LOOKS | {"length, 0.01 words": "words"}),
    ),
    gate=_gate("mmedpo", "dpo", "sft"),
    is_primary=True,
    presets=("smoke", "quick", "full"),
    seeds={"smoke": 1, "quick": 5, "full": 8},
    caveats=(
        TOY,
        "The paper's rival is SFT before DPO; SFT that goes on instead of it, on the same pairs, is ours, and the "
        "harder one: the preferred answers are true and balanced.",
    ),
    note="Other answers have as many words as the true ones, so length tells nothing.",
)
_P2 = _claim(
    id="P2",
    kind=Kind.CHAIN,
    statement="Other answers and noised images each help, their union helps most, and for reports images do more.",
    location="Tables 8 and 9: stage 1 (text), stage 2 (image), both",
    paper_numbers="SLAKE open / closed: 49.39 / 65.87 (text), 51.25 / 68.51 (image), 53.99 / 73.08 (both); VQA-RAD "
    "image 31.09 / 62.87, below plain DPO; IU X-ray BLEU-1 43.95, 55.15, 55.58",
    contrasts=(
        difference("text pairs - start", "dpo", "start"),
        difference("image pairs - start", "image_dpo", "start"),
        difference("union - text pairs", "both", "dpo"),
        difference("union - image pairs", "both", "image_dpo"),
        difference("facts of reports: image - text", Measure("image_dpo", "fact_f1"), Measure("dpo", "fact_f1")),
        *_also("image_dpo", "dpo", WORDING),
        _beside("image pairs: DPO - S-VCO", "image_dpo", "svco"),
        *_also("image_dpo", "start", FACTS | WORDING | AGAINST | LOOKS),
        *_also("dpo", "start", FACTS | WORDING | AGAINST | LOOKS),
    ),
    gate=_gate("both", "dpo", "image_dpo"),
    caveats=(TOY,),
    note="Looking is measured: how much likelier the true answer is under the image than with its findings noised, and "
    "than with as much of it noised elsewhere.",
)
_P3 = _claim(
    id="P3",
    kind=Kind.DIRECTIONAL,
    statement="Weighting pairs by clinical relevance beats equal weights.",
    location="Table 2, with and without weights",
    paper_numbers="VQA +3.5, +3.0, +0.5, +2.2 % relative; reports IU +43 and +29 %, MIMIC +0.5 and +1.0 %; one cell "
    "may be reversed",
    contrasts=(
        difference("MMedPO - equal weights", "mmedpo", "both"),
        _control("MMedPO - permuted weights", "mmedpo", "permuted"),
        _beside("MMedPO - inverted weights", "mmedpo", "inverted"),
        _beside("weights in [0, 2]: true - permuted", "wide", "wide_permuted"),
        _beside("weights in [0, 2] - in [0.75, 1.25]", "wide", "mmedpo"),
        *_also("mmedpo", "both", FACTS),
    ),
    gate=_gate("mmedpo", "both"),
    caveats=(TOY, "Relevance is known by construction here; judges of P4 only estimate it."),
    note="Weights have mean 1 before they are cut. Adam does not see a common factor, so only relative weights matter.",
)


def _error(scorer: str) -> Measure:
    return Measure(scorer, "score_error", "pairs")


_P4 = _claim(
    id="P4",
    kind=Kind.DIRECTIONAL,
    statement="Weights by judges who debate beat weights by a single judge.",
    location="Table 3, single against multiple scorers",
    paper_numbers="56.09 / 48.67 / 15.67 / 6.58 against 57.53 / 51.14 / 15.86 / 6.86 (SLAKE, VQA-RAD, IU, MIMIC)",
    contrasts=(
        difference("debate - single judge", "judges", "single_judge"),
        _beside("error of the score: single judge - debate", _error("single_judge"), _error("judges")),
        _beside("error of the score: debate - mean", _error("judges"), _error("mean_judges")),
        _beside("mean of judges - single judge", "mean_judges", "single_judge"),
        _beside("known relevance - debate", "mmedpo", "judges"),
    ),
    gate=_gate("judges", "single_judge"),
    caveats=(TOY, "Judges are simulated: the known relevance with a bias and noise that are ours."),
)
_P5 = _claim(
    id="P5",
    kind=Kind.DIRECTIONAL,
    statement="Noise on the lesion teaches more than noise on the whole image.",
    location="Table 4, local against global noise",
    paper_numbers="59.88 / 46.98 / 25.00 / 7.24 against 58.88 / 46.91 / 24.88 / 6.80 (SLAKE, VQA-RAD, IU, MIMIC)",
    contrasts=(
        difference("lesion - whole image", "image_dpo", "global_noise"),
        _control("lesion - as large an area elsewhere", "image_dpo", "random_mask"),
        _beside("lesion - moved mask", "image_dpo", "degraded_mask"),
        _beside("lesion - where a tower sees findings", "image_dpo", "tower_mask"),
        _beside("lesion - the official threshold", "image_dpo", "mean_std_mask"),
        *(_beside(f"step 500 - step {step}", "image_dpo", f"step_{step}") for step in STEPS),
        *_also("image_dpo", "global_noise", FACTS | LOOKS),
    ),
    gate=_gate("image_dpo", "global_noise"),
    caveats=(TOY,),
    note="The released script's mask covers nine tenths of the image and more, so its local noise is nearly global.",
)


def _on_real(
    claim_id: str, kind: Kind, arms: Sequence[str], *, pairs: str, caveats: tuple[str, ...], **sizes: Any
) -> Claim:
    """MMedPO on real images against the start and continued SFT; `arms` are those three, majority and question-only."""
    mmedpo, start, sft, *guesses = arms
    deciding, beside = difference("MMedPO - start", mmedpo, start), difference("MMedPO - continued SFT", mmedpo, sft)
    if kind is not Kind.CHAIN:
        beside = replace(beside, role=Role.SECONDARY)
    blind = (*map(Measure, guesses), *(Measure(BEST, condition=condition) for condition in ("blank", "shuffled")))
    return _claim(
        id=claim_id,
        kind=kind,
        statement=f"On real images ({pairs}), MMedPO answers better than the model it starts from"
        + ", and than SFT that goes on with the preferred answers of the same pairs." * (kind is Kind.CHAIN)
        + "." * (kind is not Kind.CHAIN),
        location="not in the paper: a real number beside the phantom's",
        paper_numbers="not found",
        contrasts=(
            deciding,
            beside,
            *(
                Contrast(f"{arm}: {title}", ((1.0, Measure(arm, metric)),), Role.SECONDARY)
                for title, metric in REAL_METRICS.items()
                for arm in (start, sft, mmedpo)
            ),
            *_also(mmedpo, start, REAL_METRICS),
            *_also(mmedpo, sft, REAL_METRICS),
            *(_beside(f"start - {rival.label}", start, rival) for rival in map(Measure, guesses)),
            _beside("start - start shown another image", start, Measure(start, condition="shuffled")),
        ),
        gate=Gate(tuple(map(Measure, (mmedpo, sft, start))), blind),
        presets=("real",),
        seeds={"real": 5},
        images=REAL,
        budget="",
        caveats=(
            "Images of a public set, 64 pixels wide, and a tiny model that learnt real images from one such set: this "
            "says whether preferences move it, and nothing about clinical use.",
            "No finding is marked on them, so all of an image is noised, and image pairs are all equally relevant.",
            *caveats,
        ),
        **sizes,
    )


_MR1 = _on_real(
    "MR1",
    Kind.CHAIN,
    ("mmedpo", "start", "sft", "majority", "question_only"),
    pairs="pairs made from questions of VQA-Med 2019",
    caveats=(
        "Seeds redraw the training and not the scored images: the interval is that of the training. Patients are "
        "unknown, so the division is by image.",
        "A false answer is what others of its kind are answered; some may be true of the image in other words.",
    ),
)
_MR2 = _on_real(
    "MR2",
    Kind.DIRECTIONAL,
    ("rad_mmedpo", "rad_start", "rad_sft", "rad_majority", "rad_question_only"),
    pairs="released pairs on VQA-RAD",
    min_items=40,
    min_effect=0.05,
    caveats=(
        "127 pairs on 20 images. Each seed holds out another fifth of them, and is scored on some fifty questions, so "
        "that seeds differ in images too; closed and open questions weigh alike.",
        "The start learnt other questions: it never met the wording of these, which any tuning on the pairs teaches.",
        "Dispreferred answers are long sentences of another model, as released, and the preferred ones mostly short.",
    ),
    note="The start is that of MR1, which leaves these images out of its training part by name; neighbouring slices of "
    "the same patients may be in it.",
)

PAPER = PaperClaims(
    paper="mmedpo",
    title="MMedPO: aligning medical vision-language models with clinical-aware multimodal preference optimization",
    arxiv="2412.06141",
    arms={arm.name: arm for arm in ARMS},
    claims=(_P1, _P2, _P3, _P4, _P5, _MR1, _MR2),
    headline="correct",
    condition="image",
    default_arm="mmedpo",
    balanced_by="kind",
)
