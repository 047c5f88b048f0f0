"""Published models in miniature: the real configuration and classes, small in width, depth, vocabulary and image size.

`save_shrunk` writes what `save_pretrained` writes for the real one: safetensors, configuration, processor, tokenizer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    BitImageProcessor,
    CLIPImageProcessor,
    DetrImageProcessor,
    Florence2Processor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GenerationConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from lightbox.backbones.published import PUBLISHED, merged, shrunk_values
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.testing.shrunk_tokenizers import make_florence, make_gemma, make_llama, make_qwen, make_t5

CHATS = {
    "vicuna": ("", "", "USER: ", "<image>\n", " ", "ASSISTANT:"),
    "mistral": ("", "", "[INST] ", "<image>\n", " [/INST]", ""),
    "qwen": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        "",
        "<|im_start|>user\n",
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "gemma": (
        "<bos>",
        "",
        "<start_of_turn>user\n",
        "<start_of_image>",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
}
"""What stands before the first turn, before an answer, before a question, for an image, after a turn, at the end."""


def real_config(name: str) -> PreTrainedConfig:
    """The configuration of a published model, by its name in `PUBLISHED`."""
    return _as_config(PUBLISHED[name].config)


def shrunk_config(name: str) -> PreTrainedConfig:
    """The same with small width, depth, vocabulary, positions and images; special tokens have new ids."""
    return _as_config(shrunk_values(name))


def build(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The published model's class around a configuration, on torch's default device."""
    with quiet_loading():
        return getattr(transformers, PUBLISHED[name].model_class)(config)


def save_shrunk(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the small model with random weights, its processor and tokenizer; about 1 MB.

    Args:
        name: a key of `PUBLISHED`.
        folder: created where it is missing.
        seed: of the weights.
    """
    with torch.random.fork_rng(), quiet_loading():
        torch.manual_seed(seed)
        model = build(name, shrunk_config(name))
        _wake(model)
        if model.can_generate():
            model.generation_config = _generation(name, model.config)
        model.save_pretrained(folder)
        PROCESSORS[name]().save_pretrained(folder)
    return Path(folder)


def _as_config(values: Mapping[str, Any]) -> PreTrainedConfig:
    with quiet_loading():
        return AutoConfig.for_model(**merged(values, {}))


def _wake(model: PreTrainedModel) -> None:
    """Give matrices that start at zero or next to it (position tables) a usual spread."""
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.detach().std() < 1e-3:
            torch.nn.init.normal_(parameter, std=0.02)


def _generation(name: str, config: PreTrainedConfig) -> GenerationConfig:
    """What generation_config.json gives: token ids and settings of decoding."""
    text = config.get_text_config(decoder=True)
    ids = {key: getattr(text, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    own = {key: getattr(config, key) for key in ids if getattr(config, key, None) is not None}
    start = getattr(text, "decoder_start_token_id", getattr(config, "decoder_start_token_id", None))  # T5's is outside
    if name.startswith("qwen"):
        own["pad_token_id"] = text.bos_token_id
        own["eos_token_id"] = [text.eos_token_id, text.bos_token_id]
    own |= PUBLISHED[name].decoding
    return GenerationConfig(**(ids | own), **({} if start is None else {"decoder_start_token_id": start}))


def _chat(kind: str) -> str:
    """A Jinja template for turns whose content is a text or a list of images and texts."""
    before, answer, question, image, after, last = CHATS[kind]
    return (
        f"{before}{{% for message in messages %}}"
        f"{{{{ {question!r} if message['role'] == 'user' else {answer + last!r} }}}}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        f"{{{{ {image!r} if part['type'] == 'image' else part['text'] }}}}"
        f"{{% endfor %}}{{% endif %}}{{{{ {after!r} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {last!r} }}}}{{% endif %}}"
    )


def _square(image_px: int) -> dict[str, int]:
    return {"height": image_px, "width": image_px}


def _llava(kind: str) -> LlavaProcessor:
    images = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=_square(56))
    return LlavaProcessor(
        images,
        make_llama(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_chat(kind),
    )


def _llava_next() -> LlavaNextProcessor:
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 56},
        crop_size=_square(56),
        image_grid_pinpoints=PUBLISHED["llava-next"].shrink["image_grid_pinpoints"],
    )
    return LlavaNextProcessor(
        images,
        make_llama(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_chat("mistral"),
    )


def _qwen(processor_class: type) -> Qwen2VLProcessor | Qwen2_5_VLProcessor:
    pixels = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
    videos = Qwen2VLVideoProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112})
    return processor_class(Qwen2VLImageProcessor(**pixels), make_qwen(), videos, chat_template=_chat("qwen"))


def _gemma() -> Gemma3Processor:
    images = Gemma3ImageProcessor(size=_square(112))
    return Gemma3Processor(images, make_gemma(), chat_template=_chat("gemma"), image_seq_length=4)


def _florence() -> Florence2Processor:
    images = CLIPImageProcessor(
        size=_square(96),
        crop_size=_square(96),
        do_center_crop=False,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
        image_seq_length=10,
    )
    return Florence2Processor(images, make_florence())


PROCESSORS = {
    "llava-1.5-7b": lambda: _llava("vicuna"),
    "llava-med": lambda: _llava("mistral"),
    "llava-next": _llava_next,
    "qwen2-vl-7b": lambda: _qwen(Qwen2VLProcessor),
    "qwen2.5-vl-7b": lambda: _qwen(Qwen2_5_VLProcessor),
    "medgemma-4b": _gemma,
    "florence-2-base": _florence,
    "unifiedqa-t5-base": make_t5,
    "clip-vit-l-336": lambda: CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=_square(56)),
    "siglip-so400m": lambda: SiglipImageProcessor(size=_square(56)),
    "medsiglip-448": lambda: SiglipImageProcessor(size=_square(56)),
    "dinov2-base": lambda: BitImageProcessor(size={"shortest_edge": 64}, crop_size=_square(56)),
    "detr-resnet-50": lambda: DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}),
    "detr-resnet-101": lambda: DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}),
}
