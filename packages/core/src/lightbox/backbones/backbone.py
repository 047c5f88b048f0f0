"""One interface for every family: prepare, loss, sequence log-probabilities, generate, vision tokens.

What must be exact is here, once: labels, padding, the selection of rows before the head, greedy settings. What a family
may say differently (how a prompt is written and read, what an image costs, how vision is taken out) are the methods
under "text" and "images": it overrides some of them in its own file and gets its row in `loading.CLASSES`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from lightbox.backbones import rows, weights
from lightbox.backbones.attention import AttentionChoice
from lightbox.backbones.codecs import CODECS, CoordinateCodec
from lightbox.backbones.families import Family
from lightbox.backbones.generation import StopAtText, cut_at, greedy
from lightbox.backbones.rows import UNLIMITED, Row, VlmBatch
from lightbox.errors import RequestError
from lightbox.losses.language import row_cross_entropy, row_logps, rows_before

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of `model.dtype` -> what torch calls them."""
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # PIL also has I;16, I and F, whose values are wider


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
    """A pretrained generator with its processor; a family is a subclass that overrides methods on text and images.

    Args:
        model: a model of transformers, or a wrapper around one (peft, data parallel); see `with_model`.
        processor: turns text and images into inputs; a tokenizer for a text-only family.
        family: names of parts.
        attention: what computes attention, and why.
        name, revision: what was loaded.
        quant: none, nf4 or int8.
        dtype: of weights that are not quantised, and of image inputs.
        digest: identifies the weights; "" computes it when it is asked for, which reads every file once.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        family: Family,
        *,
        attention: AttentionChoice,
        name: str,
        revision: str,
        quant: str,
        dtype: torch.dtype,
        digest: str = "",
    ) -> None:
        self.model, self.processor, self.family, self.attention = model, processor, family, attention
        self.name, self.revision, self.quant, self.dtype, self._digest = name, revision, quant, dtype, digest
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masks and labels say what is padding

    def with_model(self, model: nn.Module) -> Self:
        """The same backbone around a wrapped model: `forward` goes through the wrapper."""
        other = copy.copy(self)
        other.model = model
        return other

    @property
    def digest(self) -> str:
        """What identifies the weights, for job keys and adapters."""
        return self._digest or weights.digest_of(self.name, revision=self.revision)

    @property
    def core(self) -> Any:
        """The model of transformers inside any wrapper."""
        model: Any = self.model
        while True:
            if hasattr(model, "get_base_model"):  # wrappers nest: data parallel around peft around the model
                model = model.get_base_model()
            elif isinstance(getattr(model, "module", None), nn.Module):
                model = model.module
            else:
                return model

    @property
    def device(self) -> torch.device:
        """Where the inputs of the model belong; the whole model is in one place."""
        return next(self.core.parameters()).device

    def part(self, path: str) -> Any:
        """A module of the model by its path in `family`."""
        return self.core.get_submodule(path)

    # ---- what a caller asks for

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
            padding: side of rows of a causal model, "right" for training and "left" for generation; an
                encoder-decoder is always padded on the right.

        Raises:
            RequestError: counts that differ, a row that is too long for `max_tokens` or the context, image tokens that
                do not fit the image, or images that are not 8-bit.
        """
        rows.check_counts(images, prompts, targets)
        encoded = self._encode(images, prompts)
        prompt_rows = rows.unpadded(encoded)
        self._check_image_tokens(prompt_rows, encoded, has_images=images is not None)
        ends = None if targets is None else [self.target_ids(target) for target in targets]
        rows.check_lengths(
            prompt_rows,
            ends,
            max_tokens=max_tokens,
            context_tokens=self.context_tokens,
            is_joined=not self.family.is_encoder_decoder,
        )
        rest = {
            # pixels in the dtype of the weights: a 16-bit tower refuses float32
            name: value.to(self.dtype) if value.is_floating_point() else value
            for name, value in encoded.items()
            if name not in rows.TOKEN_FIELDS
        }
        pad_id = self.tokenizer.pad_token_id
        if self.family.is_encoder_decoder:
            padding = "right"  # an encoder with absolute positions reads another text behind padding
        if ends is None:
            return VlmBatch(rows.padded(prompt_rows, pad_id, side=padding) | rest)
        if self.family.is_encoder_decoder:
            labels = rows.stacked(ends, rows.IGNORED, side="right")
            # made here, not by the model from labels: with labels it would compute its own loss over full logits
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

        Raises:
            RequestError: a batch without labels.
        """
        if batch.labels is None:
            raise RequestError(
                "A batch without targets", "There is nothing to compute a loss of", "Prepare it with targets"
            )
        labels = rows.aligned(batch.labels, is_encoder_decoder=self.family.is_encoder_decoder)
        with rows_before(self.part(self.family.head), labels):
            logits = self.model(**batch.inputs, use_cache=False).logits  # a cache would be filled and never read
        return logits, labels[labels != rows.IGNORED], labels

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
        # a batch may supervise nothing, and 0 / 0 is no share
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
            RequestError: as in `prepare`; prompt and answer must fit the context; an empty stop string.
        """
        rows.check_counts(images, prompts, None)
        self._check_answer(max_new_tokens, stop)
        texts: list[str] = []
        for start in range(0, len(prompts), batch_size):
            here = slice(start, start + batch_size)
            texts += self._generate(None if images is None else images[here], prompts[here], max_new_tokens, stop)
        return texts

    # ---- text

    @property
    def context_tokens(self) -> int | None:
        """Longest row that the language model has positions for; None where positions are relative."""
        return getattr(self.core.config.get_text_config(), "max_position_embeddings", None)

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.eos_token_id

    @property
    def decoder_start_id(self) -> int:
        """What the decoder of an encoder-decoder reads first."""
        return self.core.config.get_text_config().decoder_start_token_id

    def write_prompt(self, prompt: str, *, has_image: bool) -> str:
        """The text that the processor reads: the processor's chat template, image first, ready for the answer."""
        content: list[dict[str, str]] = [{"type": "image"}] if has_image else []
        message = {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
        return self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)

    def encode_prompts(self, images: Sequence[Image.Image] | None, texts: Sequence[str]) -> dict[str, Tensor]:
        """Call the processor: `rows.TOKEN_FIELDS` padded on the right, and what the tower reads.

        A begin token that the template wrote is not written twice.
        """
        begin = self.tokenizer.bos_token
        has_begin = begin is not None and all(text.startswith(begin) for text in texts)
        pictures = {} if images is None else {"images": list(images)}
        encoded = self.processor(
            text=list(texts),
            **pictures,
            padding=True,
            padding_side="right",  # named, because tokenizers of chat models are saved with the left
            add_special_tokens=not has_begin,
            return_tensors="pt",
        )
        return dict(encoded)

    def target_ids(self, target: str) -> list[int]:
        """Ids of an answer with its end token."""
        # a begin token belongs before the prompt, not between prompt and answer
        return [*self.tokenizer(target, add_special_tokens=False)["input_ids"], self.end_id]

    def read_ids(self, ids: Tensor) -> str:
        """The text of generated ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    # ---- images

    @property
    def codec(self) -> CoordinateCodec:
        """How boxes are written in text."""
        return CODECS[self.family.codec]

    @property
    def image_token(self) -> str | None:
        """What `write_prompt` puts where the image is, once; None where the processor puts it itself, or has none."""
        return getattr(self.processor, "image_token", None)

    @property
    def image_token_id(self) -> int | None:
        """The token whose places vision tokens take; None for a text-only family."""
        return getattr(self.core.config, "image_token_id", None)

    def tokens_per_image(self, encoded: dict[str, Tensor]) -> list[int]:
        """How many tokens the tower and projector give for each image, from the model's config and the pixels."""
        raise self.no_images()

    def vision_tokens(self, images: Sequence[Image.Image], *, layers: Sequence[int] = ()) -> VisionTokens:
        """Run tower and projector on images, in the mode and with the gradients that the model has.

        Args:
            images: 8-bit grey or colour.
            layers: places in the tower's list of layers whose outputs are wanted too; negative from the end.

        Raises:
            RequestError: a layer that is not there, or a family without a tower.
        """
        raise self.no_images()

    def no_images(self) -> RequestError:
        """The error for images where the family has no tower."""
        return RequestError(
            f"Images for {self.name}, a {self.family.name}",
            "It reads text only",
            "Leave images out, or use another backbone",
        )

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the tower reads of images, on the model's device and in its dtype."""
        encoded = self.processor.image_processor([in_colour(image) for image in images], return_tensors="pt")
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in encoded.items()
        }

    # ---- inside

    def _generate(
        self,
        images: Sequence[Image.Image] | None,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str],
    ) -> list[str]:
        is_causal = not self.family.is_encoder_decoder
        longest_prompt = UNLIMITED if self.context_tokens is None else self.context_tokens - max_new_tokens * is_causal
        # left, so that every row goes on at its right end
        batch = self.prepare(images, prompts, max_tokens=longest_prompt, padding="left" if is_causal else "right")
        inputs = batch.to(self.device).inputs
        settings = greedy(
            self.core.generation_config,
            max_new_tokens=max_new_tokens,
            end_id=self.end_id,
            pad_id=self.tokenizer.pad_token_id,
        )
        # a causal model repeats its prompt, a decoder its start token
        old = inputs["input_ids"].shape[1] if is_causal else 1
        stopping = [StopAtText(stop, self.read_ids, old)] if stop else None
        # adapters lie inside the core, so they count; a data-parallel wrapper has no generate
        ids = self.core.generate(**inputs, generation_config=settings, stopping_criteria=stopping)
        return [cut_at(self.read_ids(row), stop).strip() for row in ids[:, old:]]

    def _check_answer(self, max_new_tokens: int, stop: Sequence[str]) -> None:
        if "" in stop:
            raise RequestError("An empty stop string", "Every text holds it, so no answer is left", "Leave it out")
        if self.context_tokens is not None and not 0 < max_new_tokens < self.context_tokens:
            raise RequestError(
                f"max_new_tokens is {max_new_tokens}, and the model's context is {self.context_tokens}",
                "An answer has at least one token, and its prompt must fit beside it",
                f"Set it between 1 and {self.context_tokens - 1}, less what prompts need",
            )

    def _encode(self, images: Sequence[Image.Image] | None, prompts: Sequence[str]) -> dict[str, Tensor]:
        token = self.image_token
        for index, prompt in enumerate(prompts):
            if token is not None and token in prompt:
                raise RequestError(
                    f"The prompt of item {index} contains '{token}'",
                    "That text stands for an image, so the image token count would not fit the prompt",
                    "Leave it out of the text; the family writes it where the image is",
                )
        texts = [self.write_prompt(prompt, has_image=images is not None) for prompt in prompts]
        if token is not None and images is not None and any(text.count(token) != 1 for text in texts):
            raise RequestError(
                f"{self.name}: its chat template writes '{token}' {texts[0].count(token)} times",
                "The image token count does not fit the prompt: there is one image in it",
                "Use the chat template that was published with the model",
            )
        return self.encode_prompts(None if images is None else [in_colour(image) for image in images], texts)

    def _check_image_tokens(self, prompt_rows: Sequence[Row], encoded: dict[str, Tensor], *, has_images: bool) -> None:
        if self.image_token_id is None:
            return
        vision_counts = self.tokens_per_image(encoded) if has_images else [0] * len(prompt_rows)
        for index, (row, count) in enumerate(zip(prompt_rows, vision_counts, strict=True)):
            # counted in the ids and not in the text: a processor writes one token a vision token
            have = row["input_ids"].count(self.image_token_id)
            if have != count:
                raise RequestError(
                    f"The prompt of item {index} holds {have} image tokens, and its image gives {count} vision tokens",
                    "The image token count does not fit the prompt: each vision token takes the place of one of them",
                    "Use the processor and the tokenizer that were saved with the model",
                )


def in_colour(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB.

    Raises:
        RequestError: wider values, which would be cut off.
    """
    if image.mode not in EIGHT_BIT_MODES:
        raise RequestError(
            f"An image of mode '{image.mode}'",
            "Towers read 8-bit images, and cutting wider values off would lose the picture",
            "Window it to 0..255 first",
        )
    return image.convert("RGB")
