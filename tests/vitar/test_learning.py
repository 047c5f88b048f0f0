"""What a policy learns from: exactly what it says in the traces, from images encoded once, to the same bits again."""

import pytest
import torch

from lightbox.backbones.episodes import batch_of_ids
from lightbox.backbones.rows import IGNORED
from lightbox.errors import RequestError
from lightbox.paper import trace_learner
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.trace_learner import batch_of_traces, encode, read_traces, trace_loss
from vitar.config import resolve
from vitar.data import load_splits, tasks_of, traces_of
from vitar.model import open_policy
from vitar.rollout import Talk, learning_batch, roll_out


def settings(folder, *overrides):
    sizes = ["preset=smoke", f"model.backbone={folder}", "data.original_px=128", "data.n_train=8", "data.n_test=4"]
    return resolve([*sizes, "experiment=mark", *overrides])


def opened(cfg):
    policy = open_policy(cfg, find_pretrained(cfg.model.backbone))
    train = load_splits(cfg)[0]
    return policy, traces_of(cfg, train, policy.codec), train


@pytest.fixture(scope="module")
def made(qwen_folder):
    return opened(settings(qwen_folder))


def test_labels_are_exactly_the_tokens_that_the_policy_says(made):
    policy, traces, train = made
    backbone = policy.learner.backbone
    batch = policy.learner.collate(traces, train)(list(range(len(traces))))
    for row, sample in enumerate(traces):
        said = [i for turn in sample.record.answers for i in backbone.target_ids(turn.text)]
        assert batch.labels[row][batch.labels[row] != IGNORED].tolist() == said
    assert policy.learner.row_lengths(traces, train) == [
        [int(own)] for own in batch.inputs["attention_mask"].sum(dim=1)
    ]
    # an act is a tag, four bins and an end; an answer a tag, a word or its pieces, and an end
    assert len(backbone.target_ids(traces[0].record.answers[0].text)) == 6


def test_the_loss_on_kept_features_is_that_of_the_same_ids_with_their_images(made):
    policy, traces, train = made
    backbone = policy.learner.backbone
    rows, pictures = read_traces(backbone, [sample.record for sample in traces])
    assert len(pictures) == len({sample.image for sample in traces}) + len(traces) < 2 * len(traces)
    batch = batch_of_traces(backbone, rows[:5], encode(backbone, pictures))
    ids, is_label = [row.ids for row in rows[:5]], [row.is_label for row in rows[:5]]
    plain = batch_of_ids(backbone, ids, is_label, [sample.record.images for sample in traces[:5]])
    assert torch.equal(batch.inputs["input_ids"], plain.inputs["input_ids"])
    assert torch.equal(batch.labels, plain.labels)
    with torch.no_grad():
        total, tokens, shares = trace_loss(backbone, batch)
        logps = backbone.token_logps(plain)
    assert int(tokens) == int((plain.labels != IGNORED).sum())
    torch.testing.assert_close(total, -logps.sum(), rtol=1e-5, atol=1e-3)
    assert 0 <= float(shares["token_acc"]) <= 1


def test_what_is_learnt_is_what_is_played(made, script):
    """The rows of imitation are those of an episode in which the policy says the same."""
    policy, traces, train = made
    backbone, cfg = policy.learner.backbone, policy.cfg
    from_traces = policy.learner.collate(traces, train)([0, 1])
    said = [[sample.record.answers[turn].text for sample in traces[:2]] for turn in (0, 1)]
    script(backbone, said)
    tasks = tasks_of(cfg, train, [sample.image for sample in train.samples])[:2]
    episodes = roll_out(backbone, tasks, Talk(policy.codec, cfg.feedback, temperature=0.0), seeds=[0, 1])
    played = learning_batch(backbone, episodes)
    assert torch.equal(played.inputs["input_ids"], from_traces.inputs["input_ids"])
    assert torch.equal(played.labels, from_traces.labels)


@torch.no_grad()
def loss_of(policy, batch):
    return float(trace_loss(policy.learner.backbone, batch)[0])


def state_of(policy):
    return {name: value.clone() for name, value in policy.learner.backbone.core.state_dict().items()}


def test_a_step_lowers_the_loss_and_moves_projector_and_language_and_no_tower(qwen_folder, tmp_path):
    policy, traces, train = opened(settings(qwen_folder, "optim.max_steps=1", "optim.lr=0.0003"))
    batch = policy.learner.collate(traces, train)(list(range(8)))
    before, state = loss_of(policy, batch), state_of(policy)
    policy.learner.fit(traces, train, tmp_path)
    after = loss_of(policy, batch)
    assert after < before
    moved = {name for name, value in state_of(policy).items() if not torch.equal(value, state[name])}
    assert [name for name in moved if "visual.merger" in name]
    assert [name for name in moved if "language_model" in name]
    assert [name for name in moved if "visual" in name and "merger" not in name] == []


def test_a_tower_that_learns_is_encoded_in_the_step(qwen_folder, tmp_path):
    free = settings(qwen_folder, "optim.max_steps=1", "model.freezes_tower=false")
    policy, traces, train = opened(free)
    state = state_of(policy)
    policy.learner.fit(traces, train, tmp_path)
    moved = {name for name, value in state_of(policy).items() if not torch.equal(value, state[name])}
    assert [name for name in moved if "visual.blocks" in name]


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bits(qwen_folder, tmp_path, monkeypatch):
    cfg = settings(qwen_folder, "optim.max_steps=3", "optim.batch_size=4", "run.save_every_steps=1")
    whole, traces, train = opened(cfg)
    whole.learner.fit(traces, train, tmp_path / "whole")
    loss, calls = trace_learner.trace_loss, []

    def killed(backbone, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(backbone, batch)

    monkeypatch.setattr(trace_learner, "trace_loss", killed)
    first = opened(cfg)[0]
    with pytest.raises(KeyboardInterrupt):
        first.learner.fit(traces, train, tmp_path / "killed")
    monkeypatch.undo()
    again = opened(cfg)[0]
    again.learner.fit(traces, train, tmp_path / "killed")
    states = state_of(whole), state_of(again)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    histories = [(tmp_path / name / "history.json").read_bytes() for name in ("whole", "killed")]
    assert histories[0] == histories[1]


def test_what_cannot_be_learnt_from_is_refused(qwen_folder):
    with pytest.raises(RequestError, match=r"adapter\.init is eva"):
        open_policy(settings(qwen_folder, "adapter.kind=lora", "adapter.init=eva"), find_pretrained(str(qwen_folder)))


def test_adapters_learn_beside_a_frozen_model(qwen_folder, tmp_path):
    policy, traces, train = opened(settings(qwen_folder, "adapter.kind=lora", "optim.max_steps=1"))
    batch = policy.learner.collate(traces, train)([0, 1])
    before = loss_of(policy, batch)
    policy.learner.fit(traces, train, tmp_path)
    names = [name for name, value in policy.learner.backbone.model.named_parameters() if value.requires_grad]
    assert names
    assert all("lora" in name for name in names)
    assert loss_of(policy, batch) != before
