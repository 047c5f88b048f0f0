"""MeCoVQA, the questions of MedPLIB: about whole images (Complex), regions of them (Region), and masks (Grounding).

Files of `train/`, `test/` and `zeroshot4grounding/` are JSON lists of {image, conversations}; the images are those of
SA-Med2D-20M, which `images` names or which lie beside the files, in a folder or in the zip file in parts. One question
is a turn of `human` and one of `gpt`:

* `<region>masks/x.png</region>` in the question names a region: the text keeps `<region>`, and the question's `facts`
  name the case's finding that has the mask.
* `<SEG>` and `<mask>masks_merged/x.png</mask>` in the answer name what is asked for: the text keeps `<SEG>`, and
  `facts` name the finding.

Masks of a whole class (`..._merged.png`) were never distributed; the authors say to join all instances of the class, so
a finding holds their files where the merged file is missing, and `masks.mask_of` joins them.

Users report wrong samples (issue 11 of the authors' repository). A mask of another image than the question's, a
question that names another class than its mask, or an image of another dataset is a malformed row with its count; the
rest is read. An image without its ending is found all the same, and counted. Masks are not decoded here, `mask_audit`
does that. Not seen: the set itself; the form is the dossier's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lightbox.errors import RequestError
from lightbox.readers.documents import read_json
from lightbox.readers.masked_cases import count_faults
from lightbox.readers.masks import MaskedFinding, MaskError, MaskPart
from lightbox.readers.rows import Gathering, RowError, as_row, inside, make_question, shown, text_field
from lightbox.readers.sa_med2d_files import (
    MaskName,
    Tree,
    class_name,
    find_tree,
    is_instance,
    mask_name,
    masks_of_images,
    read_classes,
    slice_name,
    zip_tree,
)
from lightbox.records import Case, Question

KINDS = ("complex", "region", "grounding")
SPLITS = ("train", "test", "zeroshot")
FOLDERS = {"train": "train", "test": "test", "zeroshot": "zeroshot4grounding"}
MERGED = "merged"
_REGION = re.compile(r"<region>(.*?)</region>", re.DOTALL)
_MASK = re.compile(r"<mask>(.*?)</mask>", re.DOTALL)
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class _Turn:
    """A question and its answer as they stand in the file, with the masks that they name."""

    question: str
    answer: str
    regions: tuple[str, ...]
    targets: tuple[str, ...]


def read_cases(root: Path, rows: Gathering, *, split: str | None = None, kind: str = "", images: str = "") -> None:
    """Read the questions of `root`.

    Args:
        root: folder that holds `train/`, `test/` or `zeroshot4grounding/`.
        rows: where cases, problems and counts go.
        split: one of `SPLITS`; None reads all there are.
        kind: one of `KINDS`; "" reads all.
        images: folder or zip file of SA-Med2D-20M, absolute or relative to `root`; "" looks in `root` and in
            `sa_med2d_20m` beside it.

    Raises:
        RequestError: an unknown kind, no file of questions, or no images.
    """
    if kind not in ("", *KINDS):
        raise RequestError(f"kind='{kind}'", f"It is one of {', '.join(KINDS)}", "Choose one of them, or leave it out")
    files = [
        (file, part, _kind_of(file, part))
        for part in SPLITS
        if split in (None, part)
        for file in sorted((root / FOLDERS[part]).glob("*.json"))
    ]
    files = [entry for entry in files if kind in ("", entry[2])]
    if not files:
        raise RequestError(
            f"MeCoVQA at '{root}', split {split}, kind '{kind or 'any'}'",
            f"There is no such file in {', '.join(f'{name}/' for name in FOLDERS.values())}",
            "Name the folder of the archive as it was unpacked",
        )
    tree = _tree(root, images)
    listed = [(file, part, of, read_json(file, list)) for file, part, of in files]
    stores = _Masks(tree, {name for *_, values in listed for name in _mask_stems(values)})
    for file, part, of, values in listed:
        for number, value in enumerate(values, start=1):
            with rows.row(file, number, counter="samples"), count_faults(rows):
                _add(rows, stores, as_row(value), part, of, f"{part}-{file.stem}-{number}")


def _add(rows: Gathering, masks: "_Masks", row: Mapping[str, object], part: str, kind: str, sample: str) -> None:
    """Add one sample: its image, its findings, its questions; a fault in any turn costs the whole sample."""
    image = text_field(row, "image")
    if not image.lower().endswith((".png", ".jpg", ".jpeg")):
        rows.counts["images_without_an_ending"] += 1
        image += ".png"
    path = inside(Path(), image, "image")
    if "images" not in path.parts:
        raise RowError("image", f"is {shown(image)}, no image of SA-Med2D, and MeCoVQA does not distribute it")
    name = slice_name(path.stem, "image")
    place = f"images/{path.name}"
    if not masks.tree.has(place):
        raise RowError("image", f"is {shown(image)}, which {masks.tree.root} does not hold")
    case = Case(
        id=path.stem,
        images=(masks.tree.path(place),),
        split=part,
        modality=name.modality,
        patient_id=name.patient,
    )
    findings: dict[str, MaskedFinding] = {}
    questions: list[Question] = []
    for number, turn in enumerate(_turns(row, kind)):
        own = [masks.finding(path.stem, name.dataset, text) for text in (*turn.regions, *turn.targets)]
        for target in own[len(turn.regions) :]:
            masks.check_class(f"{turn.question} {turn.answer}", name.dataset, target.name)
        findings |= {finding.id: finding for finding in own}
        facts = tuple(finding.id for finding in own)
        questions.append(make_question(f"{sample}-{number}", turn.question, turn.answer, kind=kind, facts=facts))
    rows.add(case, *questions)
    rows.add_findings(case, masks.new_of(case, findings.values()))
    rows.counts["masks_named"] += len(findings)
    rows.counts["masks_joined_from_instances"] += sum(masks.is_joined(finding) for finding in findings.values())


def _turns(row: Mapping[str, object], kind: str) -> Iterator[_Turn]:
    """The turns of a conversation, checked."""
    talk = row.get("conversations")
    if not isinstance(talk, list) or not talk or len(talk) % 2:
        raise RowError("conversations", f"is {shown(talk)}, not questions and answers in turn")
    for place in range(0, len(talk), 2):
        texts = [_said(talk[place + offset], speaker) for offset, speaker in enumerate(("human", "gpt"))]
        regions, targets = (
            tuple(PurePosixPath(text.strip().replace("\\", "/")).stem for text in pattern.findall(said))
            for pattern, said in zip((_REGION, _MASK), texts, strict=True)
        )
        question = " ".join(_REGION.sub("<region>", texts[0]).replace("<image>", " ").split())
        answer = " ".join(_MASK.sub(" ", texts[1]).split())
        if kind == "region" and not regions or not all((*regions, *targets)):
            raise RowError("conversations", "names no region, or an empty one, where the question is about one")
        if answer.count("<SEG>") != len(targets) or kind == "grounding" and not targets:
            raise RowError(
                "conversations",
                f"has {answer.count('<SEG>')} <SEG> and {len(targets)} masks; each <SEG> stands for one mask",
            )
        if not question or not answer:
            raise RowError("conversations", "holds a turn without text")
        yield _Turn(question, answer, regions, targets)


def _said(turn: object, speaker: str) -> str:
    entry = as_row(turn)
    if text_field(entry, "from") != speaker:
        raise RowError("from", f"is {shown(entry['from'])} where {speaker} belongs")
    return text_field(entry, "value")


class _Masks:
    """The masks of the images that are asked about."""

    def __init__(self, tree: Tree, stems: set[str]) -> None:
        self.tree, self.classes = tree, read_classes(tree)
        self._stems = {stem.rpartition("--")[0] for stem in stems}
        self._listed: dict[str, list[str]] | None = None
        self._seen: set[tuple[str, str, str]] = set()
        self._words = {key: frozenset(_words(name)) for key, name in (self.classes or {}).items()}

    def finding(self, image: str, dataset: str, stem: str) -> MaskedFinding:
        """The finding that a mask's name stands for.

        Raises:
            MaskError: of another image, of a class without a name, or no file is there.
        """
        mask = mask_name(stem, "mask")
        if mask.image != image:
            raise MaskError(
                "masks_of_another_image",
                "mask",
                f"is {stem}, a mask of another image than {image}; which of the two is asked about is unknown; drop it",
            )
        name = class_name(self.classes, dataset, mask.number, stem)
        files = tuple(self._files(mask, stem))
        if not files:
            raise MaskError(
                "unreadable_masks",
                "mask",
                f"is {stem}, and {self.tree.root} holds neither that file nor an instance of its class; "
                "fetch masks/ of SA-Med2D-20M, from which it is joined",
            )
        return MaskedFinding(name, parts=tuple(MaskPart(self.tree.path(file)) for file in files), id=stem)

    def new_of(self, case: Case, findings: Iterable[MaskedFinding]) -> list[MaskedFinding]:
        """Those that the case has not got yet: several samples ask about one mask."""
        keys = {(case.split, case.id, finding.id): finding for finding in findings}
        new = [finding for key, finding in keys.items() if key not in self._seen]
        self._seen.update(keys)
        return new

    def is_joined(self, finding: MaskedFinding) -> bool:
        """Whether a mask of a whole class is made of instances."""
        return finding.id.endswith(MERGED) and not finding.parts[0].path.stem.endswith(MERGED)

    def check_class(self, text: str, dataset: str, name: str) -> None:
        """Refuse a question that names another class of its dataset and not the one of its mask.

        All words of a class must occur, in any order: "tumor of the liver" names "liver tumor".

        Raises:
            MaskError: with both classes.
        """
        words = {form for word in _words(text) for form in (word, word.removesuffix("s"))}
        if _words(name) <= words or all(word.removesuffix("s") in words for word in _words(name)):
            return
        others = [
            other
            for (of, number), other in (self.classes or {}).items()
            if of == dataset and self._words[of, number] and self._words[of, number] <= words
        ]
        if others:
            raise MaskError(
                "questions_of_another_class",
                "mask",
                f"is of '{name}', and the question names '{max(others, key=len)}'; which of them is meant is unknown; "
                "correct one, or drop the row",
            )

    def _files(self, mask: MaskName, stem: str) -> Iterable[str]:
        if mask.instance != MERGED:
            return [f"masks/{stem}.png"] if self.tree.has(f"masks/{stem}.png") else []
        merged = f"masks_merged/{stem}.png"
        if self.tree.has(merged):
            return [merged]
        if self._listed is None:
            self._listed = masks_of_images(self.tree, self._stems)
        names = (f"masks/{other}.png" for other in self._listed.get(mask.image, ()) if is_instance(other, mask))
        return [name for name in names if self.tree.has(name)]


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


def _mask_stems(values: list) -> Iterator[str]:
    """Stems of all masks that a file names, malformed rows left out: which images' masks are looked up."""
    for value in values:
        for turn in value.get("conversations") or () if isinstance(value, dict) else ():
            text = turn.get("value") if isinstance(turn, dict) else None
            if isinstance(text, str):
                for pattern in (_REGION, _MASK):
                    yield from (PurePosixPath(name.strip()).stem for name in pattern.findall(text))


def _kind_of(file: Path, part: str) -> str:
    """The kind of a file by its name; those of the zero-shot folder are called by modality."""
    if part == "zeroshot":
        return "grounding"
    named = [kind for kind in KINDS if kind in file.stem.lower()]
    if len(named) != 1:
        raise RequestError(
            f"File '{file}'", f"Its name holds none of {', '.join(KINDS)}, or several", "Name it as the archive does"
        )
    return named[0]


def _tree(root: Path, images: str) -> Tree:
    if images:
        place = root / images
        return zip_tree(place) if place.suffix.lower() == ".zip" else find_tree(place)
    beside = root.parent / "sa_med2d_20m"
    try:
        return find_tree(root)
    except RequestError:
        if not beside.is_dir():
            raise
    return find_tree(beside)
