"""Front door: the list of commands. Errors become messages and exit codes in `errors.guard`.

Help is printed from the list below, so no command's module is imported until that command runs; a module pays for
its own imports.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

import lightbox
from lightbox.errors import guard


class Entry(NamedTuple):
    """One command: where it lives (`module:attribute`, a function or a Typer app) and its line in the help."""

    target: str
    help: str


COMMANDS = {
    "reproduce": Entry("lightbox.cli.reproduce:reproduce", "Run the claims of papers and decide them."),
    "report": Entry("lightbox.cli.reproduce:report", "Write the page of committed or earlier results, or of one run."),
    "site": Entry("lightbox.cli.site:site", "Build pages of every document, walkthrough and published claim."),
    "explain": Entry("lightbox.cli.reproduce:explain", "Show a claim and its verdict, or what a job was made from."),
    "student": Entry("lightbox.cli.student:student", "Watch one claim learn on one seed, in about a minute."),
    "train": Entry("lightbox.cli.train:train", "Train one model of a paper."),
    "evaluate": Entry("lightbox.cli.train:evaluate", "Score a trained model, item by item."),
    "export": Entry("lightbox.cli.export:export", "Write a trained adapter as a folder for peft or transformers."),
    "predict": Entry("lightbox.cli.train:predict", "Answer one question about one image."),
    "view": Entry("lightbox.cli.view:view", "Ask two models about an image, on a page in the browser."),
    "pretrain": Entry("lightbox.cli.train:pretrain", "Rebuild the tiny foundation models."),
    "data": Entry("lightbox.cli.data:app", "List, validate, show, render and convert datasets."),
    "knowledge": Entry("lightbox.cli.knowledge:app", "Take classes apart into attributes."),
    "compare": Entry("lightbox.cli.compare:compare", "Put recorded runs side by side."),
    "index-server": Entry("lightbox.cli.index_server:index_server", "Run an MLflow server on PostgreSQL."),
    "conventions": Entry("lightbox.cli.conventions:conventions", "Score predictions by the rules of several groups."),
    "bench": Entry("lightbox.cli.bench:app", "Measure ratios against named peers."),
    "memory": Entry("lightbox.cli.memory:memory", "Predict whether a training step fits on a card."),
    "doctor": Entry("lightbox.cli.doctor:doctor", "Say what this machine has, lacks, and what that costs."),
}


class LazyGroup(TyperGroup):
    """Commands of `COMMANDS`, shown from their help lines and loaded when called."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands = {name: TyperCommand(name=name, help=entry.help) for name, entry in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command, its module imported now."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, None if stand_in is None else load(str(stand_in.name)), rest


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lightbox {lightbox.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Medical vision-language papers to run, read, check and scale. For research and teaching, not clinical use."""


def load(name: str) -> Any:
    """Import the module of command `name` and return its command object."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name=name)(target)
        target = single
    command = get_command(target)
    command.name = name
    return command


def main(argv: Sequence[str] | None = None) -> None:
    """Run the `lightbox` command and exit; `argv` None takes the process's own arguments."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    sys.exit(guard(lambda: get_command(app)(args=arguments, prog_name="lightbox")))
