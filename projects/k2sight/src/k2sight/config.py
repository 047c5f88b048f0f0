"""What K2Sight adds to the configuration that papers share, and the rules between settings. No torch.

`experiment=NAME` chooses an arm of `claims.py`; values stand in `conf/`.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from k2sight.descriptions import PARTS
from lightbox import knowledge
from lightbox.backbones import weights
from lightbox.config import check_at_least, check_choice, check_positive, register_schema
from lightbox.errors import RequestError
from lightbox.paper import composition, schema
from lightbox.paper.composition import chosen, estimate
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruning_config import PruningConfig
from lightbox.paper.schema import PaperConfig

__all__ = ["Config", "check", "chosen", "estimate", "inputs", "resolve"]

GROUND = "ground"
BASELINES = ("location_prior", "blob", "oracle")
PROMPTS = ("name", "defined", "definition")
DEFINITIONS = ("true", "scrambled", "random", "long", "no_shape", "no_density", "no_location", "only_location")
FAMILIES = ("florence2", "qwen2_vl")
TEXTS = ("swapped", "nearest", "only_location", "other")


@dataclass(kw_only=True)
class ModelConfig(schema.ModelConfig):
    """Which pretrained model (paper: Florence-2-base-ft, and Qwen2-VL-2B-Instruct)."""

    freezes_tower: bool = True
    """Leave the vision tower as it is, as the paper's Florence-2 does; its Qwen2-VL trains all. False costs memory."""
    keeps_features: bool = True
    """With a frozen tower, compute its features once an image and keep them in memory, for Florence-2: 24 KiB an image
    of 64 pixels, about 1 MiB one of 512. False computes them in every step."""
    bank_words: int = 0
    """Tokens of the definition that patches of the image select, after StructuralGLIP, for Florence-2 on kept features;
    the definition is encoded apart, which costs about a twentieth of a step. 0: all of it stands in the prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("model.bank_words", self.bank_words, 0)


@dataclass(kw_only=True)
class DataConfig(schema.DataConfig):
    """Which findings are asked for, and what the prompt says of them."""

    prompt: str = "defined"
    """name, defined (name and definition) or definition; a definition is about ten tokens more to read."""
    definition: str = "true"
    """What stands as the definition: true, scrambled (another class's, always the same one), random (anew for each
    item), long (true, with three times as many filler words), no_shape, no_density, no_location, only_location."""
    writes_names: bool = True
    """Write the name before each box, as the paper does; False writes boxes alone, as the tiny model was pretrained: it
    does not learn to copy new names within the budget, and then draws nothing."""
    box_grid: int = 0
    """Lines each way that edges of boxes are moved to before they are written; 0 leaves them. The tiny model has learnt
    the location tokens of the 64 pixels of its images alone, and real boxes end anywhere."""
    parts: list[str] = field(default_factory=lambda: ["known", "unseen_composition"])
    """Phantom parts that are scored, `n_test` items each; training sees the known one alone."""
    distractors: int = 3
    """Phantom findings beside the first that share all but one attribute with it, 0..3; at 0 whatever stands out is
    the answer."""
    absent_pct: float = 20.0
    """Percent of items that ask for a finding that is not there, in [0, 100); at most that on real data. The paper asks
    for none."""
    views: int = 0
    """Turned, moved and brightened copies of each training item, see `lightbox.paper.views`, >= 0; time before training
    and memory of images grow with it. The paper's code has such a step and does not call it."""
    share_pct: float = 100.0
    """Percent of the training items that are used, in (0, 100]: the axis of K1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("data.prompt", self.prompt, PROMPTS)
        check_at_least("data.box_grid", self.box_grid, 0)
        check_at_least("data.views", self.views, 0)
        check_choice("data.definition", self.definition, DEFINITIONS)
        for part in self.parts:
            check_choice("data.parts", part, PARTS)
        if not self.parts or not 0 <= self.absent_pct < 100 or not 0 < self.share_pct <= 100:
            raise RequestError(
                f"data.parts is {self.parts}, data.absent_pct {self.absent_pct}, data.share_pct {self.share_pct}",
                "A part is scored, some findings are there, and something is learnt from",
                "Name a part, and set data.absent_pct in [0, 100) and data.share_pct in (0, 100]",
            )
        if self.prompt == "name" and self.definition != "true":
            raise RequestError(
                f"data.definition is {self.definition} and data.prompt is name",
                "A prompt of the name alone holds no definition",
                "Set data.prompt=defined, or leave data.definition out",
            )


@dataclass(kw_only=True)
class ObjectiveConfig(schema.ObjectiveConfig):
    """What is learnt: to write the boxes of what is asked for."""

    method: str
    """ground, or a baseline: location_prior, blob, oracle; set by the experiment."""
    region_weight: float = 0.0
    """Weight of a contrast between the phrase and the regions of the image beside the loss, for Florence-2, see
    `losses.regions`; MedRPG's is 0.05 and grows with the epochs, this one stays. It costs a seventh of a tiny step."""

    def __post_init__(self) -> None:
        check_at_least("objective.region_weight", self.region_weight, 0)
        check_choice("objective.method", self.method, (GROUND, *BASELINES))


@dataclass(kw_only=True)
class EvalConfig(schema.EvalConfig):
    """How boxes are made for scoring."""

    answer_tokens: int = 32
    """Most tokens generated; a box of Florence-2 takes four and its name."""
    texts: list[str] = field(default_factory=list)
    """Further prompts that are scored with the item's own image, each as long as an evaluation: swapped (the definition
    of a finding beside it), nearest (that of the most alike known class), only_location, other (another class's). The
    first two need the phantom's ontology, and are left out on real data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("eval.answer_tokens", self.answer_tokens)
        for text in self.texts:
            check_choice("eval.texts", text, TEXTS)


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
        if self.eval.texts and self.data.prompt == "name":
            raise RequestError(
                f"eval.texts is {self.eval.texts} and data.prompt is name",
                "Those prompts change the definition, and the model was taught names alone",
                "Set data.prompt=defined, or leave eval.texts out",
            )

    @property
    def is_baseline(self) -> bool:
        """True for what needs no weights and no torch."""
        return self.objective.method in BASELINES

    @property
    def purpose(self) -> dict[str, str]:
        """What weights trained with this configuration are for: they answer the prompt of their training.

        Names and synonyms of the phantom are those of the run's seed.
        """
        told = {f"data.{key}": str(getattr(self.data, key)) for key in ("prompt", "definition", "writes_names")}
        told["model.bank_words"] = str(self.model.bank_words)
        return told | ({"run.seed": str(self.run.seed)} if self.data.is_phantom else {})


register_schema("k2sight", "train", Config)
resolve = partial(composition.resolve, "k2sight")


def inputs(cfg: Config) -> dict[str, str]:
    """See `composition.inputs`; also the tables that definitions come from, and the images that a baseline looks at.

    A run on phantoms reads their table alone, so that a row for a real set makes no such run old. One on real data
    reads all others, since its classes are known only when the set is read; asked by names alone, it reads none.
    """
    read = composition.inputs(cfg)
    tables = knowledge.folder()
    if cfg.is_baseline:
        if not cfg.data.is_phantom:
            root = Path(cfg.data.root)
            read["images"] = weights.digest_of_folder(root, suffixes=composition.IMAGES, may_be_empty=True)
    elif cfg.data.is_phantom:
        read["knowledge"] = weights.digest_of_file(tables / knowledge.PHANTOM)
    elif cfg.data.prompt != "name":
        read["knowledge"] = weights.digest_of_folder(tables, suffixes=(".yaml",), without=(knowledge.PHANTOM,))
    return read


def check(cfg: Config, base: Pretrained) -> None:
    """Refuse families whose boxes K2Sight does not write.

    Raises:
        RequestError: naming the setting.
    """
    keeps = base.family.name == "florence2" and cfg.model.freezes_tower and cfg.model.keeps_features
    if cfg.model.bank_words and not (keeps and cfg.data.prompt == "defined"):
        raise RequestError(
            f"model.bank_words is {cfg.model.bank_words}, family {base.family.name}, data.prompt {cfg.data.prompt}, "
            f"model.freezes_tower {cfg.model.freezes_tower}, model.keeps_features {cfg.model.keeps_features}",
            "Words are selected from a definition beside a name, by a Florence-2 on kept features of its frozen tower",
            "Set model.bank_words=0; or data.prompt=defined and a model of family florence2 with kept features",
        )
    if cfg.objective.region_weight and base.family.name != "florence2":
        raise RequestError(
            f"objective.region_weight is {cfg.objective.region_weight} and the family {base.family.name}",
            "Regions are compared with words in an encoder, and only Florence-2 has one",
            "Set objective.region_weight=0, or name a model of family florence2",
        )
    if base.family.name not in FAMILIES:
        raise RequestError(
            f"model.backbone is '{cfg.model.backbone}', of family {base.family.name}",
            "Boxes are written as Florence-2's location tokens or as Qwen's JSON",
            f"Use one of the families {', '.join(FAMILIES)}",
        )
