"""Preference pairs in the JSON of MMedPO, read and written: a list of objects, one a pair.

| field | |
|---|---|
| `id` | number, or text for reports; once in a file |
| `image` | path inside the image folder |
| `conversations` | a human turn ("<image>", a line break, the prompt) and a gpt turn (the chosen answer) |
| `rejected_conversations` | the same human turn, and the rejected answer |
| `weighted_score` | clinical relevance, 0 to 1 |
| `rejected_image` | optional: path of the image whose lesion is destroyed |
| `rejected_noised` | optional, 1: the trainer puts noise in the place of the image |
| `base_model` | optional, ours: whose answers the rejected ones are; the authors' files do not say it |

A pair changes the text or the image, never both: where an image is rejected, the two answers are one. Its case then
shows the true image and the destroyed one, or the true one alone where the trainer makes the noise. A case without
images is one whose image folder is not here: its texts are all the same read. Source: aiming-lab/MMedPO at 97d17e2,
data/ and the loader in train/dpo, seen; Odyssni/MMedPO at 7ee1ce3. Patients are unknown.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightbox.errors import RequestError
from lightbox.files import replace_text
from lightbox.readers.documents import read_json
from lightbox.readers.rows import Gathering, RowError, as_row, case_id_of, clean_text, is_finite, shown, text_field
from lightbox.readers.stores import ImageStore, InnerPath
from lightbox.records import Case, Preference

IMAGE_MARK = "<image>"
FIRST, SECOND = "conversations", "rejected_conversations"
SAME_ANSWER = "is the chosen answer itself"
"""Reason of a row that is refused because it prefers and rejects one text."""
_SPEAKERS = ("human", "gpt")


class Row(NamedTuple):
    """One row, checked: the pair, names of its images as the file gives them ("" for none), and whose answers."""

    pair: Preference
    image: str
    rejected_image: str
    base_model: str


def read_file(
    file: Path,
    rows: Gathering,
    *,
    store: ImageStore | None,
    split: str = "",
    needs_images: bool = False,
    base_model: str = "",
) -> None:
    """Read one file of pairs into `rows`, one case an image.

    Counts: `pairs`, `text_pairs`, `image_pairs`, `pairs_without_images`, and more.

    Args:
        file: the JSON.
        rows: where cases, problems and counts go.
        store: where the images lie; None reads the texts alone.
        split: of every case.
        needs_images: refuse a pair whose images are not there, as one that no image can teach.
        base_model: whose answers the rejected ones must be, where the file says it; "" takes any.

    Raises:
        RequestError: an unreadable file, or one that names another base model.
    """
    cases: dict[str, tuple[Case, list[Preference]]] = {}
    first_rows: dict[str, int] = {}
    models: Counter[str] = Counter()
    for number, value in enumerate(read_json(file, list), start=1):
        with rows.row(file, number):
            row = _checked(value, rows)
            if row.pair.id in first_rows:
                raise RowError("id", f"is {row.pair.id}, as in row {first_rows[row.pair.id]}; the first row is kept")
            case = _case(row, store, split, needs_images=needs_images)
            known, pairs = cases.setdefault(case.id, (case, []))
            if known.images != case.images:  # a/b.png and a-b.png make one id
                raise RowError("image", f"is {row.image}, but case {case.id} shows {known.images[0]}")
            pairs.append(row.pair)
            first_rows[row.pair.id] = number
            models[row.base_model] += 1
    _check_models(file, rows, models, base_model)
    for case, pairs in cases.values():
        rows.add(dataclasses.replace(case, preferences=tuple(pairs)))
        rows.counts["pairs_without_images"] += len(pairs) * (not case.images)
        for pair in pairs:
            rows.counts[f"{pair.kind}_pairs"] += 1
    rows.counts["pairs"] += len(first_rows)


def write_preferences(file: Path, cases: Iterable[Case], *, images: Path, base_model: str = "") -> int:
    """Write the pairs of some cases; `read_file` reads them back equal, but for what a row cannot hold.

    A row holds no split, licence, modality, question or finding of its case, and a case is named by its image.

    Args:
        file: new or replaced.
        cases: with preferences; those without any are left out. The first image is the true one, and the second, for
            a pair of kind "image", the destroyed one.
        images: the folder that names of images start from.
        base_model: whose answers the rejected ones are; "" leaves it unsaid, as the authors' files do.

    Returns:
        The number of pairs.

    Raises:
        RequestError: no pair; a pair without an image file below `images`, with the chosen answer rejected, a
            relevance outside 0 to 1, an empty text, or an id met before.
        WorkError: the disk is full, see `errors.guard`.
    """
    plain: list[dict[str, Any]] = []
    ids: set[str] = set()
    for case, pair in pairs_of(cases):
        row = _plain(case, pair, images, base_model)
        try:
            _parse(as_row(row))
            if pair.id in ids:
                raise RowError("id", f"is {shown(pair.id)}, as of a pair before")
        except RowError as err:
            raise RequestError(
                f"Pair '{pair.id}' of case {case.id}: field '{err.name}'",
                f"It {err.reason}",
                "Correct the pair or leave it out",
            ) from err
        ids.add(pair.id)
        plain.append(row)
    if not plain:
        raise RequestError(f"No pair for '{file}'", "The cases hold no preferences", "Give cases that hold some")
    replace_text(file, json.dumps(plain, indent=4, ensure_ascii=False) + "\n")
    return len(plain)


def pairs_of(cases: Iterable[Case]) -> Iterator[tuple[Case, Preference]]:
    """Flatten cases to (case, pair), in order."""
    return ((case, pair) for case in cases for pair in case.preferences)


def _checked(value: object, rows: Gathering) -> Row:
    row = as_row(value)
    rows.note_optional(row, ("base_model",))
    parsed = _parse(row)
    human = row[FIRST][0]["value"]  # type: ignore[index]  # parsed above
    rows.counts["prompts_without_image_mark"] += IMAGE_MARK not in human
    return parsed


def _parse(row: Mapping[str, object]) -> Row:
    """A row as a pair.

    Raises:
        RowError: naming the first field that is wrong.
    """
    pair_id = text_field(row, "id")
    image = text_field(row, "image")
    prompt, chosen = _turns(row, FIRST)
    asked, rejected = _turns(row, SECOND)
    if asked != prompt:
        raise RowError(SECOND, f"asks {shown(asked)}, not what {FIRST} asks")
    rejected_image = text_field(row, "rejected_image", default="")
    is_noised = _flag(row, "rejected_noised")
    if _flag(row, "chosen_noised"):
        raise RowError("chosen_noised", "is set: noise would be preferred, which no record here can say")
    if is_noised and rejected_image:
        raise RowError("rejected_noised", "is set beside rejected_image; it is unclear which image is rejected")
    is_image = is_noised or bool(rejected_image)
    if is_image and chosen != rejected:
        raise RowError(SECOND, f"answers {shown(rejected)} where an image is rejected; a pair changes one of the two")
    if rejected_image == image:
        raise RowError("rejected_image", "is the chosen image itself")
    if not is_image and chosen == rejected:
        raise RowError(SECOND, SAME_ANSWER)
    pair = Preference(
        id=pair_id,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        kind="image" if is_image else "text",
        relevance=_score(row),
    )
    return Row(pair, image, rejected_image, text_field(row, "base_model", default=""))


def _turns(row: Mapping[str, object], name: str) -> tuple[str, str]:
    """Prompt and answer of a conversation of two turns."""
    turns = row.get(name)
    if not isinstance(turns, list):
        raise RowError(name, "is missing" if name not in row else f"is {shown(turns)}, not a list of turns")
    if len(turns) != len(_SPEAKERS):
        raise RowError(name, f"has {len(turns)} turns; a pair has a prompt and an answer")
    texts = []
    for turn, speaker in zip(turns, _SPEAKERS, strict=True):
        try:
            said = as_row(turn)
            if said.get("from") != speaker:
                raise RowError("from", f"is {shown(said.get('from'))}")
            texts.append(text_field(said, "value"))
        except RowError as err:
            raise RowError(name, f"has a turn of {speaker} whose '{err.name}' {err.reason}") from err
    # LLaVA's placeholder, which a backbone writes itself
    return clean_text(texts[0].replace(IMAGE_MARK, ""), name), texts[1]


def _score(row: Mapping[str, object]) -> float:
    score = row.get("weighted_score")
    if score is None:
        raise RowError("weighted_score", "is missing" if "weighted_score" not in row else "is null")
    if not is_finite(score) or not 0 <= score <= 1:  # type: ignore[operator]  # a number
        raise RowError("weighted_score", f"is {shown(score)}, not a number from 0 to 1")
    return float(score)  # type: ignore[arg-type]


def _flag(row: Mapping[str, object], name: str) -> bool:
    value = row.get(name, 0)
    if value not in (None, 0, 1):
        raise RowError(name, f"is {shown(value)}, not 0 or 1")
    return bool(value)


def _case(row: Row, store: ImageStore | None, split: str, *, needs_images: bool) -> Case:
    names = {"image": row.image} | ({"rejected_image": row.rejected_image} if row.rejected_image else {})
    places = ImageStore(Path()) if store is None else store  # names are checked all the same
    paths = tuple(places.path(name, field) for field, name in names.items())
    for path, field in zip(paths, names, strict=True):
        # and not Path.is_file, which raises where a name is too long
        if needs_images and (store is None or not (isinstance(path, InnerPath) or os.path.isfile(path))):
            raise RowError(field, f"is {shown(names[field])}, and there is no such file: the pair is without its image")
    return Case(
        id="-against-".join(case_id_of(name) for name in names.values()),
        images=() if store is None else paths,
        split=split,
    )


def _check_models(file: Path, rows: Gathering, models: Counter[str], base_model: str) -> None:
    unnamed = models.pop("", 0)
    strangers = [name for name in models if base_model and name.lower() != base_model.lower()]
    if strangers:
        raise RequestError(
            f"File '{file}' rejects answers of the base model {shown(strangers[0])} in {models[strangers[0]]} pairs, "
            f"and base_model='{base_model}' is asked for",
            "What one model gets wrong, another may never say, so its pairs teach it nothing",
            "Train that model, or make pairs from the answers of yours",
        )
    for name, count in models.items():
        rows.counts[f"pairs_of_base_model_{name}"] += count
    if base_model:
        rows.counts["pairs_of_unnamed_base_model"] += unnamed


def _plain(case: Case, pair: Preference, images: Path, base_model: str) -> dict[str, Any]:
    number = int(pair.id) if pair.id.isdecimal() and pair.id == str(int(pair.id)) else pair.id

    def turns(answer: str) -> list[dict[str, str]]:
        return [
            {"from": "human", "value": f"{IMAGE_MARK}\n{pair.prompt}"},
            {"from": "gpt", "value": f" {answer}"},
        ]

    row: dict[str, Any] = {
        "id": number,
        "image": _image_name(case, pair, 0, images),
        FIRST: turns(pair.chosen),
        SECOND: turns(pair.rejected),
        "weighted_score": pair.relevance,
    }
    if pair.kind == "image" and len(case.images) > 1:
        row["rejected_image"] = _image_name(case, pair, 1, images)
    elif pair.kind == "image":
        row["rejected_noised"] = 1
    return row | ({"base_model": base_model} if base_model else {})


def _image_name(case: Case, pair: Preference, place: int, images: Path) -> str:
    image = case.images[place] if place < len(case.images) else None
    if isinstance(image, Path) and image.is_relative_to(images):
        return image.relative_to(images).as_posix()
    what = "has no image" if image is None else "has an image in memory, which is no file"
    raise RequestError(
        f"Pair '{pair.id}' of case {case.id} " + (f"shows '{image}'" if isinstance(image, Path) else what),
        f"Every row names an image file below '{images}'",
        "Write the image there first, or leave the pair out",
    )
