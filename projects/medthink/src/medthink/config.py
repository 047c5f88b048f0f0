"""What MedThink adds to the configuration that papers share, and the rules between settings. No torch.

`experiment=NAME` chooses an arm of `claims.py`; values stand in `conf/`. A learning rate chosen by tuning stands in
`conf/tuned/quick.yaml` and is read through `optim.lr`.
"""

from dataclasses import dataclass, field
from functools import partial

from lightbox.config import check_choice, check_positive, register_schema
from lightbox.errors import RequestError
from lightbox.paper import composition, schema
from lightbox.paper.composition import inputs
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruning_config import UNPRUNED, PruningConfig
from lightbox.paper.schema import BASELINES, PaperConfig

__all__ = ["Config", "check", "chosen", "estimate", "inputs", "resolve"]

N_FOLDS = 5
STRATEGIES = ("none", "explanation", "reasoning", "first_stage", "second_stage", "reader")
ANSWER_TARGETS = ("none", "second_stage", "reader")
FORMS = ("closed", "open", "any")
RATIONALES = ("true", "same_answer", "filler", "corrupted")
STAGE2_SOURCES = ("gold", "in_sample", "out_of_fold")
PADS = ("masked", "official")
ANSWER_LOSSES = ("tokens", "alike")


@dataclass(kw_only=True)
class ModelConfig(schema.ModelConfig):
    """Which pretrained parts, and the fusion between a T5 (paper: allenai/unifiedqa-t5-base) and a tower (DETR)."""

    gate_bias: float = 0.0
    """Bias of a new fusion gate (paper: silent; code: PyTorch's default, about 0); lower starts nearer to text only,
    and images are learnt later."""
    dropout_prob: float = 0.0
    """Dropout of T5 in [0, 1) (paper: silent; T5's own is 0.1); raising it slows learning and resists over-fitting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout_prob < 1:
            raise RequestError(
                f"model.dropout_prob is {self.dropout_prob}",
                "It is a probability and some units must stay",
                "Set model.dropout_prob in [0, 1)",
            )


@dataclass(kw_only=True)
class DataConfig(schema.DataConfig):
    """Which questions, and what their training rationales say. Lengths in the paper: 512 read, 256 or 32 written."""

    form: str = "closed"
    """closed (two options, letter answer) or open (answer text), trained apart as in the paper; any: real data only."""
    rationale: str = "true"
    """Training rationales: true, same_answer (another item's), filler (neutral words), corrupted; test is untouched."""
    corruption_pct: float = 0.0
    """Percent of training rationales with a swapped side, zone or finding, in [0, 100]; needs rationale=corrupted."""
    answer_target_tokens: int = 32
    """Longest answer-only target in tokens (paper: 32); with official pads the width that the loss counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("data.answer_target_tokens", self.answer_target_tokens)
        check_choice("data.form", self.form, FORMS)
        if self.form == "any" and self.is_phantom:
            raise RequestError(
                "data.form is any and data.source is phantom",
                "The phantom draws one form or the other",
                "Set data.form=closed or open, or data.source to a real data set",
            )
        check_choice("data.rationale", self.rationale, RATIONALES)
        if not 0 <= self.corruption_pct <= 100 or (self.corruption_pct > 0) != (self.rationale == "corrupted"):
            raise RequestError(
                f"data.corruption_pct is {self.corruption_pct} and data.rationale is {self.rationale}",
                "A percentage above 0, at most 100, belongs to corrupted rationales and to no others",
                "Set both data.rationale=corrupted and data.corruption_pct, or neither",
            )


@dataclass(kw_only=True)
class ObjectiveConfig(schema.ObjectiveConfig):
    """The strategy: what is asked, what is the target, and which tokens carry loss."""

    method: str
    """none, explanation, reasoning, first_stage, second_stage, reader (text only), or a baseline; the paper's arms."""
    pads: str = "masked"
    """masked, or official: pad positions count as targets, as in the official code; official dilutes the gradient."""
    stage2_rationales: str = "gold"
    """What stage 2 trains on: gold, in_sample (paper), out_of_fold; with first_stage, out_of_fold trains 5 models."""
    hides_answer: bool = False
    """For the reader: drop conclusions of rationales and mask answer-bearing words, in training and test; no cost."""
    answer_loss: str = "tokens"
    """tokens, or alike: answer tokens weigh what they weigh in answer-only, not a share of a longer target; no cost."""

    def __post_init__(self) -> None:
        check_choice("objective.method", self.method, STRATEGIES + BASELINES[:2])
        check_choice("objective.pads", self.pads, PADS)
        check_choice("objective.stage2_rationales", self.stage2_rationales, STAGE2_SOURCES)
        check_choice("objective.answer_loss", self.answer_loss, ANSWER_LOSSES)
        if self.hides_answer and self.method != "reader":
            raise RequestError(
                f"objective.hides_answer is true and objective.method is {self.method}",
                "Only the reader is tested with rationales that hide the answer",
                "Set objective.method=reader, or objective.hides_answer=false",
            )
        if self.answer_loss == "alike" and (self.method != "explanation" or self.pads == "official"):
            raise RequestError(
                f"objective.answer_loss is alike, objective.method is {self.method}, objective.pads is {self.pads}",
                "The answer is found as the first tokens of a target of Explanation, and pads belong to no part of it",
                "Set objective.method=explanation and objective.pads=masked, or objective.answer_loss=tokens",
            )


@dataclass(kw_only=True)
class EvalConfig(schema.EvalConfig):
    """How generations are made for scoring."""

    answer_tokens: int = 16
    """Most tokens generated for an answer; too low cuts open answers, which then count as wrong."""
    rationale_tokens: int = 64
    """Most tokens generated for a rationale (paper: 256 in all); time grows with what is used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("answer_tokens", "rationale_tokens"):
            check_positive("eval." + key, getattr(self, key))


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
        if self.data.rationale != "true" and self.objective.method not in ("explanation", "reasoning"):
            raise RequestError(
                f"data.rationale is {self.data.rationale} and objective.method is {self.objective.method}",
                "Only Explanation and Reasoning train on altered rationales",
                "Set objective.method=explanation or reasoning, or data.rationale=true",
            )
        if self.objective.answer_loss == "alike" and self.data.form != "closed":
            raise RequestError(
                f"objective.answer_loss is alike and data.form is {self.data.form}",
                "The answer of an open question is as long as it is, so its tokens are not counted off",
                "Set data.form=closed, or objective.answer_loss=tokens",
            )
        if self.pruning.method != UNPRUNED and self.objective.method == "reader":
            raise RequestError(
                f"pruning.method is {self.pruning.method} and objective.method is reader",
                "The reader is shown text alone, so there are no tokens of an image to prune",
                "Leave pruning.method out, or name another arm",
            )

    @property
    def has_vision(self) -> bool:
        """False for the text-only reader and for baselines."""
        return self.objective.method != "reader" and not self.is_baseline

    @property
    def is_folded(self) -> bool:
        """True where stage 1 is trained `N_FOLDS` times for out-of-fold rationales."""
        return self.objective.method == "first_stage" and self.objective.stage2_rationales == "out_of_fold"

    @property
    def target_tokens(self) -> int:
        """Longest target of this strategy."""
        return self.data.answer_target_tokens if self.objective.method in ANSWER_TARGETS else self.data.target_tokens

    @property
    def new_tokens(self) -> int:
        """Most tokens generated in the image condition: the answer's, the rationale's, or both."""
        if self.objective.method in ANSWER_TARGETS:
            return self.eval.answer_tokens
        return self.eval.rationale_tokens + (0 if self.objective.method == "first_stage" else self.eval.answer_tokens)

    @property
    def purpose(self) -> dict[str, str]:
        """What weights trained with this configuration are for: they answer in the template of their training."""
        return {"objective.method": self.objective.method, "data.form": self.data.form}


register_schema("medthink", "train", Config)
resolve = partial(composition.resolve, "medthink")
chosen = partial(composition.chosen, has_fusion=True)  # T5 and tower are fused by the paper's own module


def estimate(cfg: Config) -> dict[str, float]:
    """Minutes and GiB of a job; see `composition.estimate`."""
    return composition.estimate(cfg, models=N_FOLDS if cfg.is_folded else 1)


def check(cfg: Config, base: Pretrained) -> None:
    """Refuse, beside a vision-language model, what only the paper's T5 has: loss by parts or pads, its dropout.

    Raises:
        RequestError: naming the setting.
    """
    if not base.has_own_tower:
        return
    named = f"model.backbone is '{cfg.model.backbone}', of family {base.family.name}"
    if cfg.objective.pads == "official":
        raise RequestError(
            f"{named}, and objective.pads is official",
            "The official code counts pads in a T5's target; a prompt and its answer in one row are followed by none",
            "Set objective.pads=masked, or model.backbone to a T5",
        )
    if cfg.objective.answer_loss == "alike":
        raise RequestError(
            f"{named}, and objective.answer_loss is alike",
            "The loss of such a model is its own, summed over all tokens of a target",
            "Set objective.answer_loss=tokens, or model.backbone to a T5",
        )
    if cfg.model.dropout_prob > 0:
        raise RequestError(
            f"{named}, and model.dropout_prob is {cfg.model.dropout_prob}",
            "That is the dropout of a T5",
            "Set model.dropout_prob=0 and, against over-fitting, adapter.dropout_prob",
        )
