"""One interface for every family: prepare, loss, sequence log-probabilities, generate, vision tokens.

A family is a subclass that overrides the hooks below the line: how a prompt with an image is written, how the
processor is called, which ids a target becomes, what one image costs in tokens, and how vision tokens are taken out.
Everything that must be exact (labels, padding, selection of rows, greedy settings) is here, once.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from lightbox.backbones import rows
from lightbox.backbones.families import Family
from lightbox.backbones.generation import StopAtText, cut_at, greedy
from lightbox.backbones.rows import Row, VlmBatch
from lightbox.errors import RequestError
from lightbox.losses.supervised import row_cross_entropy, row_logps, rows_before, supervised_rows

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclass(frozen=True)
class VisionTokens:
    """What a tower and its projector make of images, one entry an image, since a family may spend unequal counts.

    Args:
        tokens: p d after the projector, as the language model reads them.
        taps: layer of the tower, as asked for -> the output of that layer for each image, p c without class tokens
            (n p c where an image is cut into n tiles).
        grids: rows and columns of the tokens of each image.
    """

    tokens: list[Float[Tensor, "p d"]]
    taps: dict[int, list[Tensor]]
    grids: list[tuple[int, int]]


class Backbone:
    """A pretrained generator with its processor.

    Args:
        model: a model of transformers, or a wrapper around one (peft, data parallel); see `with_model`.
        processor: turns text and images into inputs; a tokenizer for a text-only family.
        family: names of parts.
        attention: what computes attention, and why: it has `name` and `reason`.
        name, revision: what was loaded.
        digest: identifies the weights, for job keys.
        quant: none, nf4 or int8.
        dtype: of weights that are not quantised, and of image inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        family: Family,
        *,
        attention: Any,
        name: str,
        revision: str,
        digest: str,
        quant: str,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.processor, self.family, self.attention = model, processor, family, attention
        self.name, self.revision, self.digest, self.quant, self.dtype = name, revision, digest, quant, dtype
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masks and labels say what is padding

    def with_model(self, model: nn.Module) -> Self:
        """The same backbone around a wrapped model: forward and generation go through the wrapper."""
        other = copy.copy(self)
        other.model = model
        return other

    @property
    def core(self) -> Any:
        """The model of transformers inside any wrapper."""
        model: Any = self.model
        while True:
            if hasattr(model, "get_base_model"):
                model = model.get_base_model()
            elif isinstance(getattr(model, "module", None), nn.Module):
                model = model.module
            else:
                return model

    @property
    def device(self) -> torch.device:
        """Where the inputs of the model belong."""
        return self.part(self.family.embeddings).weight.device

    @property
    def context_tokens(self) -> int | None:
        """Longest row that the language model has positions for; None where positions are relative."""
        return getattr(self.core.config.get_text_config(), "max_position_embeddings", None)

    def part(self, path: str) -> Any:
        """A module of the model by its path in `family`."""
        return self.core.get_submodule(path)

    def prepare(
        self,
        images: Sequence[Image.Image] | None,
        prompts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        max_tokens: int,
        padding: str = "right",
    ) -> VlmBatch:
        """Turn items into a batch on the CPU.

        A prompt and its target are tokenised apart and joined, so the prompt's ids are those that generation reads,
        and labels cover exactly the target and its end token.

        Args:
            images: one an item, 8-bit grey or colour; None for text only.
            prompts: what the user says, without the family's template.
            targets: what the model is to answer; None for generation.
            max_tokens: longest row, image tokens and end token included; prompt and target together for a causal
                model, each for an encoder-decoder. Nothing is cut: a longer row is refused.
            padding: side, "right" for training and "left" for generation with a causal model.

        Raises:
            RequestError: counts that differ, a row that is too long for `max_tokens` or the context, image tokens that
                do not fit the image, or images that are not 8-bit.
        """
        _check_counts(images, prompts, targets)
        texts = [self.write_prompt(prompt, has_image=images is not None) for prompt in prompts]
        encoded = self.encode_prompts(None if images is None else [_in_colour(image) for image in images], texts)
        prompt_rows = rows.unpadded(encoded)
        self._check_image_tokens(prompt_rows, encoded, has_images=images is not None)
        ends = None if targets is None else [self.target_ids(target) for target in targets]
        self._check_lengths(prompt_rows, ends, max_tokens)
        rest = {
            name: value.to(self.dtype) if value.is_floating_point() else value
            for name, value in encoded.items()
            if name not in rows.TOKEN_FIELDS
        }
        pad_id = self.tokenizer.pad_token_id
        if ends is None:
            return VlmBatch(rows.padded(prompt_rows, pad_id, side=padding) | rest)
        if self.family.is_encoder_decoder:
            labels = rows.stacked(ends, rows.IGNORED, side="right")
            rest["decoder_input_ids"] = rows.shifted_right(labels, start_id=self.decoder_start_id, pad_id=pad_id)
        else:
            prompt_rows = [rows.extended(row, end) for row, end in zip(prompt_rows, ends, strict=True)]
            labels = rows.labelled(prompt_rows, ends, side=padding)
        return VlmBatch(rows.padded(prompt_rows, pad_id, side=padding) | rest, labels)

    def supervised_logits(self, batch: VlmBatch) -> tuple[Float[Tensor, "n v"], Int[Tensor, " n"], Int[Tensor, "b t"]]:
        """Logits of the positions that carry a label, by the model's own head; full logits never exist.

        Args:
            batch: on the model's device, with labels.

        Returns:
            Logits with gradient, their labels, and all labels beside the positions that predict them.
        """
        if batch.labels is None:
            raise RequestError(
                "A batch without targets", "There is nothing to compute a loss of", "Prepare it with targets"
            )
        labels = rows.aligned(batch.labels, is_encoder_decoder=self.family.is_encoder_decoder)
        with rows_before(self.part(self.family.head), labels):
            logits = self.model(**batch.inputs, use_cache=False).logits
        _, targets = supervised_rows(logits.new_empty(*labels.shape, 0), labels)
        return logits, targets, labels

    def loss(self, batch: VlmBatch) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
        """Sum the cross-entropy of targets and end tokens.

        Args:
            batch: on the model's device, with labels.

        Returns:
            The sum in nats, with gradient; the number of supervised tokens; detached diagnostics: the share of them
            predicted right (`token_acc`, in [0, 1]).
        """
        logits, targets, _ = self.supervised_logits(batch)
        hits = (logits.detach().argmax(dim=-1) == targets).sum()
        tokens = torch.tensor(len(targets), device=targets.device)
        return row_cross_entropy(logits, targets), tokens, {"token_acc": hits / tokens.clamp(min=1)}

    def sequence_logps(self, batch: VlmBatch) -> Float[Tensor, " b"]:
        """Log-probability of each target and its end token given its prompt, <= 0, with gradient."""
        return row_logps(*self.supervised_logits(batch))

    @torch.no_grad()
    def generate(
        self,
        images: Sequence[Image.Image] | None,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 8,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Answer greedily, in the order of the prompts; the model stays in the mode it is in.

        Args:
            images: one a prompt, or None.
            prompts: without template.
            max_new_tokens: longest answer.
            batch_size: prompts at once; changes the time, and the text only by rounding.
            stop: an answer ends before the first of these.

        Raises:
            RequestError: as in `prepare`; prompt and answer must fit the context.
        """
        texts: list[str] = []
        for start in range(0, len(prompts), batch_size):
            here = slice(start, start + batch_size)
            texts += self._generate(None if images is None else images[here], prompts[here], max_new_tokens, stop)
        return texts

    def _generate(
        self,
        images: Sequence[Image.Image] | None,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str],
    ) -> list[str]:
        side = "right" if self.family.is_encoder_decoder else "left"
        room = (self.context_tokens or 1 << 30) - (0 if self.family.is_encoder_decoder else max_new_tokens)
        inputs = self.prepare(images, prompts, max_tokens=room, padding=side).to(self.device).inputs
        settings = greedy(
            self.core.generation_config,
            max_new_tokens=max_new_tokens,
            end_id=self.end_id,
            pad_id=self.tokenizer.pad_token_id,
        )
        old = 1 if self.family.is_encoder_decoder else inputs["input_ids"].shape[1]
        stopping = [StopAtText(stop, self.read_ids, old)] if stop else None
        ids = self.model.generate(**inputs, generation_config=settings, stopping_criteria=stopping)
        return [cut_at(self.read_ids(row), stop).strip() for row in ids[:, old:]]

    def _check_image_tokens(self, prompt_rows: Sequence[Row], encoded: dict[str, Tensor], *, has_images: bool) -> None:
        if self.image_token_id is None:
            return
        wanted = self.tokens_per_image(encoded) if has_images else [0] * len(prompt_rows)
        for index, (row, count) in enumerate(zip(prompt_rows, wanted, strict=True)):
            have = row["input_ids"].count(self.image_token_id)
            if have != count:
                raise RequestError(
                    f"The prompt of item {index} holds {have} image tokens, and its image gives {count} vision tokens",
                    "The image token count does not fit the prompt: each vision token takes the place of one of them",
                    "Leave the family's image token out of the text, and use the processor that was saved with the model",
                )

    def _check_lengths(self, prompt_rows: Sequence[Row], ends: Sequence[list[int]] | None, max_tokens: int) -> None:
        limit, name = max_tokens, "max_tokens"
        if self.context_tokens is not None and self.context_tokens < max_tokens:
            limit, name = self.context_tokens, "the context of the model"
        for index, row in enumerate(prompt_rows):
            prompt, target = len(row["input_ids"]), len(ends[index]) if ends is not None else 0
            is_longer = max(prompt, target) > limit if self.family.is_encoder_decoder else prompt + target > limit
            if is_longer:
                raise RequestError(
                    f"Item {index} has {prompt} tokens in the prompt, image included, and {target} in the target",
                    f"That is longer than {name}, {limit} tokens, and a cut row would teach another text",
                    f"Shorten the text or use smaller images{', or raise max_tokens' if name == 'max_tokens' else ''}",
                )

    # ---- hooks of a family

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.eos_token_id

    @property
    def decoder_start_id(self) -> int:
        """What the decoder of an encoder-decoder reads first."""
        return self.core.config.get_text_config().decoder_start_token_id

    @property
    def image_token_id(self) -> int | None:
        """The token whose places vision tokens take; None for a text-only family."""
        return getattr(self.core.config, "image_token_id", None)

    def write_prompt(self, prompt: str, *, has_image: bool) -> str:
        """The text that the processor reads: the processor's chat template, image first, ready for the answer."""
        content: list[dict[str, str]] = [{"type": "image"}] if has_image else []
        message = {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
        return self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)

    def encode_prompts(self, images: Sequence[Image.Image] | None, texts: Sequence[str]) -> dict[str, Tensor]:
        """Call the processor: `rows.TOKEN_FIELDS` padded on the right, and what the tower reads."""
        begin = self.tokenizer.bos_token
        has_begin = begin is not None and all(text.startswith(begin) for text in texts)
        pictures = {} if images is None else {"images": list(images)}
        encoded = self.processor(
            text=list(texts),
            **pictures,
            padding=True,
            padding_side="right",
            add_special_tokens=not has_begin,
            return_tensors="pt",
        )
        return dict(encoded)

    def target_ids(self, target: str) -> list[int]:
        """Ids of an answer with its end token."""
        return [*self.tokenizer(target, add_special_tokens=False)["input_ids"], self.end_id]

    def read_ids(self, ids: Tensor) -> str:
        """The text of generated ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def tokens_per_image(self, encoded: dict[str, Tensor]) -> list[int]:
        """How many tokens the tower and projector give for each image, from the model's config and the pixels."""
        raise NotImplementedError

    def vision_tokens(self, images: Sequence[Image.Image], *, layers: Sequence[int] = ()) -> VisionTokens:
        """Run tower and projector, with gradient where parameters have one.

        Args:
            images: 8-bit grey or colour.
            layers: places in the tower's list of layers whose outputs are wanted too; negative from the end.
        """
        raise NotImplementedError


def _check_counts(images: Sequence[Any] | None, prompts: Sequence[str], targets: Sequence[str] | None) -> None:
    counts = {"prompts": len(prompts)}
    counts |= {} if images is None else {"images": len(images)}
    counts |= {} if targets is None else {"targets": len(targets)}
    if len(set(counts.values())) != 1 or not prompts:
        raise RequestError(
            ", ".join(f"{count} {name}" for name, count in counts.items()),
            "A batch has at least one item, and one of each an item",
            "Give as many of each; repeat an image that serves several prompts",
        )


def _in_colour(image: Image.Image) -> Image.Image:
    if image.mode not in EIGHT_BIT_MODES:
        raise RequestError(
            f"An image of mode '{image.mode}'",
            "Towers read 8-bit images, and cutting wider values off would lose the picture",
            "Window it to 0..255 first",
        )
    return image.convert("RGB")
