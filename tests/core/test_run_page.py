"""The page of one run, from a hand-made folder without its data set: what it says, lacks, escapes and refuses."""

import json
import subprocess
import sys

import pytest

from lightbox.cli.reproduce import report_folder
from lightbox.errors import RequestError
from lightbox.readers.leakage import Leakage
from lightbox.runs import folders
from lightbox.testing.web_page import PAYLOAD, Page

YES_NO = ("yes", "no")
QUESTIONS = {  # item -> kind, question, options, answer
    "a": ("presence", "is there a nodule ?", YES_NO, "yes"),
    "b": ("presence", "is there a nodule ?", YES_NO, "no"),
    "c": ("side", "on which side ?", ("left", "right"), "left"),
    "d": ("count", "how many ?", (), "2"),
}
RIGHT = {"image": "abc", "blank": "a", "shuffled": "d"}


def said(item, is_right, questions=QUESTIONS):
    """A text that our rule calls right, or wrong."""
    _, _, options, answer = questions[item]
    letter = "AB"[options.index(answer)] if options else ""
    if is_right:
        return f"The answer is ({letter})." if options else f"The answer is {answer}."
    return "I cannot tell."


def write_run(folder, *, right=RIGHT, questions=QUESTIONS, texts=True, card=None, **record):
    """A finished run whose answers are right for the items that `right` names, by condition."""
    folder.mkdir(parents=True)
    rows, lines = [], []
    for condition, names in right.items():
        for item, (kind, text, options, answer) in questions.items():
            is_right = item in names
            scores = {"correct": float(is_right), "parsed": float(is_right), "token_recall": None}
            rows.append({"item": item, "condition": condition, "kind": kind} | scores)
            index = options.index(answer) if options else None
            line = {"id": item, "condition": condition, "question": text, "options": options, "answer": answer}
            line |= {"answer_index": index, "prediction": said(item, is_right, questions)}
            lines.append(json.dumps(line) + "\n")
    folders.write_scores(folder, rows, ("correct", "parsed", "token_recall"))
    if texts:
        (folder / folders.PREDICTIONS).write_text("".join(lines))
    folders.write_card(folder, {"baselines": {"majority": 0.5, "question_only": 0.5}} if card is None else card)
    plain = {"data": {"source": "vqa_rad", "eval_split": "test"}, "objective": {"method": "none"}}
    told = {"paper": "medthink", "arm": "none", "seed": 3, "preset": "quick", "commit": "abc123", "config": plain}
    folders.mark_finished(folder, told | record)
    return folder


def page_of(folder):
    [path] = report_folder(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    return page_of(write_run(tmp_path_factory.mktemp("run") / "none-1"))


def test_the_page_is_one_balanced_file_that_asks_for_nothing_and_runs_nothing(run_page):
    assert run_page.is_balanced
    assert run_page.open == []
    assert not [tag for tag, _ in run_page.tags if tag in ("script", "link", "iframe", "form", "a")]
    [policy] = [attrs["content"] for attrs in run_page.all("meta") if "http-equiv" in attrs]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_header_says_what_was_run(run_page):
    for part in ("MedThink", "answer only", "quick, 3", "vqa_rad", "scored on test: 4 items", "abc123", "none-1"):
        assert part in run_page.text
    assert "Images here are real" in run_page.text
    assert "not for clinical use" in run_page.text


def test_levels_are_those_of_the_items(run_page):
    assert "image the item's own image 75.0" in run_page.text
    assert "blank a grey image 25.0" in run_page.text
    assert "question-only commonest training answer of the same question text 50.0 none: only the mean" in run_page.text


def test_without_the_items_of_the_best_rival_there_is_a_mean_and_no_interval(run_page):
    conclusion = "The score does not show that the image was used: +25.0 points against question-only"
    assert conclusion in run_page.text
    assert "no interval can be given, because of question-only only the mean is known" in run_page.text
    assert "+50.0 [0.0, 100.0] the interval holds 0" in run_page.text  # image - blank: 0, 1, 1, 0 of four items
    assert "too narrow where items share images" in run_page.text


def test_kinds_stand_apart(run_page):
    assert "presence 2 100.0" in run_page.text
    assert "count 1 0.0" in run_page.text


def test_questions_and_answers_are_counted(run_page):
    assert "4 scored items ask 3 different question texts; 50 % of the items" in run_page.text
    assert "is right on 50 % of those items" in run_page.text
    assert "is there a nodule ? 2 yes (1) ; no (1) 50 %" in run_page.text
    assert "yes or no 2 50 % 100.0" in run_page.text
    assert "another option 1 25 %" in run_page.text
    assert "number 1 25 %" in run_page.text


def test_rules_stand_beside_what_each_gives_for_a_blank_image(run_page):
    assert "ours 75.0 25.0 4 of 4 0" in run_page.text
    assert "parsed-only 100.0 100.0 3 of 4 1" in run_page.text
    # letters hold no "yes", "no" or "left"; a blank image's "cannot" holds the "no" of b
    assert "llava-med-substring 0.0 33.3 3 of 4 3" in run_page.text


def test_cards_are_the_items_that_the_image_decided_and_those_it_did_not_help(run_page):
    best, worst = run_page.html.split("<h3>Best")[1].split("<h3>Worst")
    assert [best.count(f'small">{item}, ') for item in "abcd"] == [0, 1, 1, 0]
    assert [worst.count(f'small">{item}, ') for item in "abcd"] == [0, 0, 0, 1]
    assert "2 of 4 items." in best
    assert "1 of them right with a blank image or with another item's image, shown first" in run_page.text
    assert "(A) left (B) right" in best
    assert "I cannot tell." in worst
    assert "image not here" in best


def test_an_older_run_says_what_is_missing_and_how_to_get_it(tmp_path):
    page = page_of(write_run(tmp_path / "none-1", texts=False))
    assert "the run holds no predictions.jsonl" in page.text
    assert "lightbox train medthink" in page.text
    assert "The run kept no texts, so no other rule can score it." in page.text
    assert "Questions are not known" in page.text
    assert "text not kept" in page.text
    kept = write_run(tmp_path / "none-2", texts=False)
    (kept / "model").mkdir()
    assert "lightbox evaluate medthink model.backbone=RUN/model" in page_of(kept).text


def test_texts_of_another_run_are_noticed(tmp_path):
    folder = write_run(tmp_path / "none-1")
    other = write_run(tmp_path / "none-2", right=RIGHT | {"image": "cd"})
    (folder / folders.PREDICTIONS).write_bytes((other / folders.PREDICTIONS).read_bytes())
    assert "3 of 4 texts under image are scored otherwise in scores.parquet" in page_of(folder).text


def test_a_malformed_line_is_named_and_the_rest_is_read(tmp_path):
    folder = write_run(tmp_path / "none-1")
    with (folder / folders.PREDICTIONS).open("a") as file:
        file.write("{\n")
    page = page_of(folder)
    assert "1 lines of predictions.jsonl" in page.text
    assert "ours 75.0" in page.text


def test_one_condition_alone_makes_a_page(tmp_path):
    page = page_of(write_run(tmp_path / "none-1", right={"image": "ab"}, card={}))
    assert "Nothing that needs no image was scored beside it" in page.text
    assert "Best: right with its own image" in page.text


def test_conditions_of_another_kind_make_no_statement_about_images(tmp_path):
    page = page_of(write_run(tmp_path / "reader-1", right={"reference": "abc", "no_rationale": "a"}))
    assert "The run was not scored with images" in page.text
    assert "Image minus" not in page.text


def test_a_clear_lead_is_said_to_be_one(tmp_path):
    questions = {f"{number:02d}": ("side", "on which side ?", ("left", "right"), "left") for number in range(30)}
    right = {"image": list(questions)[1:], "blank": ["00"], "shuffled": []}
    page = page_of(
        write_run(tmp_path / "none-1", right=right, questions=questions, card={"baselines": {"majority": 0.5}})
    )
    assert "no interval can be given" in page.text  # majority is the best rival, and only its mean is known
    assert "The same model is worse with a blank image and with another item's image" in page.text
    page = page_of(write_run(tmp_path / "none-2", right=right, questions=questions, card={}))
    assert "The image helped: +93.3 points against blank" in page.text
    assert "What question-only and majority would give is not known here." in page.text


def test_a_model_that_the_image_does_not_move_is_said_to_be_one(tmp_path):
    page = page_of(write_run(tmp_path / "none-1", right=dict.fromkeys(RIGHT, "ab"), card={}))
    assert "Not one item turns right or wrong with a blank image and with another item's image." in page.text
    assert "blank best without image 0.0 – no item differs" in page.text


def test_every_text_is_escaped(tmp_path):
    questions = {
        f"{item}{PAYLOAD}": (kind + PAYLOAD, text + PAYLOAD, tuple(o + PAYLOAD for o in options), answer + PAYLOAD)
        for item, (kind, text, options, answer) in QUESTIONS.items()
    }
    right = {"image": list(questions)[:3], "blank": [], PAYLOAD: []}
    plain = {"data": {"source": PAYLOAD, "split": PAYLOAD, "eval_split": PAYLOAD}, "model": {"backbone": PAYLOAD}}
    folder = write_run(
        tmp_path / "none-1",
        right=right,
        questions=questions,
        card={"baselines": {"majority": 0.5}, "leaks": [PAYLOAD], "items": {"train": PAYLOAD}},
        **{name: PAYLOAD for name in ("arm", "preset", "commit", "hardware", "key")},
        config=plain,
    )
    page = page_of(folder)
    assert page.is_balanced
    assert page.all("script") == []
    assert "<script" not in page.html
    assert " 49" not in page.text
    assert page.text.count("<script>alert(1)</script>") > 20
    named = page_of(write_run(tmp_path / "none-2", paper=PAYLOAD))
    assert f"the paper '{PAYLOAD}' is not installed here" in named.text
    assert named.all("script") == []


def test_leaks_of_the_card_are_shown_and_stand_beside_the_score_where_training_shares_images(tmp_path):
    counts = {"items": 451, "items_on_shared_images": 450, "repeated_pairs": 0, "items_of_shared_patients": 0}
    counts |= {"patients": 0, "patients_shared": 0}
    leak = str(Leakage("train", "test", images=203, images_shared=202, **counts))
    clean = str(Leakage("validation", "test", images=203, images_shared=0, **counts))
    page = page_of(write_run(tmp_path / "none-1", card={"leaks": [leak, clean]}))
    score, data = page.html.split('<section id="data">')
    assert f"The split leaks: {leak}." in score
    assert clean not in score
    assert leak in data
    assert clean in data
    patients = str(Leakage("train", "test", images=203, images_shared=0, **counts | {"patients_shared": 3}))
    assert "The split leaks" in page_of(write_run(tmp_path / "none-2", card={"leaks": [patients]})).text


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "job.json").unlink(), "no job.json of a run"),
        (lambda folder: (folder / "scores.parquet").unlink(), "It holds no scores.parquet"),
        (lambda folder: write_run(folder.with_name("x"), right={}), "say of no item whether its answer is right"),
    ],
)
def test_what_makes_no_page_is_refused_in_three_parts(tmp_path, spoil, why):
    folder = write_run(tmp_path / "none-1")
    spoil(folder)
    with pytest.raises(RequestError) as refusal:
        report_folder(tmp_path / "x" if (tmp_path / "x").exists() else folder)
    assert why in refusal.value.why
    assert str(tmp_path) in refusal.value.given
    assert not (folder / "report.html").exists()


def test_scores_without_answers_are_refused(tmp_path):
    folder = write_run(tmp_path / "stage1-1")
    rows = [{"item": "a", "condition": "image", "kind": "", "iou": 0.5}]
    folders.write_scores(folder, rows, ("iou",))
    folders.mark_finished(folder, {"paper": "medthink"})
    with pytest.raises(RequestError, match="have no column 'correct'"):
        report_folder(folder)


@pytest.mark.slow
def test_the_same_run_gives_the_same_page_and_no_torch(tmp_path):
    folder = write_run(tmp_path / "none-1")
    first = page_of(folder).html
    code = (
        "import sys; from pathlib import Path; from lightbox.cli.reproduce import report_folder\n"
        f"report_folder(Path({str(folder)!r})); sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert (folder / "report.html").read_text(encoding="utf-8") == first
