"""What a model reads: conversations -> rows of ids and labels, images -> pixels, joined in one batch.

What must be exact is here, once: labels, padding, the places of images. What a family may say differently (how a prompt
is written and read, what an image costs) are the methods under "text" and "images", which it overrides in its own file.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Self

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from lightbox.backbones import rows, weights
from lightbox.backbones.attention import AttentionChoice
from lightbox.backbones.codecs import CODECS, CoordinateCodec
from lightbox.backbones.conversation import Conversation, check_image, conversations_of, in_colour, pieces
from lightbox.backbones.families import Family
from lightbox.backbones.rows import IGNORED, Row, SharedImages, VlmBatch
from lightbox.errors import RequestError

ImageFields = dict[str, Tensor]
"""What a tower reads of images, by field of the image processor."""
Placed = tuple[dict[str, Tensor], SharedImages | None]
"""Fields of images that stand beside the rows, and images that stand apart."""


class Reader:
    """A pretrained model with its processor; `Backbone` adds what it says.

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
        order = {id(image): place for place, image in enumerate(distinct)}
        places = [[order[id(image)] for image in row.images] for row in conversations]
        pixels = self.read_images(distinct) if distinct else {}
        counts = self._token_counts(pixels, features, len(distinct))
        prompts, answers = [], []
        for conversation, own in zip(conversations, places, strict=True):
            row, labels = self._row(conversation, iter([counts[place] for place in own]))
            prompts.append(row)
            answers.append(labels)
        is_apart, pad_id = self.family.is_encoder_decoder, self.tokenizer.pad_token_id
        rows.check_lengths(
            [_lengths(row, labels, is_joined=not is_apart) for row, labels in zip(prompts, answers, strict=True)],
            limit=max_tokens,
            context=self.context_tokens,
            is_joined=not is_apart,
        )
        if is_apart:
            padding = "right"  # an encoder with absolute positions reads another text behind padding
        inputs = rows.padded([self._typed(row) for row in prompts], pad_id, side=padding)
        labels = None
        if conversations[0].is_answered:
            labels = rows.stacked(answers, IGNORED, side=padding)
            if is_apart:
                # made here, not by the model from labels: with labels it would compute its own loss over full logits
                inputs["decoder_input_ids"] = rows.shifted_right(labels, start_id=self.decoder_start_id, pad_id=pad_id)
        index = [place for own in places for place in own]
        fields, shared = self.image_fields(pixels, index, None if features is None else list(features))
        grids = self.grids_of(pixels, index, [len(own) for own in places])
        # pictures of rows that are learnt from would travel from worker processes for nothing
        read = [] if conversations[0].is_answered else list(conversations)
        return VlmBatch(inputs | fields, labels, shared=shared, conversations=read, grids=grids)

    def check_texts(self, texts: Sequence[str], *, what: str = "text") -> None:
        """Refuse texts that hold a control token, such as the end of a turn: they would be read as one.

        Control tokens are the tokenizer's special tokens and the image's, without `text_tokens`. Data sets are checked
        by the same rule, before a run.

        Raises:
            RequestError: with the item and the token.
        """
        expression = _control_tokens(self.tokenizer, len(self.tokenizer), self.image_token or "", self.text_tokens)
        for index, text in enumerate(texts):
            match = expression.search(text) if isinstance(text, str) else None
            if match:
                raise RequestError(
                    f"The {what} of item {index} contains '{match[0]}'",
                    "The tokenizer reads that as a control token: it could end a turn, or stand for an image, and the "
                    "image token count would not fit the prompt",
                    "Leave it out of the text; the family writes control tokens where they belong",
                )

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

    @property
    def text_tokens(self) -> str:
        """Expression of special tokens that a text may hold: those that boxes are written with."""
        return self.codec.control_tokens

    def tokens_per_image(self, pixels: ImageFields) -> list[int]:
        """How many tokens the tower and projector give for each image, from the model's config and the pixels."""
        raise self.no_images()

    def read_images(self, images: Sequence[Image.Image]) -> ImageFields:
        """What the tower reads of images, on the CPU; pixels in the dtype of the weights, as a 16-bit tower asks."""
        if not self.family.has_vision:
            raise self.no_images()
        for place, image in enumerate(images):
            check_image(image, f"Image {place}")
        encoded = self.processor.image_processor([in_colour(image) for image in images], return_tensors="pt")
        return {
            name: encoded[name].to(self.dtype if encoded[name].is_floating_point() else None)
            for name in self.IMAGE_FIELDS
        }

    def grids(self, pixels: ImageFields) -> list[tuple[int, int]]:
        """Rows and columns of each image's tokens."""
        raise self.no_images()

    def image_fields(self, pixels: ImageFields, index: list[int], features: list[Tensor] | None) -> Placed:
        """Pixels beside the rows where each image stands in one place, and apart from them where they are shared."""
        if not index or (features is None and index == list(range(len(index)))):
            return pixels, None
        return {}, SharedImages(pixels, index, features)

    def grids_of(self, pixels: ImageFields, index: list[int], per_row: list[int]) -> list[Tensor] | None:
        """Sizes in patches of each row's images, for families that place tokens by them."""
        return None

    def no_images(self) -> RequestError:
        """The error for images where the family has no tower."""
        return RequestError(
            f"Images for {self.name}, a {self.family.name}",
            "It reads text only",
            "Leave images out, or use another backbone",
        )

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
        image = self.image_token_id  # looked up in the model's config, so once a row and not once a token
        if image not in ids:
            return ids
        return [own for i in ids for own in ([i] * next(counts) if i == image else [i])]

    def _typed(self, row: Row) -> Row:
        """A row with its mask and its field of types."""
        ids, types = row["input_ids"], {}
        if self.TYPE_FIELD:
            image = self.image_token_id
            types = {self.TYPE_FIELD: [int(i == image) for i in ids]}
        return row | {"attention_mask": [1] * len(ids)} | types

    def _token_counts(self, pixels: ImageFields, features: Sequence[Tensor] | None, n_images: int) -> list[int]:
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

    def _check_conversations(self, conversations: Sequence[Conversation]) -> None:
        if not conversations or len({row.is_answered for row in conversations}) != 1:
            raise RequestError(
                f"{len(conversations)} conversations, {sum(row.is_answered for row in conversations)} of them answered",
                "A batch has at least one, and is read for a loss or answered as a whole",
                "Batch them apart",
            )
        if self.family.is_encoder_decoder:
            longest = max(conversations, key=lambda row: len(row.turns))
            answers = [answer for row in conversations for answer in row.answers]
            if not all(answer.is_supervised for answer in answers):
                raise RequestError(
                    f"An answer without loss for a {self.family.name}",
                    "It decodes one answer, and the loss is of that",
                    "Leave is_supervised as it is",
                )
            if len(longest.turns) > 2 or any(len(row.images) > 1 for row in conversations):
                raise RequestError(
                    f"A conversation of {len(longest.turns)} turns with {len(longest.images)} images",
                    f"A {self.family.name} encodes one question with at most one image and decodes one answer",
                    "Ask in one turn, or use a causal family",
                )
        for what, role in (("prompt", ("system", "user")), ("target", ("assistant",))):
            texts = ["".join(turn.text for turn in row.turns if turn.role in role) for row in conversations]
            self.check_texts(texts, what=what)


def _lengths(row: Row, labels: list[int], *, is_joined: bool) -> tuple[int, int]:
    """Tokens of a row's prompt and of its targets."""
    target = sum(label != IGNORED for label in labels)
    return len(row["input_ids"]) - target * is_joined, target


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Any, size: int, image_token: str, text_tokens: str) -> re.Pattern[str]:
    """Finds special tokens in text; `size` is the tokenizer's, which may have got tokens since it was asked."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {*tokenizer.all_special_tokens, image_token} - {""}
    tokens = [token for token in special if not re.fullmatch(text_tokens, token)]
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
