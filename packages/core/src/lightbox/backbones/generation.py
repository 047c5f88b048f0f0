"""How tokens are chosen and where a row ends: settings that no checkpoint can change, seeded draws, stop strings.

transformers' `generate` runs the loop. What it leaves open is here: a draw of a row depends on the row's own seed and
not on its neighbours, the log-probability of each chosen token is kept in place of all logits, and each row's length.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.generation import StopStringCriteria, TemperatureLogitsWarper, TopPLogitsWarper

from lightbox.backbones.conversation import Conversation
from lightbox.errors import RequestError


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn in place of the likeliest token.

    Args:
        seeds: one a prompt, >= 0; a row's draws depend on its seed and the number of its sample alone.
        temperature: > 0; logits are divided by it.
        top_p: in (0, 1]; only the likeliest tokens that together have this probability are drawn.
        samples: answers a prompt, >= 1.

    Raises:
        RequestError: a value outside its range.
    """

    seeds: Sequence[int]
    temperature: float = 1.0
    top_p: float = 1.0
    samples: int = 1

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and 0 < self.top_p <= 1 and self.samples >= 1 and min(self.seeds, default=0) >= 0):
            raise RequestError(
                f"temperature {self.temperature}, top_p {self.top_p}, {self.samples} samples",
                "A draw needs a temperature above 0, a top_p in (0, 1], at least one sample and seeds from 0 on",
                "Correct them; leave sampling out for the likeliest answer",
            )


@dataclass(frozen=True)
class Memory:
    """What a next turn continues; see `Backbone.continued`.

    Args:
        conversations: what each row has read.
        tokens: every field of a row that has one value a token, n s, answers included; pads lie between them.
        grids: size of each image in patches for families that place tokens by it, else None.
        cache: keys and values of all tokens but the last.
        cached: columns of the cache; fewer than tokens where images were pruned.
    """

    conversations: list[Conversation]
    tokens: dict[str, Int[Tensor, "n s"]]
    grids: list[Tensor] | None
    cache: Any
    cached: int


@dataclass(frozen=True)
class Generated:
    """Answers, one a row; sample g of prompt i is row i * samples + g.

    Args:
        texts: what was said, cut before the first stop string.
        ids: n t, with the end token where there is one, padded behind.
        is_token: True where an id was chosen, False behind the end.
        logps: of each chosen token under the model itself, before temperature and top_p, in nats; 0 behind the end, and
            for a token that the checkpoint forces (the first of Florence-2).
        states: n t d, what the head read to choose each token; None unless asked for.
        memory: for a next turn; None unless asked for.
    """

    texts: list[str]
    ids: Int[Tensor, "n t"]
    is_token: Bool[Tensor, "n t"]
    logps: Float[Tensor, "n t"]
    states: Float[Tensor, "n t d"] | None = None
    memory: Memory | None = None


def settings_of(own: GenerationConfig, *, max_new_tokens: int, end_id: int, pad_id: int) -> GenerationConfig:
    """Settings under which logits alone decide; see `apart_from`.

    Args:
        own: the checkpoint's; its end tokens stay end tokens, and the first token that its decoder is forced to say
            stays (Florence-2).
        max_new_tokens: longest output.
        end_id: the end token of a target.
        pad_id: what fills rows that have ended.
    """
    end_ids = own.eos_token_id
    # a chat model names several ends, and the one that targets are trained with must be among them
    ends = {end_id, *([] if end_ids is None else [end_ids] if isinstance(end_ids, int) else end_ids)}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=pad_id,
        decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id,
        return_dict_in_generate=True,
    )


@contextmanager
def apart_from(model: Any) -> Iterator[None]:
    """Put the checkpoint's generation settings aside, since transformers fills in from them whatever is left open.

    Qwen2-VL's penalise repetition and Florence-2's search with three beams and end an answer that is cut off.
    """
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class Choice(LogitsProcessor):
    """Chooses each token itself and keeps its log-probability; what it leaves is the choice alone.

    Args:
        sampling: None takes the likeliest.
        max_new_tokens: draws to make ready, one a row and token.
    """

    def __init__(self, sampling: Sampling | None, max_new_tokens: int) -> None:
        self.logps: list[Tensor] = []
        self._draws: Tensor | None = None
        if sampling is not None:
            self._warpers = [TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)]
            draws = [
                # numpy's generator gives the same numbers beside every device, and a longer answer begins alike
                torch.from_numpy(np.random.default_rng([seed, sample]).random(max_new_tokens))
                for seed in sampling.seeds
                for sample in range(sampling.samples)
            ]
            self._draws = torch.stack(draws)

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
        """See transformers; called once a step, with float32 logits."""
        chosen = scores.argmax(dim=-1, keepdim=True)
        if self._draws is not None:
            warped = scores
            for warper in self._warpers:
                warped = warper(input_ids, warped)
            # one number a row, looked up in the sums of probabilities: rows cannot disturb each other
            sums = warped.softmax(dim=-1).double().cumsum(dim=-1)
            draw = self._draws[:, len(self.logps), None].to(scores.device)
            chosen = torch.searchsorted(sums, draw * sums[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
        self.logps.append(scores.log_softmax(dim=-1).gather(1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


class Ends(StoppingCriteria):
    """Ends rows one by one, at an end token or a stop string, and keeps where each ended.

    Args:
        end_ids: end tokens.
        stop: stop strings.
        tokenizer: of the model.
        prompt_tokens: leading positions that are not new.
    """

    def __init__(self, end_ids: Sequence[int], stop: Sequence[str], tokenizer: Any, prompt_tokens: int) -> None:
        self._end_ids, self._prompt_tokens = torch.tensor(end_ids), prompt_tokens
        self._strings = StopStringCriteria(tokenizer, list(stop)) if stop else None
        self.lengths = torch.zeros(0, dtype=torch.long)

    def __call__(self, input_ids: Int[Tensor, "n t"], scores: Any, **_: Any) -> Bool[Tensor, " n"]:
        """True for each row that has ended; see transformers."""
        new = input_ids[:, self._prompt_tokens :]  # a prompt may end with the beginning of a stop string
        has_ended = torch.isin(new[:, -1], self._end_ids.to(new.device))
        if self._strings is not None:
            has_ended |= self._strings(new, scores)
        if not len(self.lengths):
            self.lengths = torch.zeros(len(new), dtype=torch.long, device=new.device)
        self.lengths = torch.where((self.lengths == 0) & has_ended, new.shape[1], self.lengths)
        return self.lengths > 0


class EndsForSome(Ends):
    """Ends the loop for all rows once a share of them have ended, so that the others can go on in a smaller batch.

    Args:
        share: of the rows, in (0, 1].
        parts: as `Ends`.
    """

    def __init__(self, share: float, *parts: Any) -> None:
        super().__init__(*parts)
        self._share = share

    def __call__(self, input_ids: Int[Tensor, "n t"], scores: Any, **more: Any) -> Bool[Tensor, " n"]:
        """True for each row that has ended, or for all; see transformers."""
        has_ended = super().__call__(input_ids, scores, **more)
        return torch.ones_like(has_ended) if has_ended.float().mean() >= self._share else has_ended


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string in it.

    Example:
        >>> cut_at("left lung. Next", [".", "Next"])
        'left lung'
    """
    places = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(places)] if places else text
