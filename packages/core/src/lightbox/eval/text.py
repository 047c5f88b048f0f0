"""How close is a text to its reference? Sentence BLEU-1..4 by sacrebleu and ROUGE-L by rouge-score, per item. No torch.

BLEU here is cumulative (BLEU-n is the geometric mean of the precisions of 1..n-grams with brevity penalty), 0 to 100,
lower-cased, 13a tokens, exponential smoothing. Published columns named BLEU-n are sometimes single precisions instead;
the two are different statistics and must not be compared.
"""

from functools import cache
from typing import TYPE_CHECKING

from sacrebleu.metrics import BLEU

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ORDERS = (1, 2, 3, 4)


@cache
def _bleu(order: int) -> BLEU:
    # one scorer an order, since a scorer of order 4 reports single precisions and not BLEU-1..3
    return BLEU(max_ngram_order=order, lowercase=True, effective_order=True)


@cache
def _rouge() -> "RougeScorer":
    # it brings nltk and scikit-learn, seconds that arms without a rationale need not pay
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415

    return RougeScorer(["rougeL"], use_stemmer=True)  # stemmed, so that "lesions" counts for "lesion"


def sentence_bleu(text: str, reference: str) -> dict[str, float]:
    """BLEU-1..4 of one text against one reference, each 0 to 100, by keys "bleu1".."bleu4"; 0 for an empty text.

    Orders longer than the text are left out (effective order), so a short right answer is not punished by smoothing.

    Example:
        >>> round(sentence_bleu("the lungs are clear .", "the lungs are clear .")["bleu4"])
        100
    """
    if not text.strip():
        return {f"bleu{n}": 0.0 for n in ORDERS}
    # a geometric mean of ones can come out at 100.00000000000004
    return {f"bleu{n}": min(100.0, float(_bleu(n).sentence_score(text, [reference]).score)) for n in ORDERS}


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F-measure of one text against one reference, with Porter stems, in [0, 1]; 0 where either is empty.

    Example:
        >>> rouge_l("the lungs are clear", "clear are the lungs")
        0.5
    """
    return float(_rouge().score(reference, text)["rougeL"].fmeasure)
