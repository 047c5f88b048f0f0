"""Check a whole dataset: counts, malformed rows, duplicate ids, unreadable images, leakage between splits.

Preference pairs are audited too, see `preference_audit`; masks are decoded, see `mask_audit`.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightbox.errors import RequestError
from lightbox.files import file_sha256
from lightbox.readers.all_sets import dataset_folder, read_dataset
from lightbox.readers.dataset_cards import NOT_RECORDED, load_dataset_card
from lightbox.readers.leakage import Leakage, image_key, leakage
from lightbox.readers.mask_audit import with_sound_masks
from lightbox.readers.pixels import load_pixels, pixels_fault, pixels_note
from lightbox.readers.preference_audit import PreferenceAudit, audit_preferences
from lightbox.readers.preference_sets import PREFERENCE_SETS
from lightbox.readers.rows import Problem, ReadResult
from lightbox.readers.splits import split_by_file
from lightbox.records import Case, Question, questions_of

LISTED = 20
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Validation:
    """What was found in a dataset.

    `counts` has one table each for split, answer type, body part, modality, question kind and language, counted in
    questions. `problems`, `unreadable` and `duplicate_ids` list the first `LISTED`; their totals are beside them.
    `repeated_items` are questions that repeat an (image, question, answer) of the same split: reported, not a
    failure, since published sets have them. `differing_files` differ from the digest in the dataset's card: another
    release, or a damaged one. `is_own_split` says whether leakage breaks a rule or is the publisher's. `audit` is what
    was found in preference pairs, None without any; like repeated items, it is reported and breaks no rule.
    """

    name: str
    root: str
    cases: int
    questions: int
    images: int
    identical_images: int
    counts: dict[str, dict[str, int]]
    notes: dict[str, int]
    leakage: tuple[Leakage, ...]
    is_own_split: bool
    malformed: int
    problems: tuple[Problem, ...]
    unreadable_images: int
    unreadable: tuple[tuple[str, str], ...]
    duplicates: int
    duplicate_ids: tuple[str, ...]
    repeated_items: int
    differing_files: tuple[str, ...] = ()
    audit: PreferenceAudit | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """The rules that are broken, each as one phrase with its count."""
        broken = [
            f"{count} {what}"
            for count, what in (
                (self.malformed, "malformed rows"),
                (self.duplicates, "duplicate ids"),
                (self.unreadable_images, "unreadable images"),
            )
            if count
        ]
        if self.is_own_split:
            broken += [f"leakage: {pair}" for pair in self.leakage if not pair.is_clean]
        return tuple(broken)

    @property
    def is_ok(self) -> bool:
        """True where no rule is broken."""
        return not self.failures

    def to_plain(self) -> dict[str, object]:
        """Nested plain dictionary for JSON, with `failures` and `is_ok`."""
        return {**dataclasses.asdict(self), "failures": list(self.failures), "is_ok": self.is_ok}


def validate(
    name: str,
    root: Path | str | None = None,
    *,
    split_file: Path | None = None,
    scored_on: str | None = None,
    on_image: Tick | None = None,
    **options: object,
) -> Validation:
    """Read a dataset, decode every image in full, and count what is wrong.

    Args:
        name: of a dataset, see `all_sets`.
        root: its folder; None means `$LIGHTBOX_DATA_ROOT/<name>`.
        split_file: a split of our own (see `splits.split_by_file`) to check in place of the official one.
        scored_on: of preference pairs, the dataset below `$LIGHTBOX_DATA_ROOT` that a tuned model will be scored on:
            its test part, or all of it where it has none.
        on_image: called with (images done, images in all).
        options: the reader's own.

    Raises:
        RequestError: the request was wrong, `scored_on` for a set without pairs, or a whole file cannot be read.
    """
    if scored_on is not None and name not in PREFERENCE_SETS:
        raise RequestError(
            f"scored_on='{scored_on}' for {name}",
            "It asks which images of preference pairs are scored, and this set has no pairs",
            f"Leave it out, or choose one of {', '.join(PREFERENCE_SETS)}",
        )
    result = with_sound_masks(read_dataset(name, root, **options))
    if split_file is not None:
        result = dataclasses.replace(result, cases=split_by_file(result.cases, split_file))
    folder = dataset_folder(name, root)
    scored = None if scored_on is None else _scored_cases(scored_on)
    validation = validate_cases(
        name, str(folder), result, is_own_split=split_file is not None, scored=scored, on_image=on_image
    )
    return dataclasses.replace(validation, differing_files=differing_files(name, folder))


def _scored_cases(name: str) -> Sequence[Case]:
    cases = read_dataset(name).cases
    return [case for case in cases if case.split == "test"] or cases


def differing_files(name: str, folder: Path) -> tuple[str, ...]:
    """Files below `folder` whose SHA-256 is not the one that the dataset's card records; others are not read."""
    recorded = {file.path: file.sha256 for file in load_dataset_card(name).files if file.sha256 != NOT_RECORDED}
    return tuple(
        str(path.relative_to(folder))
        for pattern, digest in recorded.items()
        for path in sorted(folder.glob(pattern))
        if file_sha256(path) != digest
    )


def validate_cases(
    name: str,
    root: str,
    result: ReadResult,
    *,
    is_own_split: bool,
    scored: Sequence[Case] | None = None,
    on_image: Tick | None = None,
) -> Validation:
    """Check cases already read, or drawn; arguments as `validate`, `scored` being cases."""
    pixels, unreadable, changed = decode_all([image for case in result.cases for image in case.images], on_image)
    rows = questions_of(result.cases)
    ids = Counter(question.id for _, question in rows)
    duplicates = [qid for qid, count in ids.items() if count > 1]
    items = Counter(
        (case.split, case.id, " ".join(question.text.lower().split()), question.answer.lower())
        for case, question in rows
    )
    return Validation(
        name=name,
        root=root,
        cases=len(result.cases),
        questions=len(rows),
        images=len(pixels) + len(unreadable),
        identical_images=len(pixels) - len(set(pixels.values())),
        counts=_tables(rows),
        notes=dict(sorted((result.counts | changed).items())),
        leakage=leakage(result.cases, pixels=pixels),
        is_own_split=is_own_split,
        malformed=len(result.problems),
        problems=result.problems[:LISTED],
        unreadable_images=len(unreadable),
        unreadable=tuple(unreadable.items())[:LISTED],
        duplicates=sum(ids[qid] - 1 for qid in duplicates),
        duplicate_ids=tuple(duplicates[:LISTED]),
        repeated_items=sum(count - 1 for count in items.values()),
        audit=_audit(result, pixels, unreadable, scored),
    )


def _audit(
    result: ReadResult, pixels: dict[str, str], unreadable: Collection[str], scored: Sequence[Case] | None
) -> PreferenceAudit | None:
    if not any(case.preferences for case in result.cases):
        return None
    # of the scored images the digests are wanted too: a copy has another path
    others, _, _ = decode_all([image for case in scored or () for image in case.images])
    return audit_preferences(result, pixels=pixels | others, unreadable=unreadable, scored=scored)


def decode_all(
    images: Sequence[Path | np.ndarray], on_image: Tick | None = None
) -> tuple[dict[str, str], dict[str, str], dict[str, int]]:
    """Decode each distinct image once.

    Returns:
        Digest of the decoded pixels by image key, the reason by key for images that cannot be decoded, and how many
        images decoding changed, by `pixels.pixels_note`.
    """
    distinct = {image_key(image): image for image in images}  # SLAKE asks 14,000 questions of 642 images
    pixels, unreadable, changed = {}, {}, Counter[str]()
    for done, (key, image) in enumerate(distinct.items(), start=1):
        try:
            grey = load_pixels(image)
            fault = pixels_fault(image) if isinstance(image, Path) else ""
            if fault:
                raise RequestError(f"Image '{image}'", fault, "Fetch the file again, or leave it out")
            # of decoded pixels: the same picture saved twice has other bytes
            pixels[key] = hashlib.sha256(str(grey.shape).encode() + grey.tobytes()).hexdigest()
            note = pixels_note(image) if isinstance(image, Path) else ""
            changed.update([note] if note else [])
        except RequestError as err:
            unreadable[key] = err.why
        if on_image is not None:
            on_image(done, len(distinct))
    return pixels, unreadable, dict(changed)


def _tables(rows: Iterable[tuple[Case, Question]]) -> dict[str, dict[str, int]]:
    tables: dict[str, Counter[str]] = {
        name: Counter() for name in ("split", "answer_type", "body_part", "modality", "kind", "language")
    }
    for case, question in rows:
        tables["split"][case.split or "none"] += 1
        tables["answer_type"]["closed" if question.is_closed else "open"] += 1
        tables["body_part"][case.body_part or "unknown"] += 1
        tables["modality"][case.modality or "unknown"] += 1
        tables["kind"][question.kind or "unknown"] += 1
        tables["language"][question.language] += 1
    return {name: dict(table.most_common()) for name, table in tables.items()}
