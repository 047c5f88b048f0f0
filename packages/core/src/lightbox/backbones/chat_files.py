"""Conversations with images from a file of chats, the form that most trainers read. No torch.

The file is a JSON list of objects: `messages`, a list of `role` and `content` that an answer ends, with a placeholder
for each image, and `images`, files beside the file, in order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lightbox.backbones.conversation import Conversation, Turn
from lightbox.errors import RequestError
from lightbox.readers.documents import read_json
from lightbox.readers.images import load_image
from lightbox.readers.rows import Problem, RowError, as_row, choices_field, inside, shown, text_field

PLACEHOLDER = "<image>"
Check = Callable[[str, tuple[int, int], bool, bool], str]
"""A reply, width and height of the first image, whether it is the first reply, the last -> what is wrong, or ""."""


@dataclass(frozen=True)
class Chats:
    """What a file holds: whole conversations, and what is wrong with the others, by file, row and turn."""

    conversations: tuple[Conversation, ...]
    problems: tuple[Problem, ...]


def read_chats(path: Path, check: Check) -> Chats:
    """Read a file of chats; a malformed one is set aside, and the rest of the file is read.

    Args:
        path: the file.
        check: of each answer.

    Returns:
        Conversations that an answer ends. A problem's field is "turn 3", counted from 1, where one turn is to blame.

    Raises:
        RequestError: the file as a whole cannot be read.
    """
    conversations, problems = [], []
    for number, value in enumerate(read_json(path, list), start=1):
        try:
            conversations.append(_conversation(as_row(value), path.parent, check))
        except RowError as err:
            problems.append(Problem(str(path), str(number), err.name, err.reason))
    return Chats(tuple(conversations), tuple(problems))


def _conversation(row: Mapping[str, Any], folder: Path, check: Check) -> Conversation:
    images = [_image(folder, name) for name in choices_field(row, "images")]
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RowError("messages", f"is {shown(messages)}, not a list of turns")
    unused, turns = list(images), list[Turn]()
    for place, message in enumerate(messages, start=1):
        role, text = _said(message, place, turns)
        if role == "assistant":
            is_first = all(turn.role != role for turn in turns)
            fault = check(text, images[0].size, is_first, place == len(messages))
            if fault:
                raise RowError(f"turn {place}", f"is {fault}: {shown(text)}")
            turns.append(Turn(role, (text,)))
            continue
        pieces = text.split(PLACEHOLDER)
        if len(pieces) - 1 > len(unused):
            left = f"{len(unused)} of {len(images)} are left"
            raise RowError(f"turn {place}", f"shows {len(pieces) - 1} images where {left}")
        parts: list[Any] = [pieces[0]]
        for piece in pieces[1:]:
            parts += [unused.pop(0), piece]
        turns.append(Turn(role, tuple(part for part in parts if part)))
    if unused:
        raise RowError("images", f"has {len(unused)} more than the turns show")
    if turns[-1].role != "assistant":
        raise RowError(f"turn {len(turns)}", "is not answered")
    try:
        return Conversation(tuple(turns))
    except RequestError as err:
        raise RowError("messages", f"{err.given} {err.why}") from err


def _said(message: Any, place: int, turns: list[Turn]) -> tuple[str, str]:
    """Role and text of a message, whose turn it must be."""
    try:
        fields = as_row(message)
        role, text = text_field(fields, "role"), text_field(fields, "content")
    except RowError as err:
        raise RowError(f"turn {place}", f"its {err}") from err
    speakers = ("system", "user") if not turns else ("assistant",) if turns[-1].role == "user" else ("user",)
    if role not in speakers:
        raise RowError(f"turn {place}", f"is of the {role}, where the {' or '.join(speakers)} speaks")
    return role, text


def _image(folder: Path, name: str) -> Image.Image:
    try:
        return Image.fromarray(load_image(inside(folder, name, "images"), in_colour=True))
    except RequestError as err:
        raise RowError("images", err.why) from err
