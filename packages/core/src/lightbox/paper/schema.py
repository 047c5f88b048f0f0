"""The configuration that papers share. No torch.

A paper's `config.py` subclasses these, adds its own leaves, and registers the result. Values live in its `conf/`:
presets set sizes, profiles set scales. What an experiment sets stands with the paper's arms, see `composition`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

from lightbox.config import (
    PRECISIONS,
    AdapterConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    check_at_least,
    check_choice,
    check_positive,
)
from lightbox.errors import RequestError
from lightbox.paper.pretrained import OWN_TOWER

PHANTOM = "phantom"
BASELINES = ("majority", "question_only", "location_prior")
EVAL_SPLITS = ("test", "validation", "test_shifted")
DATA_SPLITS = ("official", "by_image")
NAME_MAP = "name_map.json"
"""Beside a file of ready features: which row of it belongs to which image."""
ATTENTIONS = ("auto", "sdpa", "xformers", "flash", "eager")


@dataclass(kw_only=True)
class ModelConfig:
    """Which pretrained parts."""

    backbone: str = ""
    """Pretrained model: tiny/NAME, a directory, or a hub id; "" where a paper has none; cost grows with its size."""
    backbone_revision: str = ""
    """Full commit hash of a hub id, required for one; no cost."""
    tower: str = OWN_TOWER
    """Frozen vision tower beside a text model: tiny/tower, a directory, or a hub id; used once an image and cached."""
    tower_revision: str = ""
    """Full commit hash of a hub id, required for one; no cost."""
    features: str = ""
    """A .safetensors of ready features (n images x tokens x width) instead of a tower; saves the tower's time."""
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


@dataclass(kw_only=True)
class DataConfig:
    """Which samples, and how many."""

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
    kinds: list[str] = field(default_factory=list)
    """For real data: question kinds (names of findings) that are trained on and scored, such as [modality,plane]; [] is
    all of them."""
    questions_per_case: int = 4
    """Phantom questions per image, >= 1; lower means more images for the same items, so more feature time."""
    rho: float = 0.0
    """Phantom text prior in [0, 1]: how far the question alone predicts the answer; higher lifts question-only."""
    lesion_scale_pct: int = 100
    """Phantom lesion size, percent of default, 50..200; higher makes images easier; no cost."""
    source_tokens: int = 64
    """Longest prompt in tokens, >= 1; attention cost grows with the square of what is used."""
    target_tokens: int = 64
    """Longest target in tokens, >= 1; cost grows in proportion to what is used."""

    def __post_init__(self) -> None:
        for key in ("n_train", "n_test", "questions_per_case", "source_tokens", "target_tokens"):
            check_positive("data." + key, getattr(self, key))
        check_choice("data.split", self.split, DATA_SPLITS)
        check_choice("data.eval_split", self.eval_split, EVAL_SPLITS)
        if self.source != PHANTOM and not self.root:
            raise RequestError(
                f"data.source is {self.source} and data.root is empty",
                "A real data set is read from a folder on this machine",
                "Set data.root to that folder, or data.source=phantom",
            )
        if self.source == PHANTOM and self.kinds:
            raise RequestError(
                f"data.kinds is {list(self.kinds)} and data.source is phantom",
                "The phantom draws its kinds in fixed shares, so that arms and baselines have the same",
                "Leave data.kinds empty, or set data.source to a real data set",
            )
        if self.source != PHANTOM and self.eval_split == "test_shifted":
            raise RequestError(
                f"data.eval_split is test_shifted and data.source is {self.source}",
                "Only the phantom can draw a shifted test set",
                "Set data.eval_split=test or validation",
            )

    @property
    def is_phantom(self) -> bool:
        """True where images are drawn and the truth about them is known."""
        return self.source == PHANTOM


@dataclass(kw_only=True)
class ObjectiveConfig:
    """What is learnt; a paper adds its own leaves."""

    method: str
    """The paper's method, or a baseline (majority, question_only, location_prior); set by the experiment."""
    is_trained: bool = True
    """False scores the loaded weights as they are (arm 0, eval); no cost."""


@dataclass(kw_only=True)
class EvalConfig:
    """How outputs are made for scoring."""

    batch_size: int = 250
    """Items at once, >= 1; memory grows in proportion, time per item falls."""

    def __post_init__(self) -> None:
        check_at_least("eval.batch_size", self.batch_size, 1)


@dataclass(kw_only=True)
class PaperConfig:
    """Everything one run of one arm depends on."""

    experiment: str = "???"
    """Name of the arm in `claims.py`; its overrides apply before those of the command line; no cost."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    run: RunConfig
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tuned: dict[str, float] = field(default_factory=dict)
    """Learning rate per arm, chosen on validation at `quick` size, from conf/tuned; an absent arm takes the default."""
    needs: list[str] = field(default_factory=list)
    """Finished folders of earlier arms, e.g. needs=[OUT/runs/stage1-KEY]; `reproduce` finds them by itself; no cost."""

    def __post_init__(self) -> None:
        if self.is_baseline and self.objective.is_trained:
            raise RequestError(
                f"objective.method is {self.objective.method} and objective.is_trained is true",
                "A baseline counts training answers and has no weights",
                "Set objective.is_trained=false, as its experiment does",
            )
        if self.model.dtype != "fp32" and self.adapter.kind == "none" and self.objective.is_trained:
            raise RequestError(
                f"model.dtype is {self.model.dtype} and adapter.kind is none",
                "Every weight would be trained in 16 bits, where a small update is rounded away",
                "Set adapter.kind=lora, or model.dtype=fp32 with run.precision=bf16",
            )
        if self.model.features and self.data.is_phantom:
            raise RequestError(
                f"model.features is '{self.model.features}' and data.source is phantom",
                "Phantom images are drawn in the run, so no feature file can hold them",
                "Leave model.features empty, or set data.source and data.root",
            )

    @property
    def is_baseline(self) -> bool:
        """True for what needs no weights and no torch."""
        return self.objective.method in BASELINES

    @property
    def has_vision(self) -> bool:
        """True where images are read; a paper with text-only arms says otherwise for those."""
        return not self.is_baseline

    @property
    def target_tokens(self) -> int:
        """Longest target of this arm."""
        return self.data.target_tokens


Config = TypeVar("Config", bound=PaperConfig)


def from_plain(schema: type[Config], plain: Mapping[str, Any]) -> Config:
    """The configuration that a run's record holds; a setting that is newer than the run gets its default."""
    types = get_type_hints(schema)
    parts = {
        name: types[name](**value) if dataclasses.is_dataclass(types[name]) else value for name, value in plain.items()
    }
    return schema(**parts)
