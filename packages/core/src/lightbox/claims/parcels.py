"""A job on a machine that has none of our folders: what goes there, how it is run there, what comes back. No torch.

The folders that a job reads, and its own if an earlier attempt left one, go along as one archive. On the node the job
works in a folder of its own below the temporary one; all its files come back as an archive, whether it worked or not.
A node runs a job only with the code, weights and versions of the one who asks: results would be mixed otherwise.
"""

import importlib
import io
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lightbox import machine
from lightbox.claims.worker import Order, Outcome, run_order
from lightbox.errors import LightboxError, RequestError
from lightbox.files import sync_folder, write_synced
from lightbox.runs.folders import LOG, disk_full
from lightbox.runs.sources import whole_digest

OWN, NEEDS = "own", "needs"
# mlflow is left out: only the parent process writes the index.
COMPARED = tuple(name for name in machine.RECORDED if name != "mlflow")


@dataclass(frozen=True)
class Parcel:
    """One job for a node.

    Args:
        order: the job, as it stands in the plan.
        run: name of the run, the same for all its jobs; the node's folder is named by it.
        versions: of `COMPARED` on the machine that asks.
    """

    order: Order
    run: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Delivery:
    """What comes back: how the job ended, and the files of its folder as an archive."""

    outcome: Outcome
    files: bytes


def pack(folders: Mapping[str, Path]) -> bytes:
    """Archive the files of some folders, each below its name; hidden files (locks, staged writes) stay behind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, folder in folders.items():
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder)
                if path.is_file() and not path.is_symlink() and not any(part.startswith(".") for part in inside.parts):
                    archive.add(path, f"{name}/{inside.as_posix()}", recursive=False)
    return buffer.getvalue()


def unpack(files: bytes, places: Mapping[str, Path]) -> None:
    """Write the files of an archive, each below the folder that its first part names; others are left out.

    Each file appears as a whole and on the disk: a reader, or a crash, sees the old one or the new one, never half.
    """
    touched: set[Path] = set()
    with tarfile.open(fileobj=io.BytesIO(files), mode="r:gz") as archive:
        for member in archive:
            name, *parts = PurePosixPath(member.name).parts
            content = archive.extractfile(member) if name in places and ".." not in parts else None
            if content is None:
                continue
            path = places[name].joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = path.with_name(f".{path.name}.tmp-{os.getpid()}")
            write_synced(staged, content.read())
            staged.replace(path)
            touched.add(path.parent)
    for folder in touched:
        sync_folder(folder)


def make_parcel(order: Order, run: str) -> tuple[Parcel, bytes]:
    """The parcel of a job and its luggage: the folders it needs and what an earlier attempt at it left."""
    luggage = {f"{NEEDS}-{number}": folder for number, folder in enumerate(order.needs.values())}
    if order.folder.is_dir():
        luggage[OWN] = order.folder
    return Parcel(order, run, machine.versions(COMPARED)), pack(luggage)


def run_parcel(parcel: Parcel, luggage: bytes) -> Delivery:
    """Run a job on this node and send its files home; the job's own folder here is removed afterwards.

    A job that another worker of this node began and did not end goes on from where that one stopped.
    """
    order = parcel.order
    place = node_folder(parcel.run) / "jobs" / order.key
    try:
        check_node(order, parcel.versions)
    except LightboxError as err:
        return Delivery(Outcome(order.key, 0.0, 0.0, err, ran=_facts()), pack({}))
    places = {f"{NEEDS}-{n}": place.with_name(f"{order.key}-{NEEDS}-{n}") for n in range(len(order.needs))}
    needs = dict(zip(order.needs, places.values(), strict=True))
    unpack(luggage, places if place.is_dir() else places | {OWN: place})
    place.mkdir(parents=True, exist_ok=True)
    with _output_to(place / LOG):
        outcome = run_order(replace(order, needs=needs), place=place)
    files = pack({OWN: place})
    for folder in (place, *needs.values()):
        shutil.rmtree(folder)
    if outcome.is_disk_full:  # this node's disk, so the other nodes go on
        outcome = replace(outcome, is_disk_full=False, error=disk_full(place))
    return Delivery(replace(outcome, ran=_facts()), files)


def check_node(order: Order, versions: Mapping[str, str]) -> None:
    """Compare this node with the machine that asks.

    Raises:
        RequestError: other code, other versions, or other weights and data than the job's.
    """
    given = f"{order.title or order.key} was given to node {_name()}"
    compare_node(given, versions, {order.package: order.source}, node_facts([order.package]))
    module = importlib.import_module(f"{order.package}.config")
    found = module.inputs(module.resolve(list(order.overrides)))
    different = sorted(name for name in order.inputs | found if order.inputs.get(name) != found.get(name))
    if different:
        raise RequestError(
            given,
            f"Its {' and '.join(different)} differ from those of this machine, so results would be mixed",
            "Put the same files at the same place on every node",
        )


def compare_node(given: str, versions: Mapping[str, str], sources: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Refuse a node with other code or other versions.

    Args:
        given: first sentence of the error.
        versions: of this machine, by distribution.
        sources: source digest by package, of this machine.
        facts: `node_facts` of the node.

    Raises:
        RequestError: naming what differs.
    """
    other = [package for package, source in sources.items() if facts["sources"].get(package) != source]
    if other:
        raise RequestError(
            given,
            f"Its source of {', '.join(other)} is another one (commit {facts['commit']} there, {machine.commit()} "
            "here), so results would be mixed",
            "Check the same commit out on every node, then start the run again",
        )
    mixed = [f"{name} {facts['versions'].get(name)}" for name in versions if versions[name] != facts["versions"][name]]
    if mixed:
        raise RequestError(
            given,
            f"It has {', '.join(mixed)} where this machine has {', '.join(versions[m.split()[0]] for m in mixed)}",
            "Run `uv sync --locked` on every node, so that all have the versions of uv.lock",
        )


def node_facts(packages: Sequence[str]) -> dict[str, Any]:
    """What must be the same on every node: digest of the source by package, versions; and name and commit to say."""
    sources = {package: whole_digest(package) for package in packages}
    return {"node": _name(), "commit": machine.commit(), "sources": sources, "versions": machine.versions(COMPARED)}


def node_folder(run: str) -> Path:
    """Folder of a run on this node: `jobs/`, and `cache/`, which the jobs of this node share; only we may read it."""
    folder = Path(tempfile.gettempdir()) / f"lightbox-{run}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def clear_node(run: str) -> None:
    """Remove the folder of a run from this node."""
    shutil.rmtree(node_folder(run), ignore_errors=True)


def _facts() -> dict[str, Any]:
    return {"commit": machine.commit(), "hardware": machine.hardware(), "versions": machine.versions()}


def _name() -> str:
    return os.uname().nodename


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Point standard output and error at the end of a file, also for code outside Python, and back again."""
    kept = os.dup(1), os.dup(2)
    with path.open("a", encoding="utf-8") as log:
        try:
            for descriptor in (1, 2):
                _flush()
                os.dup2(log.fileno(), descriptor)
            yield
        finally:
            _flush()
            for descriptor, former in zip((1, 2), kept, strict=True):
                os.dup2(former, descriptor)
                os.close(former)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
