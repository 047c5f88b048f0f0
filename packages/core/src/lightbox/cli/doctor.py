"""`lightbox doctor`: what this machine has, what is missing, and what that costs. Imports torch only with --deep."""

import importlib.util
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightbox import machine, paths
from lightbox.claims.registry import installed_packages
from lightbox.errors import RequestError
from lightbox.files import file_sha256

OK, MISSING, BROKEN = "ok", "missing", "broken"
OPTIONAL = {
    "xformers": "attention falls back to torch's own: same results, slower on some GPUs",
    "triton": "torch.compile does not work on a GPU; eager forms give the same results, slower",
    "bitsandbytes": "no 4-bit weights: those of a 7B model take about 13 GiB instead of 4",
    "gradio": "no page of `lightbox view`; `lightbox predict` answers one question at a time",
    "ray": "claims run in local processes only, not on a cluster",
}
NEEDED = ("torch", "transformers", "peft", "accelerate", "mlflow", "hydra-core", "numpy", "pyarrow")
LOW_DISK_GIB, LOW_MEMORY_GIB = 5.0, 4.0


@dataclass(frozen=True)
class Check:
    """One thing looked at: `state` is ok, missing (works, at a cost) or broken (must be mended)."""

    name: str
    state: str
    found: str
    cost: str = ""


def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Import torch and try the device (15 s or more).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine has, what is missing, and what that costs; exit code 1 where something is broken."""
    checks = list(look())
    if deep:
        checks += look_deep()
    if as_json:
        facts = {"commit": machine.commit(), "hardware": machine.hardware(), "versions": machine.versions()}
        typer.echo(json.dumps(facts | {"checks": [asdict(check) for check in checks]}, indent=2))
    else:
        _print(checks)
    if any(check.state == BROKEN for check in checks):
        raise typer.Exit(1)


def look() -> Iterator[Check]:
    """Everything that can be seen without torch, in the order shown."""
    yield Check("commit", OK, machine.commit())
    yield from look_machine()
    yield from look_packages()
    names = installed_packages()
    yield Check("papers", OK if names else BROKEN, ", ".join(names) or "none", "" if names else "nothing can be run")
    try:
        paths.repo_root()
    except RequestError as err:
        yield Check("shared data", BROKEN, err.given, f"{err.why} {err.do}")
        return
    yield from look_weights(paths.shared_data() / "weights")
    yield look_data(paths.shared_data() / "cards")
    yield look_index(paths.default_out() / "mlflow.db")


def look_machine() -> Iterator[Check]:
    """Python, processor, memory, GPU, disk."""
    version = machine.versions(())["python"]
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield Check("python", OK if fits else BROKEN, version, "" if fits else "use Python 3.11 or 3.12")
    yield Check("processor", OK, f"{machine.cpu_name()}, {machine.cores()} cores")
    memory, disk = machine.memory_gib(), machine.free_disk_gib(paths.default_out())
    cost = "" if memory >= LOW_MEMORY_GIB else "the quick preset needs 4 GiB; use --preset smoke"
    yield Check("memory", MISSING if cost else OK, f"{memory:.1f} GiB", cost)
    cost = "" if disk >= LOW_DISK_GIB else "a full run keeps checkpoints of a few GiB; free space or use --out"
    yield Check("free disk", MISSING if cost else OK, f"{disk:.1f} GiB for {paths.default_out()}", cost)
    gpus = machine.gpu_names()
    cost = "" if gpus else "CPU only: smoke, quick and full run; consumer_gpu and paper profiles do not"
    yield Check("gpu", OK if gpus else MISSING, "; ".join(gpus) or "none", cost)


def look_packages() -> Iterator[Check]:
    """Installed versions, from metadata; optional ones with what their absence costs."""
    versions = machine.versions((*NEEDED, *OPTIONAL))
    for name in NEEDED:
        yield (
            Check(name, OK, versions[name]) if versions[name] else Check(name, BROKEN, "not installed", "run `uv sync`")
        )
    for name, cost in OPTIONAL.items():
        yield Check(name, OK, versions[name]) if versions[name] else Check(name, MISSING, "not installed", cost)


def look_weights(folder: Path) -> Iterator[Check]:
    """Compare every file of every tiny foundation model with the digest on its card."""
    cards = sorted(folder.glob("*/card.json"))
    if not cards:
        yield Check("weights", BROKEN, f"none in {folder}", "nothing can be trained from them; run `lightbox pretrain`")
    for card in cards:
        name, digests = f"weights {card.parent.name}", json.loads(card.read_text(encoding="utf-8")).get("sha256", {})
        wrong = [file for file, wanted in digests.items() if not _has_digest(card.parent / file, wanted)]
        if wrong or not digests:
            detail = f"{', '.join(wrong)} differ from card.json" if wrong else "card.json lists no digests"
            yield Check(name, BROKEN, detail, f"restore {card.parent} from git, or run `lightbox pretrain`")
        else:
            yield Check(name, OK, f"{len(digests)} files match card.json")


def look_data(cards: Path) -> Check:
    """Name the real sets under LIGHTBOX_DATA_ROOT."""
    root = os.environ.get("LIGHTBOX_DATA_ROOT")
    names = sorted(path.stem for path in cards.glob("*.yaml") if path.stem != "phantom")
    if not root:
        return Check("real data", MISSING, "LIGHTBOX_DATA_ROOT is not set", "phantom only; see `lightbox data list`")
    if not Path(root).is_dir():
        return Check("real data", BROKEN, f"LIGHTBOX_DATA_ROOT is '{root}'", "there is no such folder")
    here = [name for name in names if (Path(root) / name).is_dir()]
    cost = "" if here else f"no folder in it has the name of a set: {', '.join(names)}"
    return Check("real data", OK if here else MISSING, ", ".join(here) or "no set", cost)


def look_index(database: Path) -> Check:
    """State of the MLflow index, read without MLflow; it can always be rebuilt from the run folders."""
    from lightbox.runs import index_place
    from lightbox.runs.index_waiting import Waiting

    uri = index_place.index_uri(database.parent.absolute())
    count = len(Waiting(database.parent, index_place.shown(uri)).runs())
    waits = f", {count} {'waits' if count == 1 else 'wait'} to be written" if count else ""
    if "MLFLOW_TRACKING_URI" in os.environ and index_place.database_of(uri) is None:
        found = f"MLFLOW_TRACKING_URI is {index_place.shown(uri)}{waits}"
        try:
            index_place.probe(uri)
        except OSError as err:
            cost = "runs go on and wait for it; a later one writes them, or `lightbox compare --rebuild-index`"
            return Check("run index", MISSING, f"{found}: {err}", cost)
        return Check("run index", OK, found)
    if not database.is_file():
        return Check("run index", OK, f"no {database} yet; the first run makes it")
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=2)) as base:
            (runs,) = base.execute("SELECT COUNT(*) FROM runs").fetchone()
            (schema,) = base.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as err:
        return Check("run index", BROKEN, f"{database}: {err}", "move it away; `lightbox compare` rebuilds it")
    return Check("run index", OK, f"{database}: {runs} runs, schema {schema}{waits}")


def look_deep() -> Iterator[Check]:
    """Import torch, and multiply two small matrices in every dtype on the best device."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    yield Check("torch device", OK, f"{device}, {torch.get_num_threads()} threads")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ones, name = torch.ones(16, 16, dtype=dtype, device=device), f"{str(dtype).removeprefix('torch.')} on {device}"
        if not bool(((ones @ ones) == 16).all()):
            yield Check(name, BROKEN, "ones multiplied give a wrong sum", "do not use this dtype here")
        elif (
            dtype is torch.bfloat16 and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            yield Check(name, MISSING, "emulated", "slow; set run.precision=fp16")
        else:
            yield Check(name, OK, "works")
    if importlib.util.find_spec("bitsandbytes") is not None:
        import bitsandbytes.functional

        ones = torch.ones(64, 64, device=device)
        packed, state = bitsandbytes.functional.quantize_4bit(ones, quant_type="nf4")
        right = torch.allclose(bitsandbytes.functional.dequantize_4bit(packed, state), ones)
        cost = "" if right else "do not load 4-bit weights here"
        yield Check("4-bit weights", OK if right else BROKEN, f"bitsandbytes on {device}", cost)


def _has_digest(path: Path, wanted: str) -> bool:
    return path.is_file() and file_sha256(path) == wanted


def _print(checks: list[Check]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("", "found", "what that costs"):
        table.add_column(title, overflow="fold")
    colours = {OK: "green", MISSING: "yellow", BROKEN: "bold red"}
    for check in checks:
        state = f"[{colours[check.state]}]{check.state}[/]"
        table.add_row(escape(check.name), f"{state} {escape(check.found)}", escape(check.cost))
    Console().print(table)
    counts = {state: sum(check.state == state for check in checks) for state in colours}
    Console().print(", ".join(f"{count} {state}" for state, count in counts.items()))
