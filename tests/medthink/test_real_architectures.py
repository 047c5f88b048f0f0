"""Every family that the backbones know goes through the paper's own commands: train, evaluate, predict.

The directories hold the real configuration, class, processor and kind of tokenizer, shrunk in width and depth, with
random weights; so what is tested is the path, not what is learned.
"""

import json
import subprocess
import sys

import pytest

from lightbox.runs import folders
from lightbox.testing.shrunk import save_shrunk
from medthink import cli

pytestmark = pytest.mark.slow

LORA = ("adapter.kind=lora", "adapter.r=4")
NF4 = (*LORA, "adapter.quant=nf4", "model.dtype=bf16")
WHOLE = ()
FAMILIES = {
    "unifiedqa-t5-base": NF4,
    "llava-1.5-7b": NF4,
    "llava-med": (*LORA, "adapter.use_dora=true"),
    "llava-next": (*LORA, "adapter.projector=full"),
    "qwen2-vl-7b": (*LORA, "adapter.projector=lora", "train.checkpoint_layers=true"),
    "qwen2.5-vl-7b": NF4,
    "medgemma-4b": (*LORA, "adapter.use_rslora=true", "model.dtype=bf16"),
    "florence-2-base": NF4,
}
MORE = {"whole": ("llava-1.5-7b", WHOLE), "int8": ("qwen2.5-vl-7b", (*LORA, "adapter.quant=int8"))}
TOWERS = ("clip-vit-l-336", "siglip-so400m", "medsiglip-448", "dinov2-base", "detr-resnet-50", "detr-resnet-101")
STRATEGIES = ("none", "explanation", "reasoning", "stage1", "stage1_folds", "stage2_out_of_fold", "reader")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function that gives the directory of a published model in miniature."""
    made = {}

    def build(name):
        if name not in made:
            made[name] = save_shrunk(name, tmp_path_factory.mktemp("weights") / name)
        return made[name]

    return build


@pytest.fixture(scope="module")
def sizes():
    """A run of a few seconds; the index is left out here, one test through a process of its own has it."""
    return [
        "preset=smoke",
        "run.seed=0",
        "data.n_train=12",
        "data.n_test=6",
        "optim.max_steps=2",
        "optim.batch_size=4",
        "eval.rationale_tokens=4",
        "eval.answer_tokens=6",
    ]


@pytest.fixture(autouse=True)
def _without_index(monkeypatch):
    monkeypatch.setattr("lightbox.paper.entries.index_run", lambda *_: None)


def train(out, *overrides):
    cli.train([*overrides, f"run.out={out}"])
    return next((out / "runs").iterdir())


@pytest.mark.parametrize(
    ("family", "adapter"),
    [*(pytest.param(*pair, id=pair[0]) for pair in FAMILIES.items()), *(pytest.param(*MORE[n], id=n) for n in MORE)],
)
def test_family_is_trained_scored_again_and_asked(family, adapter, folder, sizes, tmp_path):
    weights = folder(family)
    run = train(tmp_path / "out", *sizes, "experiment=explanation", f"model.backbone={weights}", *adapter)
    table = folders.read_scores(run)
    assert table.num_rows == 6 * 3
    assert table["correct"].null_count == 0
    assert (run / "model" / "adapter_model.safetensors").is_file() is bool(adapter)
    card = json.loads((run / "card.json").read_text())
    assert card["attention"]["reason"]
    if adapter:
        assert 0 < card["parameters_trained"] < card["parameters"] / 2
    cli.evaluate([*sizes, "experiment=explanation", f"model.backbone={run / 'model'}", f"run.out={tmp_path / 'again'}"])
    again = next((tmp_path / "again" / "runs").iterdir())
    assert folders.read_scores(again).equals(table)
    picture = next((run / "examples").iterdir())
    told = cli.predict(image=picture, question="is there a nodule ?", options=("yes", "no"), run=run)
    assert told["strategy"] == "explanation"
    assert sum(told["options"].values()) == pytest.approx(1)
    assert all(0 < prob < 1 for prob in told["options"].values())


@pytest.mark.parametrize("tower", TOWERS)
def test_tower_beside_a_t5(tower, folder, sizes, t5_folder, tmp_path):
    parts = [f"model.backbone={t5_folder}", f"model.tower={folder(tower)}"]
    run = train(tmp_path / "out", *sizes, "experiment=none", *parts)
    assert folders.read_scores(run).num_rows == 6 * 3
    picture = next((run / "examples").iterdir())
    told = cli.predict(image=picture, question="is there a nodule ?", options=("yes", "no"), run=run)
    assert sum(told["options"].values()) == pytest.approx(1)


def test_every_strategy_of_the_paper_on_a_vision_language_model(folder, sizes, tmp_path):
    """Stage 2 reads what stage 1 wrote out of fold, the reader what Explanation and Reasoning wrote."""
    own = [*sizes, f"model.backbone={folder('llava-1.5-7b')}", *LORA]
    needs = {
        "stage2_out_of_fold": ("stage1", "stage1_folds"),
        "reader": ("explanation", "reasoning"),
        "reasoning": ("none",),
    }
    jobs = tmp_path / "jobs"
    for name in STRATEGIES:
        earlier = {need: jobs / need for need in needs.get(name, ())}
        cli.run_job(jobs / name, [*own, "data.n_train=24", f"experiment={name}"], earlier)
    shown = {name: set(folders.read_scores(jobs / name)["condition"].to_pylist()) for name in STRATEGIES}
    assert shown["reader"] == {"no_rationale", "reference", "generated", "generated_reasoning"}
    assert shown["stage1_folds"] == {"out_of_fold"}
    assert shown["stage2_out_of_fold"] == {"image", "blank", "shuffled"}
    assert shown["stage1"] == {"image", "blank", "shuffled", "train"}
    assert folders.read_scores(jobs / "stage1")["correct"].null_count == 6 * 3 + 24  # it writes no answer


def test_command_in_a_process_of_its_own(folder, sizes, tmp_path):
    given = [*sizes, f"model.backbone={folder('qwen2.5-vl-7b')}", *LORA, "experiment=none", f"run.out={tmp_path}"]
    command = [sys.executable, "-m", "medthink", "train", *given]
    done = subprocess.run(command, timeout=280, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lora language" in done.stderr
    assert "baseline / question_only" in done.stdout
    assert (tmp_path / "mlflow.db").is_file()


@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_adapter_on_the_trained_tiny_model_answers_from_the_image(quant, tmp_path):
    """60 steps on open questions; blank, shuffled and question-only stay where a guess is."""
    sizes = ["preset=quick", "data.n_train=480", "data.n_test=60", "optim.max_steps=60", "optim.batch_size=16"]
    arm = ["experiment=none", "data.form=open", "run.seed=0", "optim.lr=0.004"]
    run = train(tmp_path, *sizes, *arm, "model.backbone=tiny/llava", "adapter.kind=lora", f"adapter.quant={quant}")
    table = folders.read_scores(run)
    means = folders.mean_scores(table)
    found = {name: means[f"{name}/correct"] for name in ("image", "blank", "shuffled")}
    found |= json.loads((run / "card.json").read_text())["baselines"]
    image = found.pop("image")
    assert image > 0.7, found
    assert all(image > other + 0.3 for other in found.values()), (image, found)
