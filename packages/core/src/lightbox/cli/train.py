"""`lightbox train|evaluate|predict`, handed to the paper's own `cli` module, and `lightbox pretrain`.

Nothing here knows a paper by name. A paper's `cli` accepts its configuration before it imports torch, so a wrong key is
refused in about a second.
"""

import difflib
import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lightbox.claims.registry import installed_packages
from lightbox.cli.regions import parse_regions
from lightbox.errors import RequestError

Paper = Annotated[str, typer.Argument(help="Name of a paper, for example medthink.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, for example preset=smoke optim.lr=1e-4.")
]


def train(paper: Paper, overrides: Overrides = None) -> None:
    """Train one model of a paper, on phantom or real data, tiny or real size."""
    paper_cli(paper).train(list(overrides or []))


def evaluate(
    paper: Paper,
    overrides: Overrides = None,
    with_conventions: Annotated[
        bool, typer.Option("--conventions", help="Show the same predictions under the scoring rules of other groups.")
    ] = False,
) -> None:
    """Score a trained model and write its per-item scores."""
    from lightbox.paper.multirun import is_multirun

    words = list(overrides or [])
    if with_conventions and is_multirun(words):
        raise RequestError(
            "--conventions is given with a sweep",
            "A sweep makes several runs, and the table is of one",
            "Leave it out, and run `lightbox conventions` on the folder of each",
        )
    folder = paper_cli(paper).evaluate(words)
    if with_conventions:
        from lightbox.cli.conventions import conventions

        conventions(folder)


def predict(
    paper: Paper,
    image: Annotated[
        Path, typer.Option(help="Image file; converted as the paper's data are. NIfTI where the paper takes regions.")
    ],
    question: Annotated[str, typer.Option(help="The question, as text.")],
    options: Annotated[str, typer.Option(help='Choices of a closed question, for example "yes,no".')] = "",
    run: Annotated[Path | None, typer.Option(help="Folder of a trained run; left out, the newest one.")] = None,
    point: Annotated[list[str] | None, typer.Option(help="Region as a point x,y, fractions of the image.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="Region x0,y0,x1,y1 as fractions of the image.")] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help="Region as a mask of the image's size, FILE or FILE:LABEL.")
    ] = None,
    slice_name: Annotated[
        str, typer.Option("--slice", help="Slice of a NIfTI volume, such as axial/40 or axial/40/w-160_240.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write the image with the answer drawn on it, and masks beside it.")
    ] = None,
    attention: Annotated[bool, typer.Option("--attention", help="Beside --out, draw where the model looked.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer one question about one image. Not for clinical use.

    A region is --point, --box or --mask; several of one kind stand in the order of the question.
    """
    if not question.strip():
        raise RequestError("--question is empty", "There is nothing to answer", "Give the question as text")
    if not image.is_file():
        raise RequestError(f"--image is '{image}'", "There is no such file", "Give the path of an image file")
    choices = tuple(choice.strip() for choice in options.split(",") if choice.strip())
    if options and len(choices) < 2:
        raise RequestError(
            f"--options is '{options}'", "A closed question has two choices or more", "Separate them by commas"
        )
    asked: dict[str, Any] = {"image": image, "question": question, "options": choices, "run": run, "out": out}
    more = {
        "regions": parse_regions(point or (), box or (), mask or ()),
        "slice_name": slice_name,
        "attention": attention,
    }
    # what is not asked for is not handed on: a paper that has none of it need not know the argument
    answer = paper_cli(paper).predict(**asked, **{name: value for name, value in more.items() if value})
    show(answer, as_json=as_json)


def pretrain(
    only: Annotated[
        str,
        typer.Option(
            help="Build one of them: t5, tower, llava, florence2, llava-576, qwen2_5_vl, sam or modality_tower."
        ),
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Output folder; left out, ./lightbox-out.")] = None,
) -> None:
    """Rebuild the tiny foundation models on the phantom with fixed seeds; how long each took is in its card.json.

    They lie in OUT/pretrain. The shipped ones are compared with them and not touched.
    """
    from lightbox.pretrain.catalog import build

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)  # a line every 50 steps
    for card in build(only or None, out=out):
        differs = ", ".join(f"{name} {old:.3f} -> {new:.3f}" for name, (old, new) in card["differs"].items())
        verdict = f"beyond the tolerance of the shipped card: {differs}" if differs else "scores as on the shipped card"
        typer.echo(f"{card['name']}: {card['build_minutes']} minutes; {verdict}")


def paper_cli(paper: str) -> Any:
    """Import the `cli` module of a paper.

    Raises:
        RequestError: for an unknown name, listing the known ones.
    """
    papers = installed_packages()
    if paper not in papers:
        why = f"The papers installed here are {', '.join(papers) or 'none'}"
        raise RequestError(f"The paper '{paper}'", why, _nearest(paper, tuple(papers)))
    return importlib.import_module(f"{papers[paper]}.cli")


def show(answer: Any, *, as_json: bool) -> None:
    """Print the mapping that a paper's `predict` returned: one JSON object, or one "name: value" line each."""
    if as_json:
        typer.echo(json.dumps(answer, indent=2, default=str))
        return
    for name, value in answer.items():
        typer.echo(f"{name}: {value}")


def _nearest(name: str, names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {near[0]}?" if near else "Choose one of them"
