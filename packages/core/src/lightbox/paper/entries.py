"""The entries of a paper from one factory: train, evaluate, predict, and `run_job` for claims.

The configuration is accepted before anything heavy is imported, so a wrong key is refused in about a second: this is
the one module of the kit with inner imports, and it loads the paper's modules by name when they are needed.

| module of the paper | what is called |
|---|---|
| `config` | `Config`, `resolve`, `inputs`, `chosen` |
| `train` | `run(cfg, base, folder, *, cache, needs, keeps_model, memory_advice)` |
| `evaluate` | `run_baseline(cfg, folder)`, without torch |
| `predict` | `load_run(folder)`, `predict(image, question, *, folder, options, opened)` |

Where a paper takes regions, the image that its `predict` is given is an `AskedImage`.
"""

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from lightbox import files, machine
from lightbox.errors import RequestError, WorkError, guard
from lightbox.paper import forecast, multirun
from lightbox.paper.composition import resolve
from lightbox.paper.overlay import draw_prediction
from lightbox.paper.pretrained import Pretrained, check_pretrained, check_towers, find_pretrained
from lightbox.paper.schema import PaperConfig
from lightbox.paths import default_out
from lightbox.runs import folders
from lightbox.runs.finished import is_finished, sweep
from lightbox.runs.index_place import known_run_ids
from lightbox.runs.key import Identity, differences, identify

if TYPE_CHECKING:
    import numpy as np

    from lightbox.paper.asked_images import AskedImage, Region
    from lightbox.paper.pixel_prompts import Prompt

SHOWN = 4
EVAL_VALUES = {"model.backbone": "RUN/model", "needs": "[RUN]"}
"""What `Entries.eval_key` is set to, for RUN the folder of a training."""
PICTURES = "pictures"
"""Key of a prediction under which a paper hands over images by name; they are written to files and not printed."""
VOLUMES = "volumes"
"""Likewise of NIfTI images."""
SLICE = "slice"
"""Key of a prediction about a slice of a volume: which one; and the name of its picture."""
_log = logging.getLogger(__name__)

Check = Callable[[Any, Pretrained], None]
"""Refuses what cannot work with the weights that a configuration names, before anything heavy is imported."""


@dataclass(frozen=True)
class Entries:
    """What a paper's `cli` module offers.

    Args:
        package: importable name of the paper.
        check: the paper's own refusals, beside those of the kit; None has none.
        takes_regions: True where `predict` has the argument `regions`, and is shown an `AskedImage`: maybe a slice.
        shows_attention: True where `predict` has the argument `attention`, and can draw where the model looked.
        eval_key: config key that names the saved model which `evaluate` scores.
        example: a question that the tiny model knows the words of; the page of `lightbox view` begins with it.
    """

    package: str
    check: Check | None = None
    takes_regions: bool = False
    shows_attention: bool = False
    eval_key: str = "model.backbone"
    example: str = ""

    def train(self, argv: Sequence[str] | None = None) -> None:
        """Train and score one arm: Hydra overrides in, a folder under `<out>/runs` out.

        Raises:
            SystemExit: with 2 for a wrong request and 1 for failed work, after the three sentences.
        """
        self._enter(argv, "train")

    def evaluate(self, argv: Sequence[str] | None = None) -> Path | None:
        """Score a saved model on any split; `model.backbone` is the `model` folder of a run.

        Returns:
            The folder of the scores; None after a sweep, which has one a run.
        """
        return self._enter(argv, "eval")

    def main(self) -> None:
        """Run `python -m PAPER train|eval ...`, the form for `accelerate launch -m`; exit 2 where it is neither."""
        commands = {"train": self.train, "eval": self.evaluate}
        if len(sys.argv) < 2 or sys.argv[1] not in commands:
            usage = f"Usage: python -m {self.package} train|eval [key=value ...]"
            Console(stderr=True).print(usage, markup=False)
            raise SystemExit(2)
        commands[sys.argv[1]](sys.argv[2:])

    def predict(
        self,
        *,
        image: Path,
        question: str,
        options: Sequence[str] = (),
        run: Path | None = None,
        regions: "Sequence[Region]" = (),
        slice_name: str = "",
        out: Path | None = None,
        attention: bool = False,
    ) -> dict[str, object]:
        """Answer one question about one image.

        Args:
            image: PNG, JPEG or DICOM file; also NIfTI where the paper takes regions.
            question: text.
            options: choices of a closed question.
            run: folder of a finished training; None takes the newest under the default output folder.
            regions: that the question means, in its order; refused where the paper answers about the whole image.
            slice_name: of a NIfTI volume, such as axial/40, see `lightbox.readers.cuts.open_cut`.
            out: file for the image with the answer under it; images that the model was shown on the way, and masks, are
                written beside it.
            attention: also draw where the model looked, as one of these; another forward.

        Raises:
            RequestError: regions, a slice, attention or a picture that the paper has not, an image or a region that
                cannot be read, no finished run, or a run that cannot see images.
        """
        self._check_asked(regions, slice_name, attention=attention, out=out)
        folder = run or newest_training(default_out(), self.package)
        self._check_own(folder)
        from lightbox.paper.asked_images import check_whole, open_image, read_regions

        check_whole(image)
        opened: AskedImage | None = None
        more: dict[str, Any] = {"attention": True} if attention else {}
        if self.takes_regions:
            opened = open_image(image, slice_name)
            more["regions"] = read_regions(regions, opened)
        shown = image if opened is None else opened
        prediction = self._module("predict").predict(shown, question, folder=folder, options=options, **more)
        pictures, volumes = prediction.pop(PICTURES, {}), prediction.pop(VOLUMES, {})
        if opened is not None and opened.cut is not None:
            prediction[SLICE] = opened.cut.name
            pictures = {SLICE: Image.fromarray(opened.pixels), **pictures}  # a mask as a region can be drawn on it
        if out is None:
            return prediction
        out.parent.mkdir(parents=True, exist_ok=True)
        paths = {name: beside(out, name, ".png") for name in pictures}
        for name, picture in pictures.items():
            picture.save(paths[name])
        draw_prediction(paths.get(SLICE, image), question, prediction, out=out)
        prediction |= {f"{name} is shown in": str(path) for name, path in paths.items()}
        for name, volume in volumes.items():
            path = beside(out, name, ".nii.gz")
            volume.to_filename(path)
            prediction[f"{name} lies in"] = str(path)
        return prediction

    def _check_asked(self, regions: "Sequence[Region]", slice_name: str, *, attention: bool, out: Path | None) -> None:
        if regions and not self.takes_regions:
            from lightbox.paper.asked_images import option_of

            shown = " ".join(option_of(region) for region in regions)
            what = option_of(regions[0]).split(" ")[0]
            raise RequestError(
                f"{shown} is given", f"{self.package} answers about the whole image", f"Leave {what} out"
            )
        if slice_name and not self.takes_regions:
            raise RequestError(
                f"--slice is '{slice_name}'",
                f"{self.package} reads PNG, JPEG and DICOM files, and no volumes",
                "Save the slice as PNG, and leave --slice out",
            )
        if attention and not self.shows_attention:
            raise RequestError("--attention is set", f"{self.package} draws no attention", "Leave --attention out")
        if attention and out is None:
            raise RequestError(
                "--attention is set without --out", "A picture has to lie somewhere", "Name a PNG file with --out"
            )
        if out is not None and out.suffix.lower() != ".png":  # said again there, when the model has answered
            raise RequestError(f"--out is '{out}'", "The picture is written as PNG", "Name a file that ends in .png")

    def open_run(self, folder: Path) -> Any:
        """Open a finished training, to be asked by `ask` again and again.

        Raises:
            RequestError: no finished run, one of another paper, or one that cannot see images.
        """
        self._check_own(folder)
        return self._module("predict").load_run(folder)

    def ask(
        self,
        opened: Any,
        pixels: "np.ndarray",
        question: str,
        *,
        folder: Path,
        options: Sequence[str] = (),
        region: "Prompt | None" = None,
    ) -> dict[str, Any]:
        """Answer one question about pixels, with all that the paper can draw of it.

        Args:
            opened: what `open_run` gave for the folder.
            pixels: uint8, h w or h w 3.
            question: text.
            folder: of the run.
            options: choices of a closed question.
            region: that the question means; refused where the paper answers about the whole image.

        Returns:
            What the paper's `predict` returns, its pictures under `PICTURES`.

        Raises:
            RequestError: a region that the paper does not take, and what `predict` refuses.
        """
        if region is not None and not self.takes_regions:
            raise RequestError(
                f"A region of kind {type(region).__name__} is given",
                f"{self.package} answers about the whole image",
                "Leave the region out",
            )
        asked: dict[str, Any] = {"folder": folder, "options": options, "opened": opened}
        asked |= {"attention": True} if self.shows_attention else {}
        shown: Any = pixels
        if self.takes_regions:
            from lightbox.paper.asked_images import AskedImage

            shown = AskedImage(pixels)
            asked["regions"] = () if region is None else (region,)
        return self._module("predict").predict(shown, question, **asked)

    def _check_own(self, folder: Path) -> None:
        run = folders.read_run(folder)
        if run is None:  # who reads the run says so
            return
        if run.paper not in ("", self.package):
            raise RequestError(
                f"--run is '{folder}'",
                f"It is a run of {run.paper}, and {self.package} reads its own",
                f"Name a run of {self.package}, or ask `lightbox predict {run.paper}`",
            )
        is_trained = run.config.get("objective", {}).get("is_trained", True)
        if not is_trained and not (folder / folders.MODEL).is_dir():
            raise RequestError(
                f"--run is '{folder}', of arm '{run.arm}'",
                "It trained nothing and kept no model that could be asked",
                f"Name a training, such as one of `lightbox train {self.package} preset=quick`",
            )

    def run_job(self, directory: Path, overrides: Sequence[str], needs: Mapping[str, Path]) -> None:
        """Run one arm of one seed for a claim; `directory` is `<out>/jobs/<key>`."""
        cfg = resolve(self.package, overrides)
        self._compute(cfg, directory, cache=directory.parents[1] / folders.CACHE, needs=needs, keeps_model=False)

    def run_once(self, overrides: list[str], mode: str, *, is_indexed: bool = True) -> Path:
        """Train or score one arm, unless that is done; the folder."""
        cfg = self.accept(overrides, mode)
        needs = folders.needed_runs(cfg.needs)
        identity = self._identity(cfg, needs)
        out = Path(cfg.run.out) if cfg.run.out else default_out()
        folder = out / folders.RUNS / f"{cfg.experiment}-{identity.key[:12]}"
        if cfg.run.resume and is_finished(folder, identity.key):
            _log.info("%s is finished already; run.resume=false trains anew", folder)
            is_indexed = is_indexed and folder.name not in known_run_ids(out)  # a kill came between the two
        else:
            _say_why(folder, cfg.experiment, identity)
            asked = overrides if mode == "train" else ["objective.is_trained=false", *overrides]
            self._make(cfg, folder, out=out, overrides=asked, identity=identity, needs=needs)
        if is_indexed and is_first_process():
            index_run(out, folder)
        if is_first_process():
            show(folder)
        return folder

    def accept(self, overrides: list[str], mode: str) -> PaperConfig:
        """The configuration that overrides mean, checked as far as that goes without torch."""
        cfg: PaperConfig = resolve(self.package, overrides, is_trained=mode == "train")
        if mode == "eval" and not any(override.startswith(f"{self.eval_key}=") for override in overrides):
            raise RequestError(
                f"{self.eval_key} is not given",
                "There is no model to score",
                f"Name a training's, as {self.eval_key}={EVAL_VALUES[self.eval_key]}",
            )
        if not cfg.is_baseline:
            self._check(cfg, find_pretrained(cfg.model.backbone, cfg.model.backbone_revision))
        return cfg

    def _check(self, cfg: PaperConfig, base: Pretrained) -> None:
        check_pretrained(cfg, base)
        if base.family is not None:  # a hub id's config.json is fetched with its weights, and asked then
            check_towers(cfg, base)
            if self.check is not None:
                self.check(cfg, base)
            forecast.check_fits(cfg, base)

    def _enter(self, argv: Sequence[str] | None, mode: str) -> Path | None:
        level = logging.INFO if is_first_process() else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
        words = list(sys.argv[1:] if argv is None else argv)
        made: list[Path] = []

        def work() -> None:
            if multirun.is_multirun(words):
                self._sweep(words, mode)
            else:
                made.append(self.run_once(words, mode))

        try:
            code = guard(work)
        finally:
            leave_processes()
        if code:
            raise SystemExit(code)
        return made[0] if made else None

    def _sweep(self, words: list[str], mode: str) -> None:
        accept, run = partial(self.accept, mode=mode), partial(self.run_once, mode=mode, is_indexed=False)
        multirun.launch(multirun.Entry(self.package, accept, run, index_run), words)

    def _make(
        self,
        cfg: PaperConfig,
        folder: Path,
        *,
        out: Path,
        overrides: list[str],
        identity: Identity,
        needs: Mapping[str, Path],
    ) -> None:
        started = time.monotonic()
        if is_first_process():
            (folder / folders.RECORD).unlink(missing_ok=True)
        self._compute(cfg, folder, cache=out / folders.CACHE, needs=needs, keeps_model=cfg.objective.is_trained)
        if not is_first_process():
            return
        record = {"paper": self.package, "arm": cfg.experiment, "seed": cfg.run.seed, "preset": cfg.run.preset}
        record |= {"overrides": overrides, "commit": machine.commit(), "hardware": machine.hardware()}
        record |= identity.record | {"key": identity.key, "config": files.to_plain(cfg)}
        folders.mark_finished(folder, record | {"wall_s": round(time.monotonic() - started, 1)})
        sweep(folder)

    def _compute(
        self, cfg: PaperConfig, folder: Path, *, cache: Path, needs: Mapping[str, Path], keeps_model: bool
    ) -> None:
        if cfg.is_baseline:
            if is_first_process():
                self._module("evaluate").run_baseline(cfg, folder)
            return
        base = find_pretrained(cfg.model.backbone, cfg.model.backbone_revision)
        train = self._module("train")
        if base.name and base.family is None:
            from lightbox.backbones.loading import family_on_hub

            base = Pretrained(base.name, base.revision, family_on_hub(base.name, base.revision))
            self._check(cfg, base)
        advice = forecast.memory_advice(cfg, base)
        train.run(cfg, base, folder, cache=cache, needs=needs, keeps_model=keeps_model, memory_advice=advice)

    def _identity(self, cfg: PaperConfig, needs: Mapping[str, Path]) -> Identity:
        config = self._module("config")
        return identify(
            self.package,
            files.to_plain(cfg),
            inputs=config.inputs(cfg),
            needs={arm: folders.read_run(folder).key for arm, folder in needs.items()},
            chosen=config.chosen(cfg),
        )

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")


def beside(out: Path, name: str, ending: str) -> Path:
    """The file of a named picture or volume beside a prediction's page.

    Example:
        >>> beside(Path("a/seen.png"), "mask 1", ".nii.gz").name
        'seen-mask-1.nii.gz'
    """
    return out.with_name(f"{out.stem}-{name.replace(' ', '-')}{ending}")


def is_first_process() -> bool:
    """True in the one that writes, where `accelerate launch` started several; known without torch."""
    return os.environ.get("RANK", "0") == "0"


def leave_processes() -> None:
    """End the talk between processes, where `accelerate launch` started several; the last thing that one does.

    Left to the interpreter's exit, gloo's threads now and then outlive what they work on, and a process that has done
    everything right ends with SIGABRT. Processes of one launch cannot be sure to meet again afterwards.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def newest_training(out: Path, paper: str) -> Path:
    """The training of a paper that finished last under `<out>/runs` and kept its model.

    Raises:
        RequestError: where there is none.
    """
    runs = [folders.read_run(path.parent) for path in (out / folders.RUNS).glob(f"*/{folders.RECORD}")]
    trained = [run for run in runs if run is not None and run.paper == paper and (run.folder / folders.MODEL).is_dir()]
    if not trained:
        raise RequestError(
            f"There is no finished {paper} training under '{out / folders.RUNS}'",
            "A prediction needs a trained model",
            f"Run `lightbox train {paper} preset=quick` first, or name a run with --run",
        )
    return max((run.folder for run in trained), key=lambda folder: (folder / folders.RECORD).stat().st_mtime_ns)


def index_run(out: Path, folder: Path) -> None:
    """Put a finished run into the MLflow index of its output folder."""
    from lightbox.runs import index

    tracker = index.open_tracker(out)
    tracker.single(folder)
    tracker.close()


def show(folder: Path) -> None:
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


def _say_why(folder: Path, arm: str, identity: Identity) -> None:
    """One line where a run is taken up, or made again because something changed since a finished one."""
    if (folder / folders.CHECKPOINTS).is_dir():
        _log.info("%s was begun and goes on from its last checkpoint", folder)
        return
    for other in sorted(folder.parent.glob(f"{arm}-*")):
        try:
            record = folders.read_record(other) if folders.read_run(other) else None
        except WorkError as err:  # another run's damage must not stop this one
            _log.warning("%s", err)
            continue
        changes = [] if record is None or other == folder else differences(record, identity)
        # a run of other settings is another run; one of the same settings was made stale by an edit
        if changes and not any(change.split(" ")[0] in identity.config for change in changes):
            shown = "; ".join(changes[:SHOWN]) + f"; and {len(changes) - SHOWN} more" * (len(changes) > SHOWN)
            _log.info("%s is not what the same command would give now, so it is made anew: %s", other, shown)
