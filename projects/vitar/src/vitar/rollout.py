"""How a policy and the environment talk, for training and for use alike; tokens and caches are the kit's.

The policy says something, `actions` reads it, `environment` carries it out, and what comes back is the next turn. Which
feedback it gets is an arm; which boxes are shown in it, its own or a control's, may differ within a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import Turn
from lightbox.backbones.dialogue import Dialogue, Rules, converse, learning_batch
from lightbox.errors import RequestError
from lightbox.paper.image_regions import view
from lightbox.paper.image_tools import Feedback, Observation, Task, observe
from lightbox.paper.replies import Reply, ReplyCodec
from vitar.rewards import Result

__all__ = ["Episode", "Talk", "learning_batch", "roll_out"]


@dataclass(frozen=True)
class Talk(Rules):
    """How a conversation goes, see `Rules`; ViTAR's has 2 turns.

    Args:
        codec: how the policy writes; a turn of the tiny one's tags takes about 8 tokens.
        feedback: what it is shown.
    """

    codec: ReplyCodec
    feedback: Feedback = Feedback()


@dataclass
class Episode(Dialogue):
    """One conversation.

    Args:
        task: what it is about.
        feedback: what the policy was shown.
        replies, observations: one each a turn of the policy; a turn that answered has an empty observation.
        failures: of its turns and its own, keys of `actions.FAILURES`.
    """

    task: Task
    feedback: Feedback
    replies: list[Reply] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)

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
    backbone: Backbone,
    tasks: Sequence[Task],
    talk: Talk,
    *,
    seeds: Sequence[int],
    group: int = 1,
    boxes: Sequence[str] = (),
) -> list[Episode]:
    """Talk about each task `group` times.

    Args:
        backbone: a causal family, without recomputed layers.
        tasks: at once; they share a batch.
        talk: how it goes.
        seeds: one an episode, >= 0; an episode follows from its own seed and not from its neighbours.
        group: episodes a task; without temperature they differ in what they are shown alone.
        boxes: `Feedback.boxes` of each episode of a group, in the place of the talk's; () leaves it.

    Returns:
        Episode g of task i at i * group + g. Nothing that a policy says raises; see `Episode.failures`.

    Raises:
        RequestError: another number of seeds or boxes, or a question that holds a control token.
    """
    if len(seeds) != len(tasks) * group or group < 1 or (boxes and len(boxes) != group):
        raise RequestError(
            f"{len(seeds)} seeds for {len(tasks)} tasks in groups of {group}, shown {', '.join(boxes) or 'alike'}",
            "Draws of an episode follow from its own seed, and each of a group is shown boxes of one kind",
            "Give one seed an episode, and one kind of boxes an episode of a group or none",
        )
    shown = [replace(talk.feedback, boxes=kind) for kind in boxes] or [talk.feedback] * group
    episodes = [Episode(task, feedback) for task in tasks for feedback in shown]

    def respond(episode: Episode, text: str, broken: str, seed: int) -> Turn | None:
        return _take_turn(episode, text, talk, broken=broken, seed=seed)

    # one view an image, so that it is encoded once for all questions about it
    views = {id(task.image): view(task.image, talk.feedback.view_px) for task in tasks}
    openings = [talk.codec.opening(task, views[id(task.image)]) for task in tasks]
    converse(backbone, openings, episodes, respond, rules=talk, seeds=seeds)
    for episode in episodes:
        episode.failures += ["no_answer"] * (episode.answer is None)
    return episodes


def _take_turn(episode: Episode, text: str, talk: Talk, *, broken: str, seed: int) -> Turn | None:
    """Read a reply and carry it out; what the environment says, None where the episode has ended."""
    task, observation = episode.task, Observation()
    is_first = not episode.replies and talk.most_turns > 1  # where there is one turn, its answer is not early
    reply = talk.codec.read(text, task.image.size, is_first=is_first, is_cut=bool(broken))
    reply = replace(reply, failure=broken) if broken else reply
    if reply.answer is None:
        observation = Observation(failure=reply.failure)
        if not reply.failure:
            observation = observe(task.image, reply.actions, episode.feedback, true_boxes=task.true_boxes, seed=seed)
    episode.replies.append(reply)
    episode.observations.append(observation)
    episode.failures += sorted({reply.failure, observation.failure} - {""})
    return None if reply.answer is not None or broken else talk.codec.told(observation)
