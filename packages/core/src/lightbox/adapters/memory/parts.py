"""What all families share: the load of a step, token rows with images in their places, one layer, masks."""

from collections.abc import Callable
from dataclasses import dataclass

from lightbox.adapters.memory import davit, shapes, towers
from lightbox.adapters.memory.setting import FLOAT32
from lightbox.adapters.memory.shapes import Config, Shape
from lightbox.adapters.memory.step import Step
from lightbox.adapters.memory.tape import Storage, Value
from lightbox.backbones.families import Family

INPUTS, LOGITS, KEPT, VISION = "inputs and masks", "logits", "kept layer inputs", "vision"
INTEGER = 8


@dataclass(frozen=True)
class Load:
    """What one micro-batch is.

    Args:
        sequences: rows, b.
        tokens: length of each, image tokens included; of the prompt for an encoder-decoder.
        supervised: target tokens a row.
        visual: image tokens a row that the language model reads.
        images: images (or tiles) a row.
        patches: what the tower makes of the images of a row, for Qwen's towers.
        image_px: side of an image, for Florence-2's tower.
        is_padded: True where rows differ in length, so that attention needs a mask.
        checkpoints: True where layers of the language model keep only their input.
    """

    sequences: int
    tokens: int
    supervised: int
    visual: int = 0
    images: int = 1
    patches: int = 0
    image_px: int = 0
    is_padded: bool = False
    checkpoints: bool = False

    @property
    def rows(self) -> int:
        """Tokens of all rows, M."""
        return self.sequences * self.tokens


def embedded(step: Step, rows: int, vocabulary: int, width: int, table: str) -> Value:
    """Rows of the token table; its gradient is as large as the table."""
    path, _, name = table.removesuffix(".weight").rpartition(".")
    with step.within(path, "embeddings"):
        learned = step.weight(f"{name}.weight", vocabulary * width)
    return step.run([], (rows, width, step.setting.item), weights=learned)


def placed(step: Step, config: Config, text: Shape, family: Family, load: Load) -> tuple[Value, list[Value]]:
    """Token rows with image tokens in their places; and what the tower's output object keeps in memory."""
    width = text.get("hidden_size") or text.d_model
    x = embedded(step, load.rows, text.vocab_size, width, family.embeddings)
    if text.model_type == "gemma3_text":
        x = step.scaled(x)
    if load.images == 0:
        return x, []
    images, tower_outputs = _vision(step, config, family, load, width)
    x = step.run([x, images], (x.rows, x.width, x.item), saves=[step.allocate(load.rows * width)])
    return x, [*tower_outputs, images]


def _vision(step: Step, config: Config, family: Family, load: Load, width: int) -> tuple[Value, list[Value]]:
    shape, images = shapes.vision_of(config), load.sequences * load.images
    with step.counted_as(VISION):
        with step.within(family.vision, "vision"):
            if step.setting.trains_all:
                tower_outputs = _tower(step, config, family, shape, load, images)
            else:
                with step.without_graph():
                    tower_outputs = _tower(step, config, family, shape, load, images)
        with step.within(family.projector, "projector"):
            place = shapes.whole(config).get("vision_feature_layer", -1)
            x = step.cast(tower_outputs[place], FLOAT32) if step.is_copied else tower_outputs[place]
            result = step.cast(_projected(step, config, family, x, images, shape, width), step.setting.item)
            del x
        tokens = load.sequences * load.visual
        return step.run([result], (tokens, width, result.item)), tower_outputs


def _tower(step: Step, config: Config, family: Family, shape: Shape, load: Load, images: int) -> list[Value]:
    if family.name.startswith("qwen"):
        is_newer = family.name == "qwen2_5_vl"
        return [towers.qwen_vit(step, load.sequences * load.patches, images, shape, is_newer=is_newer)]
    if family.name == "florence2":
        return [davit.davit(step, images, load.image_px, shape)]
    read_layer = shapes.whole(config).get("vision_feature_layer", -1)
    return towers.vit(step, images, shape, is_clip=shape.model_type == "clip_vision_model", read_layer=read_layer)


def _projected(step: Step, config: Config, family: Family, x: Value, images: int, shape: Shape, width: int) -> Value:
    if family.name.startswith("qwen"):
        return towers.qwen_merger(step, x, shape, is_newer=family.name == "qwen2_5_vl")
    if family.name == "florence2":
        return davit.florence_projector(step, x, images, shape)
    top = shapes.whole(config)
    if family.name == "gemma3":
        x = step.copied(x)
        x = step.run([x], (images * top.mm_tokens_per_image, x.width, x.item), saves=[x])
        x = step.rms_norm(x, "mm_soft_emb_norm", offset=True)
        learned = step.weight("mm_input_projection_weight", x.width * width)
        return step.run([x], (x.rows, width, x.item), saves=[x] if learned else [], weights=learned)
    if family.name == "llava_next":
        step.weight("image_newline", width)
    x = step.linear(x, width, "linear_1", has_bias=top.multimodal_projector_bias)
    return step.linear(step.activation(x, "gelu"), width, "linear_2", has_bias=top.multimodal_projector_bias)


def run_layer(step: Step, load: Load, scope: str, reads: list[Value], run: Callable[[], Value]) -> Value:
    """One layer, plain or checkpointed; its scope holds again when it is run a second time."""
    path = f"{step.scope}.{scope}"

    def scoped() -> Value:
        before = step.scope, step.group
        step.scope, step.group = path, "linears"
        try:
            return run()
        finally:
            step.scope, step.group = before

    if not (load.checkpoints and step.records):
        return scoped()
    for value in reads:
        value.storage.move(KEPT)
    return step.checkpointed(scoped, reads)


def pair_mask(step: Step, load: Load, length: int, other: int) -> Storage | None:
    """One byte for each pair of positions, b·t·s, where rows differ in length; None where they do not."""
    return step.allocate(load.sequences * length * other, INPUTS) if load.is_padded else None
