"""What a policy says, as text and back: ViTAR's JSON, and tags with location tokens for the tiny policy. No torch.

A reply is one or more actions, or an answer. Whatever else a text is, it is a failure with a name, see `FAILURES`: the
parser is strict, where that of ViTAR's code searches with two expressions, takes the first action and any tool name.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightbox.backbones.codecs import as_given
from lightbox.backbones.conversation import Conversation, Turn, user
from lightbox.backbones.edge_bins import EdgeBins
from lightbox.paper.image_regions import box_fault, from_px, to_px, view
from lightbox.readers.documents import parse_json
from lightbox.readers.rows import is_finite
from lightbox.records import Box
from vitar import environment
from vitar.environment import Action, Feedback, Observation, Task

TERMINATE = "Terminate"
FAILURES = environment.FAILURES | {
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

    def opening(self, task: Task, feedback: Feedback) -> Conversation:
        """What a policy reads first."""
        question = user(view(task.image, feedback.view_px), task.question)
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
class JsonReplies(ReplyCodec):
    """ViTAR's protocol: a thought and a list of named actions, boxes in whole pixels of the image that the model sees.

    Args:
        seen: width and height of the original -> those that the model sees: `Backbone.seen_size` of the view's.
        names: name in the text -> tool. Those of ViTAR's traces are not published.
        other_tool: what an unknown name stands for; None is a failure. ViTAR's code marks, whatever the name.

    Example:
        >>> JsonReplies().write(Reply("look", (Action("mark", (Box(0.1, 0.2, 0.5, 1.0),)),)), (100, 50))
        '{"thought": "look", "actions": [{"name": "Mark", "arguments": {"box": [[10, 10, 50, 50]]}}]}'
    """

    seen: Callable[[int, int], Size] = as_given
    names: Mapping[str, str] = field(default_factory=lambda: {"Mark": "mark", "Crop": "crop", "Window": "window"})
    other_tool: str | None = None
    system = (
        "You read medical images. Reply with one JSON object and nothing else: "
        '{"thought": "...", "actions": [{"name": "...", "arguments": {...}}]}. First look closer with one action: '
        "Mark or Crop with a box [[x0, y0, x1, y1]] in pixels, or Window with a box, a level and a width from 0 to 1. "
        "When you have seen the result, end with Terminate and your answer."
    )

    def write(self, reply: Reply, size_px: Size) -> str:
        """See `ReplyCodec`."""
        names = {tool: name for name, tool in self.names.items()}
        actions: list[dict[str, Any]] = []
        for action in reply.actions:
            arguments: dict[str, Any] = {"box": [list(to_px(box, self.seen(*size_px))) for box in action.boxes]}
            if action.tool == "window":
                arguments |= dict(zip(("level", "width"), action.window, strict=True))
            actions.append({"name": names[action.tool], "arguments": arguments})
        if reply.answer is not None:
            actions.append({"name": TERMINATE, "arguments": {"answer": reply.answer}})
        return json.dumps({"thought": reply.thought, "actions": actions}, ensure_ascii=False)

    def parse(self, text: str, size_px: Size) -> Reply:
        """See `ReplyCodec`."""
        try:
            value = parse_json(text)
        except ValueError as err:
            raise UnreadableError("no_json") from err
        _demand(isinstance(value, dict), "no_json")
        thought, actions = _fields(value, "thought", "actions")
        _demand(isinstance(thought, str) and isinstance(actions, list), "wrong_type")
        calls = [_fields(action, "name", "arguments") for action in actions]
        _demand(bool(calls), "no_action")
        _demand(all(isinstance(name, str) for name, _ in calls), "wrong_type")
        if any(name == TERMINATE for name, _ in calls):
            _demand(len(calls) == 1, "too_many_actions")
            (answer,) = _fields(calls[0][1], "answer")
            _demand(isinstance(answer, str) and bool(answer.strip()), "wrong_type")
            return Reply(thought, answer=answer)
        return Reply(thought, tuple(self._action(name, arguments, size_px) for name, arguments in calls))

    def remark(self, observation: Observation) -> str:
        """See `ReplyCodec`."""
        if observation.failure:
            return f"Error: that was {FAILURES[observation.failure]}. Answer now."
        return "This is the region that you chose. Answer the question by it."

    def _action(self, name: str, arguments: Any, size_px: Size) -> Action:
        tool = self.names.get(name, self.other_tool)
        _demand(tool is not None, "unknown_tool")
        keys = ("box", "level", "width") if tool == "window" else ("box",)
        boxes, *window = _fields(arguments, *keys)
        _demand(all(is_finite(value) for value in window), "bad_window")
        is_list = isinstance(boxes, list) and bool(boxes) and all(isinstance(box, list) for box in boxes)
        _demand(is_list and all(len(box) == 4 and all(map(is_finite, box)) for box in boxes), "bad_arity")
        return _made(tool, [from_px(box, self.seen(*size_px)) for box in boxes], window)


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
        return [*(f"<{tag}>" for tag in (*environment.TOOLS, "answer")), *(f"<loc_{k}>" for k in range(self.bins))]

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
        thought, *rest = re.split(rf"<({'|'.join((*environment.TOOLS, 'answer'))})>", text)
        _demand(bool(rest) and "<loc_" not in thought, "no_tag")
        tags, bodies = rest[::2], rest[1::2]
        if "answer" in tags:
            _demand(len(tags) == 1, "too_many_actions")
            _demand(bool(bodies[0].strip()), "wrong_type")
            return Reply(thought, answer=bodies[0])
        actions = (self._action(tool, body, size_px) for tool, body in zip(tags, bodies, strict=True))
        return Reply(thought, tuple(actions))

    def remark(self, observation: Observation) -> str:
        """See `ReplyCodec`."""
        return "error" if observation.failure else ""

    def _action(self, tool: str, body: str, size_px: Size) -> Action:
        _demand(re.fullmatch(r"(\s*<loc_\d{1,9}>)+\s*", body) is not None, "bad_arity")
        places = [int(value) for value in re.findall(r"\d+", body)]
        _demand(len(places) == 6 if tool == "window" else len(places) % 4 == 0, "bad_arity")
        _demand(max(places) < self.bins, "outside")
        fours = (places[first : first + 4] for first in range(0, len(places) // 4 * 4, 4))
        boxes = [from_px((x0, y0, x1 + 1, y1 + 1), (self.bins, self.bins)) for x0, y0, x1, y1 in fours]
        return _made(tool, boxes, [(place + 0.5) / self.bins for place in places[len(boxes) * 4 :]])


def _fields(value: Any, *names: str) -> list[Any]:
    """Values of an object that has exactly these keys, each once."""
    _demand(isinstance(value, dict), "wrong_type")
    _demand(value.keys() == set(names) and not value.repeated, "wrong_key")
    return [value[name] for name in names]


def _made(tool: str, boxes: list[Box], window: list[float]) -> Action:
    for box in boxes:
        fault = box_fault(box)
        _demand(not fault, fault)
    return Action(tool, tuple(boxes), (window[0], window[1])) if window else Action(tool, tuple(boxes))


def _demand(is_met: bool, failure: str) -> None:
    if not is_met:
        raise UnreadableError(failure)
