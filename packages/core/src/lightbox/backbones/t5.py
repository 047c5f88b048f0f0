"""T5 and its fine-tunes (UnifiedQA): text in, text out, by the same interface as the families that read images.

`FusedT5Backbone` is a T5 that a paper gave a fusion with a frozen tower: its images are that tower's features.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from lightbox.backbones import rows
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import Conversation
from lightbox.backbones.rows import IGNORED, VlmBatch


class T5Backbone(Backbone):
    """A text-only encoder-decoder; a prompt is read as it is, with the end token behind it."""

    @property
    def context_tokens(self) -> int | None:
        """None: positions are relative."""
        return None

    @property
    def text_tokens(self) -> str:
        """The sentinels, which T5 was pretrained to read as gaps in a text."""
        return r"<extra_id_\d+>"

    def write(self, conversation: Conversation) -> list[str]:
        """The question itself; there is no template."""
        return ["\n".join(turn.text for turn in conversation.turns if turn.role != "assistant")]

    def text_ids(self, text: str, *, is_first: bool) -> list[int]:
        """Ids with the end token, which T5's own tokenizer writes and one trained here may not."""
        return self.target_ids(text)


class FusedT5Backbone(T5Backbone):
    """A T5 that reads features of a frozen tower beside its text, b p c, as the keyword `vision`.

    Its model offers `encode(input_ids, attention_mask, vision)`: what the decoder reads, b t d.

    Args:
        parts: see `Backbone`.
        pad_targets_to: slots of a target; pads up to there count as targets. 0 leaves pads out of the loss.
    """

    def __init__(self, *parts: Any, pad_targets_to: int = 0, **more: Any) -> None:
        super().__init__(*parts, **more)
        self._pad_targets_to = pad_targets_to
        self._ids: dict[str, list[int]] = {}

    def prepare(
        self,
        images: Float[Tensor, "b p c"] | None,
        prompts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        max_tokens: int = rows.UNLIMITED,
        padding: str = "right",
    ) -> VlmBatch:
        """Turn texts and features into a batch on the CPU; see `Backbone.prepare`."""
        rows.check_counts(images, prompts, targets)
        pad_id = self.tokenizer.pad_token_id
        input_ids = rows.stacked(self._rows(prompts), pad_id, side="right")
        # no text has the pad token in it, so ids say what is padding
        inputs = {"input_ids": input_ids, "attention_mask": (input_ids != pad_id).long()}
        if images is not None:
            inputs["vision"] = images
        if targets is None:
            return VlmBatch(inputs)
        labels = label_rows(self._rows(targets), pad_id=pad_id, pad_to=self._pad_targets_to)
        inputs["decoder_input_ids"] = rows.shifted_right(labels, start_id=self.decoder_start_id, pad_id=pad_id)
        return VlmBatch(inputs, labels)

    def answer(
        self,
        images: Float[Tensor, "b p c"] | None,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 8,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Answer greedily, in the order of the prompts; see `Backbone.answer`.

        Prompts of one length share a batch, so padding is small; the result does not depend on it beyond rounding.
        """
        self._check_answer(max_new_tokens, stop)
        lengths = [len(row) for row in self._rows(prompts)]
        # sorted is stable: the same prompts make the same batches
        order = sorted(range(len(prompts)), key=lambda place: lengths[place])
        texts = [""] * len(prompts)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            seen = None if images is None else images[places]
            batch = self.prepare(seen, [prompts[place] for place in places])
            answers = self.generate(batch, max_new_tokens=max_new_tokens, stop=stop).texts
            for place, text in zip(places, answers, strict=True):
                texts[place] = text
        return texts

    def generation_inputs(self, batch: VlmBatch) -> dict[str, Any]:
        """What the decoder reads, made here, since `generate` itself would call the encoder without the fusion."""
        encoded = BaseModelOutput(last_hidden_state=self.core.encode(**batch.inputs))
        return {"encoder_outputs": encoded, "attention_mask": batch.inputs["attention_mask"]}

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts with the end token; each distinct text is tokenised once, since an epoch comes many times."""
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        if new:
            self.check_texts(new)
            ids = self.tokenizer(new, add_special_tokens=False)["input_ids"]
            self._ids |= {text: [*row, self.end_id] for text, row in zip(new, ids, strict=True)}
        return [self._ids[text] for text in texts]


def label_rows(targets: Sequence[list[int]], *, pad_id: int, pad_to: int = 0) -> Int[Tensor, "b n"]:
    """Targets as labels.

    Args:
        targets: token ids, ending with the end token.
        pad_id: the padding token.
        pad_to: slots; pads up to there keep `pad_id` and count as targets. With 0 they get the label -100, so they
            carry no loss.
    """
    if not pad_to:
        return rows.stacked(targets, IGNORED, side="right")
    return rows.stacked([row + [pad_id] * (pad_to - len(row)) for row in targets], pad_id, side="right")
