"""A vision-language model in the place of the T5: prompts, pictures, one run from training to an answer."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.families import BY_MODEL_TYPE
from lightbox.backbones.loading import load
from lightbox.errors import RequestError
from lightbox.losses.language import IGNORED
from lightbox.paper.conditions import GREY, grey, picture
from lightbox.paper.learner import open_backbone, tokens_of
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.prompts import fitted_texts
from lightbox.paper.purpose import read_purpose
from lightbox.paper.samples import Split
from lightbox.runs import folders
from lightbox.testing.shrunk import save_shrunk
from medthink import cli, train
from medthink.config import resolve
from medthink.data import CUT_FIRST, TEMPLATES, fields_of, load_splits, texts_of, written_fields
from medthink.predict import load_run, predict

QUESTION = "is there a nodule ?"
METHODS = ("none", "explanation", "reasoning", "first_stage", "second_stage", "reader")


@pytest.fixture(scope="module")
def backbone(llava_folder):
    return load(str(llava_folder))


@pytest.fixture(scope="module")
def trained(tiny_llava, tmp_path_factory):
    """A finished run with an adapter."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightbox.paper.entries.index_run", lambda *_: None)
        cli.train([*tiny_llava, "experiment=explanation", f"run.out={out}"])
    return next((out / "runs").iterdir())


def texts_within(items, method, tokenizer, **limits):
    return fitted_texts(
        written_fields([item.record for item in items], method), tokenizer, cut_first=CUT_FIRST, **limits
    )


@pytest.mark.parametrize("method", METHODS)
def test_short_items_keep_their_prompt_and_target(items, backbone, method):
    texts = texts_within(items, method, backbone.tokenizer, source_tokens=512, target_tokens=512)
    assert texts == [texts_of(item.record, method) for item in items]


def test_rationale_then_question_are_shortened_and_never_the_answer(make_item, backbone):
    item = make_item(text="is there a nodule in the left upper zone of this image ?")
    count = lambda text: len(backbone.tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    source, target = texts_of(item.record, "reasoning")
    limits = {"source_tokens": count(source) - 5, "target_tokens": count(target) - 5}
    prompt, answer = texts_within([item], "reasoning", backbone.tokenizer, **limits)[0]
    assert prompt.startswith("Question: is there a nodule")
    assert prompt.endswith("Options: (A) yes (B) no Solution:")
    assert answer.startswith("a small dense disc lies")
    assert answer.endswith("Answer: The answer is (A).")
    assert count(prompt) < count(source)
    assert count(answer) < count(target)


def test_picture_is_a_square_that_cuts_nothing_off():
    tall = np.zeros((60, 30), np.uint8)
    tall[0], tall[-1] = 255, 255
    shown = picture(tall, 448)
    assert shown.size == (60, 60)
    assert np.array_equal(np.asarray(shown)[:, 15:45], tall)
    assert picture(tall, 20).size == (20, 20)
    blank = grey(tall, 448)
    assert blank.size == (60, 60)
    assert set(np.unique(np.asarray(blank))) == {GREY}


@pytest.mark.slow
def test_run_leaves_an_adapter_and_no_model(trained, llava_folder):
    names = {path.name for path in (trained / "model").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "manifest.json", "purpose.json"}
    assert read_purpose(trained / "model") == {"purpose": {"objective.method": "explanation", "data.form": "closed"}}
    card = json.loads((trained / "card.json").read_text())
    assert card["base"]["name"] == str(llava_folder)
    assert card["attention"]["name"] == "sdpa"
    assert card["parameters_trained"] < card["parameters"] / 10
    assert set(card["baselines"]) == {"majority", "question_only"}
    table = folders.read_scores(trained)
    assert sorted(set(table["condition"].to_pylist())) == ["blank", "image", "shuffled"]
    assert table.num_rows == 12 * 3


def test_saved_adapter_scores_the_same(trained, tiny_llava, tmp_path):
    own = [o for o in tiny_llava if not o.startswith(("model.", "adapter."))]
    cli.evaluate([*own, "experiment=explanation", f"model.backbone={trained / 'model'}", f"run.out={tmp_path}"])
    again = next((tmp_path / "runs").iterdir())
    assert folders.read_scores(again).equals(folders.read_scores(trained))
    assert (again / "generated.json").read_bytes() == (trained / "generated.json").read_bytes()


def test_the_same_adapter_as_plain_peft_would_have_saved_it_scores_the_same(trained, tiny_llava, tmp_path):
    plain = shutil.copytree(trained / "model", tmp_path / "plain", ignore=shutil.ignore_patterns("m*", "p*"))
    assert sorted(path.name for path in plain.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    own = [o for o in tiny_llava if not o.startswith(("model.", "adapter."))]
    cli.evaluate([*own, "experiment=explanation", f"model.backbone={plain}", f"run.out={tmp_path}"])
    again = next((tmp_path / "runs").iterdir())
    assert folders.read_scores(again).equals(folders.read_scores(trained))


def test_saved_adapter_of_another_strategy_is_refused(trained, tiny_llava, tmp_path):
    own = [o for o in tiny_llava if not o.startswith(("model.", "adapter."))]
    asked = [*own, "experiment=reasoning", "objective.is_trained=false", f"model.backbone={trained / 'model'}"]
    with pytest.raises(RequestError, match=r"trained with objective.method=explanation"):
        cli.run_job(tmp_path / "jobs" / "x", asked, {})


def test_prediction_has_probabilities_of_a_saved_adapter(trained, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)).save(tmp_path / "a.png")
    told = predict(tmp_path / "a.png", QUESTION, folder=trained, options=("yes", "no"))
    assert told["strategy"] == "explanation"
    assert sum(told["options"].values()) == pytest.approx(1)
    json.dumps(told)


@pytest.mark.parametrize("method", ["none", "explanation", "reasoning", "second_stage"])
@pytest.mark.parametrize("place", range(6))
def test_answer_is_found_among_the_tokens_of_the_target(items, backbone, method, place):
    question = items[place].record
    _, target = texts_of(question, method)
    sentence = next(text for name, text in fields_of(question, TEMPLATES[method].target) if "answer" in name)
    begin, end = tokens_of(backbone.tokenizer, target, sentence)
    said = backbone.tokenizer.decode(backbone.target_ids(target)[begin:end]).strip()
    assert said.removeprefix("Answer: ") in target
    assert said.startswith(("The answer is", "Answer: The answer is"))
    assert said.endswith(".")
    assert (begin == 0) is (method != "reasoning")


def test_forced_tokens_add_up_to_the_probability_of_the_sequence(trained, items):
    _, model = load_run(trained)
    seen = Image.new("L", (56, 56), 99)
    prompt, target = texts_of(items[0].record, "explanation")
    forced = model.force(prompt, target, [seen])
    batch = model.backbone.prepare([seen], [prompt], [target], max_tokens=512)
    with torch.no_grad():
        whole = model.backbone.sequence_logps(batch)
    torch.testing.assert_close(forced.logps.sum(), whole[0])
    assert forced.target == batch.labels[batch.labels != IGNORED].tolist()


@pytest.mark.slow
def test_killed_run_continues_with_its_adapter(tiny_llava, tmp_path, monkeypatch):
    """A run that died between training and scoring trains no further step, and scores the same."""
    asked = [*tiny_llava, "experiment=none"]
    cli.run_job(tmp_path / "calm" / "jobs" / "none", asked, {})

    def die(*_, **__):
        raise KeyboardInterrupt

    folder = tmp_path / "killed" / "jobs" / "none"
    with monkeypatch.context() as patch:
        patch.setattr("medthink.evaluate.evaluate", die)
        with pytest.raises(KeyboardInterrupt):
            cli.run_job(folder, asked, {})
    cli.run_job(folder, asked, {})
    calm = tmp_path / "calm" / "jobs" / "none"
    assert (folder / "scores.parquet").read_bytes() == (calm / "scores.parquet").read_bytes()
    assert json.loads((folder / "card.json").read_text())["notes"] == ["continued from step 2"]


HUB = ["preset=smoke", "model.backbone=some/model", f"model.backbone_revision={'a' * 40}"]


@pytest.mark.parametrize("model_type", ["llava", "t5"])
def test_hub_id_is_opened_by_its_family(model_type, monkeypatch, tmp_path):
    """The family of a hub id is known once its config.json was fetched, which is when the run begins."""
    opened = []
    monkeypatch.setattr("lightbox.backbones.loading.family_on_hub", lambda *_: BY_MODEL_TYPE[model_type])
    monkeypatch.setattr("medthink.train.run", lambda cfg, base, *_, **__: opened.append(base.family.name))
    cli.run_job(tmp_path / "jobs" / "x", HUB, {})
    assert opened == [model_type]


def test_hub_id_of_a_vlm_is_refused_what_only_a_t5_has(monkeypatch, tmp_path):
    monkeypatch.setattr("lightbox.backbones.loading.family_on_hub", lambda *_: BY_MODEL_TYPE["llava"])
    with pytest.raises(RequestError, match="The official code counts pads"):
        cli.run_job(tmp_path / "jobs" / "x", [*HUB, "objective.pads=official"], {})


def test_reader_reads_text_only(tiny_llava, tmp_path):
    """No image token is in a prompt of the reader, so its model never looks."""
    cfg = resolve([*tiny_llava, "experiment=reader"])
    items = load_splits(cfg)[0].samples[:2]
    own = open_backbone(cfg, find_pretrained(cfg.model.backbone))
    texts = texts_within(items, "reader", own.tokenizer, source_tokens=64, target_tokens=64)
    prompts, targets = zip(*texts, strict=True)
    batch = own.prepare(None, prompts, targets, max_tokens=512)
    assert "pixel_values" not in batch.inputs
    assert own.image_token_id not in batch.inputs["input_ids"]


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "t5"])
def test_lengths_of_rows_grow_as_those_of_their_batches(tiny, make_item, tmp_path, monkeypatch, name):
    """Up to what every row has, image tokens too, though no image is decoded."""
    folder = f"model.backbone={save_shrunk(name, tmp_path / name)}" if name != "t5" else ""
    cfg = resolve([*(o for o in tiny if name == "t5" or not o.startswith("model.")), *([folder] if folder else [])])
    samples = [make_item(image=0), make_item(image=1, text="is there a dense nodule or none ?"), make_item(image=2)]
    files = []
    for px in (64, 64, 192):
        files.append(tmp_path / f"{len(files)}.png")
        Image.fromarray(np.zeros((px // 2, px), np.uint8)).save(files[-1])
    split = Split("train", samples, files, ["a", "b", "c"])
    own = train.open_learner(cfg, find_pretrained(cfg.model.backbone), (split,), cache=tmp_path)
    batches = [own.collate(samples, split)([place]) for place in range(3)]
    expected = [[batch.inputs["input_ids"].shape[1], batch.labels.shape[1]] for batch in batches]
    monkeypatch.setattr("lightbox.paper.conditions.load_image", None)
    lengths = own.row_lengths(samples, split)
    parts = len(lengths[0])  # a causal row is one length, and its labels are as long as it is
    surplus = {
        tuple(np.subtract(rows[:parts], own_lengths)) for rows, own_lengths in zip(expected, lengths, strict=True)
    }
    assert (len(surplus), parts) == (1, 2 if name == "t5" else 1)
    assert (lengths[2] > lengths[0]) == (name != "t5")  # the same text, and the T5 reads features
