"""From case seeds to records: the phantom's front door."""

from collections.abc import Sequence

from lightbox.phantom.chest import render_chest
from lightbox.phantom.facts import FactTable, FindingFact
from lightbox.phantom.geometry import finding_rows, mask_boxes_px
from lightbox.phantom.knobs import Knobs
from lightbox.phantom.ontology import (
    DENSITIES,
    DENSITY_WORDS,
    PLACES,
    SHAPE_WORDS,
    SHAPES,
    SIZES,
    name_of,
    place_phrase,
)
from lightbox.phantom.questions import ask
from lightbox.phantom.reports import write_report
from lightbox.phantom.scene import Scene, draw_scene
from lightbox.records import Box, Case, Finding

DEFAULT = Knobs()
CHUNK = 128  # cases drawn together: large enough to share the overhead, small enough for the cache
RENDERERS = {"chest": render_chest}
BODY_PART = {"chest": "chest"}


def draw_cases(
    case_seeds: Sequence[int],
    knobs: Knobs = DEFAULT,
    *,
    questions_per_case: int = 4,
    closed: bool | None = None,
    split: str = "",
    with_pixels: bool = True,
) -> list[Case]:
    """Draw labelled cases: pixels, masks, boxes, facts, questions with rationales, one report each.

    Args:
        case_seeds: from `seed_range`.
        knobs: the world.
        questions_per_case: up to 8.
        closed: True for two-option questions, False for open ones, None for both in turn.
        split: copied into `Case.split`.
        with_pixels: False draws texts and facts only, several times faster: no images, masks or boxes.

    Returns:
        One `Case` a seed; `images[0]` is uint8 (h, w), finding masks are bool (h, w).
    """
    cases: list[Case] = []
    for part in _chunks(case_seeds):
        scene = draw_scene(part, knobs)
        pixels, masks = RENDERERS[knobs.modality](scene, knobs) if with_pixels else (None, None)
        cases += _records(
            scene, pixels, masks, knobs, questions_per_case=questions_per_case, closed=closed, split=split
        )
    return cases


def _chunks(case_seeds: Sequence[int]):
    for start in range(0, len(case_seeds), CHUNK):
        yield case_seeds[start : start + CHUNK]


def fact_tables(scene: Scene) -> list[tuple[FactTable, list[int]]]:
    """The fact table of each case, findings largest first, and for each finding its row in `finding_rows`."""
    rows, slots = finding_rows(scene)
    columns = [getattr(scene, name)[rows, slots].tolist() for name in ("shape", "density", "size", "place", "area")]
    per_case: list[list[tuple[FindingFact, int]]] = [[] for _ in scene.seeds]
    for k, (row, *values) in enumerate(zip(rows.tolist(), *columns, strict=True)):
        per_case[row].append((_fact(*values), k))
    tables = []
    for of_case, heart_pct in zip(per_case, scene.heart_pct.tolist(), strict=True):
        of_case.sort(key=lambda pair: -pair[0].area)  # largest first is part of what comparison and composition ask
        tables.append((FactTable(tuple(fact for fact, _ in of_case), heart_pct), [k for _, k in of_case]))
    return tables


def _records(
    scene: Scene, pixels, masks, knobs: Knobs, *, questions_per_case: int, closed: bool | None, split: str
) -> list[Case]:
    boxes = None if masks is None else (mask_boxes_px(masks) / knobs.image_px).tolist()
    question_words, report_words = scene.question_words.tolist(), scene.report_words.tolist()
    cases = []
    for row, (seed, (facts, order)) in enumerate(zip(scene.seeds.tolist(), fact_tables(scene), strict=True)):
        case_id = f"{knobs.modality}-{seed}"
        shown = [((), None) if boxes is None else ((Box(*boxes[k]),), masks[k]) for k in order]
        findings = tuple(
            Finding(fact.name, True, _attributes(fact), box, mask)
            for fact, (box, mask) in zip(facts.findings, shown, strict=True)
        )
        cases.append(
            Case(
                id=case_id,
                images=() if pixels is None else (pixels[row],),
                patient_id=case_id,  # one case a patient, so that splits by patient and by image agree
                modality="phantom radiograph",
                body_part=BODY_PART[knobs.modality],
                findings=findings,
                questions=ask(facts, question_words[row], knobs, case_id=case_id, n=questions_per_case, closed=closed),
                report=write_report(facts, report_words[row]),
                licence="Apache-2.0",
                split=split,
            )
        )
    return cases


def _fact(shape: int, density: int, size: int, place: int, area: int) -> FindingFact:
    side, where = PLACES[place]
    words = SHAPES[shape], DENSITIES[density], SIZES[size]
    return FindingFact(name_of(*words, where), words[2], words[1], words[0], side, where, area)


def _attributes(f: FindingFact) -> dict[str, str]:
    return {
        "shape": SHAPE_WORDS[f.shape],
        "density": DENSITY_WORDS[f.density],
        "location": place_phrase(f.side, f.place),
        "side": f.side,
        "size": f.size,
    }
