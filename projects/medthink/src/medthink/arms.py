"""The arms of all claims. Each is one file of `conf/experiment/` and nothing else. No torch.

So the arms of a claim share data, steps and initial weights, and differ in the strategy or in what rationales say.
"""

from lightbox.claims.spec import Arm

CORRUPTION_PCT = (0, 10, 25, 50)


def _arm(name: str, title: str, *needs: str, is_trained: bool = True, rate_of: str = "") -> Arm:
    return Arm(name, title, (f"experiment={name}",), needs, is_trained, rate_of)


def corruption_arm(order: str, pct: int) -> str:
    """Name of the arm of a strategy with `pct` % of its training rationales corrupted; 0 is the strategy itself."""
    return order if pct == 0 else f"{order}_corrupt{pct}"


ARMS = (
    _arm("untouched", "arm 0: shipped weights, not trained", is_trained=False),
    _arm("majority", "most frequent training answer of the question kind", is_trained=False),
    _arm("question_only", "most frequent training answer of the same question text", is_trained=False),
    _arm("none", "answer only"),
    _arm("explanation", "answer, then rationale"),
    _arm("same_answer", "answer, then the rationale of another item of the same kind and answer"),
    _arm("filler", "answer, then neutral words, as many as the rationale has"),
    _arm("reasoning", "rationale, then answer", "none"),
    _arm("none_pads", "answer only, pads counted in the loss (official code)"),
    _arm("explanation_pads", "answer, then rationale, pads counted in the loss (official code)"),
    _arm("stage1", "stage 1: question to rationale"),
    _arm("stage1_folds", "stage 1, five models, each writing for the cases it did not see", rate_of="stage1"),
    _arm("stage2_gold", "stage 2 trained on reference rationales", "stage1"),
    _arm("stage2_in_sample", "stage 2 trained on stage 1's rationales of its own training items", "stage1"),
    _arm("stage2_out_of_fold", "stage 2 trained on out-of-fold rationales", "stage1", "stage1_folds"),
    _arm("reader", "text-only reader trained on reference rationales", "explanation", "reasoning"),
    _arm("reader_masked", "the same reader, answer-bearing words masked", "explanation", "reasoning", rate_of="reader"),
    *(
        _arm(corruption_arm(order, pct), f"{order}, {pct} % of the training rationales corrupted", rate_of=order)
        for order in ("explanation", "reasoning")
        for pct in CORRUPTION_PCT[1:]
    ),
    _arm("majority_open", "most frequent training answer, open questions", is_trained=False),
    _arm("question_only_open", "question-only look-up, open questions", is_trained=False),
    _arm("explanation_open", "answer, then rationale; open questions", rate_of="explanation"),
    _arm("reasoning_open", "rationale, then answer; open questions", rate_of="reasoning"),
    _arm("stage1_open", "stage 1: question to rationale; open questions", rate_of="stage1"),
)
