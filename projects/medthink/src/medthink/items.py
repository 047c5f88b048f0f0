"""Where items come from: the phantom or a reader of real data. One `Item` a question, images beside. No torch."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightbox import phantom
from lightbox.errors import RequestError
from lightbox.files import digest
from lightbox.readers import catalog, leakage, splits
from lightbox.records import Case, Question
from medthink.config import PHANTOM, Config

CHUNK = 512  # cases drawn at a time until there are enough questions
NEEDS_RATIONALE = ("explanation", "reasoning", "first_stage", "reader")


@dataclass(frozen=True, slots=True)
class Item:
    """One question with everything a strategy may ask or answer; `image` is its row in `Split.images`."""

    id: str
    case_id: str
    question: str
    options: tuple[str, ...]
    answer: str
    answer_index: int | None
    rationale: str
    facts: frozenset[str]
    kind: str
    image: int

    @property
    def is_closed(self) -> bool:
        """True where the answer is the letter of an option."""
        return bool(self.options)


@dataclass(frozen=True)
class Split:
    """Items of one split and the images they show, each image once; `case_ids` names the images."""

    name: str
    items: list[Item]
    images: list[np.ndarray | Path]
    case_ids: list[str]

    def digest(self) -> str:
        """What identifies the images and their order: a digest of pixels, or of the files' content."""
        return digest([_image_digest(image) for image in self.images])


def load_splits(cfg: Config, *, with_images: bool = True) -> tuple[Split, Split]:
    """The training split and the split to be scored, reference rationales in both.

    Args:
        cfg: `data.*`, `run.seed` and `objective.method` decide.
        with_images: False draws phantom texts only, several times faster; `images` is then empty.

    Raises:
        RequestError: an unreadable data set, an empty split, or training rationales that the strategy needs and the
            data lack.
    """
    if cfg.data.source == PHANTOM:
        wanted = {"train": cfg.data.n_train, cfg.data.eval_split: cfg.data.n_test}
        train, scored = (_draw(cfg, name, n, with_images=with_images) for name, n in wanted.items())
    else:
        cases = read_cases(cfg)
        train, scored = (
            _gather(name, (case for case in cases if case.split == name), cfg, limit)
            for name, limit in (("train", cfg.data.n_train), (cfg.data.eval_split, cfg.data.n_test))
        )
    _check_rationales(cfg, train)
    return train, scored


def read_cases(cfg: Config) -> tuple[Case, ...]:
    """Cases of a real data set, divided as `data.split` says; an official split is taken as it is, leaks and all."""
    cases = catalog.read(cfg.data.source, cfg.data.root).cases
    return splits.split_by_image(cases, seed=0) if cfg.data.split == "by_image" else cases


def leaks(cfg: Config) -> list[str]:
    """What the splits of a real data set share, one sentence a pair of splits; to be shown beside every score."""
    return [str(found) for found in leakage.leakage(read_cases(cfg))]


def _draw(cfg: Config, name: str, n: int, *, with_images: bool) -> Split:
    knobs = phantom.Knobs(rho=cfg.data.rho, lesion_scale_pct=cfg.data.lesion_scale_pct, shifted=name == "test_shifted")
    seeds = phantom.seed_range(name, cfg.run.seed, 1_000_000)
    per_case = cfg.data.questions_per_case

    def cases() -> Iterator[Case]:
        first = -(-n // per_case)
        for start, stop in itertools.pairwise(itertools.chain((0,), itertools.count(first, CHUNK))):
            yield from phantom.draw_cases(
                seeds[start:stop],
                knobs,
                questions_per_case=per_case,
                closed=cfg.data.form == "closed",
                with_pixels=with_images,
            )

    return _gather(name, cases(), cfg, n)


def _gather(name: str, cases: Iterator[Case], cfg: Config, limit: int) -> Split:
    """Items of the wanted form, at most `limit`, with the images they show."""
    items: list[Item] = []
    images: list[np.ndarray | Path] = []
    case_ids: list[str] = []
    for case in cases:
        questions = [q for q in case.questions if _has_form(q, cfg.data.form)][: limit - len(items)]
        if not questions:
            continue
        images += case.images[:1]
        case_ids.append(case.id)
        items += [_item(case, question, len(case_ids) - 1) for question in questions]
        if len(items) == limit:
            break
    if not items:
        raise RequestError(
            f"data.source is {cfg.data.source}, its split '{name}'",
            f"It holds no {cfg.data.form} question",
            "Choose another data.form, data.eval_split or data.split=by_image",
        )
    return Split(name, items, images, case_ids)


def _has_form(question: Question, form: str) -> bool:
    """Closed means two options, as in the paper; open means none."""
    return len(question.options) == (2 if form == "closed" else 0)


def _item(case: Case, question: Question, image: int) -> Item:
    return Item(
        id=question.id,
        case_id=case.id,
        question=" ".join(question.text.split()),
        options=question.options,
        answer=question.answer,
        answer_index=question.answer_index,
        rationale=" ".join((question.rationale or "").split()),
        facts=frozenset(question.facts),
        kind=question.kind,
        image=image,
    )


def _check_rationales(cfg: Config, train: Split) -> None:
    method = cfg.objective.method
    is_needed = method in NEEDS_RATIONALE or (method, cfg.objective.stage2_rationales) == ("second_stage", "gold")
    missing = sum(not item.rationale for item in train.items)
    if is_needed and missing and cfg.objective.is_trained:
        raise RequestError(
            f"objective.method is {method} and data.source is {cfg.data.source}",
            f"{missing} of its {len(train.items)} training questions have no rationale to learn from",
            "Use a set with rationales (phantom, r_rad, r_slake, r_path), or objective.method=none",
        )


def _image_digest(image: np.ndarray | Path) -> str:
    if isinstance(image, np.ndarray):
        return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ids_of(items: Sequence[Item]) -> list[str]:
    """Names of items, in order."""
    return [item.id for item in items]
