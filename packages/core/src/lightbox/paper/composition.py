"""From overrides to a configuration, and what a configuration reads, chooses and costs. No torch.

What an experiment is stands in one place, the paper's `claims.py`: `experiment=NAME` on the command line means the
overrides of the arm of that name. Learning rates chosen by tuning stand in `conf/tuned/<name>.yaml`, a map from arm to
rate that `optim.lr` reads; a rate given on the command line still wins.
"""

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightbox import machine, phantom
from lightbox.backbones import weights
from lightbox.config import compose
from lightbox.errors import RequestError
from lightbox.files import digest
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.pruning_config import UNPRUNED
from lightbox.paper.schema import NAME_MAP, PaperConfig
from lightbox.readers import catalog
from lightbox.refusals import read_override
from lightbox.runs.sources import CHOICES

SHOWN_LETTERS = 80
EXPERIMENT = "experiment"
CONFIG = "train"
"""Name of a paper's one YAML file above its presets."""
_READING = (
    "lightbox.readers.catalog",
    "lightbox.readers.leakage",
    "lightbox.readers.splits",
    "lightbox.readers.dicom",
    "lightbox.readers.parquet",
)
_TEXTS = (".json", ".jsonl", ".parquet", ".txt", ".csv", ".xml", ".zip")  # a zip file may hold both
IMAGES = (".png", ".jpg", ".jpeg", ".dcm", ".nii", ".gz", ".tif", ".tiff", ".bmp", ".npz", ".npy")


def resolve(package: str, overrides: Sequence[str], *, is_trained: bool = True) -> Any:
    """Compose a paper's configuration: YAML, preset, the arm's overrides, then those of the command line.

    Args:
        package: of the paper, with `conf/` and `claims.PAPER`.
        overrides: as given, for example ``["preset=quick", "experiment=none", "run.seed=0"]``; the arm left out is the
            paper's `default_arm`.
        is_trained: False scores saved weights as they are, whatever the arm says.

    Raises:
        RequestError: naming the key that is unknown, of a wrong type, absent or impossible, or the unknown arm.
    """
    importlib.import_module(f"{package}.config")  # it registers the schema
    claims = importlib.import_module(f"{package}.claims").PAPER
    names = [override.partition("=")[2] for override in overrides if override.startswith(f"{EXPERIMENT}=")]
    name = names[-1] if names else claims.default_arm
    if name not in claims.arms:
        near = difflib.get_close_matches(name, claims.arms, n=1)
        raise RequestError(
            f"'{EXPERIMENT}={name}'",
            f"The choices are {', '.join(claims.arms)}",
            f"Did you mean {EXPERIMENT}={near[0]}?" if near else "Choose an arm from those",
        )
    own = [f"{EXPERIMENT}={name}", *claims.arms[name].overrides]
    own += [] if is_trained else ["objective.is_trained=false"]
    try:
        # before the user's, so that a value on the command line wins over the arm's
        cfg = compose(package, CONFIG, [*own, *overrides])
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as err:
        words = [word[:SHOWN_LETTERS] for word in (*own, *overrides)]
        reason = err.strerror if isinstance(err, OSError) else " ".join(str(err).split())
        raise RequestError(
            f"A YAML file of {package}.conf, chosen by {' '.join(words)}",
            f"It cannot be read: {reason or type(err).__name__}",
            "Correct the file, or restore it from the repository",
        ) from err
    _check_truths(cfg, overrides)
    return cfg


def _check_truths(cfg: Any, overrides: Sequence[str]) -> None:
    """Refuse a number in the place of true or false, of which any but 0 would come out as true.

    Raises:
        RequestError: naming the setting.
    """
    for override in map(read_override, overrides):
        value, setting = override.value(), cfg
        for name in override.key_or_group.split("."):
            setting = getattr(setting, name, None)
        if isinstance(setting, bool) and isinstance(value, int | float) and value not in (0, 1):
            raise RequestError(
                f"The override '{override.input_line}'",
                f"{override.key_or_group} is true or false, and {value} is neither",
                f"Write {override.key_or_group}=true or {override.key_or_group}=false",
            )


def inputs(cfg: PaperConfig) -> dict[str, str]:
    """What a job reads besides its configuration and the code: digests of data and weights, and the resolved device."""
    if cfg.data.is_phantom:
        read = {"data": phantom.generator_digest()}
    else:
        root = Path(cfg.data.root)
        read = {"data": weights.digest_of_folder(root, suffixes=_TEXTS)}
        if not cfg.is_baseline:
            read["images"] = weights.digest_of_folder(root, suffixes=IMAGES, may_be_empty=True)
    if cfg.is_baseline:
        return read
    read["device"] = "cpu" if cfg.run.device == "cpu" else ", ".join(machine.gpu_names()) or "cpu"
    base = find_pretrained(cfg.model.backbone, cfg.model.backbone_revision)
    read["backbone"] = base.digest()
    if base.adapter is not None:  # a manifest written before a setting existed leaves it to the default of today
        read["adapter"] = digest(base.under(cfg).adapter)
    if base.has_own_tower or not cfg.has_vision:
        return read
    if cfg.model.features:
        features = Path(cfg.model.features)
        read["features"] = weights.digest_of_file(features)
        read["feature_rows"] = weights.digest_of_file(features.with_name(NAME_MAP))
    else:
        read["tower"] = weights.digest_of(cfg.model.tower, revision=cfg.model.tower_revision)
    return read


def chosen(cfg: PaperConfig, *, has_fusion: bool = False) -> tuple[str, ...]:
    """Modules that only some configurations call: the family of the model, adapters, pruning, the reader of the data.

    Args:
        cfg: of the job.
        has_fusion: True where the paper opens a text model itself, beside a tower; see `learner.open_learner`.
    """
    modules: list[str] = [] if cfg.data.is_phantom else [*_READING, catalog.find(cfg.data.source).module]
    if cfg.is_baseline:
        return tuple(modules)
    base = find_pretrained(cfg.model.backbone, cfg.model.backbone_revision)
    if base.name and base.family is None:  # a hub id: its family is known once its config.json is here
        modules += ["lightbox.backbones.loading", *CHOICES["lightbox.backbones.loading"]]
    elif base.family is not None and (base.has_own_tower or not has_fusion):
        modules += ["lightbox.backbones.loading", base.family.module]
    if cfg.adapter.kind != "none" or cfg.train.checkpoint_layers or base.adapter is not None:
        modules += ["lightbox.adapters.attach", "lightbox.adapters.artifact", "lightbox.backbones.quantisation"]
    if cfg.has_vision and not cfg.model.tower.startswith(weights.TINY):
        modules.append("lightbox.backbones.detr")
    pruning = getattr(cfg, "pruning", None)  # a group that not every paper has
    if pruning is not None and pruning.method != UNPRUNED:
        modules += [*CHOICES["lightbox.paper.pruned"], *CHOICES["lightbox.paper.pruned_turns"]]
    return tuple(modules)


def estimate(cfg: PaperConfig, *, models: int = 1) -> dict[str, float]:
    """Rough cost of a job on one CPU core: minutes of wall time and GiB of memory. A worker imports torch once.

    Scaled from the weights' size: 6 floating-point operations per parameter and trained token, at 50 GFLOP/s.

    Args:
        cfg: of the job.
        models: trainings that it makes.
    """
    if cfg.is_baseline:
        return {"minutes": 0.02, "mem_gib": 0.3}
    size_gib = weights.size_bytes(cfg.model.backbone) / 2**30 if cfg.model.backbone else 0.0
    parameters = size_gib * 2**30 / 4
    tokens_per_item = 0.5 * (cfg.data.source_tokens + cfg.target_tokens)
    trained = cfg.optim.steps * cfg.optim.batch_size * models if cfg.objective.is_trained else 0
    flop = parameters * tokens_per_item * (6 * trained + 6 * cfg.data.n_test)
    images_gib = (cfg.data.n_train + cfg.data.n_test) / cfg.data.questions_per_case * 64 * 128 * 4 / 2**30
    return {"minutes": round(0.1 + flop / 50e9 / 60, 2), "mem_gib": round(0.8 + 8 * size_gib + 2 * images_gib, 2)}
