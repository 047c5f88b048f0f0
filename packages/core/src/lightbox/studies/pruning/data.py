"""Images with small lesions, and two prompts about each: where the finding of one place is, and a closed question."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from lightbox import phantom
from lightbox.errors import RequestError
from lightbox.paper.samples import Sample, Split
from lightbox.phantom.ontology import CLASS_NAMES
from lightbox.pretrain.llava_576_rows import AT, BoxTurn, box_turns
from lightbox.pretrain.llava_rows import Turn, question_turn
from lightbox.records import Case
from lightbox.studies.pruning.config import Config

CHUNK = 128
MOST_SEEDS = 100_000
KEPT_SPLITS = 2
"""Those of one seed: with a letter burned in, and without."""
MAP_IMAGES = 300
"""Training images that the map of usual places is the mean of."""


@dataclass(frozen=True, slots=True)
class Asked(BoxTurn):
    """A prompt for the box of one lesion; `case` holds all lesions, `question` is a closed one about the image.

    The image has exactly one finding in the place that the prompt names. `question` is None where the phantom has none.
    """

    case: Case = field(default_factory=lambda: Case("", ()))
    question: Turn | None = None


def load_split(cfg: Config) -> Split[Asked]:
    """The images to be scored, each asked about one of its lesions, drawn at random.

    Args:
        cfg: `data.*` and `run.seed` decide.

    Raises:
        RequestError: more images than the phantom's part holds.
    """
    return draw_split(cfg.data.eval_split, _world(cfg), cfg.run.seed, cfg.data.n_test, cfg.data.questions_per_case)


@lru_cache(maxsize=KEPT_SPLITS)
def draw_split(name: str, knobs: phantom.Knobs, seed: int, n_images: int, questions_per_case: int) -> Split[Asked]:
    """See `load_split`; kept, because arms of one seed see the same images and a worker scores several arms."""
    seeds = phantom.seed_range(name, seed, MOST_SEEDS)
    samples: list[Sample[Asked]] = []
    images: list[np.ndarray] = []
    for start in range(0, MOST_SEEDS, CHUNK):
        drawn = seeds[start : start + CHUNK]
        for case in phantom.draw_cases(drawn, knobs, questions_per_case=questions_per_case, closed=True):
            asked = ask(case)
            if asked is not None:
                samples.append(Sample(f"{case.id}/box", asked, case.id, len(images)))
                images.append(case.images[0])
            if len(samples) == n_images:
                return Split(name, samples, images, [sample.case_id for sample in samples])
    raise RequestError(f"data.n_test is {n_images}", f"{MOST_SEEDS} images hold fewer", "Ask for fewer")


def usual_places(cfg: Config) -> np.ndarray:
    """How often training images have a lesion at each pixel, float32 h w in [0, 1], 1 where most have."""
    seeds = phantom.seed_range("train", cfg.run.seed, MAP_IMAGES)
    cases = phantom.draw_cases(seeds, _world(cfg), questions_per_case=0)
    counts = np.sum(  # pyright: ignore[reportCallIssue]
        [finding.mask for case in cases for finding in case.findings], axis=0, dtype=np.float32
    )
    return counts / counts.max()


def _world(cfg: Config) -> phantom.Knobs:
    return phantom.Knobs(
        image_px=cfg.data.image_px,
        lesion_scale_pct=cfg.data.lesion_scale_pct,
        burned_in_text=cfg.data.burned_in_text,
        rho=cfg.data.rho,
        shifted=cfg.data.eval_split == "test_shifted",
    )


def ask(case: Case) -> Asked | None:
    """What is asked about a case; None where no place holds exactly one finding."""
    rng = np.random.default_rng(int(case.id.rpartition("-")[2]))
    turns = [turn for turn in box_turns(case, CLASS_NAMES, rng) if turn.kind == AT and len(turn.boxes) == 1]
    if not turns:
        return None
    turn = turns[int(rng.integers(len(turns)))]
    question = question_turn(case.questions[0]) if case.questions else None
    return Asked(turn.kind, turn.prompt, turn.answer, turn.options, turn.boxes, turn.size, case, question)
