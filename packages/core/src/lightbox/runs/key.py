"""The identity of a run: everything that decides its numbers, and the key that names it. No torch.

`train` and `reproduce` name a run by the same key, so that equal keys are one run, whatever command asked for it;
an edit of what decides its numbers gives another key.
"""

import importlib.metadata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightbox.files import digest
from lightbox.runs.folders import flatten
from lightbox.runs.sources import code_digests

KEY_LENGTH = 20
WITHOUT_EFFECT = (
    "run.out",  # where files go
    "run.preset",  # a label; the sizes that it sets are keys of their own
    "run.save_every_steps",  # a resumed run has the bits of an uninterrupted one
    "run.log_every_steps",
    "run.resume",
    "tuned",  # rates of every arm; this arm's is optim.lr
    "needs",  # folders; the runs in them are named by their keys
)
"""Config keys that cannot change a number. `run.threads` and `run.device` do: other threads, other bits."""
COMPUTING = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "bitsandbytes",
    "accelerate",
    "numpy",
    "pillow",
    "sacrebleu",
    "rouge-score",
)
"""Distributions that compute what is trained or scored."""
OLDER = "it was made by an older Lightbox, which did not record what it was made from"


@dataclass(frozen=True)
class Identity:
    """What decides the numbers of a run.

    Args:
        config: the resolved configuration, flat, without what has no effect.
        inputs: digests of data, images and weights, and the device, by name.
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
    return Identity(
        _effective(config), dict(inputs), code_digests(package, chosen), computing_versions(), dict(needs or {})
    )


def computing_versions() -> dict[str, str]:
    """Installed version of each of `COMPUTING`; "" where it is not installed."""
    installed = {}
    for name in COMPUTING:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = ""
    return installed


def differences(record: Mapping[str, Any], identity: Identity) -> list[str]:
    """What decides numbers and differs between a finished run and a run of today, in brief; [] where nothing does.

    Args:
        record: `job.json` of the finished run.
        identity: of the run of today.
    """
    if not {"config", "inputs", "modules", "computing", "needs"} <= record.keys():
        return [OLDER]
    then = _effective(record["config"])
    pairs = _pairs(then, identity.config)
    changes = [f"{key} {old} -> {new}" for key, old, new in pairs]
    for key, old, new in _pairs(record["modules"], identity.modules):
        changes.append(f"module {key} " + ("is new" if old is None else "is gone" if new is None else "changed"))
    changes += [f"{key} changed" for key, _, _ in _pairs(record["inputs"], identity.inputs)]
    changes += [
        f"{key} {old or 'absent'} -> {new or 'absent'}"
        for key, old, new in _pairs(record["computing"], identity.versions)
    ]
    return changes + [f"the run of arm {arm} changed" for arm, _, _ in _pairs(record["needs"], identity.needs)]


def _effective(config: Mapping[str, Any]) -> dict[str, str]:
    flat = flatten(config)
    return {
        key: value
        for key, value in flat.items()
        if key not in WITHOUT_EFFECT and key.split(".")[0] not in WITHOUT_EFFECT
    }


def _pairs(then: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str | None, str | None]]:
    """(key, then, now) of each key whose values differ, None where one side lacks it."""
    return [
        (key, then.get(key), now.get(key)) for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)
    ]
