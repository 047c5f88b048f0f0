"""Episodes to imitate: made from boxes, with boxes as imprecise as a reader's, or read from a file of chats. No torch.

A trace is what an episode would be if the policy did well: question, a box near the finding, what the environment shows
for it, the true answer. So it is made by the environment itself, under the feedback of the arm that learns from it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lightbox.backbones.chat_files import Chats, read_chats
from lightbox.backbones.conversation import Conversation, assistant
from lightbox.errors import RequestError
from lightbox.phantom.ontology import SHAPE_WORDS
from lightbox.records import Box, Case, box_iou
from vitar.actions import Reply, ReplyCodec
from vitar.environment import Action, Feedback, Task, observe

SHAPES = tuple(sorted(set(SHAPE_WORDS.values()) - {SHAPE_WORDS["ring"]}))  # rings are held out, see `phantom.splits`
N_OPTIONS = 4
DRAWS = 100


def shape_tasks(cases: Sequence[Case], *, seed: int, sizes: Sequence[str] = ("small",)) -> list[Task]:
    """Questions about the shape of a finding, one for each that is the only one at its place.

    Shape is fine structure: a small finding has few pixels of it. Four options are named in the question, so a guess is
    right in a quarter of cases; the place, in words, says which finding is meant.

    Args:
        cases: of the phantom, with pixels.
        seed: of the options and their order.
        sizes: of findings asked about; others may lie beside them.
    """
    tasks = []
    for number, case in enumerate(cases):
        rng = np.random.default_rng([seed, number])
        image = Image.fromarray(case.images[0])
        places = [finding.attributes["location"] for finding in case.findings]
        for finding in case.findings:
            shape, place = finding.attributes["shape"], finding.attributes["location"]
            if finding.attributes["size"] not in sizes or places.count(place) > 1 or shape not in SHAPES:
                continue
            others = rng.permutation([own for own in SHAPES if own != shape])[: N_OPTIONS - 1]
            options = ", ".join(rng.permutation([shape, *others]).tolist())
            question = f"What shape is the finding in the {place}? {options}?"
            tasks.append(Task(image, question, shape, finding.boxes))
    return tasks


def jittered(box: Box, rng: np.random.Generator, *, low: float = 0.5, high: float = 0.9) -> Box:
    """A box whose IoU with a true one lies in [low, high], inside the image.

    Each end moves by up to half the side, until the overlap fits; after `DRAWS` draws the box is shrunk instead.
    """
    sides = np.array([box.x1 - box.x0, box.y1 - box.y0] * 2)
    for _ in range(DRAWS):
        moved = Box(*np.clip(np.array(box) + rng.uniform(-0.5, 0.5, 4) * sides, 0, 1).tolist())
        if moved.x0 < moved.x1 and moved.y0 < moved.y1 and low <= box_iou(moved, box) <= high:
            return moved
    margin = sides * (1 - ((low + high) / 2) ** 0.5) / 2
    return Box(*(np.array(box) + margin * (1, 1, -1, -1)).tolist())


def make_trace(
    task: Task,
    codec: ReplyCodec,
    feedback: Feedback,
    *,
    seed: int,
    tool: str = "mark",
    thoughts: tuple[str, str] = ("", ""),
) -> Conversation:
    """The episode that a good policy would have.

    Args:
        task: with a true box; the first one is looked at.
        codec, feedback: as in the rollouts that follow.
        seed: of the jitter, and of random feedback.
        tool: that it uses.
        thoughts: before the look and before the answer.

    Raises:
        RequestError: a task without a box, or an image in which the tool can show nothing.
    """
    rng = np.random.default_rng(seed)
    boxes = tuple(jittered(box, rng) for box in task.true_boxes[:1])
    size = task.image.size
    act = codec.write(Reply(thoughts[0], (Action(tool, boxes),)), size)
    reply = codec.read(act, size)
    seen = observe(task.image, reply.actions, feedback, true_boxes=task.true_boxes, seed=seed)
    if seen.failure:
        raise RequestError(
            f"A task about {len(task.true_boxes)} boxes in an image of {size[0]} x {size[1]} px",
            f"The tool '{tool}' shows nothing there: {reply.failure or seen.failure}",
            "Leave the task out, or use another tool",
        )
    answer = codec.write(Reply(thoughts[1], answer=task.answer), size)
    turns = codec.opening(task, feedback).turns
    return Conversation((*turns, assistant(act), codec.told(seen), assistant(answer)))


def read_traces(path: Path, codec: ReplyCodec) -> Chats:
    """Read a file of chats in the form of ViTAR's 1K traces; malformed ones name file, row and turn.

    Args:
        path: the file, see `chat_files`.
        codec: that every reply must be readable by: actions first, an answer last.

    Raises:
        RequestError: the file as a whole cannot be read.
    """

    def fault_of(text: str, size_px: tuple[int, int], is_first: bool, is_last: bool) -> str:
        reply = codec.read(text, size_px, is_first=is_first)
        is_in_place = (reply.answer is not None) == is_last
        return reply.failure or ("" if is_in_place else "an answer before the end, or none at it")

    return read_chats(path, fault_of)
