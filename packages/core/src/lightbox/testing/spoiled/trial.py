"""One file of a small set spoiled, the set read as a user reads it, and a verdict on what the readers said.

| verdict | |
|---|---|
| refused | a `RequestError` in three parts that names the file, or the folder that lacks one |
| said | malformed rows, unreadable images, ids met twice, questions in two splits or another count went up |
| same | what was read is what the sound set gives: the damage hit nothing that is read |
| undetectable | other content of sound form: a letter of a question, a pixel of a JPEG, a whole row less |
| silent | other content, the form broken, and nothing said |
| rest lost | the damage is in one row, and rows beside it were lost |
| unnamed | a refusal that lacks a part, or names no place |
| traceback | any other exception |
| hang | no end in time; the caller's clock knows |

What is *undetectable* is told apart by tests that share no code with the readers (`keeps_form`): the same keys and
types in JSON, the same separators in text, checksums that hold in PNG, an end in JPEG, the same columns and rows in
parquet.
JPEG, DICOM and the pages of a parquet file carry no checksum, so a flipped bit in them is another picture or another
word; what libjpeg mutters about a stream, Pillow does not pass on. A digest in the dataset's card sees all of it
(`lightbox data validate` says so), and small sets have none.
"""

import csv
import hashlib
import io
import json
import random
import shutil
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from typer.testing import CliRunner

from lightbox.cli.data import app
from lightbox.errors import LightboxError
from lightbox.readers import all_sets
from lightbox.readers import validate as validation
from lightbox.readers.masks import mask_of
from lightbox.readers.pixels import load_pixels, pixels_size_wh
from lightbox.readers.splits import split_by_image
from lightbox.records import Case, Finding
from lightbox.testing.spoiled.box_sets import BOX_SETS
from lightbox.testing.spoiled.containers import PARQUET_CHANGES, ZIP_CHANGES
from lightbox.testing.spoiled.documents import CSV_CHANGES, FIELD_CHANGES, ROW_CHANGES, TEXT, TEXT_CHANGES
from lightbox.testing.spoiled.entries import CHANGES, ROOT, Change, Damage
from lightbox.testing.spoiled.masked_sets import MASKED_SETS
from lightbox.testing.spoiled.pictures import DICOM_CHANGES, PICTURE_CHANGES, PICTURES, PNG, chunks
from lightbox.testing.spoiled.sets import SETS, write_set

GOOD = ("refused", "said", "same", "undetectable")
BAD = ("traceback", "hang", "silent", "rest lost", "unnamed")
TOTALS = (
    *("rows", "cases", "questions", "files", "zip_members", "malformed_rows"),
    *("images", "annotated_images", "categories", "split_rows", "sentences", "table_rows", "label_rows", "regions"),
    *("pairs", "text_pairs", "image_pairs"),
    *("volumes", "listed_volumes", "samples", "masks", "masks_decoded", "masks_named", "masks_joined_from_instances"),
    *("slices_with_foreground", "slices_empty", "slices_left_out", "slices_of_volumes"),
    *("boxes", "box_files", "box_rows", "boxes_before_fusion", "masks", "findings_present", "findings_absent"),
)
TRIES = 20


@dataclass(frozen=True)
class Seen:
    """A set through the readers: digest of its content, items in all and most of one case, what was said.

    Items are questions and preference pairs, or boxes in a set without either.
    """

    content: str
    items: int
    most: int
    said: Counter[str]


@dataclass(frozen=True)
class Outcome:
    """What one trial gave; set, seed, variant and, where one was named, the change make it again."""

    set: str
    seed: int
    file: str
    change: str
    note: str
    verdict: str
    detail: str


def changes_of(file: Path) -> dict[str, Change]:
    """Every change that a file of this name can suffer."""
    ending = file.suffix.lower()
    changes = dict(CHANGES)
    if ending in TEXT:
        changes |= TEXT_CHANGES
    if ending in (".json", ".jsonl"):
        changes |= FIELD_CHANGES | ROW_CHANGES
    if ending in PICTURES:
        changes |= PICTURE_CHANGES
    return changes | {
        ".csv": CSV_CHANGES,
        ".zip": ZIP_CHANGES,
        ".parquet": PARQUET_CHANGES,
        ".dcm": DICOM_CHANGES,
        ".dicom": DICOM_CHANGES,
    }.get(ending, {})


def spoil(
    folder: Path,
    rng: random.Random,
    change: str | None = None,
    *,
    changes: Callable[[Path], Mapping[str, Change]] = changes_of,
) -> tuple[Path, str, Damage]:
    """Spoil one file of a folder: kinds of files are drawn evenly, then a file, then a change, unless one is named."""
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and (change is None or change in changes(file)):
            files.setdefault(file.suffix, []).append(file)
    for _ in range(TRIES if files else 0):
        file = rng.choice(files[rng.choice(sorted(files))])
        name = change or rng.choice(sorted(changes(file)))
        damage = changes(file)[name](rng, file)
        if damage is not None:
            return file, name, damage
    raise LookupError(f"the change '{change}' applies to no file of {folder}")


def look(name: str, folder: Path) -> Seen:
    """Read a small set by every public way: `read_dataset`, `validate`, `lightbox data validate` and `show`, splits."""
    small = SETS[name]
    split_file = folder / small.split_file if small.split_file else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on profiles and EXIF that it passes over
        result = all_sets.read_dataset(small.dataset, folder, **small.options)
        found = validation.validate(small.dataset, folder, split_file=split_file, **small.options)
        said = Counter({key: count for key, count in found.notes.items() if key not in TOTALS})
        said.update({f"unknown {table}": counts.get("unknown", 0) for table, counts in found.counts.items()})
        said.update(
            malformed=found.malformed,
            unreadable=found.unreadable_images,
            duplicates=found.duplicates,
            repeated=found.repeated_items,
            identical_images=found.identical_images,
            in_two_splits=sum(leak.repeated_pairs for leak in found.leakage),
        )
        split_by_image(result.cases, 0)
        content = [_plain(case, folder) for case in result.cases]
        # the commands print what was read: reading it again would only take time
        with (
            patch.object(all_sets, "read_dataset", return_value=result),
            patch.object(validation, "validate", return_value=found),
        ):
            _command("validate", small.dataset, "--root", str(folder))
            _command("show", small.dataset, "--root", str(folder), "-n", "99")
    items = [len(case.questions) + len(case.preferences) for case in result.cases]
    if name in BOX_SETS:
        items = [sum(len(finding.boxes) for finding in case.findings) for case in result.cases]
    elif name in MASKED_SETS:
        items = [sum(len(getattr(f, "parts", ())) for f in case.findings) for case in result.cases]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Seen(digest, sum(items), max(items, default=0), said)


def run_trial(
    name: str, seed: int, work: Path, data_root: Path | None = None, *, variant: int = 0, change: str | None = None
) -> Outcome:
    """Spoil one file of a small set and judge what the readers make of it.

    Args:
        name: a key of `sets.SETS`.
        seed: decides file and change, with `variant`, which decides rows and pictures.
        work: folder in which sets are written; sound ones are kept there and used again.
        data_root: of real data, which real sets need.
        variant: of the small set.
        change: the change to make; None draws one.
    """
    sound = work / "sound" / name.replace("/", "-") / str(variant) / ROOT
    before = _before(name, sound, variant, data_root)
    folder = work / "spoiled" / ROOT
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    file, chosen, damage = spoil(folder, random.Random(f"{name} {variant} {seed}"), change)
    relative = str(file.relative_to(folder))
    verdict, detail = _judge(name, folder, file, damage, before, sound / relative)
    return Outcome(name, seed, relative, chosen, damage.note, verdict, detail.replace(str(work), "..."))


_LOOKS: dict[Path, Seen] = {}


def _before(name: str, sound: Path, variant: int, data_root: Path | None) -> Seen:
    if sound not in _LOOKS:
        write_set(name, sound, variant, data_root)
        _LOOKS[sound] = look(name, sound)
    return _LOOKS[sound]


def _judge(name: str, folder: Path, file: Path, damage: Damage, before: Seen, original: Path) -> tuple[str, str]:
    small = SETS[name]
    # half a split file is no split
    rows = damage.rows if small.is_of_rows and file.name != small.split_file else None
    try:
        after = look(name, folder)
    except LightboxError as err:
        text = str(err)
        if not all(len(part) > 3 for part in (err.given, err.why, err.do)):
            return "unnamed", f"not in three parts: {text}"
        if rows is not None and before.items > before.most + rows:
            return "rest lost", text
        return "refused" if str(folder) in text else "unnamed", text
    except Exception as err:  # noqa: BLE001  whatever a user would see as a traceback is what is looked for
        return "traceback", "".join(traceback.format_exception_only(err)).strip() + " | " + _where(err)
    if rows is not None and after.items < before.items - max(rows, before.most):
        return "rest lost", f"{after.items} of {before.items} items are left"
    more = {key: count - before.said[key] for key, count in after.said.items() if count > before.said[key]}
    if more:
        return "said", json.dumps(more)
    if after.content == before.content:
        return "same", ""
    is_sound = keeps_form(original, file) if damage.keeps_form is None else damage.keeps_form
    is_sound = is_sound or file.suffix == small.may_be_empty and file.is_file() and not file.stat().st_size
    return "undetectable" if is_sound else "silent", f"{after.items} of {before.items} items"


def _where(err: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(err.__traceback__) if "readers" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside the readers"


def _command(*words: str) -> None:
    """Run `lightbox data`; what it raises, other than an exit or an error in three parts, is raised here."""
    error = CliRunner().invoke(app, list(words)).exception
    if error is not None and not isinstance(error, SystemExit | LightboxError):
        raise error


def _plain(case: Case, folder: Path) -> list[Any]:
    findings = [
        (
            finding.name,
            finding.present,
            finding.attributes,
            finding.boxes,
            _mask(finding),
        )
        for finding in case.findings
    ]
    questions = [
        (q.id, q.text, q.answer, q.options, q.answer_index, q.rationale, q.facts, q.kind, q.language)
        for q in case.questions
    ]
    images = [(str(image).removeprefix(str(folder)), _pixels(Path(image))) for image in case.images]
    pairs = [(p.id, p.prompt, p.chosen, p.rejected, p.kind, p.relevance) for p in case.preferences]
    return [case.id, case.patient_id, case.modality, case.body_part, case.split, findings, questions, pairs, images]


def _mask(finding: Finding) -> str:
    """Digest of a mask, decoded where it lies in a file."""
    try:
        mask = mask_of(finding)
    except LightboxError:
        return "unreadable"
    return "" if mask is None else hashlib.sha256(str(mask.shape).encode() + mask.tobytes()).hexdigest()


def _pixels(image: Path) -> str:
    """Digest of an image as runs load it, square and in colour, and as it is."""
    try:
        square, whole = load_pixels(image, image_px=32, in_colour=True), load_pixels(image)
        if image.suffix in PICTURES:
            pixels_size_wh(image)
    except LightboxError:
        return "unreadable"
    assert square.shape[:2] == (32, 32), square.shape
    assert min(whole.shape) > 0, whole.shape
    assert whole.dtype == np.uint8, whole.dtype
    return hashlib.sha256(str(whole.shape).encode() + whole.tobytes() + square.tobytes()).hexdigest()


def keeps_form(before: Path, after: Path) -> bool:
    """Whether a spoiled file is still of the form of the sound one, by a test that shares no code with the readers."""
    return _keeps_form(before.suffix.lower(), before.read_bytes(), after.read_bytes())


def _keeps_form(ending: str, first: bytes, second: bytes) -> bool:
    if ending == ".zip":
        old, new = _members(first), _members(second)
        return old.keys() == new.keys() and all(
            old[name] == new[name] or _keeps_form(Path(name).suffix.lower(), old[name], new[name]) for name in old
        )
    if ending in (".json", ".jsonl"):
        return _shape(first, ending) == _shape(second, ending) != "none"
    if ending == ".xml":
        return _tags(second) is not None and (_tags(second) or set()) <= (_tags(first) or set())
    if ending in TEXT:
        measure = _cells if ending == ".csv" else _separators
        return measure(second) is not None and set(measure(second) or ()) <= set(measure(first) or ())
    if ending in PICTURES and second.startswith(PNG):
        return all(zlib.crc32(kind + data) == crc for kind, data, crc in chunks(second)) and second.endswith(
            b"IEND\xaeB`\x82"
        )
    if ending in PICTURES:
        return second.startswith(b"\xff\xd8") and b"\xff\xd9" in second
    if ending == ".parquet":
        return _columns(first) == _columns(second)
    if ending == ".gz":  # its checksum is of all that it holds
        return False
    if ending == ".tif":  # no checksum: any bytes in the place of pixels are pixels
        return _tiff_size(first) == _tiff_size(second) is not None
    return ending in (".dcm", ".dicom") and len(second) >= len(first)


def _tiff_size(content: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(content), formats=("TIFF",)) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):
        return None


def _shape(content: bytes, ending: str) -> str:
    """Keys, types and lengths of JSON, without its values; of JSON lines, the kinds of row that there are."""
    try:
        text = content.decode("utf-8-sig")
        values = (
            [json.loads(line) for line in text.split("\n") if line.strip()] if ending == ".jsonl" else json.loads(text)
        )
    except (ValueError, RecursionError):
        return "none"

    def shape(value: object) -> object:
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__

    shaped = shape(values)
    rows = (
        {json.dumps(row, sort_keys=True) for row in shaped}
        if ending == ".jsonl" and isinstance(shaped, list)
        else shaped
    )
    return json.dumps(sorted(rows) if isinstance(rows, set) else rows, sort_keys=True)


def _tags(content: bytes) -> set[str] | None:
    """Names of elements with their attributes, of which a row less makes no other; None where it cannot be read."""
    try:
        return {" ".join([node.tag, *node.attrib]) for node in ElementTree.fromstring(content).iter()}
    except (ElementTree.ParseError, ValueError, LookupError):
        return None


def _separators(content: bytes) -> list[int] | None:
    """Number of separators on each line; None where it is no text."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    signs = set(text)
    if "\0" in signs:
        return None
    return [line.count("|") + 1000 * line.count(",") for line in text.split("\n") if line.strip()]


def _cells(content: bytes) -> list[int] | None:
    """Number of cells of each row, which a line break inside quotes does not change; None where it is no text."""
    if _separators(content) is None:
        return None
    try:
        return [len(row) for row in csv.reader(io.StringIO(content.decode("utf-8"), newline="")) if row]
    except csv.Error:  # a cell that is longer than the module takes
        return None


def _members(content: bytes) -> dict[str, bytes]:
    """Members of a zip file by name; none where it cannot be read to its end."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError, ValueError):
        return {}


def _columns(content: bytes) -> str:
    try:
        table = pq.read_table(io.BytesIO(content))
        return f"{table.schema.names} {table.num_rows}" if table.to_pylist() is not None else ""
    except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
        return str(err)
