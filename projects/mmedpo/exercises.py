"""Exercises: fill in what is marked, then run `python projects/mmedpo/exercises.py`. Solutions are beside it."""

import numpy as np

# ---- 1. Recall: what is the loss of a pair before the first step, whatever the pair? (nats, weight 1)
FIRST_LOSS: float | None = None


# ---- 2. Modify: the weight of a score by the affine reading, before the cut
def affine_weights(scores: np.ndarray) -> np.ndarray | None:
    """Mean 1 and variance 0.1, in the order of the scores."""
    return None


# ---- 3. Break: scores for which the paper's literal reading gives every pair the same weight
def scores_without_effect() -> np.ndarray | None:
    """At least five different scores in [0, 1]."""
    return None


# ---- 4. Break: a pair that DPO cannot learn from (chosen, rejected)
UNTEACHABLE: tuple[str, str] | None = None


def check_answers() -> list[str]:
    """One line an exercise: right, wrong or open."""
    from mmedpo.relevance import normalised  # noqa: PLC0415  so that reading this file costs nothing

    scores = np.array([0.1, 0.2, 0.6, 0.9, 1.0])
    weights, same = affine_weights(scores), scores_without_effect()
    outcomes = {
        "1 first loss": None if FIRST_LOSS is None else abs(FIRST_LOSS - np.log(2)) < 1e-3,
        "2 affine weights": None
        if weights is None
        else np.allclose(weights, normalised(scores, "affine", low=-np.inf, high=np.inf)),
        "3 scores without effect": None
        if same is None
        else len(set(same.tolist())) >= 5 and len(set(normalised(same, "literal").tolist())) == 1,
        "4 unteachable pair": None if UNTEACHABLE is None else UNTEACHABLE[0] == UNTEACHABLE[1],
    }
    words = {None: "open", True: "right", False: "wrong"}
    return [f"{name}: {words[None if outcome is None else bool(outcome)]}" for name, outcome in outcomes.items()]


if __name__ == "__main__":
    print("\n".join(check_answers()))
