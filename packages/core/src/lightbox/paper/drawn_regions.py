"""Questions about regions, about whole pictures, and requests for masks, drawn from the phantom's modalities. No torch.

`samples.load_splits` draws questions of one kind of image; here a picture is of one of several modalities, a question
may mean a region, and what is asked for may be a mask. Words alone tell no answer, see `phantom.region_questions`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache

import numpy as np

from lightbox.paper.pixel_prompts import Prompt, Scribble
from lightbox.paper.samples import Sample, Split
from lightbox.phantom import region_questions
from lightbox.phantom.canvas import PictureKnobs
from lightbox.phantom.modalities import MODALITIES, draw_modality
from lightbox.phantom.region_prompts import PROMPTS, RegionPrompt, prompt_region, text_key, text_stream
from lightbox.phantom.region_questions import ABSENT, RegionQuestion, ask_regions, request_masks
from lightbox.records import Box, Case, Question

REGION, PRESENCE, MASK, CAPTION = "region", "presence", "mask", "caption"
TASKS = (REGION, PRESENCE, MASK, CAPTION)
OWN, OTHER, WHOLE = "own", "other", "whole"
"""The region as the question has it; another one of the picture, whose answer differs; all of the picture."""
EVERYWHERE = Box(0.0, 0.0, 1.0, 1.0)
CAPTION_TEXTS = ("what does the image show ?", "describe the image .")
_FIELDS = [item.name for item in fields(Question)]


@dataclass(frozen=True, slots=True)
class Asked(Question):
    """A question about a picture.

    Args:
        task: one of `TASKS`.
        modality: of the picture.
        name: class that a presence question or a request for a mask is about; "" for others.
        regions: what the question may be shown as its region, by `OWN`, `OTHER`, `WHOLE` and kinds of prompts.
        patient_id: of the picture, "" where each has a patient of its own, or patients are unknown.
        mask: bool h w: of the region that is meant, or of what is asked for, then empty where it is absent; None for
            questions about the whole picture.
    """

    task: str = ""
    modality: str = ""
    name: str = ""
    regions: Mapping[str, Prompt] = field(default_factory=dict)
    mask: np.ndarray | None = None
    patient_id: str = ""


def load_asked(
    name: str,
    *,
    seed: int,
    modalities: Sequence[str],
    tasks: Mapping[str, int],
    per_picture: int = 2,
    scale_pct: int = 100,
    with_prompts: bool = False,
    classes_of: Callable[[str], Sequence[str]] = lambda modality: MODALITIES[modality].classes,
) -> Split[Asked]:
    """Draw the questions of a split, of each task so many, of each modality as many as of the others.

    Fewer where the pictures allow fewer: a class is asked for as often where it is absent as a fixed share says.

    Args:
        name: of the phantom's split.
        seed: run seed.
        modalities: that pictures are of.
        tasks: number of questions by task.
        per_picture: questions of a task that a picture is drawn for, >= 1; fewer pictures are drawn where it is higher.
        scale_pct: size of findings in percent of the default.
        with_prompts: also draw each region as every kind of prompt, and another region of the picture; takes time.
        classes_of: those of a modality that presence questions and requests for masks are about.

    Raises:
        RequestError: what `draw_modality` refuses.
    """
    samples: list[Sample[Asked]] = []
    images, case_ids = [], []
    share = {task: -(-n // len(modalities)) for task, n in tasks.items()}
    n_pictures = max(1, -(-max(share.values()) // per_picture))
    for modality in modalities:
        cases = draw_pictures(modality, name, n_pictures, seed, scale_pct)
        asked = {
            task: of_task(
                task,
                cases,
                modality,
                classes=classes_of(modality),
                per_picture=per_picture,
                with_prompts=with_prompts,
            )[: share[task]]
            for task in tasks
        }
        first = len(images)
        images += [case.images[0] for case in cases]
        case_ids += [case.id for case in cases]
        samples += [Sample(q.id, q, cases[k].id, first + k) for own in asked.values() for k, q in own]
    return Split(name, samples, images, case_ids)


@lru_cache(maxsize=64)
def draw_pictures(modality: str, split: str, n: int, seed: int, scale_pct: int) -> list[Case]:
    """The arms of a seed share their pictures, and a worker trains several of them."""
    return draw_modality(modality, split, n=n, seed=seed, knobs=PictureKnobs(finding_scale_pct=scale_pct))


def of_task(
    task: str, cases: Sequence[Case], modality: str, *, classes: Sequence[str], per_picture: int, with_prompts: bool
) -> list[tuple[int, Asked]]:
    """Questions of a task with the place of their case, in a drawn order."""
    if task == REGION:
        pairs = [(k, q) for k, case in enumerate(cases) for q in ask_regions(case, n=per_picture)]
        asked = [(k, _about_region(cases[k], q, modality, with_prompts=with_prompts)) for k, q in pairs]
    elif task == CAPTION:
        asked = [(k, _caption(case, modality)) for k, case in enumerate(cases)]
    else:
        # of presence half is absent, so that a class's word says nothing
        absent_pct = 50 if task == PRESENCE else 25
        requests = request_masks(cases, classes=classes, absent_pct=absent_pct, draw=task)
        asked = [(r.case, _about_class(r, task, modality)) for r in requests]
    return sorted(asked, key=lambda pair: text_key(pair[1].id))


def prompt_of(prompt: RegionPrompt) -> Prompt:
    """A drawn region as a user hands it in: points and scribbles as lines with a width, boxes, and else pixels."""
    if prompt.kind == "box":
        return prompt.box
    return Scribble(prompt.points) if prompt.kind in ("point", "scribble") else prompt.mask


def _about_region(case: Case, asked: RegionQuestion, modality: str, *, with_prompts: bool) -> Asked:
    values = {name: getattr(asked.question, name) for name in _FIELDS}
    regions: dict[str, Prompt] = {OWN: prompt_of(asked.prompt), WHOLE: EVERYWHERE}
    if with_prompts:
        stream_id = f"0 {asked.question.id}"
        for kind in PROMPTS:  # those that `ask_regions` gives where it is asked for one kind
            drawn = prompt_region(
                case.findings, asked.finding, kind=kind, stream=text_stream(f"{stream_id} {kind}"), jitter_pct=10
            )
            regions[kind] = prompt_of(drawn)
        places = region_questions.places_of_answers(case.findings, asked.question.kind.removeprefix("region_"))
        others = [k for answer, own in places.items() if answer != asked.question.answer for k in own]
        stream = text_stream(f"{stream_id} {OTHER}")
        other = prompt_region(case.findings, stream.pick(others), kind=asked.prompt.kind, stream=stream)
        regions[OTHER] = prompt_of(other)
    mask = case.findings[asked.finding].mask
    return Asked(**values, task=REGION, modality=modality, regions=regions, mask=mask)


def _about_class(request: region_questions.MaskRequest, task: str, modality: str) -> Asked:
    question = request.question
    values = {name: getattr(question, name) for name in _FIELDS}
    if task == PRESENCE:
        values |= {"id": question.id.replace("-mask-", "-presence-"), "kind": PRESENCE}
        values["text"] = f"does the image show the {request.name} ?"
    mask = request.mask if task == MASK else None
    return Asked(**values, task=task, modality=modality, name=request.name, mask=mask)


def _caption(case: Case, modality: str) -> Asked:
    names = dict.fromkeys(finding.name for finding in case.findings if finding.present)
    text = CAPTION_TEXTS[text_key(f"caption {case.id}") % len(CAPTION_TEXTS)]
    answer = f"{modality} : {' , '.join(names)} ." if names else f"{modality} : {ABSENT} ."
    return Asked(f"{case.id}-caption", text, answer, kind=CAPTION, task=CAPTION, modality=modality)


def shuffled_rows(split: Split[Asked], *, seed: int) -> list[int]:
    """For each sample an image of its modality, so that regions fit, of another patient; its own if there is none."""
    record_of = {sample.image: sample.record for sample in split.samples}
    other: dict[int, int] = {}
    for modality in dict.fromkeys(own.modality for own in record_of.values()):
        rows = [row for row, own in record_of.items() if own.modality == modality]
        order = np.random.default_rng([seed, 4, 0]).permutation(rows).tolist()
        for place, row in enumerate(order):
            patient, later = record_of[row].patient_id, order[place + 1 :] + order[:place]
            other[row] = next((k for k in later if not patient or record_of[k].patient_id != patient), row)
    return [other[sample.image] for sample in split.samples]
