"""Conditions of the evaluation, and vision features with their cache."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lightbox.backbones import towers
from lightbox.cli import main
from lightbox.errors import RequestError
from lightbox.paper import features
from lightbox.paper.conditions import GREY, shuffled_rows
from lightbox.paper.generated import add_generated
from lightbox.paper.samples import Split
from medthink import evaluate
from medthink.config import ModelConfig, resolve
from medthink.data import load_splits
from medthink.rationales import MASK

SMALL = ["preset=smoke", "data.n_train=8", "data.n_test=30"]


@pytest.fixture(scope="module")
def asked():
    return load_splits(resolve(SMALL))[1]


def fake_split(n=3):
    images = [np.full((64, 64), 40 * k, dtype=np.uint8) for k in range(n)]
    return Split("test", [], images, [f"case{k}" for k in range(n)])


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_condition_has_no_fixed_point_and_uses_every_image(asked, seed):
    images = shuffled_rows(asked, seed=seed)
    own = [item.image for item in asked.samples]
    assert all(shown != kept for shown, kept in zip(images, own, strict=True))
    assert set(images) == set(own)


def test_blank_condition_shows_the_last_feature_row(asked):
    asked_by_condition = {
        one.condition: one for one in evaluate.conditions(resolve([*SMALL, "experiment=none"]), asked, {})
    }
    assert set(asked_by_condition) == {"image", "blank", "shuffled"}
    assert set(asked_by_condition["blank"].rows) == {len(asked.case_ids)}
    assert asked_by_condition["image"].rows == [item.image for item in asked.samples]


@pytest.mark.parametrize(("arm", "short"), [("explanation", True), ("none", True), ("reasoning", False)])
def test_answer_first_strategies_generate_only_the_answer_without_their_image(asked, arm, short):
    cfg = resolve([*SMALL, f"experiment={arm}"])
    asked_by_condition = {one.condition: one for one in evaluate.conditions(cfg, asked, {})}
    assert asked_by_condition["image"].max_new_tokens == cfg.new_tokens
    assert (asked_by_condition["blank"].max_new_tokens == cfg.eval.answer_tokens) is short


def test_stage_two_reads_the_rationale_of_the_same_condition(asked, tmp_path):
    ids = [item.id for item in asked.samples]
    add_generated(tmp_path, {c: dict.fromkeys(ids, f"seen {c}") for c in ("image", "blank", "shuffled")})
    cfg = resolve([*SMALL, "experiment=stage2_gold"])
    for trial in evaluate.conditions(cfg, asked, {"stage1": tmp_path}):
        assert {sample.record.rationale for sample in trial.questions} == {f"seen {trial.condition}"}


def test_reader_reads_four_texts_and_sees_no_image(asked, tmp_path):
    needs = {}
    for arm in ("explanation", "reasoning"):
        needs[arm] = tmp_path / arm
        needs[arm].mkdir()
        add_generated(needs[arm], {"image": {item.id: f"no {arm}" for item in asked.samples}})
    plain = {one.condition: one for one in evaluate.conditions(resolve([*SMALL, "experiment=reader"]), asked, needs)}
    assert set(plain) == {"no_rationale", "reference", *evaluate.READ_FROM}
    assert {one.rows for one in plain.values()} == {None}
    assert plain["reference"].questions == asked.samples
    assert plain["generated"].questions[0].record.rationale == "no explanation"
    masked = {
        one.condition: one for one in evaluate.conditions(resolve([*SMALL, "experiment=reader_evidence"]), asked, needs)
    }
    assert masked["generated_reasoning"].questions[0].record.rationale == f"{MASK} reasoning"


class Parrot:
    """A model that writes the letter A of every item, in the image condition as a sentence and else bare."""

    def write(self, questions, split, rows, *, max_new_tokens):
        own = [sample.image for sample in split.samples]
        return ["The answer is (A). Solution: it is." if rows == own else "A" for _ in questions]


@pytest.mark.parametrize("arm", ["explanation", "stage1"])
def test_what_was_written_can_be_scored_by_the_rules_of_others(asked, tmp_path, capsys, arm):
    scores = evaluate.evaluate(
        resolve([*SMALL, f"experiment={arm}"]), Parrot(), asked, folder=tmp_path, needs={}
    ).to_pandas()
    with pytest.raises(SystemExit) as caught:
        main(["conventions", str(tmp_path), "--json", "--condition", "blank"])
    if arm == "stage1":  # it answers nothing
        assert caught.value.code == 2
        assert "holds no predictions.jsonl" in capsys.readouterr().err
        return
    blank = {row["convention"]: row["score"] for row in json.loads(capsys.readouterr().out)["conventions"]}
    with pytest.raises(SystemExit):
        main(["conventions", str(tmp_path), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["items"], shown["of_other_conditions"]) == (30, {"'blank'": 30, "'shuffled'": 30})
    by_rule = {row["convention"]: row["score"] for row in shown["conventions"]}
    correct = scores.groupby("condition")["correct"].mean()
    assert 0 < correct["image"] < 1
    assert by_rule["ours"] == pytest.approx(correct["image"])
    assert blank["ours"] == correct["blank"] == 0
    assert blank["first-character"] == pytest.approx(correct["image"])
    assert by_rule["first-character"] == 0


def test_features_are_the_towers_and_computed_once(tower_folder, tmp_path, monkeypatch):
    model = ModelConfig(backbone="x", tower=str(tower_folder))
    first = features.load_features(model, fake_split(), cache=tmp_path)
    tower = towers.load_tower(str(tower_folder))
    grey = torch.full((1, 64, 64), GREY, dtype=torch.uint8)
    expected = torch.cat([tower.encode(torch.from_numpy(np.stack(fake_split().images))), tower.encode(grey)])
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
    assert first.shape == (4, 64, 24)
    monkeypatch.setattr(towers, "load_tower", None)  # a second look must not need the tower
    assert torch.equal(features.load_features(model, fake_split(), cache=tmp_path), first)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_colour_reaches_the_tower(tower_folder, tmp_path):
    """From a file, wide and with colours, to features: the whole of it, on black, as the tower reads a colour image."""
    colours = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    model = ModelConfig(backbone="x", tower=str(tower_folder))
    row = features.load_features(model, Split("test", [], [tmp_path / "a.png"], ["a"]), cache=tmp_path / "cache")[:1]
    square = np.zeros((1, 80, 80, 3), np.uint8)
    square[:, 20:60] = colours
    assert torch.equal(row, towers.load_tower(str(tower_folder)).encode(torch.from_numpy(square)))
    assert torch.equal(row, features.features_of(model, tmp_path / "a.png"))


def test_other_images_get_other_features(tower_folder, tmp_path):
    model = ModelConfig(backbone="x", tower=str(tower_folder))
    features.load_features(model, fake_split(3), cache=tmp_path)
    features.load_features(model, fake_split(2), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_other_code_of_the_tower_gets_features_of_its_own(tower_folder, tmp_path, monkeypatch):
    model = ModelConfig(backbone="x", tower=str(tower_folder))
    features.load_features(model, fake_split(), cache=tmp_path)
    monkeypatch.setattr(features, "core_digest", lambda _: "edited")
    features.load_features(model, fake_split(), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flipped bit", "zeroed", "cut", "empty", "of other images"])
def test_damaged_cache_is_computed_anew_with_a_warning(tower_folder, tmp_path, caplog, damage):
    model = ModelConfig(backbone="x", tower=str(tower_folder))
    first = features.load_features(model, fake_split(), cache=tmp_path)
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[-1000] ^= 1
    elif damage == "zeroed":
        content[-4096:] = bytes(4096)
    elif damage == "of other images":
        features.load_features(model, fake_split(2), cache=tmp_path / "other")
        content = next((tmp_path / "other").iterdir()).read_bytes()
    path.write_bytes({"cut": content[:-1000], "empty": b""}.get(damage, content))
    assert torch.equal(features.load_features(model, fake_split(), cache=tmp_path), first)
    assert f"{path.name} is computed anew" in caplog.text
    caplog.clear()
    assert torch.equal(features.load_features(model, fake_split(), cache=tmp_path), first)
    assert not caplog.text


def test_killed_writer_leaves_no_file_that_is_read(tower_folder, tmp_path, monkeypatch):
    model = ModelConfig(backbone="x", tower=str(tower_folder))

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features, "save_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            features.load_features(model, fake_split(), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert features.load_features(model, fake_split(), cache=tmp_path).shape[0] == 4


def write_detr(folder, names, *, width=6):
    table = torch.arange(float(len(names) * 5 * width)).view(len(names), 5, width)
    save_file({"tensor": table}, folder / "detr.safetensors")
    (folder / "name_map.json").write_text(json.dumps({name: str(row) for row, name in enumerate(names)}))
    return table


def test_ready_features_are_found_by_name_and_blank_is_their_mean(tmp_path):
    table = write_detr(tmp_path, ["case2", "case0", "case1"])
    model = ModelConfig(backbone="x", features=str(tmp_path / "detr.safetensors"))
    rows = features.load_features(model, fake_split(), cache=tmp_path)
    assert torch.equal(rows[:3], table[[1, 2, 0]])
    torch.testing.assert_close(rows[3], table.mean(dim=0))


def test_image_without_features_is_refused_and_not_skipped(tmp_path):
    write_detr(tmp_path, ["case0"])
    model = ModelConfig(backbone="x", features=str(tmp_path / "detr.safetensors"))
    with pytest.raises(RequestError, match="2 of 3 images of split 'test' have no row, the first is 'case1'"):
        features.load_features(model, fake_split(), cache=tmp_path)


def test_features_without_a_name_map_are_refused(tmp_path):
    write_detr(tmp_path, ["case0"])
    (tmp_path / "name_map.json").unlink()
    with pytest.raises(RequestError, match=r"name_map.json \(image name to row\) beside it"):
        features.read_features(tmp_path / "detr.safetensors", fake_split())
