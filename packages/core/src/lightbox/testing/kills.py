"""Commands that are killed at random moments and given again, until they are done: do they end with the same bytes?

Read `Chain` (what is typed), `Runs` (one output folder, a try, a kill), then `kept` and `faults` (what is compared).
`benchmarks/kills.py` does it fifty times over the papers.

A try is a process group of its own, which SIGKILL ends as a whole. It is forked from a parent that has imported
everything, so that a kill costs seconds; a cold try is the real commands, one Python each, and falls into imports too.
"""

import faulthandler
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightbox.files import file_sha256
from lightbox.runs import folders

SCORED = (folders.SCORES, folders.PREDICTIONS)
HEARD_S = 2.0  # in which a process writes down where it is, before it is killed; on a busy machine it has to wait
COLD = "import sys; from lightbox.testing.kills import listen; listen(sys.argv.pop(1)); "
COLD += "from lightbox.cli.app import main; main()"
PASSING = re.compile(r"^(artifacts/.*|mlflow\.db.*|.*\.lock|.*/log\.txt)$")
"""Files whose names or number say nothing: the index's own, locks that nobody holds, logs."""
PHASES = (
    ("importing", ("_find_and_load", "import_module")),
    ("settings and key", ("accept", "_identity", "make_plan")),
    ("marking finished", ("mark_finished",)),
    ("saving a checkpoint", ("save_or_warn", "clean")),
    ("training", ("_train", "learn", "fit")),
    ("saving the model", ("save_model", "save")),
    ("dropping checkpoints", ("drop_checkpoints",)),
    ("writing files", ("write_scores", "write_examples", "write_predictions", "add_to_card", "write_card")),
    ("scoring", ("evaluate", "beside_score", "run_baseline", "written_rows")),
    ("opening the model", ("open_learner", "open_arm", "open_grounder", "open_start", "from_pretrained")),
    ("drawing data", ("load_splits",)),
    ("index", ("index_run", "open_index", "job_done", "open_tracker")),
    ("page", ("write",)),
    ("a worker at work", ("collect",)),
)
"""What a killed process was at, by the first of these functions that is on its stack."""


@dataclass(frozen=True)
class Chain:
    """Commands of one paper, each of which may need what an earlier one left.

    `trainings` are arms with the arm that each needs ("" for none), the last of which is then evaluated; a chain
    without trainings is a `reproduce` of `claim`.
    """

    paper: str
    trainings: tuple[tuple[str, str], ...] = ()
    claim: str = ""

    @property
    def name(self) -> str:
        """Paper and kind, as `--only` takes it."""
        return f"{self.paper}/{'train' if self.trainings else 'reproduce'}"

    def commands(self, out: Path) -> Iterator[list[str]]:
        """Arguments of one `lightbox` command after another; ask for the next once one is done."""
        if not self.trainings:
            asked = ["--preset", "smoke", "--claims", self.claim, "--workers", "1", "--out", str(out)]
            yield ["reproduce", self.paper, *asked]
            return
        shared = ["preset=smoke", f"run.out={out}", "run.save_every_steps=1"]
        for arm, need in self.trainings:
            needs = [f"needs=[{trained(out, need)}]"] if need else []
            yield ["train", self.paper, f"experiment={arm}", *shared, *needs]
        arm, need = self.trainings[-1]
        needs = [f"needs=[{trained(out, need)}]"] if need else []
        model = trained(out, arm) / folders.MODEL
        yield ["evaluate", self.paper, f"experiment={arm}", *shared, *needs, f"model.backbone={model}"]


CHAINS = (
    Chain("medthink", (("explanation", ""),)),
    Chain("medthink", claim="T2"),
    Chain("mmedpo", (("start", ""), ("mmedpo", "start"))),
    Chain("mmedpo", claim="P1"),
    Chain("vitar", (("mark", ""),)),
    Chain("vitar", claim="V4"),
    Chain("k2sight", (("defined", ""),)),
    Chain("k2sight", claim="K5"),
    Chain("medplib", (("align", ""), ("vl", "align"))),
    Chain("medplib", claim="E4"),
)


def trained(out: Path, arm: str) -> Path:
    """The one training of an arm below an output folder."""
    (folder,) = (path.parent for path in (out / folders.RUNS).glob(f"{arm}-*/{folders.MODEL}"))
    return folder


@dataclass(frozen=True)
class Kill:
    """One kill: how long the try had run, what it was at, and the deepest function of ours on its stack."""

    after_s: float
    phase: str
    place: str


@dataclass(frozen=True)
class Runs:
    """Tries of a chain in one output folder: the same for all that are compared, since keys of runs name it."""

    chain: Chain
    folder: Path
    is_cold: bool = False

    @property
    def out(self) -> Path:
        """The output folder of the commands."""
        return self.folder / "out"

    @property
    def how(self) -> str:
        """In a word."""
        return "cold" if self.is_cold else "warm"

    def forget(self) -> None:
        """Begin anew; a cold chain without an index too, whose making takes as long as a small training."""
        kept_database = self.folder / "mlflow.db"
        if (self.out / "mlflow.db").exists() and not self.is_cold:
            (self.out / "mlflow.db").replace(kept_database)
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        if kept_database.exists() and not self.is_cold:
            kept_database.replace(self.out / "mlflow.db")

    def attempt(self, *, kill_after_s: float | None = None, limit_s: float = 1800.0) -> Kill | None:
        """Give the commands again; the kill, or None where they were done before it.

        Raises:
            RuntimeError: where a command fails by itself, or takes longer than `limit_s`.
        """
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            self._be_a_try()
        while (left := began + (limit_s if kill_after_s is None else kill_after_s) - time.monotonic()) > 0:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                if status:
                    raise RuntimeError(f"{self.chain.name} failed: {self._said()}")
                return None
            time.sleep(min(0.005, left))
        phase, place = self._asked()
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if kill_after_s is None:
            raise RuntimeError(f"{self.chain.name} hangs: {phase}, {place}")
        return Kill(time.monotonic() - began, phase, place)

    def _be_a_try(self) -> None:
        """In the child: all commands; never returns."""
        code = 1
        try:
            os.setsid()
            log = os.open(self.folder / "said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(log, stream)
            code = next((code for words in self.chain.commands(self.out) if (code := self._run(words))), 0)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _run(self, words: list[str]) -> int:
        if self.is_cold:
            return subprocess.call([sys.executable, "-c", COLD, str(self.folder), *words])
        listen(str(self.folder))
        from lightbox.cli.app import main  # noqa: PLC0415  a cold try's parent has no need of it

        try:
            main(words)
        except SystemExit as done:
            return int(done.code or 0)
        return 0

    def _asked(self) -> tuple[str, str]:
        """Where the process is, which it writes down when it is asked."""
        listening, stack = self.folder / "listening", self.folder / "stack.txt"
        if not listening.exists() or not (pid := listening.read_text()):
            return "starting", ""
        before = stack.stat().st_size
        try:
            os.kill(int(pid), signal.SIGUSR1)
        except ProcessLookupError:  # the next command of a cold try is starting
            return "starting", ""
        given_up = time.monotonic() + HEARD_S
        while stack.stat().st_size == before and time.monotonic() < given_up:
            time.sleep(0.001)
        time.sleep(0.01)  # for the rest of it
        return phase_of(stack.read_bytes()[before:].decode())

    def _said(self) -> str:
        return (self.folder / "said.txt").read_text(errors="replace")[-3000:]


def listen(folder: str) -> None:
    """From now on write the stack of this process to `stack.txt` where SIGUSR1 asks for it."""
    stack = open(Path(folder, "stack.txt"), "a")
    faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
    whole = Path(folder, f"listening-{os.getpid()}")
    whole.write_text(str(os.getpid()))
    whole.replace(Path(folder, "listening"))


def phase_of(stack: str) -> tuple[str, str]:
    r"""What a stack, innermost call first, is at; and the innermost function of ours, with its file and line.

    Example:
        >>> phase_of('File "/a/lightbox/files.py", line 9 in _replace\nFile "/a/x.py", line 1 in write_scores')
        ('writing files', 'files.py:9 _replace')
    """
    frames = re.findall(r'File "([^"]*)", line (\d+) in (\S+)', stack)
    names = {name for _, _, name in frames}
    ours = next((f for f in frames if "/lightbox/" in f[0] or "/projects/" in f[0]), None)
    place = "" if ours is None else f"{Path(ours[0]).name}:{ours[1]} {ours[2]}"
    return next((phase for phase, functions in PHASES if names.intersection(functions)), "between"), place


def moment(seed: str, whole_s: float) -> float:
    """A random moment of a run that takes `whole_s`."""
    return random.Random(seed).uniform(0.0, whole_s)


def kept(out: Path) -> dict[str, str]:
    """SHA-256 of per-item scores and predictions, by path below the output folder."""
    paths = [
        path for place in (folders.JOBS, folders.RUNS) for name in SCORED for path in out.glob(f"{place}/*/{name}")
    ]
    return {str(path.relative_to(out)): file_sha256(path) for path in sorted(paths)}


def names(out: Path) -> set[str]:
    """Names of all files below an output folder that stay the same from run to run."""
    paths = (str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return {path for path in paths if not PASSING.match(path)}


def indexed(out: Path) -> set[str]:
    """Runs in the index."""
    path = out / "mlflow-runs.json"
    return set(json.loads(path.read_text())) if path.exists() else set()


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run left."""

    kept: dict[str, str]
    names: set[str]
    indexed: set[str]
    wall_s: float


def half_finished(out: Path, whole: Whole) -> list[str]:
    """Runs that say they are finished and have other scores than undisturbed ones; checked after each kill."""
    wrong = []
    for record in sorted(out.glob(f"*/*/{folders.RECORD}")):
        said: Any = json.loads(record.read_text())
        scores = record.with_name(folders.SCORES)
        own = file_sha256(scores) if scores.exists() else "absent"
        if not (said["finished"] and own == said["files"][folders.SCORES] == whole.kept[str(scores.relative_to(out))]):
            wrong.append(f"{record.parent.name} says it is finished, and its scores are {own[:12]}")
    return wrong


def faults(out: Path, whole: Whole) -> list[str]:
    """What a run that was killed and continued left otherwise than an undisturbed one."""
    mine = kept(out)
    wrong = [f"{path} differs" for path in sorted(whole.kept) if mine.get(path) != whole.kept[path]]
    wrong += [f"{path} is too much" for path in sorted(names(out) - whole.names)]
    wrong += [f"{path} is not there" for path in sorted(whole.names - names(out))]
    return wrong + [f"the index lacks {name}" for name in sorted(whole.indexed - indexed(out))]
