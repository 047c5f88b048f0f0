"""What a policy says in a turn, as text and back: the frame, tags with location tokens, and words alone. No torch.

A reply is one or more actions, or an answer. Whatever else a text is, it is a failure with a name, see `FAILURES`:
parsers are strict. A paper's own protocol is a further `ReplyCodec` in the paper.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from PIL import Image

from lightbox.backbones.conversation import Conversation, Turn, user
from lightbox.backbones.edge_bins import EdgeBins
from lightbox.paper import image_tools
from lightbox.paper.image_regions import box_fault, from_px
from lightbox.paper.image_tools import Action, Observation, Task
from lightbox.records import Box

FAILURES = image_tools.FAILURES | {
    "cut": "a reply that was cut by its length",
    "no_json": "not one JSON object and nothing else",
    "no_tag": "no tag, or location tokens before the first one",
    "wrong_key": "a key that is missing, unknown or there twice",
    "wrong_type": "a thought, action, name or answer of another type, or an empty answer",
    "early_answer": "an answer in the first turn, before a second look; it is taken as the answer",
    "image_token": "the token that stands for an image, where there is none",
    "too_long": "a conversation that would outgrow the model's context",
    "no_answer": "an episode that ended without one",
}
"""Every way in which a turn can fail; the last two end an episode."""
Size = tuple[int, int]
"""Width and height of the image as the user has it, in pixels."""


@dataclass(frozen=True)
class Reply:
    """What a policy said in a turn: a thought, maybe empty, and actions, an answer or a failure, a key of `FAILURES`.

    Only an early answer is a failure and an answer.
    """

    thought: str = ""
    actions: tuple[Action, ...] = ()
    answer: str | None = None
    failure: str = ""


class UnreadableError(ValueError):
    """A text that is no reply; its argument is a key of `FAILURES`."""


class ReplyCodec(ABC):
    """Replies as text and back; boxes come back no smaller, and wider by less than a step at each end."""

    system = ""
    """What the system's turn says; "" for none."""

    @abstractmethod
    def write(self, reply: Reply, size_px: Size) -> str:
        """A reply without failure as text."""

    @abstractmethod
    def parse(self, text: str, size_px: Size) -> Reply:
        """Read a whole text; UnreadableError for what is no reply."""

    @abstractmethod
    def remark(self, observation: Observation) -> str:
        """What the environment says beside its images; "" for nothing."""

    def opening(self, task: Task, seen: Image.Image) -> Conversation:
        """What a policy reads first, beside the view of the task's image."""
        question = user(seen, task.question)
        return Conversation((Turn("system", (self.system,)), question) if self.system else (question,))

    def told(self, observation: Observation) -> Turn:
        """What a policy reads after its actions."""
        remark = self.remark(observation)
        return user(*observation.images, *([remark] if remark else []))

    def read(self, text: str, size_px: Size, *, is_first: bool = False, is_cut: bool = False) -> Reply:
        """Read what a policy said, without the end token; never raises.

        In the first turn an answer comes early. A text that was cut by its length is not looked into, as in ViTAR's
        code.
        """
        if is_cut:
            return Reply(failure="cut")
        try:
            reply = self.parse(text, size_px)
        except UnreadableError as err:
            return Reply(failure=str(err))
        return replace(reply, failure="early_answer") if is_first and reply.answer is not None else reply


@dataclass(frozen=True)
class TagReplies(ReplyCodec):
    """The tiny policy's protocol: a thought, a tag, location tokens; six tokens for a marked box with its end token.

    A window has two location tokens behind its box, level and width.

    Args:
        bins: of an image each way.

    Example:
        >>> TagReplies(8).write(Reply(actions=(Action("mark", (Box(0.0, 0.25, 0.5, 1.0),)),)), (64, 64))
        '<mark><loc_0><loc_2><loc_3><loc_7>'
        >>> TagReplies().read("it is solid<answer>disc", (64, 64)).answer
        'disc'
    """

    bins: int = 64

    @property
    def tokens(self) -> list[str]:
        """What a tokenizer must know as one token each, and not as special ones, which decoding leaves out."""
        return [*(f"<{tag}>" for tag in (*image_tools.TOOLS, "answer")), *(f"<loc_{k}>" for k in range(self.bins))]

    def write(self, reply: Reply, size_px: Size) -> str:
        """See `ReplyCodec`."""
        text = reply.thought
        for action in reply.actions:
            boxes = "".join(EdgeBins(self.bins).encode(box, *size_px) for box in action.boxes)
            window = action.window if action.tool == "window" else ()
            text += f"<{action.tool}>{boxes}"
            text += "".join(f"<loc_{min(int(value * self.bins), self.bins - 1)}>" for value in window)
        return text if reply.answer is None else f"{text}<answer>{reply.answer}"

    def parse(self, text: str, size_px: Size) -> Reply:
        """See `ReplyCodec`."""
        thought, *rest = re.split(rf"<({'|'.join((*image_tools.TOOLS, 'answer'))})>", text)
        demand(bool(rest) and "<loc_" not in thought, "no_tag")
        tags, bodies = rest[::2], rest[1::2]
        if "answer" in tags:
            demand(len(tags) == 1, "too_many_actions")
            demand(bool(bodies[0].strip()), "wrong_type")
            return Reply(thought, answer=bodies[0])
        actions = (self._action(tool, body, size_px) for tool, body in zip(tags, bodies, strict=True))
        return Reply(thought, tuple(actions))

    def remark(self, observation: Observation) -> str:
        """See `ReplyCodec`."""
        return "error" if observation.failure else ""

    def _action(self, tool: str, body: str, size_px: Size) -> Action:
        demand(re.fullmatch(r"(\s*<loc_\d{1,9}>)+\s*", body) is not None, "bad_arity")
        places = [int(value) for value in re.findall(r"\d+", body)]
        demand(len(places) == 6 if tool == "window" else len(places) % 4 == 0, "bad_arity")
        demand(max(places) < self.bins, "outside")
        fours = (places[first : first + 4] for first in range(0, len(places) // 4 * 4, 4))
        boxes = [from_px((x0, y0, x1 + 1, y1 + 1), (self.bins, self.bins)) for x0, y0, x1, y1 in fours]
        return made_action(tool, boxes, [(place + 0.5) / self.bins for place in places[len(boxes) * 4 :]])


@dataclass(frozen=True)
class PlainReplies(ReplyCodec):
    """The answer and nothing else: what weights say that were taught neither tags nor JSON."""

    def write(self, reply: Reply, size_px: Size) -> str:
        """See `ReplyCodec`; an act cannot be written."""
        return reply.answer or ""

    def parse(self, text: str, size_px: Size) -> Reply:
        """See `ReplyCodec`."""
        demand(bool(text.strip()), "wrong_type")
        return Reply(answer=text.strip())

    def remark(self, observation: Observation) -> str:
        """See `ReplyCodec`."""
        return ""


def made_action(tool: str, boxes: list[Box], window: list[float]) -> Action:
    """An action with boxes that lie inside the image; UnreadableError for others. `window` is empty or two numbers."""
    for box in boxes:
        fault = box_fault(box)
        demand(not fault, fault)
    return Action(tool, tuple(boxes), (window[0], window[1])) if window else Action(tool, tuple(boxes))


def demand(is_met: bool, failure: str) -> None:
    """Raise UnreadableError with the name of a failure unless a condition is met."""
    if not is_met:
        raise UnreadableError(failure)
