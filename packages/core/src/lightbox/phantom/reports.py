"""Reports: findings in paraphrases and explicit normals, 3 to 6 sentences, with exact finding labels."""

from collections.abc import Sequence

from lightbox.phantom.facts import FactTable, FindingFact, with_article
from lightbox.phantom.ontology import CLASS_NAMES
from lightbox.records import Report

_SEEN = (
    "there is a {look} in the {where} .",
    "the {where} shows a {look} .",
    "a {look} is seen in the {where} .",
    "note is made of a {look} in the {where} .",
)
_NAMED = (
    "there is {a_name} in the {where} .",
    "the {where} shows {a_name} , a {look} .",
    "{a_name} is seen in the {where} .",
    "a {look} in the {where} is {a_name} .",
)
_ABSENT = ("there is no {name} .", "no {name} is seen .", "{name} is absent .")
_CLEAR = ("the lungs are clear .", "both lungs are clear .", "no focal finding is seen .")
_HEART_NORMAL = ("the heart is not enlarged .", "heart size is normal .", "the cardiac silhouette is normal .")
_HEART_LARGE = ("the heart is enlarged .", "there is cardiomegaly .", "the cardiac silhouette is enlarged .")


def write_report(facts: FactTable, words: Sequence[int]) -> Report:
    """Dictate one report.

    Args:
        facts: what is true.
        words: raw draws; at least 24.

    Returns:
        A report of 2 to 9 sentences (3 to 6 for up to three findings); its `findings` list what it states, absences
        as "no NAME".
    """
    draw = iter(words)
    sentences, stated = [], []
    for f in facts.findings:
        named = f.name in CLASS_NAMES
        templates = _NAMED if named else _SEEN
        sentences.append(_fill(templates[next(draw) % len(templates)], f))
        stated.append(f.name)
    if not facts.findings:
        sentences.append(_CLEAR[next(draw) % len(_CLEAR)])
    heart = _HEART_LARGE if facts.has_cardiomegaly else _HEART_NORMAL
    # anywhere: a fixed place would tell it from the position
    sentences.insert(next(draw) % (len(sentences) + 1), heart[next(draw) % len(heart)])
    stated.append("cardiomegaly" if facts.has_cardiomegaly else "no cardiomegaly")
    # explicit normals, as radiologists dictate; "clear" alone teaches no names
    absent = [name for name in CLASS_NAMES if name not in stated]
    for _ in range(1 + next(draw) % 2):
        name = absent[next(draw) % len(absent)]
        absent.remove(name)
        sentences.append(_ABSENT[next(draw) % len(_ABSENT)].format(name=name))
        stated.append(f"no {name}")
    return Report(tuple(sentences), tuple(stated))


def _fill(template: str, f: FindingFact) -> str:
    return template.format(look=f.look, where=f.where, a_name=with_article(f.name))
