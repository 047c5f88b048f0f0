"""What MedThink's configurations choose, and that its jobs call no code that their keys leave out."""

import shutil
import sys
from pathlib import Path

import pytest

import medthink
from lightbox.cli import main
from lightbox.cli.job_origin import explanation
from lightbox.paper.pretrained import find_pretrained
from lightbox.runs import folders, sources
from lightbox.runs.sources import OUTSIDE, closure
from medthink import train
from medthink.cli import ENTRIES
from medthink.config import chosen, resolve

SMOKE = ["preset=smoke", "run.seed=0"]
ADAPTERS = {"lightbox.adapters.attach", "lightbox.adapters.artifact", "lightbox.backbones.quantisation"}
READING = {"lightbox.readers.catalog", "lightbox.readers.leakage", "lightbox.readers.splits"} | {
    f"lightbox.readers.{name}" for name in ("dicom", "parquet", "rationales")
}
LLAVA = {"lightbox.backbones.loading", "lightbox.backbones.llava"}
REPORTED = {
    ("lightbox.adapters.manifest", "base_facts"): "what the card says of the weights",
    ("lightbox.backbones.quantisation", "quantised_as"): "whether the watch has quantised layers to look at",
}
"""(module, function) that jobs call which chose no adapter -> why it cannot change a number."""


@pytest.mark.parametrize(
    ("overrides", "modules"),
    [
        (["experiment=explanation"], set()),
        (["experiment=explanation", "adapter.kind=lora"], ADAPTERS),
        (["experiment=explanation", "train.checkpoint_layers=true"], ADAPTERS),
        (["experiment=explanation", "model.backbone=tiny/llava"], LLAVA),
        (["experiment=explanation", "data.source=r_slake", "data.root=x"], READING),
        (["experiment=majority"], set()),
        (["experiment=majority", "data.source=r_slake", "data.root=x"], READING),
    ],
)
def test_a_configuration_chooses_what_it_calls(overrides, modules):
    assert set(chosen(resolve([*SMOKE, *overrides]))) == modules


def test_a_job_with_llava_follows_its_module_and_no_other_family():
    reached = closure("medthink", chosen(resolve([*SMOKE, "experiment=none", "model.backbone=tiny/llava"])))
    assert reached.keys() >= LLAVA
    assert not {"lightbox.backbones.qwen_vl", "lightbox.backbones.florence2"} & reached.keys()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["adapter.kind=lora"], ["train.checkpoint_layers=true"]])
def test_a_job_calls_nothing_that_its_key_leaves_out(tiny, tmp_path, overrides):
    cfg = resolve([*tiny, "experiment=explanation", *overrides])
    covered = closure("medthink", chosen(cfg)).keys()
    calls = set()

    def note(frame, event, _):
        if event == "call":
            calls.add((frame.f_globals.get("__name__", ""), frame.f_code.co_name))

    base = find_pretrained(cfg.model.backbone)
    sys.setprofile(note)
    try:
        train.run(cfg, base, tmp_path / "run", cache=tmp_path / "cache", needs={}, keeps_model=False)
    finally:
        sys.setprofile(None)
    own = {(module, name) for module, name in calls if module.partition(".")[0] in ("lightbox", "medthink")}
    assert ("medthink.objective", "target_loss") in own
    left_out = {(module, name) for module, name in own if module not in covered}
    assert {pair for pair in left_out if not is_outside(pair[0])} <= REPORTED.keys()


def is_outside(module):
    return any(module == name or module.startswith(f"{name}.") for name in OUTSIDE)


def logged(caplog):
    """What was logged since the last call, on one line."""
    text = " ".join(record.getMessage() for record in caplog.records)
    caplog.clear()
    return text


@pytest.mark.slow
def test_a_finished_training_is_not_repeated_and_one_made_stale_by_an_edit_is(tiny, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    command = [*tiny, "experiment=none", f"run.out={tmp_path / 'out'}"]
    first = ENTRIES.run_once(command, "train")
    logged(caplog)
    assert ENTRIES.run_once(command, "train") == first
    assert "is finished already; run.resume=false trains anew" in logged(caplog)
    source = Path(medthink.__file__).parent
    edited = shutil.copytree(source, tmp_path / "medthink", ignore=lambda *_: ["__pycache__"])
    with (edited / "data.py").open("a") as file:
        file.write("\nEDITED = True\n")
    monkeypatch.setattr(sources, "_package_folder", lambda _: edited)
    second = ENTRIES.run_once(command, "train")
    assert second != first
    assert f"{first} is not what the same command would give now, so it is made anew: module medthink.data changed" in (
        logged(caplog)
    )


@pytest.mark.slow
def test_a_run_of_other_settings_is_not_called_stale_and_a_damaged_one_stops_nothing(tiny, tmp_path, caplog):
    caplog.set_level("INFO")
    first = ENTRIES.run_once([*tiny, "experiment=untouched", f"run.out={tmp_path}"], "train")
    (first / folders.RECORD).write_text("{")
    other = [*tiny, "experiment=untouched", f"run.out={tmp_path}", "data.n_test=11"]
    ENTRIES.run_once(other, "train")
    text = logged(caplog)
    assert f"{first / folders.RECORD} cannot be read" in text
    ENTRIES.run_once([*other, "data.n_test=10"], "train")
    assert "made anew" not in text + logged(caplog)


@pytest.mark.slow
def test_an_evaluation_is_explained_by_what_it_was_asked(tiny, tmp_path):
    first = ENTRIES.run_once([*tiny, "experiment=none", f"run.out={tmp_path}"], "train")
    scored = [override for override in tiny if not override.startswith("model.backbone=")]
    asked = [*scored, "experiment=none", f"run.out={tmp_path}", f"model.backbone={first / 'model'}"]
    again = ENTRIES.run_once(asked, "eval")
    key = folders.read_run(again).key
    assert explanation(key, tmp_path, tmp_path)[-1] == "Today: nothing differs"


def test_an_evaluation_is_shown_under_rival_rules_where_one_asks(tiny, tmp_path, capsys):
    asked = [*tiny, "experiment=untouched", f"run.out={tmp_path}"]
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "medthink", *asked, "--conventions"])
    assert caught.value.code == 0
    assert "llava-med-substring" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "medthink", "--conventions", "--", *asked, "--multirun"])
    assert caught.value.code == 2
    assert "--conventions is given with a sweep" in capsys.readouterr().err
