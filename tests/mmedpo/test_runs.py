"""Arms end to end on random weights: what the start leaves, what the others begin from, what a pair's rows give."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lightbox import phantom
from lightbox.backbones.rows import UNLIMITED
from lightbox.errors import RequestError
from lightbox.paper.pair_learner import pair_facts
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.pruned import pruned
from lightbox.paper.pruning_config import PruningConfig
from lightbox.runs import folders
from mmedpo import evaluate, train
from mmedpo.cli import ENTRIES
from mmedpo.config import PREFERENCES, resolve
from mmedpo.curate import curate
from mmedpo.data import load_splits
from mmedpo.predict import load_run, predict
from mmedpo.scores import PAIRS


@pytest.fixture(scope="module")
def sizes(llava_folder):
    return ["preset=smoke", f"model.backbone={llava_folder}", "eval.report_tokens=4"]


@pytest.fixture(scope="module")
def start(sizes, tmp_path_factory):
    out = tmp_path_factory.mktemp("start")
    return ENTRIES.run_once([*sizes, f"run.out={out}", "experiment=start"], "train")


@pytest.fixture(scope="module")
def tuned(sizes, start, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    return ENTRIES.run_once([*sizes, f"run.out={out}", "experiment=mmedpo", f"needs=[{start}]"], "train")


def weights_in(folder):
    return load_file(folder / folders.MODEL / "model.safetensors")


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.slow
def test_an_arm_begins_from_what_the_start_left_and_the_tower_stays(start, tuned, llava_folder):
    shipped = load_file(llava_folder / "model.safetensors")
    for before, after in ((shipped, weights_in(start)), (weights_in(start), weights_in(tuned))):
        names = moved(before, after)
        assert [name for name in names if "projector" in name]
        assert [name for name in names if "vision_tower" in name] == []
    # two steps move a weight by twice the rate at most, from the start's weights and not from the shipped ones
    rate = resolve(["preset=smoke", "experiment=mmedpo", "run.seed=0"]).optim.lr
    gaps = [
        (weights_in(tuned)[n] - weights_in(start)[n]).abs().max() for n in moved(weights_in(start), weights_in(tuned))
    ]
    assert max(gaps) < 3 * rate


@pytest.mark.slow
def test_a_job_of_a_claim_leaves_the_weights_of_the_start_and_of_no_other(sizes, tmp_path):
    common = [*sizes, "run.seed=1"]
    ENTRIES.run_job(tmp_path / "jobs" / "a", [*common, "experiment=start"], {})
    needs = {"start": tmp_path / "jobs" / "a"}
    ENTRIES.run_job(tmp_path / "jobs" / "b", [*common, "experiment=sft"], needs)
    left = {name: (tmp_path / "jobs" / name / folders.MODEL).is_dir() for name in ("a", "b")}
    assert left == {"a": True, "b": False}


@pytest.mark.slow
def test_without_a_start_there_is_nothing_to_begin_from(sizes, tmp_path):
    with pytest.raises(RequestError, match=r"needs=\[FOLDER\]"):
        ENTRIES.run_once([*sizes, f"run.out={tmp_path}", "experiment=dpo"], "train")
    alone = ["experiment=dpo", "objective.from_start=false", f"run.out={tmp_path}"]
    assert folders.read_scores(ENTRIES.run_once([*sizes, *alone], "train")).num_rows


def test_a_run_scores_items_and_pairs(tuned):
    table = folders.read_scores(tuned).to_pylist()
    assert {row["condition"] for row in table} == {"image", "blank", "shuffled", PAIRS}
    shown = [row for row in table if row["condition"] == "image"]
    assert len(shown) == 20
    assert all((row["correct"] is None) == (row["kind"] == "report") for row in shown)
    assert all((row["fact_f1"] is None) == (row["kind"] != "report") for row in shown)
    assert any(row["sensitivity_in"] is not None for row in shown)
    assert all(row["score_error"] == 0 for row in table if row["condition"] == PAIRS)  # the scorer knows the truth
    card = folders.read_card(tuned)
    assert card["pairs"]["text"] == card["pairs"]["image"] > 0
    assert 0 <= card["won before training"]["all"] <= 1


def test_a_prediction_stands_beside_what_was_said_before(tuned, tmp_path):
    path = tmp_path / "chest.png"
    Image.fromarray(phantom.draw_cases(phantom.seed_range("development", 0, 1))[0].images[0]).save(path)
    said = ENTRIES.predict(image=path, question="is there a nodule ?", run=tuned, out=tmp_path / "shown.png")
    assert {"answer", "answer to noise", "answer of the start", "answer of the shipped weights"} <= said.keys()
    assert (tmp_path / "shown.png").is_file()


@pytest.mark.slow
def test_a_prediction_shows_where_it_looked_or_which_tokens_it_read(sizes, tuned, tmp_path):
    pixels = phantom.draw_cases(phantom.seed_range("development", 0, 1))[0].images[0]
    asked = {"image": pixels, "question": "is there a nodule ?"}
    looked = predict(**asked, folder=tuned, attention=True)
    assert list(looked["pictures"]) == (["attention"] if looked["answer"] else [])
    assert looked["answer"] == predict(**asked, folder=tuned, opened=load_run(tuned))["answer"]
    policy = ["pruning.method=divprune", "pruning.budget=0.25"]
    pruned_run = ENTRIES.run_once([*sizes, *policy, f"run.out={tmp_path}", "experiment=start"], "train")
    read = predict(**asked, folder=pruned_run, attention=True)
    assert list(read["pictures"]) == ["kept tokens"]
    shown = np.asarray(read["pictures"]["kept tokens"])
    is_grey = (shown == shown[..., :1]).all(axis=2)  # a patch that goes lies under a hue
    kept, tokens = (int(word) for word in read["tokens read"].split(",")[0].split(" of "))
    assert kept / tokens == pytest.approx(0.25, abs=0.02)
    assert is_grey.sum() == kept * shown.size / 3 / tokens


@pytest.fixture(scope="module")
def opened(sizes, llava_folder):
    cfg = resolve([*sizes, "experiment=mmedpo", "run.seed=2"])
    made = curate(cfg, load_splits(cfg)[0])
    learner = train.open_arm(cfg, find_pretrained(str(llava_folder)))
    learner.weights = torch.linspace(0.75, 1.25, len(made.pairs))
    learner.patches = learner.encode(made.split)
    learner.reference = learner.log_probs(made.pairs, made.split)
    return cfg, made, learner


@pytest.mark.slow
def test_rows_of_a_batch_are_what_each_answer_gives_alone_from_its_pixels(opened):
    _, made, learner = opened
    for side, answer in enumerate(("chosen", "rejected")):
        said = [
            (pair.record.prompt, getattr(pair.record, answer), (pair.image, pair.record.rejected_image)[side])
            for pair in made.pairs
        ]
        alone = torch.cat([from_pixels(learner, made.split, *own) for own in said])
        torch.testing.assert_close(learner.reference[side], alone, rtol=1e-4, atol=1e-4)
        together = torch.tensor(learner.said_logps(said, made.split))
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def from_pixels(learner, split, prompt, answer, row):
    """Log-probability of one answer, its image through the tower."""
    batch = learner.backbone.prepare(learner.see(split, [row]), [prompt], [answer], max_tokens=UNLIMITED)
    with torch.no_grad():
        return learner.backbone.sequence_logps(batch)


def test_the_first_loss_is_the_mean_weight_times_log_2(opened):
    cfg, made, learner = opened
    batch = learner.collate(made.pairs, made.split)([5, 0, 11, 3])
    with torch.no_grad():
        logps, tokens = learner.answer_logps(learner.backbone, batch)
    loss, pairs, _ = train.batch_loss(cfg, logps, tokens, batch)
    assert float(loss / pairs) == pytest.approx(float(batch.weights.mean()) * math.log(2), rel=1e-5)


def test_lengths_of_rows_grow_as_those_of_their_pairs(opened):
    """All rows of a pair, up to what pairs of a kind have alike; so the longest batch is of the longest reports."""
    _, made, learner = opened
    batch_of, pad_id = learner.collate(made.pairs, made.split), learner.backbone.tokenizer.pad_token_id
    lengths = [own for (own,) in learner.row_lengths(made.pairs, made.split)]
    gaps = {}
    for place, (pair, length) in enumerate(zip(made.pairs, lengths, strict=True)):
        tokens = sum(int((part.inputs["input_ids"] != pad_id).sum()) for part in batch_of([place]).parts)
        gaps.setdefault(pair.record.kind, set()).add(tokens - length)
    assert {kind: len(own) for kind, own in gaps.items()} == {"text": 1, "image": 1}
    (text,), (image,) = gaps["text"], gaps["image"]
    assert abs(text - image) < 5  # control tokens around a prompt, of which a pair of texts has one set
    assert len(set(lengths)) > 5


def test_an_image_of_a_pair_is_projected_once(opened):
    _, made, learner = opened
    kinds = {}
    for place, pair in enumerate(made.pairs):
        kinds.setdefault(pair.record.kind, place)
    batch_of = learner.collate(made.pairs, made.split)
    assert len(batch_of([kinds["text"]]).patches) == 1
    assert len(batch_of([kinds["image"]]).patches) == 2


def prepared(sizes, llava_folder, *settings):
    """Pairs and a learner that knows the reference, as `fit` leaves them before the first step."""
    cfg = resolve([*sizes, "run.seed=2", *settings])
    made = curate(cfg, load_splits(cfg)[0])
    learner = train.open_arm(cfg, find_pretrained(str(llava_folder)))
    learner.patches = learner.encode(made.split) if cfg.model.freezes_tower else None
    learner.reference = learner.log_probs(made.pairs, made.split)
    return cfg, made, learner


@pytest.mark.parametrize("freezes", ["true", "false"])
def test_the_blind_side_of_svco_is_the_answer_to_a_prompt_without_an_image_token(sizes, llava_folder, freezes):
    frozen = f"model.freezes_tower={freezes}"
    cfg, made, learner = prepared(sizes, llava_folder, "experiment=svco", frozen)
    assert {pair.record.kind for pair in made.pairs} == {"image"}
    batch = learner.collate(made.pairs, made.split)([4, 0, 7])
    image_id = learner.backbone.image_token_id
    seen = [bool((part.inputs["input_ids"] == image_id).any()) for part in batch.parts]
    assert sorted(set(seen)) == [False, True]
    assert sum(len(part.labels) for part, own in zip(batch.parts, seen, strict=True) if own) == 6
    records = [made.pairs[place].record for place in (4, 0, 7)]
    prompts, answers = ([getattr(own, name) for own in records] for name in ("prompt", "chosen"))
    alone = learner.backbone.prepare(None, prompts, answers, max_tokens=10_000)
    with torch.no_grad():
        logps, tokens = learner.answer_logps(learner.backbone, batch)
        torch.testing.assert_close(logps[2], learner.backbone.sequence_logps(alone), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logps, batch.reference, rtol=1e-4, atol=1e-4)
    assert tokens[2].tolist() == tokens[0].tolist()
    assert (logps[0] != logps[2]).all()
    loss, pairs, _ = train.batch_loss(cfg, logps, tokens, batch)
    assert float(loss / pairs) == pytest.approx(2 * math.log(2), rel=1e-4)  # nothing leads before the first step


@pytest.mark.slow
def test_kto_reads_the_answers_of_another_pair_beside_the_own_prompt_and_does_not_learn_them(sizes, llava_folder):
    _, made, learner = prepared(sizes, llava_folder, "experiment=both", "objective.method=kto")
    partners = learner._partners(len(made.pairs))
    assert sorted(partners) == list(range(len(made.pairs)))
    assert all(partner != place for place, partner in enumerate(partners))
    for side, answer in enumerate(("chosen", "rejected")):
        said = [
            (
                own.record.prompt,
                getattr(made.pairs[partner].record, answer),
                (own.image, own.record.rejected_image)[side],
            )
            for own, partner in zip(made.pairs, partners, strict=True)
        ]
        expected = torch.tensor(learner.said_logps(said, made.split))
        torch.testing.assert_close(learner.reference[2 + side], expected, rtol=1e-4, atol=1e-4)
    batch = learner.collate(made.pairs, made.split)([5, 0, 11, 3])
    logps, tokens = learner.answer_logps(learner.backbone, batch)
    assert tokens.shape == (4, 4)
    head = learner.backbone.part(learner.backbone.family.head).weight
    moved = [
        bool(torch.autograd.grad(own.sum(), head, retain_graph=True, allow_unused=True)[0].any())
        for own in (logps[:2], logps[2:])
    ]
    assert moved == [True, False]


def test_one_pair_alone_has_no_other_answers_for_kto(sizes, llava_folder):
    cfg = resolve([*sizes, "experiment=both", "objective.method=kto", "run.seed=2"])
    made = curate(cfg, load_splits(cfg)[0])
    learner = train.open_arm(cfg, find_pretrained(str(llava_folder)))
    with pytest.raises(RequestError, match=r"1 pair to learn from.*data\.n_train"):
        learner.collate(made.pairs[:1], made.split)


@pytest.mark.parametrize("method", PREFERENCES)
def test_every_objective_takes_two_steps_with_finite_losses(sizes, llava_folder, tmp_path, method):
    pairs = "image" if method == "svco" else "union"
    asked = [f"objective.method={method}", f"data.pairs={pairs}", "objective.smoothing=0.1", "run.seed=2"]
    cfg = resolve([*sizes, "experiment=both", "run.log_every_steps=1", *asked])
    made = curate(cfg, load_splits(cfg)[0])
    learner = train.open_arm(cfg, find_pretrained(str(llava_folder)))
    history = learner.fit(made.pairs, made.split, tmp_path)
    losses = [value for _, value in history["train/loss"]]
    assert len(losses) == cfg.optim.max_steps == 2
    assert all(map(math.isfinite, losses))
    assert losses[0] != losses[1]


def test_a_trained_tower_gives_the_same_rows_from_pixels(opened, sizes, llava_folder):
    _, made, kept = opened
    cfg = resolve([*sizes, "experiment=mmedpo", "run.seed=2", "model.freezes_tower=false"])
    learner = train.open_arm(cfg, find_pretrained(str(llava_folder)))
    batch = learner.collate(made.pairs, made.split)([0, 1, 2])
    assert batch.patches is None
    with torch.no_grad():
        logps, _ = learner.answer_logps(learner.backbone, batch)
    torch.testing.assert_close(logps, kept.reference[:, [0, 1, 2]], rtol=1e-4, atol=1e-4)
    assert all(weight.requires_grad for weight in learner.backbone.model.parameters())


def test_trivial_pairs_are_said_to_be_trivial(opened):
    _, made, learner = opened
    former = learner.reference
    try:
        learner.reference = torch.stack([torch.zeros(len(made.pairs)), -torch.ones(len(made.pairs))])
        assert "pairs are trivial" in pair_facts(learner, made.pairs)
        learner.reference = learner.reference.flip(0)
        assert "pairs are trivial" not in pair_facts(learner, made.pairs)
    finally:
        learner.reference = former


@pytest.mark.slow
def test_baselines_need_no_weights(tmp_path):
    for arm in ("majority", "question_only"):
        folder = ENTRIES.run_once([f"run.out={tmp_path}", "preset=smoke", f"experiment={arm}"], "train")
        assert folders.read_scores(folder).num_rows == 20


def test_sensitivity_is_zero_where_noise_changes_nothing(opened, monkeypatch):
    cfg, _, learner = opened
    scored = load_splits(cfg)[1]
    usual = evaluate.sensitivity(cfg, learner, scored)
    assert any(row and row["sensitivity_in"] != 0 for row in usual)
    monkeypatch.setattr(evaluate.noise, "noised", lambda images, *_: images)
    for row in evaluate.sensitivity(cfg, learner, scored):
        assert all(abs(value) < 1e-4 for value in row.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["divprune", "cls_topk"])
def test_an_arm_trains_and_answers_under_pruning(sizes, start, tmp_path, method):
    pruning = [f"pruning.method={method}", "pruning.budget=0.25"]
    arm = [*sizes, f"run.out={tmp_path}", "experiment=mmedpo", f"needs=[{start}]"]
    folder = ENTRIES.run_once([*arm, *pruning], "train")
    history = folders.read_history(folder)
    assert all(math.isfinite(value) for _, value in history["train/loss"])
    assert folders.read_scores(folder).num_rows > 0


def test_the_whole_budget_gives_the_log_probabilities_of_no_pruning(opened):
    """Images are encoded in the step and answers stand apart then; neither changes what is computed."""
    cfg, made, learner = opened
    pair = [0, 3, 5, 11]
    with torch.no_grad():
        usual, _ = learner.answer_logps(learner.backbone, learner.collate(made.pairs, made.split)(pair))
        patches, learner.patches, learner.is_pruned = learner.patches, None, True
        try:
            policy = PruningConfig(method="divprune", budget=1.0)
            with pruned(learner.backbone, policy, seed=0, lengths="original"):
                batch = learner.collate(made.pairs, made.split)(pair)
                whole, _ = learner.answer_logps(learner.backbone, batch)
            with pruned(learner.backbone, replace(policy, budget=0.1), seed=0, lengths="original"):
                few, _ = learner.answer_logps(learner.backbone, batch)
        finally:
            learner.patches, learner.is_pruned = patches, False
    torch.testing.assert_close(whole, usual, rtol=1e-4, atol=1e-4)
    assert (few - usual).abs().max() > 1e-3


def test_a_tower_that_runs_in_the_step_sees_the_images_of_each_part_once(sizes, llava_folder):
    _, made, learner = prepared(sizes, llava_folder, "experiment=mmedpo", "model.freezes_tower=false")
    batch = learner.collate(made.pairs, made.split)(list(range(len(made.pairs))))
    assert len(batch.parts) > 1
    for part in batch.parts:
        assert len(part.shared.pixels["pixel_values"]) == len(set(part.shared.index))
