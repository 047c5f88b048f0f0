import errno
import json
import logging
import os
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightbox import files
from lightbox.errors import RequestError, WorkError
from lightbox.testing.training import make_tagger
from lightbox.train import checkpoint, weights
from lightbox.train.checkpoint import ResumeState

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


class CrashError(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


def trained(seed=0, *, steps=2, **options):
    """A tagger and its AdamW after a few updates, so that every moment is non-zero."""
    model = make_tagger(seed, **options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, fused=True)
    for _ in range(steps):
        model(torch.arange(6)[None]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save_steps(folder, *steps):
    model, optimizer = trained()
    for step in steps:
        checkpoint.save(folder, model, optimizer, ResumeState(step=step))
    return model, optimizer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_checkpoint_loads_back_to_the_same_bits(tmp_path):
    model, optimizer = trained(seed=1)
    history = {"train/loss": [[1, 0.1 + 0.2], [2, 1e-300]]}
    path = checkpoint.save(tmp_path, model, optimizer, ResumeState(step=7, history=history, window={"a": [0.3, 1]}))
    other, fresh = trained(seed=2, steps=0)
    state = checkpoint.load(path, other, fresh)
    assert (state.step, state.history, state.window) == (7, history, {"a": [0.3, 1]})
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert optimizer.state[one].keys() == fresh.state[two].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(optimizer.state[one][slot], fresh.state[two][slot]) for slot in optimizer.state[one])
    assert fresh.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_checkpoint_holds_four_files_that_need_no_pickle(tmp_path):
    save_steps(tmp_path, 3)
    folder = tmp_path / "step-00000003"
    assert names(tmp_path) == ["step-00000003"]
    assert names(folder) == sorted(FILES)
    assert "head.weight|exp_avg" in load_file(folder / "optimizer.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(FILES[:3])
    assert manifest["files"]["state.json"]["sha256"] == files.file_sha256(folder / "state.json")


def test_only_the_newest_two_are_kept(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 10)
    assert names(tmp_path) == ["step-00000003", "step-00000010"]


def test_the_latest_checkpoint_is_the_highest_step_not_the_last_name(tmp_path):
    model, optimizer = trained()
    for step in (99_999_999, 100_000_000):
        checkpoint.save(tmp_path, model, optimizer, ResumeState(step=step))
    assert checkpoint.latest(tmp_path).name == "step-100000000"
    assert checkpoint.latest(tmp_path / "absent") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, name, harm):
    save_steps(tmp_path, 4, 8)
    file = tmp_path / "step-00000008" / name
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
    if harm == "delete":
        file.unlink()
    else:
        file.write_bytes(content[:-5] if harm == "truncate" else content)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(tmp_path).name == "step-00000004"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step-00000008" in caplog.text
    assert name in caplog.text


def test_a_digit_changed_in_the_manifest_itself_is_damage(tmp_path):
    save_steps(tmp_path, 8)
    manifest = tmp_path / "step-00000008" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step":8', '"step":9'))
    assert checkpoint.damage(manifest.parent) == "manifest.json does not match its own digest"


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    model, optimizer = save_steps(tmp_path, 4, 8)
    (tmp_path / "step-00000008" / "state.json").unlink()
    checkpoint.save(tmp_path, model, optimizer, ResumeState(step=8))
    assert checkpoint.damage(tmp_path / "step-00000008") is None
    assert names(tmp_path) == ["step-00000004", "step-00000008"]


def test_a_save_below_a_damaged_higher_step_keeps_the_good_ones(tmp_path):
    model, optimizer = save_steps(tmp_path, 4, 8)
    (tmp_path / "step-00000008" / "state.json").unlink()
    for step in (5, 6):
        checkpoint.save(tmp_path, model, optimizer, ResumeState(step=step))
    assert names(tmp_path) == ["step-00000005", "step-00000006", "step-00000008"]


POINTS = ["write_tensors", "sync_file", "write_synced", "sync_folder", "rename", "damage"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_leaves_a_checkpoint_that_verifies(tmp_path, monkeypatch, point, moment):
    model, optimizer = save_steps(tmp_path, 1, 2)
    owner = {"rename": type(tmp_path), "damage": checkpoint, "write_tensors": weights}.get(point, files)
    original = getattr(owner, point)
    occasions = 0

    def crash(*arguments, **options):
        nonlocal occasions, countdown
        occasions += 1
        countdown -= 1
        if countdown == 0 and moment == "before":
            raise CrashError
        outcome = original(*arguments, **options)
        if countdown == 0:
            raise CrashError
        return outcome

    for at in range(1, 4):
        countdown, occasions = at, 0
        step = 2 + at
        with monkeypatch.context() as patch:
            patch.setattr(owner, point, crash)
            try:
                checkpoint.save(tmp_path, model, optimizer, ResumeState(step=step))
                assert 0 < occasions < at  # this point is not passed so often
            except CrashError:
                assert occasions == at
        newest = checkpoint.latest(tmp_path)
        assert newest is not None
        assert int(newest.name[5:]) >= step - 1
        checkpoint.clean(tmp_path)
        assert not list(tmp_path.glob(".tmp*"))
        checkpoint.save(tmp_path, model, optimizer, ResumeState(step=step))


def test_clean_removes_what_killed_saves_left(tmp_path):
    save_steps(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".tmp-2-4711")
    checkpoint.clean(tmp_path)
    assert names(tmp_path) == ["step-00000001"]


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writer", ["write_synced", "sync_file", "sync_folder"])
def test_a_full_disk_keeps_the_old_checkpoint_warns_and_fails_at_the_third_time(tmp_path, monkeypatch, caplog, writer):
    model, optimizer = save_steps(tmp_path, 1, 2)
    monkeypatch.setattr(files, writer, full_disk)
    failures = 0
    for step in (3, 4):
        with caplog.at_level(logging.WARNING):
            failures = checkpoint.save_or_warn(tmp_path, model, optimizer, ResumeState(step=step), failures=failures)
        assert f"Step {step}: no checkpoint written (No space left on device)" in caplog.text
    assert failures == 2
    with pytest.raises(WorkError, match=r"step 5 cannot be written.*3 times in a row.*run\.out"):
        checkpoint.save_or_warn(tmp_path, model, optimizer, ResumeState(step=5), failures=failures)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert checkpoint.latest(tmp_path).name == "step-00000002"


def test_a_good_save_ends_the_row_of_failures(tmp_path):
    model, optimizer = trained()
    assert checkpoint.save_or_warn(tmp_path, model, optimizer, ResumeState(step=5), failures=2) == 0


def test_too_little_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    model, optimizer = save_steps(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(files, "write_synced", None)
    with pytest.raises(OSError, match="MiB needed, 0 MiB free"):
        checkpoint.save(tmp_path, model, optimizer, ResumeState(step=2))


def test_a_file_size_limit_of_the_system_keeps_the_old_checkpoint(tmp_path):
    """The writer of safetensors meets the limit itself here, in a child process."""
    model, optimizer = save_steps(tmp_path, 1)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        outcome = 9
        try:
            outcome = checkpoint.save_or_warn(tmp_path, model, optimizer, ResumeState(step=2), failures=0)
        finally:
            os._exit(outcome)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1  # one failure in a row
    assert names(tmp_path) == ["step-00000001"]
    assert checkpoint.latest(tmp_path).name == "step-00000001"


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    model, optimizer = trained(seed=1, is_tied=True)
    path = checkpoint.save(tmp_path, model, optimizer, ResumeState(step=1))
    stored = load_file(path / "model.safetensors")
    assert "embed.weight" in stored
    assert "head.weight" not in stored
    other, fresh = trained(seed=2, steps=0, is_tied=True)
    checkpoint.load(path, other, fresh)
    assert other.head.weight is other.embed.weight
    assert torch.equal(other.head.weight, model.embed.weight)


def test_a_tied_file_fills_both_names_of_an_untied_model(tmp_path):
    model, _ = trained(seed=1, is_tied=True)
    weights.write_tensors(tmp_path / "w.safetensors", model.state_dict())
    untied = make_tagger(2)
    weights.load_trained_tensors(tmp_path / "w.safetensors", untied)
    assert torch.equal(untied.head.weight, model.embed.weight)
    assert untied.head.weight.data_ptr() != untied.embed.weight.data_ptr()


def test_views_of_one_storage_are_stored_apart(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    weights.write_tensors(tmp_path / "w.safetensors", {"row": base[1], "turned": base.T, "all": base})
    read = weights.read_tensors(tmp_path / "w.safetensors")
    assert torch.equal(read["row"], base[1])
    assert torch.equal(read["turned"], base.T)
    assert torch.equal(read["all"], base)


def test_frozen_parameters_are_left_out_and_buffers_are_kept(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    path = checkpoint.save(tmp_path, model, optimizer, ResumeState(step=1))
    stored = set(load_file(path / "model.safetensors"))
    assert stored == {
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
        "2.weight",
        "2.bias",
    }
    assert checkpoint.load(path, model, optimizer).step == 1
    model[0].requires_grad_(True)
    with pytest.raises(RequestError, match=r"missing \(2\): 0\.bias, 0\.weight"):
        checkpoint.load(path, model, optimizer)


def test_weights_that_do_not_fit_are_refused_with_four_lists_and_nothing_is_changed(tmp_path):
    model = make_tagger()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor + 1 for name, tensor in model.state_dict().items() if name != "norm.bias"}
    save_file(tensors | {"extra": torch.zeros(1), "embed.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(RequestError) as caught:
        weights.load_trained_tensors(tmp_path / "w.safetensors", model)
    assert "w.safetensors does not fit Tagger" in caught.value.given
    for part in (
        "in file (9): embed.weight, extra, head.bias",
        "in model (9): embed.weight, head.bias",
        "missing (1): norm.bias",
        "unexpected (1): extra",
        "of another shape (1): embed.weight",
    ):
        assert part in caught.value.why
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", FILES[:3])
def test_a_checkpoint_with_a_flipped_bit_is_refused_before_anything_is_loaded(tmp_path, name):
    """safetensors itself does not notice it."""
    model, optimizer = save_steps(tmp_path, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = tmp_path / "step-00000001" / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with torch.no_grad():
        model.head.bias.add_(1.0)
    with pytest.raises(WorkError, match=f"step-00000001 is damaged. {name} does not match its digest. Run the same"):
        checkpoint.load(file.parent, model, optimizer)
    assert torch.equal(model.head.bias, before["head.bias"] + 1.0)


@pytest.mark.parametrize("content", [b"", b"not a tensor file", b"\xff" * 64])
def test_a_file_that_holds_no_tensors_is_refused_by_name(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WorkError, match=r"w\.safetensors cannot be read"):
        weights.read_tensors(tmp_path / "w.safetensors")


def test_another_configuration_is_refused_by_key(tmp_path):
    model, optimizer = trained()
    path = checkpoint.save(tmp_path, model, optimizer, ResumeState(step=1, settings={"optim.lr": 0.1, "run.seed": 0}))
    with pytest.raises(RequestError, match=r"optim\.lr=0\.1 \(now 0\.2\)\. .*run\.resume=false"):
        checkpoint.load(path, model, optimizer, settings={"optim.lr": 0.2, "run.seed": 0})


def test_a_fresh_run_sets_old_checkpoints_aside_and_deletes_nothing(tmp_path):
    folder = tmp_path / "checkpoints"
    for number in (1, 2):
        save_steps(folder, number)
        checkpoint.set_aside(folder)
    assert names(tmp_path) == ["checkpoints-before-1", "checkpoints-before-2"]
    assert names(tmp_path / "checkpoints-before-2") == ["step-00000002"]


@pytest.mark.slow
def test_a_tiny_t5_with_tied_embeddings_makes_the_round_trip(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration  # noqa: PLC0415  15 s that the fast lane does not spend

    def make(seed):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        return T5ForConditionalGeneration(config)

    model, other = make(1), make(2)
    optimizer, fresh = (torch.optim.AdamW(m.parameters(), lr=0.01) for m in (model, other))
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    path = checkpoint.save(tmp_path, model, optimizer, ResumeState(step=1))
    stored = load_file(path / "model.safetensors")
    assert {"shared.weight", "encoder.embed_tokens.weight"} & set(stored) == {"shared.weight"}
    checkpoint.load(path, other, fresh)
    assert other.encoder.embed_tokens.weight is other.shared.weight
    model.eval(), other.eval()
    assert torch.equal(model(input_ids=ids, labels=ids).logits, other(input_ids=ids, labels=ids).logits)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[one]["exp_avg"], fresh.state[two]["exp_avg"])
