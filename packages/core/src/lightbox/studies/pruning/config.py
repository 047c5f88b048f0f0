"""What the study of pruning adds to the configuration that papers share. No torch.

`experiment=NAME` chooses an arm of `claims.py`; values stand in `conf/`.
"""

from dataclasses import dataclass, field
from functools import partial

from lightbox.config import check_at_least, check_choice, check_positive, register_schema
from lightbox.errors import RequestError
from lightbox.paper import composition, schema
from lightbox.paper.composition import inputs
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruning_config import UNPRUNED, PruningConfig
from lightbox.paper.schema import PaperConfig

__all__ = ["Config", "check", "chosen", "estimate", "inputs", "resolve"]

PACKAGE = "lightbox.studies.pruning"
TEXTS_BURNED_IN = ("none", "marker")
MAPS = ("own", "usual")
SECONDS_PER_PROMPT = {True: 0.035, False: 0.008}
"""Whether all tokens are read -> seconds; images are encoded once for all arms of a seed that a worker scores."""


@dataclass(kw_only=True)
class DataConfig(schema.DataConfig):
    """Which images are asked about."""

    image_px: int = 192
    """Side of the phantom's images, a multiple of 8 in 32..512, and what the model was trained on; time grows with its
    square."""
    burned_in_text: str = "none"
    """none, or marker: the letter of a side in a corner, which tells nothing; no cost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("data.image_px", self.image_px)
        check_choice("data.burned_in_text", self.burned_in_text, TEXTS_BURNED_IN)
        if not self.is_phantom:
            raise RequestError(
                f"data.source is {self.source}",
                "Where each lesion lies must be known to the pixel, and the tiny model has seen phantoms alone",
                "Set data.source=phantom",
            )


@dataclass(kw_only=True)
class EvalConfig(schema.EvalConfig):
    """How answers are made for scoring."""

    box_tokens: int = 30
    """Most tokens of an answer with boxes, three boxes of nine; time grows with what is used."""
    answer_tokens: int = 4
    """Most tokens of an answer to a question; likewise."""
    map: str = "own"
    """For methods that read a finding map: own, which is the tower's, or usual, the mean lesion mask of training
    images, the same for every image; drawing those takes a few seconds."""
    has_other_images: bool = False
    """Also ask under a grey image and under that of another case; twice the time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("eval.box_tokens", self.box_tokens, 1)
        check_at_least("eval.answer_tokens", self.answer_tokens, 1)
        check_choice("eval.map", self.map, MAPS)


@dataclass(kw_only=True)
class Config(PaperConfig):
    """Everything one run of one arm depends on."""

    data: DataConfig
    pruning: PruningConfig = field(default_factory=PruningConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective.is_trained:
            raise RequestError("objective.is_trained is true", "This study trains nothing", "Leave it out")


register_schema(PACKAGE, composition.CONFIG, Config)
resolve = partial(composition.resolve, PACKAGE)


def chosen(cfg: Config) -> tuple[str, ...]:
    """See `composition.chosen`."""
    return composition.chosen(cfg)


def estimate(cfg: Config) -> dict[str, float]:
    """Rough cost of a job on one CPU core: minutes of wall time and GiB of memory."""
    prompts = cfg.data.n_test * (3 if cfg.eval.has_other_images else 2)  # under the grey image few differ
    seconds = prompts * SECONDS_PER_PROMPT[cfg.pruning.method == UNPRUNED]
    return {"minutes": round(0.1 + seconds / 60, 2), "mem_gib": 1.5}


def check(cfg: Config, base: Pretrained) -> None:
    """Refuse families whose boxes the study does not read.

    Raises:
        RequestError: naming the setting.
    """
    if base.family.name != "llava":
        raise RequestError(
            f"model.backbone is '{cfg.model.backbone}', of family {base.family.name}",
            "Boxes are asked for and read as tiny/llava-576 was taught to write them",
            "Set model.backbone=tiny/llava-576",
        )
