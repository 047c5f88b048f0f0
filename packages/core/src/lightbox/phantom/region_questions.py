"""Questions about a region of an image, whose answer needs the region, and requests for the mask of a class.

A question is asked only where the image holds regions of at least two answers; a coin then chooses the answer, and
another the region that has it. So neither the text nor the image without the region tells the answer: the best that
either can do is one over the number of options. Requests for a mask are balanced over a list of cases: of the requests
for each class the same share meets images without it, so that the word tells nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightbox.errors import RequestError
from lightbox.phantom.region_prompts import PROMPTS, RegionPrompt, prompt_region, text_key, text_stream
from lightbox.records import Case, Finding, Question

_TEXTS = {
    "class": ("what does the region show ?", "what is the region ?", "name the region ."),
    "half": ("in which half of the image does the region lie ?", "is the region left or right in the image ?"),
    "size": ("is the region small or large for its kind ?", "of what size is the region , for its kind ?"),
    "contrast": ("does the region stand out , faint or strong ?", "is the contrast of the region faint or strong ?"),
}
KINDS = tuple(_TEXTS)
PRESENT, ABSENT = "present", "absent"
_REQUESTS = ("segment the {name} .", "outline the {name} .", "where is the {name} ? show its mask .")


@dataclass(frozen=True, slots=True)
class RegionQuestion:
    """A question about one region of a case's first image.

    Args:
        question: `options` are the answers that regions of this image have, in alphabetical order.
        finding: place in `case.findings` of what is meant.
        prompt: the region as it is given.
    """

    question: Question
    finding: int
    prompt: RegionPrompt


@dataclass(frozen=True, slots=True)
class MaskRequest:
    """A request for the mask of a class in a case's first image.

    Args:
        question: its options are `PRESENT` and `ABSENT`.
        case: place of the case in the list that was given.
        name: the class.
        mask: bool (h, w), all of the class's findings together; empty where it is absent.
    """

    question: Question
    case: int
    name: str
    mask: np.ndarray

    @property
    def is_present(self) -> bool:
        """True where the image shows the class."""
        return self.question.answer == PRESENT


def ask_regions(
    case: Case,
    *,
    n: int = 2,
    kinds: Sequence[str] = KINDS,
    prompts: Sequence[str] = PROMPTS,
    jitter_pct: int = 10,
    draw: str = "0",
) -> tuple[RegionQuestion, ...]:
    """Ask about regions of a case.

    Args:
        case: with masks; its questions depend on its id and findings, and on `draw`.
        n: number of questions; fewer where the image allows fewer. At most one of a kind: a second one would have to
            avoid the first one's region, and that would tell something.
        kinds: some of `KINDS`; size and contrast are asked about findings that have them. The question of a kind is
            the same whichever other kinds are asked.
        prompts: some of `region_prompts.PROMPTS`, of which each question has one. Other prompts mean the same region,
            so that they can be compared question by question.
        jitter_pct: of the prompts, 0..50.
        draw: names the draw: another one asks about other regions.

    Raises:
        RequestError: an unknown kind or prompt, or jitter out of range.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise RequestError(f"kinds={unknown}", "Regions have no such question", f"Use some of {', '.join(KINDS)}")
    asked = []
    for kind in sorted(kinds, key=lambda kind: text_key(f"{draw} {case.id} {kind}")):
        places_by_answer = places_of_answers(case.findings, kind)
        if len(places_by_answer) > 1 and len(asked) < n:
            asked.append(_ask(case, kind, places_by_answer, prompts, jitter_pct, draw))
    return tuple(asked)


def _ask(
    case: Case,
    kind: str,
    places_by_answer: dict[str, list[int]],
    prompts: Sequence[str],
    jitter_pct: int,
    draw: str,
) -> RegionQuestion:
    question_id = f"{case.id}-region-{kind}"
    stream = text_stream(f"{draw} {question_id}")
    answers = sorted(places_by_answer)
    index = stream.below(len(answers))  # the answer first: drawn by region, it would be the commonest one too often
    place = stream.pick(places_by_answer[answers[index]])
    text, name = stream.pick(_TEXTS[kind]), stream.pick(prompts)
    prompt_stream = text_stream(f"{draw} {question_id} {name}")
    prompt = prompt_region(case.findings, place, kind=name, stream=prompt_stream, jitter_pct=jitter_pct)
    question = Question(question_id, text, answers[index], tuple(answers), index, kind=f"region_{kind}")
    return RegionQuestion(question, place, prompt)


def places_of_answers(findings: Sequence[Finding], kind: str) -> dict[str, list[int]]:
    """Places of the findings with a mask, by their answer to a question of that kind."""
    places: dict[str, list[int]] = {}
    for place, finding in enumerate(findings):
        answer = finding.name if kind == "class" else finding.attributes.get(kind)
        if finding.present and answer is not None and finding.mask is not None and finding.mask.any():
            places.setdefault(answer, []).append(place)
    return places


def request_masks(
    cases: Sequence[Case],
    *,
    classes: Sequence[str],
    absent_pct: int = 25,
    max_per_class: int | None = None,
    draw: str = "0",
) -> tuple[MaskRequest, ...]:
    """Ask for the masks of classes, also where there is none.

    Args:
        cases: of one modality: a class of another would be absent at a glance.
        classes: those that the modality can show.
        absent_pct: share of the requests for each class that meet images without it, in percent, 0..90.
        max_per_class: at most so many requests for a class; None means as many as the cases allow.
        draw: names the draw: another one chooses other cases and texts.

    Returns:
        In a drawn order. Of every class the same share is absent, rounded down, and no case is asked twice for the
        same. A class that is in every case or in none is not asked for: its word would tell the answer. With
        `absent_pct` 0 every class that some case shows is asked for.

    Raises:
        RequestError: `absent_pct` out of range, cases of several modalities, or a file without any mask.
    """
    if not 0 <= absent_pct <= 90:
        raise RequestError(f"absent_pct={absent_pct}", "It must lie in 0..90", "Choose absent_pct in that range")
    if len({case.modality for case in cases}) > 1:
        raise RequestError(
            f"Cases of {sorted({case.modality for case in cases})}",
            "Requests are balanced within one modality",
            "Call once for the cases of each",
        )
    requests = []
    for name in classes:
        masks = [_merged(case, name) for case in cases]
        order = sorted(range(len(cases)), key=lambda place: text_key(f"{draw} {name} {cases[place].id}"))
        shown = [place for place in order if masks[place].any()]
        without = [place for place in order if not masks[place].any()]
        total = len(shown) * 100 // (100 - absent_pct)
        if absent_pct:
            total = min(total, len(without) * 100 // absent_pct)
        total = total if max_per_class is None else min(total, max_per_class)
        n_absent = total * absent_pct // 100
        for place in (*shown[: total - n_absent], *without[:n_absent]):
            requests.append(_request(cases[place], place, name, masks[place], draw))
    return tuple(sorted(requests, key=lambda request: text_key(f"{draw} {request.question.id}")))


def _request(case: Case, place: int, name: str, mask: np.ndarray, draw: str) -> MaskRequest:
    question_id = f"{case.id}-mask-{name}"
    options, index = (PRESENT, ABSENT), 0 if mask.any() else 1
    text = _REQUESTS[text_key(f"text {draw} {question_id}") % len(_REQUESTS)]
    question = Question(question_id, text.format(name=name), options[index], options, index, kind="mask")
    return MaskRequest(question, place, name, mask)


def _merged(case: Case, name: str) -> np.ndarray:
    """All of a class in one mask, as MeCoVQA merges the instances of a class."""
    every = [f.mask for f in case.findings if f.mask is not None]
    if not every and not isinstance(case.images[0], np.ndarray):
        raise RequestError(
            f"The case '{case.id}' has a file for its image and no mask",
            "How large its empty mask is cannot be told",
            "Leave it out, or load its image",
        )
    shape = every[0].shape if every else np.asarray(case.images[0]).shape[:2]
    masks = [f.mask for f in case.findings if f.name == name and f.present and f.mask is not None]
    return np.logical_or.reduce([np.zeros(shape, dtype=bool), *masks])
