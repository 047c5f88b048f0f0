"""Neural tissue of a fly larva under the electron microscope: sections with masks of three kinds, and merged labels.

`stack1/raw/NN.tif` is a section of 1024 x 1024 pixels (4.6 nm each); `membranes/`, `mitochondria/` and `synapses/` hold
`NN.png`, white on black, some of 1 bit, some with soft edges (one mask has 36 grey levels, so half of white is the
border). `labels/labels000000NN.png` merges them with glia and the inside of cells in nine grey levels. Membrane, glia
and a part of the synapses are all "membranes" to the masks, so the two forms differ by design.

All sections are of one animal and follow each other by 50 nm, so all have one patient. Seen: two sections.
"""

from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.masked_cases import MaskedCases, MaskedImage
from lightbox.readers.masks import MaskPart
from lightbox.readers.rows import Gathering
from lightbox.records import Case

MASKS = {"membrane": "membranes", "mitochondrion": "mitochondria", "synapse": "synapses"}
"""Class -> folder of its masks."""
LABELS = {
    "membrane": (0, 32, 64, 96, 128),  # by orientation: 0, 45, 90, 135 degrees, junction
    "glia or extracellular": (159,),
    "mitochondrion": (191,),
    "synapse": (223,),
    "intracellular": (255,),
}
"""Class -> grey levels in the merged labels, as the set's README lists them."""
FORMS = ("masks", "labels")
_LEVELS = frozenset(level for levels in LABELS.values() for level in levels)


def read_cases(root: Path, rows: Gathering, *, split: str | None = None, form: str = "masks") -> None:
    """Read the sections of `root`, which holds `stack1/`; they have no split.

    Args:
        root: the folder.
        rows: where cases, problems and counts go.
        split: None.
        form: "masks" for the three kinds of binary masks, "labels" for the merged labels.

    Raises:
        RequestError: an unknown form, or no section.
    """
    if form not in FORMS:
        raise RequestError(f"form='{form}'", f"The forms are {', '.join(FORMS)}", "Choose one of them")
    sections = sorted((root / "stack1" / "raw").glob("*.tif"))
    if not sections:
        raise RequestError(f"Sections at '{root}'", "There is no stack1/raw/*.tif", "Name the folder that holds stack1")
    cases = MaskedCases(rows, modality="electron microscopy", body_part="ventral nerve cord")
    for path in sections:
        image: MaskedImage | None = None
        with rows.row(path, "all", counter="images"):
            case = Case(id=f"stack1-{path.stem}", images=(path,), patient_id="stack1")
            image = cases.image(case, "raw")
        if image is None:
            continue
        for name in MASKS if form == "masks" else LABELS:
            if form == "masks":
                part = MaskPart(root / "stack1" / MASKS[name] / f"{path.stem}.png", is_soft=True)
            else:
                part = MaskPart(_merged(root, path.stem), LABELS[name], labels=_LEVELS)
            with cases.row(image, part.path, name):
                cases.mark(image, name, part)
    cases.finish(root)


def _merged(root: Path, stem: str) -> Path:
    number = f"{int(stem):08d}" if stem.isdecimal() else stem
    return root / "stack1" / "labels" / f"labels{number}.png"
