"""`lightbox conventions`: the golden table of a hand-made file, JSON, malformed lines, refusals, what it imports."""

import json
import subprocess
import sys

import pytest

from lightbox.cli import main

YES_NO = {"options": ["yes", "no"]}
SIDES = {"options": ["left", "right"]}
ITEMS = (  # answer, prediction, options
    ("yes", "The answer is (A).", YES_NO),
    ("no", "The answer is (B).", YES_NO),
    ("no", "The answer is (A).", YES_NO),
    ("no", "I cannot tell from this image.", YES_NO),  # unparsable, B by else-b, and "no" is in "cannot"
    ("yes", "Yes, there is a nodule.", YES_NO),
    ("no", "Yes.", YES_NO),
    ("no", "The heart is normal.", YES_NO),
    ("left", "Left.", SIDES),
    ("right", "B", SIDES),
    ("left lung", "The answer is left lung.", {}),
    ("left lung", "It is the left upper lung.", {}),
    ("2", "two", {}),
)
GOLDEN = {  # worked out by hand: score in %, items counted, items scored differently from ours
    "ours": ("25.0", 12, 0),
    "ours-closed": ("22.2", 9, 0),
    "ours-recall": ("33.3", 3, 0),
    "parsed-only": ("75.0", 4, 8),
    "else-b": ("66.7", 9, 4),
    "first-character": ("11.1", 9, 3),
    "llava-med-first": ("37.5", 8, 6),
    "llava-med-closed": ("33.3", 9, 5),
    "llava-med-substring": ("44.4", 9, 6),
    "llava-med-recall": ("100.0", 3, 2),
    "llava-med-exact": ("63.3", 3, 3),  # 2 of 4 words, 2 of 5, 1 of 1
    "medevalkit-closed": ("33.3", 9, 5),
    "medevalkit-choice": ("66.7", 9, 4),  # its likenesses are difflib's, not by hand
    "medevalkit-exact": ("0.0", 3, 1),
    "medevalkit-recall": ("22.2", 3, 2),
    "medevalkit-bleu1": ("26.2", 3, 2),
    "vlmevalkit-yes-no": ("14.3", 7, 3),
    "lmms-eval-slake": ("8.3", 12, 4),
}


@pytest.fixture
def predictions(tmp_path):
    rows = []
    for number, (answer, text, options) in enumerate(ITEMS):
        index = options["options"].index(answer) if options else None
        rows.append(
            {"id": number, "question": "?", "answer": answer, "answer_index": index, "prediction": text} | options
        )
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_command(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["conventions", *map(str, arguments)])
    return caught.value.code


def test_the_golden_table_of_twelve_predictions(predictions, capsys):
    assert run_command(predictions, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["items"], shown["malformed"]) == (12, [])
    rows = {row["convention"]: row for row in shown["conventions"]}
    assert list(rows) == list(GOLDEN)
    measured = {name: (f"{100 * row['score']:.1f}", row["n_counted"], row["n_differs"]) for name, row in rows.items()}
    assert measured == GOLDEN


def test_the_same_predictions_spread_over_more_than_20_points_in_closed_scores(predictions, capsys):
    run_command(predictions, "--json", "--only", "ours-closed", "--only", "else-b")
    ours, rival = (row["score"] for row in json.loads(capsys.readouterr().out)["conventions"])
    assert rival - ours > 0.2


def test_the_table_shows_scores_counts_and_where_each_misleads(predictions, capsys):
    assert run_command(predictions, "--only", "else-b", "--only", "ours") == 0
    shown = capsys.readouterr().out
    assert "12 items" in shown
    assert "left out: 0 malformed" in shown
    assert shown.index("else-b") < shown.index("66.7 %") < shown.index("25.0 %")
    assert "9 of 12" in shown
    assert "refusal" in shown
    assert "llava" not in shown


def test_what_cannot_be_scored_is_said_in_the_table(predictions, capsys):
    lines = predictions.read_text().splitlines()
    predictions.write_text("\n".join(lines[9:]))
    assert run_command(predictions, "--only", "else-b") == 0
    assert "cannot score: it is for closed" in " ".join(capsys.readouterr().out.split())


def test_malformed_lines_are_named_counted_and_end_with_1(predictions, capsys):
    with predictions.open("a") as file:
        file.write('{"id": "x"}\nnot json\n')
    assert run_command(predictions, "--only", "ours") == 1
    shown = capsys.readouterr()
    assert "12 items" in shown.out
    assert "left out: 2 malformed" in shown.out
    assert "25.0 %" in shown.out
    assert [line.partition(", ")[2][:30] for line in shown.err.splitlines()] == [
        "row 13, field 'prediction': is",
        "row 14, field 'row': is not JS",
    ]
    run_command(predictions, "--json")
    assert len(json.loads(capsys.readouterr().out)["malformed"]) == 2


def test_an_unknown_convention_is_refused_in_three_parts_before_the_file_is_read(tmp_path, capsys):
    assert run_command(tmp_path / "absent.jsonl", "--only", "else-c") == 2
    given, why, do = capsys.readouterr().err.splitlines()
    assert "'else-c'" in given
    assert "ours-recall" in why
    assert "Did you mean else-b?" in do


def test_a_missing_file_is_refused(tmp_path, capsys):
    assert run_command(tmp_path / "absent.jsonl") == 2
    assert "absent.jsonl" in capsys.readouterr().err


def test_the_command_imports_neither_torch_nor_pandas(predictions):
    code = "import sys\nfrom lightbox.cli import main\ntry:\n    main()\nexcept SystemExit:\n    print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "conventions", predictions], capture_output=True, text=True, timeout=60
    )
    assert "where it misleads" in done.stdout, done.stderr
    assert not {"torch", "pandas", "transformers", "mlflow", "sacrebleu", "nltk"} & set(done.stdout.split())
