"""`lightbox index-server`: MLflow on PostgreSQL with an artifact proxy, until Ctrl-C. Imports no MLflow here."""

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console


def index_server(
    folder: Annotated[Path, typer.Argument(help="Of the database, the files of runs and the logs; made if absent.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of 127.0.0.1.")] = 5000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer, some 300 MB each.")] = 1,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="After a newer MLflow was installed: dump, then change the tables.")
    ] = False,
) -> None:
    """Run an MLflow server on PostgreSQL, for many trainings and machines at once; Ctrl-C ends both in order."""
    from lightbox.runs.index_server import serve

    console = Console(highlight=False, soft_wrap=True)

    def show(address: str) -> None:
        console.print(f"MLflow answers at {address}, from {folder}. Ctrl-C ends it.", markup=False)
        console.print(f"Elsewhere: export MLFLOW_TRACKING_URI={address}", markup=False)

    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal, or a service manager, stops it as Ctrl-C does
        signal.signal(number, _interrupt)
    console.print("Starting PostgreSQL and MLflow; the first start makes the tables.")
    try:
        serve(folder, port, upgrade=upgrade, workers=workers, on_ready=show)
    except KeyboardInterrupt:
        console.print("Stopped.")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
