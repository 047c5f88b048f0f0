"""A model and whoever answers it, turn by turn: batched, with one cache for each conversation.

A prompt is read once for all dialogues of its group, with its images; each turn reads what was said to the model and
nothing again. A row that has ended leaves the batch. What the model chose stays the very ids that it chose, so a
dialogue's log-probabilities are those that one forward over the whole of it gives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from PIL import Image

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import Conversation, Turn, assistant
from lightbox.backbones.episodes import batch_of_ids, shared_prompts, some_rows
from lightbox.backbones.generation import Generated, Sampling, settings_of
from lightbox.backbones.rows import UNLIMITED, VlmBatch
from lightbox.errors import RequestError

TURN_SEEDS = 1_000  # draws of a turn follow from the dialogue's seed times this, and the turn
CUT, IMAGE_TOKEN, TOO_LONG = "cut", "image_token", "too_long"
"""Why a turn is no whole one, cut by its length or ended by a token that stands for an image; why a dialogue ended."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a dialogue goes.

    Args:
        most_turns: of the model, >= 1.
        max_new_tokens: longest turn of the model.
        temperature: of draws; 0 takes the likeliest token each time.

    Raises:
        RequestError: a number out of its range.
    """

    most_turns: int = 2
    max_new_tokens: int = 16
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (1 <= self.most_turns <= TURN_SEEDS and self.max_new_tokens >= 1 and self.temperature >= 0):
            raise RequestError(
                f"{self.most_turns} turns of {self.max_new_tokens} tokens at temperature {self.temperature}",
                f"There are 1 to {TURN_SEEDS} turns of at least one token, and a temperature is at least 0",
                "Correct them",
            )


@dataclass(kw_only=True)
class Dialogue:
    """One conversation as tokens.

    Args:
        images: that the model saw, in order.
        texts: what it said, turn by turn.
        ids: all tokens that were read or chosen, without padding; none where the opening did not fit the context.
        is_chosen: whether the model chose the token.
        logps: of each chosen token under the model, in nats.
        failures: names; `TOO_LONG` is added here.
    """

    images: list[Image.Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    is_chosen: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


D = TypeVar("D", bound=Dialogue)
Respond = Callable[[D, str, str, int], Turn | None]
"""(dialogue, what the model said, `CUT`, `IMAGE_TOKEN` or "", the turn's seed) -> what it is told; None ends it."""


def converse(
    backbone: Backbone,
    openings: Sequence[Conversation],
    dialogues: Sequence[D],
    respond: Respond[D],
    *,
    rules: Rules,
    seeds: Sequence[int],
) -> None:
    """Carry on dialogues until each has ended; they are filled in place.

    Args:
        backbone: a causal family, without recomputed layers.
        openings: what a model reads first; they share a batch.
        dialogues: empty ones, as many for each opening; those of opening i stand in a row.
        respond: answers the model; nothing that a model says raises.
        rules: lengths and temperature.
        seeds: one a dialogue, >= 0; a dialogue follows from its own seed and not from its neighbours.

    Raises:
        RequestError: another number of seeds or dialogues, or an opening that holds a control token.
    """
    group = len(dialogues) // len(openings) if openings else 0
    if group < 1 or len(dialogues) != group * len(openings) or len(seeds) != len(dialogues):
        raise RequestError(
            f"{len(seeds)} seeds for {len(dialogues)} dialogues about {len(openings)} openings",
            "Draws of a dialogue follow from its own seed, and each opening has as many dialogues",
            "Give one seed a dialogue",
        )
    for k, dialogue in enumerate(dialogues):
        dialogue.images += openings[k // group].images
    room = UNLIMITED if backbone.context_tokens is None else backbone.context_tokens - rules.max_new_tokens
    own, pad_id = backbone.core.generation_config, backbone.tokenizer.pad_token_id
    ends = settings_of(own, max_new_tokens=1, end_id=backbone.end_id, pad_id=pad_id).eos_token_id
    lengths: dict[tuple[Any, ...], int] = {}
    fits = [_last_tokens(backbone, opening, lengths) <= room for opening in openings]
    live = [k for k in range(len(dialogues)) if fits[k // group]]
    short = [opening for opening, is_short in zip(openings, fits, strict=True) if is_short]
    batch = shared_prompts(backbone, short, group) if short else None
    for turn in range(rules.most_turns):
        if batch is None:
            break
        draws = [seeds[k] * TURN_SEEDS + turn for k in live]
        generated = backbone.generate(
            batch,
            max_new_tokens=rules.max_new_tokens,
            sampling=Sampling(draws, rules.temperature) if rules.temperature else None,
            with_memory=turn + 1 < rules.most_turns,
        )
        told: dict[int, Turn] = {}
        for row, k in enumerate(live):
            broken = _keep_tokens(backbone, dialogues[k], batch, generated, row, ends)
            next_turn = respond(dialogues[k], generated.texts[row], broken, draws[row])
            if next_turn is None or broken or generated.memory is None:
                continue
            so_far = Conversation((*batch.conversations[row].turns, assistant(generated.texts[row]), next_turn))
            if len(dialogues[k].ids) + _last_tokens(backbone, so_far, lengths) > room:
                dialogues[k].failures.append(TOO_LONG)
                continue
            dialogues[k].images += next_turn.images
            told[row] = next_turn
        live = [live[row] for row in told]
        batch = backbone.continued(some_rows(generated, list(told)), list(told.values())) if told else None
    for k, dialogue in enumerate(dialogues):
        dialogue.failures += [TOO_LONG] * (not fits[k // group])


def learning_batch(backbone: Backbone, dialogues: Sequence[Dialogue]) -> VlmBatch:
    """Dialogues with tokens as one batch for `Backbone.token_logps`; labels are the tokens that the model chose.

    So what it was told is in no loss and no count. An image that a group shares is encoded once.
    """
    fields = ([getattr(dialogue, name) for dialogue in dialogues] for name in ("ids", "is_chosen", "images"))
    return batch_of_ids(backbone, *fields)


def _last_tokens(backbone: Backbone, conversation: Conversation, lengths: dict[tuple[Any, ...], int]) -> int:
    """Tokens of the last piece of a conversation, images included; turns alike in texts and sizes are counted once."""
    is_first, last = not conversation.answers, conversation.turns[-1]
    key = (is_first, *(part if isinstance(part, str) else part.size for part in last.parts))
    if key not in lengths:
        ids = backbone.text_ids(backbone.write(conversation)[-1], is_first=is_first)
        images = backbone.tokens_per_image(backbone.read_images(last.images)) if last.images else []
        lengths[key] = len(ids) + sum(images) - len(images)
    return lengths[key]


def _keep_tokens(
    backbone: Backbone, dialogue: Dialogue, batch: VlmBatch, generated: Generated, row: int, ends: Sequence[int]
) -> str:
    """Add what was told and what was chosen since the turn before; why the turn is no whole one, "" where it is."""
    read = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()].tolist()
    chosen = generated.ids[row][generated.is_token[row]].tolist()
    broken = "" if chosen[-1] in ends else CUT
    if backbone.image_token_id in chosen:  # a forward over the whole would look for its image
        chosen, broken = chosen[: chosen.index(backbone.image_token_id)], IMAGE_TOKEN
    told = len(read) - len(dialogue.ids)
    dialogue.ids = read + chosen
    dialogue.is_chosen += [False] * told + [True] * len(chosen)
    dialogue.logps += generated.logps[row][: len(chosen)].tolist()
    dialogue.texts.append(generated.texts[row])
    return broken
