"""Two-Stage: which rationales stage 2 reads in training and in test, and the folds of out-of-fold stage 1. No torch.

Stage 1 leaves what it wrote in its folder, for its training items too (`lightbox.paper.generated`). The published form
trains stage 2 on stage 1's rationales of its own training items, which are better than any it meets in test;
out-of-fold rationales come from models that saw neither the item nor its image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lightbox.errors import RequestError
from lightbox.paper.generated import TRAIN, read_generated, with_generated
from lightbox.paper.samples import Sample
from lightbox.records import Question
from medthink.config import N_FOLDS


def stage2_questions(
    items: Sequence[Sample[Question]], source: str, needs: Mapping[str, Path]
) -> list[Sample[Question]]:
    """Training questions of stage 2, from `objective.stage2_rationales`: gold, in_sample or out_of_fold."""
    if source == "gold":
        return list(items)
    arm = "stage1" if source == "in_sample" else "stage1_folds"
    return with_generated(items, read_generated(needs, arm, TRAIN), "rationale")


def folds_of(items: Sequence[Sample[Question]], *, seed: int, n_folds: int = N_FOLDS) -> list[int]:
    """Fold of each item, 0 to n_folds - 1, whole cases together, so that no model writes for an image it saw.

    Raises:
        RequestError: where there are fewer cases than folds.
    """
    cases = sorted({item.case_id for item in items})
    if len(cases) < n_folds:
        raise RequestError(
            f"The training items show {len(cases)} cases",
            f"Out-of-fold rationales need at least one case in each of {n_folds} folds",
            "Raise data.n_train",
        )
    order = np.random.default_rng([seed, 3, 0]).permutation(len(cases))
    fold_of = {cases[place]: rank % n_folds for rank, place in enumerate(order.tolist())}
    return [fold_of[item.case_id] for item in items]
