"""All kinds of input by name, and their shares of a run."""

import importlib
from collections.abc import Iterator
from pathlib import Path

from lightbox.testing.spoiled.inputs import Kind
from lightbox.testing.spoiled.trial import Outcome, run_trial

SHARES = {
    "rows": 30,
    "pictures": 14,
    "dicom": 14,
    "volumes": 12,
    "settings": 10,
    "yaml": 5,
    "weights": 4,
    "carded weights": 3,
    "adapters": 3,
    "runs": 4,
}
"""Parts of the inputs; each takes some milliseconds."""
PLACES = {
    "pictures": "single_images:PICTURE",
    "dicom": "single_images:DICOM",
    "volumes": "single_images:VOLUME",
    "yaml": "settings:YAML",
    "weights": "weights_kinds:MODEL",
    "carded weights": "weights_kinds:CARDED",
    "adapters": "weights_kinds:ADAPTER",
    "runs": "finished_kinds:RUN",
}
VARIANT_EVERY = 40  # rows of one small set are spoiled as often before other rows are drawn


def trial_of(name: str, seed: int, work: Path, change: str | None = None) -> Outcome:
    """Spoil input `seed` of a kind, and judge what is made of it."""
    if name == "rows":
        from lightbox.testing.spoiled.sets import SETS  # noqa: PLC0415  each kind pays for its own imports

        written = [key for key, small in SETS.items() if not small.folder]
        own = run_trial(written[seed % len(written)], seed, work, variant=seed // VARIANT_EVERY // len(written))
        return Outcome(name, seed, f"{own.set}: {own.file}", own.change, own.note, own.verdict, own.detail)
    if name == "settings":
        from lightbox.testing.spoiled.settings import setting_trial  # noqa: PLC0415

        return setting_trial(name, seed, work)
    return kind_of(name).trial(name, seed, work, change)


def kind_of(name: str) -> Kind:
    """The kind of files of a name in `PLACES`."""
    module, _, attribute = PLACES[name].partition(":")
    return getattr(importlib.import_module(f"lightbox.testing.spoiled.{module}"), attribute)


def shared_out(total: int) -> Iterator[tuple[str, int]]:
    """Kind and seed of `total` inputs by their shares, one kind after another, since each imports its own."""
    sum_of_shares = sum(SHARES.values())
    for name, share in SHARES.items():
        for seed in range(max(1, round(total * share / sum_of_shares))):
            yield name, seed
