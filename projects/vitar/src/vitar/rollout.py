"""How a policy and the environment talk: batched, with one cache for each conversation, for training and for use alike.

A prompt is read once for all episodes of its group, with its image; each turn reads what the environment said and
nothing again. A row that has answered leaves the batch. What a policy chose stays the very ids that it chose, so an
episode's log-probabilities under the policy are those that one forward over the whole of it gives.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import Conversation, Turn, assistant
from lightbox.backbones.episodes import batch_of_ids, shared_prompts, some_rows
from lightbox.backbones.generation import Generated, Sampling, settings_of
from lightbox.backbones.rows import UNLIMITED, VlmBatch
from lightbox.errors import RequestError
from vitar.actions import Reply, ReplyCodec
from vitar.environment import Feedback, Observation, Task, observe
from vitar.rewards import Result

TURN_SEEDS = 1_000  # draws of a turn follow from the episode's seed times this, and the turn


@dataclass(frozen=True)
class Talk:
    """How a conversation goes.

    Args:
        codec: how the policy writes.
        feedback: what it is shown.
        most_turns: of the policy, >= 1; ViTAR's 2.
        max_new_tokens: longest turn of the policy; the tiny one's tags take about 8.
        temperature: of draws; 0 takes the likeliest token each time.

    Raises:
        RequestError: a number out of its range.
    """

    codec: ReplyCodec
    feedback: Feedback = Feedback()
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


@dataclass
class Episode:
    """One conversation.

    Args:
        task: what it is about.
        images: that the policy saw, in order.
        replies, observations: one each a turn of the policy; a turn that answered has an empty observation.
        ids: all tokens that were read or chosen, without padding; none where the question did not fit the context.
        is_chosen: whether the policy chose the token.
        logps: of each chosen token under the policy, in nats.
        failures: of its turns and its own, keys of `actions.FAILURES`.
    """

    task: Task
    images: list[Image.Image]
    replies: list[Reply] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    is_chosen: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def answer(self) -> str | None:
        """The final answer."""
        return self.replies[-1].answer if self.replies else None

    @property
    def result(self) -> Result:
        """What is rewarded of it; boxes are those that the policy wrote, whatever it was shown."""
        done = [own for own, seen in zip(self.replies, self.observations, strict=True) if seen.images]
        boxes = tuple(box for action in done[-1].actions for box in action.boxes) if done else ()
        has_failed = any(name not in ("early_answer", "no_answer") for name in self.failures)
        return Result(len(done), boxes, has_failed, self.answer, self.task.answer, self.task.true_boxes)


def roll_out(
    backbone: Backbone, tasks: Sequence[Task], talk: Talk, *, seeds: Sequence[int], group: int = 1
) -> list[Episode]:
    """Talk about each task `group` times.

    Args:
        backbone: a causal family, without recomputed layers.
        tasks: at once; they share a batch.
        talk: how it goes.
        seeds: one an episode, >= 0; an episode follows from its own seed and not from its neighbours.
        group: episodes a task; without temperature they are all alike.

    Returns:
        Episode g of task i at i * group + g. Nothing that a policy says raises; see `Episode.failures`.

    Raises:
        RequestError: another number of seeds, or a question that holds a control token.
    """
    if len(seeds) != len(tasks) * group or group < 1:
        raise RequestError(
            f"{len(seeds)} seeds for {len(tasks)} tasks in groups of {group}",
            "Draws of an episode follow from its own seed",
            "Give one seed an episode",
        )
    starts = [talk.codec.opening(task, talk.feedback) for task in tasks]
    episodes = [Episode(tasks[k // group], list(starts[k // group].images)) for k in range(len(seeds))]
    room = UNLIMITED if backbone.context_tokens is None else backbone.context_tokens - talk.max_new_tokens
    known: dict[tuple[Any, ...], int] = {}
    fits = [_told_tokens(backbone, start, known) <= room for start in starts]
    live = [k for k in range(len(seeds)) if fits[k // group]]
    going = [start for start, is_short in zip(starts, fits, strict=True) if is_short]
    batch = shared_prompts(backbone, going, group) if going else None
    for turn in range(talk.most_turns):
        if batch is None:
            break
        draws = [seeds[k] * TURN_SEEDS + turn for k in live]
        generated = backbone.generate(
            batch,
            max_new_tokens=talk.max_new_tokens,
            sampling=Sampling(draws, talk.temperature) if talk.temperature else None,
            with_memory=turn + 1 < talk.most_turns,
        )
        told: dict[int, Turn] = {}
        for row, k in enumerate(live):
            broken = _keep_tokens(backbone, episodes[k], batch, generated, row)
            next_turn = _take_turn(episodes[k], generated.texts[row], talk, broken=broken, seed=draws[row])
            if next_turn is None or generated.memory is None:
                continue
            so_far = Conversation((*batch.conversations[row].turns, assistant(generated.texts[row]), next_turn))
            if len(episodes[k].ids) + _told_tokens(backbone, so_far, known) > room:
                episodes[k].failures.append("too_long")
                continue
            episodes[k].images += next_turn.images
            told[row] = next_turn
        live = [live[row] for row in told]
        batch = backbone.continued(some_rows(generated, list(told)), list(told.values())) if told else None
    for k, episode in enumerate(episodes):
        episode.failures += ["too_long"] * (not fits[k // group]) + ["no_answer"] * (episode.answer is None)
    return episodes


def learning_batch(backbone: Backbone, episodes: Sequence[Episode]) -> VlmBatch:
    """Episodes with tokens as one batch for `Backbone.token_logps`; labels are the tokens that the policy chose.

    So what it was told is in no loss and no count. An image that a group shares is encoded once.
    """
    fields = ([getattr(episode, name) for episode in episodes] for name in ("ids", "is_chosen", "images"))
    return batch_of_ids(backbone, *fields)


def tally(episodes: Sequence[Episode]) -> dict[str, float]:
    """What is logged of episodes beside their rewards.

    Returns:
        act_rate: share of episodes with an act that was carried out; chosen_tokens: mean of an episode; box_area: mean
        fraction of the image of the boxes that were written, 0 without any; and how often each failure was met, under
        its own name.
    """
    results, n = [episode.result for episode in episodes], len(episodes)
    areas = [box.area for result in results for box in result.boxes]
    counts = Counter(name for episode in episodes for name in episode.failures)
    return {
        "act_rate": sum(result.acts > 0 for result in results) / n,
        "chosen_tokens": sum(len(episode.logps) for episode in episodes) / n,
        "box_area": sum(areas) / len(areas) if areas else 0.0,
    } | {name: float(count) for name, count in counts.items()}


def _told_tokens(backbone: Backbone, conversation: Conversation, known: dict[tuple[Any, ...], int]) -> int:
    """Tokens of the last piece of a conversation, images included; turns alike in texts and sizes are counted once."""
    is_first, last = not conversation.answers, conversation.turns[-1]
    key = (is_first, *(part if isinstance(part, str) else part.size for part in last.parts))
    if key not in known:
        ids = backbone.text_ids(backbone.write(conversation)[-1], is_first=is_first)
        images = backbone.tokens_per_image(backbone.read_images(last.images)) if last.images else []
        known[key] = len(ids) + sum(images) - len(images)
    return known[key]


def _keep_tokens(backbone: Backbone, episode: Episode, batch: VlmBatch, generated: Generated, row: int) -> str:
    """Add what was told and what was chosen since the turn before; why the turn is no whole one, "" where it is."""
    own, pad_id = backbone.core.generation_config, backbone.tokenizer.pad_token_id
    ends = settings_of(own, max_new_tokens=1, end_id=backbone.end_id, pad_id=pad_id).eos_token_id
    read = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()].tolist()
    chosen = generated.ids[row][generated.is_token[row]].tolist()
    broken = "" if chosen[-1] in ends else "cut"
    if backbone.image_token_id in chosen:  # a forward over the whole would look for its image
        chosen, broken = chosen[: chosen.index(backbone.image_token_id)], "image_token"
    told = len(read) - len(episode.ids)
    episode.ids = read + chosen
    episode.is_chosen += [False] * told + [True] * len(chosen)
    episode.logps += generated.logps[row][: len(chosen)].tolist()
    return broken


def _take_turn(episode: Episode, text: str, talk: Talk, *, broken: str, seed: int) -> Turn | None:
    """Read a reply and carry it out; what the environment says, None where the episode has ended."""
    task, observation = episode.task, Observation()
    is_first = not episode.replies and talk.most_turns > 1  # where there is one turn, its answer is not early
    reply = talk.codec.read(text, task.image.size, is_first=is_first, is_cut=bool(broken))
    reply = replace(reply, failure=broken) if broken else reply
    if reply.answer is None:
        observation = Observation(failure=reply.failure)
        if not reply.failure:
            observation = observe(task.image, reply.actions, talk.feedback, true_boxes=task.true_boxes, seed=seed)
    episode.replies.append(reply)
    episode.observations.append(observation)
    episode.failures += sorted({reply.failure, observation.failure} - {""})
    return None if reply.answer is not None or broken else talk.codec.told(observation)
