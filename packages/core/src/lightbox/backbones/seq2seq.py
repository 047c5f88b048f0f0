"""T5 models and their tokenizers by name: the tiny T5, a local directory such as UnifiedQA-T5-base, or a hub id."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5ForConditionalGeneration
from transformers.utils import logging

from lightbox.backbones import weights
from lightbox.errors import RequestError

FAMILY = "t5"


def load_seq2seq(
    name: str,
    revision: str = "",
    *,
    model_class: type[T5ForConditionalGeneration] = T5ForConditionalGeneration,
    key: str = "model.backbone",
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
        key: config key that gave the name, for messages.
        allow_missing: regular expression, matched at the start of a name, of parameters that the file may lack.
        dtype: of the weights, as torch spells it.
        settings: fields of the configuration to set, for example `dropout_rate=0.0`, and what else `from_pretrained`
            takes, for example a `quantization_config`.

    Raises:
        RequestError: not there, not a T5, without safetensors, weights that do not fit the class, or a tokenizer that
            does not fit the model.
    """
    place = weights.locate(name, revision=revision, key=key)
    config = weights.read_config(name, revision=revision, key=key)
    if config is not None and config.get("model_type") != FAMILY:
        raise RequestError(
            f"{key} is '{name}', a {config.get('model_type', 'model without model_type')}",
            "This paper fine-tunes a T5 encoder-decoder",
            f"Set {key} to a T5 directory, for example tiny/t5 or UnifiedQA-T5-base",
        )
    shared = {"revision": place.revision} if place.revision else {}
    tokenizer = AutoTokenizer.from_pretrained(place.source, trust_remote_code=False, **shared)
    with quiet_loading():
        model, found = model_class.from_pretrained(
            place.source,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            **shared,
            **settings,
        )
    _check_weights(found, model_class, f"{key} is '{name}'", allow_missing)
    _check_pair(model, tokenizer, name, key)
    return model.eval(), tokenizer


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


def _check_weights(found: dict[str, Any], model_class: type, given: str, allow_missing: str) -> None:
    missing = sorted(n for n in found["missing_keys"] if not allow_missing or not re.match(allow_missing, n))
    unexpected, reshaped = sorted(found["unexpected_keys"]), sorted(str(key) for key in found["mismatched_keys"])
    if missing or unexpected or reshaped:
        lists = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        raise RequestError(
            f"{given}, read as {model_class.__name__}",
            "Its tensors do not fit; " + "; ".join(f"{title}: {', '.join(n) or 'none'}" for title, n in lists.items()),
            "Use weights of that architecture",
        )


def _check_pair(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, name: str, key: str) -> None:
    if len(tokenizer) > model.config.vocab_size:
        raise RequestError(
            f"{key} is '{name}': {len(tokenizer)} tokens and {model.config.vocab_size} embeddings",
            "A token without an embedding cannot be read",
            "Use the tokenizer that belongs to the model",
        )
    for role in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, role) is None or getattr(tokenizer, role) != getattr(model.config, role):
            raise RequestError(
                f"{key} is '{name}': {role} is {getattr(tokenizer, role)} in the tokenizer and "
                f"{getattr(model.config, role)} in the model",
                "Padding and the end of a text must mean the same to both",
                "Use the tokenizer that belongs to the model",
            )
