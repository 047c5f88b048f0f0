"""One interface for every family: prepare, loss, log-probabilities, generate, vision in two halves.

What must be exact is here, once: labels, padding, the selection of rows before the head, what a next turn reads again.
What a family may say differently (how a prompt is written and read, what an image costs, how features are laid out) are
the methods under "text" and "images": it overrides some of them in its own file and gets its row in `loading.CLASSES`.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lightbox.backbones import rows, vision, weights
from lightbox.backbones.attention import AttentionChoice
from lightbox.backbones.codecs import CODECS, CoordinateCodec
from lightbox.backbones.conversation import (
    Conversation,
    Turn,
    assistant,
    conversations_of,
    in_colour,
    pieces,
)
from lightbox.backbones.families import Family
from lightbox.backbones.generation import Choice, Ends, Generated, Memory, Sampling, cut_at, neutral
from lightbox.backbones.rows import IGNORED, UNLIMITED, Row, SharedImages, VlmBatch
from lightbox.backbones.vision import LayerTaps, VisionFeatures
from lightbox.errors import RequestError
from lightbox.losses.language import row_cross_entropy, row_logps, rows_before, token_logps

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of `model.dtype` -> what torch calls them."""


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

    IMAGE_FIELDS = ("pixel_values",)
    """What the tower reads of an image processor's output."""
    TYPE_FIELD = ""
    """Name of the row field that is 1 at image tokens and 0 elsewhere; "" where the model reads none."""

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

    # ---- rows

    def prepare(
        self,
        images: Sequence[Image.Image] | None,
        prompts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        max_tokens: int,
        padding: str = "right",
    ) -> VlmBatch:
        """Turn questions with at most one image, in front of the text, into a batch; see `prepare_conversations`.

        Args:
            images: one an item, 8-bit grey or colour; None for text only.
            prompts: what the user says, without the family's template.
            targets: what the model is to answer; None for generation.
            max_tokens, padding: see `prepare_conversations`.

        Raises:
            RequestError: counts that differ, and as `prepare_conversations`.
        """
        rows.check_counts(images, prompts, targets)
        conversations = conversations_of(images, prompts, targets)
        return self.prepare_conversations(conversations, max_tokens=max_tokens, padding=padding)

    def prepare_conversations(
        self,
        conversations: Sequence[Conversation],
        *,
        max_tokens: int,
        padding: str = "right",
        features: Sequence[Float[Tensor, "p d"]] | None = None,
    ) -> VlmBatch:
        """Turn conversations into a batch on the CPU, one row each.

        Prompt and answers are tokenised apart and joined, so a prompt's ids are those that generation reads, and labels
        cover exactly the supervised answers with their end tokens. An image that stands in several places, compared by
        identity, is encoded once.

        Args:
            conversations: all answered, for a loss, or all to be answered.
            max_tokens: longest row, image tokens and end tokens included; prompt and target together for a causal
                model, each for an encoder-decoder. Nothing is cut: a longer row is refused.
            padding: side of rows of a causal model, "right" for training and "left" for generation; an encoder-decoder
                is always padded on the right.
            features: of `project`, maybe fewer tokens than it gave, in place of running the tower: one for each
                distinct image in order of appearance.

        Raises:
            RequestError: a row that is too long for `max_tokens` or the context, text that holds a control token,
                images or turns that the family does not take, or conversations of which only some are answered.
        """
        self._check_conversations(conversations)
        distinct = list({id(image): image for row in conversations for image in row.images}.values())
        places = [[next(i for i, d in enumerate(distinct) if d is image) for image in r.images] for r in conversations]
        pixels = self.read_images(distinct) if distinct else {}
        counts = self._token_counts(pixels, features, len(distinct))
        prompts, answers = [], []
        for conversation, own in zip(conversations, places, strict=True):
            row, labels = self._row(conversation, iter([counts[place] for place in own]))
            prompts.append(row)
            answers.append(labels)
        is_decoder, pad_id = self.family.is_encoder_decoder, self.tokenizer.pad_token_id
        rows.check_lengths(
            [_lengths(row, labels, is_joined=not is_decoder) for row, labels in zip(prompts, answers, strict=True)],
            limit=max_tokens,
            context=self.context_tokens,
            is_joined=not is_decoder,
        )
        if is_decoder:
            padding = "right"  # an encoder with absolute positions reads another text behind padding
        inputs = rows.padded([self._typed(row) for row in prompts], pad_id, side=padding)
        labels = None
        if conversations[0].is_answered:
            labels = rows.stacked(answers, IGNORED, side=padding)
            if is_decoder:
                # made here, not by the model from labels: with labels it would compute its own loss over full logits
                inputs["decoder_input_ids"] = rows.shifted_right(labels, start_id=self.decoder_start_id, pad_id=pad_id)
        index = [place for own in places for place in own]
        inputs, shared = self.place_images(inputs, pixels, index, None if features is None else list(features))
        grids = self.grids_of(pixels, index, [len(own) for own in places])
        return VlmBatch(inputs, labels, shared=shared, conversations=list(conversations), grids=grids)

    def continued(self, generated: Generated, turns: Sequence[Turn], *, max_tokens: int = UNLIMITED) -> VlmBatch:
        """The batch of a next turn behind answers, which reads the new turn only.

        Answers stay the very ids that were chosen; one that was cut off gets its end token first. The memory grows in
        place, so it is continued once.

        Args:
            generated: with memory.
            turns: a user's, one a row of `generated`.
            max_tokens: longest row, all turns together.

        Raises:
            RequestError: answers without memory, another number of turns, an encoder-decoder, and as
                `prepare_conversations`.
        """
        memory = generated.memory
        if memory is None or len(turns) != len(generated.ids):
            raise RequestError(
                f"{len(turns)} turns behind {len(generated.ids)} answers{'' if memory else ' without memory'}",
                "A cache holds what was read row by row, and each row goes on by one turn",
                "Give one turn an answer, and generate with with_memory=True",
            )
        conversations = [
            Conversation((*before.turns, assistant(text), turn))
            for before, text, turn in zip(memory.conversations, generated.texts, turns, strict=True)
        ]
        self._check_conversations([Conversation((turn,)) for turn in turns])
        images = [image for turn in turns for image in turn.images]
        pixels = self.read_images(images) if images else {}
        counts = iter(self.tokens_per_image(pixels) if images else [])
        new: list[Row] = []
        for index, conversation in enumerate(conversations):
            piece = pieces(conversation, self.fill_template, end=self.tokenizer.convert_ids_to_tokens(self.end_id))[-1]
            ids = self._expanded(self.text_ids(piece, is_first=False), counts)
            last = generated.ids[index][generated.is_token[index]][-1]
            new.append(self._typed({"input_ids": ids if last == self.end_id else [self.end_id, *ids]}))
        lengths = memory.tokens["attention_mask"].sum(dim=1).tolist()
        whole = [(before + len(row["input_ids"]), 0) for before, row in zip(lengths, new, strict=True)]
        rows.check_lengths(whole, limit=max_tokens, context=self.context_tokens, is_joined=True)
        behind = rows.padded(new, self.tokenizer.pad_token_id, side="left")
        inputs = {name: torch.cat([old.cpu(), behind[name]], dim=1) for name, old in memory.tokens.items()}
        self._check_gaps(inputs["attention_mask"])
        index = list(range(len(images)))
        grids = self.grids_of(pixels, index, [len(turn.images) for turn in turns])
        if grids is not None and memory.grids is not None:
            grids = [torch.cat(both) for both in zip(memory.grids, grids, strict=True)]
        positions = self.positions(inputs, grids)
        inputs |= {} if positions is None else {"position_ids": positions}
        shared = SharedImages(pixels, index) if images else None
        return VlmBatch(inputs, shared=shared, conversations=conversations, cache=memory.cache, grids=grids)

    def check_texts(self, texts: Sequence[str], *, what: str = "text") -> None:
        """Refuse texts that hold a control token, such as the end of a turn: they would be read as one.

        Control tokens are the tokenizer's special tokens and the image's; those that the family's boxes are written
        with are text. Data sets are checked by the same rule, before a run.

        Raises:
            RequestError: with the item and the token.
        """
        expression = self._control_tokens()
        for index, text in enumerate(texts):
            match = expression.search(text) if isinstance(text, str) else None
            if match:
                raise RequestError(
                    f"The {what} of item {index} contains '{match[0]}'",
                    "The tokenizer reads that as a control token, not as text: it could end a turn or stand for an image"
                    ", and the image token count would not fit the prompt",
                    "Leave it out of the text; the family writes control tokens where they belong",
                )

    # ---- what a model says of given text

    def supervised_logits(self, batch: VlmBatch) -> tuple[Float[Tensor, "n v"], Int[Tensor, " n"], Int[Tensor, "b t"]]:
        """Logits of the positions that carry a label, by the model's own head; full logits never exist.

        Args:
            batch: on the model's device, with labels.

        Returns:
            Logits with gradient, their labels, and all labels beside the positions that predict them.

        Raises:
            RequestError: a batch without labels.
        """
        labels = self._aligned(batch)
        with rows_before(self.part(self.family.head), labels):
            logits = self.model(**self.inputs_of(batch), use_cache=False).logits  # a cache would never be read
        return logits, labels[labels != IGNORED], labels

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
        """Log-probability of each row's supervised answers and end tokens given what stands before, with gradient."""
        return row_logps(*self.supervised_logits(batch))

    def token_logps(self, batch: VlmBatch) -> Float[Tensor, "b t"]:
        """Log-probability of each label at its place in `batch.labels`, 0 where there is none, with gradient."""
        return token_logps(*self.supervised_logits(batch)[:2], batch.labels != IGNORED)

    def hidden_rows(self, batch: VlmBatch, places: Bool[Tensor, "b t"]) -> Float[Tensor, "n d"]:
        """What the head reads at chosen positions, row by row, with gradient.

        Args:
            batch: on the model's device.
            places: True for the positions wanted, beside `input_ids`, or `decoder_input_ids` of an encoder-decoder.
                The state behind a token is the one at its own position; the one that predicts it stands before it.

        Raises:
            RequestError: places of another shape.
        """
        name = "decoder_input_ids" if self.family.is_encoder_decoder else "input_ids"
        if places.shape != batch.inputs[name].shape or not places.any():
            raise RequestError(
                f"{int(places.sum())} places in a mask of shape {tuple(places.shape)}",
                f"The rows are {tuple(batch.inputs[name].shape)}, and at least one place is read",
                f"Make it beside {name}",
            )
        head = self.part(self.family.head)
        with vision.read_by(head) as states, rows_before(head, torch.where(places, 0, IGNORED)):
            self.model(**self.inputs_of(batch), use_cache=False)
        return states[0][places]

    # ---- generation

    @torch.no_grad()
    def generate(
        self,
        batch: VlmBatch,
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        with_states: bool = False,
        with_memory: bool = False,
    ) -> Generated:
        """Answer every row of a batch; the model stays in the mode it is in.

        A row's answer depends on its batch by rounding only.

        Args:
            batch: without labels, padded on the left for a causal model; `prepare` gives it, and `continued`.
            max_new_tokens: longest answer.
            sampling: draws answers; None takes the likeliest token each time.
            stop: a row ends with the first of these.
            with_states: keep what the head read, 4 bytes times the width a token.
            with_memory: keep the cache for a next turn; a causal model only.

        Raises:
            RequestError: an answer that does not fit the context, an empty stop string, seeds that are not one a row, a
                batch with labels.
        """
        self._check_generation(batch, max_new_tokens, sampling, stop, with_memory=with_memory)
        batch = self._repeated(batch, sampling.samples if sampling else 1).to(self.device)
        inputs = self.generation_inputs(batch) | ({} if batch.cache is None else {"past_key_values": batch.cache})
        is_causal = not self.family.is_encoder_decoder
        # a causal model repeats its prompt, a decoder its start token
        old = batch.inputs["input_ids"].shape[1] if is_causal else 1
        settings = neutral(
            self.core.generation_config,
            max_new_tokens=max_new_tokens,
            end_id=self.end_id,
            pad_id=self.tokenizer.pad_token_id,
        )
        settings.return_dict_in_generate = True
        choice, ends = Choice(sampling, max_new_tokens), Ends(settings.eos_token_id, stop, self.tokenizer, old)
        with vision.read_by(self.part(self.family.head)) as read:
            # adapters lie inside the core, so they count; a data-parallel wrapper has no generate
            out = self.core.generate(
                **inputs, generation_config=settings, logits_processor=[choice], stopping_criteria=[ends]
            )
        ids = out.sequences[:, old:]
        lengths = torch.where(ends.lengths > 0, ends.lengths, ids.shape[1])
        is_token = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        memory = None
        if with_memory:
            tokens = {"input_ids": out.sequences}
            for name in batch.inputs.keys() & {"attention_mask", self.TYPE_FIELD}:
                more = is_token.long() if name == "attention_mask" else torch.zeros_like(ids)
                tokens[name] = torch.cat([batch.inputs[name], more], dim=1)
            memory = Memory(batch.conversations, tokens, batch.grids, out.past_key_values)
        return Generated(
            texts=[cut_at(self.read_ids(row[own]), stop) for row, own in zip(ids, is_token, strict=True)],
            ids=ids,
            is_token=is_token,
            logps=torch.stack(choice.logps, dim=1) * is_token,
            states=torch.stack([state[:, -1] for state in read], dim=1) if with_states else None,
            memory=memory,
        )

    def answer(
        self,
        images: Sequence[Image.Image] | None,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 8,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """The likeliest text for each prompt, in their order.

        Args:
            images: one a prompt, or None.
            prompts: without template.
            max_new_tokens: longest answer.
            batch_size: prompts at once; changes the time, and the text only by rounding.
            stop: an answer ends before the first of these.

        Raises:
            RequestError: as `prepare` and `generate`.
        """
        rows.check_counts(images, prompts, None)
        self._check_answer(max_new_tokens, stop)
        is_causal = not self.family.is_encoder_decoder
        longest = UNLIMITED if self.context_tokens is None else self.context_tokens - max_new_tokens * is_causal
        texts: list[str] = []
        for start in range(0, len(prompts), batch_size):
            here = slice(start, start + batch_size)
            seen = None if images is None else images[here]
            # left, so that every row goes on at its right end
            batch = self.prepare(seen, prompts[here], max_tokens=longest, padding="left")
            texts += self.generate(batch, max_new_tokens=max_new_tokens, stop=stop).texts
        return [text.strip() for text in texts]

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

    def fill_template(self, messages: list[dict[str, Any]]) -> str:
        """The processor's chat template filled in, ready for an answer."""
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def write(self, conversation: Conversation) -> list[str]:
        """The text before each answer, with one `image_token` for each image."""
        texts = pieces(conversation, self.fill_template, end=self.tokenizer.convert_ids_to_tokens(self.end_id))
        images, token = len(conversation.images), self.image_token
        if token is not None and sum(text.count(token) for text in texts) != images:
            raise RequestError(
                f"{self.name}: its chat template writes '{token}' {sum(text.count(token) for text in texts)} times",
                f"The image token count does not fit the prompt: it has {images} images",
                "Use the chat template that was published with the model",
            )
        return texts

    def text_ids(self, text: str, *, is_first: bool) -> list[int]:
        """Ids of a piece of a row; the first one gets the begin token, unless its template wrote it."""
        begin = self.tokenizer.bos_token
        is_begun = not is_first or (begin is not None and text.startswith(begin))
        return self.tokenizer(text, add_special_tokens=not is_begun)["input_ids"]

    def target_ids(self, target: str) -> list[int]:
        """Ids of an answer with its end token."""
        # a begin token belongs before the prompt, not between prompt and answer
        return [*self.tokenizer(target, add_special_tokens=False)["input_ids"], self.end_id]

    def read_ids(self, ids: Tensor) -> str:
        """The text of generated ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def token_spans(self, ids: Int[Tensor, " t"]) -> list[tuple[int, int]]:
        """First and one past the last character in `read_ids(ids)` that each id adds; empty for what is not text."""
        ends = [len(self.read_ids(ids[: place + 1])) for place in range(len(ids))]
        return list(zip([0, *ends], ends, strict=False))

    def positions(self, tokens: dict[str, Tensor], grids: list[Tensor] | None) -> Tensor | None:
        """Position of every token of a continued row; None leaves them to the model, which counts by the mask."""
        return None

    # ---- images

    @property
    def codec(self) -> CoordinateCodec:
        """How boxes are written in text."""
        return CODECS[self.family.codec]

    @property
    def image_token(self) -> str | None:
        """What `write` puts where an image is, once; None where the family has no images."""
        return getattr(self.processor, "image_token", None)

    @property
    def image_token_id(self) -> int | None:
        """The token whose places vision tokens take; None for a text-only family."""
        return getattr(self.core.config, "image_token_id", None)

    def tokens_per_image(self, pixels: dict[str, Tensor]) -> list[int]:
        """How many tokens the tower and projector give for each image, from the model's config and the pixels."""
        raise self.no_images()

    def read_images(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the tower reads of images, on the CPU; pixels in the dtype of the weights, as a 16-bit tower asks."""
        if not self.family.has_vision:
            raise self.no_images()
        encoded = self.processor.image_processor([in_colour(image) for image in images], return_tensors="pt")
        return {
            name: encoded[name].to(self.dtype if encoded[name].is_floating_point() else None)
            for name in self.IMAGE_FIELDS
        }

    def tower(self, images: Sequence[Image.Image], *, layers: Sequence[int] = ()) -> VisionFeatures:
        """The first half of vision: images -> features, in the mode and with the gradients that the model has.

        The projector runs too and its result is dropped (3 % of the time in LLaVA-1.5), so that the model's own code
        says which features it reads.

        Args:
            images: 8-bit grey or colour.
            layers: places in the tower's list of layers that are tapped; negative from the end.

        Raises:
            RequestError: a layer that is not there, or a family without a tower.
        """
        pixels = {name: value.to(self.device) for name, value in self.read_images(images).items()}
        projector = self.part(self.family.projector)
        with vision.tapped(self.tower_layers(), layers) as taps, vision.read_by(projector) as read:
            self.core.get_image_features(**pixels, return_dict=True)
        return VisionFeatures(
            patches=self.split_patches(read[0], pixels),
            grids=self.grids(pixels),
            sizes=pixels.get("image_sizes"),
            taps={layer: self.layer_taps(tap, pixels) for layer, tap in taps.items()},
            has_class_token=self.prefix_tokens() > 0,
        )

    def project(self, features: VisionFeatures) -> list[Float[Tensor, "p d"]]:
        """The second half: features -> tokens of the language model, one entry an image; gradient flows."""
        raise self.no_images()

    def tower_layers(self) -> nn.ModuleList:
        """The tower's layers."""
        return vision.layers_of(self.part(self.family.vision))

    def prefix_tokens(self) -> int:
        """Leading tokens of the tower that are no patches."""
        return 0

    def grids(self, pixels: dict[str, Tensor]) -> list[tuple[int, int]]:
        """Rows and columns of each image's tokens."""
        raise self.no_images()

    def split_patches(self, rows: Tensor, pixels: dict[str, Tensor]) -> list[Tensor]:
        """What the projector reads, one entry an image; see `VisionFeatures`."""
        return list(rows)

    def split_layer(self, rows: Tensor, pixels: dict[str, Tensor]) -> list[Tensor]:
        """Rows of a layer of the tower, one entry an image, patches row by row."""
        return list(rows)

    def place_images(
        self,
        inputs: dict[str, Tensor],
        pixels: dict[str, Tensor],
        index: list[int],
        features: list[Tensor] | None,
    ) -> tuple[dict[str, Tensor], SharedImages | None]:
        """Pixels beside the rows where each image stands in one place, and apart from them where they are shared."""
        if features is None and index == list(range(len(index))):
            return inputs | pixels, None
        return inputs, SharedImages(pixels, index, features)

    def grids_of(self, pixels: dict[str, Tensor], index: list[int], per_row: list[int]) -> list[Tensor] | None:
        """Sizes in patches of each row's images, for families that place tokens by them."""
        return None

    def no_images(self) -> RequestError:
        """The error for images where the family has no tower."""
        return RequestError(
            f"Images for {self.name}, a {self.family.name}",
            "It reads text only",
            "Leave images out, or use another backbone",
        )

    def inputs_of(self, batch: VlmBatch) -> dict[str, Any]:
        """Keyword arguments of the model's forward: shared images are encoded here, once each."""
        if batch.shared is None:
            return batch.inputs
        tokens = batch.shared.features
        if tokens is None:
            tokens = list(self.core.get_image_features(**batch.shared.pixels, return_dict=True).pooler_output)
        placed = [tokens[place] for place in batch.shared.index]
        return batch.inputs | {"mm_encoder_outputs": {"image": self.packed(placed)}}

    def generation_inputs(self, batch: VlmBatch) -> dict[str, Any]:
        """Keyword arguments of the model's `generate`."""
        return self.inputs_of(batch)

    def packed(self, tokens: list[Float[Tensor, "p d"]]) -> BaseModelOutputWithPooling:
        """Vision tokens in order of their places, as the model takes them."""
        return BaseModelOutputWithPooling(pooler_output=tokens)

    # ---- inside

    def _row(self, conversation: Conversation, counts: Iterator[int]) -> tuple[Row, list[int]]:
        """Ids of a conversation beside its labels; of an encoder-decoder, ids of the prompt and of the target."""
        ids: list[int] = []
        labels: list[int] = []
        texts, answers = self.write(conversation), conversation.answers
        for place, text in enumerate(texts):
            context = self._expanded(self.text_ids(text, is_first=place == 0), counts)
            answer = self.target_ids(answers[place].text) if place < len(answers) else []
            is_supervised = place < len(answers) and answers[place].is_supervised
            if self.family.is_encoder_decoder:
                return {"input_ids": context}, answer
            ids += context + answer
            labels += [IGNORED] * len(context) + (answer if is_supervised else [IGNORED] * len(answer))
        return {"input_ids": ids}, labels

    def _expanded(self, ids: list[int], counts: Iterator[int]) -> list[int]:
        """Ids with the image token of each image as often as it has vision tokens."""
        if self.image_token_id not in ids:
            return ids
        return [own for i in ids for own in ([i] * next(counts) if i == self.image_token_id else [i])]

    def _typed(self, row: Row) -> Row:
        """A row with its mask and its field of types."""
        ids = row["input_ids"]
        types = {self.TYPE_FIELD: [int(i == self.image_token_id) for i in ids]} if self.TYPE_FIELD else {}
        return row | {"attention_mask": [1] * len(ids)} | types

    def _token_counts(
        self, pixels: dict[str, Tensor], features: Sequence[Tensor] | None, n_images: int
    ) -> list[int]:
        counts = self.tokens_per_image(pixels) if pixels else []
        if features is None:
            return counts
        if len(features) != n_images:
            raise RequestError(
                f"Features of {len(features)} images for {n_images} images",
                "Each distinct image has its own",
                "Give one for each, in order of appearance",
            )
        return [len(tokens) for tokens in features]

    def _repeated(self, batch: VlmBatch, samples: int) -> VlmBatch:
        """Each row as often as it is sampled; its images are encoded once."""
        if samples == 1:
            return batch
        starts = [sum(len(row.images) for row in batch.conversations[:place]) for place in range(len(batch.conversations))]
        places = [
            start + own
            for start, row in zip(starts, batch.conversations, strict=True)
            for _ in range(samples)
            for own in range(len(row.images))
        ]
        shared = batch.shared
        pixels = {name: batch.inputs[name] for name in self.IMAGE_FIELDS if name in batch.inputs}
        pixels = shared.pixels if shared else pixels
        tokens = {
            name: value.repeat_interleave(samples, dim=0)
            for name, value in batch.inputs.items()
            if name not in self.IMAGE_FIELDS
        }
        index = [shared.index[place] for place in places] if shared else places
        inputs, shared = self.place_images(tokens, pixels, index, shared.features if shared else None)
        rows_again = [place for place in range(len(batch.conversations)) for _ in range(samples)]
        return replace(
            batch,
            inputs=inputs,
            shared=shared,
            conversations=[batch.conversations[place] for place in rows_again],
            grids=None if batch.grids is None else [batch.grids[place] for place in rows_again],
        )

    def layer_taps(self, tap: dict[str, Tensor], pixels: dict[str, Tensor]) -> LayerTaps:
        prefix, heads = self.prefix_tokens(), self._tower_heads()
        query, key = tap.get(vision.QUERIES), tap.get(vision.KEYS)
        if vision.BOTH in tap:
            query, key, _ = tap[vision.BOTH].chunk(3, dim=-1)
        outputs = self.split_layer(tap["output"], pixels)
        if query is None or key is None:
            return LayerTaps(outputs)
        sides = [
            [rearrange(own, "... s (k e) -> ... k s e", k=heads) for own in self.split_layer(side, pixels)]
            for side in (query, key)
        ]
        return LayerTaps([own[..., prefix:, :] for own in outputs], *sides)

    def _tower_heads(self) -> int:
        config = self.core.config.vision_config
        return getattr(config, "num_attention_heads", None) or config.num_heads

    def _control_tokens(self) -> re.Pattern[str]:
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        special |= {*self.tokenizer.all_special_tokens, *([self.image_token] if self.image_token else [])}
        written = re.compile(self.codec.control_tokens) if self.codec.control_tokens else None
        tokens = [token for token in special if token and not (written and written.fullmatch(token))]
        return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))

    def _aligned(self, batch: VlmBatch) -> Int[Tensor, "b t"]:
        if batch.labels is None:
            raise RequestError(
                "A batch without targets", "There is nothing to compute a loss of", "Prepare it with targets"
            )
        return rows.aligned(batch.labels, is_encoder_decoder=self.family.is_encoder_decoder)

    def _check_conversations(self, conversations: Sequence[Conversation]) -> None:
        if not conversations or len({row.is_answered for row in conversations}) != 1:
            raise RequestError(
                f"{len(conversations)} conversations, {sum(row.is_answered for row in conversations)} of them answered",
                "A batch has at least one, and is read for a loss or answered as a whole",
                "Batch them apart",
            )
        if self.family.is_encoder_decoder:
            longest = max(conversations, key=lambda row: len(row.turns))
            if len(longest.turns) > 2 or any(len(row.images) > 1 for row in conversations):
                raise RequestError(
                    f"A conversation of {len(longest.turns)} turns with {len(longest.images)} images",
                    f"A {self.family.name} encodes one question with at most one image and decodes one answer",
                    "Ask in one turn, or use a causal family",
                )
        for what, role in (("prompt", ("system", "user")), ("target", ("assistant",))):
            texts = [" ".join(turn.text for turn in row.turns if turn.role in role) for row in conversations]
            self.check_texts(texts, what=what)

    def _check_gaps(self, mask: Int[Tensor, "n s"]) -> None:
        """Refuse padding between tokens where layers look back over a window: it counts places, padding included."""
        text = self.core.config.get_text_config()
        kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
        has_window = getattr(text, "sliding_window", None) and "sliding_attention" in kinds
        if has_window and bool((mask[:, 1:] < mask[:, :-1]).any()):
            raise RequestError(
                f"Rows of a {self.family.name} whose answers or next turns differ in length",
                "Its layers look back over a window of places, and padding between the turns would fill it",
                "Continue the rows one at a time",
            )

    def _check_generation(
        self,
        batch: VlmBatch,
        max_new_tokens: int,
        sampling: Sampling | None,
        stop: Sequence[str],
        *,
        with_memory: bool,
    ) -> None:
        self._check_answer(max_new_tokens, stop)
        if batch.labels is not None or (with_memory and self.family.is_encoder_decoder):
            raise RequestError(
                "A batch with targets to be answered" if batch.labels is not None else f"Memory of a {self.family.name}",
                "Its rows end with their answers"
                if batch.labels is not None
                else "An encoder-decoder encodes its prompt anew each turn",
                "Prepare it without targets" if batch.labels is not None else "Use a causal family for several turns",
            )
        is_token = batch.inputs["attention_mask"]
        longest = int(is_token.sum(dim=1).max())
        if not self.family.is_encoder_decoder:
            if not bool(is_token[:, -1].all()):
                raise RequestError(
                    "Rows that end with padding",
                    "A row goes on at its right end, so the first new token would stand behind a gap",
                    "Prepare the batch with padding='left'",
                )
            if self.context_tokens is not None and longest + max_new_tokens > self.context_tokens:
                raise RequestError(
                    f"A prompt of {longest} tokens and max_new_tokens {max_new_tokens}",
                    f"The model's context is {self.context_tokens}",
                    "Shorten the prompt or the answer",
                )
        if sampling is not None and len(sampling.seeds) != len(is_token):
            raise RequestError(
                f"{len(sampling.seeds)} seeds for {len(is_token)} rows",
                "A row's draws follow from its own seed",
                "Give one seed a row",
            )

    def _check_answer(self, max_new_tokens: int, stop: Sequence[str]) -> None:
        if "" in stop:
            raise RequestError("An empty stop string", "Every text holds it, so no answer is left", "Leave it out")
        if self.context_tokens is not None and not 0 < max_new_tokens < self.context_tokens:
            raise RequestError(
                f"max_new_tokens is {max_new_tokens}, and the model's context is {self.context_tokens}",
                "An answer has at least one token, and its prompt must fit beside it",
                f"Set it between 1 and {self.context_tokens - 1}, less what prompts need",
            )


def _lengths(row: Row, labels: list[int], *, is_joined: bool) -> tuple[int, int]:
    """Tokens of a row's prompt and of its targets."""
    target = sum(label != IGNORED for label in labels)
    return len(row["input_ids"]) - target * is_joined, target
