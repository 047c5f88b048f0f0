"""What is hidden, what counts as a changed answer, and rows of attention and of hiding in a run on random weights."""

import pytest

from lightbox.paper.pretrained import find_pretrained
from lightbox.records import box_iou
from vitar import evaluate
from vitar.config import resolve
from vitar.data import load_splits, tasks_of
from vitar.looking import HIDDEN, HIDDEN_ELSEWHERE, Looks, is_flipped
from vitar.model import open_policy


@pytest.fixture(scope="module")
def policy(qwen_folder):
    sizes = ["preset=smoke", f"model.backbone={qwen_folder}", "data.original_px=128", "data.n_train=8"]
    cfg = resolve([*sizes, "experiment=mark", "eval.looks=3"])
    return open_policy(cfg, find_pretrained(cfg.model.backbone))


@pytest.mark.slow
def test_rows_say_how_far_attention_goes_to_the_finding_and_which_answers_change(policy, script, tmp_path):
    cfg, scored = policy.cfg, load_splits(policy.cfg)[1]
    n, looks = len(scored.samples), cfg.eval.looks
    act = "<mark>" + "".join(f"<loc_{k}>" for k in (32, 64, 64, 96))
    usual = ["<answer>disc"] * n
    shown = [[act] * 3 * n, [text for text in usual for _ in range(3)]]  # own, random and true boxes
    others = [[act] * n, usual] * 2  # blank, shuffled
    covered = [[act] * looks, ["<answer>oval", *usual[1:looks]], [act] * looks, usual[:looks]]
    script(policy.learner.backbone, [*shown, *others, *covered])
    table = evaluate.evaluate(cfg, policy, scored, folder=tmp_path, looks=Looks(policy)).to_pylist()
    own = [row for row in table if row["condition"] == "image" and row["kind"] != "set"]
    read = [row for row in own if row["look_first"] is not None]
    assert {row["item"] for row in read} == {sample.id for sample in scored.samples[:looks]}
    assert all(0 <= row[f"look_{name}"] < 64 for row in read for name in ("first", "again", "second"))
    other = {row["item"]: row for row in table if row["condition"] == "random"}
    for row in read:  # the first turn is the same, what is shown is not
        assert other[row["item"]]["look_first"] == pytest.approx(row["look_first"], rel=1e-4)
        assert other[row["item"]]["look_again"] != row["look_again"]
    flips = {
        condition: [row["flipped"] for row in table if row["condition"] == condition]
        for condition in (HIDDEN, HIDDEN_ELSEWHERE)
    }
    assert {condition: sum(own) for condition, own in flips.items()} == {HIDDEN: 1.0, HIDDEN_ELSEWHERE: 0.0}
    assert {len(own) for own in flips.values()} == {looks}


def test_an_episode_of_one_image_has_looks_at_chance(policy, script):
    samples = load_splits(policy.cfg)[1]
    (task, *_) = tasks_of(policy.cfg, samples, [own.image for own in samples.samples])
    script(policy.learner.backbone, [["<answer>disc"]])
    (episode,) = policy.play([task], [0])["own"]
    assert set(Looks(policy).scores(episode).values()) == {1.0}
    assert is_flipped(episode, episode) == 0.0


def test_what_is_hidden_elsewhere_keeps_away_from_the_finding(policy):
    from vitar.looking import _place  # noqa: PLC0415

    split = load_splits(policy.cfg)[1]
    for task in tasks_of(policy.cfg, split, [own.image for own in split.samples]):
        box = task.true_boxes[0]
        assert _place(task, 3, HIDDEN) == box
        other = _place(task, 3, HIDDEN_ELSEWHERE)
        assert other.area == pytest.approx(box.area, rel=0.35)
        assert box_iou(other, box) < 0.1
