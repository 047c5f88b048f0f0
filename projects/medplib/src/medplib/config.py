"""What MedPLIB adds to the configuration that papers share, and the rules between settings. No torch.

`experiment=NAME` chooses an arm of `claims.py`; values stand in `conf/`.
"""

from dataclasses import dataclass, field
from functools import partial

from lightbox import config as shared
from lightbox.backbones import weights
from lightbox.config import check_at_least, check_choice, check_positive, register_schema
from lightbox.errors import RequestError
from lightbox.paper import composition, real_masks, schema
from lightbox.paper.composition import estimate
from lightbox.paper.drawn_regions import OTHER, WHOLE
from lightbox.paper.low_rank_stages import check_settings
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruning_config import UNPRUNED, PruningConfig
from lightbox.paper.real_masks import chosen
from lightbox.paper.schema import PaperConfig
from lightbox.phantom import modalities
from lightbox.phantom.region_prompts import PROMPTS

__all__ = ["Config", "check", "chosen", "estimate", "inputs", "resolve"]

ALIGN, VL, GROUNDING, MIXTURE, JOINT, COST = "align", "vl", "grounding", "mixture", "joint", "cost"
SPECIALIST, BOXED = "specialist", "boxed"
METHODS = (ALIGN, VL, GROUNDING, MIXTURE, JOINT, COST, SPECIALIST, BOXED)
BASELINES, MASK_RIVALS = ("majority", "question_only"), ("mean_mask", "bright", "oracle")
ASK_MORE = (ALIGN, VL, MIXTURE, JOINT, COST)
"""Learn or measure what a real set does not ask for."""
NETWORKS, WIDE = ("two", "copied", "average", "one"), "wide"
ROUTERS = ("learned", "random", "oracle")
EXPERT_WEIGHTS = ("prob", "straight_through", "one")
SEG_STATES = ("predict", "self")
REGIONS = (WHOLE, OTHER, *PROMPTS)
FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl")


@dataclass(kw_only=True)
class ModelConfig(schema.ModelConfig):
    """Which pretrained parts (paper: LLaVA-1.5-7B and SAM-Med2D)."""

    segmenter: str = "tiny/sam"
    """Promptable segmenter: tiny/NAME, a directory, or a hub id, of SAM's class; cost grows with its size."""
    segmenter_revision: str = ""
    """Full commit hash of a hub id, required for one; no cost."""
    start_tower: str = ""
    """Tower that stage 1 puts under the language model of the tiny LLaVA, with a projector drawn from the seed; ""
    begins from `model.backbone` as it is."""
    seg_state: str = "predict"
    """Which state speaks for a mask: predict, the one before <SEG> as in the paper, or self, the one at it; no cost."""
    expert_weight: str = "straight_through"
    """What an expert's output is multiplied by: prob as in the paper, straight_through (1, with that gradient), one."""
    top_k: int = 1
    """Experts a token, 1 or 2 (paper: 1); two cost both networks and need expert_weight=prob."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("model.seg_state", self.seg_state, SEG_STATES)
        check_choice("model.expert_weight", self.expert_weight, EXPERT_WEIGHTS)
        check_at_least("model.top_k", self.top_k, 1)
        if self.top_k > 1 and self.expert_weight != "prob":
            raise RequestError(
                f"model.top_k is {self.top_k} and model.expert_weight is {self.expert_weight}",
                "Outputs of several experts are added in the ratio of their probabilities",
                "Set model.top_k=1, or model.expert_weight=prob",
            )


@dataclass(kw_only=True)
class DataConfig(schema.DataConfig):
    """Which questions are asked; `n_train` and `n_test` are of each task: regions, presence, masks."""

    questions_per_case: int = 2
    """Questions of a task that a picture is drawn for, >= 1; lower draws more pictures, which takes most of the time
    before the first step."""
    parts: int = 5
    """For real data: number of parts that its patients, or images, are divided into; each seed holds out another one;
    no cost."""
    mask_pct: float = 50.0
    """Percent of what stage 4 and joint training learn from that are requests for masks, in (0, 100)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_pct < 100:
            raise RequestError(
                f"data.mask_pct is {self.mask_pct}",
                "Stage 4 and joint training learn both tasks",
                "Set data.mask_pct above 0 and below 100",
            )
        check_at_least("data.parts", self.parts, 2)


@dataclass(kw_only=True)
class ObjectiveConfig(schema.ObjectiveConfig):
    """Which stage is trained, and what becomes of the networks of both experts."""

    method: str
    """align, vl, grounding, mixture (stages 1 to 4), joint (one network, all tasks, from stage 1's weights), cost (what
    a mixture computes), specialist (a U-Net in the place of stage 3), boxed (the segmenter, given true boxes), or a
    baseline: majority, question_only, and of masks alone mean_mask, bright, oracle; set by the experiment."""
    networks: str = "two"
    """What stage 4 begins from: two experts; copied, the visual-language one twice; average of both; one, that of
    grounding alone. Two and copied hold both networks in memory, as does wide, joint training's one network of twice
    the hidden units."""
    router: str = "learned"
    """Who chooses experts: learned, random (as drawn, a control), or oracle (by the task; no routers train)."""

    def __post_init__(self) -> None:
        check_choice("objective.method", self.method, (*METHODS, *BASELINES, *MASK_RIVALS))
        # a wider network is what joint training is also compared with; experts have the width of their own
        check_choice("objective.networks", self.networks, (*NETWORKS, *([WIDE] if self.method == JOINT else [])))
        check_choice("objective.router", self.router, ROUTERS)


@dataclass(kw_only=True)
class OptimConfig(shared.OptimConfig):
    """How weights are updated, of stage 1 and of the stages after it."""

    align_steps: int = 100
    """Optimiser steps of stage 1, >= 1, apart from `max_steps`, which is the budget of what is compared."""
    align_lr: float = 0.002
    """Peak learning rate of stage 1, > 0 (LLaVA: 1e-3); only the projector learns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("optim.align_steps", self.align_steps)
        check_positive("optim.align_lr", self.align_lr)


@dataclass(kw_only=True)
class EvalConfig(schema.EvalConfig):
    """How outputs are made for scoring."""

    answer_tokens: int = 10
    """Most tokens generated for an answer; time grows with what is used."""
    regions: list[str] = field(default_factory=list)
    """Further regions under which region questions are scored, each as long as an evaluation of them: whole (all of the
    picture), other (one with another answer), point, box, scribble, polygon, mask."""
    unseen: bool = False
    """Also score requests for masks in the held-out modalities, as many as of each task, and again with another class's
    word; their pictures are drawn for that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("eval.answer_tokens", self.answer_tokens)
        for region in self.regions:
            check_choice("eval.regions", region, REGIONS)


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
        check_settings(self.adapter)
        if self.objective.method == COST and self.pruning.method != UNPRUNED:
            raise RequestError(
                f"objective.method is {COST} and pruning.method is {self.pruning.method}",
                "What a mixture costs beside one network is counted over whole prompts",
                "Leave pruning.method out, or choose another experiment",
            )
        real_masks.check_source(self, asks_more=self.objective.method in ASK_MORE, is_unseen=self.eval.unseen)

    @property
    def is_baseline(self) -> bool:
        """True for what needs no weights and no torch."""
        return self.objective.method in (*BASELINES, *MASK_RIVALS)


register_schema("medplib", "train", Config)
resolve = partial(composition.resolve, "medplib")


def inputs(cfg: Config) -> dict[str, str]:
    """See `real_masks.inputs`; also the pictures' version, the segmenter, and the tower that stage 1 begins with."""
    read = real_masks.inputs(cfg) | {"pictures": modalities.VERSION}
    if cfg.is_baseline:
        return read
    own = cfg.model
    read["segmenter"] = weights.digest_of(own.segmenter, revision=own.segmenter_revision, key="model.segmenter")
    if own.start_tower:
        read["start tower"] = weights.digest_of(own.start_tower, key="model.start_tower")
    return read


def check(cfg: Config, base: Pretrained) -> None:
    """Refuse families without known patches, parts that are not there, and networks that additions do not make.

    Raises:
        RequestError: naming the setting.
    """
    if base.family.name not in FAMILIES:
        raise RequestError(
            f"model.backbone is '{cfg.model.backbone}', of family {base.family.name}",
            "It is not known which of its patches shows which part of a picture",
            f"Use one of the families {', '.join(FAMILIES)}",
        )
    if cfg.adapter.kind != "none" and cfg.objective.networks in ("average", WIDE):
        raise RequestError(
            f"objective.networks is {cfg.objective.networks} and adapter.kind is {cfg.adapter.kind}",
            "The mean of two low-rank additions has another rank, and a frozen network gets no hidden units",
            "Choose another experiment, or set adapter.kind=none",
        )
    if cfg.adapter.kind != "none" and cfg.model.start_tower:
        raise RequestError(
            f"model.start_tower is '{cfg.model.start_tower}' and adapter.kind is {cfg.adapter.kind}",
            "That start is drawn anew, and low-rank additions need a base in a folder that stays",
            "Set model.start_tower='', or adapter.kind=none",
        )
    weights.locate(cfg.model.segmenter, revision=cfg.model.segmenter_revision, key="model.segmenter")
    if cfg.model.start_tower:
        weights.locate(cfg.model.start_tower, key="model.start_tower")
