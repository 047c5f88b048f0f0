"""Two processes train what one process trains: real launches by accelerate on the CPU, with gloo on loopback.

Each launch makes all its trainings (see launched.py), and the tests look at what they left.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightbox.errors import RequestError
from lightbox.files import file_sha256
from lightbox.train import checkpoint, processes

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trainings():
    """The functions of launched.py, for one process."""
    spec = importlib.util.spec_from_file_location("launched", HERE / "launched.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one(trainings, tmp_path_factory):
    """What one process makes of the same trainings, and a training that it was cut in."""
    out = tmp_path_factory.mktemp("one")
    trainings.cut_short(trainings.train_tagger, out / "from-one", save_every_steps=trainings.CUT)
    return out, {
        "tagger": trainings.train_tagger(out / "tagger", evaluate=trainings.accuracy, save_every_steps=trainings.CUT),
        "t5": trainings.train_t5(out / "t5", micro=0),
        "twice": trainings.train_twice(out / "twice"),
        "llava": trainings.train_llava(out / "llava", quant="nf4", micro=0),
        "prepared": trainings.train_prepared(out / "prepared"),
    }


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """The folder of one launch of two processes, and what each of them saw."""
    out = tmp_path_factory.mktemp("two")
    shutil.copytree(one[0] / "from-one", out / "from-one")
    command = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--main_process_port", "0", str(HERE / "launched.py"), str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out, [json.loads((out / f"saw-{rank}.json").read_text()) for rank in (0, 1)]


def assert_same_training(one, two):
    """Losses within 1e-5 at every step; norms and weights within 1e-4 of their size.

    AdamW moves a weight by the rate whatever the size of its gradient, so where that is next to 0 rounding shows.
    """
    losses, norms = (
        [[value for _, value in run["history"][key]] for run in (one, two)] for key in ("train/loss", "train/grad_norm")
    )
    assert len(losses[0]) == len(losses[1]) == 20
    assert losses[0] == pytest.approx(losses[1], rel=0, abs=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert one["squares"].keys() == two["squares"].keys()
    for name, square in one["squares"].items():
        assert two["squares"][name] == pytest.approx(square, rel=1e-4, abs=1e-9), name


@pytest.mark.parametrize("training", ["tagger", "one row", "t5", "twice", "llava", "from one", "prepared"])
def test_two_processes_give_the_losses_of_one(one, two, training):
    """20 steps with unequal lengths and a short last batch, whole shares or single rows, all parameters or LoRA.

    Whole batches of T5 and LLaVA in one process are single rows in two, so this is 1 of 8 against 8 of 1 as well.
    """
    twin = {"one row": "tagger", "from one": "tagger"}.get(training, training)
    for saw in two[1]:
        assert_same_training(one[1][twin], saw[training])


def test_averaging_the_means_of_two_shares_would_be_noticed(trainings):
    """On the first batch that differs from the mean over all tokens by far more than the tolerance above."""
    source, model = trainings.rows(), trainings.make_tagger(dropout=0.0, is_tied=True)
    batch = source.next_indices()
    sums = [trainings.tagger_step(model, source.collate(part))[:2] for part in (batch[:4], batch[4:])]
    of_tokens = sum(loss.item() for loss, _ in sums) / sum(int(tokens) for _, tokens in sums)
    of_means = sum(loss.item() / int(tokens) for loss, tokens in sums) / 2
    assert abs(of_tokens - of_means) > 1e-3


def test_both_processes_hold_the_same_model_and_the_same_curves(two):
    first, second = two[1]
    assert first == second


def test_evaluation_sees_the_model_of_one_process(one, two):
    expected = one[1]["tagger"]["history"]["val/acc"]
    assert two[1][0]["tagger"]["history"]["val/acc"] == expected
    assert [step for step, _ in expected] == [7, 14, 20]
    assert two[1][0]["llava"]["history"]["val/characters"] == one[1]["llava"]["history"]["val/characters"]


def test_a_worker_of_each_process_changes_no_bit(two):
    """Each prepares the share of its own process, also of short last batches."""
    out, saw = two
    for run in saw:
        assert run["ahead"]["squares"] == run["tagger"]["squares"]
        assert run["ahead"]["history"]["train/loss"] == run["tagger"]["history"]["train/loss"]
    assert json.loads((out / "ahead" / "card.json").read_text())["notes"] == []


def test_one_process_writes_and_says_that_there_were_two(two):
    out, _ = two
    card = json.loads((out / "tagger" / "card.json").read_text())
    assert card["processes"] == {"count": 2, "model": "whole in each"}
    assert sorted(path.name for path in (out / "tagger").iterdir()) == ["card.json", "checkpoints", "history.json"]
    assert checkpoint.damage(out / "tagger/checkpoints/step-00000020") is None


@pytest.mark.parametrize("training", ["tagger", "t5"])
def test_a_checkpoint_of_two_processes_continues_in_one(trainings, one, two, tmp_path, training):
    train = {"tagger": trainings.train_tagger, "t5": trainings.train_t5}[training]
    shutil.copytree(two[0] / ("to-one" if training == "tagger" else "t5-to-one"), tmp_path / "run")
    assert_same_training(one[1][training], train(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "card.json").read_text())["notes"] == ["continued from step 7"]


def test_a_checkpoint_holds_the_same_names_and_shapes_whoever_wrote_it(one, two):
    name = "tagger/checkpoints/step-00000020"
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (checkpoint.weights.read_tensors(out / name / file) for out in (one[0], two[0]))
        assert {key: tensor.shape for key, tensor in ours.items()} == {k: t.shape for k, t in theirs.items()}


@pytest.mark.parametrize("training", ["dropout", "sampled"])
def test_a_resumed_training_of_two_processes_repeats_the_draws_of_each(two, training):
    """Of dropout, and of what is prepared before the micro-batches."""
    out, (saw, _) = two
    assert saw[f"{training} again"]["history"] == saw[training]["history"]
    files = [out / name / "checkpoints/step-00000020/model.safetensors" for name in (training, f"{training}-cut")]
    assert file_sha256(files[0]) == file_sha256(files[1])


def test_each_process_prepares_its_own_share_and_none_where_it_has_none(trainings, two):
    """17 items in batches of 8: the third batch has 1 item, so the second process has nothing to prepare."""
    first, second = two[1][0]["prepared"]["asked"]
    assert [len(indices) for indices in first] == [4, 4, 1, 4, 4, 1, 4, 4, 1, 4, 4, 1, 4, 4, 1, 4, 4, 1, 4, 4]
    assert [len(indices) for indices in second] == [4] * 14
    batches = trainings.rows(n_items=trainings.FEW_ITEMS).order(0)
    assert [[*first[0], *second[0]], [*first[1], *second[1]], first[2]] == batches


def test_a_prepared_item_that_is_not_finite_is_named_by_both(two):
    for saw in two[1]:
        assert saw["broken item"].startswith("WorkError At step")
        assert "row-3" in saw["broken item"]
        assert "The first tensor that is not finite is batch.weights." in saw["broken item"]


def test_a_signal_to_one_process_stops_both_after_a_save(two):
    out, both = two
    assert [saw["signal"] for saw in both] == ["SystemExit 143", "SystemExit 143"]
    assert checkpoint.latest(out / "signal" / "checkpoints").name == "step-00000004"


def test_a_loss_that_is_not_finite_in_one_process_stops_both(two):
    out, both = two
    facts = json.loads((out / "broken" / "nonfinite.json").read_text())
    for saw in both:
        assert saw["broken"].startswith(f"WorkError At step {facts['step']} the loss is inf")
        assert all(name in saw["broken"] for name in facts["ids"])


def test_a_batch_that_cannot_be_shared_is_refused(two):
    for saw in two[1]:
        assert saw["odd"].startswith("RequestError optim.batch_size is 7 and 2 processes were launched. ")


def test_a_launch_that_asks_for_shards_is_refused(two):
    for saw in two[1]:
        assert saw["shards"].startswith("RequestError The launch asks for FSDP, which cuts a model into shards. ")
        assert "Launch with --multi_gpu, where each card holds the whole model" in saw["shards"]


@pytest.mark.parametrize(("training", "place"), [("auto", "step 1"), ("tried", "the trial of the longest items")])
def test_a_shortage_in_one_process_halves_the_micro_batches_of_both(one, two, training, place):
    out, both = two
    assert [saw[training] for saw in both] == ["finished", "finished"]
    assert all(note.startswith(place) for note in json.loads((out / training / "card.json").read_text())["notes"])
    history = json.loads((out / training / "history.json").read_text())
    assert history.pop("train/micro_batch_size") == [[1, 2.0], [1, 1.0]]
    assert history == both[0]["one row"]["history"]
    for saw in both:
        assert saw["short"].startswith("WorkError Memory ran out at step 1 with 4 items in a forward pass (CUDA out of")


def test_shares_are_runs_of_the_batch_in_order(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    assert processes.shares(range(6)) == [[0, 1], [2, 3], [4, 5]]
    assert processes.shares(range(4)) == [[0, 1], [2, 3], []]
    assert processes.shares([9]) == [[9], [], []]
    processes.check_batch_size(6)
    with pytest.raises(RequestError, match="is 8 and 3 processes"):
        processes.check_batch_size(8)
