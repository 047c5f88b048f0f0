"""MedThink's entries: train, evaluate, predict, and `run_job` for claims.

The configuration is accepted before anything heavy is imported, so a wrong key is refused in about a second; this is
the one module with inner imports. `conf/` is composed without Hydra's job folder, so nothing is written outside
`run.out`.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightbox.cli import guard, multirun
from lightbox.config import compose
from lightbox.errors import RequestError
from lightbox.files import digest, to_plain
from lightbox.paths import default_out
from lightbox.runs import folders
from medthink import checks
from medthink.config import Config, inputs, resolve

PAPER = "medthink"
_log = logging.getLogger("medthink")


def train(argv: Sequence[str] | None = None) -> None:
    """Train and score one arm: Hydra overrides in, a folder under `<out>/runs` out.

    Raises:
        SystemExit: with 2 for a wrong request and 1 for failed work, after the three sentences.
    """
    _entry(argv, "train")


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Score a saved model on any split; `model.backbone` is the `model` folder of a run."""
    _entry(argv, "eval")


def predict(
    *,
    image: Path,
    question: str,
    options: Sequence[str] = (),
    run: Path | None = None,
    box: tuple[float, float, float, float] | None = None,
    out: Path | None = None,
) -> dict[str, object]:
    """Answer one question about one image.

    Args:
        image: PNG, JPEG or DICOM file.
        question: text.
        options: choices of a closed question.
        run: folder of a finished training; None takes the newest under the default output folder.
        box: not used by this paper; anything but None is refused.
        out: file for the image with the answer under it.

    Raises:
        RequestError: a box, no finished run, or a run that cannot see images.
    """
    if box is not None:
        raise RequestError(f"--box is {box}", "MedThink answers about the whole image", "Leave --box out")
    folder = run or newest_run(default_out())
    from medthink import predict as prediction

    answer = prediction.predict(image, question, folder=folder, options=options)
    if out is not None:
        from medthink.overlay import draw_answer

        draw_answer(image, question, answer, out=out)
    return answer


def run_job(directory: Path, overrides: Sequence[str], needs: Mapping[str, Path]) -> None:
    """Run one arm of one seed for a claim; `directory` is `<out>/jobs/<key>`."""
    cfg = resolve(overrides)
    if cfg.is_baseline:
        from medthink import baselines

        baselines.run(cfg, directory)
        return
    from medthink import runs

    runs.run(cfg, directory, out=directory.parents[1], needs=needs, keeps_model=False)


def newest_run(out: Path) -> Path:
    """The MedThink training that finished last under `<out>/runs`.

    Raises:
        RequestError: where there is none.
    """
    cards = [path for path in (out / "runs").glob("*/job.json") if (path.parent / "model").is_dir()]
    found = [path for path in cards if json.loads(path.read_text(encoding="utf-8")).get("paper") == PAPER]
    if not found:
        raise RequestError(
            f"There is no finished MedThink training under '{out / 'runs'}'",
            "A prediction needs a trained model",
            "Run `lightbox train medthink preset=quick` first, or name a run with --run",
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent


def _entry(argv: Sequence[str] | None, mode: str) -> None:
    level = logging.INFO if is_first_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    words = list(sys.argv[1:] if argv is None else argv)
    code = guard(lambda: _sweep(words, mode) if multirun.is_multirun(words) else _run(words, mode))
    if code:
        raise SystemExit(code)


def _sweep(words: list[str], mode: str) -> None:
    accept, run = partial(_accept, mode=mode), partial(_run, mode=mode, is_indexed=False)
    multirun.launch(multirun.Entry(PAPER, mode, accept, run, index_run), words)


def _accept(overrides: list[str], mode: str) -> Config:
    cfg: Config = compose(PAPER, mode, overrides)
    if mode == "eval" and not any(override.startswith("model.backbone=") for override in overrides):
        raise RequestError(
            "model.backbone is not given", "There is no model to score", "Give model.backbone=RUN/model of a training"
        )
    checks.check(cfg)
    return cfg


def _run(overrides: list[str], mode: str, *, is_indexed: bool = True) -> Path:
    cfg = _accept(overrides, mode)
    used = inputs(cfg)
    out = Path(cfg.run.out) if cfg.run.out else default_out()
    folder = out / "runs" / f"{cfg.arm}-{_key(cfg, used)}"
    if cfg.run.resume and (folder / "job.json").is_file():
        _log.info("%s is finished already; run.resume=false trains anew", folder)
    else:
        _make(cfg, folder, out=out, overrides=overrides, used=used)
        if is_indexed and is_first_process():
            index_run(out, folder)
    if is_first_process():
        _show(folder)
    return folder


def _make(cfg: Config, folder: Path, *, out: Path, overrides: list[str], used: dict[str, str]) -> None:
    started = time.monotonic()
    if is_first_process():
        (folder / "job.json").unlink(missing_ok=True)
    if cfg.is_baseline:
        from medthink import baselines

        if is_first_process():
            baselines.run(cfg, folder)
    else:
        from medthink import runs, stages

        needs = stages.earlier_runs(cfg.needs)
        runs.run(cfg, folder, out=out, needs=needs, keeps_model=cfg.objective.is_trained)
    if not is_first_process():
        return
    from lightbox.files import write_json

    card = {"key": folder.name, "paper": PAPER, "arm": cfg.arm, "seed": cfg.run.seed, "preset": cfg.run.preset}
    card |= {"overrides": overrides, "config": to_plain(cfg), "inputs": used}
    write_json(folder / "job.json", card | {"wall_s": round(time.monotonic() - started, 1), "finished": True})


def is_first_process() -> bool:
    """True in the one that writes, where `accelerate launch` started several; known without torch."""
    return os.environ.get("RANK", "0") == "0"


def index_run(out: Path, folder: Path) -> None:
    """Put a finished run into the MLflow index of its output folder."""
    from lightbox.runs import index

    tracker = index.open_tracker(out)
    tracker.single(folder)
    tracker.close()


def _key(cfg: Config, used: dict[str, str]) -> str:
    plain = to_plain(cfg)
    plain["run"] = {name: value for name, value in plain["run"].items() if name not in ("out", "resume")}
    return digest([plain, used])[:12]


def _show(folder: Path) -> None:
    """Print the means of the scores beside the baselines and, for real data, what its splits share."""
    console = Console()
    table = Table(title=str(folder))
    for title in ("condition / metric", "mean"):
        table.add_column(title)
    scores = folders.read_scores(folder)
    for name, mean in folders.mean_scores(scores).items() if scores is not None else ():
        table.add_row(name, f"{mean:.4f}")
    card = folders.read_card(folder)
    for name, value in card.get("baselines", {}).items():
        table.add_row(f"baseline / {name}", f"{value:.4f}")
    console.print(table)
    for sentence in card.get("leaks", ()):
        console.print(f"Split: {sentence}", markup=False)
