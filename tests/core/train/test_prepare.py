"""A stage before the micro-batches: a toy DPO with cached references, and rollouts in groups sampled from the model.

Both are killed, continued and cut into smaller micro-batches, and must come to the bits of a run that never was.
"""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightbox.config import TrainConfig
from lightbox.errors import RequestError, WorkError
from lightbox.files import file_sha256
from lightbox.testing.training import collate_rows, fit_tagger, make_rows, make_source, make_tagger
from lightbox.train import checkpoint

STEPS, BATCH, SAVE_EVERY = 8, 4, 3
GROUP, PROMPT, ANSWER = 3, 3, 5


class CrashError(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


class Errand:
    """A training whose items are prepared; notes what was prepared, and can be killed at a moment of its choice.

    Args:
        killed_in: "prepare", "passes" or "update"; "" is never.
        at: step of the kill, counted from 1.
        narrow_from: step from which more than one item in a micro-batch finds no memory; 0 is never.
    """

    def __init__(self, *, killed_in="", at=0, narrow_from=0, dropout=0.2):
        self.killed_in, self.at, self.narrow_from = killed_in, at, narrow_from
        self.model = make_tagger(dropout=dropout)
        self.prepared = []
        self.pass_sizes = []
        self.done_before = 0

    @property
    def begun(self):
        """Steps whose items are prepared, those of earlier sessions included."""
        return self.done_before + len(self.prepared)

    def prepare(self, model, indices):
        assert not model.training
        assert not torch.is_grad_enabled()
        items = []
        for index in indices:
            if self.killed_in == "prepare" and self.begun + 1 == self.at and items:
                raise CrashError
            items.append(self.item(model, index))
        self.prepared.append(items)
        self.pass_sizes.append([])
        return items

    def step(self, model, batch):
        assert model.training
        sizes = self.pass_sizes[-1]
        if self.killed_in == "passes" and self.begun == self.at and sizes:
            raise CrashError
        sizes.append(batch.pop("items"))
        loss = self.loss(model, batch)
        if self.narrow_from and self.begun >= self.narrow_from and sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss

    def evaluate(self, model):
        if self.killed_in == "update" and self.begun == self.at:
            raise CrashError
        return {}

    def train(self, out, *, optim=None, **options):
        """Fit, or continue what a killed task left in `out`."""
        self.done_before = saved_step(out)
        source = make_source(batch_size=BATCH)
        source.collate = lambda items: self.collate(items) | {"items": len(items)}
        return fit_tagger(
            out,
            model=self.model,
            source=source,
            step=self.step,
            evaluate=self.evaluate,
            optim={"max_steps": STEPS, "micro_batch_size": 2, "batch_size": BATCH} | (optim or {}),
            extras={"prepare": self.prepare} | options.pop("extras", {}),
            save_every_steps=SAVE_EVERY,
            **options,
        )


class Preferences(Errand):
    """DPO: pairs of rows with the log-probabilities of a reference, which is the model as it was before training."""

    def __init__(self, **options):
        super().__init__(**options)
        self.reference = copy.deepcopy(self.model).eval()
        self.cache = {}
        rows = make_rows()
        self.pairs = [(row, row[::-1].copy()) for row in rows]

    def item(self, model, index):
        if index not in self.cache:  # row by row, so that it does not matter which batch an item came in first
            self.cache[index] = torch.cat([log_probs(self.reference, collate_rows([row])) for row in self.pairs[index]])
        return {"pair": self.pairs[index], "reference": self.cache[index]}

    def collate(self, items):
        rows = collate_rows([item["pair"][side] for side in (0, 1) for item in items])
        return rows | {"reference": torch.stack([item["reference"] for item in items])}

    def loss(self, model, batch):
        chosen, rejected = log_probs(model, batch).chunk(2)
        margins = (chosen - batch["reference"][:, 0]) - (rejected - batch["reference"][:, 1])
        return -nn.functional.logsigmoid(margins).sum(), len(margins), {"margin": margins.detach().mean()}


class Rollouts(Errand):
    """GRPO: of each prompt a group of answers sampled from the model, with advantages within the group."""

    def item(self, model, index):
        ids = torch.from_numpy(np.stack([make_rows()[index][:PROMPT]] * GROUP))
        for _ in range(ANSWER):
            probs = model(ids)[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probs, 1)], dim=1)
        rewards = (ids[:, PROMPT:] % 2 == 0).float().mean(dim=1)
        return {"ids": ids, "advantages": rewards - rewards.mean()}

    def collate(self, items):
        ids = torch.cat([item["ids"] for item in items])
        labels = ids.roll(-1, dims=1)
        labels[:, : PROMPT - 1] = -100
        labels[:, -1] = -100
        return {"ids": ids, "labels": labels, "advantages": torch.cat([item["advantages"] for item in items])}

    def loss(self, model, batch):
        weighted = batch["advantages"] * log_probs(model, batch)
        return -weighted.sum(), (batch["labels"] != -100).sum(), {}


def log_probs(model, batch):
    """Summed log-probability of each row's labels."""
    losses = nn.functional.cross_entropy(model(batch["ids"]).mT, batch["labels"], ignore_index=-100, reduction="none")
    return -losses.sum(dim=1)


def saved_step(out):
    newest = checkpoint.latest(out / "checkpoints")
    return 0 if newest is None else int(newest.name[5:])


def tensors_of(out):
    folder = out / "checkpoints" / f"step-{STEPS:08d}"
    return {file.name: file_sha256(file) for file in folder.glob("*.safetensors")}


def assert_same_items(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("task", [Preferences, Rollouts])
@pytest.mark.parametrize(("moment", "at"), [("prepare", 5), ("passes", 5), ("update", 6)])
def test_a_run_that_is_killed_comes_to_the_same_bits(tmp_path, task, moment, at):
    """While items are prepared, between two micro-batches, and after an update before it is saved."""
    straight, killed, again = task(), task(killed_in=moment, at=at), task()
    straight.train(tmp_path / "straight")
    with pytest.raises(CrashError):
        killed.train(tmp_path / "killed")
    assert saved_step(tmp_path / "killed") == 3  # so whole steps are lost each time
    again.train(tmp_path / "killed")
    last = f"checkpoints/step-{STEPS:08d}"
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert file_sha256(tmp_path / "killed" / last / name) == file_sha256(tmp_path / "straight" / last / name)
    assert (tmp_path / "killed/history.json").read_bytes() == (tmp_path / "straight/history.json").read_bytes()
    assert_same_items(killed.prepared, straight.prepared[: len(killed.prepared)])
    assert_same_items(again.prepared, straight.prepared[3:])


@pytest.mark.slow
@pytest.mark.parametrize("task", [Preferences, Rollouts])
def test_a_step_that_is_halved_learns_from_the_items_that_it_had(tmp_path, task):
    """To the bits of a run that had the small micro-batch from that step on."""
    at = SAVE_EVERY + 1
    halved = task(narrow_from=at)
    _, history = halved.train(tmp_path / "halved", extras={"train": TrainConfig(auto_batch=True)})
    assert history.pop("train/micro_batch_size") == [[at, 1.0]]
    assert [len(items) for items in halved.prepared] == [4, 4, 4, 4, 4, 2, 4, 4]  # once each; 22 items are 5 batches
    assert halved.pass_sizes[at - 2 : at + 1] == [[2, 2], [2, 1, 1, 1, 1], [1, 1, 1, 1]]
    with pytest.raises(CrashError):
        task(killed_in="prepare", at=at).train(tmp_path / "small")
    _, expected = task().train(tmp_path / "small", optim={"micro_batch_size": 1})
    assert history == expected
    assert tensors_of(tmp_path / "halved") == tensors_of(tmp_path / "small")


@pytest.mark.slow
def test_preferences_start_at_log_2_and_rollouts_raise_the_reward(tmp_path):
    _, history = Preferences(dropout=0.0).train(tmp_path / "preferences", log_every_steps=1)
    assert history["train/loss"][0][1] == pytest.approx(math.log(2), abs=1e-6)
    assert history["train/loss"][-1][1] < 0.6
    rollouts = Rollouts(dropout=0.0)
    rollouts.train(tmp_path / "rollouts", optim={"max_steps": 60, "lr": 0.05})
    shares = [
        np.mean([(item["ids"][:, PROMPT:] % 2 == 0).float().mean() for item in items]) for items in rollouts.prepared
    ]
    assert np.mean(shares[-10:]) > np.mean(shares[:10]) + 0.2


def test_every_step_samples_anew(tmp_path):
    rollouts = Rollouts()
    rollouts.train(tmp_path, optim={"lr": 1e-9})
    drawn = {tuple(item["ids"].flatten().tolist()) for items in rollouts.prepared for item in items}
    assert len(drawn) == sum(len(items) for items in rollouts.prepared)


def test_items_are_prepared_in_the_precision_of_the_step(tmp_path):
    """Else a reference would differ from the policy that it equals."""
    dtypes = []

    def prepare(model, indices):
        dtypes.append(model(torch.zeros(1, 3, dtype=torch.long)).dtype)
        return indices

    fit_tagger(tmp_path, optim={"max_steps": 1}, extras={"prepare": prepare}, precision="bf16")
    assert dtypes == [torch.bfloat16]


def test_items_that_are_their_indices_give_the_run_without_the_stage(tmp_path):
    fit_tagger(tmp_path / "plain")
    fit_tagger(tmp_path / "stage", extras={"prepare": lambda model, indices: indices})
    name = "checkpoints/step-00000012"
    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert file_sha256(tmp_path / "plain" / name / file) == file_sha256(tmp_path / "stage" / name / file)


def test_a_prepared_item_that_is_not_finite_is_shown_as_it_was_prepared(tmp_path):
    class Broken(Rollouts):
        def item(self, model, index):
            item = super().item(model, index)
            return item | {"advantages": item["advantages"] / (index != 7)}

    broken = Broken()
    with pytest.raises(WorkError, match=r"At step \d the loss is nan .* row-7.*not finite is batch\.advantages"):
        broken.train(tmp_path)
    assert len(broken.prepared) == 1 + json.loads((tmp_path / "nonfinite.json").read_text())["last_good_step"]
    assert broken.pass_sizes[-1] == [2, 2]  # the batch itself is to blame, so no pass is made again


def test_memory_that_runs_out_in_the_stage_is_explained(tmp_path):
    def prepare(model, indices):
        return torch.empty(1 << 46, dtype=torch.uint8)

    extras = {"prepare": prepare, "memory_advice": lambda size: f"{size} items take 7 GiB"}
    with pytest.raises(
        WorkError, match=r"in prepare of step 1 \(.*can't allocate memory.* 4 items take 7 GiB\. Let prepare"
    ):
        fit_tagger(tmp_path, extras=extras)


def test_another_number_of_items_than_indices_is_refused(tmp_path):
    with pytest.raises(
        RequestError, match=r"prepare gave 3 items for 4 indices\. .* a group of samples is one item\. "
    ):
        fit_tagger(tmp_path, extras={"prepare": lambda model, indices: indices[1:]})
