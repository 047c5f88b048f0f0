"""Time operators against their peers, once their tests have passed; see `run`."""

import importlib.util
import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lightbox
from lightbox.bench import timing
from lightbox.bench.kernels.operators import (
    COMPILED,
    FLASH,
    OPERATORS,
    PERCEPTIBLE,
    Case,
    Inputs,
)
from lightbox.bench.kernels.shapes import FULL, SMALL, Shape
from lightbox.config import check_choice
from lightbox.errors import RequestError, WorkError
from lightbox.paths import repo_root

ROUNDS = 5
SAME_PICKS = 0.9
"""Share of tokens that two forms must choose alike: where two gains tie in float32, one other pick draws others."""
OURS, FLOOR = "ours", "floor"
FORMS = {"cpu": "on a CPU the operator is its form in PyTorch, 1 thread", "cuda": "Triton"}
"""Device -> what computes there, as notes say it."""
_log = logging.getLogger(__name__)


def run(
    *,
    only: Sequence[str] = (),
    device: str = "",
    rounds: int = ROUNDS,
    round_s: float = 0.2,
    shapes: Sequence[Shape] | None = None,
    compiles: bool = True,
) -> list[dict]:
    """Time operators: on CUDA at full sizes in bfloat16, on a CPU scaled down, in float32 and one thread.

    Args:
        only: names of operators; empty means all.
        device: cpu or cuda; "" is the one that is found.
        rounds: of all forms of a case, whose order alternates; the median ratio counts.
        round_s: seconds that a form is repeated for in a round.
        shapes: in place of the device's own.
        compiles: whether `torch.compile` is a peer; it takes from seconds to minutes a case.

    Returns:
        Rows with case, peer, value (our median, in microseconds), unit, ratio (the peer's time to ours, so above 1 is
        faster; of the floor, the share of it that is reached), goal and notes (percentiles of both).

    Raises:
        RequestError: an unknown operator, or no tests of it here.
        WorkError: its tests fail, or a peer gives another result.
    """
    for name in only:
        check_choice("--only", name, tuple(OPERATORS))
    names = [name for name in OPERATORS if not only or name in only]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for name in names:
        check_tests(name, device)
    compiles = compiles and _has_compiler(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shapes = shapes or (FULL if device == "cuda" else SMALL)
    rows: list[dict] = []
    for name in names:
        operator = OPERATORS[name]
        for shape in shapes:
            if shape.has_gradients and not operator.has_gradients:
                continue
            for case in operator.cases(Inputs(shape, device, dtype)):
                measured = measure(case, device, dtype, rounds=rounds, round_s=round_s, compiles=compiles)
                _log.info("%s: %s", case.name, {row["peer"]: row["ratio"] for row in measured})
                rows += measured
    if "attn_colmean" in names and not any(row["peer"] == FLASH for row in rows):
        why = "its package is not installed"
        if device == "cpu":
            why = "it runs on CUDA alone"
        _log.warning("%s was not there to compare with: %s", FLASH, why)
    return rows


def check_tests(name: str, device: str, *, root: Path | None = None) -> None:
    """Run an operator's tests in a process of their own, against the very package that is timed.

    Args:
        name: of the operator.
        device: with cuda the tests on the card run too.
        root: of the checkout; None finds it.

    Raises:
        RequestError: there are no tests here.
        WorkError: they fail, or none ran.
    """
    try:
        path = (root or repo_root()) / "tests" / "kernels" / f"test_{name}.py"
    except RequestError as err:
        raise _no_tests(name, "this installation lies in no checkout") from err
    if not path.is_file():
        raise _no_tests(name, f"there is no {'/'.join(path.parts[-3:])}")
    marks = "not interpreter" if device == "cuda" else "not interpreter and not gpu"
    package = str(Path(lightbox.__file__).parent.parent)
    path_of_modules = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", marks, "-n", "0", "-q", "-x", "-p", "no:cacheprovider", str(path)],
        cwd=path.parents[2],
        env=os.environ | {"PYTHONPATH": path_of_modules},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if not is_green(done.returncode, done.stdout):
        raise WorkError(
            f"The tests of {name} do not pass: {lines[-1].strip('= ') if lines else 'nothing was printed'}",
            "How fast a wrong result comes says nothing",
            f"Run `pytest -m '{marks}' tests/kernels/test_{name}.py`, mend what it shows, and measure then",
        )


def is_green(code: int, printed: str) -> bool:
    """Whether pytest's exit code and output say that tests ran and none failed; skipped ones say nothing.

    Example:
        >>> is_green(0, "5 passed, 1 skipped"), is_green(0, "6 skipped"), is_green(1, "1 failed, 5 passed")
        (True, False, False)
    """
    return code == 0 and re.search(r"\b[1-9]\d* passed", printed) is not None


def measure(
    case: Case, device: str, dtype: torch.dtype, *, rounds: int, round_s: float, compiles: bool = True
) -> list[dict[str, Any]]:
    """Rows of one case: a row against each peer and one against the floor.

    Args:
        case: with calls that must give the same.
        device: cpu or cuda.
        dtype: of matrix products.
        rounds, round_s, compiles: as `run` takes them.

    Raises:
        WorkError: a peer gives another result.
    """
    ours = case.ours()
    calls: dict[str, Callable[[], Any]] = {OURS: case.ours}
    notes: dict[str, str] = {}
    peers = dict(case.peers)
    if compiles:
        torch._dynamo.reset()
        peers[COMPILED] = case.to_compile(_compiler(device))
    for name, call in peers.items():
        try:
            notes[name] = check_same(case, name, ours, call())
        except torch.OutOfMemoryError:
            _log.warning("%s: %s does not fit into memory", case.name, name)
            continue
        calls[name] = call
    if device == "cuda":  # without what a launch costs Python
        calls |= {
            _in_graph(name): captured(calls[name]) for name in (OURS, COMPILED) if _can_capture(case, name, calls)
        }
    calls["copy"] = timing.copy_of(case.n_bytes, device)
    calls["product"], product_flop = timing.product_on(device, dtype)
    samples = timing.in_turns(calls, rounds=rounds, round_s=round_s, device=device)
    return [*_peer_rows(case, samples, notes, device), _floor_row(case, samples, device, product_flop)]


def check_same(case: Case, name: str, ours: Any, theirs: Any) -> str:
    """Say how alike two results are.

    Raises:
        WorkError: they are not the same.
    """
    if case.is_picking:
        share = len(set(ours.tolist()) & set(theirs.tolist())) / max(1, len(ours))
        is_same, found = len(ours) == len(theirs) and share >= SAME_PICKS, f"{share:.1%} of picks the same"
    else:
        pairs = list(zip(_parts(ours), _parts(theirs), strict=True))
        worst = max(_difference(one, other) for one, other in pairs)
        is_same = worst <= max(PERCEPTIBLE.get(one.dtype, 0.0) for one, _ in pairs)
        found = f"largest difference {worst:.1e}"
    if not is_same:
        raise WorkError(
            f"{case.name}: {name} gives another result than ours, {found}",
            "Times of two things that differ cannot be compared",
            "Find the difference before measuring",
        )
    return found


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call as a CUDA graph: all its launches at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _peer_rows(
    case: Case, samples: Mapping[str, list[list[float]]], notes: Mapping[str, str], device: str
) -> Iterator[dict[str, Any]]:
    pairs = [(case.name, OURS, name) for name in notes if name in samples]
    graphs = [_in_graph(name) for name in (OURS, COMPILED)]
    if all(name in samples for name in graphs):
        pairs.append((f"{case.name}, CUDA graph", graphs[0], graphs[1]))
    for name, own, peer in pairs:
        ratio, each = timing.ratio_of(samples[peer], samples[own])
        peer_name = peer if own == OURS else COMPILED
        said = (
            f"{timing.pooled(samples[own])}; peer {timing.pooled(samples[peer])}; {len(each)} rounds in turns, ratios "
            f"{min(each):.3g} to {max(each):.3g}; {notes[peer_name]}; {FORMS[device]}"
        )
        yield _row(case, name, peer_name, samples[own], ratio, device, said)


def _floor_row(
    case: Case, samples: Mapping[str, list[list[float]]], device: str, product_flop: float
) -> dict[str, Any]:
    """The longer of what its bytes take to copy and its FLOP in a square product."""
    copied = samples["copy"]
    computed = [[taken * case.flop / product_flop for taken in own] for own in samples["product"]]
    is_by_bytes = statistics.median(chain(*copied)) >= statistics.median(chain(*computed))
    share, each = timing.ratio_of(copied if is_by_bytes else computed, samples[OURS])
    if is_by_bytes:
        rate = case.n_bytes / timing.pooled(copied).median / 1e9
        what = f"{case.n_bytes / 1e6:.3g} MB, copied at {rate:.3g} GB/s"
    else:
        rate = product_flop / timing.pooled(samples["product"]).median / 1e9
        what = f"{case.flop / 1e9:.3g} GFLOP, a square product does {rate:.4g} GFLOP/s"
    said = f"{timing.pooled(samples[OURS])}; {what}; shares {min(each):.3g} to {max(each):.3g}; {FORMS[device]}"
    peer = f"{FLOOR}, {'bytes' if is_by_bytes else 'FLOP'}"
    return _row(case, case.name, peer, samples[OURS], share, device, said)


def _row(
    case: Case, name: str, peer: str, own: list[list[float]], ratio: float, device: str, notes: str
) -> dict[str, Any]:
    goal = case.goals.get(peer.partition(",")[0]) if device == "cuda" else None
    value = timing.pooled(own).median * 1e6
    shown = {"value": float(f"{value:.4g}"), "unit": "us", "ratio": float(f"{ratio:.4g}")}
    return {"case": name, "peer": peer, **shown, "goal": f">= {goal:g}" if goal else "", "notes": notes}


def _compiler(device: str) -> Callable[[Callable], Callable]:
    mode = "max-autotune-no-cudagraphs" if device == "cuda" else None
    return lambda call: torch.compile(call, fullgraph=True, dynamic=False, mode=mode)


def _has_compiler(device: str) -> bool:
    """Whether `torch.compile` can make code here; a line says why not."""
    lacks = [] if importlib.util.find_spec("setuptools") else ["setuptools, which torch brings on Python 3.12 alone"]
    if device == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        lacks.append("a C++ compiler (g++, or what CXX names)")
    if lacks:
        _log.warning("torch.compile was not there to compare with: it needs %s", " and ".join(lacks))
    return not lacks


def _can_capture(case: Case, name: str, calls: Mapping[str, Any]) -> bool:
    return name in calls and "backward" not in case.name


def _in_graph(name: str) -> str:
    return f"{name}, CUDA graph"


def _parts(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value; infinite for other shapes or dtypes of another kind."""
    if one.shape != other.shape:
        return float("inf")
    if not one.is_floating_point():
        return 0.0 if torch.equal(one, other) else float("inf")
    return float((one.float() - other.float()).abs().max() / one.float().abs().max().clamp(min=1e-30))


def _no_tests(name: str, why: str) -> RequestError:
    return RequestError(
        f"The tests of {name} are not here: {why}",
        "An operator is timed only after its tests have passed, and an installed wheel brings none",
        "Run inside a checkout of Lightbox, with pytest installed",
    )
