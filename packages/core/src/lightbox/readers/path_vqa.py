"""PathVQA as parquet: columns image (struct of bytes and path), question, answer.

Files are `<split>-*.parquet` in the folder or in `data/`, or `<split>/*.parquet`. Pixels stay in the parquet file: the
image of a case is the path ``<file>.parquet/<row>``, which `images.load_image` opens. Many rows repeat one image; the
SHA-256 of its bytes is the case id, and cases of different splits with equal bytes name the same path. The release
pickled by the authors is not read. Patients are unknown.
"""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lightbox.errors import RequestError
from lightbox.readers.rows import Gathering, RowError, make_question, shown, text_field
from lightbox.records import Case

SPLITS = ("train", "validation", "test")
COLUMNS = ("image", "question", "answer")
ROWS_AT_ONCE = 64  # a row holds its image, so larger batches cost memory and save nothing
_PATTERNS = ("{}-*.parquet", "data/{}-*.parquet", "{}/*.parquet")


def read_cases(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the parquet files of PathVQA.

    Args:
        root: folder with the files, in one of the layouts above.
        rows: where cases, problems and counts go.
        split: "train", "validation", "test", or None for all there are.

    Raises:
        RequestError: no file, one that is not parquet, or one without the three columns.
    """
    splits = SPLITS if split is None else (split,)
    files = [
        (file, name) for name in splits for pattern in _PATTERNS for file in sorted(root.glob(pattern.format(name)))
    ]
    if not files:
        raise RequestError(
            f"PathVQA at '{root}'",
            f"There is no {' or '.join(f'{name}-*.parquet' for name in splits)} in it, in data/ or in <split>/",
            "Name the folder that holds the parquet files with --root",
        )
    places: dict[str, Path] = {}
    for file, name in files:
        _read_file(file, name, rows, places)


def _read_file(file: Path, split: str, rows: Gathering, places: dict[str, Path]) -> None:
    try:
        parquet = pq.ParquetFile(file)
        missing = [name for name in COLUMNS if name not in parquet.schema_arrow.names]
        if missing:
            raise RequestError(
                f"File '{file}' has the columns {', '.join(parquet.schema_arrow.names)}",
                f"PathVQA needs {', '.join(missing)} too",
                "Fetch the parquet release named in the card of path_vqa",
            )
        number = 0
        for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(COLUMNS)):
            for row in batch.to_pylist():
                with rows.row(file, number + 1):
                    _add(rows, row, file / str(number), split, places)
                number += 1
    except (pa.ArrowException, OSError) as err:
        raise RequestError(f"File '{file}'", f"It is not readable parquet: {err}", "Fetch the file again") from err


def _add(rows: Gathering, row: dict[str, object], image: Path, split: str, places: dict[str, Path]) -> None:
    content = row["image"].get("bytes") if isinstance(row["image"], dict) else None
    if not isinstance(content, bytes) or not content:
        raise RowError("image", f"is {shown(row['image'])}, not a struct with bytes")
    digest = hashlib.sha256(content).hexdigest()[:16]  # of the file's bytes: decoding 30,000 images takes minutes
    question = make_question(
        f"{split}-{image.parent.stem}-{image.name}", text_field(row, "question"), text_field(row, "answer")
    )
    # one path for equal images in two splits: so leakage between them shows
    rows.add(Case(id=digest, images=(places.setdefault(digest, image),), split=split), question)
