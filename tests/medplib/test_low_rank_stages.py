"""The four stages on a frozen base with low-rank additions: what trains, what an expert is, what is read again."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lightbox.backbones.segmenter import load_segmenter
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.paper.pretrained import find_pretrained
from lightbox.runs.folders import MODEL, read_card, read_scores
from lightbox.testing.shrunk import save_shrunk
from medplib.artifact import open_model
from medplib.assembly import mixtures
from medplib.claims import PAPER
from medplib.cli import ENTRIES
from medplib.config import resolve
from medplib.model import open_arm
from medplib.routing import routed_to

run_once = partial(ENTRIES.run_once, is_indexed=False)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["llava-1.5", "qwen2.5-vl"])
def sizes(request, folders, tmp_path_factory):
    """A LLaVA in 32 bit, and a Qwen in 4 bit whose layers are computed again in the backward pass."""
    backbone, how = folders / "llava-1.5", ["adapter.quant=none"]
    if request.param == "qwen2.5-vl":
        backbone = save_shrunk("qwen2.5-vl-7b", tmp_path_factory.mktemp("qwen"))
        how = ["adapter.quant=nf4", "train.checkpoint_layers=true"]
    parts = [f"model.backbone={backbone}", f"model.segmenter={folders / 'sam'}", "model.start_tower=''"]
    additions = ["adapter.kind=lora", "adapter.r=4", "adapter.projector=full", *how]
    return ["preset=smoke", *parts, *additions, "eval.answer_tokens=4"]


@pytest.fixture(scope="module")
def trained(sizes, arms_of):
    """A finished run of an arm by its name."""
    return arms_of(sizes)


def weights_of_run(folder):
    return load_file(folder / MODEL / "adapter_model.safetensors") | load_file(folder / MODEL / "pixel_vlm.safetensors")


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_each_stage_changes_additions_of_its_own_and_never_the_base(trained):
    align, vl, grounding = (weights_of_run(trained(arm)) for arm in ("align", "vl", "grounding"))
    by_vl, by_grounding = moved(align, vl), moved(vl, grounding)
    projector = ("projector", "merger")  # a LLaVA's and a Qwen's
    for part in ("self_attn", ".mlp.", "tokens_delta", projector):
        assert any(word in name for name in by_vl for word in ((part,) if isinstance(part, str) else part))
    assert all(any(word in name for word in ("lora_", "delta", "region_adapter", *projector)) for name in by_vl)
    assert {name.split(".")[0] for name in by_grounding if ".mlp." not in name} == {"seg_projector", "sam"}
    assert read_card(trained("vl"))["learns"].keys() == {
        *("projector", "tables", "attention", "networks", "region_adapter")
    }


def test_experts_share_the_base_and_each_is_the_model_that_it_came_from(sizes, trained, items):
    cfg = resolve([*sizes, "experiment=mixture"])
    needs = {need: trained(need) for need in PAPER.arms["mixture"].needs}
    model = open_arm(cfg, find_pretrained(cfg.model.backbone), needs).eval()
    for _, mixture in mixtures(model.backbone.core):
        vl, grounding = (mixture.experts[name].gate_proj for name in ("vl", "grounding"))
        assert vl.base_layer.weight is grounding.base_layer.weight
        assert not torch.equal(vl.lora_B["default"].weight, grounding.lora_B["default"].weight)
    for name, folder in needs.items():
        alone = open_model(folder / MODEL, model.segmenter, adapter=cfg.adapter, dtype=cfg.model.dtype).eval()
        with torch.no_grad(), routed_to(model.vlm, name):
            torch.testing.assert_close(logits_of(model, items), logits_of(alone, items), atol=1e-5, rtol=1e-5)


def logits_of(model, items):
    return model.backbone.supervised_logits(model._seen(model.prepare(items))[0])[0]


def test_a_trained_mixture_is_read_again_and_answers_as_it_did(sizes, trained, items, tmp_path):
    folder = trained("mixture")
    pretrained = find_pretrained(str(folder / MODEL))
    cfg = resolve([*sizes, "experiment=mixture"])
    again = open_arm(cfg, pretrained, {}).eval()
    saved = weights_of_run(folder)
    assert any(".experts.grounding.gate_proj.lora_A" in name for name in saved)
    assert any(".router.rows.grounding" in name for name in saved)
    before = open_arm(cfg, find_pretrained(cfg.model.backbone), {n: trained(n) for n in PAPER.arms["mixture"].needs})
    own, started = again.state_dict(), before.state_dict()
    changed = {name for name in own if not torch.equal(own[name], started[name])}
    assert any(".router." in name for name in changed)
    assert any(".experts.vl." in name for name in changed)
    part = [f"model.backbone={folder / MODEL}", f"run.out={tmp_path / 'again'}", "experiment=mixture"]
    plain = [own for own in sizes if not own.startswith(("adapter.", "model.backbone"))]
    scored = run_once([*plain, *part], "eval")
    assert read_scores(scored).equals(read_scores(folder))
    path = tmp_path / "seen.png"
    Image.fromarray(items[0].image).save(path)
    said = ENTRIES.predict(image=path, question="segment the liver .", run=folder)
    assert isinstance(said["answer"], str)


def test_the_oracle_chooses_for_the_backward_pass_too_and_for_nobody_after_it(trained):
    assert read_card(trained("oracle"))["learns"].keys() >= {"networks", "queries_values"}


def test_other_additions_than_those_of_the_stage_before_are_refused(sizes, folders, trained):
    segmenter = load_segmenter(str(folders / "sam"))
    own = AdapterConfig(kind="lora", r=4, projector="full", quant=quant_of(sizes))
    with pytest.raises(RequestError, match=r"was trained with .*'r': 4.*adapter\.\* .*'r': 8"):
        open_model(trained("align") / MODEL, segmenter, adapter=replace(own, r=8))
    with pytest.raises(RequestError, match=r"in fp32, and here are .* and bf16"):
        open_model(trained("align") / MODEL, segmenter, adapter=own, dtype="bf16")


def test_an_adapter_of_another_paper_is_no_model_here(sizes, trained, tmp_path):
    shutil.copytree(trained("align") / MODEL, tmp_path / "other")
    (tmp_path / "other" / "pixel_vlm.json").unlink()
    cfg = resolve([*sizes, "experiment=mixture"])
    with pytest.raises(RequestError, match=r"is the adapter '.*other'.*not trained here"):
        open_arm(cfg, find_pretrained(str(tmp_path / "other")), {})


def quant_of(sizes):
    return next(own.rpartition("=")[2] for own in sizes if own.startswith("adapter.quant"))
