"""Florence-2: the image and the prompt are encoded together, the answer is decoded. Boxes are tokens of their own.

A prompt is plain text, or a task of the published model such as `<OD>`, which its processor writes out. The processor
puts the image tokens, a begin and an end token around it.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from lightbox.backbones import rows
from lightbox.backbones.backbone import Backbone, spans_of
from lightbox.backbones.codecs import CoordinateCodec, FlorenceBins
from lightbox.backbones.conversation import Conversation
from lightbox.backbones.generation import Choice, EndsForSome, Generated, apart_from, settings_of
from lightbox.backbones.reading import ImageFields, Placed
from lightbox.backbones.rows import IGNORED, VlmBatch
from lightbox.backbones.vision import LayerTaps, VisionFeatures
from lightbox.errors import RequestError

LOCATION = re.compile(r"<loc_\d+>")
MOST_PROMPTS = 10_000
"""Prompts whose ids are kept."""
LEAVING = 0.25
"""Share of rows that must have ended for a batch to go on without them: to begin again costs about half a step."""
FEWEST = 16
"""Rows that a batch is not cut below: matrices of very few rows are rounded otherwise."""
PIECE = 32
"""Rows that a CPU encodes at once for an answer, so that what a layer of the tiny model makes stays in its cache."""


class Florence2Backbone(Backbone):
    """Florence-2 with its DaViT tower and BART body; parts as `Reader`."""

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self._read_prompts: dict[tuple[str, int], list[int]] = {}
        tokenizer = self.tokenizer  # looks its own tokens up anew each time
        self._frame = frozenset({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id})

    @property
    def codec(self) -> CoordinateCodec:
        """As many bins as the tokenizer has location tokens."""
        # the tiny model has 64, the published ones 1,000
        bins = sum(token.startswith("<loc_") for token in self.tokenizer.get_vocab())
        return FlorenceBins(bins)

    @property
    def text_tokens(self) -> str:
        """Location tokens; without counting them, as `codec` does."""
        return FlorenceBins.control_tokens

    @property
    def image_token(self) -> None:
        """None: the processor puts it itself."""
        return

    def write(self, conversation: Conversation) -> list[str]:
        """The question itself, behind the image token; there is no template."""
        image = self.processor.image_token if conversation.images else ""
        return [image + "\n".join(turn.text for turn in conversation.turns if turn.role != "assistant")]

    def text_ids(self, text: str, *, is_first: bool) -> list[int]:
        """Ids of what `write` gave: the processor turns a task into its sentence, and begin and end stand around it.

        Raises:
            RequestError: a task beside other text where it stands alone.
        """
        prompt = text.removeprefix(self.processor.image_token)
        image = [self.core.config.image_token_id] if prompt != text else []
        return [*image, self.tokenizer.bos_token_id, *self._prompt_ids(prompt), self.tokenizer.eos_token_id]

    def _prompt_ids(self, prompt: str) -> list[int]:
        """What the processor makes of a prompt; kept, since it takes milliseconds and the same prompts come again."""
        place = prompt, len(self.tokenizer)  # a token that is added later may stand in it
        if place not in self._read_prompts:
            if len(self._read_prompts) >= MOST_PROMPTS:
                self._read_prompts.clear()
            try:
                self._read_prompts[place] = self.processor(text=[prompt], add_special_tokens=False)["input_ids"][0]
            except ValueError as err:
                raise RequestError(
                    f"The prompt '{prompt}'",
                    f"Florence-2's processor refuses it: {err}",
                    "Give a task alone, a task with its own input, or plain text",
                ) from err
        return self._read_prompts[place]

    def target_ids(self, target: str) -> list[int]:
        """Ids of an answer between the begin and the end token: the published decoder writes both."""
        ids = self.tokenizer(target, add_special_tokens=False)["input_ids"]
        return [self.tokenizer.bos_token_id, *ids, self.end_id]

    def read_ids(self, ids: Tensor) -> str:
        """The text of generated ids with its location tokens, which count as special."""
        # skip_special_tokens would drop the location tokens with them
        text = self.tokenizer.decode([i for i in ids.tolist() if i not in self._frame], skip_special_tokens=False)
        # a decoder of words puts spaces between location tokens, one of bytes does not; a box is four in a row
        return re.sub(r"(?<=>) (?=<loc_)", "", text)

    def token_spans(self, ids: Int[Tensor, " t"]) -> list[tuple[int, int]]:
        """See `Backbone.token_spans`; of a box only the first token is read anew, since the others stand close by."""
        names = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        ends: list[int] = []
        for place, name in enumerate(names):
            is_next = place > 0 and LOCATION.fullmatch(name) and LOCATION.fullmatch(names[place - 1])
            ends.append(ends[-1] + len(name) if is_next else len(self.read_ids(ids[: place + 1])))
        return spans_of(ends)

    def tokens_per_image(self, pixels: ImageFields) -> list[int]:
        """The mean of all patches, then each patch of the last stage."""
        # one more than the grid: the mean of all patches stands first
        return [rows * columns + 1 for rows, columns in self.grids(pixels)]

    def project(self, features: VisionFeatures) -> list[Float[Tensor, "p d"]]:
        """See `Backbone.project`; all patches must be there, since positions are added by place.

        The first token is the mean of the others before projection and is not in the grid.
        """
        projector = self.part(self.family.projector)
        pairs = zip(features.patches, features.grids, strict=True)
        return [projector(rearrange(patches, "(h w) c -> 1 c h w", h=rows))[0] for patches, (rows, _) in pairs]

    def tower_layers(self) -> nn.ModuleList:
        """The last block of each of the four stages, whose patches grow."""
        return nn.ModuleList([stage[-1] for stage in self.part(self.family.vision).blocks])

    def grids(self, pixels: ImageFields) -> list[tuple[int, int]]:
        """Rows and columns after the four strided convolutions."""
        vision = self.core.config.vision_config
        count, _, *sides = pixels["pixel_values"].shape
        for size, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
            sides = [(side + 2 * padding - size) // stride + 1 for side in sides]
        return [(sides[0], sides[1])] * count

    def split_patches(self, hidden: Tensor, pixels: ImageFields) -> list[Tensor]:
        """Patches row by row."""
        return list(rearrange(hidden, "b c h w -> b (h w) c"))

    def layer_taps(self, tap: dict[str, Tensor], pixels: ImageFields) -> LayerTaps:
        """Outputs alone: half of the attention is between channels."""
        return LayerTaps(self.split_patches(tap["output"], pixels))

    def image_fields(self, pixels: ImageFields, index: list[int], features: list[Tensor] | None) -> Placed:
        """Pixels in every place: transformers' Florence-2 takes no features in their stead."""
        if features is not None:
            raise RequestError(
                "Features in place of images for a florence2",
                "Its model encodes image and prompt in one call",
                "Hand in the images",
            )
        return {name: value[index] for name, value in pixels.items()}, None


class Florence2OnFeatures(Florence2Backbone):
    """A Florence-2 whose tower stays as it is: its images are that tower's patches, b p c, computed once.

    The projector behind the tower is part of the model still, and learns.
    """

    def encode_images(self, images: Sequence[Any]) -> Float[Tensor, "b p c"]:
        """Patches of 8-bit images by the tower, without gradient, all on one grid since the processor makes squares."""
        with torch.no_grad():
            return torch.stack(self.tower(images).patches).cpu()

    def prepare(
        self,
        images: Float[Tensor, "b p c"] | None,
        prompts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        max_tokens: int = rows.UNLIMITED,
        padding: str = "right",
    ) -> VlmBatch:
        """Turn texts and patches into a batch on the CPU; see `Backbone.prepare`. Padding is always on the right."""
        rows.check_counts(images, prompts, targets)
        self.check_texts(prompts, what="prompt")
        image = "" if images is None else self.processor.image_token
        # one more than patches: their mean stands first
        counts = [] if images is None else [images.shape[1] + 1]
        ids = [self._expanded(self.text_ids(image + prompt, is_first=True), iter(counts)) for prompt in prompts]
        labels = [[]] * len(ids) if targets is None else [self.target_ids(target) for target in targets]
        lengths = [(len(row), len(answer)) for row, answer in zip(ids, labels, strict=True)]
        rows.check_lengths(lengths, limit=max_tokens, context=self.context_tokens, is_joined=False)
        pad_id = self.tokenizer.pad_token_id
        inputs = rows.padded([self._typed({"input_ids": row}) for row in ids], pad_id, side="right")
        if images is not None:
            inputs["patches"] = images
        if targets is None:
            return VlmBatch(inputs)
        stacked = rows.stacked(labels, IGNORED, side="right")
        inputs["decoder_input_ids"] = rows.shifted_right(stacked, start_id=self.decoder_start_id, pad_id=pad_id)
        return VlmBatch(inputs, stacked)

    def inputs_of(self, batch: VlmBatch) -> dict[str, Any]:
        """Embeddings of image and prompt in the place of ids and pixels."""
        inputs = dict(batch.inputs)
        ids, patches = inputs.pop("input_ids"), inputs.pop("patches", None)
        embeddings = self.core.get_input_embeddings()(ids)
        if patches is not None:
            side = round(patches.shape[1] ** 0.5)
            tokens = self.part(self.family.projector)(rearrange(patches, "b (h w) c -> b c h w", h=side))
            is_image = (ids == self.image_token_id)[..., None]
            embeddings = embeddings.masked_scatter(is_image, tokens.to(embeddings.dtype))
        return inputs | {"inputs_embeds": embeddings}

    @torch.no_grad()
    def generate(self, batch: VlmBatch, *, max_new_tokens: int, **more: Any) -> Generated:
        """See `Backbone.generate`; of rows that only take the likeliest token, those that have ended leave the batch.

        Answers of no box are short and those of boxes long, so that half of a batch would wait for the other.
        """
        if any(more.values()):
            return super().generate(batch, max_new_tokens=max_new_tokens, **more)
        self._check_generation(batch, max_new_tokens, None, (), with_memory=False)
        inputs = self.generation_inputs(batch.to(self.device))
        pad_id, count, device = self.tokenizer.pad_token_id, len(batch.inputs["input_ids"]), self.device
        ids = torch.full((count, max_new_tokens), pad_id, device=device)
        logps = torch.zeros(count, max_new_tokens, device=device)
        lengths = torch.zeros(count, dtype=torch.long, device=device)
        live, width = torch.arange(count, device=device), 0
        while True:
            room = max_new_tokens - width
            own = self.core.generation_config
            settings = settings_of(own, max_new_tokens=room, end_id=self.end_id, pad_id=pad_id)
            choice = Choice(None, room)
            ends = _EndsForMost(LEAVING, settings.eos_token_id, (), self.tokenizer, 1 + width)
            with apart_from(self.core):
                out = self.core.generate(
                    **inputs, generation_config=settings, logits_processor=[choice], stopping_criteria=[ends]
                )
            new = slice(width, out.sequences.shape[1] - 1)  # a decoder repeats its start token
            ids[live, new] = out.sequences[:, 1 + width :]
            logps[live, new] = torch.stack(choice.logps, dim=1)
            lengths[live] = (ends.lengths + width).masked_fill(ends.lengths == 0, 0)
            goes_on = (ends.lengths == 0).nonzero()[:, 0]
            live, width = live[goes_on], new.stop
            if not len(live) or width == max_new_tokens:
                break
            inputs = _of_rows(inputs, out, goes_on)
        lengths = lengths.masked_fill(lengths == 0, width)
        is_token = torch.arange(width, device=device) < lengths[:, None]
        ids = ids[:, :width]
        texts = [self.read_ids(row[own]) for row, own in zip(ids, is_token, strict=True)]
        return Generated(texts=texts, ids=ids, is_token=is_token, logps=logps[:, :width] * is_token)

    def generation_inputs(self, batch: VlmBatch) -> dict[str, Any]:
        """What the decoder reads, made here: transformers' `generate` hands embeddings to no encoder of this family."""
        encoder, mask, patches = self.core.get_encoder(), batch.inputs["attention_mask"], batch.inputs.get("patches")
        lengths, states = mask.sum(dim=1), []
        # rows of one length stand together and without a mask, which costs time though it hides nothing
        order = lengths.argsort(stable=True)
        for places in order.split(PIECE if self.device.type == "cpu" else len(order)):
            longest = int(lengths[places].max())
            own = {name: batch.inputs[name][places, :longest] for name in ("input_ids", "attention_mask")}
            inputs = self.inputs_of(VlmBatch(own if patches is None else own | {"patches": patches[places]}))
            if bool((lengths[places] == longest).all()):
                del inputs["attention_mask"]
            states += F.pad(encoder(**inputs).last_hidden_state, (0, 0, 0, mask.shape[1] - longest)).unbind()
        encoded = BaseModelOutput(last_hidden_state=torch.stack([states[place] for place in order.argsort().tolist()]))
        return {"encoder_outputs": encoded, "attention_mask": mask}


class _EndsForMost(EndsForSome):
    """The same where at least `FEWEST` rows, or none, are left."""

    def __call__(self, input_ids: Int[Tensor, "n t"], scores: Any, **more: Any) -> Bool[Tensor, " n"]:
        """See `EndsForSome`."""
        has_ended = super().__call__(input_ids, scores, **more)
        left = int((self.lengths == 0).sum())
        return self.lengths > 0 if 0 < left < FEWEST else has_ended


def _of_rows(inputs: dict[str, Any], out: Any, places: Int[Tensor, " m"]) -> dict[str, Any]:
    """Arguments with which some rows of an answer go on: what they read, what they have said, and its cache."""
    cache, said = out.past_key_values, out.sequences[places]
    cache.batch_select_indices(places)
    return {
        "encoder_outputs": BaseModelOutput(last_hidden_state=inputs["encoder_outputs"].last_hidden_state[places]),
        "attention_mask": inputs["attention_mask"][places],
        "decoder_input_ids": said,
        # by its length transformers knows that the ids are the whole answer, of which the cache holds all but the last
        "decoder_attention_mask": torch.ones_like(said),
        "past_key_values": cache,
    }
