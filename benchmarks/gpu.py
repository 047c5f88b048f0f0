"""Run every measurement that needs a GPU, each in a process of its own, within one budget of time. See gpu.sh.

No row can stop another: one that fails, takes too long or cannot run here leaves a line that says so. Standard library
only, so that it runs where a package is missing.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "triton", "xformers", "flash-attn")
LLAVA, QWEN = "llava-1.5-7b", "qwen2.5-vl-7b"
SKIPPED = 3
OPERATORS = (
    "segment_select", "greedy_select", "attn_colmean", "few_query_scores", "temporal_keep", "assign_merge",
    "ragged_splice",
)  # fmt: skip
METHODS = ("cls_topk", "divprune", "cdpruner", "random")
ROWS = [
    *(f"memory {model} --batch {batch}" for model in (LLAVA, QWEN) for batch in (1, 4)),
    *(f"step {model} --batch 2 --choice {choice}" for model in (LLAVA, QWEN) for choice in ("ours", "stock")),
    "lane",
    *(f"attention {LLAVA} --batch 4 --choice {choice}" for choice in ("sdpa", "eager", "xformers", "flash")),
    *(f"generate {LLAVA} --batch {batch}" for batch in (1, 4)),
    *(f"pruning --choice {name}" for name in METHODS),
    *(f"kernels --choice {name}" for name in OPERATORS),
]
"""What comes first is measured even where time runs out."""
TIMEOUT_S = {"lane": 300, "kernels": 400}
USUAL_TIMEOUT_S = 150


def output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def facts(device: str) -> dict[str, str]:
    """What goes on every line."""
    carried = ROOT / "benchmarks" / "wheels" / "COMMIT"
    commit = output("git", "rev-parse", "--short=12", "HEAD")
    if commit and output("git", "status", "--porcelain", "--untracked-files=no"):
        commit += "-dirty"
    commit = commit or (carried.read_text().strip() if carried.is_file() else "unknown")
    said = {"date": time.strftime("%Y-%m-%d"), "commit": commit, "device": "cpu", "driver": ""}
    if device == "cuda":
        query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
        parts = [part.strip() for part in (output("nvidia-smi", *query).splitlines() or [""])[0].split(",")]
        said |= {"device": ", ".join(parts[:-1]) or "no card", "driver": parts[-1]}
    return said | {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def measure(row: str, options: argparse.Namespace, known: dict[str, str], seconds: float) -> dict[str, object]:
    """Status of one row; what it measured it has written itself."""
    command = [sys.executable, "-m", "lightbox.bench.gpu", *row.split(), "--out", str(options.out)]
    command += ["--device", options.device, *["--tiny"] * options.tiny]
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=os.environ | {"LIGHTBOX_GPU_FACTS": json.dumps(known)},
        )
        code, log = done.returncode, done.stdout + done.stderr
        lines = [line for line in log.splitlines() if line.strip()]
        status = {0: "done", SKIPPED: "skipped"}.get(code, "failed")
        reason = "" if code == 0 else (lines or [f"exit code {code}"])[-1]
    except subprocess.TimeoutExpired as err:
        status, reason, log = "failed", f"longer than {seconds:.0f} s", str(err.stdout or "") + str(err.stderr or "")
    with (options.out / "gpu.log").open("a", encoding="utf-8") as file:
        file.write(f"== {row}: {status}\n{log}\n")
    return {"status": status, "reason": reason, "wall_s": round(time.monotonic() - begun, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script itself")
    parser.add_argument("--only", action="append", default=[], help="rows that begin so; may be given several times")
    parser.add_argument("--budget-s", type=float, default=1200)
    options = parser.parse_args()
    options.out = options.out.resolve()
    rows = [row for row in ROWS if row.startswith(tuple(options.only) or "")]
    if not rows:
        parser.error(f"no row begins with {' or '.join(options.only)}; there are: {'; '.join(ROWS)}")
    known, begun, counts = facts(options.device), time.monotonic(), {}
    print(json.dumps(known), flush=True)
    for row in rows:
        left = options.budget_s - (time.monotonic() - begun)
        seconds = min(left, TIMEOUT_S.get(row.split()[0], USUAL_TIMEOUT_S))
        if left < 30:
            result = {
                "status": "not started",
                "reason": f"the budget of {options.budget_s:.0f} s is spent",
                "wall_s": 0,
            }
        else:
            result = measure(row, options, known, seconds)
        with (options.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**result, **known, "row": row}) + "\n")
        counts[result["status"]] = counts.get(result["status"], 0) + 1
        print(f"{row}: {result['status']} in {result['wall_s']} s {result['reason']}", flush=True)
    print(f"{counts} in {time.monotonic() - begun:.0f} s; see {options.out}")
    return 1 if counts.get("failed") or counts.get("not started") else 0


if __name__ == "__main__":
    sys.exit(main())
