"""What a model says: loss and log-probabilities of given text, answers of its own, features of its tower.

What it reads is made by `reading.Reader`, which a family overrides in its own file together with the layout of its
features (`grids`, `split_patches`, `project`); it gets its row in `loading.CLASSES`.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lightbox.backbones import rows, vision
from lightbox.backbones.conversation import Conversation, Turn, assistant
from lightbox.backbones.generation import Choice, Ends, Generated, Memory, Sampling, apart_from, cut_at, settings_of
from lightbox.backbones.reading import ImageFields, Reader
from lightbox.backbones.rows import IGNORED, UNLIMITED, Row, SharedImages, VlmBatch
from lightbox.backbones.vision import LayerTaps, VisionFeatures
from lightbox.errors import RequestError
from lightbox.losses.language import row_cross_entropy, row_logps, rows_before, token_logps

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of `model.dtype` -> what torch calls them."""


class Backbone(Reader):
    """A pretrained generator with its processor; a family is a subclass. See `Reader` for its arguments."""

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
            RequestError: places of another shape, or a batch that continues, whose earlier images are in its cache.
        """
        if batch.cache is not None:
            raise RequestError(
                "States of a batch that continues",
                "Its earlier turns, with their images, are in its cache and would not be read",
                "Ask generate for states, or prepare the whole conversation",
            )
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
            with_states: keep what the head read, as many bytes a token as a row of the width has.
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
        settings = settings_of(
            self.core.generation_config,
            max_new_tokens=max_new_tokens,
            end_id=self.end_id,
            pad_id=self.tokenizer.pad_token_id,
        )
        choice, ends = Choice(sampling, max_new_tokens), Ends(settings.eos_token_id, stop, self.tokenizer, old)
        head = self.part(self.family.head)
        with vision.read_by(head) if with_states else nullcontext([]) as read, apart_from(self.core):
            # adapters lie inside the core, so they count; a data-parallel wrapper has no generate
            out = self.core.generate(
                **inputs, generation_config=settings, logits_processor=[choice], stopping_criteria=[ends]
            )
        ids = out.sequences[:, old:]
        lengths = ends.lengths.masked_fill(ends.lengths == 0, ids.shape[1])
        is_token = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        memory = None
        if with_memory:
            tokens = {"input_ids": out.sequences}
            for name in batch.inputs.keys() & {"attention_mask", self.TYPE_FIELD}:
                more = is_token.long() if name == "attention_mask" else torch.zeros_like(ids)
                tokens[name] = torch.cat([batch.inputs[name], more], dim=1)
            cache = out.past_key_values
            memory = Memory(batch.conversations, tokens, batch.grids, cache, cache.get_seq_length())
        return Generated(
            texts=[cut_at(self.read_ids(row[own]), stop) for row, own in zip(ids, is_token, strict=True)],
            ids=ids,
            is_token=is_token,
            logps=torch.stack(choice.logps, dim=1) * is_token,
            states=torch.stack([state[:, -1] for state in read], dim=1) if read else None,
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

    def continued(self, generated: Generated, turns: Sequence[Turn], *, max_tokens: int = UNLIMITED) -> VlmBatch:
        """The batch of a next turn behind answers, which reads the new turn only.

        Answers stay the very ids that were chosen; one that was cut off gets its end token first. The memory grows in
        place, so it is continued once.

        Args:
            generated: with memory.
            turns: a user's, one a row of `generated`.
            max_tokens: longest row, all turns together.

        Raises:
            RequestError: answers without memory or continued before, another number of turns, rows with gaps where
                layers look back over a window, and as `prepare_conversations`.
        """
        memory = generated.memory
        if memory is None or len(turns) != len(generated.ids):
            raise RequestError(
                f"{len(turns)} turns behind {len(generated.ids)} answers{'' if memory else ' without memory'}",
                "A cache holds what was read row by row, and each row goes on by one turn",
                "Give one turn an answer, and generate with with_memory=True",
            )
        if memory.cache.get_seq_length() != memory.cached:
            raise RequestError(
                f"A memory of {memory.cached} tokens a row",
                f"Its cache holds {memory.cache.get_seq_length()}: it was continued before, and grew in place",
                "Copy the answers with copy.deepcopy before they are continued twice",
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
            ids = self._expanded(self.text_ids(self.write(conversation)[-1], is_first=False), counts)
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

    def token_spans(self, ids: Int[Tensor, " t"]) -> list[tuple[int, int]]:
        """First and one past the last character in `read_ids(ids)` that each id adds; empty for what is not text.

        Of a sign that several ids make byte by byte, the last one adds it.
        """
        return spans_of([len(self.read_ids(ids[: place + 1])) for place in range(len(ids))])

    def positions(self, tokens: dict[str, Tensor], grids: list[Tensor] | None) -> Tensor | None:
        """Position of every token of a continued row; None leaves them to the model, which counts by the mask."""
        return None

    # ---- vision in two halves

    def tower(self, images: Sequence[Image.Image], *, layers: Sequence[int] = ()) -> VisionFeatures:
        """The first half of vision: images -> features, in the mode and with the gradients that the model has.

        The projector runs too and its result is dropped, a small part of the work, so that the model's own code says
        which features it reads.

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
        return vision.blocks_of(self.part(self.family.vision))

    def prefix_tokens(self) -> int:
        """Leading tokens of the tower that are no patches."""
        return 0

    def split_patches(self, hidden: Tensor, pixels: ImageFields) -> list[Tensor]:
        """What the projector reads, one entry an image; see `VisionFeatures`."""
        return list(hidden)

    def split_layer(self, hidden: Tensor, pixels: ImageFields) -> list[Tensor]:
        """Rows of a layer of the tower, one entry an image, patches row by row."""
        return self.split_patches(hidden, pixels)

    def layer_taps(self, tap: dict[str, Tensor], pixels: ImageFields) -> LayerTaps:
        """What `vision.tapped` recorded of a layer, one entry an image."""
        prefix, heads = self.prefix_tokens(), self._tower_heads()
        query, key = tap.get(vision.QUERIES), tap.get(vision.KEYS)
        if vision.BOTH in tap:
            query, key, _ = tap[vision.BOTH].chunk(3, dim=-1)
        outputs = [own[..., prefix:, :] for own in self.split_layer(tap["output"], pixels)]
        if query is None or key is None:
            return LayerTaps(outputs)
        sides = [
            [rearrange(own, "... s (k e) -> ... k s e", k=heads) for own in self.split_layer(side, pixels)]
            for side in (query, key)
        ]
        return LayerTaps(outputs, *sides)

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

    def _repeated(self, batch: VlmBatch, samples: int) -> VlmBatch:
        """Each row as often as it is sampled; its images are encoded once."""
        if samples == 1:
            return batch
        counts = [len(row.images) for row in batch.conversations]
        places = [place for own in torch.arange(sum(counts)).split(counts) for place in own.tolist() * samples]
        shared = batch.shared
        pixels = {name: batch.inputs[name] for name in self.IMAGE_FIELDS if name in batch.inputs}
        pixels = shared.pixels if shared else pixels
        tokens = {
            name: value.repeat_interleave(samples, dim=0)
            for name, value in batch.inputs.items()
            if name not in self.IMAGE_FIELDS
        }
        index = [shared.index[place] for place in places] if shared else places
        fields, shared = self.image_fields(pixels, index, shared.features if shared else None)
        rows_again = [place for place in range(len(batch.conversations)) for _ in range(samples)]
        return replace(
            batch,
            inputs=tokens | fields,
            shared=shared,
            conversations=[batch.conversations[place] for place in rows_again],
            grids=None if batch.grids is None else [batch.grids[place] for place in rows_again],
        )

    def _tower_heads(self) -> int:
        config = self.core.config.vision_config
        return getattr(config, "num_attention_heads", None) or config.num_heads

    def _aligned(self, batch: VlmBatch) -> Int[Tensor, "b t"]:
        if batch.labels is None:
            raise RequestError(
                "A batch without targets", "There is nothing to compute a loss of", "Prepare it with targets"
            )
        return rows.aligned(batch.labels, is_encoder_decoder=self.family.is_encoder_decoder)

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
        if batch.labels is not None:
            raise RequestError(
                "A batch with targets to be answered", "Its rows end with their answers", "Prepare it without targets"
            )
        if with_memory and self.family.is_encoder_decoder:
            raise RequestError(
                f"Memory of a {self.family.name}",
                "An encoder-decoder encodes its prompt anew each turn",
                "Use a causal family for several turns",
            )
        if any(module.training and getattr(module, "gradient_checkpointing", False) for module in self.core.modules()):
            raise RequestError(
                "A model in training mode whose layers are computed again",
                "Such layers keep no cache, so each token would be read alone",
                "Call model.eval() first",
            )
        mask = batch.inputs["attention_mask"]
        if batch.cache is not None and batch.cache.get_seq_length() >= mask.shape[1]:
            raise RequestError(
                "A batch that continues and was answered before",
                "Its cache has grown by that answer",
                "Make the batch anew, from a copy of the answers",
            )
        if sampling is not None and len(sampling.seeds) != len(mask):
            raise RequestError(
                f"{len(sampling.seeds)} seeds for {len(mask)} rows",
                "A row's draws follow from its own seed",
                "Give one seed a row",
            )
        if sampling is not None and batch.cache is not None and sampling.samples > 1:
            raise RequestError(
                f"{sampling.samples} samples of a batch that continues",
                "A cache goes on with as many rows as it has",
                "Draw several samples in the first turn",
            )
        if self.family.is_encoder_decoder:
            return
        if not bool(mask[:, -1].all()):
            raise RequestError(
                "Rows that end with padding",
                "A row goes on at its right end, so the first new token would stand behind a gap",
                "Prepare the batch with padding='left'",
            )
        longest = int(mask.sum(dim=1).max())
        if self.context_tokens is not None and longest + max_new_tokens > self.context_tokens:
            raise RequestError(
                f"A prompt of {longest} tokens and max_new_tokens {max_new_tokens}",
                f"The model's context is {self.context_tokens}",
                "Shorten the prompt or the answer",
            )

    def _check_answer(self, max_new_tokens: int, stop: Sequence[str]) -> None:
        if isinstance(stop, str) or not all(isinstance(string, str) for string in stop):
            raise RequestError(f"stop is {stop!r}", "It is a list of strings", "Write stop=[...]")
        if "" in stop:
            raise RequestError("An empty stop string", "Every text holds it, so no answer is left", "Leave it out")
        most = UNLIMITED if self.context_tokens is None else self.context_tokens
        if not 0 < max_new_tokens < most:
            raise RequestError(
                f"max_new_tokens is {max_new_tokens}, and the model's context is {self.context_tokens}",
                "An answer has at least one token, and its prompt must fit beside it",
                f"Set it between 1 and {most - 1}, less what prompts need",
            )


def spans_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Spans of tokens from the lengths of ever longer beginnings of a text; see `Backbone.token_spans`.

    Example:
        >>> spans_of([3, 3, 6, 5])
        [(0, 3), (3, 3), (3, 5), (5, 5)]
    """
    ends = list(accumulate(reversed(lengths), min))[::-1]  # an unfinished sign reads as several
    return list(zip([0, *ends], ends, strict=False))
