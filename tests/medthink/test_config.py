"""Cross-field rules, tuned learning rates, inputs of a job key, and refusals before torch is imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import medthink.conf
from lightbox.errors import RequestError
from lightbox.files import digest, to_plain
from lightbox.paper.composition import resolve as compose
from medthink import cli
from medthink.claims import PAPER
from medthink.config import estimate, inputs, resolve

SMOKE = ["preset=smoke", "run.seed=0"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.method=reasonin"], r"Did you mean objective.method=reasoning\?"),
        (["objective.pads=on"], "The choices are masked, official"),
        (["data.corruption_pct=10"], "belongs to corrupted rationales"),
        (["data.rationale=corrupted"], "belongs to corrupted rationales"),
        (["data.rationale=corrupted", "data.corruption_pct=101"], "at most 100"),
        (["experiment=none", "data.rationale=filler"], "Only Explanation and Reasoning train on altered rationales"),
        (["objective.method=majority"], "A baseline counts training answers"),
        (["objective.hides_answer=true"], "Only the reader"),
        (["experiment=none", "objective.answer_loss=alike"], "The answer is found as the first tokens"),
        (["experiment=explanation_pads", "objective.answer_loss=alike"], "The answer is found as the first tokens"),
        (["experiment=explanation_open", "objective.answer_loss=alike"], "an open question is as long as it is"),
        (["optim.steps_factor=0"], "optim.steps_factor is 0"),
        (["data.source=r_slake"], "data.root is empty"),
        (["data.source=r_slake", "data.root=x", "data.eval_split=test_shifted"], "Only the phantom"),
        (["model.features=detr.safetensors"], "Phantom images are drawn in the run"),
        (["model.dropout_prob=1"], "some units must stay"),
        (["data.n_test=0"], "data.n_test is 0"),
        (["data.n_tset=5"], "there is no key 'data.n_tset'"),
        (["preset=quik"], "Did you mean preset=quick"),
        (["experiment=explanatio"], r"Did you mean experiment=explanation\?"),
        (["experiment=zebra"], "The choices are untouched, majority"),
    ],
)
def test_impossible_requests_name_the_key(overrides, message):
    with pytest.raises(RequestError, match=message):
        resolve([*SMOKE, *overrides])


@pytest.mark.slow
def test_wrong_request_exits_2_before_torch_is_imported():
    code = "import sys; from medthink.cli import train\ntry:\n    train([sys.argv[1]])\nexcept SystemExit as stop:\n"
    code += "    sys.exit(9 if 'torch' in sys.modules or 'transformers' in sys.modules else stop.code)"
    command = [sys.executable, "-c", code, "objective.method=reasonin"]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 3
    assert "Traceback" not in done.stderr


def test_tuned_rate_applies_to_its_arm_and_the_command_line_wins(tmp_path, monkeypatch):
    copy = shutil.copytree(Path(medthink.conf.__file__).parent, tmp_path / "tuned_copy" / "conf")
    (copy / "tuned" / "quick.yaml").write_text("reasoning: 0.0003\n")
    (copy.parent / "claims.py").write_text("from medthink.claims import PAPER\n")
    (copy.parent / "config.py").write_text("import medthink.config\n")  # it registers the schema
    monkeypatch.syspath_prepend(tmp_path)

    def rate(*overrides):
        return compose("tuned_copy", ["preset=quick", *overrides]).optim.lr

    assert rate("experiment=reasoning") == 0.0003
    assert rate("experiment=none") == 0.001
    assert rate("experiment=reasoning", "optim.lr=0.5") == 0.5


def test_tuned_rates_name_arms_that_exist():
    assert set(resolve(["preset=quick"]).tuned) <= set(PAPER.arms)


def test_profiles_set_their_own_rate():
    given = ["model.backbone=x", "data.root=x"]
    assert resolve(["preset=paper", *given]).optim.lr == 0.0005
    assert resolve(["preset=paper", *given]).run.seed == 42


def test_targets_are_short_for_answers_and_long_for_rationales():
    assert resolve([*SMOKE, "experiment=none"]).target_tokens == 32
    assert resolve([*SMOKE, "experiment=explanation"]).target_tokens == 64
    assert resolve([*SMOKE, "experiment=none"]).new_tokens == 12
    assert resolve([*SMOKE, "experiment=explanation"]).new_tokens == 12 + 16
    assert resolve([*SMOKE, "experiment=stage1"]).new_tokens == 16


def test_only_the_folded_arm_is_folded():
    assert resolve([*SMOKE, "experiment=stage1_folds"]).is_folded
    assert not resolve([*SMOKE, "experiment=stage1"]).is_folded
    assert not resolve([*SMOKE, "experiment=stage2_out_of_fold"]).is_folded


def test_inputs_hold_the_weights_that_an_arm_uses(tiny):
    assert set(inputs(resolve([*tiny, "experiment=explanation"]))) == {"data", "device", "backbone", "tower"}
    assert set(inputs(resolve([*tiny, "experiment=reader"]))) == {"data", "device", "backbone"}
    assert set(inputs(resolve([*tiny, "experiment=majority"]))) == {"data"}


def test_eval_refuses_to_guess_a_model(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.evaluate([])
    assert stop.value.code == 2
    assert "There is no model to score" in capsys.readouterr().err


def test_eval_scores_what_it_is_given():
    cfg = compose("medthink", ["model.backbone=run/model", "experiment=reasoning"], is_trained=False)
    assert not cfg.objective.is_trained
    assert cfg.objective.method == "reasoning"


def test_resolved_configuration_has_a_stable_digest():
    first, second = (digest(to_plain(resolve([*SMOKE, "experiment=filler"]))) for _ in range(2))
    assert first == second


def test_estimate_grows_with_steps_and_folds(tiny):
    one = estimate(resolve([*tiny, "experiment=stage1", "optim.max_steps=100000"]))
    five = estimate(resolve([*tiny, "experiment=stage1_folds", "optim.max_steps=100000"]))
    assert five["minutes"] > 4 * one["minutes"]
    assert estimate(resolve([*tiny, "experiment=majority"]))["minutes"] < one["minutes"]


def test_a_data_set_of_text_files_has_a_digest(tmp_path):
    (tmp_path / "All_QA_Pairs_train.txt").write_text("synpic1|what plane is this?|axial\n")
    cfg = resolve(["experiment=none", "data.source=vqa_med_2019", f"data.root={tmp_path}"])
    before = inputs(cfg)["data"]
    (tmp_path / "All_QA_Pairs_train.txt").write_text("synpic1|what plane is this?|sagittal\n")
    assert inputs(cfg)["data"] != before
