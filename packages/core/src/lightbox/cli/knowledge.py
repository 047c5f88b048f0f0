"""`lightbox knowledge decompose`: classes taken apart into attributes, as a table to read, correct and use.

Exit codes: 0 every class is in the table, 1 some are not, 2 the request was wrong.
"""

from pathlib import Path
from typing import Annotated

import typer

from lightbox.errors import RequestError, WorkError

app = typer.Typer(name="knowledge", help="Attribute tables: take classes apart.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Attribute tables: take classes apart. `lightbox data validate knowledge` checks them."""


@app.command()
def decompose(
    classes: Annotated[list[str], typer.Argument(help="Class names.")],
    out: Annotated[Path, typer.Option(help="New file of the table, NAME.yaml.")],
    url: Annotated[
        str, typer.Option(help="OpenAI-compatible address, often ending in /v1; without it our tables are read.")
    ] = "",
    model: Annotated[str, typer.Option(help="Name of the model at that address.")] = "",
    dataset: Annotated[str, typer.Option(help="Data set of the classes; its card may forbid to send them.")] = "",
    cache: Annotated[Path | None, typer.Option(help="Folder of kept answers, else ./lightbox-out/chat.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 1024,
    timeout_s: Annotated[float, typer.Option(help="Longest silence of the server, in s.")] = 120.0,
) -> None:
    """Write shape, density, location and appearance of each class, from our tables or by a language model.

    The key of the model's server is taken from LIGHTBOX_CHAT_KEY. Only class names and our own question go to --url.
    """
    if out.suffix != ".yaml" or out.name == "phantom.yaml" or out.exists():
        why = "It exists" if out.exists() else "A table of findings is a .yaml file, and phantom.yaml is another kind"
        raise RequestError(f"--out is '{out}'", why, "Name a new file such as looks.yaml")
    if bool(url) != bool(model):
        raise RequestError(
            f"--url is '{'given' if url else ''}', --model is '{model}'", "A model needs both", "Give both or none"
        )
    from lightbox import decompose as parts
    from lightbox.chat import ChatModel
    from lightbox.files import replace_text
    from lightbox.paths import default_out

    if url:
        chat = ChatModel(url, model, max_tokens=max_tokens, timeout_s=timeout_s)
        datasets = [dataset] if dataset else []
        source = parts.from_model(chat, cache=cache or default_out() / "chat", datasets=datasets)
    else:
        source = parts.from_tables()
    table, errors = parts.decompose(classes, source, covers=dataset or out.stem)
    for error in errors:
        typer.echo(f"faulty: {error}", err=True)
    written = table["classes"]
    if written:
        try:
            replace_text(out, parts.to_yaml(table))
        except OSError as err:
            raise WorkError(f"File '{out}'", f"It cannot be written: {err.strerror}", "Name another") from err
    by = f"written by {model}, not looked up: read before use" if url else "from the attribute tables"
    typer.echo(f"{len(written)} of {len(written) + len(errors)} classes in {out}, {by}" if written else "No table")
    raise typer.Exit(1 if errors else 0)
