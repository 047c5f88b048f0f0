"""Workers that run ahead of the step: the bits of a run in line, whatever ends it, and no process left behind."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext

import numpy as np
import psutil
import pytest
import torch

from lightbox.config import TrainConfig
from lightbox.errors import RequestError, WorkError, guard
from lightbox.files import file_sha256
from lightbox.runs import folders
from lightbox.runs.key import effective
from lightbox.testing.training import fit_tagger, make_source, tagger_step
from lightbox.train import checkpoint

AHEAD = {"train": TrainConfig(workers=2)}
IN_LINE = {"train": TrainConfig()}


def fit(out, extras, *, step=tagger_step, source=None, micro=2, **options):
    """12 steps over 22 rows: each sixth has 2 rows of 4."""
    optim = {"micro_batch_size": micro} | options.pop("optim", {})
    return fit_tagger(
        out, source=make_source() if source is None else source, step=step, optim=optim, extras=extras, **options
    )


def bits(out, step=12):
    """All that a training leaves, but its card, which holds times."""
    folder = out / "checkpoints" / f"step-{step:08d}"
    return {path.name: file_sha256(path) for path in [*folder.iterdir(), out / "history.json"]}


def collating(collate, **options):
    """The source with another collate, given the usual one and the indices."""
    source = make_source(**options)
    usual = source.collate
    source.collate = lambda indices: collate(usual, indices)
    return source


def children():
    return [child.pid for child in multiprocessing.active_children()]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "micro", "is_bucketed"), [(1, 0, False), (2, 1, False), (2, 3, True)])
def test_workers_change_no_bit(tmp_path, workers, micro, is_bucketed):
    """Over two epochs with short last batches, with dropout, whose draws must stay where they are."""
    makers = []

    def noting(usual, indices):
        makers.append(os.getpid())
        return usual(indices)

    options = {"micro": micro, "optim": {"batch_size": 6}, "source": None}
    for name, n in (("in-line", 0), ("ahead", workers)):
        options["source"] = collating(noting, batch_size=6, is_bucketed=is_bucketed)
        fit(tmp_path / name, {"train": TrainConfig(workers=n)}, **options)
        assert bool(makers) == (n == 0), "what collate notes in a worker stays there"
        makers.clear()
    assert bits(tmp_path / "ahead") == bits(tmp_path / "in-line")
    assert not children()
    assert json.loads((tmp_path / "ahead/card.json").read_text())["notes"] == []


def test_the_key_of_a_run_does_not_depend_on_its_workers():
    keys = {str(effective({"train": dataclasses.asdict(TrainConfig(workers=n))})) for n in (0, 2)}
    assert len(keys) == 1
    assert "auto_batch" in keys.pop()


@pytest.mark.slow
def test_a_checkpoint_holds_what_steps_took_and_not_what_was_made_ahead(tmp_path):
    """Stopped by SIGTERM to it and its workers; continued in line, and with workers."""
    fit(tmp_path / "straight", IN_LINE)
    for name, extras in (("ahead", AHEAD), ("in-line", IN_LINE)):
        calls = []

        def stopping(model, batch, calls=calls):
            calls.append(None)
            if len(calls) == 9:
                time.sleep(0.3)  # workers are as far ahead as they go
                for pid in [*children(), os.getpid()]:
                    os.kill(pid, signal.SIGTERM)
            return tagger_step(model, batch)

        out = tmp_path / name
        with pytest.raises(SystemExit):
            fit(out, AHEAD, step=stopping)
        assert not children()
        assert checkpoint.latest(out / "checkpoints").name == "step-00000005"
        assert json.loads((out / "checkpoints/step-00000005/state.json").read_text())["batches"]["position"] == 5
        fit(out, extras)
        assert bits(out) == bits(tmp_path / "straight")


def test_ctrl_c_which_reaches_workers_too_finishes_the_step_and_leaves_none(tmp_path):
    def interrupted(model, batch):
        for pid in [*children(), os.getpid()]:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.2)
        return tagger_step(model, batch)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, AHEAD, step=interrupted, micro=0)
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-00000001"
    assert not children()


@pytest.mark.slow
def test_a_step_that_is_halved_goes_on_with_workers(tmp_path):
    """In the second pass of the second step, when workers are further ahead in the size before."""

    def narrow(model, batch):
        torch.rand(3)
        narrow.calls += 1
        if narrow.calls > 3 and len(batch["ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return tagger_step(model, batch)

    for name, workers in (("ahead", 2), ("in-line", 0)):
        narrow.calls = 0
        extras = {"train": TrainConfig(auto_batch=True, workers=workers)}
        source = make_source(batch_size=6)
        _, history = fit(tmp_path / name, extras, step=narrow, source=source, micro=3, optim={"batch_size": 6})
        assert history["train/micro_batch_size"] == [[2, 1.0]]
    assert bits(tmp_path / "ahead") == bits(tmp_path / "in-line")


def test_an_error_in_a_worker_is_the_error_and_names_the_items(tmp_path, capsys):
    """It ends the run at the step that needs the items, as in line, though they were prepared long before."""
    broken = make_source().order(0)[4]
    missing = RequestError("Image 'x.png'", "It is not there", "Fetch it")
    names = f"While a batch was made of items row-{broken[0]}, row-{broken[1]}."
    for name, error in (("ours", missing), ("other", ValueError("truncated"))):

        def collate(usual, indices, error=error):
            if broken[0] in indices:
                raise error
            return usual(indices)

        for extras in (AHEAD, IN_LINE):
            out = tmp_path / f"{name}-{extras['train'].workers}"
            with pytest.raises(type(error), match=r"It is not there|truncated") as caught:
                fit(out, extras, source=collating(collate), save_every_steps=1)
            assert caught.value.__notes__[-1] == names
            assert checkpoint.latest(out / "checkpoints").name == "step-00000004"
            assert not children()
    missing.__notes__ = []

    def ours(usual, indices):
        raise missing

    assert guard(lambda: fit(tmp_path / "shown", AHEAD, source=collating(ours))) == 2
    assert "Where: While a batch was made of items row-" in capsys.readouterr().err


def test_a_worker_that_dies_ends_the_run_and_the_same_command_goes_on(tmp_path):
    fit(tmp_path / "straight", IN_LINE)
    fatal = make_source().order(0)[5]

    def collate(usual, indices):
        if fatal[0] in indices and multiprocessing.current_process().daemon:
            # once what it made before has been taken: how a worker dies while it hands over is the next test's
            while not checkpoint.latest(tmp_path / "dying" / folders.CHECKPOINTS):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(indices)

    with pytest.raises(WorkError, match=rf"prepared items .*row-{fatal[0]}.* died .*train\.workers"):
        fit(tmp_path / "dying", AHEAD, source=collating(collate), save_every_steps=1)
    assert not children()
    fit(tmp_path / "dying", IN_LINE, source=collating(collate), save_every_steps=1)
    assert bits(tmp_path / "dying") == bits(tmp_path / "straight")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_named_too(tmp_path, monkeypatch, error):
    """Its tensors come over a socket, which may be closed before torch sees that the process is gone."""

    def cut_off(ident):
        raise error

    monkeypatch.setattr("multiprocessing.resource_sharer._ResourceSharer.get_connection", staticmethod(cut_off))
    with pytest.raises(WorkError, match=r"prepared items .* died .*train\.workers"):
        fit(tmp_path, AHEAD)
    assert not children()


@pytest.mark.parametrize("fails", [False, True])
def test_a_death_that_is_told_in_the_middle_of_the_shutdown_hides_nothing(tmp_path, monkeypatch, fails):
    """Torch raises wherever the signal arrives: there, nobody waits for that worker, and an earlier error must stay."""
    join, interrupted = multiprocessing.process.BaseProcess.join, []

    def interrupted_join(process, timeout=None):
        if not interrupted:
            interrupted.append(process.pid)
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        return join(process, timeout)

    def collate(usual, indices):
        if fails:
            raise ValueError("an image without pixels")
        return usual(indices)

    monkeypatch.setattr("multiprocessing.process.BaseProcess.join", interrupted_join)
    with pytest.raises(ValueError, match="an image without pixels") if fails else nullcontext():
        fit(tmp_path / "ahead", AHEAD, source=collating(collate))
    assert interrupted
    assert not children()
    if not fails:
        fit(tmp_path / "in-line", IN_LINE)
        assert bits(tmp_path / "ahead") == bits(tmp_path / "in-line")


@pytest.mark.parametrize("error", [ConnectionResetError("the image server"), EOFError("half an image")])
def test_a_connection_that_collate_loses_is_no_death(tmp_path, error):
    def collate(usual, indices):
        raise error

    with pytest.raises(type(error), match=r"the image server|half an image"):
        fit(tmp_path, AHEAD, source=collating(collate))


@pytest.mark.slow
@pytest.mark.parametrize("draw", [lambda: torch.rand(1), np.random.rand, random.random])
def test_a_collate_that_draws_is_refused_in_a_worker(tmp_path, draw):
    def collate(usual, indices):
        draw()
        return usual(indices)

    fit(tmp_path / "in-line", IN_LINE, source=collating(collate))
    with pytest.raises(RequestError, match=r"collate draws random numbers.*train\.workers=0"):
        fit(tmp_path / "ahead", AHEAD, source=collating(collate))


def test_where_workers_cannot_run_ahead_the_card_says_why(tmp_path, monkeypatch):
    def prepare(model, indices):
        return indices

    def notes(name, extras):
        fit(tmp_path / name, extras)
        assert not children()
        return json.loads((tmp_path / name / "card.json").read_text())["notes"]

    assert notes("prepared", AHEAD | {"prepare": prepare}) == [
        "train.workers=2 had no effect: the step prepares its items from the model as it is then"
    ]
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert notes("pooled", AHEAD) == [
        "train.workers=2 had no effect: this job is one of a pool, whose processes may start none and share the cores "
        "already"
    ]
    assert bits(tmp_path / "pooled") == bits(tmp_path / "prepared")


def test_fewer_workers_than_none_are_refused():
    with pytest.raises(RequestError, match=r"train\.workers is -1"):
        TrainConfig(workers=-1)


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # one that nobody waits for is no orphan at work
    except psutil.NoSuchProcess:
        return False


KILLED = """
    import os, signal, sys, time
    from pathlib import Path
    from lightbox import files
    from lightbox.config import TrainConfig
    from lightbox.testing.training import fit_tagger, make_source, make_tagger, tagger_step

    out, moment = Path(sys.argv[1]), sys.argv[2]
    source, calls = make_source(), []
    collate = source.collate

    def die():
        (out / "workers").write_text(Path(f"/proc/self/task/{os.getpid()}/children").read_text())
        os.kill(os.getpid(), signal.SIGKILL)

    def slowly(indices):
        time.sleep(0.05)
        return collate(indices)

    def step(model, batch):
        calls.append(None)
        if moment == "between micro-batches" and len(calls) == 10 or moment == "first step" and len(calls) == 1:
            die()
        return tagger_step(model, batch)

    def sync(path, original=files.sync_file):
        original(path)
        if moment == "saving" and len(calls) == 11:
            die()

    files.sync_file, source.collate = sync, slowly
    extras = {"train": TrainConfig(workers=2)}
    optim = {"micro_batch_size": 2}
    fit_tagger(out, source=source, step=step, optim=optim, extras=extras, save_every_steps=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["first step", "between micro-batches", "saving"])
def test_a_training_that_is_killed_leaves_no_worker_and_continues_to_the_same_bits(tmp_path, moment):
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    out = tmp_path / "killed"
    out.mkdir()
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(script), str(out), moment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    newest = checkpoint.latest(out / "checkpoints")
    assert (newest.name if newest else "") == {
        "first step": "",
        "between micro-batches": "step-00000004",
        "saving": "step-00000004",
    }[moment]
    workers = (out / "workers").read_text().split()
    assert len(workers) >= 2
    deadline = time.monotonic() + 20  # a worker looks for its parent each five seconds
    while any(is_running(int(pid)) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(is_running(int(pid)) for pid in workers)
    fit(out, AHEAD, save_every_steps=2)
    fit(tmp_path / "straight", IN_LINE, save_every_steps=2)
    assert bits(out) == bits(tmp_path / "straight")
