"""`preset=consumer_gpu` on models in miniature: by the same code on a CPU here and on a card where there is one."""

import json

import pytest

from lightbox.runs import folders
from lightbox.testing.shrunk import save_shrunk
from medthink import cli

FAMILIES = ("unifiedqa-t5-base", "llava-med", "qwen2.5-vl-7b", "florence-2-base", "medgemma-4b")
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = ("data.n_train=16", "data.n_test=6", "data.source_tokens=128", "data.target_tokens=128")
SHORT = ("optim.max_steps=2", "optim.batch_size=8", "eval.rationale_tokens=8", "eval.answer_tokens=8")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_profile_trains_scores_and_is_scored_again(family, device, tower_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lightbox.paper.entries.index_run", lambda *_: None)
    weights = save_shrunk(family, tmp_path / "weights")
    profile = ["preset=consumer_gpu", "data.source=phantom", "data.root=''", f"run.device={device}", "run.seed=0"]
    own = [*profile, *SMALL, *SHORT, "experiment=explanation"]
    if family.startswith("unifiedqa"):
        own.append(f"model.tower={tower_folder}")
    cli.train([*own, f"model.backbone={weights}", f"run.out={tmp_path / 'out'}"])
    run = next((tmp_path / "out" / "runs").iterdir())
    card = json.loads((run / "card.json").read_text())
    assert (card["quant"], card["dtype"], card["precision"]) == ("nf4", "bfloat16", "bf16")
    cli.evaluate([*own, f"model.backbone={run / 'model'}", f"run.out={tmp_path / 'again'}"])
    again = next((tmp_path / "again" / "runs").iterdir())
    assert folders.read_scores(run).num_rows == 6 * 3
    assert folders.read_scores(again).equals(folders.read_scores(run))
