"""Facts about this machine that go beside every number: commit, hardware, versions, disk, cores. No torch."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import psutil

from lightbox.errors import RequestError
from lightbox.paths import repo_root

RECORDED = ("torch", "transformers", "peft", "numpy", "tokenizers", "safetensors", "mlflow", "hydra-core")
_GIB = 1024**3


def commit(root: Path | None = None) -> str:
    """First 12 digits of the commit of `root` (None: the checkout), with "-dirty" where tracked files differ.

    Published results do not count: a run that publishes changes them, and the next one runs the same code.

    Returns "unknown" outside a git checkout, or where git is not installed.
    """
    try:
        root = root or repo_root()
    except RequestError:
        return "unknown"
    head = _output(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"])
    if not head:
        return "unknown"
    tracked = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results"]
    changed = _output(["git", "-C", str(root), *tracked])
    return head + ("-dirty" if changed else "")


@cache
def hardware() -> str:
    """One line: processor, cores this process may use, memory, and the GPUs that nvidia-smi names."""
    parts = [cpu_name(), f"{cores()} cores", f"{memory_gib():.0f} GiB", *gpu_names()]
    return ", ".join(parts)


@cache
def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor, or the architecture where the system does not tell.

    A name without a number, such as a cloud's "AMD EPYC", gets those of family and model, which round differently.

    Example:
        >>> cpu_name(Path("nowhere")) == (platform.processor() or platform.machine())
        True
    """
    if not info.is_file():
        return platform.processor() or platform.machine()
    first, _, _ = info.read_text(encoding="utf-8", errors="replace").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    name = facts.get("model name", "")
    numbers = [f"{key.removeprefix('cpu ')} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    if name and numbers and not any(sign.isdigit() for sign in name):
        name += f" ({', '.join(numbers)})"
    return name or platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def memory_gib() -> float:
    """Physical memory in GiB."""
    return psutil.virtual_memory().total / _GIB


@cache
def gpu_names() -> tuple[str, ...]:
    """Each NVIDIA GPU as "name, memory", from nvidia-smi; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ()
    table = _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    return tuple(line.strip() for line in table.splitlines() if line.strip())


def versions(names: Sequence[str] = RECORDED) -> dict[str, str]:
    """Installed version of each distribution, without importing it; "" where it is not installed."""
    installed = {"python": platform.python_version()}
    for name in names:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = ""
    return installed


def free_disk_gib(path: Path) -> float:
    """Free space in GiB on the disk that holds `path`, or would hold it once created."""
    path = path.absolute()
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(nearest).free / _GIB


def _output(command: list[str]) -> str:
    """Standard output of a short command, stripped; "" where it is absent, fails, or takes over 10 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
