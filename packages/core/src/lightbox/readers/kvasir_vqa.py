"""Kvasir-VQA as parquet: columns image, source, question, answer, img_id, one row a question, no official split.

Files are `data/*.parquet` (00000 to 00030), or `raw/*.parquet` as Hugging Face converts them. `img_id` names the image
and is the case id. `source` (polyps, esophagitis, ...) becomes the kind of the question, for counts alone, since it
often gives the answer. Answers other than yes and no are open text, also where the authors call a question
single-choice: its options are not in the files. Seen: columns, file names, the split "raw", the row count, code that
takes several answers in one cell, divided by ";". Unseen: a row. Patients are unknown.
"""

from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.rows import Gathering
from lightbox.readers.shards import find_shards, read_shards

PATTERNS = ("*.parquet", "data/*.parquet", "raw/*.parquet", "default/raw/*.parquet")


def read_cases(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the parquet files of Kvasir-VQA.

    Args:
        root: folder with the files, in one of the layouts above.
        rows: where cases, problems and counts go.
        split: None; there is no official split.

    Raises:
        RequestError: no file, one that is not parquet, or one without the five columns.
    """
    files = find_shards(root, (split or "",), PATTERNS)
    if not files:
        raise RequestError(
            f"Kvasir-VQA at '{root}'",
            f"There is no {' or '.join(PATTERNS)}",
            "Name the folder that holds the parquet files with --root",
        )
    read_shards(files, rows, title="Kvasir-VQA", id_column="img_id", kind_column="source", modality="endoscopy")
