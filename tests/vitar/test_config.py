"""Rules between settings: what cannot work is refused before torch."""

import pytest

from lightbox.claims.registry import check_claims
from lightbox.errors import RequestError
from lightbox.paper.pretrained import find_pretrained
from vitar.claims import ARMS, KINDS, PAPER
from vitar.config import check, resolve
from vitar.data import kinds_of


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.parts=5"], r"data\.parts"),
        (["data.point_bins=128"], r"data\.point_bins"),
        (["data.source=bccd", "data.root=x", "data.parts=1"], r"data\.parts"),
        (["data.lesion_scale_pct=50"], r"data\.lesion_scale_pct"),
        (["data.scales_pct=[]"], "at least one"),
        (["data.scales_pct=[50,50]"], "each named once"),
        (["data.scales_pct=[20]"], "lesion_scale_pct=20"),
        (["data.original_px=100"], "image_px=100"),
        (["data.original_px=32"], r"data\.original_px"),
        (["data.distractors=4"], "distractors=4"),
        (["data.iou_low=0.95"], r"data\.iou_low"),
        (["data.iou_high=1"], r"data\.iou_high"),
        (["objective.method=dpo"], r"objective\.method"),
        (["objective.feedback=marks"], r"objective\.feedback"),
        (["objective.replies=xml"], r"objective\.replies"),
        (["experiment=mark", "objective.replies=plain"], r"objective\.feedback=one"),
        (["eval.turn_tokens=0"], r"eval\.turn_tokens"),
        (["experiment=question_only", "objective.is_trained=true"], "has no weights"),
    ],
)
def test_what_cannot_work_is_refused(overrides, message):
    with pytest.raises(RequestError, match=message):
        resolve(["preset=smoke", *overrides])


def test_baselines_need_no_weights():
    for arm in ("majority", "question_only"):
        assert resolve(["preset=smoke", f"experiment={arm}"]).is_baseline
    assert not resolve(["preset=smoke", "experiment=untouched"]).is_baseline


def test_a_model_that_cannot_be_shown_a_second_image_is_refused():
    with pytest.raises(RequestError, match="of family t5"):
        check(resolve(["preset=smoke"]), find_pretrained("tiny/t5"))


def test_trained_arms_differ_in_the_feedback_alone():
    trained = [arm.name for arm in ARMS if arm.is_trained and not arm.name.startswith("smear_")]
    plain = {name: resolve(["preset=quick", f"experiment={name}"]) for name in trained}
    rewarded = {name: cfg for name, cfg in plain.items() if cfg.objective.method == "grpo"}
    assert set(rewarded) == {"mark_a", "mark_b", "mark_c", "mark_d", "rewards_only"}
    assert set(plain) - set(rewarded) == {"one", "same", "mark", "crop"}
    for own, field in ((set(plain) - set(rewarded), "feedback"), (set(rewarded), "reward")):
        alike = []
        for name in sorted(own):
            cfg = plain[name]
            cfg.experiment, cfg.optim.lr, cfg.tuned = "", 0.0, {}  # a rate is an arm's own
            setattr(cfg.objective, field, "")
            alike.append(cfg)
        assert all(cfg == alike[0] for cfg in alike), field


def test_rewards_go_on_from_an_arm_whose_steps_no_pilot_varies():
    for arm in ARMS:
        if arm.needs:
            (start,) = arm.needs
            assert start in ("mark_start", "primed")
            assert not PAPER.arms[start].is_trained
    start, mark = (resolve(["preset=quick", f"experiment={name}"]) for name in ("mark_start", "mark"))
    start.experiment = mark.experiment = ""
    assert start == mark


def test_controls_are_shown_where_the_place_of_the_box_matters():
    shown = {arm: resolve(["preset=smoke", f"experiment={arm}"]).shown_boxes for arm in ("one", "same", "mark", "crop")}
    assert shown["one"] == shown["same"] == ("own",)
    assert shown["mark"] == shown["crop"] == ("own", "random", "true")


@pytest.mark.slow
def test_claims_read_arms_conditions_and_kinds_that_runs_have():
    check_claims(PAPER)
    assert [claim.id for claim in PAPER.claims] == ["V1", "V2", "V3", "V4", "V5", "VR1", "VR2"]
    assert {claim.id: claim.presets for claim in PAPER.claims if "real" in claim.presets} == {
        "VR1": ("real",),
        "VR2": ("real",),
    }
    measures = [m for claim in PAPER.claims for contrast in claim.contrasts for _, m in contrast.terms]
    for preset in ("smoke", "quick", "full"):
        assert kinds_of(resolve([f"preset={preset}"])) == list(KINDS)
    for measure in measures:
        cfg = resolve(["preset=smoke", f"experiment={measure.arm}"])
        assert measure.condition in (
            "",
            "shuffled",
            *cfg.shown_boxes,
            *(("hidden", "hidden_elsewhere") if cfg.is_looked_at else ()),
        )
        assert {value for _, value in measure.where} <= {*KINDS, "set"}


def test_arms_on_real_images_differ_in_the_feedback_and_in_the_set_alone(monkeypatch):
    monkeypatch.setenv("LIGHTBOX_DATA_ROOT", "/sets")
    arms = {name: resolve(["preset=real", f"experiment={name}"]) for name in ("one", "same", "mark", "mark_a")}
    smears = {name: resolve(["preset=real", f"experiment=smear_{name}"]) for name in ("one", "same", "mark")}
    for name, cfg in (arms | {f"smear {name}": cfg for name, cfg in smears.items()}).items():
        is_second = name.startswith("smear")
        assert cfg.data.source == ("blood_smear_csv" if is_second else "bccd")
        assert cfg.data.root == f"/sets/{cfg.data.source}"
        assert cfg.data.write_point((0.5, 0.25)) == "<loc_64><loc_32>"
        assert cfg.data.parts == PAPER.claim("VR1").seeds["real"]  # every image is scored once
    for name, cfg in smears.items():
        assert (cfg.objective, cfg.model, cfg.eval) == (arms[name].objective, arms[name].model, arms[name].eval)
    assert resolve(["preset=real", "data.point_bins=0"]).data.write_point((0.5, 0.25)) == "(0.50, 0.25)"
