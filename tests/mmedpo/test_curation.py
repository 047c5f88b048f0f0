"""Curation: what is rejected, noised and scored, what bad input does to one pair, and that nothing is done twice."""

import json
import logging
import socket

import numpy as np
import pytest
from PIL import Image

from lightbox import chat, chat_json
from lightbox.chat import ChatModel
from lightbox.errors import RequestError, WorkError
from lightbox.paper.held_images import released_pairs
from lightbox.paper.pretrained import find_pretrained
from lightbox.readers.all_sets import read_dataset
from lightbox.readers.preferences import pairs_of
from lightbox.runs.sources import closure
from mmedpo import relevance
from mmedpo.curation.__main__ import main
from mmedpo.curation.contradict import FarthestSample, ModelPicker, farthest
from mmedpo.curation.judges import Panel, discuss
from mmedpo.curation.masks import Everywhere, Known, MaskFiles, Place, Tower
from mmedpo.curation.models import open_map, open_target
from mmedpo.curation.pipeline import curate_set
from mmedpo.curation.plan import Plan, Target
from mmedpo.curation.questions import Subject, load_subjects
from mmedpo.curation.written import PREFERENCES, PROVENANCE
from mmedpo.data import Asked

KEY = "sk-secret/0123+abcd"
N = 6


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(chat, "BACKOFF_S", 0)
    monkeypatch.setattr(chat_json, "WAIT_S", 0)


@pytest.fixture(scope="module")
def subjects():
    return load_subjects("phantom", root=None, split=None, images=N, per_image=1, seed=3)


class Model:
    """A target model that answers every question in the same ways, counts them, and stops where it is told to."""

    def __init__(self, answers=("heart left", "absurd words"), stops_at=None):
        self.asked, self.answers, self.stops_at = [], list(answers), stops_at

    def __call__(self, image, question, seed):
        if len(self.asked) == self.stops_at:
            raise KeyboardInterrupt
        self.asked.append((image.name, question, seed))
        return self.answers


def plan_of(out, model=None, *, name="tiny/llava", **changes):
    target = Target(name, {"weights": "w"}, lambda: model or Model())
    parts = {"source": "phantom", "picker": FarthestSample(), "localiser": Everywhere()}
    return Plan(out=out, target=target, **parts | changes)


def panel_of(endpoint, tmp_path, *names):
    return Panel([ChatModel(endpoint.url, name) for name in names or ("m",)], ["phantom"], tmp_path / "chat")


def read_back(out, **options):
    return list(pairs_of(read_dataset("preference_json", out, **options).cases))


def provenance(out):
    return [json.loads(line) for line in (out / PROVENANCE).read_text().splitlines()]


def made_files(out, *endings):
    return {path: path.read_bytes() for path in out.rglob("*") if path.suffix in endings}


def test_training_finds_text_pairs_by_the_name_of_the_case_they_are_about(tmp_path, subjects):
    curate_set(plan_of(tmp_path), subjects)
    counts = {case: len(texts) for case, texts in released_pairs(tmp_path / PREFERENCES).items() if texts}
    assert counts == {subject.asked.id.rpartition("-")[0]: 1 for subject in subjects}


def test_what_is_written_is_read_back_with_images_and_each_pair_says_where_it_is_from(tmp_path, subjects):
    summary = curate_set(plan_of(tmp_path), subjects)
    assert (summary.pairs, summary.is_whole) == ({"text": N, "image": N}, True)
    pairs = read_back(tmp_path, needs_images=True, base_model="tiny/llava")
    assert len(pairs) == 2 * N
    lines = {line["pair"]: line for line in provenance(tmp_path)}
    assert list(lines) == [pair.id for _, pair in pairs]
    asked = {subject.id: subject for subject in subjects}
    for case, pair in pairs:
        line = lines[pair.id]
        subject = asked[line["question"]]
        assert (pair.prompt, pair.chosen) == (subject.asked.text, subject.asked.answer)
        assert [path.name for path in case.images] == [path.rpartition("/")[2] for path in line["images"]]
        assert (np.asarray(Image.open(case.images[0])) == subject.image).all()
        if pair.kind == "text":
            answers = line["made"]["answers"]
            assert (answers["model"], answers["weights"], answers["seed"]) == ("tiny/llava", "w", 0)
            assert answers["answers"][line["made"]["pick"]["sample"]] == pair.rejected != pair.chosen
        else:
            assert line["made"]["noise"]["step"] == 500
            assert line["made"]["masks"]["area"] == 1


@pytest.mark.parametrize(
    ("truth", "answers", "place"),
    [
        ("no", ["no", "no no", "yes", "no finding"], 2),
        (
            "right lung",
            ["left lung", "heart", "a big heart", "the spine"],
            3,
        ),  # as far and as many words, then the first
        ("right lung", ["the spine", "a heart", "a heart"], 1),  # said more often
        ("axial plane", ["axial", "the axial plane", "", "..."], None),
        ("2.5 cm", ["25 cm", "2.5 cm wide"], 0),
    ],
)
def test_the_rejected_sample_is_the_farthest_that_cannot_be_right(truth, answers, place):
    assert farthest(truth, answers) == place


def test_a_question_whose_samples_may_all_be_right_makes_no_pair_of_texts_and_is_no_failure(tmp_path, subjects):
    right = Model([subjects[0].asked.answer] * 4)
    summary = curate_set(plan_of(tmp_path, right), subjects[:1])
    assert (summary.pairs, summary.is_whole) == ({"text": 0, "image": 1}, True)
    assert list(summary.left_out.values()) == ["none of 4 sampled answers is surely false"]


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path, subjects):
    killed, again, third = Model(stops_at=2), Model(), Model()
    with pytest.raises(KeyboardInterrupt):
        curate_set(plan_of(tmp_path, killed), subjects)
    assert not (tmp_path / PREFERENCES).exists()
    curate_set(plan_of(tmp_path, again), subjects)
    assert not {name for name, *_ in killed.asked} & {name for name, *_ in again.asked}
    assert len(killed.asked) + len(again.asked) == N
    before = made_files(tmp_path, ".json", ".jsonl", ".png")
    curate_set(plan_of(tmp_path, third), subjects)
    assert third.asked == []
    assert made_files(tmp_path, ".json", ".jsonl", ".png") == before


def test_the_pairs_of_a_resumed_run_are_those_of_a_whole_one_and_more_images_keep_them(tmp_path, subjects):
    with pytest.raises(KeyboardInterrupt):
        curate_set(plan_of(tmp_path / "resumed", Model(stops_at=3)), subjects)
    curate_set(plan_of(tmp_path / "resumed"), subjects)
    grown = Model()
    curate_set(plan_of(tmp_path / "grown"), subjects[:2])
    curate_set(plan_of(tmp_path / "grown", grown), subjects)
    assert len(grown.asked) == N - 2
    curate_set(plan_of(tmp_path / "whole"), subjects)
    texts = {name: (tmp_path / name / PREFERENCES).read_text() for name in ("resumed", "grown", "whole")}
    assert texts["resumed"] == texts["grown"] == texts["whole"]


def test_an_image_that_was_deleted_is_made_again_with_the_same_pixels(tmp_path, subjects):
    curate_set(plan_of(tmp_path), subjects)
    before = made_files(tmp_path, ".png")
    noised = next(path for path in before if "noised" in str(path))
    noised.unlink()
    model = Model()
    curate_set(plan_of(tmp_path, model), subjects)
    assert made_files(tmp_path, ".png") == before
    assert model.asked == []


def test_noise_lies_inside_the_mask_and_an_image_without_a_finding_is_left_out(tmp_path, subjects):
    summary = curate_set(plan_of(tmp_path, localiser=Known(), kinds="image", step=900), subjects)
    found = {subject.image_id: subject.findings for subject in subjects if subject.findings is not None}
    assert summary.pairs == {"text": 0, "image": len(found)}
    assert len(summary.left_out) == N - len(found)
    assert summary.is_whole
    for case, _ in read_back(tmp_path):
        true, noised = (np.asarray(Image.open(path)) for path in case.images)
        assert not (true != noised)[~found[case.images[0].stem]].any()


def test_a_grey_image_that_is_stored_in_colour_gets_grey_noise_and_a_coloured_one_keeps_its_colours(tmp_path):
    grey = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    red = grey * np.array([1, 0, 0], np.uint8)
    asked = Asked("q", "what is it ?", "nodule")
    subjects = [Subject(name, asked, name, image) for name, image in (("grey", grey), ("red/ä", red))]
    summary = curate_set(plan_of(tmp_path, kinds="image"), [subjects[0], subjects[1]])
    assert summary.is_whole
    shapes = {
        case.images[0].name.split("-")[0]: np.asarray(Image.open(case.images[1])).shape
        for case, _ in read_back(tmp_path)
    }
    assert shapes == {"grey.png": (64, 64), "red": (64, 64, 3)}


def test_faults_of_masks_and_images_are_named_in_three_parts_and_the_others_are_done(tmp_path, subjects):
    folder = tmp_path / "masks"
    folder.mkdir()
    sizes = {0: np.zeros((64, 64), np.uint8), 1: np.full((32, 64), 255, np.uint8), 2: np.full((64, 64), 255, np.uint8)}
    for place, mask in sizes.items():
        Image.fromarray(mask).save(folder / f"{subjects[place].image_id}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    broken = Subject("broken", subjects[0].asked, "broken", tmp_path / "broken.png")
    gone = Subject("gone", subjects[0].asked, "gone", tmp_path / "gone.png")
    without = Subject("without", subjects[0].asked, "without", None)
    plan = plan_of(tmp_path / "out", localiser=MaskFiles(folder))
    summary = curate_set(plan, [*subjects[:4], broken, gone, without])
    assert summary.pairs == {"text": 4, "image": 1}
    messages = {name.rpartition("/")[2]: str(err) for name, err in summary.failures.items()}
    ids = [subject.image_id for subject in subjects]
    for name, message in (
        (f"masks {ids[0]}", "It is black all over, so it marks nothing. Give a mask of the image's size"),
        (f"masks {ids[1]}", "It has 64 x 32 pixels, but 64 x 64 pixels belong. Give a mask"),
        (f"masks {ids[3]}", "There is no such file. Give a mask"),
        ("images broken", "It cannot be decoded in full"),
        ("images gone", "There is no such file"),
        ("images without", "The data set has no image of that case. Leave the case out"),
    ):
        assert message in messages[name] or "header is broken" in messages[name]
    for place in (0, 1, 3):
        Image.fromarray(sizes[2]).save(folder / f"{subjects[place].image_id}.png")
    mended = Model()
    summary = curate_set(plan_of(tmp_path / "out", mended, localiser=MaskFiles(folder)), subjects[:4])
    assert (summary.pairs, summary.is_whole, mended.asked) == ({"text": 4, "image": 4}, True, [])


@pytest.mark.parametrize(
    ("mask", "why"), [(np.zeros((64, 64), bool), "It has no pixel"), (np.ones((64, 32), bool), "It is 32 x 64 pixels")]
)
def test_a_mask_of_any_tool_is_checked(tmp_path, subjects, mask, why):
    class Tool(Everywhere):
        def find(self, subject, pixels):
            return Place(mask)

    summary = curate_set(plan_of(tmp_path, localiser=Tool(), kinds="image"), subjects[:1])
    assert why in str(*summary.failures.values())
    assert summary.pairs["image"] == 0
    assert not (tmp_path / PREFERENCES).exists()


def test_an_image_pair_weighs_what_the_localiser_is_sure_of(tmp_path, subjects):
    def half(pixels):
        return np.where(np.arange(pixels.shape[1]) < 32, 0.8, 0.1) * np.ones(pixels.shape[:2])

    curate_set(plan_of(tmp_path, localiser=Tower("t", "d", lambda: half), kinds="image"), subjects)
    assert {pair.relevance for _, pair in read_back(tmp_path)} == {0.8}
    assert {line["made"]["masks"]["area"] for line in provenance(tmp_path)} == {0.5}


def test_noise_that_changes_no_pixel_is_a_failure(tmp_path):
    white = np.full((2, 2), 255, np.uint8)
    subject = Subject("w", Asked("w", "what ?", "nodule"), "w", white)
    summary = curate_set(plan_of(tmp_path, kinds="image", step=0, seed=1), [subject])
    assert "below one grey level" in str(*summary.failures.values())


def test_pairs_of_another_base_model_in_the_folder_are_refused_and_kept(tmp_path, subjects):
    curate_set(plan_of(tmp_path), subjects[:1])
    before = (tmp_path / PREFERENCES).read_text()
    other = Model()
    with pytest.raises(RequestError, match="base model 'tiny/llava'.*--model is 'other/model'.*Name another folder"):
        curate_set(plan_of(tmp_path, other, name="other/model"), subjects[:1])
    assert (tmp_path / PREFERENCES).read_text() == before
    assert other.asked == []


def test_judges_who_do_not_listen_settle_as_the_debate_of_training_does():
    rng = np.random.default_rng(0)
    opinions = np.round(rng.random((3, 200)), 1)
    settled = [
        discuss({str(place): lambda heard, own=own: own for place, own in enumerate(column.tolist())})["score"]
        for column in opinions.T
    ]
    assert np.allclose(settled, relevance.debate(opinions), atol=1e-6)


def test_a_judge_hears_the_score_before_and_may_come_round():
    stubborn, yielding = (lambda heard: 0.9), (lambda heard: 0.2 if heard is None or heard != 0.9 else 0.8)
    result = discuss({"a": stubborn, "b": yielding})
    assert result["score"] == 0.9
    assert result["agreed"]
    assert [(turn["judge"], turn["heard"], turn["own"], turn["said"]) for turn in result["said"]] == [
        ("a", None, 0.9, 0.9),
        ("b", 0.9, 0.8, 0.9),
    ]


def test_a_panel_that_never_agrees_is_over_after_five_rounds_with_the_mean_of_all_that_was_said():
    result = discuss({"a": lambda heard: 0.0, "b": lambda heard: 1.0})
    assert (result["score"], result["agreed"], len(result["said"])) == (0.5, False, 10)


def test_judges_behind_an_endpoint_score_pairs_once_and_say_who_said_what(tmp_path, endpoint, subjects):
    endpoint.answers('{"score": 0.4}', '{"score": 0.9}', '{"score": 0.5}', '{"score": 0.5}', '{"score": 0.5}')
    plan = plan_of(tmp_path, kinds="text", panel=panel_of(endpoint, tmp_path, "first", "second"))
    curate_set(plan, subjects[:1])
    models = [body["model"] for _, _, body in endpoint.seen]
    assert models == ["first", "second", "first", "second"]
    contents = [body["messages"][1]["content"] for _, _, body in endpoint.seen]
    assert [json.loads(text).get("score of another judge") for text in contents] == [None, 0.4, 0.9, 0.5]
    ((_, pair),) = read_back(tmp_path)
    assert pair.relevance == 0.5
    said = provenance(tmp_path)[0]["made"]["score"]["said"]
    assert [(turn["judge"].split()[0], turn["said"]) for turn in said] == [
        ("first", 0.4),
        ("second", 0.9),
        ("first", 0.5),
        ("second", 0.5),
    ]
    curate_set(plan, subjects[:1])
    assert len(endpoint.seen) == 4


def test_prose_and_scores_out_of_range_fail_one_pair_which_the_next_run_mends(tmp_path, endpoint, subjects, caplog):
    wrong = ["A fine pair.", '{"score": 1.5}', '{"score": null}']
    endpoint.answers(*wrong, '{"score": 0.7}')
    plan = plan_of(tmp_path, kinds="text", panel=panel_of(endpoint, tmp_path))
    summary = curate_set(plan, subjects)
    assert summary.pairs["text"] == N - 1
    assert list(summary.failures) == [f"score {subjects[0].id}"]
    assert "the field score is missing" in str(summary.failures[f"score {subjects[0].id}"])
    complaints = [body["messages"][-1]["content"] for _, _, body in endpoint.seen[1:3]]
    assert ["not between 0 and 1" in text for text in complaints] == [False, True]
    asked = len(endpoint.seen)
    summary = curate_set(plan, subjects)
    assert (summary.pairs["text"], summary.is_whole) == (N, True)
    assert len(endpoint.seen) == asked + 1


def test_an_endpoint_that_is_down_stops_after_a_few_pairs_and_the_rest_waits(tmp_path, endpoint, subjects):
    endpoint.answers('{"score": 0.6}')
    panel = panel_of(endpoint, tmp_path)
    curate_set(plan_of(tmp_path, kinds="text", panel=panel), subjects[:2])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    down = Panel([ChatModel(f"http://127.0.0.1:{port}/v1", "m")], ["phantom"], tmp_path / "chat")
    summary = curate_set(plan_of(tmp_path / "down", kinds="text", panel=down), subjects)
    assert (len(summary.failures), len(summary.not_tried), summary.pairs["text"]) == (3, N - 3, 0)
    assert "cannot be reached" in str(next(iter(summary.failures.values())))
    asked = len(endpoint.seen)
    curate_set(plan_of(tmp_path, kinds="text", panel=panel), subjects)
    assert len(endpoint.seen) == asked + N - 2


def test_a_refused_key_ends_the_run_and_what_is_done_is_kept(tmp_path, endpoint, subjects):
    endpoint.answers('{"score": 0.6}')
    endpoint.replies.append((401, "no", {}))
    plan = plan_of(tmp_path, kinds="text", panel=panel_of(endpoint, tmp_path))
    with pytest.raises(RequestError, match="Set LIGHTBOX_CHAT_KEY"):
        curate_set(plan, subjects)
    assert len(endpoint.seen) == 2
    endpoint.replies.clear()
    endpoint.answers('{"score": 0.6}')
    assert curate_set(plan, subjects).pairs["text"] == N
    assert len(endpoint.seen) == 2 + N - 1


def test_the_key_stands_in_no_log_and_no_file(tmp_path, endpoint, subjects, monkeypatch, caplog):
    monkeypatch.setenv(chat.KEY_VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "urllib3.connectionpool")  # which an index of runs, opened before, has made quiet
    endpoint.answers(f'{{"choice": 0, "written": "{KEY}"}}', f"my key is {KEY}")
    picker = ModelPicker(ChatModel(endpoint.url, "m"), ["phantom"], tmp_path / "chat")
    panel = panel_of(endpoint, tmp_path)
    summary = curate_set(plan_of(tmp_path, picker=picker, panel=panel), subjects[:2])
    assert endpoint.seen[0][1]["Authorization"] == f"Bearer {KEY}"
    texts = [caplog.text, *(str(err) for err in summary.failures.values())]
    assert "POST" in caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [text for text in texts if "secret" in text] == []
    assert [path for path in files if b"secret" in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("reply", "rejected", "sample"),
    [
        ({"choice": 2, "written": ""}, "absurd words", 1),
        ({"choice": 0, "written": "a  clear\nlung"}, "a clear lung", None),
        ({"choice": 2}, "absurd words", 1),
    ],
)
def test_a_model_picks_an_answer_or_writes_one(tmp_path, endpoint, reply, rejected, sample):
    endpoint.answers(json.dumps(reply))
    picker = ModelPicker(ChatModel(endpoint.url, "m"), ["phantom"], tmp_path)
    result = picker.pick("what is seen ?", "nodule", ["heart left", "absurd words"])
    assert (result["rejected"], result["sample"]) == (rejected, sample)
    asked = json.loads(endpoint.seen[0][2]["messages"][1]["content"])
    assert asked["answers"] == {"1": "heart left", "2": "absurd words"}


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ({"choice": 4, "written": ""}, "choice is 4, not one of 0, 1, 2"),
        ({"choice": 3, "written": ""}, "choice is 3, not one of 0, 1, 2"),  # that sample is empty
        ({"choice": True, "written": ""}, "not one of 0, 1, 2"),
        ({"written": "mass"}, "choice is None"),
        ({"choice": 0, "written": 5}, "written is no text"),
        ({"choice": 0, "written": " . "}, "has no words"),
        ({"choice": 0, "written": "Nodule."}, "is the true one"),
        ({"choice": 1, "written": ""}, "is the true one"),
        ({"choice": 0, "written": "the dispreferred answer is mass"}, "speaks of this task"),
    ],
)
def test_what_a_model_may_not_reject_is_refused(tmp_path, endpoint, reply, why):
    endpoint.answers(json.dumps(reply))
    picker = ModelPicker(ChatModel(endpoint.url, "m"), ["phantom"], tmp_path)
    with pytest.raises(WorkError, match=why):
        picker.pick("what is seen ?", "nodule", ["nodule", "mass", ""])


@pytest.mark.parametrize(("text", "why"), [(None, "That is the preferred one too"), ("a\0b", "holds a NUL")])
def test_a_picker_that_rejects_the_truth_or_no_text_makes_no_pair(tmp_path, subjects, text, why):
    class Tool:
        settings = {"by": "a tool"}

        def pick(self, question, truth, answers):
            return {"rejected": text or truth}

    summary = curate_set(plan_of(tmp_path, picker=Tool(), kinds="text"), subjects[:1])
    assert why in str(*summary.failures.values())
    assert summary.pairs["text"] == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--mask", "lung"], "neither full, tower, oracle"),
        (["--mask", "oracle", "--source", "vqa_rad"], "oracle with --source phantom"),
        (["--picker", "best"], "neither samples nor MODEL@URL"),
        (["--judge", "m:secret"], "none of the form MODEL@URL"),
        (["--judge", "m@https://me:secret@models.example/v1"], "none of the form https"),
        (["--judge", "m@https://a.example/v1", "--judge", "n@https://b.example/v1"], "a.example, b.example"),
        (["--judge", "m@https://a.example/v1", "--judge", "m@https://a.example/v1"], "would agree with itself"),
        (["--model", "tiny/t5"], "sees no image"),
        (["--model", "tiny/none"], "tiny/none"),
        (["--step", "1000"], "Noise step 1000"),
        (["--pairs", "both"], "text, image, union"),
        (["--source", "nothing"], "no dataset 'nothing'"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys, arguments, why):
    monkeypatch.setenv(chat.KEY_VARIABLE, KEY)
    out = tmp_path / "out"
    given = ["--source", "phantom", "--model", "tiny/llava", "--out", str(out), "--images", "1", *arguments]
    with pytest.raises(SystemExit) as caught:
        main(given)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert why in said
    assert "secret" not in said
    assert not out.exists()


def test_the_command_samples_a_real_model_and_says_what_it_made(tmp_path, llava_folder, capsys):
    given = ["--source", "phantom", "--model", str(llava_folder), "--out", str(tmp_path / "out"), "--images", "2"]
    given += ["--answer-tokens", "3", "--samples", "2"]
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            main(given)
        assert caught.value.code == 0
        assert "of kind image" in capsys.readouterr().out
    pairs = read_back(tmp_path / "out", needs_images=True, base_model=str(llava_folder))
    assert {pair.kind for _, pair in pairs} == {"text", "image"}


def test_samples_follow_their_seed_and_a_map_has_the_size_of_its_image(tmp_path, subjects):
    Image.fromarray(subjects[0].image).save(tmp_path / "i.png")
    settings = {"dtype": "fp32", "device": "cpu", "image_px": 64, "samples": 2, "temperature": 1.0, "max_new_tokens": 4}
    answer = open_target(find_pretrained("tiny/llava"), **settings)
    first, again, other = (answer(tmp_path / "i.png", "what is seen ?", seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    with pytest.raises(WorkError, match="control token"):
        answer(tmp_path / "i.png", "what <image> ?", 1)
    found = open_map()(np.repeat(subjects[0].image, 2, axis=0)[:, :50])
    assert found.shape == (128, 50)
    assert 0 <= found.min() <= found.max() <= 1


def test_training_does_not_reach_curation():
    reached = closure("mmedpo")
    assert "mmedpo.curate" in reached
    assert [name for name in reached if "curation" in name or "stages" in name or "chat" in name] == []
