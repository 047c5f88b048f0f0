"""Rules by which medical VQA is scored elsewhere, and ours: from a text and its question to a score. No torch.

A rule gives 1.0 (right), 0.0 (wrong), a share in between, or None: the item is not counted. Rival rules are written
anew from reading the file that the docstring names, slips included, because published numbers contain the slips. The
three labelled lines of a docstring are what `lightbox.eval.conventions` prints.
"""

import math
import re
import string
from collections import Counter
from difflib import SequenceMatcher

from lightbox.eval.answers import letter_of, score_answer, score_stated
from lightbox.records import Question

YES_NO = ("yes", "no")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def ours(text: str, question: Question) -> float:
    """Closed: the one letter in "The answer is (X)". Open: exactly the gold words after the one "The answer is".

    Source: lightbox.eval.answers.
    Counted: every item; what cannot be parsed is wrong.
    Misleads: a right answer in any other wording is wrong, so untrained models look worse than they are.
    """
    return float(score_answer(text, question).is_correct)


def ours_closed(text: str, question: Question) -> float:
    """Our rule where there are options.

    Source: Tang-xiaoxiao/Medthink Medthink_Code/closed_end_train.py at d92dd5d, seen.
    Counted: closed items only.
    Misleads: the open half, where models are weakest, is left out; guessing yes or no is right half of the time.
    """
    return ours(text, question)


def ours_recall(text: str, question: Question) -> float:
    """Share of the gold words that the one statement holds, each at most as often as it is stated.

    Source: lightbox.eval.answers.
    Counted: open items only; what cannot be parsed is 0.
    Misleads: there is no price for further words, so a list of all organs recalls every organ.
    """
    return score_stated(text, question.answer).token_recall or 0.0


def parsed_only(text: str, question: Question) -> float | None:
    """Our rule, with failures left out.

    Source: HongWonSeok/HONG_MedThink First_inference.ipynb at 21df40b leaves failures out, seen; the parser is ours.
    Counted: items with exactly one parsed answer.
    Misleads: never below ours, and most above it for the model that fails most.
    """
    score = score_answer(text, question)
    return float(score.is_correct) if score.is_parsed else None


def else_b(text: str, question: Question) -> float:
    """A where the text holds "The answer is (A).", B everywhere else.

    Source: JXLiu-AI/MedCoT MyAnalyse.py at 3df2356, seen.
    Counted: items with two options.
    Misleads: silence, refusal and "(a)" are all B, so a model that never answers gets the share of B.
    """
    return float(("The answer is (A)." in text) == (question.answer_index == 0))


def first_character(text: str, question: Question) -> float:
    """The first character, upper case, is the gold letter.

    Source: usual in scripts for multiple choice (seen without a repository's name); no medical VQA code seen with it.
    Counted: closed items.
    Misleads: "(A)" and "The answer is (A)" are wrong, "An effusion" answers A and "Both" answers B.
    """
    return float(text[:1].upper() == letter_of(question.answer_index))


def llava_med_first(text: str, question: Question) -> float | None:
    """LLaVA-Med's rule before its repair: a wrong answer that says yes or no is not counted.

    Source: microsoft/LLaVA-Med llava/eval/run_eval.py at ad758b6, until pull request 35 repaired it, seen.
    Counted: closed items, without wrong ones that hold "yes" or "no".
    Misleads: a model that always says yes or no scores 100 %, whatever it says.
    """
    said, gold = _vqa_text(text), _vqa_text(question.answer)
    if not _holds_yes_or_no(said):
        return 0.0
    return 1.0 if gold in said else None


def llava_med_closed(text: str, question: Question) -> float:
    """The letters "yes" or "no" are in the text somewhere, and so is the gold answer.

    Source: microsoft/LLaVA-Med llava/eval/run_eval.py at b9a98a7 (v1.0.0, after pull request 35), seen.
    Counted: closed items.
    Misleads: "normal" and "not sure" answer no; naming both is right; a gold answer other than yes or no rarely is.
    """
    said = _vqa_text(text)
    return float(_holds_yes_or_no(said) and _vqa_text(question.answer) in said)


def llava_med_substring(text: str, question: Question) -> float:
    """The gold answer is in the text somewhere, inside a word too.

    Source: microsoft/LLaVA-Med llava/eval/run_eval_batch.py at b9a98a7, Odyssni/MMedPO eval/ at 7ee1ce3, seen.
    Counted: closed items.
    Misleads: "abnormal" and "nodule" answer no, and a text that names every option is always right.
    """
    return float(_vqa_text(question.answer) in _vqa_text(text))


def llava_med_recall(text: str, question: Question) -> float:
    """Words of the text that are gold, with their repetitions, over these plus the gold words that are missing.

    Source: microsoft/LLaVA-Med llava/eval/eval_metrics/evaluate_metrics.py at ad758b6; MMedPO's open column, seen.
    Counted: open items.
    Misleads: long texts win, and saying one gold word again and again raises the score.
    """
    said, gold = Counter(_vqa_text(text).split()), Counter(_vqa_text(question.answer).split())
    hits = sum(count for word, count in said.items() if word in gold)
    missed = sum(count for word, count in gold.items() if word not in said)
    return hits / (hits + missed) if hits else 0.0


def llava_med_exact(text: str, question: Question) -> float:
    """What is printed as exact match: distinct gold words that the text has, over all words of the text.

    Source: microsoft/LLaVA-Med llava/eval/eval_metrics/evaluate_metrics.py at ad758b6; MMedPO's exact match, seen.
    Counted: open items.
    Misleads: it is a precision: "left" is an exact match of "left upper zone", and one more word is half a match.
    """
    said, gold = _vqa_text(text).split(), set(_vqa_text(question.answer).split())
    return len(gold.intersection(said)) / len(said) if said else 0.0


def medevalkit_closed(text: str, question: Question) -> float:
    """Gold yes or no: exactly one of them is in the text, the gold one. Other gold: the text equals it, no full stops.

    Source: alibaba-damo-academy/MedEvalKit utils/utils.py, utils/VQA_RAD, utils/SLAKE at 9b12e3b, seen.
    Counted: closed items.
    Misleads: "Yes, with a nodule" says both, so it is wrong; after "answer is" a space stays, so " left" is not "left".
    """
    said, gold = _after_cue(text).replace("\n", "").replace(".", ""), question.answer.lower()
    if gold in YES_NO:
        return float(("yes" in said) != ("no" in said) and gold in said)
    return float(said == gold)


def medevalkit_choice(text: str, question: Question) -> float:
    """A bare letter; where there is none, the option that looks most like the text, the first one in a tie.

    Source: alibaba-damo-academy/MedEvalKit utils/utils.py and utils/OmniMedVQA at 9b12e3b (options as "A. text"), seen.
    Counted: closed items.
    Misleads: nothing fails: an empty text answers A, and "Yes, there is a nodule." looks more like "B. no".
    """
    letters = [letter_of(index).lower() for index in range(len(question.options))]
    blocks = text.lower().split("\n\n")
    bare = (block for block in (blocks[0], blocks[-1].partition(".")[0]) if block in letters)
    said = _after_cue(next(bare, text)).strip().replace("\n", "")
    letter = said.partition(".")[0].rpartition(":")[2]
    if letter in letters:
        return float(letters.index(letter) == question.answer_index)
    options = [f"{letter}. {option.lower()}" for letter, option in zip(letters, question.options, strict=True)]
    likeness = [SequenceMatcher(None, option, said).ratio() for option in options]
    return float(likeness.index(max(likeness)) == question.answer_index)


def medevalkit_exact(text: str, question: Question) -> float:
    """The text after the cue equals the gold answer, lower case, punctuation and spaces included.

    Source: alibaba-damo-academy/MedEvalKit utils/utils.py at 9b12e3b, seen; a paid judge may replace it there.
    Counted: open items.
    Misleads: "Left lung." and "The answer is left lung" are both wrong for "left lung".
    """
    return float(_after_cue(text) == question.answer.lower().strip())


def medevalkit_recall(text: str, question: Question) -> float:
    """What is printed as recall: distinct words of the text that are gold, over all distinct words of the text.

    Source: alibaba-damo-academy/MedEvalKit utils/utils.py at 9b12e3b, seen; it stops at an empty text, here that is 0.
    Counted: open items.
    Misleads: it is the precision: F1, precision, recall are returned and taken as precision, recall, F1.
    """
    said, gold = set(_after_cue(text).split()), set(question.answer.lower().split())
    return len(said & gold) / len(said) if said else 0.0


def medevalkit_bleu1(text: str, question: Question) -> float:
    """NLTK's sentence BLEU-1: clipped precision of words, times the brevity penalty, no smoothing.

    Source: alibaba-damo-academy/MedEvalKit utils/utils.py at 9b12e3b, seen.
    Counted: open items.
    Misleads: one right word of two scores 37 % and not 50 %, and a full stop or a leading space is one more word.
    """
    said, gold = _spaced(_after_cue(text)), _spaced(question.answer.strip())
    hits = sum((Counter(said) & Counter(gold)).values())
    return min(1.0, math.exp(1 - len(gold) / len(said))) * hits / len(said)


def vlmevalkit_yes_no(text: str, question: Question) -> float:
    """Exactly one of the words yes and no is in the text, the gold one.

    Source: open-compass/VLMEvalKit vlmeval/dataset/utils/yorn.py at e8e78f0, seen; a judge may decide the rest there.
    Counted: closed items whose answer is yes or no; where neither or both are said, wrong.
    Misleads: "There is no doubt: a nodule" answers no, and an answer by letter is never right.
    """
    words = _vqa_text(text).split()
    return float([word for word in YES_NO if word in words] == [question.answer.lower()])


def lmms_eval_slake(text: str, question: Question) -> float:
    """The whole text equals the gold answer, without case, punctuation and what stands in round brackets.

    Source: EvolvingLMMs-Lab/lmms-eval lmms_eval/tasks/slake/utils.py at 65ef07d, seen (its Chinese words left out).
    Counted: every item.
    Misleads: one word too many is wrong, so the score is first of all that of obedience to "answer with one word".
    """
    return float(_bare(text) == _bare(question.answer))


_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_CUES = (
    "**answer**:",
    "**answer**",
    "*answer*:",
    "**answer:**",
    "answer is",
    "answer:",
    "final answer",
    "final answer is",
)
_NO_SIGNS = str.maketrans(dict.fromkeys(string.punctuation, " "))
_SAME = {"yeah": "yes", "yep": "yes", "true": "yes", "nope": "no", "false": "no", "x ray": "xray"}


def _vqa_text(text: str) -> str:
    """Normalised as LLaVA-Med does, without its contractions and its limit of 32 full stops."""
    spaced = text = text.lower()
    has_thousands = re.search(r"\d,\d", text)
    for sign in _SIGNS:
        # beside a space a sign goes, between letters it parts two words
        is_loose = has_thousands or f"{sign} " in text or f" {sign}" in text
        spaced = spaced.replace(sign, "" if is_loose else " ")
    words = re.sub(r"\.(?!\d)", "", spaced).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))


def _holds_yes_or_no(text: str) -> bool:
    return any(word in text for word in YES_NO)


def _after_cue(text: str) -> str:
    """What MedEvalKit takes for the answer: of a box or of tags, then after the last of each cue in turn."""
    text = text.strip().lower()
    boxed = _BOXED.findall(text)
    tagged = " ".join(re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)).strip()
    text = boxed[-1].strip() if boxed else tagged or text
    for cue in _CUES:
        text = text.rpartition(cue)[2]
    return text


def _spaced(text: str) -> list[str]:
    return text.lower().replace(".", " .").split(" ")


def _bare(text: str) -> str:
    text = " ".join(re.sub(r"\([^)]*\)", " ", text.lower()).translate(_NO_SIGNS).split())
    return _SAME.get(text, text)
