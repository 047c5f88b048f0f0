"""A paper without torch for tests of claims: seconds of training become draws of numbers. Written into a folder.

Scores are right or wrong by arm; the arms of a seed share the items' difficulty, so differences are paired. A job works
in steps, saves each one, and continues from the last, so that it can be killed at any moment.
"""

import sys
from pathlib import Path

CLAIMS = """
from lightbox.claims.spec import Arm, Claim, Contrast, Gate, Kind, Measure, PaperClaims, Role, difference

ARMS = {
    arm.name: arm
    for arm in (
        Arm("none", "answer only", ("level=0.60",)),
        Arm("true", "true rationale", ("level=0.72",)),
        Arm("filler", "filler of equal length", ("level=0.61",)),
        Arm("twice", "a second stage", ("level=0.80",), needs=("true",)),
        Arm("majority", "most frequent answer", ("level=0.35", "luck=0.1", "start="), is_trained=False),
    )
}
GATE = Gate(
    arms=(Measure("none"), Measure("true")),
    baselines=(Measure("majority"), Measure("{best}", condition="blank")),
)
COMMON = dict(paper="toy", location="Table 1", paper_numbers="+4.5", gate=GATE, budget="", presets=("smoke", "quick"))
CLAIM_1 = Claim(
    id="Y1",
    kind=Kind.DIRECTIONAL,
    statement="A true rationale helps",
    contrasts=(
        difference("true minus none", "true", "none"),
        difference("true minus filler", "true", "filler", Role.CONTROL),
    ),
    is_primary=True,
    **COMMON,
)
CLAIM_2 = Claim(
    id="Y2",
    kind=Kind.CHAIN,
    statement="Two stages beat one, and one beats none",
    contrasts=(difference("twice minus true", "twice", "true"), difference("true minus none", "true", "none")),
    **COMMON,
)
CLAIM_3 = Claim(
    id="Y3",
    kind=Kind.EXACT,
    statement="Scores are never above 1",
    contrasts=(Contrast("level", ((1.0, Measure("none")),)),),
    bound=1.0,
    is_upper_bound=True,
    **(COMMON | dict(presets=("full",), gate=None)),
)
PAPER = PaperClaims(
    paper="toy",
    title="A toy",
    arxiv="0000.00000",
    arms=ARMS,
    claims=(CLAIM_1, CLAIM_2, CLAIM_3),
    headline="hit",
    condition="film",
    default_arm="none",
)
"""

CONFIG = """
from dataclasses import dataclass
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.files import file_sha256

GENERATOR = "1"
ITEMS = {"smoke": 20, "quick": 200, "full": 300}
CALLS = []


@dataclass
class Run:
    seed: int
    preset: str


@dataclass
class Config:
    run: Run
    level: float
    items: int
    step_s: float
    luck: float = 0.1
    start: str = "start.bin"
    steps: int = 4


def resolve(overrides):
    CALLS.append(tuple(overrides))
    given = dict(override.split("=", 1) for override in overrides)
    preset = given.get("preset", "quick")
    if preset not in ITEMS:
        raise RequestError(f"preset={preset}", "There is no such preset", "Choose one of " + ", ".join(ITEMS))
    run = Run(int(given["run.seed"]), preset)
    luck, start = float(given.get("luck", Config.luck)), given.get("start", Config.start)
    steps = int(given.get("steps", Config.steps))
    return Config(run, float(given["level"]), ITEMS[preset], STEP_S, luck, start, steps)


def inputs(cfg):
    weights = {"weights": file_sha256(Path(__file__).with_name(cfg.start))} if cfg.start else {}
    return {"generator": GENERATOR} | weights


def chosen(cfg):
    return ()


def estimate(cfg):
    return {"minutes": 0.5, "mem_gib": 0.25}


STEP_S = 0.0
"""

CLI = """
from toy.train import run as run_job
"""

TRAIN = """
import json
import time
from pathlib import Path

import numpy as np

from toy.config import resolve
from toy.evaluate import write_scores

STEPS = 4


def run(directory, overrides, needs):
    cfg = resolve(overrides)
    checkpoint = Path(directory) / "checkpoints" / "state.json"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "sum": 0.0}
    while state["step"] < STEPS:
        time.sleep(cfg.step_s)
        rng = np.random.default_rng([cfg.run.seed, state["step"]])
        state = {"step": state["step"] + 1, "sum": state["sum"] + float(rng.random())}
        staged = checkpoint.with_suffix(".new")
        staged.write_text(json.dumps(state))
        staged.replace(checkpoint)
    for folder in needs.values():
        assert (Path(folder) / "scores.parquet").exists()
    write_scores(Path(directory), cfg, state["sum"] / STEPS)
"""

EVALUATE = """
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toy.world import level_of


def write_scores(directory, cfg, drift):
    items = [f"case-{cfg.run.seed}-{i:04d}" for i in range(cfg.items)]
    difficulty = np.random.default_rng(cfg.run.seed).random(cfg.items)
    own = np.random.default_rng([cfg.run.seed, int(cfg.level * 1000)]).random(cfg.items)
    columns = {"item": [], "condition": [], "kind": [], "hit": []}
    for condition, level in (("blank", 0.4), ("film", level_of(cfg))):
        columns["item"] += items
        columns["condition"] += [condition] * cfg.items
        columns["kind"] += ["presence"] * cfg.items
        mixed = np.where(own < cfg.luck, own / cfg.luck, difficulty)  # a share of the items is the arm's own luck
        columns["hit"] += (mixed < level).astype(float).tolist()
    columns["drift"] = [drift] * len(columns["item"])
    pq.write_table(pa.table(columns), directory / "scores.parquet", compression="zstd")
    history = {"train/loss": [[step, 1.0 / (step + 1)] for step in range(5)]}
    (directory / "history.json").write_text(json.dumps(history))
    example = {"item": items[0], "task": [["question", "is it there ?"]], "output": [["answer", "yes"]]}
    example |= {"pictures": [{"path": "examples/a.png"}], "is_right": True}
    (directory / "examples.json").write_text(json.dumps([example]))
    card = {"parameters": 0, "device": "cpu", "dtype": "fp32", "notes": []}
    card |= {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS"), "hub": os.environ.get("HF_HUB_OFFLINE")}
    (directory / "card.json").write_text(json.dumps(card))
"""

WORLD = '''
"""A module of the paper, so that its source counts."""


def level_of(cfg):
    """How often an arm is right."""
    return cfg.level  # between 0 and 1
'''


def write_toy_paper(folder: Path, *, step_s: float = 0.0) -> dict[str, str]:
    """Write the package `toy` into a folder, put that on `sys.path`, and return the mapping of paper to package.

    Args:
        folder: where the package goes; workers find it too, as they inherit `sys.path`.
        step_s: seconds that each of a job's four steps takes.
    """
    package = folder / "toy"
    package.mkdir(parents=True)
    parts = {
        "__init__": "",
        "claims": CLAIMS,
        "config": CONFIG,
        "cli": CLI,
        "train": TRAIN,
        "evaluate": EVALUATE,
        "world": WORLD,
    }
    for name, text in parts.items():
        (package / f"{name}.py").write_text(text.replace("STEP_S = 0.0", f"STEP_S = {step_s}"), encoding="utf-8")
    (package / "start.bin").write_bytes(b"weights")
    # no folder, so no bytecode: Python would take that of before an edit of equal length in the same second
    (package / "__pycache__").touch()
    sys.path.insert(0, str(folder))
    return {"toy": "toy"}


def forget_toy_paper(folder: Path) -> None:
    """Undo `write_toy_paper` for this process: `sys.path` and the imported modules."""
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name == "toy" or name.startswith("toy.")]:
        del sys.modules[name]
