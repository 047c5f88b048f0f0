"""ViTAR's protocol: what a policy says as JSON, and back. No torch.

The parser is strict, where that of ViTAR's code searches with two expressions, takes the first action and any tool
name. The tiny policy speaks `replies.TagReplies`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightbox.backbones.codecs import as_given
from lightbox.paper.image_regions import from_px, to_px
from lightbox.paper.image_tools import Action, Observation
from lightbox.paper.replies import FAILURES, Reply, ReplyCodec, Size, UnreadableError, demand, made_action
from lightbox.readers.documents import parse_json
from lightbox.readers.rows import is_finite

TERMINATE = "Terminate"


@dataclass(frozen=True)
class JsonReplies(ReplyCodec):
    """ViTAR's protocol: a thought and a list of named actions, boxes in whole pixels of the image that the model sees.

    Args:
        seen: width and height of the original -> those that the model sees: `Backbone.seen_size` of the view's.
        names: name in the text -> tool. Those of ViTAR's traces are not published.
        other_tool: what an unknown name stands for; None is a failure. ViTAR's code marks, whatever the name.

    Example:
        >>> from lightbox.records import Box
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
        demand(isinstance(value, dict), "no_json")
        thought, actions = _fields(value, "thought", "actions")
        demand(isinstance(thought, str) and isinstance(actions, list), "wrong_type")
        calls = [_fields(action, "name", "arguments") for action in actions]
        demand(bool(calls), "no_action")
        demand(all(isinstance(name, str) for name, _ in calls), "wrong_type")
        if any(name == TERMINATE for name, _ in calls):
            demand(len(calls) == 1, "too_many_actions")
            (answer,) = _fields(calls[0][1], "answer")
            demand(isinstance(answer, str) and bool(answer.strip()), "wrong_type")
            return Reply(thought, answer=answer)
        return Reply(thought, tuple(self._action(name, arguments, size_px) for name, arguments in calls))

    def remark(self, observation: Observation) -> str:
        """See `ReplyCodec`."""
        if observation.failure:
            return f"Error: that was {FAILURES[observation.failure]}. Answer now."
        return "This is the region that you chose. Answer the question by it."

    def _action(self, name: str, arguments: Any, size_px: Size) -> Action:
        tool = self.names.get(name, self.other_tool)
        demand(tool is not None, "unknown_tool")
        keys = ("box", "level", "width") if tool == "window" else ("box",)
        boxes, *window = _fields(arguments, *keys)
        demand(all(is_finite(value) for value in window), "bad_window")
        is_list = isinstance(boxes, list) and bool(boxes) and all(isinstance(box, list) for box in boxes)
        demand(is_list and all(len(box) == 4 and all(map(is_finite, box)) for box in boxes), "bad_arity")
        return made_action(tool, [from_px(box, self.seen(*size_px)) for box in boxes], window)


def _fields(value: Any, *names: str) -> list[Any]:
    """Values of an object that has exactly these keys, each once."""
    demand(isinstance(value, dict), "wrong_type")
    demand(value.keys() == set(names) and not value.repeated, "wrong_key")
    return [value[name] for name in names]
