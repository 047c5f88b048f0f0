"""`python -m medplib.official SOURCE DEST`: MedPLIB's released weights -> `DEST/model` and `DEST/segmenter`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from lightbox.errors import guard
from medplib.official.convert import MODEL, SEGMENTER, convert_medplib

app = typer.Typer(add_completion=False)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a released MedPLIB: config.json, safetensors, tokenizer.")],
    dest: Annotated[Path, typer.Argument(help="New folder; receives model and segmenter.")],
    tower: Annotated[Path | None, typer.Option(help="Folder of the CLIP tower, where SOURCE does not hold it.")] = None,
) -> None:
    """Convert MedPLIB's released weights; all experts are in memory at once."""
    convert_medplib(source, dest, tower=tower)
    typer.echo(f"model.backbone={dest / MODEL} model.segmenter={dest / SEGMENTER}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit; `arguments` None takes the process's own."""
    words = sys.argv[1:] if arguments is None else arguments
    sys.exit(guard(lambda: get_command(app)(args=words, prog_name="python -m medplib.official")))


if __name__ == "__main__":
    main()
