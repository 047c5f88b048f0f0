"""Prompts and targets: one template table for every variant and both families. No torch.

| | Florence-2 | Qwen2-VL |
|---|---|---|
| task | its own phrase-grounding task | a request for a JSON list |
| definition | "NAME means DEFINITION" in the place of the phrase | a note behind the request |
| target | name and four location tokens a box | a JSON list of boxes with labels, 0 to 1000 each way |

A finding that is absent has an empty target, or an empty list.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from k2sight.config import Config
from k2sight.data import Target
from lightbox.backbones.box_text import BoxForm, JsonList, Phrases
from lightbox.backbones.codecs import FlorenceBins
from lightbox.eval.boxes import LabelledBox
from lightbox.paper.samples import Sample
from lightbox.records import Box

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

TASK = "<CAPTION_TO_PHRASE_GROUNDING>"
MEANS = " means "
PHRASES = {"name": "{name}", "defined": "{name}" + MEANS + "{definition}", "definition": "{definition}"}
REQUEST = 'Where in the image is {name}? Answer with a JSON list of {{"bbox_2d": [x0, y0, x1, y1], "label": ...}}.'
NOTES = {
    "name": REQUEST,
    "defined": REQUEST + " {name} means {definition}.",
    "definition": REQUEST.replace("{name}", "what looks like this: {definition}"),
}
SIDE_PX = 1000
"""Boxes are fractions of a square, so that its side is of no consequence."""


def form_of(family: str, tokenizer: "PreTrainedTokenizerBase") -> BoxForm:
    """How a family writes boxes; Florence-2 has as many bins as its tokenizer has location tokens."""
    if family != "florence2":
        return JsonList()
    return Phrases(FlorenceBins(sum(token.startswith("<loc_") for token in tokenizer.get_vocab())))


def on_grid(box: Box, lines: int) -> Box:
    """The box with each edge on the nearest of so many lines, at least one apart; as it is where `lines` is 0.

    Example:
        >>> on_grid(Box(0.49, 0.01, 0.51, 0.98), 4)
        Box(x0=0.5, y0=0.0, x1=0.75, y1=1.0)
    """
    if not lines:
        return box
    lows = [min(round(low * lines), lines - 1) for low in (box.x0, box.y0)]
    highs = [max(round(high * lines), low + 1) for high, low in zip((box.x1, box.y1), lows, strict=True)]
    return Box(*(edge / lines for edge in (*lows, *highs)))


def write_texts(cfg: Config, samples: Sequence[Sample[Target]], form: BoxForm) -> list[tuple[str, str]]:
    """Prompt and target of each sample.

    A model that is asked by a definition alone labels its boxes with nothing: it was told no name.
    """
    kind = cfg.data.prompt
    template = TASK + PHRASES[kind] if isinstance(form, Phrases) else NOTES[kind]
    texts = []
    for sample in samples:
        target = sample.record
        label = target.name if kind != "definition" and cfg.data.writes_names else ""
        boxes = sorted((on_grid(box, cfg.data.box_grid) for box in target.boxes), key=lambda box: (box.y0, box.x0))
        written = form.write([LabelledBox(label, box) for box in boxes], SIDE_PX, SIDE_PX)
        texts.append((template.format(name=target.name, definition=target.definition), written))
    return texts
