"""The schema of MedThink's configuration, its derived values and cross-field rules. No torch.

Values live in `conf/`: presets set sizes, profiles set scales, one experiment file per arm sets method and data
content. Learning rates chosen by tuning stand in `conf/tuned/<name>.yaml` as a map from arm to rate; `optim.lr` reads
the map at the chosen arm, so a rate given on the command line still wins.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from lightbox import phantom
from lightbox.backbones import weights
from lightbox.config import (
    PRECISIONS,
    AdapterConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    check_at_least,
    check_choice,
    check_positive,
    compose,
    register_schema,
)
from lightbox.errors import RequestError
from medthink.bases import find_base

PHANTOM = "phantom"
N_FOLDS = 5
N_EXAMPLES = 6
BASELINES = ("majority", "question_only")
STRATEGIES = ("none", "explanation", "reasoning", "first_stage", "second_stage", "reader")
METHODS = STRATEGIES + BASELINES
ANSWER_TARGETS = ("none", "second_stage", "reader")
FORMS = ("closed", "open")
RATIONALES = ("true", "same_answer", "filler", "corrupted")
STAGE2_SOURCES = ("gold", "in_sample", "out_of_fold")
PADS = ("masked", "official")
EVAL_SPLITS = ("test", "validation", "test_shifted")
DATA_SPLITS = ("official", "by_image")
ATTENTIONS = ("auto", "sdpa", "xformers", "flash", "eager")
OWN_TOWER = "tiny/tower"


@dataclass(kw_only=True)
class ModelConfig:
    """Which pretrained parts, and the fusion between them."""

    backbone: str
    """T5 (paper: allenai/unifiedqa-t5-base) or a vision-language model: tiny/NAME, a directory, or a hub id."""
    backbone_revision: str = ""
    """Full commit hash of a hub id, required for one; no cost."""
    tower: str = OWN_TOWER
    """Frozen vision tower beside a T5: tiny/tower, a directory, or a hub id; used once per image, then cached."""
    tower_revision: str = ""
    """Full commit hash of a hub id, required for one; no cost."""
    features: str = ""
    """A .safetensors of ready features (n images x tokens x width) instead of a tower (paper: DETR, 100 x 256)."""
    gate_bias: float = -4.0
    """Bias of a new fusion gate (paper: silent; code: PyTorch's default, about 0); lower starts nearer to text only."""
    dropout_prob: float = 0.0
    """Dropout of T5 in [0, 1) (paper: silent; T5's own is 0.1); raising it slows learning and resists over-fitting."""
    dtype: str = "fp32"
    """Frozen weights in memory: fp32, bf16 or fp16; halves memory and time on a GPU; trained weights stay in fp32."""
    attention: str = "auto"
    """auto, sdpa, xformers, flash or eager, for a vision-language model; the choice is on the run card."""
    image_px: int = 448
    """Longest side of an image shown to a vision-language model, >= 1; Qwen's cost grows with its square."""

    def __post_init__(self) -> None:
        check_choice("model.dtype", self.dtype, PRECISIONS)
        check_choice("model.attention", self.attention, ATTENTIONS)
        check_positive("model.image_px", self.image_px)
        if not 0 <= self.dropout_prob < 1:
            raise RequestError(
                f"model.dropout_prob is {self.dropout_prob}",
                "It is a probability and some units must stay",
                "Set model.dropout_prob in [0, 1)",
            )


@dataclass(kw_only=True)
class DataConfig:
    """Which items, how many, and what their training rationales say."""

    n_train: int
    """Training items, >= 1; 0 would train on nothing; more helps accuracy and costs drawing and feature time."""
    n_test: int
    """Items scored, >= 1; the interval narrows with its root, evaluation time grows in proportion."""
    source: str = PHANTOM
    """phantom, or a reader name of `lightbox data list` (r_slake, slake, vqa_rad, ...); sizes then are upper bounds."""
    root: str = ""
    """Folder of a real data set; required unless source is phantom; no cost."""
    split: str = "official"
    """For real data: official, or by_image (80 / 10 / 10 % by patient or image: no image on two sides); no cost."""
    eval_split: str = "test"
    """Which split is scored: test, validation (tuning), test_shifted (phantom); no cost."""
    form: str = "closed"
    """closed (two options, letter answer) or open (answer text), trained apart as in the paper; no cost."""
    questions_per_case: int = 4
    """Phantom questions per image, >= 1; lower means more images for the same items, so more feature time."""
    rho: float = 0.0
    """Phantom text prior in [0, 1]: how far the question alone predicts the answer; higher lifts question-only."""
    lesion_scale_pct: int = 100
    """Phantom lesion size, percent of default, 50..200; higher makes images easier; no cost."""
    rationale: str = "true"
    """Training rationales: true, same_answer (another item's), filler (neutral words), corrupted; test is untouched."""
    corruption_pct: float = 0.0
    """Percent of training rationales with a swapped side, zone or finding, in [0, 100]; needs rationale=corrupted."""
    source_tokens: int = 64
    """Longest encoder input in tokens (paper: 512); attention cost grows with the square of what is used."""
    target_tokens: int = 64
    """Longest decoder target with a rationale, in tokens (paper: 256); cost grows in proportion to what is used."""
    answer_target_tokens: int = 32
    """Longest answer-only target in tokens (paper: 32); with official pads the width that the loss counts."""

    def __post_init__(self) -> None:
        for key in (
            "n_train",
            "n_test",
            "questions_per_case",
            "source_tokens",
            "target_tokens",
            "answer_target_tokens",
        ):
            check_positive("data." + key, getattr(self, key))
        check_choice("data.split", self.split, DATA_SPLITS)
        check_choice("data.eval_split", self.eval_split, EVAL_SPLITS)
        check_choice("data.form", self.form, FORMS)
        check_choice("data.rationale", self.rationale, RATIONALES)
        if self.source != PHANTOM and not self.root:
            raise RequestError(
                f"data.source is {self.source} and data.root is empty",
                "A real data set is read from a folder on this machine",
                "Set data.root to that folder, or data.source=phantom",
            )
        if self.source != PHANTOM and self.eval_split == "test_shifted":
            raise RequestError(
                f"data.eval_split is test_shifted and data.source is {self.source}",
                "Only the phantom can draw a shifted test set",
                "Set data.eval_split=test or validation",
            )
        if not 0 <= self.corruption_pct <= 100 or (self.corruption_pct > 0) != (self.rationale == "corrupted"):
            raise RequestError(
                f"data.corruption_pct is {self.corruption_pct} and data.rationale is {self.rationale}",
                "A percentage above 0, at most 100, belongs to corrupted rationales and to no others",
                "Set both data.rationale=corrupted and data.corruption_pct, or neither",
            )


@dataclass(kw_only=True)
class ObjectiveConfig:
    """The strategy: what is asked, what is the target, and which tokens carry loss."""

    method: str
    """none, explanation, reasoning, first_stage, second_stage, reader (text only), or a baseline; the paper's arms."""
    is_trained: bool = True
    """False scores the loaded weights as they are (arm 0, `medthink eval`); no cost."""
    pads: str = "masked"
    """masked, or official: pad positions count as targets, as in the official code; official dilutes the gradient."""
    stage2_rationales: str = "gold"
    """What stage 2 trains on: gold, in_sample (paper), out_of_fold; with first_stage, out_of_fold trains 5 models."""
    masks_answer_words: bool = False
    """For the reader: replace answer-bearing words of rationales by a mask word, in training and test; no cost."""

    def __post_init__(self) -> None:
        check_choice("objective.method", self.method, METHODS)
        check_choice("objective.pads", self.pads, PADS)
        check_choice("objective.stage2_rationales", self.stage2_rationales, STAGE2_SOURCES)
        if self.masks_answer_words and self.method != "reader":
            raise RequestError(
                f"objective.masks_answer_words is true and objective.method is {self.method}",
                "Only the reader is tested with masked rationales",
                "Set objective.method=reader, or objective.masks_answer_words=false",
            )


@dataclass(kw_only=True)
class EvalConfig:
    """How generations are made for scoring."""

    batch_size: int = 250
    """Items generated at once; memory grows in proportion, time per item falls."""
    answer_tokens: int = 16
    """Most tokens generated for an answer; too low cuts open answers, which then count as wrong."""
    rationale_tokens: int = 64
    """Most tokens generated for a rationale (paper: 256 in all); time grows with what is used."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "answer_tokens", "rationale_tokens"):
            check_at_least("eval." + key, getattr(self, key), 1)


@dataclass(kw_only=True)
class Config:
    """Everything one run of one arm depends on."""

    arm: str
    """Name of the arm, set by its experiment file; selects the tuned learning rate; no cost."""
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    run: RunConfig
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tuned: dict[str, float] = field(default_factory=dict)
    """Learning rate per arm, chosen on validation at `quick` size, from conf/tuned; an absent arm takes 1e-3."""
    needs: list[str] = field(default_factory=list)
    """Finished folders of earlier arms, e.g. needs=[OUT/runs/stage1-KEY]; `reproduce` finds them by itself; no cost."""

    def __post_init__(self) -> None:
        if self.is_baseline and self.objective.is_trained:
            raise RequestError(
                f"objective.method is {self.objective.method} and objective.is_trained is true",
                "A baseline counts training answers and has no weights",
                "Set objective.is_trained=false, as its experiment file does",
            )
        if self.data.rationale != "true" and self.objective.method not in ("explanation", "reasoning"):
            raise RequestError(
                f"data.rationale is {self.data.rationale} and objective.method is {self.objective.method}",
                "Only Explanation and Reasoning train on altered rationales",
                "Set objective.method=explanation or reasoning, or data.rationale=true",
            )
        if self.model.dtype != "fp32" and self.adapter.kind == "none" and self.objective.is_trained:
            raise RequestError(
                f"model.dtype is {self.model.dtype} and adapter.kind is none",
                "Every weight would be trained in 16 bits, where a small update is rounded away",
                "Set adapter.kind=lora, or model.dtype=fp32 with run.precision=bf16",
            )
        if self.model.features and self.data.source == PHANTOM:
            raise RequestError(
                f"model.features is '{self.model.features}' and data.source is phantom",
                "Phantom images are drawn in the run, so no feature file can hold them",
                "Leave model.features empty, or set data.source and data.root",
            )

    @property
    def is_baseline(self) -> bool:
        """True for majority and question-only: no weights, no torch."""
        return self.objective.method in BASELINES

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
        """Longest decoder target of this strategy."""
        return self.data.answer_target_tokens if self.objective.method in ANSWER_TARGETS else self.data.target_tokens

    @property
    def new_tokens(self) -> int:
        """Most tokens generated in the image condition: the answer's, the rationale's, or both."""
        if self.objective.method in ANSWER_TARGETS:
            return self.eval.answer_tokens
        return self.eval.rationale_tokens + (0 if self.objective.method == "first_stage" else self.eval.answer_tokens)


register_schema("medthink", "train", Config)
register_schema("medthink", "eval", Config)


def resolve(overrides: Sequence[str]) -> Config:
    """Compose `conf/train.yaml` with overrides.

    Raises:
        RequestError: naming the key that is unknown, of a wrong type, absent or impossible.
    """
    return compose("medthink", "train", overrides)


def from_plain(plain: Mapping[str, Any]) -> Config:
    """The configuration that a run's `job.json` holds; a setting that is newer than the run gets its default."""
    types = get_type_hints(Config)
    parts = {
        name: types[name](**value) if dataclasses.is_dataclass(types[name]) else value for name, value in plain.items()
    }
    return Config(**parts)


def inputs(cfg: Config) -> dict[str, str]:
    """Digests of what a job reads besides its config and the source: generator version or data files, and weights."""
    if cfg.data.source == PHANTOM:
        read = {"data": f"phantom {phantom.VERSION}"}
    else:
        read = {"data": weights.digest_of_folder(Path(cfg.data.root), suffixes=(".json", ".jsonl", ".parquet", ".txt"))}
    if cfg.is_baseline:
        return read
    base = find_base(cfg.model.backbone, cfg.model.backbone_revision)
    read["backbone"] = base.digest()
    if base.has_own_tower:
        return read
    if cfg.has_vision and cfg.model.features:
        read["features"] = weights.digest_of_file(Path(cfg.model.features))
    elif cfg.has_vision:
        read["tower"] = weights.digest_of(cfg.model.tower, revision=cfg.model.tower_revision)
    return read


def estimate(cfg: Config) -> dict[str, float]:
    """Rough cost of the job on one CPU core: minutes of wall time and GiB of memory. A worker imports torch once.

    Scaled from the weights' size: 6 floating-point operations per parameter and trained token, at 50 GFLOP/s.
    """
    if cfg.is_baseline:
        return {"minutes": 0.02, "mem_gib": 0.3}
    size_gib = weights.size_bytes(cfg.model.backbone) / 2**30
    parameters = size_gib * 2**30 / 4
    tokens_per_item = 0.5 * (cfg.data.source_tokens + cfg.target_tokens)
    models = N_FOLDS if cfg.is_folded else 1
    trained = cfg.optim.max_steps * cfg.optim.batch_size * models if cfg.objective.is_trained else 0
    flop = parameters * tokens_per_item * (6 * trained + 6 * cfg.data.n_test)
    images_gib = (cfg.data.n_train + cfg.data.n_test) / cfg.data.questions_per_case * 64 * 128 * 4 / 2**30
    return {"minutes": round(0.1 + flop / 50e9 / 60, 2), "mem_gib": round(0.8 + 8 * size_gib + 2 * images_gib, 2)}
