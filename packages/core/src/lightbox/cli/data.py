"""`lightbox data`: list, validate, show, render and convert datasets; bundle the shipped models.

Exit codes of `validate`: 0 sound, 1 a rule is broken (malformed rows, duplicate ids, unreadable images, leakage in a
split of ours), 2 the request was wrong. What a publisher's own split leaks is reported, with counts, and breaks no
rule.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from lightbox.errors import RequestError, WorkError

PHANTOM, KNOWLEDGE = "phantom", "knowledge"
PHANTOM_STRIP = "SYNTHETIC phantom, not a patient"
PHANTOM_SCALE = 4

app = typer.Typer(name="data", help="Datasets: list, validate, show, render, convert.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Dataset name, see `lightbox data list`.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the dataset (default: $LIGHTBOX_DATA_ROOT/NAME).")]
Split = Annotated[str | None, typer.Option(help="One official split.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", help="Option of the reader, KEY=VALUE; of the phantom modality=ultrasound, ..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_datasets(as_json: AsJson = False) -> None:
    """List the datasets: task, licence, whether patients are known, whether items may leave this machine."""
    from lightbox.readers.dataset_cards import dataset_names, load_dataset_card

    cards = [load_dataset_card(name) for name in dataset_names()]
    if as_json:
        import dataclasses

        typer.echo(json.dumps([dataclasses.asdict(card) for card in cards], indent=2))
        return
    # a name is typed into other commands, so it is never cut
    table = Table(Column("name", no_wrap=True), "task", "modality", "licence", "patients", "external API")
    for card in cards:
        table.add_row(card.name, card.task, card.modality, card.licence, card.patient_split, card.external_api)
    Console().print(table)


@app.command()
def validate(
    name: Name,
    root: Root = None,
    split_file: Annotated[Path | None, typer.Option(help="JSON with a split of our own to check for leakage.")] = None,
    scored_on: Annotated[
        str | None,
        typer.Option(help="Of preference pairs: the dataset whose test questions a tuned model will answer."),
    ] = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Check a whole dataset: counts, malformed rows, duplicate ids, unreadable images, leakage.

    Preference pairs are audited too: shortcuts past the image, leaked wording, faulty pairs, each with an example.
    `knowledge` checks the attribute tables: every class covered, no description twice, none that names its class.
    """
    if name == KNOWLEDGE:
        raise typer.Exit(_validate_knowledge(root, as_json))
    from lightbox.readers.validate import validate as check
    from lightbox.readers.validate import validate_cases

    with _progress("decoding images") as tick:
        if name == PHANTOM:
            from lightbox.readers.rows import ReadResult

            cases = [case for split in ("train", "validation", "test") for case in _phantom(split, 0, 64)]
            validation = validate_cases(PHANTOM, "drawn", ReadResult(tuple(cases)), is_own_split=True, on_image=tick)
        else:
            validation = check(
                name, root, split_file=split_file, scored_on=scored_on, on_image=tick, **_options(option)
            )
    if as_json:
        typer.echo(json.dumps(validation.to_plain(), indent=2))
    else:
        _print_validation(validation)
    raise typer.Exit(0 if validation.is_ok else 1)


@app.command()
def show(
    name: Name,
    root: Root = None,
    split: Split = None,
    n: Annotated[int, typer.Option("-n", min=1, max=1000, help="How many cases.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed, for the phantom.")] = 0,
    option: Options = None,
) -> None:
    """Print records, decoded. Text is printed where the licence is public; otherwise ids alone."""
    from lightbox.readers.dataset_cards import PUBLIC_LICENCES

    console = Console()
    for case in _cases(name, root, split, n, seed, option):
        place = f"split={case.split or '-'}  patient={case.patient_id or 'unknown'}"
        _say(console, f"{case.id}  {place}  {case.body_part} {case.modality}", style="bold")
        for line in _public_lines(case) if name == PHANTOM or case.licence in PUBLIC_LICENCES else _id_lines(case):
            _say(console, line)


@app.command()
def render(
    name: Name,
    root: Root = None,
    split: Split = None,
    n: Annotated[int, typer.Option("-n", min=1, max=1000, help="How many cases.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed, for the phantom.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the PNGs (default: ./lightbox-out/render/NAME).")] = None,
    option: Options = None,
) -> None:
    """Write cases as PNGs with boxes and outlines of masks; phantoms are enlarged four times and say what they are."""
    from lightbox.paper.mask_outlines import Outline, draw_outlines
    from lightbox.paper.overlay import Mark, draw_boxes, with_strip
    from lightbox.paths import default_out
    from lightbox.readers.images import load_image
    from lightbox.readers.masks import mask_of
    from lightbox.readers.pixels import load_pixels

    folder = out or default_out() / "render" / name
    written = 0
    for place, case in enumerate(_cases(name, root, split, n, seed, option)):
        if not case.images:
            continue
        strip = PHANTOM_STRIP if name == PHANTOM else f"{name} {case.id}, {case.licence}"
        present = [finding for finding in case.findings if finding.present]
        # phantoms are shown by their boxes, as before: their masks have the same edges
        masks = {} if name == PHANTOM else {finding.name: mask_of(finding) for finding in present}
        outlines = [Outline(label, mask) for label, mask in masks.items() if mask is not None]
        pixels = load_image(case.images[0], in_colour=True) if name == PHANTOM else load_pixels(case.images[0])
        if outlines:
            picture = draw_outlines(pixels, outlines)
        else:
            marks = [Mark(finding.name, box) for finding in present for box in finding.boxes]
            picture = draw_boxes(pixels, marks, scale=PHANTOM_SCALE if name == PHANTOM else 1)
        picture = with_strip(picture, strip)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{place:04d}.png")
        except OSError as err:
            raise WorkError(
                f"Folder '{folder}'", f"It cannot be written: {err.strerror}", "Name another with --out"
            ) from err
        written += 1
    if not written:
        raise RequestError(f"{name} has no images there", "Its records are text only", "Use `lightbox data show`")
    _say(Console(), f"{written} pictures in {folder}")


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="An official .pth, .pt or .bin with tensors only, or a folder of LLaVA's authors.")
    ],
    dest: Annotated[Path, typer.Argument(help="New .safetensors (a JSON with digests goes beside it), or folder.")],
    tower: Annotated[
        Path | None, typer.Option(help="Folder of the CLIP tower, where a LLaVA folder does not hold it.")
    ] = None,
    image_px: Annotated[
        int | None, typer.Option(help="Of a SAM: side of the square it sees, if another than it was trained with.")
    ] = None,
) -> None:
    """Turn a `.pth` into safetensors, tensors only; or a SAM, SAM-Med2D or LLaVA of its authors into a folder."""
    if source.is_dir():
        from lightbox.backbones.convert_llava import convert_llava

        made = convert_llava(source, dest, tower=tower)
        _say(Console(), f"{made.tensors} tensors, {made.parameters} numbers, in {made.files} files in {dest}")
        return
    if not dest.suffix:
        from lightbox.backbones.convert_sam import convert_sam

        sam = convert_sam(source, dest, image_px=image_px)
        kind = f"a SAM of {sam.image_px} px{' with adapters' if sam.has_adapters else ''}"
        _say(Console(), f"{sam.tensors} tensors, {sam.parameters} numbers, {kind}, in {dest}")
        return
    from lightbox.readers.convert import convert as turn

    done = turn(source, dest)
    _say(Console(), f"{done.tensors} tensors, {done.parameters} numbers, sha256 {done.result_sha256}, in {dest}")


@app.command()
def bundle(
    name: Annotated[str, typer.Argument(help="A shipped model, for example tower.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make the bundle's own folder in.")],
) -> None:
    """Write a shipped model as a versioned bundle in MONAI's layout: metadata, weights, card, licence."""
    from lightbox.backbones.bundles import write_bundle

    typer.echo(str(write_bundle(name, out)))


def _cases(name: str, root: Path | None, split: str | None, n: int, seed: int, option: list[str] | None) -> list:
    if name == PHANTOM:
        return _phantom(split or "development", seed, n, **_options(option))
    from lightbox.readers.all_sets import read_dataset

    return list(read_dataset(name, root, split, **_options(option)).cases[:n])


def _phantom(split: str, seed: int, n: int, modality: object = "chest", **unknown: object) -> list:
    import dataclasses

    from lightbox import phantom

    if unknown:
        raise RequestError(
            f"--option {', '.join(unknown)}", "The phantom has the option modality alone", "Write modality=fundus"
        )
    if modality != "chest":
        from lightbox.phantom.modalities import draw_modality

        return draw_modality(str(modality), split, n=n, seed=seed)
    cases = phantom.draw_cases(phantom.seed_range(split, seed, n), phantom.Knobs())
    return [dataclasses.replace(case, split=split) for case in cases]


def _options(pairs: list[str] | None) -> dict[str, object]:
    """Reader options from KEY=VALUE; true and false become booleans."""
    options: dict[str, object] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise RequestError(f"--option '{pair}'", "A reader's option is KEY=VALUE", "Write for example language=zh")
        options[key] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def _public_lines(case) -> Iterator[str]:
    for finding in case.findings:
        name = finding.name if finding.present else f"{finding.name} (absent)"
        yield f"  finding {name}  {_boxes_text(finding.boxes)}"
    if case.report is not None:
        yield f"  report {case.report.text}"
    for question in case.questions:
        options = f"  options {' | '.join(question.options)}" if question.options else ""
        yield f"  {question.id} [{question.kind or '-'}] {question.text}{options}  -> {question.answer}"
        if question.rationale:
            yield f"    because: {question.rationale}"
    for pair in case.preferences:
        yield f"  {pair.id} [{pair.kind}, relevance {pair.relevance:g}] {pair.prompt}"
        yield f"    chosen: {pair.chosen}"
        yield f"    rejected: {pair.rejected if pair.kind == 'text' else 'the same answer to the other image'}"


def _id_lines(case) -> Iterator[str]:
    for record in (*case.questions, *case.preferences):
        yield f"  {record.id} (text not shown: licence {case.licence or 'unknown'})"


def _boxes_text(boxes: tuple) -> str:
    return " ".join("(" + ", ".join(f"{edge:.3f}" for edge in box) + ")" for box in boxes)


def _validate_knowledge(root: Path | None, as_json: bool) -> int:
    """Print what is wrong with the attribute tables; 1 where anything is, else 0."""
    from lightbox import knowledge

    tables = knowledge.check(root)
    is_ok = not any(faults for _, faults in tables.values())
    if as_json:
        plain = {
            name: {"entries": n, "malformed": [str(fault) for fault in faults]} for name, (n, faults) in tables.items()
        }
        typer.echo(json.dumps({"tables": plain, "is_ok": is_ok}, indent=2))
        return 0 if is_ok else 1
    console = Console()
    for name, (n, faults) in tables.items():
        _say(console, f"{name} at {root or knowledge.folder()}: {n} entries", style="bold")
        for fault in faults:
            _say(console, f"malformed: {fault}")
    _say(console, "sound" if is_ok else "broken", style="bold")
    return 0 if is_ok else 1


def _say(console: Console, line: str, *, style: str | None = None) -> None:
    """Print one line as it is: no markup, and no control characters, which a dataset could use against the terminal."""
    console.print("".join(c if c.isprintable() else " " for c in line), markup=False, highlight=False, style=style)


def _print_validation(validation) -> None:
    console = Console()
    _say(console, f"{validation.name} at {validation.root}", style="bold")
    held = "" if validation.audit is None else f"{validation.audit.pairs} preference pairs, "
    _say(
        console,
        f"{validation.cases} cases, {validation.questions} questions, {held}{validation.images} images "
        f"({validation.identical_images} repeated)",
    )
    table = Table("what", "value", "questions")
    for what, counts in validation.counts.items():
        for value, count in counts.items():
            table.add_row(what, "".join(c if c.isprintable() else " " for c in value), str(count))
    if table.row_count:
        console.print(table, markup=False)
    for key, count in validation.notes.items():
        _say(console, f"{key}: {count}")
    kind = "our split" if validation.is_own_split else "official split"
    for leak in validation.leakage:
        _say(console, f"{kind}: {leak}")
    for problem in validation.problems:
        _say(console, f"malformed: {problem}")
    for image, why in validation.unreadable:
        _say(console, f"unreadable: {image}: {why}")
    for file in validation.differing_files:
        _say(console, f"not the file whose digest the card records: {file}")
    if validation.duplicate_ids:
        _say(console, f"duplicate ids: {', '.join(validation.duplicate_ids)}")
    if validation.repeated_items:
        _say(console, f"{validation.repeated_items} questions repeat an image, question and answer of their split")
    if validation.audit is not None:
        _print_audit(console, validation.audit)
    _say(console, "sound" if validation.is_ok else f"broken: {'; '.join(validation.failures)}", style="bold")


def _print_audit(console: Console, audit) -> None:
    _say(console, "")
    kinds = f"{audit.text_pairs} change the answer, {audit.image_pairs} the image"
    _say(console, f"audit of {audit.pairs} pairs on {audit.images} images: {kinds}", style="bold")
    if audit.text_pairs:
        _say(console, f"median words: chosen {audit.chosen_words:g}, rejected {audit.rejected_words:g}")
    common = ", ".join(f"{value:g} ({count})" for value, count in audit.relevance[:6])
    rest = len(audit.relevance) - 6
    more = f" and {rest} other values" if rest > 0 else ""
    _say(console, f"relevance: mean {audit.relevance_mean:.3f}, sd {audit.relevance_sd:.3f}; {common}{more}")
    for check in audit.findings:
        _say(console, "")
        _say(console, f"{check.name}: {check.sentence}")
        if check.example:
            _say(console, f"  e.g. {check.example}")
    _say(console, "")
    clear = [check.name for check in audit.checks if check.of and not check.is_found]
    _say(console, f"nothing found: {'; '.join(clear) or '-'}")
    for check in audit.checks:
        if not check.of:
            _say(console, f"{check.name}: {check.sentence}")
    _say(console, "")


@contextmanager
def _progress(what: str) -> Iterator:
    """A progress bar on the terminal's error stream; silent elsewhere."""
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
