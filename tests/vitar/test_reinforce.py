"""Training by rewards on random weights: what an episode earns, what is logged, from whose weights it begins."""

import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lightbox.errors import RequestError
from lightbox.paper.image_tools import Action, Feedback, Observation, Task
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.replies import Reply
from lightbox.paper.starts import started
from lightbox.records import Box
from lightbox.runs import folders
from vitar.cli import ENTRIES
from vitar.config import resolve
from vitar.data import load_splits, tasks_of
from vitar.model import open_policy
from vitar.reinforce import as_played, player
from vitar.rollout import Episode

TRUE = Box(0.25, 0.25, 0.5, 0.5)


@pytest.fixture(scope="module")
def sizes(qwen_folder):
    return ["preset=smoke", f"model.backbone={qwen_folder}", "data.original_px=128", "data.n_train=8"]


@pytest.fixture(scope="module")
def start(sizes, tmp_path_factory):
    out = tmp_path_factory.mktemp("start")
    return ENTRIES.run_once([*sizes, "experiment=mark_start", f"run.out={out}"], "train", is_indexed=False)


@pytest.fixture(scope="module")
def rewarded(sizes, start, tmp_path_factory):
    out = tmp_path_factory.mktemp("rewarded")
    arm = [*sizes, "experiment=mark_a", f"needs=[{start}]", "optim.steps_factor=1", "optim.lr=0.01"]
    return ENTRIES.run_once([*arm, f"run.out={out}", "run.log_every_steps=1"], "train", is_indexed=False)


def episode(*, acts, answer, box=TRUE):
    """An episode as it was said, without a model."""
    image = Image.new("L", (64, 64))
    task = Task(image, "Which shape?", "disc", (TRUE,))
    own = Episode(task=task, feedback=Feedback(tool="mark"), images=[image], ids=[5, 6], is_chosen=[False, True])
    own.logps.append(-0.5)
    for _ in range(acts):
        own.replies.append(Reply(actions=(Action("mark", (box,)),)))
        own.observations.append(Observation((image,), (box,)))
    own.replies.append(Reply(answer=answer))
    own.observations.append(Observation())
    return own


@pytest.mark.parametrize(
    ("acts", "answer", "variant", "earned"),
    [
        (1, "disc", "A", 1.4),
        (1, "oval", "A", 0.4),
        (0, "disc", "A", 1.2),
        (1, "disc", "B", 2.0),
        (0, "disc", "B", 0.8),
        (1, "disc", "C", 1.9),
        (1, "disc", "D", 1.0),
        (1, "oval", "D", 0.0),
    ],
)
def test_an_episode_earns_what_its_variant_pays(acts, answer, variant, earned):
    played = as_played(episode(acts=acts, answer=answer), variant)
    assert played.reward == pytest.approx(earned)
    assert sum(value for name, value in played.values.items() if name.startswith("reward_")) == pytest.approx(earned)
    assert played.values["acted"] == acts
    assert played.values["iou"] == pytest.approx(acts)  # the true box
    assert (played.ids, played.is_chosen, played.logps) == ([5, 6], [False, True], [-0.5])


def test_failures_are_logged_under_their_own_names_and_a_term_that_is_not_finite_earns_nothing():
    own = episode(acts=1, answer="disc", box=Box(0.1, 0.1, math.nan, 0.5))
    own.failures.append("outside")
    played = as_played(own, "C")
    assert math.isfinite(played.reward)
    assert played.values["not_finite"] == 1
    assert played.values["failed_outside"] == 1
    assert played.values["failed_inverted"] == 0


@pytest.mark.slow
def test_rewards_go_on_from_the_weights_of_the_start_and_leave_its_tower(start, rewarded, qwen_folder):
    shipped = load_file(qwen_folder / "model.safetensors")
    before = load_file(start / folders.MODEL / "model.safetensors")
    after = load_file(rewarded / folders.MODEL / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], shipped[name])}
    assert moved
    blocks = [name for name in before if ".blocks." in name]
    assert all(torch.equal(after[name], before[name]) for name in blocks)
    learnt = {name for name in before if not torch.equal(after[name], before[name])}
    rate = 0.01 * 2  # two steps of Adam
    assert all((after[name] - before[name]).abs().max() < 1.5 * rate for name in learnt)


def test_a_step_logs_rewards_acts_boxes_entropy_and_groups_that_teach_nothing(rewarded):
    history = folders.read_history(rewarded)
    names = "reward reward_act reward_accuracy iou acted right box_area zero_variance entropy chosen_tokens failed_cut"
    assert {f"train/{name}" for name in names.split()} <= history.keys()
    assert all(math.isfinite(value) for own in history.values() for _, value in own)
    assert folders.read_scores(rewarded) is not None


def test_episodes_of_a_group_share_their_prompt_and_follow_from_their_seeds(sizes):
    cfg = resolve([*sizes, "experiment=mark_a", "objective.group=3"])
    policy = open_policy(cfg, find_pretrained(cfg.model.backbone))
    split = load_splits(cfg)[0]
    play = player(cfg, policy, tasks_of(cfg, split, [sample.image for sample in split.samples]))
    policy.learner.backbone.model.eval()
    seeds = [11, 12, 11, 13, 14, 13]
    one, other = (play(policy.learner.backbone, [0, 3], own) for own in (seeds, seeds))
    assert [own.ids for own in one] == [own.ids for own in other]
    assert one[0].ids == one[2].ids
    assert one[0].ids != one[1].ids
    assert one[0].images[0] is one[1].images[0]  # so it is encoded once


def test_a_start_without_weights_is_refused(tmp_path):
    with pytest.raises(RequestError, match="whose folder holds its model"):
        started({"mark_start": tmp_path}, find_pretrained("tiny/llava"))
