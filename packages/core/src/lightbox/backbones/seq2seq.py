"""T5 models and their tokenizers by name: the tiny T5, a local directory such as UnifiedQA-T5-base, or a hub id."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5ForConditionalGeneration
from transformers.utils import logging

from lightbox.backbones import weights
from lightbox.backbones.matching import check_tensors, check_tokenizer
from lightbox.errors import RequestError

FAMILY = "t5"


def load_seq2seq(
    name: str,
    revision: str = "",
    *,
    model_class: type[T5ForConditionalGeneration] = T5ForConditionalGeneration,
    allow_missing: str = "",
    dtype: str = "float32",
    **settings: Any,
) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerBase]:
    """Load a T5 and its tokenizer, in float32 on the CPU unless told otherwise, in evaluation mode.

    Args:
        name: see `weights.locate`.
        revision: full commit hash of a hub id.
        model_class: T5ForConditionalGeneration or a subclass of it. Parameters that the file lacks are initialised by
            the class, from torch's generator; all others keep the file's values.
        allow_missing: regular expression, matched at the start of a name, of parameters that the file may lack.
        dtype: of the weights, as torch spells it.
        settings: fields of the configuration to set, for example `dropout_rate=0.0`, and what else `from_pretrained`
            takes, for example a `quantization_config`.

    Raises:
        RequestError: not there, not a T5, without safetensors, weights that do not fit the class, or a tokenizer that
            does not fit the model.
    """
    place = weights.locate(name, revision=revision)
    config = weights.read_config(name, revision=revision)
    if config is not None and config.get("model_type") != FAMILY:
        raise RequestError(
            f"model.backbone is '{name}', a {config.get('model_type', 'model without model_type')}",
            "This paper fine-tunes a T5 encoder-decoder",
            "Set model.backbone to a T5 directory, for example tiny/t5 or UnifiedQA-T5-base",
        )
    shared = {"revision": place.revision} if place.revision else {}
    tokenizer = AutoTokenizer.from_pretrained(place.source, trust_remote_code=False, **shared)
    with quiet_loading():
        model, loading_info = model_class.from_pretrained(
            place.source,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            **shared,
            **settings,
        )
    request = f"model.backbone is '{name}'"
    # unlike `loading.load`, which lets a file hold more: a fused T5 would drop what it was trained with
    check_tensors(loading_info, model_class.__name__, request, may_lack=allow_missing)
    check_tokenizer(len(tokenizer), model.config.vocab_size, request)
    _check_roles(model, tokenizer, request)
    return model.eval(), tokenizer  # dropout would make a score of loaded weights random


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' bars and load report off the screen: what they say is checked here, or known."""
    level, is_shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if is_shown:
            logging.enable_progress_bar()


def _check_roles(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, request: str) -> None:
    for role in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, role) is None or getattr(tokenizer, role) != getattr(model.config, role):
            raise RequestError(
                f"{request}: {role} is {getattr(tokenizer, role)} in the tokenizer and "
                f"{getattr(model.config, role)} in the model",
                "Padding and the end of a text must mean the same to both",
                "Use the tokenizer that belongs to the model",
            )
