"""Samples of a split: records of cases, each with the row of its image, from the phantom or a reader. No torch."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from lightbox import phantom
from lightbox.errors import RequestError
from lightbox.files import digest, file_sha256
from lightbox.paper.schema import DataConfig, PaperConfig
from lightbox.readers import catalog, leakage, splits
from lightbox.records import Case, Finding

CHUNK = 512  # cases drawn at a time until there are enough records
MOST_CHUNKS = 8  # kept in memory: a seed of MedThink's `full` takes 4, 27 MiB in all

Record = TypeVar("Record")
"""A `records.Question`, `Finding` or `Preference`."""


@dataclass(frozen=True, slots=True)
class Sample(Generic[Record]):
    """One record of a case; `image` is the row of its image in `Split.images`."""

    id: str
    record: Record
    case_id: str
    image: int

    def with_record(self, **changes: Any) -> "Sample[Record]":
        """The same sample with some fields of its record changed."""
        return dataclasses.replace(self, record=dataclasses.replace(self.record, **changes))


@dataclass(frozen=True)
class Split(Generic[Record]):
    """Samples of one split and the images they show, each image once; `case_ids` names the images."""

    name: str
    samples: list[Sample[Record]]
    images: list[np.ndarray | Path]
    case_ids: list[str]

    @property
    def ids(self) -> list[str]:
        """Names of the samples, in order."""
        return [sample.id for sample in self.samples]

    def digest(self) -> str:
        """What identifies the images and their order: a digest of pixels, or of the files' content."""
        return digest([_image_digest(image) for image in self.images])


Pick = Callable[[Case], Sequence[Record]]
"""Which records of a case a paper takes."""


def load_splits(
    cfg: PaperConfig, pick: Pick[Record], *, what: str, with_images: bool = True, **drawing: Any
) -> tuple[Split[Record], Split[Record]]:
    """The training split and the split to be scored.

    Where a trained model is only scored, real data need hold no training part; that split is then empty.

    Args:
        cfg: `data.*` and `run.seed` decide.
        pick: records of a case that become samples; a case without any is left out.
        what: one of those records in words, for messages, such as "closed question".
        with_images: False draws phantom texts only, several times faster; `images` is then empty.
        drawing: further arguments of `phantom.draw_cases`, each hashable.

    Raises:
        RequestError: an unreadable data set, or an empty split.
    """
    sizes = {"train": cfg.data.n_train, cfg.data.eval_split: cfg.data.n_test}
    if cfg.data.is_phantom:
        cases_of = {name: _drawn(cfg, name, n, drawing | {"with_pixels": with_images}) for name, n in sizes.items()}
    else:
        cases = read_cases(cfg.data)
        cases_of = {name: iter([case for case in cases if case.split == name]) for name in sizes}
    kinds = cfg.data.kinds
    wanted = (lambda case: [record for record in pick(case) if _kind(record) in kinds]) if kinds else pick
    train, scored = (_gather(name, cases_of[name], wanted, limit=n) for name, n in sizes.items())
    is_learnt_from = cfg.objective.is_trained or cfg.is_baseline
    for split in [train, scored] if is_learnt_from else [scored]:
        if not split.samples:
            raise RequestError(
                f"data.source is {cfg.data.source}, its split '{split.name}'",
                f"It holds no {what}" + f" of kind {' or '.join(kinds)}" * bool(kinds),
                "Choose another data.source, data.eval_split or data.kinds, or data.split=by_image",
            )
    return train, scored


def read_cases(data: DataConfig) -> tuple[Case, ...]:
    """Cases of a real data set, divided as `data.split` says; an official split is taken as it is, leaks and all."""
    cases = catalog.read(data.source, data.root).cases
    return splits.split_by_image(cases, seed=0) if data.split == "by_image" else cases


def leaks(data: DataConfig) -> list[str]:
    """What the splits of a real data set share, one sentence a pair of splits; to be shown beside every score."""
    return [str(shared) for shared in leakage.leakage(read_cases(data))]


def _drawn(cfg: PaperConfig, name: str, n: int, drawing: dict[str, Any]) -> Iterator[Case]:
    """Phantom cases without end, first as many as `n` records take if each case gives `questions_per_case`."""
    knobs = phantom.Knobs(rho=cfg.data.rho, lesion_scale_pct=cfg.data.lesion_scale_pct, shifted=name == "test_shifted")
    seeds = phantom.seed_range(name, cfg.run.seed, 1_000_000)
    per_case = cfg.data.questions_per_case
    first = -(-n // per_case)
    for start, stop in itertools.pairwise(itertools.chain((0,), itertools.count(first, CHUNK))):
        yield from _cases(seeds[start:stop], knobs, per_case, tuple(drawing.items()))


@lru_cache(maxsize=MOST_CHUNKS)
def _cases(seeds: range, knobs: phantom.Knobs, per_case: int, drawing: tuple[tuple[str, Any], ...]) -> list[Case]:
    """The arms of a seed share their cases, and a worker trains several of them."""
    return phantom.draw_cases(seeds, knobs, questions_per_case=per_case, **dict(drawing))


def _gather(name: str, cases: Iterator[Case], pick: Pick[Record], *, limit: int) -> Split[Record]:
    """At most `limit` records as samples, with the images they show."""
    samples: list[Sample[Record]] = []
    images: list[np.ndarray | Path] = []
    case_ids: list[str] = []
    for case in cases:
        records = list(pick(case))[: limit - len(samples)]
        if not records:
            continue
        images += case.images[:1]
        case_ids.append(case.id)
        row = len(case_ids) - 1
        samples += [Sample(_name(case, record), record, case.id, row) for record in records]
        if len(samples) == limit:
            break
    return Split(name, samples, images, case_ids)


def _name(case: Case, record: Any) -> str:
    """A record's own id; a finding has none and is named by its case."""
    return getattr(record, "id", "") or f"{case.id}/{record.name}"


def _kind(record: Any) -> str:
    """A finding has no kind beside its name."""
    return record.name if isinstance(record, Finding) else record.kind


def _image_digest(image: np.ndarray | Path) -> str:
    if isinstance(image, np.ndarray):
        return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
    return file_sha256(image)
