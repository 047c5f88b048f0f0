"""Where a policy looks before and after it is shown something, and whether its answer rests on the finding. Claim V4.

Attention alone explains nothing, so what is hidden is tried beside it: the finding, or as large an area elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightbox.backbones.attended import attended, box_coverage
from lightbox.eval.attention_mass import attention_mass
from lightbox.paper.covered import cover
from lightbox.paper.image_regions import box_elsewhere
from lightbox.paper.image_tools import Task
from lightbox.paper.samples import Split
from lightbox.records import Box
from vitar.data import Asked, tasks_of
from vitar.model import Policy
from vitar.rewards import normal
from vitar.rollout import Episode, learning_batch
from vitar.scores import ScoreRow, score

LOOKS = (("first", 0, 0), ("again", 1, 0), ("second", 1, 1))
"""Turn and image: the view while it acts, the same view while it answers, and what it was shown."""
HIDDEN, HIDDEN_ELSEWHERE = "hidden", "hidden_elsewhere"


@dataclass(frozen=True)
class Looks:
    """Reads where a policy looks."""

    policy: Policy

    def scores(self, episode: Episode) -> dict[str, float]:
        """How far attention goes to the true box, in the later half of the layers: `look_first` and so on, 1 is chance.

        `allocated_first` and so on are attention to the image by that of evenly spread attention. All are 1 where it
        did not look twice, as nothing rose then.
        """
        backbone = self.policy.learner.backbone
        no_look = {f"{what}_{name}": 1.0 for name, _, _ in LOOKS for what in ("look", "allocated")}
        if len(episode.images) != 2 or not episode.task.true_boxes:
            return no_look
        row = attended(backbone, learning_batch(backbone, [episode]).to(backbone.device))
        if (len(row.turns), len(row.images)) != (2, 2):
            return no_look
        grids, box = backbone.grids(backbone.read_images(episode.images)), episode.task.true_boxes[0]
        scores = {}
        for name, turn, image in LOOKS:
            inside = box_coverage(box, *grids[image]).to(row.attention.device)
            mass = attention_mass(row.attention, row.turns[turn], row.images[image], inside).late()
            scores |= {f"look_{name}": mass["enrichment"], f"allocated_{name}": mass["per_key"]}
        return scores

    def flip_rows(self, split: Split[Asked], usual: Sequence[Episode], seeds: Sequence[int]) -> list[ScoreRow]:
        """Rows of the first items with their finding hidden, and with as large an area elsewhere hidden, by `seeds`.

        `usual` are the episodes about all items with nothing hidden.
        """
        cfg = self.policy.cfg
        few = replace(split, samples=split.samples[: cfg.eval.looks])
        rows: list[ScoreRow] = []
        for condition in (HIDDEN, HIDDEN_ELSEWHERE):
            tasks = [
                replace(task, image=cover(task.image, _place(task, seed, condition)))
                for task, seed in zip(tasks_of(cfg, few, [own.image for own in few.samples]), seeds, strict=False)
            ]
            episodes = self.policy.play(tasks, seeds[: len(tasks)])["own"]
            for sample, one, before in zip(few.samples, episodes, usual, strict=False):
                row = score(sample, condition, one, view_px=cfg.model.image_px)
                rows.append(row | {"flipped": is_flipped(one, before)})
        return rows


def is_flipped(episode: Episode, usual: Episode) -> float:
    """1 where the answer is another one than usually; none beside one counts as another."""
    answers = (None if own.answer is None else normal(own.answer) for own in (episode, usual))
    return float(len(set(answers)) > 1)


def _place(task: Task, seed: int, condition: str) -> Box:
    """What is hidden of a task."""
    box = task.true_boxes[0]
    if condition == HIDDEN:
        return box
    return box_elsewhere(box, task.image, task.true_boxes, np.random.default_rng(seed))
