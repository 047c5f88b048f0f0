"""Greedy generation settings that no checkpoint can change, and stop strings."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria


def greedy(model_config: GenerationConfig, *, max_new_tokens: int, end_id: int, pad_id: int) -> GenerationConfig:
    """Settings of plain greedy decoding.

    Every setting that would change the choice is given its neutral value, because what is left out is taken from the
    checkpoint: Qwen2-VL's penalises repetition and Florence-2's searches with three beams.

    Args:
        model_config: the checkpoint's; its end tokens stay end tokens.
        max_new_tokens: longest output.
        end_id: the end token of a target.
        pad_id: what fills rows that have ended.
    """
    end_ids = model_config.eos_token_id
    # a chat model names several ends, and the one that targets are trained with must be among them
    ends = {end_id, *([] if end_ids is None else [end_ids] if isinstance(end_ids, int) else end_ids)}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        temperature=1.0,
        top_k=50,  # the default: unread without sampling, and any other value draws a warning
        top_p=1.0,
        repetition_penalty=1.0,
        encoder_repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        encoder_no_repeat_ngram_size=0,
        min_length=0,
        early_stopping=False,
        length_penalty=1.0,
        eos_token_id=sorted(ends),
        pad_token_id=pad_id,
        use_cache=True,
    )


class StopAtText(StoppingCriteria):
    """Ends a row once its new text holds a stop string.

    Args:
        stop: the strings.
        read: new ids of a row -> text.
        prompt_tokens: leading positions that are not new.
    """

    def __init__(self, stop: Sequence[str], read: Callable[[Tensor], str], prompt_tokens: int) -> None:
        self.stop, self.read, self.prompt_tokens = tuple(stop), read, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: object) -> Tensor:
        """True for each row that may end; see transformers."""
        # decoded whole: a stop string may lie across two tokens
        texts = [self.read(row) for row in input_ids[:, self.prompt_tokens :]]
        ended = [any(string in text for string in self.stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string in it.

    Example:
        >>> cut_at("left lung. Next", [".", "Next"])
        'left lung'
    """
    places = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(places)] if places else text
