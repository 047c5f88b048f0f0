"""Masks of a dataset decoded one by one: what is wrong with them, and the cases without those that are wrong.

Readers of large sets take a mask's name and leave its pixels alone. This decodes them: `lightbox data validate` does,
and so should whoever trains, since a mask of another size found in the third hour ends a run.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from lightbox.errors import RequestError
from lightbox.readers.masks import MaskedFinding, MaskError, part_mask
from lightbox.readers.pixels import pixels_size_wh
from lightbox.readers.rows import Problem, ReadResult
from lightbox.records import Box, Case, Finding, box_from_mask

Tick = Callable[[int, int], None]


def with_sound_masks(result: ReadResult, *, on_mask: Tick | None = None) -> ReadResult:
    """Decode every mask, and leave out the findings whose mask cannot be used, with the questions that rest on them.

    Sound findings get their boxes and their image's size, where nobody had measured them.

    Args:
        result: what a reader found.
        on_mask: called with (findings done, findings in all).

    Returns:
        The same cases in the same order, a problem for each faulty mask beside those there were, and counts: one a
        check of `masks.CHECKS`, `masks_decoded`, `questions_without_a_sound_mask`.
    """
    total = sum(isinstance(finding, MaskedFinding) for case in result.cases for finding in case.findings)
    counts, problems, cases = Counter(result.counts), list(result.problems), []
    done = 0
    for case in result.cases:
        size_wh = _size_of(case)
        findings: list[Finding] = []
        lost: set[str] = set()
        for finding in case.findings:
            if not isinstance(finding, MaskedFinding):
                findings.append(finding)
                continue
            checked = _checked(finding, size_wh, case.id, counts)
            if isinstance(checked, Problem):
                problems.append(checked)
                lost.add(finding.id)
            else:
                findings.append(checked)
            done += 1
            if on_mask is not None:
                on_mask(done, total)
        questions = tuple(question for question in case.questions if lost.isdisjoint(question.facts))
        counts["questions_without_a_sound_mask"] += len(case.questions) - len(questions)
        cases.append(replace(case, findings=tuple(findings), questions=questions) if lost or findings else case)
    counts["malformed_rows"] = len(problems)
    counts["questions"] = sum(len(case.questions) for case in cases)
    return ReadResult(tuple(cases), tuple(problems), dict(counts))


def _checked(
    finding: MaskedFinding, size_wh: tuple[int, int] | None, case_id: str, counts: Counter[str]
) -> MaskedFinding | Problem:
    boxes: list[Box] = []
    for part in finding.parts:
        try:
            mask = part_mask(part, finding.size_wh or size_wh)
        except MaskError as err:
            counts[err.check] += 1
            return Problem(str(part.path), case_id, err.name, f"of '{finding.name}' {err.reason}")
        size_wh = size_wh or (
            mask.shape[1],
            mask.shape[0],
        )  # of an image that cannot be read, the parts must still agree
        counts["masks_decoded"] += 1
        box = box_from_mask(mask)
        assert box is not None
        boxes.append(box)
    return replace(finding, boxes=finding.boxes or tuple(dict.fromkeys(boxes)), size_wh=finding.size_wh or size_wh)


def _size_of(case: Case) -> tuple[int, int] | None:
    """Width and height of a case's first image; None where it has none, or none that can be read."""
    first = case.images[0] if case.images else None
    if isinstance(first, np.ndarray):
        return first.shape[1], first.shape[0]
    try:
        return pixels_size_wh(Path(first)) if first is not None else None
    except RequestError:
        return None
