"""What must not change the result of a training: an interruption, the cut into micro-batches, padding, a repeat."""

import json
import random
import subprocess
import sys
import textwrap

import pytest
import torch

from lightbox.files import file_sha256
from lightbox.testing.training import fit_tagger, make_source, make_tagger, tagger_step
from lightbox.train import checkpoint


class CutError(Exception):
    """Ends a training from outside, as a kill would, at a chosen step."""


def recording(source):
    """A source that notes the indices of each batch it gives."""
    source.given = []
    draw = source.next_indices

    def next_indices():
        source.given.append(draw())
        return source.given[-1]

    source.next_indices = next_indices
    return source


def cutting(at):
    """A step that raises when it is called for the `at`-th time, counted from 0."""
    calls = []

    def step(model, batch):
        if len(calls) == at:
            raise CutError
        calls.append(None)
        return tagger_step(model, batch)

    return step


def folder_digests(path):
    return {file.name: file_sha256(file) for file in sorted(path.iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize("is_bucketed", [False, True])
@pytest.mark.parametrize("micro_batch_size", [0, 2])
def test_a_resumed_training_equals_the_uninterrupted_one_bit_for_bit(tmp_path, is_bucketed, micro_batch_size):
    """22 items in batches of 4 make epochs of 6 batches, so cuts at 5, 6 and 7 lie around the epoch's edge."""
    optim = {"max_steps": 14, "micro_batch_size": micro_batch_size}

    def train(out, **options):
        source = recording(make_source(is_bucketed=is_bucketed))
        try:
            fit_tagger(out, source=source, optim=optim, log_every_steps=4, **options)
        except CutError:
            source.given.pop()  # the batch whose step was cut is given again
        return source.given

    straight = train(tmp_path / "straight")
    expected = folder_digests(tmp_path / "straight/checkpoints/step-00000014")
    micros = 1 if micro_batch_size == 0 else 2
    for cut in (1, 5, 6, 7, 13):
        out = tmp_path / f"cut-{cut}"
        step = cutting(cut if micros == 1 else straight_forwards(straight, cut))
        before = train(out, step=step, save_every_steps=cut)
        assert len(before) == cut
        after = train(out, model=make_tagger(99))  # other initial weights: all must come from the checkpoint
        assert before + after == straight
        assert folder_digests(out / "checkpoints/step-00000014") == expected
        assert (out / "history.json").read_bytes() == (tmp_path / "straight/history.json").read_bytes()


def straight_forwards(batches, steps):
    """Forward passes of two items that `steps` batches take, and one more: a cut in the middle of accumulation."""
    return sum((len(batch) + 1) // 2 for batch in batches[:steps]) + (1 if len(batches[steps]) > 2 else 0)


def test_a_training_resumed_twice_with_lost_steps_equals_the_uninterrupted_one(tmp_path):
    fit_tagger(tmp_path / "straight", save_every_steps=4)
    for cut in (6, 3):  # steps 5 and 6 are lost, then 4 + 3 = 7
        with pytest.raises(CutError):
            fit_tagger(tmp_path / "cut", save_every_steps=4, step=cutting(cut))
    fit_tagger(tmp_path / "cut", save_every_steps=4)
    last = "checkpoints/step-00000012"
    assert folder_digests(tmp_path / "cut" / last) == folder_digests(tmp_path / "straight" / last)


def test_a_resume_from_behind_a_damaged_checkpoint_equals_the_uninterrupted_one(tmp_path):
    fit_tagger(tmp_path / "straight", save_every_steps=2)
    with pytest.raises(CutError):
        fit_tagger(tmp_path / "cut", save_every_steps=2, step=cutting(8))
    file = tmp_path / "cut/checkpoints/step-00000008/optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    fit_tagger(tmp_path / "cut", save_every_steps=2)
    last = "checkpoints/step-00000012"
    assert folder_digests(tmp_path / "cut" / last) == folder_digests(tmp_path / "straight" / last)


def test_a_repeated_training_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        random.seed()  # whatever the process did before
        torch.rand(7)
        fit_tagger(tmp_path / name)
    last = "checkpoints/step-00000012"
    assert folder_digests(tmp_path / "a" / last) == folder_digests(tmp_path / "b" / last)
    assert (tmp_path / "a/history.json").read_bytes() == (tmp_path / "b/history.json").read_bytes()


def test_another_seed_gives_another_training(tmp_path):
    one, _ = fit_tagger(tmp_path / "0", seed=0)
    two, _ = fit_tagger(tmp_path / "1", seed=1)
    assert not torch.equal(one.head.weight, two.head.weight)


@pytest.mark.slow
@pytest.mark.parametrize("is_bucketed", [False, True])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_micro_batches_of_unequal_lengths_equal_one_large_batch(tmp_path, micro_batch_size, is_bucketed):
    """Weighting by tokens: 8 micro-batches of 1 equal 1 of 8 at every step and on average over the curve."""
    optim = {"max_steps": 9, "batch_size": 8, "lr": 1e-3}

    def train(name, size):
        model = make_tagger(dropout=0.0)
        source = make_source(batch_size=8, is_bucketed=is_bucketed)
        return fit_tagger(
            tmp_path / name, model=model, source=source, optim=optim | {"micro_batch_size": size}, log_every_steps=1
        )

    (whole, expected), (cut, history) = train("whole", 0), train("cut", micro_batch_size)
    for key in ("train/loss", "train/grad_norm"):
        residuals = [a - b for (_, a), (_, b) in zip(history[key], expected[key], strict=True)]
        assert max(map(abs, residuals)) < 1e-6
        assert abs(sum(residuals)) / len(residuals) < 5e-7
    for one, two in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-6)


def test_averaging_micro_batch_means_would_be_noticed(tmp_path):
    """The same training with each loss already divided by its tokens differs by far more than the tolerance above."""

    def mean_step(model, batch):
        loss_sum, tokens, _ = tagger_step(model, batch)
        return loss_sum / tokens, 1, {}

    histories = []
    for step in (tagger_step, mean_step):
        options = {"model": make_tagger(dropout=0.0), "source": make_source(batch_size=8), "log_every_steps": 1}
        optim = {"max_steps": 2, "batch_size": 8, "micro_batch_size": 1}
        _, history = fit_tagger(tmp_path / step.__name__, step=step, optim=optim, **options)
        histories.append(history["train/grad_norm"])
    assert abs(histories[0][0][1] - histories[1][0][1]) > 1e-4


def test_wider_padding_changes_nothing(tmp_path):
    def padded_step(model, batch):
        extra = torch.nn.functional.pad
        wide = {"ids": extra(batch["ids"], (0, 5)), "labels": extra(batch["labels"], (0, 5), value=-100)}
        return tagger_step(model, wide)

    one, _ = fit_tagger(tmp_path / "a", model=make_tagger(dropout=0.0))
    two, _ = fit_tagger(tmp_path / "b", model=make_tagger(dropout=0.0), step=padded_step)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


KILLED = """
    import json, os, random, signal, sys, time
    from pathlib import Path
    from lightbox.testing.training import fit_tagger, make_tagger, tagger_step
    from lightbox.train import checkpoint

    out, kills = Path(sys.argv[1]), int(sys.argv[2])
    options = dict(optim={"max_steps": 300}, save_every_steps=2)

    def newest():
        path = checkpoint.latest(out / "killed" / "checkpoints")
        return int(path.name[5:]) if path else 0

    def train(begun):
        # once a checkpoint exists, the initial weights must not matter
        fit_tagger(out / "killed", model=make_tagger(7 if newest() else 0), step=begun, **options)

    def counting(path):
        def step(model, batch):
            with path.open("ab", buffering=0) as file:
                file.write(b".")
            return tagger_step(model, batch)
        return step

    fit_tagger(out / "straight", **options)
    began = time.perf_counter()
    fit_tagger(out / "timed", optim={"max_steps": 20}, save_every_steps=2)
    save_s = (time.perf_counter() - began) / 10
    chance, told = random.Random(5), []
    for number in range(kills):
        before, steps = newest(), out / f"steps-{number}"
        steps.touch()
        child = os.fork()
        if child == 0:
            train(counting(steps))
            os._exit(0)
        time.sleep(save_s * chance.uniform(1.5, 6.0))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        staged = len(list((out / "killed" / "checkpoints").glob(".tmp*")))
        told.append({"before": before, "begun": steps.stat().st_size, "newest": newest(), "staged": staged})
    train(tagger_step)
    print(json.dumps(told))
"""


@pytest.mark.slow
def test_kills_at_random_times_lose_at_most_one_interval_and_change_nothing(tmp_path):
    """Up to 30 times SIGKILL in training and saving; each next process resumes; the end is the same bits."""
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout.splitlines()[-1])
    assert len(kills) >= 10
    assert sum(kill["staged"] for kill in kills) > 0, "no kill fell into a save, so this proved little"
    assert sum(kill["newest"] > kill["before"] for kill in kills) > 0
    for kill in kills:
        finished = kill["before"] + max(kill["begun"] - 1, 0)  # the step begun last may not have ended
        assert kill["newest"] >= finished - finished % 2
    last = "checkpoints/step-00000300"
    assert checkpoint.damage(tmp_path / "killed" / last) is None
    assert folder_digests(tmp_path / "killed" / last) == folder_digests(tmp_path / "straight" / last)
