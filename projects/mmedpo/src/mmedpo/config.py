"""What MMedPO adds to the configuration that papers share, and the rules between settings. No torch.

`experiment=NAME` chooses an arm of `claims.py`; values stand in `conf/`.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lightbox import config as shared
from lightbox.backbones import weights
from lightbox.config import check_at_least, check_choice, check_positive, register_schema
from lightbox.errors import RequestError
from lightbox.paper import composition, schema
from lightbox.paper.composition import chosen, estimate
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruning_config import PruningConfig
from lightbox.paper.schema import PaperConfig

__all__ = ["Config", "check", "chosen", "estimate", "inputs", "resolve"]

START, SFT = "start", "sft"
PREFERENCES = ("dpo", "robust", "ipo", "kto", "simpo", "orpo", "svco")
BASELINES = ("majority", "question_only")
PAIRS = ("text", "image", "union")
MAPPED = ("tower", "mean_std")
REAL_MASKS = ("full", *MAPPED)
MASKS = ("oracle", "degraded", "random", *REAL_MASKS)
LOCALISER = "tiny/llava-576"
"""The model whose finding head says where masks of kinds `MAPPED` lie, as MedKLIP's attention does in the paper."""
SCORERS = ("known", "single", "mean", "debate")
WEIGHTS = ("uniform", "relevance", "permuted", "inverted")
READINGS = ("affine", "fitted", "literal")
MOST_STEP = 999
"""Last of the thousand steps of the diffusion schedule, counted from 0."""


@dataclass(kw_only=True)
class ModelConfig(schema.ModelConfig):
    """Which pretrained model (paper: LLaVA-Med-1.5 7B)."""

    freezes_tower: bool = True
    """Leave the vision tower as it is, as the paper does, and keep its features while pairs are learnt: 24 KiB an image
    of 64 pixels. False trains it too and computes them in every step; it costs memory and time."""
    start_freezes_tower: bool = True
    """The same for the start, whose tower has never seen real images; False costs time and memory in its steps."""


@dataclass(kw_only=True)
class DataConfig(schema.DataConfig):
    """Which questions are asked, and what stands against the true answer and the true image."""

    start_rho: float = 0.9
    """Text prior in the phantom questions that the start learns, in [0, 1]; all else is asked with `data.rho`."""
    start_mismatch_pct: float = 50.0
    """Percent of the start's items shown the image of another case, in [0, 100], as in sets collected from articles;
    at 0 the tiny model goes on to look, since true answers to biased questions do not teach it to stop."""
    pairs: str = "union"
    """text (another answer), image (the same answer, the lesion noised), or union, as many of each; no cost."""
    absurd_pct: float = 40.0
    """Percent of text pairs whose other answer is absurd, in [0, 100]; the rest are near misses and, in a third of
    cases, false in more ways. Absurd ones are won before training."""
    mask: str = "oracle"
    """Where the image is noised: oracle (the findings), degraded (moved, IoU 0.3 to 0.7), random (as large, elsewhere),
    full, tower (where a tower sees findings), mean_std (the official script's: that map above mean - std). Of real
    images no finding is known: full, or where a tower sees one that was pretrained on phantom radiographs alone."""
    noise_step: int = 500
    """Step of the diffusion schedule, 0 to 999 (paper: silent); more leaves less of the lesion."""
    scorer: str = "known"
    """Who says how relevant a pair is: known (the truth), or simulated judges: single, mean, debate; no cost."""
    given: str = ""
    """For real data: a JSON of released pairs, whose text pairs about training images are learnt from; "" makes pairs
    from the questions of the set."""
    leaves_out: str = ""
    """For real data: such a file; training leaves out the images that it names, so that they stay unseen; "" none."""
    parts: int = 0
    """For real data: number of parts that the images are divided into, of which each seed holds out another one, while
    kinds of questions are closed and open; 0 divides by `split`. For sets of few images; no cost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, choices in (("pairs", PAIRS), ("mask", MASKS), ("scorer", SCORERS)):
            check_choice(f"data.{key}", getattr(self, key), choices)
        limits = {"start_rho": 1, "start_mismatch_pct": 100, "absurd_pct": 100, "noise_step": MOST_STEP}
        for key, most in limits.items():
            check_between(f"data.{key}", getattr(self, key), most)
        if self.parts:
            check_at_least("data.parts", self.parts, 2)
        if self.is_phantom and (self.given or self.leaves_out or self.parts):
            raise RequestError(
                f"data.given is '{self.given}', data.leaves_out '{self.leaves_out}', data.parts {self.parts}",
                "They are about images of a real data set, and data.source is phantom",
                "Leave them out, or name the set as data.source",
            )


@dataclass(kw_only=True)
class ObjectiveConfig(schema.ObjectiveConfig):
    """What is learnt from a pair, and what a pair weighs."""

    method: str
    """start (biased questions), sft (the preferred answers), dpo, robust, ipo, kto (reads answers to other prompts too:
    twice the rows), simpo, orpo, svco (reads answers without an image too; image pairs only), or a baseline: majority,
    question_only; set by the experiment."""
    from_start: bool = True
    """Begin from the weights that the arm `start` left, which needs names; False begins from `model.backbone`."""
    beta: float = 0.1
    """How far the policy may leave the reference, > 0 (official code: 0.1); lower lets it go farther."""
    smoothing: float = 0.0
    """For dpo and robust: share of pairs taken to be the wrong way round, in [0, 0.5); no cost."""
    margin: float = 0.0
    """For simpo: what the preferred answer shall lead by, >= 0; no cost."""
    weights: str = "uniform"
    """uniform (1 each), relevance, permuted (among pairs of a kind) or inverted; no cost."""
    reading: str = "affine"
    """How scores become weights, see `relevance`: affine (ours), fitted or literal (the paper's words); no cost."""
    weight_low: float = 0.75
    """Least weight, >= 0 (paper: 0.75)."""
    weight_high: float = 1.25
    """Largest weight, >= weight_low (paper: 1.25)."""

    def __post_init__(self) -> None:
        check_choice("objective.method", self.method, (START, SFT, *PREFERENCES, *BASELINES))
        check_choice("objective.weights", self.weights, WEIGHTS)
        check_choice("objective.reading", self.reading, READINGS)
        check_positive("objective.beta", self.beta)
        check_at_least("objective.margin", self.margin, 0)
        check_at_least("objective.weight_low", self.weight_low, 0)
        check_at_least("objective.weight_high", self.weight_high, self.weight_low)

    @property
    def is_preference(self) -> bool:
        """True where both sides of a pair are learnt from."""
        return self.method in PREFERENCES


@dataclass(kw_only=True)
class OptimConfig(shared.OptimConfig):
    """How weights are updated, of the start and of what follows it."""

    start_steps: int = 300
    """Optimiser steps of the start, >= 1, apart from `max_steps`, which is the budget of what is compared."""
    start_lr: float = 0.001
    """Peak learning rate of the start, > 0; higher and longer follow the text more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("optim.start_steps", self.start_steps)
        check_positive("optim.start_lr", self.start_lr)


@dataclass(kw_only=True)
class EvalConfig(schema.EvalConfig):
    """How outputs are made for scoring."""

    answer_tokens: int = 8
    """Most tokens generated for an answer (paper: 64); time grows with what is used."""
    report_tokens: int = 72
    """Most tokens generated for a report; the phantom's longest take about 60."""
    noise_step: int = 700
    """Step of the noise under which visual sensitivity is measured, 0 to 999, the same for every arm; no cost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("answer_tokens", "report_tokens"):
            check_positive("eval." + key, getattr(self, key))
        check_between("eval.noise_step", self.noise_step, MOST_STEP)


@dataclass(kw_only=True)
class Config(PaperConfig):
    """Everything one run of one arm depends on."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    eval: EvalConfig = field(default_factory=EvalConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective.weights != "uniform" and not self.objective.is_preference:
            raise RequestError(
                f"objective.weights is {self.objective.weights} and objective.method is {self.objective.method}",
                "Only a preference is weighted",
                "Set objective.weights=uniform, or objective.method=dpo",
            )
        if self.objective.method == "svco" and self.data.pairs != "image":
            raise RequestError(
                f"objective.method is svco and data.pairs is {self.data.pairs}",
                "It compares the answer under either image with the one without an image; text pairs have one image",
                "Set data.pairs=image, or objective.method=dpo",
            )


def check_between(key: str, value: float, most: float) -> None:
    """Raise `RequestError` naming `key` unless `value` lies in [0, most]."""
    if not 0 <= value <= most:
        raise RequestError(f"{key} is {value}", f"It lies between 0 and {most}", f"Set {key} so")


register_schema("mmedpo", "train", Config)
resolve = partial(composition.resolve, "mmedpo")


def inputs(cfg: Config) -> dict[str, str]:
    """See `composition.inputs`; also released pairs, and the localiser's weights where it says what is noised."""
    files = {"given": cfg.data.given, "left out": cfg.data.leaves_out}
    read = composition.inputs(cfg) | {name: weights.digest_of_file(Path(own)) for name, own in files.items() if own}
    return read | ({"localiser": weights.digest_of(LOCALISER)} if cfg.data.mask in MAPPED else {})


def check(cfg: Config, base: Pretrained) -> None:
    """Refuse models whose images differ in tokens, masks of unknown findings, and dropout beside a fixed reference.

    Raises:
        RequestError: naming the setting.
    """
    if base.family.name != "llava":
        raise RequestError(
            f"model.backbone is '{cfg.model.backbone}', of family {base.family.name}",
            "MMedPO tunes a LLaVA, and images of a pair are kept as features of equal number",
            "Name a model of family llava, as tiny/llava or LLaVA-Med converted to it",
        )
    if not cfg.data.is_phantom and cfg.data.mask not in REAL_MASKS:
        raise RequestError(
            f"data.mask is {cfg.data.mask} and data.source is {cfg.data.source}",
            "Such a mask is made from where a finding lies, which only a phantom tells",
            f"Set data.mask to {', '.join(REAL_MASKS)}, or data.source=phantom",
        )
    if cfg.adapter.dropout_prob > 0 and cfg.objective.is_preference:
        raise RequestError(
            f"adapter.dropout_prob is {cfg.adapter.dropout_prob} and objective.method is {cfg.objective.method}",
            "The reference is computed once; dropout would move the policy away from it before the first step",
            "Set adapter.dropout_prob=0, as the official trainer does on its own",
        )
