"""Every dataset that can be read, by name, whichever catalogue it stands in: what the command line and `validate` ask.

`catalog` holds the sets of published runs; `preference_sets`, `mask_sets` and ViTAR-16K came later.
"""

import os
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers import catalog, vitar_16k
from lightbox.readers.catalog import Reader
from lightbox.readers.mask_sets import MASK_SETS
from lightbox.readers.preference_sets import FOLDER, PREFERENCE_SETS, RELEASES
from lightbox.readers.rows import Gathering, ReadResult

VITAR_16K = {"vitar_16k": Reader("ViTAR-16K", "CC-BY-NC-4.0", vitar_16k.SPLITS, vitar_16k.read_cases)}
LATER_SETS: dict[str, Reader] = PREFERENCE_SETS | MASK_SETS | VITAR_16K


def read_dataset(name: str, root: Path | str | None = None, split: str | None = None, **options: object) -> ReadResult:
    """Read a dataset, as `catalog.read`, which reads those that stand in its list alone.

    Raises:
        RequestError: unknown name, split or option; a root that is not there; an unreadable file; no readable row.
    """
    if name not in LATER_SETS:
        if name not in catalog.DATASETS:
            names = ", ".join(dict.fromkeys((*catalog.DATASETS, *LATER_SETS)))
            raise RequestError(f"There is no dataset '{name}'", f"The readers are {names}", "Choose one of them")
        return catalog.read(name, root, split, **options)
    reader = LATER_SETS[name]
    if split is not None and split not in reader.splits:
        splits = f"Its splits are {', '.join(reader.splits)}" if reader.splits else "It has no official split"
        do = "Choose one of them" if reader.splits else "Leave it out"
        raise RequestError(f"split='{split}' of {name}", splits, do)
    for option in options:
        if option not in reader.options:
            raise RequestError(
                f"The option '{option}' for {name}",
                f"Its reader takes {', '.join(reader.options) or 'no options'}",
                "Remove it or correct its name",
            )
    folder = dataset_folder(name, root)
    rows = Gathering(name, reader.licence)
    reader.read_cases(folder, rows, split=split, **options)
    return rows.result(folder)


def dataset_folder(name: str, root: Path | str | None = None) -> Path:
    """The folder of a dataset: `root`, or `$LIGHTBOX_DATA_ROOT/<name>`; the released pairs share one.

    Raises:
        RequestError: neither is given, or it is not a folder.
    """
    base = os.environ.get(catalog.ROOT_VARIABLE)
    return catalog.root_of(name, Path(base) / FOLDER if root is None and base and name in RELEASES else root)
