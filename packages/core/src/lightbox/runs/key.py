"""The identity of a run: everything that decides its numbers, and the key that names it. No torch.

`train` and `reproduce` name a run by the same key, so that equal keys are one run, whatever command asked for it;
an edit of what decides its numbers gives another key.
"""

import importlib.metadata
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lightbox.files import digest
from lightbox.runs.folders import flatten
from lightbox.runs.sources import closure, digests_of, libraries_of

KEY_LENGTH = 20
WITHOUT_EFFECT = (
    "run.out",  # where files go
    "run.preset",  # a label; the sizes that it sets are keys of their own
    "run.save_every_steps",  # a resumed run has the bits of an uninterrupted one
    "run.log_every_steps",
    "run.resume",
    "train.workers",  # who prepares a batch; its bits are the same
    "experiment",  # a label; what an arm sets is in keys of their own
    "tuned",  # rates of every arm; this arm's is optim.lr
    "needs",  # folders; the runs in them are named by their keys
)
"""Config keys that cannot change a number. `run.threads` and `run.device` do: other threads, other bits."""
COMPUTING = {
    "torch": ("torch", "xformers", "flash-attn"),
    "transformers": ("transformers", "tokenizers"),
    "tokenizers": ("tokenizers",),
    "jinja2": ("jinja2",),  # fills chat templates
    "peft": ("peft",),
    "bitsandbytes": ("bitsandbytes",),
    "accelerate": ("accelerate",),
    "numpy": ("numpy",),
    "PIL": ("pillow",),
    "scipy": ("scipy",),  # finds the regions of maps
    "nibabel": ("nibabel",),  # reads volumes, slice by slice
    "pydicom": ("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"),
    "sacrebleu": ("sacrebleu",),
    "rouge_score": ("rouge-score", "nltk"),
}
"""What a module imports -> the distributions that then compute what is trained or scored."""
SWITCHES = {
    "ATEN_CPU_CAPABILITY": "",
    "ONEDNN_MAX_CPU_ISA": "",
    "DNNL_MAX_CPU_ISA": "",
    "ONEDNN_DEFAULT_FPMATH_MODE": "",
    "DNNL_DEFAULT_FPMATH_MODE": "",
    "MKL_CBWR": "",
    "MKL_ENABLE_INSTRUCTIONS": "",
    "OPENBLAS_CORETYPE": "",
    "NPY_DISABLE_CPU_FEATURES": "",
    "NVIDIA_TF32_OVERRIDE": "",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what `train.seeds` sets where nobody does
}
"""Environment variables that change bits -> the value that stands for none. Thread counts are in `run.threads`."""
ABSENT = "absent"
OLDER = "it was made by an older Lightbox, which did not record what it was made from"


@dataclass(frozen=True)
class Identity:
    """What decides the numbers of a run.

    Args:
        config: the resolved configuration, flat, without what has no effect.
        inputs: digests of data, images and weights, the device, and the switches of the environment, by name.
        modules: digest of the code by module, see `sources.code_digests`.
        versions: of the distributions that compute.
        needs: keys of the runs that it reads, by arm.
    """

    config: dict[str, str]
    inputs: dict[str, str]
    modules: dict[str, str]
    versions: dict[str, str]
    needs: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The first 20 hex digits of a SHA-256 of all of it."""
        return digest(self)[:KEY_LENGTH]

    @property
    def record(self) -> dict[str, Any]:
        """What a run's `job.json` keeps of it, beside the configuration in full."""
        return {
            "inputs": self.inputs,
            "modules": self.modules,
            "computing": self.versions,
            "needs": self.needs,
            "source": digest(self.modules),
        }


def identify(
    package: str,
    config: Mapping[str, Any],
    *,
    inputs: Mapping[str, str],
    needs: Mapping[str, str] | None = None,
    chosen: Collection[str] = (),
) -> Identity:
    """The identity of a run of a paper.

    Args:
        package: importable name of the paper.
        config: resolved configuration, plain.
        inputs: digests by name.
        needs: keys of the runs that it reads, by arm.
        chosen: modules that the configuration asks for, see `sources.closure`.
    """
    modules = closure(package, chosen)
    versions = computing_versions(libraries_of(modules))
    return Identity(effective(config), {**inputs, **switches()}, digests_of(modules), versions, dict(needs or {}))


def recorded(record: Mapping[str, Any]) -> Identity:
    """The identity that a `job.json` records; its key is the run's, or the record is not of that run.

    Raises:
        KeyError: where a part of it is not recorded.
    """
    parts = (record[name] for name in ("inputs", "modules", "computing", "needs"))
    return Identity(effective(record["config"]), *parts)


def switches() -> dict[str, str]:
    """Those of `SWITCHES` that this process has set to something else."""
    values = {name: os.environ.get(name, unset) for name, unset in SWITCHES.items()}
    return {name: value for name, value in values.items() if value not in ("", SWITCHES[name])}


def computing_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Installed version of each distribution of `COMPUTING` that some imported names call for; "" is not installed."""
    return {name: _version(name) for name in sorted(n for library in libraries for n in COMPUTING.get(library, ()))}


@cache  # reading a distribution's metadata takes milliseconds, and planning asks for every arm
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def effective(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration, flat, without what cannot change a number."""
    flat = flatten(config)
    return {key: text for key, text in flat.items() if not {key, key.split(".")[0]}.intersection(WITHOUT_EFFECT)}


def differences(record: Mapping[str, Any], identity: Identity) -> list[str]:
    """What decides numbers and differs between a finished run and a run of today, in brief; [] where nothing does.

    Args:
        record: `job.json` of the finished run.
        identity: of the run of today.
    """
    if not {"config", "inputs", "modules", "computing", "needs"} <= record.keys():
        return [OLDER]
    changes = [f"{key} {old} -> {new}" for key, old, new in _pairs(effective(record["config"]), identity.config)]
    for module, old, new in _pairs(record["modules"], identity.modules):
        changes.append(f"module {module} " + ("is new" if old == ABSENT else "is gone" if new == ABSENT else "changed"))
    changes += [f"input {name} changed" for name, _, _ in _pairs(record["inputs"], identity.inputs)]
    changes += [f"{name} {old} -> {new}" for name, old, new in _pairs(record["computing"], identity.versions)]
    return changes + [f"the run of arm {arm} changed" for arm, _, _ in _pairs(record["needs"], identity.needs)]


def _pairs(then: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(key, then, now) of each key whose values differ, `ABSENT` where one side lacks it."""
    names = sorted(then.keys() | now.keys())
    pairs = [(name, then.get(name) or ABSENT, now.get(name) or ABSENT) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]
