"""`python -m PAPER train --multirun key=a,b ...`: one run for each combination, started by a launcher of Hydra.

Every combination is accepted by the paper before the first run starts, so a wrong key is refused in seconds. Each run
is the same call as a single one. The runs write their own folders only; the MLflow index is written here, after them,
as one process at a time may. What Hydra and the launcher write lies in `<out>/multirun/<time>`.
"""

import importlib.util
import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from lightbox import refusals
from lightbox.errors import LightboxError, RequestError, WorkError
from lightbox.files import digest, to_plain
from lightbox.paper.composition import CONFIG
from lightbox.paths import default_out

FLAGS = ("--multirun", "-m")
LAUNCHER = "hydra/launcher="
PLUGINS = {
    "basic": "hydra",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
}

logger = logging.getLogger("lightbox.multirun")


@dataclass(frozen=True)
class Entry:
    """What a paper brings to a sweep; its functions lie in a module, so that other processes find them.

    Args:
        package: the paper's package, whose `conf/` is composed.
        accept: overrides to configuration; refuses what cannot work, without torch.
        run: overrides to the folder of a finished run; writes no index.
        index: output folder and run folder; puts the run into the MLflow index.
    """

    package: str
    accept: Callable[[list[str]], Any]
    run: Callable[[list[str]], Path]
    index: Callable[[Path, Path], None]


@dataclass(frozen=True)
class Ended:
    """How one run of a sweep ended: a folder, or an error."""

    overrides: tuple[str, ...]
    folder: Path | None = None
    error: LightboxError | None = None


@dataclass(frozen=True)
class Task:
    """What Hydra calls in each job, in whatever process; the configuration that it composed serves no purpose here."""

    run: Callable[[list[str]], Path]

    def __call__(self, cfg: Any) -> Ended:
        from hydra.core.hydra_config import HydraConfig

        overrides = tuple(HydraConfig.get().overrides.task)
        try:
            return Ended(overrides, folder=self.run(list(overrides)).resolve())
        except LightboxError as err:
            return Ended(overrides, error=err)
        except Exception as err:  # a bug in one run must not take the others along; the log keeps the traceback
            logger.exception("run %s", " ".join(overrides))
            do = "Read the traceback in the log of this run; the same command keeps what is finished"
            return Ended(overrides, error=WorkError(" ".join(overrides), f"It met {type(err).__name__}: {err}", do))


def is_multirun(argv: Sequence[str]) -> bool:
    """True where the arguments ask for a sweep."""
    return any(flag in argv for flag in FLAGS)


def launch(entry: Entry, argv: Sequence[str]) -> list[Path]:
    """Run a sweep and index its runs; their folders, in the order of the sweep.

    Args:
        entry: the paper.
        argv: flag, overrides (a comma separates values), and settings of the launcher.

    Raises:
        RequestError: a combination that the paper refuses, a launcher that is unknown or not installed, two output
            folders, two combinations that are one run, or several processes that were launched together.
        WorkError: where runs failed, after the others have ended and are indexed.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        why = "Each of the processes that were launched together would start every run of the sweep"
        raise RequestError("--multirun under a launcher of processes", why, "Start the sweep with `python -m` alone")
    words = [word for word in argv if word not in FLAGS]
    settings = [word for word in words if word.startswith(("hydra.", "hydra/"))]
    check_settings(settings)
    jobs = combinations([word for word in words if word not in settings])
    out = _output_folder(jobs, [entry.accept(job) for job in jobs])
    place = out / "multirun" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"
    ended = _run_all(entry, [*words, *_places(place.absolute())])
    for one in ended:
        if one.folder is not None:
            entry.index(out, one.folder)
            typer.echo(f"{' '.join(one.overrides)}: {one.folder}")
    failed = [one for one in ended if one.error is not None]
    if failed:
        named = "; ".join(" ".join(one.overrides) for one in failed[:3]) + "; ..." * (len(failed) > 3)
        first = failed[0].error
        assert first is not None
        raise WorkError(f"{len(failed)} of {len(jobs)} runs failed: {named}", f"{first.given} {first.why}", first.do)
    return [one.folder for one in ended if one.folder is not None]


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run: every value of every sweep with every other one, the last sweep changing fastest.

    Raises:
        RequestError: for an override that Hydra cannot read, or an interval, which has no list of values.

    Example:
        >>> combinations(["preset=smoke", "run.seed=0,1"])
        [['preset=smoke', 'run.seed=0'], ['preset=smoke', 'run.seed=1']]
    """
    choices = []
    for override in overrides:
        sweep = refusals.read_sweep(override)
        choices.append([override] if sweep is None else sweep)
    return [list(job) for job in itertools.product(*choices)]


def check_settings(settings: Sequence[str]) -> None:
    """Raise `RequestError` unless Hydra's own settings choose a launcher that is installed, or set its options."""
    for word in settings:
        if not word.startswith((LAUNCHER, "hydra.launcher.")):
            why = "Of Hydra's own settings a sweep takes those of the launcher; folders and logs follow run.out"
            raise RequestError(f"The override '{word}'", why, "Give hydra/launcher=NAME or hydra.launcher.KEY=VALUE")
    for name in (word.removeprefix(LAUNCHER) for word in settings if word.startswith(LAUNCHER)):
        given = f"The override '{LAUNCHER}{name}'"
        if name not in PLUGINS:
            raise RequestError(given, f"The launchers are {', '.join(PLUGINS)}", f"Write {LAUNCHER}joblib")
        if not _is_installed(PLUGINS[name]):
            why = f"The package {PLUGINS[name].replace('hydra_plugins.', '').replace('_', '-')} is not installed here"
            raise RequestError(given, why, "Install the extra 'launchers' of lightbox-core (`uv sync` does)")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that would hold it
        return False


def _output_folder(jobs: Sequence[list[str]], configurations: Sequence[Any]) -> Path:
    """The one output folder of a sweep whose runs all differ."""
    outs = sorted({str(cfg.run.out) for cfg in configurations})
    if len(outs) > 1:
        why = "The runs of a sweep share one output folder, its index and its caches"
        raise RequestError(f"run.out takes the values {', '.join(outs)}", why, "Give run.out one value")
    seen: dict[str, list[str]] = {}
    for job, cfg in zip(jobs, configurations, strict=True):
        same = seen.setdefault(digest(to_plain(cfg)), job)
        if same is not job:
            given = f"The sweep holds '{' '.join(same)}' and '{' '.join(job)}'"
            raise RequestError(given, "Both are the same run, and would write one folder", "Name each value once")
    return Path(outs[0]) if outs[0] else default_out()


def _places(place: Path) -> list[str]:
    """Overrides that keep everything that Hydra and the launchers write inside one folder."""
    quoted = str(place).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.sweep.dir='{quoted}'", "hydra.sweep.subdir=${hydra.job.num}", "hydra.output_subdir=null"]


def _launcher_keys(overrides: Sequence[str]) -> list[str]:
    """Settings that the chosen launcher has."""
    from hydra.core.config_store import ConfigStore

    names = [word.removeprefix(LAUNCHER) for word in overrides if word.startswith(LAUNCHER)]
    node = ConfigStore.instance().repo["hydra"]["launcher"][f"{(names or ['basic'])[-1]}.yaml"].node
    return [f"hydra.launcher.{key}" for key in node if key != "_target_"]


def _run_all(entry: Entry, overrides: list[str]) -> list[Ended]:
    """Hand the sweep to Hydra.

    Raises:
        RequestError: a setting that the launcher does not know.
        WorkError: where a process of the launcher died.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with hydra.initialize_config_module(
        f"{entry.package}.conf", version_base="1.3", job_name=entry.package.rpartition(".")[2]
    ):
        machinery = GlobalHydra.instance().hydra
    assert machinery is not None
    try:  # outside the block, as each run initialises Hydra for itself
        batches = machinery.multirun(CONFIG, Task(entry.run), overrides)
    except (HydraException, OmegaConfBaseException) as err:
        raise refusals.refusal(err, keys=_launcher_keys(overrides), groups=()) from err
    except RuntimeError as err:  # joblib's and submitit's errors for a process that is gone
        raise WorkError(
            "The sweep did not end",
            f"A process of the launcher died: {str(err).strip().splitlines()[0] if str(err).strip() else err!r}",
            "The same command keeps what is finished and goes on; fewer runs at once take less memory",
        ) from err
    return [job.return_value for batch in batches for job in batch]
