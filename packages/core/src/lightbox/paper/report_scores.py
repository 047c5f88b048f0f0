"""What a generated report is worth, per item: the facts that it states, and how near its words are. No torch."""

from lightbox.eval.facts import score_facts
from lightbox.eval.meteor import meteor
from lightbox.eval.text import ORDERS, rouge_l, sentence_bleu
from lightbox.phantom.report_facts import ABSENT, is_true, report_facts

FACT_METRICS = (
    "fact_f1",  # F1 of the findings with their places, and of the heart's size
    "hallucinated",  # share of the facts stated, absences included, that are false; null where nothing is stated
)
TEXT_METRICS = (
    *(f"bleu{n}" for n in ORDERS),  # cumulative, by sacrebleu, here in [0, 1]
    "rouge_l",  # F of the longest common subsequence of stems, in [0, 1]
    "meteor",  # exact and stem matches, in [0, 1]
)


def score_report_facts(text: str, reference: str) -> dict[str, float | None]:
    """`FACT_METRICS` of a report of the phantom.

    A report names few of the many things that are absent, so absences count as false or not and never as missing.
    """
    stated, truth = report_facts(text), report_facts(reference)
    true_findings, stated_findings = (
        frozenset(fact for fact in facts if not fact.startswith(ABSENT)) for facts in (truth, stated)
    )
    false = [fact for fact in stated if not is_true(fact, truth)]
    return {
        "fact_f1": score_facts(stated_findings, true_findings).f1,
        "hallucinated": len(false) / len(stated) if stated else None,
    }


def score_report_text(text: str, reference: str) -> dict[str, float]:
    """`TEXT_METRICS` of a report of any source, all in [0, 1], higher is nearer; 0 for an empty text."""
    bleu = {name: value / 100 for name, value in sentence_bleu(text, reference).items()}
    return bleu | {"rouge_l": rouge_l(text, reference), "meteor": meteor(text, reference)}
