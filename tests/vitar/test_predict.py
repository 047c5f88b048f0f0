"""What a prediction draws of attention, and requests that are refused before a model is loaded."""

import json

import numpy as np
import pytest
from PIL import Image

from lightbox.backbones.attended import box_coverage
from lightbox.errors import RequestError
from lightbox.eval.attention_mass import attention_mass
from lightbox.paper.entries import Entries
from lightbox.paper.image_regions import cropped
from lightbox.paper.image_tools import Action
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.replies import Reply
from lightbox.records import Box
from vitar.cli import ENTRIES
from vitar.config import resolve
from vitar.data import load_splits, tasks_of
from vitar.looking import LOOKS
from vitar.model import Policy, open_policy
from vitar.predict import LOOK_TITLES, attended, learning_batch, look_maps, look_panels


@pytest.fixture(scope="module")
def policy(qwen_folder):
    sizes = ["preset=smoke", f"model.backbone={qwen_folder}", "data.original_px=128", "data.n_train=8"]
    cfg = resolve([*sizes, "experiment=mark"])
    return open_policy(cfg, find_pretrained(cfg.model.backbone))


@pytest.fixture(scope="module")
def task(policy):
    split = load_splits(policy.cfg)[1]
    return tasks_of(policy.cfg, split, [own.image for own in split.samples])[0]


def episode_of(policy, task, script, feedback="mark"):
    cfg = resolve(["preset=smoke", "data.original_px=128", f"experiment={feedback}"])
    own = Policy(cfg, policy.learner, policy.codec)
    act = policy.codec.write(Reply(actions=(Action("mark", (task.true_boxes[0],)),)), task.image.size)
    script(policy.learner.backbone, [[act], ["<answer>disc"]])
    return own.play([task], [0])["own"][0]


def test_maps_are_of_both_turns_and_both_images_and_fit_what_goes_to_the_box(policy, task, script):
    episode = episode_of(policy, task, script)
    maps = look_maps(policy, episode)
    assert list(maps) == list(LOOK_TITLES) == [name for name, _, _ in LOOKS]
    backbone = policy.learner.backbone
    grids = backbone.grids(backbone.read_images(episode.images))
    row = attended(backbone, learning_batch(backbone, [episode]))
    for name, turn, image in LOOKS:
        assert maps[name].shape == grids[image]
        assert maps[name].mean() == pytest.approx(1.0, rel=1e-4)
        inside = box_coverage(task.true_boxes[0], *grids[image])
        mass = attention_mass(row.attention, row.turns[turn], row.images[image], inside).late()
        share = float((maps[name].ravel() * inside.numpy()).sum() / inside.sum())
        assert share == pytest.approx(mass["enrichment"], rel=1e-4)
    assert not np.allclose(maps["first"], maps["again"])


def test_boxes_are_drawn_where_they_lie_and_not_on_a_crop(policy, task, script):
    for feedback, is_whole in (("mark", True), ("crop", False)):
        episode = episode_of(policy, task, script, feedback)
        panels = look_panels(episode, look_maps(policy, episode))
        assert [panel.title for panel in panels] == list(LOOK_TITLES.values())
        assert [bool(panel.drawn) for panel in panels] == [True, True, is_whole]
        assert panels[0].true == task.true_boxes
        assert panels[0].text == f"says {episode.texts[0].strip()}"
        assert panels[2].text == f"says {episode.texts[1].strip()}"
    enlarged = cropped(task.image, episode.observations[0].boxes[0], episode.images[1].size)
    assert (panels[2].pixels == np.asarray(enlarged)).all()


def test_who_answers_at_once_has_no_maps(policy, task, script):
    script(policy.learner.backbone, [["<answer>disc"]])
    (episode,) = policy.play([task], [0])["own"]
    assert look_maps(policy, episode) == {}


def run_of(folder, paper, config):
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"paper": paper, "arm": "any", "seed": 0, "config": config}))


@pytest.mark.parametrize(
    ("entries", "asked", "message"),
    [
        (ENTRIES, {"regions": [Box(0, 0, 1, 1)]}, "answers about the whole image"),
        (ENTRIES, {"attention": True}, "--attention is set without --out"),
        (Entries("mmedpo"), {"attention": True, "out": "a.png"}, "mmedpo draws no attention"),
        (ENTRIES, {"out": "a.jpg"}, "ends in .png"),
        (ENTRIES, {"run": "missing"}, "it is no finished run"),
        (ENTRIES, {"run": "other"}, "It is a run of mmedpo"),
        (ENTRIES, {"run": "counted"}, "kept no model that could be asked"),
        (ENTRIES, {"image": "text.png", "run": "own"}, "text.png"),
        (ENTRIES, {"image": "none.png", "run": "own"}, "none.png"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_in_three_parts(entries, asked, message, tmp_path):
    run_of(tmp_path / "own", "vitar", {})
    run_of(tmp_path / "other", "mmedpo", {})
    run_of(tmp_path / "counted", "vitar", {"objective": {"is_trained": False}})
    (tmp_path / "text.png").write_text("no image")
    image = tmp_path / "image.png"
    Image.new("L", (64, 64)).save(image)
    places = {name: tmp_path / value for name, value in asked.items() if name in ("out", "run", "image")}
    with pytest.raises(RequestError, match=message) as refused:
        entries.predict(**({"image": image, "question": "What is seen?", "run": tmp_path / "own"} | asked | places))
    assert all(part.strip() for part in (refused.value.given, refused.value.why, refused.value.do))
