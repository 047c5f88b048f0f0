"""Adapters on the paper's T5: additions and the fusion train, the rest stays, and what is saved comes back."""

import pytest
import torch
from safetensors.torch import load_file

from lightbox.adapters.artifact import wrapped_model
from lightbox.backbones.quantisation import count_by_part
from lightbox.errors import RequestError
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.purpose import read_purpose
from lightbox.runs import folders
from lightbox.testing.tiny_models import save_tower
from medthink import cli, train
from medthink.config import resolve
from medthink.data import load_splits
from medthink.predict import predict

LORA = ["adapter.kind=lora", "adapter.r=4"]
NF4 = [*LORA, "adapter.quant=nf4", "model.dtype=bf16"]


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def learner(tiny, tmp_path):
    """A function that makes a learner and its splits."""

    def build(*overrides):
        cfg = resolve([*tiny, "experiment=explanation", *overrides])
        splits = load_splits(cfg)
        base = find_pretrained(cfg.model.backbone)
        return cfg, train.open_learner(cfg, base, splits, cache=tmp_path / "cache"), splits

    return build


@pytest.mark.parametrize("more", [LORA, NF4], ids=["lora", "nf4"])
def test_additions_and_fusion_train_and_nothing_else(learner, tmp_path, more):
    cfg, own, (seen, _) = learner(*more)
    base = state(own.backbone.core)
    own.fit(train.training_questions(cfg, seen.samples, {}, own.tokenizer), seen, tmp_path / "run")
    model = wrapped_model(own.backbone)
    moved = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split("base_model.model.")[1].split(".")[0] for name in moved} == {"encoder", "decoder", "fusion"}
    assert all("lora_" in name or ".fusion.modules_to_save." in name for name in moved)
    now = {
        name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", ""): tensor
        for name, tensor in state(model).items()
        if "lora_" not in name and "modules_to_save" not in name
    }
    assert now.keys() == base.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in base.items())


def test_four_bits_are_for_the_t5_and_not_for_its_fusion(learner):
    _, own, _ = learner(*NF4)
    counts = count_by_part(own.backbone.core, own.backbone.family)
    assert counts["language"].quantised > 0
    assert (counts["projector"].linear, counts["projector"].quantised) == (3, 0)
    assert counts["head"].quantised == 0


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(LORA, id="lora"),
        pytest.param(NF4, id="nf4"),
        pytest.param([*LORA, "adapter.quant=int8"], id="int8", marks=pytest.mark.slow),
    ],
)
def test_saved_adapter_scores_the_same_and_answers(tiny, tmp_path, more):
    cli.train([*tiny, "experiment=explanation", *more, f"run.out={tmp_path}"])
    run = next((tmp_path / "runs").iterdir())
    assert not (run / "model" / "config.json").exists()
    assert any(".fusion." in name for name in load_file(run / "model" / "adapter_model.safetensors"))
    own = [o for o in tiny if not o.startswith("model.backbone")] + [f"model.backbone={run / 'model'}"]
    cli.evaluate([*own, "experiment=explanation", f"run.out={tmp_path / 'again'}"])
    again = next((tmp_path / "again" / "runs").iterdir())
    assert folders.read_scores(again).equals(folders.read_scores(run))
    picture = next((run / "examples").iterdir())
    assert sum(predict(picture, "is it ?", folder=run, options=("yes", "no"))["options"].values()) == pytest.approx(1)


@pytest.mark.slow
def test_checkpointed_layers_change_no_bit_of_the_history(tiny, tmp_path):
    histories = []
    for name, more in {"kept": [], "again": ["train.checkpoint_layers=true"]}.items():
        folder = tmp_path / "jobs" / name
        cli.run_job(folder, [*tiny, "experiment=none", *LORA, *more], {})
        histories.append((folder / "history.json").read_bytes())
    assert histories[0] == histories[1]


def test_reader_has_no_fusion_to_train(learner, tmp_path):
    cfg, own, (seen, _) = learner("experiment=reader", *LORA)
    own.fit(train.training_questions(cfg, seen.samples, {}, own.tokenizer), seen, tmp_path / "run")
    own.save(tmp_path / "model", cfg.purpose)
    assert read_purpose(tmp_path / "model") == {"purpose": {"objective.method": "reader", "data.form": "closed"}}


def test_fusion_for_features_of_another_width_is_refused(tiny, tmp_path):
    cli.train([*tiny, "experiment=none", *LORA, f"run.out={tmp_path}"])
    model = next((tmp_path / "runs").iterdir()) / "model"
    own = [o for o in tiny if not o.startswith(("model.backbone", "model.tower"))]
    other = save_tower(tmp_path / "tower", width=32)
    asked = [*own, f"model.backbone={model}", f"model.tower={other}", "experiment=none", "objective.is_trained=false"]
    with pytest.raises(RequestError, match="a fusion for features of width 24, and these have 32"):
        cli.run_job(tmp_path / "jobs" / "x", asked, {})
