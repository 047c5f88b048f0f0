"""Arms end to end on random weights: rows under every condition, files of a run, a prediction with its trace."""

import json

import numpy as np
import pytest
from PIL import Image

from lightbox import phantom
from lightbox.errors import RequestError
from lightbox.paper.image_tools import Action
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.replies import Reply
from lightbox.records import box_iou
from lightbox.runs import folders
from vitar import evaluate
from vitar.cli import ENTRIES
from vitar.config import resolve
from vitar.data import load_splits, tasks_of
from vitar.model import open_policy

N = 8


@pytest.fixture(scope="module")
def sizes(qwen_folder):
    return ["preset=smoke", f"model.backbone={qwen_folder}", "data.original_px=128", "data.n_train=8", "eval.looks=0"]


@pytest.fixture(scope="module")
def run(sizes, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return ENTRIES.run_once([*sizes, "experiment=mark", f"run.out={out}"], "train", is_indexed=False)


@pytest.fixture(scope="module")
def policy(sizes):
    cfg = resolve([*sizes, "experiment=mark"])
    return open_policy(cfg, find_pretrained(cfg.model.backbone))


def marked_at(policy, box):
    return policy.codec.write(Reply(actions=(Action("mark", (box,)),)), (128, 128))


def answers(samples, *, wrong=(), silent=()):
    """What is said last about each: the truth, something else, or nothing readable."""
    texts = [f"<answer>{s.record.answer}" for s in samples]
    for place in wrong:
        texts[place] = "<answer>not " + samples[place].record.answer
    for place in silent:
        texts[place] = "mesh"
    return texts


@pytest.mark.slow
def test_rows_say_who_was_right_who_looked_and_where_under_every_condition(policy, script, tmp_path):
    cfg, scored = policy.cfg, load_splits(policy.cfg)[1]
    samples = scored.samples
    acts = [marked_at(policy, sample.record.boxes[0]) for sample in samples]
    own, always = answers(samples, wrong=[0, 1], silent=[2]), answers(samples)
    left = script(
        policy.learner.backbone,
        [
            [act for act in acts for _ in range(3)],  # own, random and true boxes share a group
            [text for three in zip(own, always, always, strict=True) for text in three],
            always,  # blank: at once
            ["<mark><loc_3>"] * N,  # shuffled: an act that cannot be read
            always,
        ],
    )
    rows = evaluate.evaluate(cfg, policy, scored, folder=tmp_path).to_pylist()
    assert left == []
    by_condition = {}
    for row in rows:
        by_condition.setdefault(row["condition"], {})[row["item"]] = row
    assert set(by_condition) == {"image", "random", "true", "blank", "shuffled"}
    image = [by_condition["image"][sample.id] for sample in samples]
    assert [row["correct"] for row in image] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert [row["parsed"] for row in image] == [1, 1, 0, 1, 1, 1, 1, 1]
    assert by_condition["image"]["set"]["parsed_correct"] == pytest.approx(5 / 7)
    assert by_condition["image"]["set"]["correct"] is None
    assert all(row["acted"] == 1 for row in image)
    for sample, row in zip(samples, image, strict=True):
        (written,) = policy.codec.read(marked_at(policy, sample.record.boxes[0]), (128, 128)).actions[0].boxes
        assert row["iou"] == pytest.approx(box_iou(written, sample.record.boxes[0]))
        assert row["box_area"] == pytest.approx(written.area)
        assert row["kind"] == sample.record.kind
        assert row["diameter_px"] == pytest.approx(cfg.model.image_px * sample.record.boxes[0].area ** 0.5)
    assert [row["failures"] for row in image] == [0, 0, 2, 0, 0, 0, 0, 0]  # unreadable, and no answer
    for condition in ("random", "true"):
        items = [by_condition[condition][sample.id] for sample in samples]
        assert all(row["correct"] == row["acted"] == 1 for row in items)
        assert [row["iou"] for row in items] == [row["iou"] for row in image]  # the policy's own, whatever was shown
    early, unread = ([by_condition[name][s.id] for s in samples] for name in ("blank", "shuffled"))
    assert all((row["correct"], row["acted"], row["failures"]) == (1, 0, 1) for row in early)
    assert all((row["correct"], row["acted"], row["failures"]) == (1, 0, 1) for row in unread)
    counts = folders.read_card(tmp_path)["episodes"]
    assert counts["image"] == pytest.approx({"act_rate": 1.0, "no_tag": 1.0, "no_answer": 1.0})
    assert counts["blank"]["early_answer"] == counts["shuffled"]["bad_arity"] == N
    lines = [json.loads(line) for line in (tmp_path / folders.PREDICTIONS).read_text().splitlines()]
    assert len(lines) == 5 * N
    assert lines[3]["prediction"] == f"{acts[3]}\n<answer> {samples[3].record.answer}"
    examples = json.loads((tmp_path / folders.EXAMPLES).read_text())
    assert [len(example["trace"]) for example in examples] == [2] * N
    assert all((tmp_path / example["trace"][0]["picture"]["path"]).is_file() for example in examples)
    assert {mark["role"] for mark in examples[0]["pictures"][0]["boxes"]} == {"truth", "predicted"}


def test_random_and_true_boxes_reach_what_is_shown(policy, script):
    cfg, scored = policy.cfg, load_splits(policy.cfg)[1]
    tasks = tasks_of(cfg, scored, [sample.image for sample in scored.samples])
    corner = marked_at(policy, type(tasks[0].true_boxes[0])(0.0, 0.0, 0.125, 0.125))
    script(policy.learner.backbone, [[corner] * 3 * N, ["<answer>disc"] * 3 * N])
    played = policy.play(tasks, range(N), boxes=cfg.shown_boxes)
    for task, own, random, true in zip(tasks, *played.values(), strict=True):
        assert own.observations[0].boxes == own.result.boxes
        assert true.observations[0].boxes == task.true_boxes
        assert random.observations[0].boxes not in (own.result.boxes, task.true_boxes)
        assert len({one.images[1].tobytes() for one in (own, random, true)}) == 3


@pytest.mark.slow
def test_a_run_leaves_scores_history_examples_and_card(run):
    table = folders.read_scores(run).to_pylist()
    assert {row["condition"] for row in table} == {"image", "random", "true", "blank", "shuffled"}
    items = [row["item"] for row in table if row["condition"] == "true"]
    assert len(items) == len(set(items)) == N + 1
    assert {row["kind"] for row in table} == {"small_50", "large_50", "small_100", "large_100", "set"}
    card = folders.read_card(run)
    assert card["baselines"].keys() == {"majority", "question_only"}
    assert card["episodes"].keys() == {"image", "random", "true", "blank", "shuffled"}
    assert "train/token_acc" in folders.read_history(run)
    assert json.loads((run / folders.EXAMPLES).read_text())


def test_a_saved_model_scores_the_same_again_and_other_views_are_refused(run, sizes, tmp_path):
    asked = [*sizes, "experiment=mark", f"run.out={tmp_path}", f"model.backbone={run / folders.MODEL}"]
    again = ENTRIES.run_once(asked, "eval", is_indexed=False)
    assert folders.read_scores(again).equals(folders.read_scores(run))
    with pytest.raises(RequestError, match=r"model\.image_px"):
        ENTRIES.run_once([*asked, "model.image_px=32"], "eval")


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["one", "untouched", "question_only"])
def test_who_does_not_look_has_no_box_and_no_control(arm, sizes, tmp_path):
    done = ENTRIES.run_once([*sizes, f"experiment={arm}", f"run.out={tmp_path}"], "train", is_indexed=False)
    table = folders.read_scores(done).to_pylist()
    items = [row for row in table if row["kind"] != "set"]
    assert {row["condition"] for row in table} == (
        {"image"} if arm == "question_only" else {"image", "blank", "shuffled"}
    )
    assert all(row["iou"] is None and row["box_area"] is None for row in items)
    assert {row["acted"] for row in items} == ({None} if arm == "question_only" else {0.0})
    if arm == "untouched":  # whatever it says is read as its answer
        assert {row["parsed"] for row in items if row["failures"] == 0} <= {1.0}


def test_tags_that_the_tokenizer_does_not_know_are_refused(tmp_path, qwen_folder):
    for path in qwen_folder.iterdir():
        text = path.read_bytes()
        (tmp_path / path.name).write_bytes(text.replace(b"<mark>", b"<note>") if path.suffix == ".json" else text)
    cfg = resolve(["preset=smoke", f"model.backbone={tmp_path}", "experiment=mark"])
    with pytest.raises(RequestError, match="does not know <mark>"):
        open_policy(cfg, find_pretrained(cfg.model.backbone))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "chest.png"
    case = phantom.draw_cases(phantom.seed_range("development", 0, 1), phantom.Knobs(image_px=128))[0]
    Image.fromarray(np.pad(case.images[0], ((0, 0), (0, 64)))).save(path)
    return path


def test_a_prediction_shows_the_whole_trace_and_what_was_looked_at(run, image, policy, script, monkeypatch, tmp_path):
    act = policy.codec.write(Reply(actions=(Action("mark", ((0.25, 0.25, 0.5, 0.5),)),)), (128, 128))
    script(policy.learner.backbone, [[act], ["<answer>disc"]])
    asked = {"image": image, "question": "What shape is it?", "options": ("disc", "oval"), "run": run}
    answer = ENTRIES.predict(**asked, out=tmp_path / "shown.png", attention=True)
    assert (answer["answer"], answer["turn 1"], answer["turn 2"], answer["failures"]) == (
        "disc",
        act,
        "<answer> disc",
        "",
    )
    # the square around the image is 192 px; of it rows 32 to 160 are the image
    assert answer["boxes"] == [(0.25, 0.125, 0.5, 0.5)]
    assert answer["view is shown in"] == str(tmp_path / "shown-view.png")
    with Image.open(answer["turn 1 mark is shown in"]) as marked:
        assert marked.size == (policy.cfg.model.image_px,) * 2
        assert (np.asarray(marked) == (255, 0, 0)).all(axis=-1).any()
    assert (tmp_path / "shown.png").is_file()
    with Image.open(answer["attention is shown in"]) as looked:
        assert looked.width > 2 * looked.height  # three pictures in a row
    script(policy.learner.backbone, [["mark it"], ["..."]])
    broken = ENTRIES.predict(**asked, out=tmp_path / "broken.png", attention=True)
    assert broken["attention is not drawn"] == "it did not look twice"
    assert "attention is shown in" not in broken
    assert broken["turn 1"] == "mark it (no_tag)"
    assert broken["failures"] == "no_tag, cut, no_answer"
    assert broken["answer"] == ""
    assert "pictures" not in broken
