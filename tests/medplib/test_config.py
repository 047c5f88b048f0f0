"""Rules between settings: what cannot work is refused before torch; what a job reads is in its key."""

import pytest

from lightbox.errors import RequestError
from lightbox.paper.pretrained import find_pretrained
from lightbox.phantom import modalities
from medplib import config
from medplib.claims import PAPER
from medplib.config import check, resolve

LORA = ("adapter.kind=lora", "adapter.projector=full")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.seg_state=after"], r"model\.seg_state"),
        (["model.expert_weight=half"], r"model\.expert_weight"),
        (["model.top_k=2"], r"model\.top_k is 2 and model\.expert_weight is straight_through"),
        (["model.top_k=0"], r"model\.top_k is 0"),
        (["data.mask_pct=100"], r"data\.mask_pct is 100"),
        (
            ["data.source=mecovqa", "data.root=."],
            r"data\.source is mecovqa and objective\.method is vl.*has masks here",
        ),
        (
            ["experiment=mean_mask", "data.source=mask_folders", "data.root=."],
            r"data\.source is mask_folders and eval\.unseen is true",
        ),
        (["data.parts=1"], r"data\.parts is 1"),
        (["objective.networks=three"], r"objective\.networks"),
        (["objective.router=best"], r"objective\.router"),
        (["objective.method=stage5"], r"objective\.method"),
        (["optim.align_steps=0"], r"optim\.align_steps"),
        (["optim.align_lr=-1"], r"optim\.align_lr"),
        (["eval.answer_tokens=0"], r"eval\.answer_tokens"),
        (["eval.regions=[circle]"], r"eval\.regions"),
        (["adapter.kind=lora"], r"adapter\.projector is frozen.*Set adapter\.projector=full"),
        ([*LORA, "adapter.targets='.*q_proj'"], r"adapter\.targets is \.\*q_proj"),
        ([*LORA, "adapter.modules=[norm]"], r"adapter\.modules is \['norm'\]"),
        ([*LORA, "adapter.init=eva"], r"adapter\.init is eva"),
        ([*LORA, "adapter.quant=int8"], r"adapter\.quant is int8.*experts share"),
        (["experiment=majority", "objective.is_trained=true"], "has no weights"),
        (["experiment=mixtur"], "Did you mean experiment=mixture"),
    ],
)
def test_what_cannot_work_is_refused(overrides, message):
    with pytest.raises(RequestError, match=message):
        resolve(["preset=smoke", *overrides])


def test_weights_that_are_not_there_are_named_with_what_builds_them():
    cfg = resolve(["preset=smoke", "model.segmenter=tiny/no_sam", "model.start_tower=tiny/tower"])
    with pytest.raises(RequestError, match=r"model\.segmenter is 'tiny/no_sam'.*pretrain --only no_sam"):
        check(cfg, find_pretrained("tiny/llava"))
    cfg = resolve(["preset=smoke", "model.segmenter=tiny/tower", "model.start_tower=tiny/no_tower"])
    with pytest.raises(RequestError, match=r"model\.start_tower is 'tiny/no_tower'.*pretrain --only no_tower"):
        check(cfg, find_pretrained("tiny/llava"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=average", "model.start_tower=''"], r"objective\.networks is average and adapter\.kind is lora"),
        (["experiment=joint"], r"model\.start_tower is 'tiny/tower' and adapter\.kind is lora"),
    ],
)
def test_low_rank_additions_need_a_base_that_stays_and_networks_that_they_make(overrides, message):
    lora = ["adapter.kind=lora", "adapter.projector=full", "model.segmenter=tiny/tower", "model.start_tower=tiny/tower"]
    cfg = resolve(["preset=smoke", *lora, *overrides])
    with pytest.raises(RequestError, match=message):
        check(cfg, find_pretrained("tiny/llava"))


def test_a_family_without_known_patches_is_refused():
    with pytest.raises(RequestError, match="of family florence2"):
        check(resolve(["preset=smoke", "model.backbone=tiny/florence2"]), find_pretrained("tiny/florence2"))


def test_pictures_and_parts_are_in_the_key_of_a_job(monkeypatch):
    cfg = resolve(["preset=smoke", "model.segmenter=tiny/tower", "model.start_tower=tiny/tower"])
    read = config.inputs(cfg)
    assert {"pictures", "segmenter", "start tower", "backbone"} <= read.keys()
    monkeypatch.setattr(modalities, "VERSION", "modalities-0")
    assert config.inputs(cfg)["pictures"] != read["pictures"]
    assert config.inputs(resolve(["preset=smoke", "experiment=majority"])).keys() == {"data", "pictures"}


def test_joint_training_takes_the_steps_of_the_stages_that_it_stands_for():
    steps = {
        arm: resolve(["preset=quick", f"experiment={arm}"]).optim.steps
        for arm in ("vl", "grounding", "mixture", "sequential", "average", "joint")
    }
    assert steps["joint"] == steps["vl"] + steps["grounding"] + steps["mixture"]
    assert steps["sequential"] == steps["average"] == steps["mixture"]


def test_stages_need_the_ones_before_them():
    assert PAPER.arms["vl"].needs == ("align",)
    assert PAPER.arms["grounding"].needs == ("vl",)
    assert all(PAPER.arms[arm].needs == ("vl", "grounding") for arm in ("mixture", "average", "joined", "sequential"))
    assert PAPER.arms["average"].rate_of == PAPER.arms["random_router"].rate_of == "mixture"
