"""A Florence-2 that selects from a description what fits the image, in the place of reading all of it in the prompt.

After StructuralGLIP (arXiv 2502.16223): a description goes through the encoder alone, and its states are a bank; image
and name go through it together; patches select words, and words that were selected are read with the rest. There, each
layer of a detector has a bank and a selection of its own. Here there is one, behind the encoder, since a decoder that
reads the encoder's last states writes the answers of this family.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from lightbox.backbones import rows
from lightbox.backbones.florence2 import Florence2OnFeatures
from lightbox.backbones.rows import VlmBatch

N_PATCHES = 5
"""Patches that select words: those most alike to the bank. StructuralGLIP takes five of its coarsest level."""


def select_words(
    patches: Float[Tensor, "b p d"], bank: Float[Tensor, "b m d"], is_word: Bool[Tensor, "b m"], n_words: int
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Places of the words that fit the image best, in the order of the description, and which of them are words.

    Args:
        patches: what the encoder makes of the image beside the name.
        bank: what it makes of the description alone.
        is_word: False for padding and the frame of the description.
        n_words: most words of each row, at most m; a row with fewer has places that are none.
    """
    likeness = einsum(F.normalize(patches, dim=-1), F.normalize(bank, dim=-1), "b p d, b m d -> b p m")
    likeness = likeness.masked_fill(~is_word[:, None], -2.0)  # below any cosine
    best = likeness.amax(dim=2).topk(min(N_PATCHES, patches.shape[1]), dim=1).indices
    by_best = likeness.gather(1, best[..., None].expand(-1, -1, bank.shape[1])).amax(dim=1)
    places = by_best.topk(min(n_words, bank.shape[1]), dim=1).indices.sort(dim=1).values
    return places, is_word.gather(1, places)


class Florence2WithBank(Florence2OnFeatures):
    """A Florence-2 on features of its tower whose prompt holds a name and, behind a separator, a description.

    Args:
        separator: between the two; a prompt without it has no description.
        n_words: tokens of the description that are selected, >= 1.
        parts: see `Reader`.
    """

    def __init__(self, *parts: Any, separator: str, n_words: int, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.separator, self.n_words = separator, n_words

    def prepare(
        self,
        images: Float[Tensor, "b p c"] | None,
        prompts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        max_tokens: int = rows.UNLIMITED,
        padding: str = "right",
    ) -> VlmBatch:
        """See `Florence2OnFeatures.prepare`; descriptions stand beside the prompts, in fields of their own."""
        parts = [prompt.partition(self.separator) for prompt in prompts]
        names = [name for name, _, _ in parts]
        batch = super().prepare(images, names, targets, max_tokens=max_tokens, padding=padding)
        ids = [self.text_ids(description, is_first=True) for _, _, description in parts]
        rows.check_lengths(
            [(len(row), 0) for row in ids], limit=max_tokens, context=self.context_tokens, is_joined=False
        )
        bank = rows.padded([self._typed({"input_ids": row}) for row in ids], self.tokenizer.pad_token_id, side="right")
        for name, value in bank.items():
            batch.inputs[f"bank_{name}"] = value
        return batch

    def inputs_of(self, batch: VlmBatch) -> dict[str, Any]:
        """What the decoder reads: states of image and name, and behind them those of the selected words."""
        inputs = dict(batch.inputs)
        ids, mask = inputs.pop("bank_input_ids"), inputs.pop("bank_attention_mask")
        is_image = inputs["input_ids"] == self.image_token_id
        inputs = super().inputs_of(VlmBatch(inputs))
        encoder = self.core.get_encoder()
        states = encoder(inputs_embeds=inputs.pop("inputs_embeds"), attention_mask=inputs["attention_mask"])[0]
        bank = encoder(inputs_embeds=self.core.get_input_embeddings()(ids), attention_mask=mask)[0]
        is_word = mask.bool() & ~torch.isin(ids, ids.new_tensor([self.tokenizer.bos_token_id, self.end_id]))
        if is_image.any():  # the mean of all patches stands before them
            seen = states[is_image].reshape(len(ids), -1, states.shape[-1])[:, 1:]
        else:  # without an image the first token of the name selects, which rows of a batch share no padding with
            seen = states[:, :1]
        places, are_words = select_words(seen, bank, is_word, self.n_words)
        words = bank.gather(1, places[..., None].expand(-1, -1, bank.shape[-1]))
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], are_words.long()], dim=1)
        return inputs | {"encoder_outputs": BaseModelOutput(last_hidden_state=torch.cat([states, words], dim=1))}

    def generation_inputs(self, batch: VlmBatch) -> dict[str, Any]:
        """The same."""
        return self.inputs_of(batch)
