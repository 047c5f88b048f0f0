"""What the sides of the rollout benchmark have in common: who talks, about what, and what of it is given.

Phantom images with a question each, a tiny Qwen2.5-VL, and the first turns that make it look twice.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LogitsProcessor

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import Conversation, Turn
from lightbox.backbones.weights import CONFIG
from lightbox.errors import RequestError
from lightbox.paper.image_regions import view
from lightbox.paper.image_tools import Action, Feedback, Task, observe
from lightbox.paper.replies import Reply, TagReplies
from lightbox.paths import shared_data
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.pretrain.qwen2_5_vl import START, make_model, make_processor, make_tokenizer
from lightbox.pretrain.qwen2_5_vl_rows import ASSISTANT, BINS, IM_START, ORIGINAL_PX, SEEN_PX
from lightbox.records import Box

SEED = 0
TINY = "qwen2_5_vl"
CODEC, FEEDBACK = TagReplies(BINS), Feedback(view_px=SEEN_PX)


@dataclass(frozen=True)
class Transcript:
    """One conversation: every token that was read or chosen, without padding, and whether it was chosen."""

    ids: list[int]
    is_chosen: list[bool]


class Script(LogitsProcessor):
    """What of a policy is given, to every side alike: first turns, an end to each turn, and no control tokens.

    Weights that were not taught to act would never see a second image. That turns end by themselves spares trl, which
    has one limit for all turns together, tokens that no other side chooses. What is left is the model's.

    Args:
        backbone: whose tokens these are.
        first_turns: of each row, as many tokens each, n t, end token included.
        turn_tokens: longest turn; its last token is the end token.
    """

    def __init__(self, backbone: Backbone, first_turns: Tensor, turn_tokens: int) -> None:
        self.first_turns, self.turn_tokens = first_turns, turn_tokens
        self._start_id, self._end_id = backbone.tokenizer.convert_tokens_to_ids(IM_START), backbone.end_id
        self._header = 1 + len(backbone.text_ids(f"{ASSISTANT}\n", is_first=False))
        added = backbone.tokenizer.added_tokens_decoder
        self._control = torch.tensor([i for i, token in added.items() if token.special and i != self._end_id])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """See transformers; n v logits of the next token."""
        # rows are padded on the left and speak at once, so the first one says for all whose turn it is
        begins = (input_ids[0] == self._start_id).nonzero()[:, 0]
        step = len(input_ids[0]) - int(begins[-1]) - self._header
        if len(begins) == 2 and step < self.first_turns.shape[1]:
            return _only(self.first_turns[:, step, None], scores)
        if step == self.turn_tokens - 1:
            return _only(torch.full((len(scores), 1), self._end_id), scores)
        return scores.index_fill(1, self._control, -torch.inf)


def _only(chosen: Tensor, scores: Tensor) -> Tensor:
    return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


@contextmanager
def scripted(core: Any, script: Script) -> Iterator[None]:
    """Whoever calls a model's `generate` while a block lasts gets the script's choices before any other's."""
    generate = core.generate

    def with_script(*args: Any, logits_processor: Sequence[LogitsProcessor] = (), **options: Any) -> Any:
        return generate(*args, logits_processor=[script, *logits_processor], **options)

    core.generate = with_script
    try:
        yield
    finally:
        del core.generate


@dataclass(frozen=True)
class Scene:
    """What is talked about and by whom.

    Args:
        backbone: the policy.
        tasks: one a conversation; those of a group are one object.
        openings: what is read first, one a prompt.
        script: see `Script`.
    """

    backbone: Backbone
    tasks: list[Task]
    openings: list[Conversation]
    script: Script

    @property
    def group(self) -> int:
        """Conversations a prompt."""
        return len(self.tasks) // len(self.openings)


def weights_name(folder: Path) -> str:
    """The tiny Qwen2.5-VL as it is shipped or, where it is not, one of random weights that is written to `folder`."""
    if (shared_data() / "weights" / TINY / CONFIG).is_file():
        return f"tiny/{TINY}"
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    start = LlavaForConditionalGeneration.from_pretrained(shared_data() / "weights" / START)
    make_model(tokenizer, start).eval().save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return str(folder)


def make_scene(backbone: Backbone, prompts: int, group: int, turn_tokens: int) -> Scene:
    """Draw phantom images with a question each, and a box for every conversation to mark in its first turn.

    Args:
        backbone: a tiny Qwen2.5-VL.
        prompts: questions, >= 1.
        group: conversations about each, >= 1.
        turn_tokens: longest turn, end token included.

    Raises:
        RequestError: turns that are too short for a mark.
    """
    rng = np.random.default_rng(SEED)
    cases = draw_cases(seed_range("development", 0, prompts), Knobs(image_px=ORIGINAL_PX), questions_per_case=1)
    own = [Task(Image.fromarray(case.images[0]), case.questions[0].text, case.questions[0].answer) for case in cases]
    tasks = [task for task in own for _ in range(group)]
    corners, sides = rng.uniform(0, 0.5, (len(tasks), 2)), rng.uniform(0.1, 0.5, (len(tasks), 2))
    boxes = [Box(*ends) for ends in np.hstack([corners, corners + sides]).tolist()]
    acts = [Reply(actions=(Action("mark", (box,)),)) for box in boxes]
    first = [backbone.target_ids(CODEC.write(act, task.image.size)) for act, task in zip(acts, tasks, strict=True)]
    if len(first[0]) > turn_tokens:
        raise RequestError(
            f"A turn of at most {turn_tokens} tokens",
            f"A mark has {len(first[0])} with its end token",
            f"Allow at least {len(first[0])}",
        )
    openings = [CODEC.opening(task, view(task.image, FEEDBACK.view_px)) for task in own]
    return Scene(backbone, tasks, openings, Script(backbone, torch.tensor(first), turn_tokens))


def told(task: Task, text: str) -> Turn:
    """What a policy is told for its first turn."""
    return CODEC.told(observe(task.image, CODEC.read(text, task.image.size).actions, FEEDBACK))


def message(turn: Turn) -> dict[str, Any]:
    """A turn in transformers' chat form."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": content}
