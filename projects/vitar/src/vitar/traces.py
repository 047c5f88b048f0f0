"""Episodes to imitate, made from boxes, with boxes as imprecise as a reader's. No torch.

A trace is what an episode would be if the policy did well: question, a box near the finding, what the environment shows
for it, the true answer. So it is made by the environment itself, under the feedback of the arm that learns from it.
"""

import numpy as np

from lightbox.backbones.conversation import Conversation, assistant
from lightbox.errors import RequestError
from lightbox.paper.image_regions import jittered, view
from lightbox.paper.image_tools import Action, Feedback, Task, observe
from lightbox.paper.replies import Reply, ReplyCodec


def make_trace(
    task: Task,
    codec: ReplyCodec,
    feedback: Feedback,
    *,
    seed: int,
    tool: str = "mark",
    overlap: tuple[float, float] = (0.5, 0.9),
    thoughts: tuple[str, str] = ("", ""),
) -> Conversation:
    """The episode that a good policy would have.

    Args:
        task: with a true box; the first one is looked at.
        codec, feedback: as in the rollouts that follow.
        seed: of the jitter, and of random feedback.
        tool: that it uses; "" answers at once, in one pass.
        overlap: between which values the IoU of its box with the true one lies.
        thoughts: before the look and before the answer.

    Raises:
        RequestError: a task without a box, or an image in which the tool can show nothing.
    """
    size, turns = task.image.size, codec.opening(task, view(task.image, feedback.view_px)).turns
    answer = codec.write(Reply(thoughts[1], answer=task.answer), size)
    if not tool:
        return Conversation((*turns, assistant(answer)))
    rng = np.random.default_rng(seed)
    boxes = tuple(jittered(box, rng, *overlap) for box in task.true_boxes[:1])
    act = codec.write(Reply(thoughts[0], (Action(tool, boxes),)), size)
    reply = codec.read(act, size)
    seen = observe(task.image, reply.actions, feedback, true_boxes=task.true_boxes, seed=seed)
    if seen.failure:
        raise RequestError(
            f"A task about {len(task.true_boxes)} boxes in an image of {size[0]} x {size[1]} px",
            f"The tool '{tool}' shows nothing there: {reply.failure or seen.failure}",
            "Leave the task out, or use another tool",
        )
    return Conversation((*turns, assistant(act), codec.told(seen), assistant(answer)))
