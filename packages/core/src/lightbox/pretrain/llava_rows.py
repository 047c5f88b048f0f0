"""Many turns about one image in one row of tokens, each turn blind to the others, and the loss over their answers.

The image comes once; every turn sees it and itself, and counts its positions from the image's end. So each turn is
computed exactly as if it stood alone, at a fraction of the cost.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from lightbox.losses.language import IGNORED
from lightbox.pretrain.llava_tasks import ChatSet
from lightbox.pretrain.t5 import pad
from lightbox.pretrain.tower import normalise

PADDING, IMAGE_TURN, CAPTION_TURN = 0, 1, 2
"""Turn numbers of tokens; questions count on from 3."""


class ChatRows:
    """Tokenised turns and their collation.

    A batch is `pixel_values` (b, 3, h, w), `input_ids` (b, t), `turns` (b, t; turn numbers), `position_ids` (b, t) and
    `labels` (b, t; the token that comes next where it belongs to an answer, else -100).

    Args:
        data: images and turns.
        tokenizer: the tiny llava's.
        prefix: what comes before every turn, the image tokens included.
        assistant: the token before an answer.
    """

    def __init__(
        self, data: ChatSet, tokenizer: PreTrainedTokenizerFast, *, prefix: Sequence[str], assistant: str
    ) -> None:
        self.data = data
        ids = tokenizer.get_vocab()
        self.prefix = [ids[token] for token in prefix]
        self.assistant, self.eos = ids[assistant], ids[str(tokenizer.eos_token)]
        flat = [turn for turns in data.turns for turn in turns]
        prompts = iter(tokenizer([turn.prompt for turn in flat], add_special_tokens=False)["input_ids"])
        answers = iter(tokenizer([turn.answer for turn in flat], add_special_tokens=False)["input_ids"])
        self.texts = [[(next(prompts), next(answers)) for _ in turns] for turns in data.turns]
        self.lengths = [sum(len(p) + len(a) + 2 for p, a in texts) for texts in self.texts]

    def __len__(self) -> int:
        return len(self.texts)

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Pad some rows to the longest of them."""
        columns = list(zip(*(self._row(i) for i in indices), strict=True))
        fills = {"input_ids": 0, "labels": IGNORED, "turns": PADDING, "position_ids": 0}
        batch = {name: pad(list(rows), fill) for (name, fill), rows in zip(fills.items(), columns, strict=True)}
        return {"pixel_values": normalise(self.data.pixels(indices)), **batch}

    def _row(self, index: int) -> tuple[list[int], list[int], list[int], list[int]]:
        start = len(self.prefix)
        ids, labels = list(self.prefix), [IGNORED] * start
        turns, positions = [IMAGE_TURN] * start, list(range(start))
        for number, (prompt, answer) in enumerate(self.texts[index], CAPTION_TURN):
            ids += [*prompt, self.assistant, *answer, self.eos]
            labels += [*[IGNORED] * len(prompt), *answer, self.eos, IGNORED]
            turns += [number] * (len(ids) - len(turns))
            positions += range(start, start + len(ids) - len(positions))
        return ids, labels, turns, positions


def turn_mask(turns: Tensor) -> Tensor:
    """Who sees whom, bool (b, 1, t, t): what came before, of the same turn or of the image.

    Args:
        turns: turn number of each token, (b, t).
    """
    same = (turns[:, :, None] == turns[:, None, :]) | (turns[:, None, :] == IMAGE_TURN)
    return same.tril()[:, None]


def answer_logits(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (n, v) of the positions that carry a label, and where those are, bool (b, t)."""
    hidden = model.model(
        input_ids=batch["input_ids"],
        pixel_values=batch["pixel_values"],
        attention_mask=turn_mask(batch["turns"]),
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state
    is_label = batch["labels"] != IGNORED
    return model.lm_head(hidden[is_label]), is_label


def chat_loss(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict]:
    """Summed cross-entropy of captions and answers in nats, the number of their tokens, and the mean of either."""
    logits, is_label = answer_logits(model, batch)
    losses = F.cross_entropy(logits, batch["labels"][is_label], reduction="none")  # n
    is_caption = batch["turns"][is_label] == CAPTION_TURN
    means = {"caption": losses[is_caption].mean().detach(), "answer": losses[~is_caption].mean().detach()}
    return losses.sum(), is_label.sum(), means
