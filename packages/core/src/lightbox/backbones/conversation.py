"""Turns of a conversation, with images at given places; a chat template writes them. No torch.

Between two answers a model reads what its template writes there, so the text of a conversation comes in pieces: one
before each answer. Answers are tokenised apart from the pieces: what a model is trained to say, what it says, and what
it reads again as its own words in a later turn are the same ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from lightbox.errors import RequestError

ROLES = ("system", "user", "assistant")
ANSWER = "\u241eanswer\u241e"  # stands for answers while a template is filled in; the sign is a record separator
TEXT = "\u241etext\u241e"
EIGHT_BIT_MODES = (
    "1",
    "L",
    "LA",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "HSV",
)  # PIL also has I;16, I and F, whose values are wider
MOST_EXTREME_ASPECT = 200
Part = str | Image.Image
Template = Callable[[list[dict[str, Any]]], str]
"""Messages of transformers' chat form -> text that is ready for an answer."""


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Args:
        role: system, user or assistant.
        parts: texts and images in the order in which they are read; images in user turns only.
        is_supervised: whether a loss covers an assistant's turn; False makes it context.
    """

    role: str
    parts: tuple[Part, ...]
    is_supervised: bool = True

    @property
    def images(self) -> list[Image.Image]:
        """Its images, in order."""
        return [part for part in self.parts if isinstance(part, Image.Image)]

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


def user(*parts: Part) -> Turn:
    """A question; see `Turn`."""
    return Turn("user", parts)


def assistant(text: str, *, is_supervised: bool = True) -> Turn:
    """An answer; see `Turn`."""
    return Turn("assistant", (text,), is_supervised)


@dataclass(frozen=True)
class Conversation:
    """One row of a batch: at most one system turn, then user and assistant in turns.

    It ends with an assistant's turn where it is read for a loss, and with a user's where it is to be answered.

    Args:
        turns: at least a user's.

    Raises:
        RequestError: a role out of order, a part that is neither text nor image, an image outside a user's turn, or one
            that no tower reads.
    """

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.turns, tuple) or not all(isinstance(turn, Turn) for turn in self.turns):
            raise RequestError(
                f"A conversation of {_kind(self.turns)}",
                "A conversation is a tuple of turns; messages of other forms do not say what is supervised",
                "Write Conversation((user(image, 'question'), assistant('answer')))",
            )
        _check_roles([turn.role for turn in self.turns])
        for place, turn in enumerate(self.turns):
            _check_parts(turn, place)

    @property
    def images(self) -> list[Image.Image]:
        """All images, in order."""
        return [image for turn in self.turns for image in turn.images]

    @property
    def answers(self) -> list[Turn]:
        """The assistant's turns."""
        return [turn for turn in self.turns if turn.role == "assistant"]

    @property
    def is_answered(self) -> bool:
        """True where the last word is the assistant's."""
        return self.turns[-1].role == "assistant"


def conversations_of(
    images: Sequence[Image.Image] | None, prompts: Sequence[str], targets: Sequence[str] | None
) -> list[Conversation]:
    """One question with at most one image, and one answer, an item; see `Backbone.prepare`."""
    rows = []
    for index, prompt in enumerate(prompts):
        question = user(prompt) if images is None else user(images[index], prompt)
        rows.append(Conversation((question,) if targets is None else (question, assistant(targets[index]))))
    return rows


def pieces(conversation: Conversation, fill: Template, *, end: str) -> list[str]:
    """The text before each answer, the one to come included.

    Args:
        conversation: its answers do not enter the pieces.
        fill: the model's own chat template.
        end: what ends an answer; where the template writes it, it is left to the answer.

    Raises:
        RequestError: a template that refuses a turn, or leaves one out.
    """
    messages, texts = [], []
    image = _image_text(fill) if any(_is_mixed(turn) for turn in conversation.turns) else ""
    for turn in conversation.turns:
        if turn.role == "assistant":
            messages.append(_message("assistant", [ANSWER]))
            continue
        # templates that put images first would move them, so the turn is one text that holds them as they write one
        parts = ["".join(part if isinstance(part, str) else image for part in turn.parts)]
        messages.append(_message(turn.role, parts if _is_mixed(turn) else turn.parts))
        if turn.role == "user":
            texts.append(_filled(fill, messages))
    last = [text.split(ANSWER) for text in texts]
    for place, parts in enumerate(last):
        if len(parts) != place + 1:
            raise RequestError(
                f"A conversation with {place} answers before its last question",
                f"The chat template writes {len(parts) - 1} of them",
                "Use the chat template that was published with the model, or ask in one turn",
            )
    silent = [turn.role for turn in conversation.turns if turn.role != "assistant" and not _is_in(turn, texts[-1])]
    if silent:
        raise RequestError(
            f"A turn of the {silent[0]}", "The chat template leaves its text out", "Say it in the first user's turn"
        )
    for before, after in pairwise([[], *last]):
        if [text.rstrip() for text in after[:-1]] != [text.rstrip() for text in before]:
            raise RequestError(
                f"A conversation of {len(conversation.turns)} turns",
                "The chat template writes earlier turns otherwise once others follow, so what was read would not stand",
                "Use the chat template that was published with the model, or ask in one turn",
            )
    first, *later = [parts[-1] for parts in last]
    return [first, *(_behind(piece, end) for piece in later)]


def in_colour(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB; `Conversation` has refused any other."""
    return image.convert("RGB")


def check_image(image: Any, where: str) -> None:
    """Refuse what no tower reads.

    Raises:
        RequestError: no image, wider values, which would be cut off, or a strip.
    """
    if not isinstance(image, Image.Image):
        raise RequestError(
            f"{where} is {_kind(image)}", "An image is a PIL image", "Open it first, and give one image a place"
        )
    if image.mode not in EIGHT_BIT_MODES:
        raise RequestError(
            f"{where} is an image of mode '{image.mode}'",
            "Towers read 8-bit images, and cutting wider values off would lose the picture",
            "Window it to 0..255 first",
        )
    if not min(image.size) or max(image.size) > MOST_EXTREME_ASPECT * min(image.size):
        raise RequestError(
            f"{where} is {image.width} x {image.height} px",
            f"One side is over {MOST_EXTREME_ASPECT} times the other, and no tower keeps anything of such a strip",
            "Crop it, or cut it into pieces",
        )


def _check_roles(roles: list[str]) -> None:
    wrong = [role for role in roles if role not in ROLES]
    if wrong:
        raise RequestError(f"A turn of '{wrong[0]}'", f"Roles are {', '.join(ROLES)}", "Name one of them")
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken[:1] != ["user"] or "system" in spoken or any(one == other for one, other in pairwise(spoken)):
        raise RequestError(
            f"Turns of {', '.join(roles) or 'nobody'}",
            "A user speaks first and then each side in turns; a system's turn stands before them all",
            "Join what one side says into one turn, and give no turn after the end",
        )


def _check_parts(turn: Turn, place: int) -> None:
    if not isinstance(turn.parts, tuple) or not turn.parts:
        raise RequestError(
            f"Turn {place} holds {_kind(turn.parts)}", "A turn is a tuple of texts and images", "Write user('question')"
        )
    for part in turn.parts:
        if not isinstance(part, str):
            check_image(part, f"A part of turn {place}")
    if turn.images and turn.role != "user":
        raise RequestError(
            f"Turn {place} of the {turn.role} holds an image",
            "Images are read, never said",
            "Give it to a user's turn",
        )


def _is_in(turn: Turn, text: str) -> bool:
    return all(part.strip() in text for part in turn.parts if isinstance(part, str))


def _is_mixed(turn: Turn) -> bool:
    """True where an image stands behind a text."""
    kinds = [isinstance(part, str) for part in turn.parts]
    return any(before and not after for before, after in pairwise(kinds))


def _message(role: str, parts: Sequence[Part]) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    return {"role": role, "content": content}


def _image_text(fill: Template) -> str:
    """What a template writes for an image, in front of a text."""
    parts = {True: [Image.new("L", (1, 1)), TEXT], False: [TEXT]}
    before = {has: _filled(fill, [_message("user", own)]).partition(TEXT)[0] for has, own in parts.items()}
    return before[True].removeprefix(before[False])


def _behind(piece: str, end: str) -> str:
    """A piece behind an answer without its end token, before which templates may write a space."""
    return piece.lstrip(" ").removeprefix(end) if piece.lstrip(" ").startswith(end) else piece


def _filled(fill: Template, messages: list[dict[str, Any]]) -> str:
    try:
        return fill(messages)
    # templates raise it themselves, for roles that a model was not trained with; those that want one text add to it
    except (TemplateError, TypeError) as err:
        raise RequestError(
            f"Turns of {', '.join(message['role'] for message in messages)}",
            f"The model's chat template refuses them: {err}",
            "Leave out the role that it does not know",
        ) from err


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple):
        inside = f" of {_kind(value[0])}" if value else ""
        return f"a {type(value).__name__}{inside}"
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"
