"""What is known of each family of models before any of it is loaded: its class and the names of its parts. No torch.

Part names are module paths of transformers 5.23; a test builds every family on the meta device and looks each one up.
A family is found by `model_type` in config.json, so a fine-tune (LLaVA-Med, Lingshu, MedGemma) needs no entry of its
own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightbox.errors import RequestError

LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BART_LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
# wi is T5 v1.0, as UnifiedQA; wi_0 and wi_1 are v1.1, as Flan
T5_LINEARS = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")


# a file of our own serves each name here; the others are named as their family
_MODULES = {"llava_next": "llava", "qwen2_vl": "qwen_vl", "qwen2_5_vl": "qwen_vl"}


@dataclass(frozen=True)
class Family:
    """One family of image-and-text or text-only generators.

    Args:
        name: ours, and the name in tables.
        model_types: values of `model_type` in config.json.
        model_class: class of transformers that has the language head.
        vision: path of the vision tower, "" for a text-only family.
        projector: path of what maps vision features to the language width; it may lie inside the tower.
        language: path of the language model without its head.
        layers: paths of the lists of its layers, which are checkpointed and adapted.
        embeddings: path of the token table.
        head: path of the language head.
        linears: last names of the linear layers inside `layers` that LoRA adapts.
        codec: coordinate convention of boxes in text, a key of `codecs.CODECS`.
        is_encoder_decoder: True where the prompt is encoded and the target decoded; else one causal row holds both.
    """

    name: str
    model_types: tuple[str, ...]
    model_class: str
    vision: str
    projector: str
    language: str
    layers: tuple[str, ...]
    embeddings: str
    head: str = "lm_head"
    linears: tuple[str, ...] = LLAMA_LINEARS
    codec: str = "fraction"
    is_encoder_decoder: bool = False

    @property
    def module(self) -> str:
        """The module with this family's own code, which a job key covers for the family that a run uses."""
        return f"lightbox.backbones.{_MODULES.get(self.name, self.name)}"

    @property
    def has_vision(self) -> bool:
        """False for a family that reads text only."""
        return bool(self.vision)

    @property
    def kept_in_16_bit(self) -> tuple[str, ...]:
        """Paths that quantisation leaves alone: tower, projector and head, by the names transformers compares.

        transformers 5.23 matches a skip entry against whole module paths, so `vision_tower` or `visual` alone matches
        nothing and the tower is quantised without a word; and any entry clears its own default, the head.
        """
        # a text-only family has neither tower nor projector
        return tuple(part for part in (self.vision, self.projector, self.head) if part)


def _causal(name: str, model_types: tuple[str, ...], model_class: str, **changes: Any) -> Family:
    """A causal family with the part names that most share since transformers 5."""
    parts = {
        "vision": "model.vision_tower",
        "projector": "model.multi_modal_projector",
        "language": "model.language_model",
        "layers": ("model.language_model.layers",),
        "embeddings": "model.language_model.embed_tokens",
    }
    return Family(name, model_types, model_class, **(parts | changes))


_QWEN_PARTS = {"vision": "model.visual", "projector": "model.visual.merger"}
FAMILIES = (
    _causal("llava", ("llava",), "LlavaForConditionalGeneration"),
    _causal("llava_next", ("llava_next",), "LlavaNextForConditionalGeneration"),
    _causal("qwen2_vl", ("qwen2_vl",), "Qwen2VLForConditionalGeneration", codec="per_mille", **_QWEN_PARTS),
    _causal("qwen2_5_vl", ("qwen2_5_vl",), "Qwen2_5_VLForConditionalGeneration", codec="pixels", **_QWEN_PARTS),
    _causal("gemma3", ("gemma3",), "Gemma3ForConditionalGeneration"),
    _causal(
        "florence2",
        ("florence2",),
        "Florence2ForConditionalGeneration",
        layers=("model.language_model.encoder.layers", "model.language_model.decoder.layers"),
        embeddings="model.language_model.shared",
        linears=BART_LINEARS,
        codec="florence_bins",
        is_encoder_decoder=True,
    ),
    Family(
        name="t5",
        model_types=("t5",),
        model_class="T5ForConditionalGeneration",
        vision="",
        projector="",
        language="",
        layers=("encoder.block", "decoder.block"),
        embeddings="shared",
        linears=T5_LINEARS,
        is_encoder_decoder=True,
    ),
)
BY_MODEL_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def family_of(config: Mapping[str, Any], *, name: str, key: str = "model.backbone") -> Family:
    """The family of weights, from their config.json.

    Args:
        config: config.json as a dictionary.
        name: what the user gave, for messages.
        key: config key that gave the name, for messages.

    Raises:
        RequestError: a family that is not known here, or a model that brings its own code.
    """
    model_type = config.get("model_type", "")
    if model_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[model_type]
    request = f"{key} is '{name}', of model_type '{model_type or 'none'}'"
    known_types = ", ".join(BY_MODEL_TYPE)
    # said before the list of families: whoever brings code should not think that a name is missing
    if "auto_map" in config:
        raise RequestError(
            request,
            "Its config.json asks for code that comes with the weights, and such code can do anything on this machine",
            f"Use a version that transformers has itself; the families known here are {known_types}",
        )
    raise RequestError(request, f"The families known here are {known_types}", f"Set {key} to weights of one of them")
