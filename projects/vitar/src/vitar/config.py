"""What ViTAR adds to the configuration that papers share, and the rules between settings. No torch.

`experiment=NAME` chooses an arm of `claims.py`; values stand in `conf/`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from lightbox.config import check_at_least, check_choice, check_positive, register_schema
from lightbox.errors import RequestError
from lightbox.paper import box_questions, composition, schema
from lightbox.paper.composition import chosen, estimate, inputs
from lightbox.paper.image_tools import Feedback
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruning_config import UNPRUNED, PruningConfig
from lightbox.paper.schema import PaperConfig
from lightbox.phantom import Knobs
from vitar.rewards import VARIANTS

__all__ = ["Config", "check", "chosen", "estimate", "inputs", "resolve"]

SFT, GRPO = "sft", "grpo"
BASELINES = ("majority", "question_only")
FEEDBACKS = ("one", "same", "mark", "crop")
REPLIES = ("tags", "json", "plain")
FAMILIES = ("qwen2_vl", "qwen2_5_vl")
BOXED = ("mark", "crop")
"""Feedback that depends on where the box lies, so that a random and a true one say something."""


@dataclass(kw_only=True)
class ModelConfig(schema.ModelConfig):
    """Which pretrained model (paper: Lingshu-7B, a Qwen2.5-VL); `image_px` is the side of every view it is shown."""

    freezes_tower: bool = True
    """Leave the vision tower as it is; its projector learns. The paper trains all; False costs memory and time."""
    keeps_features: bool = True
    """With a frozen tower, encode each image of the traces once and keep that in memory: 80 KiB an image of the
    tiny model, 5 MiB one of 448 of a 7B. False encodes in every step."""


@dataclass(kw_only=True)
class DataConfig(schema.DataConfig):
    """Which findings are asked about, and how well the boxes of the traces lie."""

    original_px: int = 192
    """Longest side of an original, from which crops are cut; of a drawn image a multiple of 8 up to 512. Drawing, and
    memory of real images, cost its square."""
    parts: int = 0
    """For real data: number of parts that the images are divided into, of which each seed holds out another one; 0
    divides by `split`. For sets of few images; no cost."""
    point_bins: int = 0
    """For real data: location tokens each way in which a question says where to look, of a model that was pretrained on
    them; 0 says it in fractions; no cost."""
    scales_pct: list[int] = field(default_factory=lambda: [50, 100])
    """Sizes of lesions in percent of the phantom's, 50..200; each with its small and its large ones, and as many items
    of every size. The smaller, the less of their shape is in the view; no cost."""
    distractors: int = 1
    """Findings beside the first that share all but one attribute with it, 0..3; at 0 many images hold one alone."""
    iou_low: float = 0.5
    """Least overlap of a trace's box with the true one, in (0, iou_high]; lower looks less exactly; no cost."""
    iou_high: float = 0.9
    """Largest overlap of a trace's box with the true one, below 1, as no reader's box is exact; no cost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lesion_scale_pct != 100:
            raise RequestError(
                f"data.lesion_scale_pct is {self.lesion_scale_pct}",
                "The phantom is drawn at the sizes that data.scales_pct names",
                "Leave it out, and set data.scales_pct",
            )
        check_at_least("data.point_bins", self.point_bins, 0)
        check_at_least("data.parts", self.parts, 2 if self.parts else 0)
        if self.is_phantom and (self.parts or self.point_bins):
            raise RequestError(
                f"data.parts is {self.parts}, data.point_bins {self.point_bins} and data.source phantom",
                "They are about boxes of a real data set",
                "Leave them out, or name the set as data.source",
            )
        if not self.scales_pct or len(set(self.scales_pct)) < len(self.scales_pct):
            raise RequestError(
                f"data.scales_pct is {list(self.scales_pct)}", "Sizes are at least one, each named once", "Name some"
            )
        if not 0 < self.iou_low <= self.iou_high < 1:
            raise RequestError(
                f"data.iou_low is {self.iou_low} and data.iou_high {self.iou_high}",
                "A box that is near the true one overlaps it in part",
                "Set 0 < data.iou_low <= data.iou_high < 1",
            )
        if self.is_phantom:
            _ = self.worlds  # the phantom refuses what it does not draw

    @property
    def worlds(self) -> tuple[Knobs, ...]:
        """What is drawn, one world a size of lesions: known triples of the ontology."""
        drawn = partial(Knobs, image_px=self.original_px, distractors=self.distractors, vocabulary="triples")
        return tuple(drawn(lesion_scale_pct=scale) for scale in self.scales_pct)

    @property
    def write_point(self) -> Callable[[box_questions.Point], str]:
        """How a question says where to look."""
        return box_questions.point_in_tokens(self.point_bins) if self.point_bins else box_questions.point_in_fractions


@dataclass(kw_only=True)
class ObjectiveConfig(schema.ObjectiveConfig):
    """What is learnt: to look once more, under the arm's own feedback, and to answer."""

    method: str
    """sft (imitates traces), grpo (plays and is rewarded, from the weights that the arm's start left, if `needs` names
    one), or a baseline: majority, question_only; set by the experiment."""
    feedback: str = "one"
    """one (answers at once), same (the unchanged view again), mark (a red outline), crop (cut from the original and
    enlarged); all but one read two images, which is nearly twice the tokens."""
    replies: str = "tags"
    """How the policy writes: tags with location tokens (the tiny model), json (ViTAR's, for published checkpoints),
    plain (the answer alone, by weights that were taught neither); about 8 tokens a turn, or 60 of JSON."""

    reward: str = "A"
    """What an episode earns, see `rewards.VARIANTS`: A (ViTAR's code), B (DeepEyes), C (A and the overlap of the box),
    D (the answer only); no cost."""
    prompts: int = 8
    """Questions a step of grpo, >= 1 (paper: 128); time and memory grow in proportion."""
    group: int = 8
    """Episodes a question, >= 2 (paper: 8), which are compared with each other; cost as of `prompts`."""
    temperature: float = 1.0
    """Of the draws of grpo, > 0 (paper: 1); lower explores less; no cost."""
    clip_low: float = 0.2
    """How far a token's probability may fall before its advantage stops counting, in [0, 1) (paper: 0.2); no cost."""
    clip_high: float = 0.2
    """And how far it may rise, >= 0 (paper: 0.2); no cost."""
    dual_clip: float = 3.0
    """The most that a token of a bad episode counts, above 1 + clip_high (paper: 3); 0 is no limit; no cost."""
    kl: float = 0.0
    """Weight of the divergence from the start, >= 0 (paper: 0); above 0 costs a copy of the weights and a forward."""
    scales_advantages: bool = True
    """Divide advantages by the deviation of their group, as the paper does; False is Dr. GRPO; no cost."""
    weighs: str = "tokens"
    """tokens (alike over the step, the paper) or sequences; no cost."""
    shaping: float = 0.0
    """How much more uncertain episodes count, in [0, 1), our reading of OphthaReason; above 0 costs a forward."""
    alarm_rate: float = 0.1
    """A warning where fewer episodes than this share act, ten steps on end; no cost."""

    def __post_init__(self) -> None:
        check_choice("objective.method", self.method, (SFT, GRPO, *BASELINES))
        check_choice("objective.reward", self.reward, tuple(VARIANTS))
        check_choice("objective.weighs", self.weighs, ("tokens", "sequences"))
        check_positive("objective.prompts", self.prompts)
        check_positive("objective.temperature", self.temperature)
        check_choice("objective.feedback", self.feedback, FEEDBACKS)
        check_choice("objective.replies", self.replies, REPLIES)
        if self.replies == "plain" and self.feedback != "one":
            raise RequestError(
                f"objective.replies is plain and objective.feedback is {self.feedback}",
                "A plain reply is an answer, and who answers is shown nothing more",
                "Set objective.feedback=one, or objective.replies to tags or json",
            )


@dataclass(kw_only=True)
class EvalConfig(schema.EvalConfig):
    """How episodes are played for scoring: greedily, by the code that training by rewards will use."""

    turn_tokens: int = 12
    """Most tokens of a turn, >= 1; a turn of tags has about 8, one of JSON 60; time grows with what is used."""
    looks: int = 0
    """Items whose attention is read, and whose finding is hidden, in arms that look twice at the whole view, >= 0; an
    item costs a forward on its own and two more episodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("eval.turn_tokens", self.turn_tokens)
        check_at_least("eval.looks", self.looks, 0)


@dataclass(kw_only=True)
class Config(PaperConfig):
    """Everything one run of one arm depends on."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig
    objective: ObjectiveConfig
    eval: EvalConfig = field(default_factory=EvalConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("data.original_px", self.data.original_px, 32 if self.is_baseline else self.model.image_px)
        if self.pruning.method != UNPRUNED and not self.is_baseline:
            _check_pruned(self)

    @property
    def is_baseline(self) -> bool:
        """True for what needs no weights and no torch."""
        return self.objective.method in BASELINES

    @property
    def feedback(self) -> Feedback:
        """What the policy is shown; the act is written alike in every arm, and does what the arm says."""
        tool = self.objective.feedback
        return Feedback(tool="" if tool == "one" else tool, view_px=self.model.image_px)

    @property
    def is_looked_at(self) -> bool:
        """True where attention is read: what is shown second must be the whole view, as the first is."""
        return self.eval.looks > 0 and self.objective.feedback in ("mark", "same")

    @property
    def most_turns(self) -> int:
        """Turns of the policy, 2 as in the paper, or one for one pass."""
        return 1 if self.objective.feedback == "one" else 2

    @property
    def shown_boxes(self) -> tuple[str, ...]:
        """Whose boxes are shown in an evaluation: the policy's own, and the controls' where they matter."""
        return ("own", "random", "true") if self.objective.feedback in BOXED else ("own",)

    @property
    def purpose(self) -> dict[str, str]:
        """What weights of this configuration are for; they may be scored under another feedback, as a control."""
        return {"objective.replies": self.objective.replies, "model.image_px": str(self.model.image_px)}


def _check_pruned(cfg: Config) -> None:
    """Refuse what reads whole images, or counts on their tokens' places.

    Raises:
        RequestError: naming the setting.
    """
    model, objective = cfg.model, cfg.objective
    wrong = {
        f"pruning.positions is {cfg.pruning.positions}": (
            cfg.pruning.positions != "keep",
            "A later turn's positions are counted behind the whole of the earlier ones",
            "Set pruning.positions=keep",
        ),
        "model.keeps_features is true": (
            objective.method == SFT and model.freezes_tower and model.keeps_features,
            "Methods choose by what the tower does with an image, which its kept features do not tell",
            "Set model.keeps_features=false; the tower then runs in every step",
        ),
        f"eval.looks is {cfg.eval.looks}": (
            cfg.is_looked_at,
            "Where a policy looks is read by the places of all tokens of an image",
            "Set eval.looks=0",
        ),
        f"objective.kl is {objective.kl}": (
            objective.method == GRPO and objective.kl > 0,
            "The copy that a policy is held to would not be pruned",
            "Set objective.kl=0",
        ),
    }
    for setting, (is_wrong, why, advice) in wrong.items():
        if is_wrong:
            raise RequestError(f"pruning.method is {cfg.pruning.method} and {setting}", why, advice)


register_schema("vitar", "train", Config)
resolve = partial(composition.resolve, "vitar")


def check(cfg: Config, base: Pretrained) -> None:
    """Refuse families that do not read an image in a later turn as we send it.

    Raises:
        RequestError: naming the setting.
    """
    if base.family.name not in FAMILIES:
        raise RequestError(
            f"model.backbone is '{cfg.model.backbone}', of family {base.family.name}",
            "ViTAR shows a second image in a later turn, which was tried with Qwen's models alone",
            f"Use one of the families {', '.join(FAMILIES)}",
        )
