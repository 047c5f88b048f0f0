"""The four stages end to end on random weights: what each begins from, changes and leaves; arms put together."""

import math
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from lightbox.errors import RequestError, WorkError
from lightbox.paper.asked_images import AskedImage
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.pruned import pruned
from lightbox.paper.pruning_config import PruningConfig
from lightbox.paper.trained_tensors import check_changes
from lightbox.paper.unseen_masks import OTHER_WORD, UNSEEN
from lightbox.phantom.modalities import HELD_OUT, draw_modality
from lightbox.runs.folders import MODEL, read_card, read_history, read_scores
from medplib import train
from medplib.assembly import mixtures
from medplib.claims import PAPER
from medplib.cli import ENTRIES
from medplib.config import resolve
from medplib.model import open_arm
from medplib.predict import predict

NETWORKS = ".mlp."
CONDITIONS = (UNSEEN, OTHER_WORD)
run_once = partial(ENTRIES.run_once, is_indexed=False)  # an index of MLflow takes longer than a run


@pytest.fixture
def opened(sizes, trained):
    """The model that an arm begins with."""

    def model(arm):
        cfg = resolve([*sizes, f"experiment={arm}"])
        needs = {need: trained(need) for need in PAPER.arms[arm].needs}
        return open_arm(cfg, find_pretrained(cfg.model.backbone), needs)

    return model


def weights_of_run(folder):
    return load_file(folder / MODEL / "model.safetensors") | load_file(folder / MODEL / "pixel_vlm.safetensors")


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_each_stage_begins_from_the_one_before_and_changes_its_own_tensors(trained):
    align, vl, grounding = (weights_of_run(trained(arm)) for arm in ("align", "vl", "grounding"))
    by_vl, by_grounding = moved(align, vl), moved(vl, grounding)
    assert any(NETWORKS in name for name in by_vl)
    assert any("self_attn" in name for name in by_vl)
    assert any(name.startswith("region_adapter") for name in by_vl)
    assert not any(name.startswith(("seg_projector", "sam.")) or "vision_tower" in name for name in by_vl)
    assert {name.split(".")[0] for name in by_grounding if NETWORKS not in name} == {"seg_projector", "sam"}
    assert read_card(trained("grounding"))["learns"].keys() == {"networks", "seg_projector", "mask_decoder"}


def test_a_run_scores_each_task_under_each_condition(trained):
    table = read_scores(trained("vl")).to_pylist()
    conditions = {row["condition"] for row in table}
    forms = {"point", "box", "scribble", "polygon", "mask"}
    assert conditions == {"image", "blank", "shuffled", "whole", "other", *forms}
    shown = [row for row in table if row["condition"] == "image"]
    assert {row["kind"].split("_")[0] for row in shown} == {"region", "presence", "mask"}
    assert all((row["dice"] is None) == (row["kind"] != "mask") for row in shown)
    assert all(row["kind"].startswith("region") for row in table if row["condition"] in {"whole", "other", *forms})
    assert all(row["score"] is not None for row in table)
    assert read_card(trained("vl"))["baselines"].keys() >= {"question_only, region", "question_only, dice"}


def test_masks_in_unseen_modalities_are_scored_where_an_arm_asks_for_them(trained):
    table = read_scores(trained("grounding")).to_pylist()
    assert {row["condition"] for row in table} == {"image", "blank", "shuffled", "unseen", "unseen_other_word"}
    held = [row for row in table if row["condition"] == "unseen"]
    assert {row["kind"] for row in held} == set(HELD_OUT)
    assert all(row["dice"] is not None and row["correct"] is None for row in held)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["specialist", "specialist_long", "boxed", "mean_mask", "bright"])
def test_an_arm_that_only_draws_has_the_items_of_the_model_beside_it(trained, arm):
    own, beside = (
        {(row["condition"], row["item"]): row for row in read_scores(trained(name)).to_pylist()}
        for name in (arm, "grounding")
    )
    shared = {place for place, row in beside.items() if row["dice"] is not None and place[0] in ("image", *CONDITIONS)}
    assert own.keys() == shared
    # same pictures and true masks: what has no Dice in one arm has none in the other
    assert all((own[k]["dice_present"] is None) == (beside[k]["dice_present"] is None) for k in shared)
    history = read_history(trained(arm))
    assert ("train/loss" in history) == arm.startswith("specialist")


def test_the_specialist_takes_the_steps_and_requests_of_stage_3(trained):
    cards = {arm: read_card(trained(arm)) for arm in ("specialist", "specialist_long")}
    steps = resolve(["preset=smoke", "experiment=grounding"]).optim.steps
    assert cards["specialist"]["steps"] == steps
    assert cards["specialist_long"]["steps"] == 4 * steps
    again, longer = (read_scores(trained(arm)).column("dice") for arm in ("specialist", "specialist_long"))
    assert not again.equals(longer)


@pytest.mark.slow
def test_experts_are_the_networks_of_the_two_stages(opened):
    model, sources = opened("mixture"), {"vl": opened("grounding"), "grounding": opened("sequential")}
    states = {name: source.backbone.core.state_dict() for name, source in sources.items()}
    for path, mixture in mixtures(model.backbone.core):
        for name, expert in mixture.experts.items():
            assert all(torch.equal(value, states[name][f"{path}.{key}"]) for key, value in expert.state_dict().items())
    assert torch.equal(model.seg_projector[0].weight, sources["grounding"].seg_projector[0].weight)
    assert not torch.equal(model.seg_projector[0].weight, sources["vl"].seg_projector[0].weight)


@pytest.mark.slow
def test_controls_are_what_they_are_called(opened):
    vl, grounding = (opened(arm).backbone.core.state_dict() for arm in ("grounding", "sequential"))
    path = next(name for name in vl if NETWORKS in name and "language_model" in name)
    layer, _, key = path.partition(NETWORKS)
    average = opened("average").backbone.core.state_dict()
    torch.testing.assert_close(average[path], (vl[path] + grounding[path]) / 2)
    assert not torch.equal(vl[path], grounding[path])
    copies = opened("copied").backbone.core.state_dict()
    assert all(torch.equal(copies[f"{layer}.mlp.experts.{name}.{key}"], vl[path]) for name in ("vl", "grounding"))
    random = opened("random_router").backbone.core
    assert not any(p.requires_grad for name, p in random.named_parameters() if ".router." in name)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["mixture", "oracle", "joint", "joint_wide"])
def test_every_way_of_learning_all_tasks_takes_its_steps(trained, arm):
    run = trained(arm)
    card = read_card(run)
    assert ("router" in card["learns"]) == (arm == "mixture")
    assert ("routing" in card) == (arm == "mixture")  # elsewhere nothing, or the task, decides
    assert read_scores(run).num_rows
    assert 0 < card["threshold"] < 1
    assert (run / MODEL).is_dir()  # `train` keeps every model


def test_the_card_says_which_expert_took_what(trained):
    routing = read_card(trained("mixture"))["routing"]
    groups = {"task": {"region", "presence", "mask"}, "token type": {"picture", "question", "answer"}}
    for over, names in groups.items():
        for layer, shares in routing[over]["shares"].items():
            assert shares.keys() == names
            assert all(sum(share.values()) == pytest.approx(1) for share in shares.values())
            assert 0 <= routing[over]["bits"][layer] <= 1  # two experts


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["grounding", "mixture"])
def test_a_stage_that_was_cut_off_and_continued_ends_with_the_same_bytes(sizes, trained, tmp_path, monkeypatch, arm):
    """Cut in its last step; the checkpoint before that is all that the second start has."""
    steps = 4 if arm == "grounding" else 2
    needs = ",".join(str(trained(need)) for need in PAPER.arms[arm].needs)
    named = [f"run.out={tmp_path}", f"experiment={arm}", f"needs=[{needs}]", "run.save_every_steps=1"]
    calls, whole_step = [], train.pixel_step

    def step(*arguments):
        calls.append(1)
        if len(calls) == steps:
            raise RuntimeError("the machine was taken away")
        return whole_step(*arguments)

    monkeypatch.setattr(train, "pixel_step", step)
    with pytest.raises(RuntimeError, match="taken away"):
        run_once([*sizes, *named], "train")
    again = run_once([*sizes, *named], "train")
    assert len(calls) == steps + 1
    assert read_card(again)["notes"] == [f"continued from step {steps - 1}"]
    for file in sorted((trained(arm) / MODEL).glob("*.safetensors")):
        assert (again / MODEL / file.name).read_bytes() == file.read_bytes(), file.name
    assert read_scores(again).equals(read_scores(trained(arm)))


@pytest.mark.slow
def test_what_is_put_together_is_scored_without_a_step(trained):
    assert "put together" in read_card(trained("joined"))["notes"][0]
    shown = [row for row in read_scores(trained("joined")).to_pylist() if row["condition"] == "image"]
    assert {row["kind"].split("_")[0] for row in shown} == {"region", "presence", "mask"}


@pytest.mark.slow
def test_a_saved_mixture_answers_as_before(sizes, trained, tmp_path):
    named = [f"model.backbone={trained('mixture') / MODEL}", f"run.out={tmp_path}", "experiment=mixture"]
    again = run_once([*sizes, *named], "eval")
    columns = ["item", "condition", "score"]
    assert read_scores(again).select(columns).equals(read_scores(trained("mixture")).select(columns))


@pytest.mark.slow
def test_a_mixture_costs_what_one_network_does(trained):
    (row,) = read_scores(trained("cost")).to_pylist()
    assert row["rows"] == 1
    assert 1 < row["flops_prefill"] < 1.01
    assert 1 < row["flops_decode"] < 1.01
    assert row["copied_gap"] <= 1e-6
    assert row["rows_official_train"] == pytest.approx(1.5, abs=0.1)
    assert row["rows_official_eval"] == pytest.approx(2.0, abs=0.1)


@pytest.mark.slow
def test_a_job_of_a_claim_leaves_what_others_begin_from_and_no_other_model(sizes, trained, tmp_path):
    needs = {"vl": trained("vl"), "grounding": trained("grounding")}
    ENTRIES.run_job(tmp_path / "jobs" / "a", [*sizes, "experiment=align"], {})
    ENTRIES.run_job(tmp_path / "jobs" / "b", [*sizes, "experiment=average"], needs)
    assert (tmp_path / "jobs" / "a" / MODEL / "model.safetensors").is_file()
    assert not (tmp_path / "jobs" / "b" / MODEL).exists()


def test_without_the_stage_before_there_is_nothing_to_begin_from(sizes, tmp_path):
    with pytest.raises(RequestError, match=r"Arm 'align' is needed.*experiment=align first"):
        run_once([*sizes, f"run.out={tmp_path}", "experiment=vl"], "train")


def test_a_stage_that_changed_too_much_or_too_little_is_refused():
    before, after = {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "5", "c": "3"}
    check_changes(before, after, {"networks": ["b"]})
    with pytest.raises(WorkError, match="The stage changed b"):
        check_changes(before, after, {"tables": ["a"]})
    with pytest.raises(WorkError, match="Nothing of the group tables changed"):
        check_changes(before, after, {"networks": ["b"], "tables": ["a"]})
    check_changes({"a": "1", "tied": "1"}, {"a": "2", "tied": "2"}, {"tables": ["a"]})
    with pytest.raises(WorkError, match="The stage changed alike"):  # zeros at first, as all low-rank additions
        check_changes({"a": "1", "alike": "1"}, {"a": "2", "alike": "3"}, {"tables": ["a"]})


def test_a_specialist_is_trained_and_never_scored_again(sizes, trained, tmp_path):
    named = [f"run.out={tmp_path}", "experiment=specialist", f"model.backbone={trained('align') / MODEL}"]
    with pytest.raises(RequestError, match="keeps no weights that could be scored again"):
        run_once([*sizes, *named], "eval")


def test_arms_of_masks_score_nothing_where_none_is_asked_for(tmp_path):
    folder = run_once([f"run.out={tmp_path}", "preset=smoke", "data.n_test=1", "experiment=bright"], "train")
    assert all(row["condition"] != "image" for row in read_scores(folder).to_pylist())


def test_baselines_need_no_weights(tmp_path):
    for arm in ("majority", "question_only"):
        folder = run_once([f"run.out={tmp_path}", "preset=smoke", f"experiment={arm}"], "train")
        rows = read_scores(folder).to_pylist()
        assert all(math.isfinite(row["score"]) for row in rows)


def test_stages_train_and_a_mixture_answers_under_pruning(sizes, arms_of):
    run = arms_of([*sizes, "pruning.method=cls_topk", "pruning.budget=0.25"])(
        "mixture"
    )  # it reads the tower's attention
    assert read_scores(run).num_rows
    assert set(read_card(run)["routing"]) == {"task"}  # the columns of a pruned prompt are not those of its types
    picture = draw_modality("pet", "development", n=1)[0].images[0]
    said = predict(AskedImage(picture), "outline the liver .", folder=run)
    assert said["tokens read"] == "16 of 64, chosen by cls_topk"


def test_the_whole_budget_gives_the_masks_and_words_of_no_pruning(tiny, items):
    batch = tiny.prepare(items)
    with torch.no_grad():
        unpruned = tiny(batch)
        answers = tiny.answer(items, max_new_tokens=4)
        with pruned(tiny.backbone, PruningConfig(method="divprune", budget=1.0), seed=0, lengths="original"):
            whole = tiny(batch)
            assert tiny.answer(items, max_new_tokens=4)[0].text == answers[0].text
        with pruned(tiny.backbone, PruningConfig(method="divprune", budget=0.1), seed=0, lengths="original"):
            few = tiny(batch)
    torch.testing.assert_close(whole.logits, unpruned.logits)
    assert few.logits.shape == unpruned.logits.shape
    assert not torch.allclose(few.logits, unpruned.logits, atol=1e-3)
    for own, full, fewer in zip(unpruned.mask_logits, whole.mask_logits, few.mask_logits, strict=True):
        torch.testing.assert_close(full, own)
        assert fewer.shape == own.shape
    assert any(not torch.equal(a, b) for a, b in zip(unpruned.mask_logits, few.mask_logits, strict=True))


def test_what_a_mixture_costs_is_not_counted_on_pruned_prompts(sizes):
    with pytest.raises(RequestError, match="whole prompts"):
        resolve([*sizes, "experiment=cost", "pruning.method=divprune", "pruning.budget=0.5"])
