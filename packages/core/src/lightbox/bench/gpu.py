"""One measurement on a GPU in a process of its own, written as soon as it is made; `benchmarks/gpu.py` runs them all.

Run: python -m lightbox.bench.gpu KIND MODEL [--batch N] [--choice NAME] --out DIR [--device cpu --tiny]

Models are published ones with random weights, in NF4 quantised layer by layer, or with `--tiny` their tiny forms; names
of cases say so, and on what they ran. All goes to `gpu.jsonl`; what has a ratio also to `rows.csv`, whose lines can be
appended to `benchmarks/results.csv`. Both sides of a ratio are measured in processes of their own: the peer's, which
comes second, finds ours in `gpu.jsonl`, and where that is missing has no ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lightbox.adapters.memory.prediction import predict
from lightbox.adapters.memory.request import Request
from lightbox.backbones.attention import choose
from lightbox.backbones.families import family_of
from lightbox.backbones.named import NAMED
from lightbox.backbones.published import shrunk_values
from lightbox.backbones.sizes import Images
from lightbox.bench import ledger, memory, pruning, step
from lightbox.bench.kernels import measure as kernels
from lightbox.bench.live_bytes import peak_bytes
from lightbox.bench.random_models import build, make_batch
from lightbox.errors import RequestError, WorkError
from lightbox.paths import repo_root
from lightbox.report.gpus import PEER, describe

FACTS = "LIGHTBOX_GPU_FACTS"
"""Variable with device, driver, versions and commit as JSON, which each line carries."""
SKIPPED = 3
"""Exit code where a measurement cannot be made here, by its reason."""
WARM, TIMED, NEW_TOKENS = 3, 7, 64
GAPS_PEER = "predicted peak with context and gaps"
Row = dict[str, Any]


def request_for(options: argparse.Namespace) -> Request:
    """The step that is measured: QLoRA of rank 16, 1,024 tokens a row."""
    name, is_tiny = options.model, options.tiny
    config = shrunk_values(name) if is_tiny else NAMED[name]
    sizes: dict[str, Any] = {"tokens": 128, "supervised": 8} if is_tiny else {}
    if is_tiny and name.startswith("qwen"):
        sizes["images"] = Images(visual_tokens=16)
    family = family_of(config, name=name)
    return Request(config, family, step.ADAPTER, batch=options.batch, device=options.device, **sizes)


def memory_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Peak of tensors, and of all that the process takes of the card, against the closed form."""
    request = request_for(options)
    case, report = _case(options), predict(request)
    peak = memory.measure(request)
    yield memory.compared_row(case, PEER, peak, report.tensors, "")
    if options.device == "cuda":
        reserved, (free, total) = torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        notes = f"reserved {reserved / memory.MIB:.0f} MiB, context and other processes {context / memory.MIB:.0f} MiB"
        yield memory.compared_row(case, GAPS_PEER, reserved + context, report.total, notes)


def step_rows(options: argparse.Namespace) -> Iterator[Row]:
    """A QLoRA step, `--choice` ours or stock: supervised tokens' own path, or peft's helpers with full logits."""
    if options.choice not in ("ours", "stock"):
        raise RequestError(f"--choice is '{options.choice}'", "A step is ours or stock", "Name one of the two")
    request = request_for(options)
    backbone = build(request.config, quant="nf4", dtype=request.dtype, device=options.device)
    batch = make_batch(backbone, request)
    is_ours = options.choice == "ours"
    side = step.ours(backbone, batch) if is_ours else step.stock(backbone.core, backbone.family, batch)
    for row in _side_rows(side, f"QLoRA step {options.choice}, {_case(options)}", request):
        yield row
        ours = _earlier(options.out, row["case"].replace("step stock", "step ours"))
        if not is_ours and ours:
            case = row["case"].replace("step stock", "step")
            yield row | {"case": case, "peer": step.PEER, "value": ours, "ratio": round(ours / row["value"], 4)}


def attention_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Our QLoRA step with each way to compute attention, `--choice` sdpa, eager, xformers or flash."""
    request = request_for(options)
    kind = request.config["model_type"]
    choice = choose(options.choice, device=options.device, dtype=request.dtype, model_type=kind)
    backbone = build(
        request.config, quant="nf4", dtype=request.dtype, device=options.device, attention=choice.implementation
    )
    side = step.ours(backbone, make_batch(backbone, request))
    for row in _side_rows(side, f"attention {options.choice}, {_case(options)}", request):
        sdpa = _earlier(options.out, row["case"].replace(f"attention {options.choice}", "attention sdpa"))
        ratio = {"peer": "attention sdpa", "ratio": round(row["value"] / sdpa, 4)} if sdpa else {}
        yield row | ratio


def generate_rows(options: argparse.Namespace) -> Iterator[Row]:
    """New tokens a second, greedy, from a cache; reading the prompt is taken off."""
    request = request_for(options)
    backbone = build(request.config, quant="nf4", dtype=request.dtype, device=options.device)
    inputs, count = make_batch(backbone, request).inputs, 8 if options.tiny else NEW_TOKENS

    def taken(new_tokens: int) -> float:
        started = time.perf_counter()
        ids = backbone.core.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        ids.cpu()  # waits for the device
        return time.perf_counter() - started

    taken(count)
    first, whole = (statistics.median(taken(number) for _ in range(3)) for number in (1, count))
    rate = options.batch * (count - 1) / (whole - first)
    notes = f"{count} new tokens, prompt {first:.3f} s"
    yield _speed(f"generation, {_case(options)}", rate, "tokens/s", notes)


def lane_rows(options: argparse.Namespace) -> Iterator[Row]:
    """The gpu lane of the tests; on a CPU it is only collected, as its tests need a card."""
    files = [
        path for path in (repo_root() / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text("utf-8")
    ]
    flags = ["-m", "gpu", "-n", "0", "-q", "-p", "no:cacheprovider", "--timeout", "120"]
    flags += ["-k", "not test_a_7b_model_takes"]  # rows of their own
    flags += [] if options.device == "cuda" else ["--collect-only"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *flags, *map(str, sorted(files))],
        cwd=repo_root(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    sys.stderr.write(done.stdout + done.stderr)
    last = (done.stdout.strip().splitlines() or ["nothing was printed"])[-1]
    yield _speed(f"gpu lane, {options.device}", done.returncode, "exit code", last)
    if done.returncode:
        raise WorkError(f"pytest ended with {done.returncode}", last, "Read gpu.log")


def kernel_rows(options: argparse.Namespace) -> Iterator[Row]:
    """One operator, `--choice`, against its peers; with `--tiny` two rounds without torch.compile."""
    sizes: dict[str, Any] = {"rounds": 2, "round_s": 0.01, "compiles": False} if options.tiny else {}
    yield from kernels.run(only=[options.choice], device=options.device, **sizes)


def pruning_rows(options: argparse.Namespace) -> Iterator[Row]:
    """One method, `--choice`, against the same model unpruned; the model is the device's own, or that of `--tiny`."""
    request = pruning.request_for(options.device, is_tiny=options.tiny)
    yield from pruning.run(methods=[options.choice], request=request, repeats=2 if options.tiny else TIMED)


KINDS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "memory": memory_rows,
    "step": step_rows,
    "attention": attention_rows,
    "generate": generate_rows,
    "lane": lane_rows,
    "kernels": kernel_rows,
    "pruning": pruning_rows,
}


def _side_rows(side: step.Side, case: str, request: Request) -> Iterator[Row]:
    for _ in range(WARM):
        side.step()
    taken = sorted(step.seconds(side, 1) for _ in range(TIMED))
    rate = request.batch * request.row_tokens / statistics.median(taken)
    notes = f"{TIMED} steps after {WARM}, {taken[0]:.4f} to {taken[-1]:.4f} s"
    yield _speed(case, rate, "tokens/s", notes)
    peak = peak_bytes(side.step, held=side.held(), device=request.device)
    yield _speed(f"{case}, peak of tensors", peak / memory.MIB, "MiB", "")


def _earlier(folder: Path, case: str) -> float | None:
    """What was last measured of a case in this folder."""
    path = folder / "gpu.jsonl"
    lines = map(json.loads, path.read_text("utf-8").splitlines() if path.is_file() else [])
    return next((line["value"] for line in reversed(list(lines)) if line.get("case") == case), None)


def _case(options: argparse.Namespace) -> str:
    return describe(f"tiny {options.model}" if options.tiny else options.model, request_for(options))


def _speed(case: str, value: float, unit: str, notes: str) -> Row:
    return {"case": case, "peer": "", "value": round(value, 3), "unit": unit, "ratio": "", "notes": notes}


def main() -> int:
    """Measure and write; the exit code is 0, `SKIPPED` or, by an error, 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("model", nargs="?", default=memory.CARD_MODELS[0], choices=memory.CARD_MODELS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--choice", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    facts = json.loads(os.environ.get(FACTS, "{}"))
    try:
        memory.check_device(options.device)
        for row in KINDS[options.kind](options):
            with (options.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"status": "measured", **facts, "benchmark": options.kind, **row}) + "\n")
            if row["ratio"]:
                ledger.append(options.out / "rows.csv", options.kind, [row], commit=facts.get("commit", ""))
    except RequestError as err:
        sys.stderr.write(f"{err}\n")
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
