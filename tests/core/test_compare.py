import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lightbox.claims import registry
from lightbox.claims.registry import load_papers
from lightbox.cli import compare as command
from lightbox.cli import main
from lightbox.errors import RequestError, WorkError
from lightbox.eval.intervals import t_interval
from lightbox.report import comparison
from lightbox.runs import folders
from lightbox.testing.fake_runs import write_job

LEVELS = {"answer_only": 0.6, "explanation": 0.72}


@pytest.fixture
def out(tmp_path):
    for arm, level in LEVELS.items():
        for seed in range(5):
            write_job(tmp_path, arm, seed, accuracy=level)
    return tmp_path


def entries_of(out):
    return comparison.load_entries(folders.newest_runs(out))


def summary_of(out, paper="medthink", **options):
    """What a comparison of all runs says of one paper."""
    return command.summarise(out, folders.newest_runs(out), **options)["papers"][paper]


def by_hand(out, metric="correct"):
    """Paired differences by seed, from the parquet files, without the code under test."""
    means = []
    for seed in range(5):
        rows = {}
        for run in folders.newest_runs(out):
            if run.seed == seed:
                table = folders.read_scores(run.folder).to_pylist()
                rows[run.arm] = {row["item"]: row[metric] for row in table if row["condition"] == "image"}
        means.append(np.mean([rows["explanation"][item] - rows["answer_only"][item] for item in rows["answer_only"]]))
    return means


def test_the_difference_is_paired_by_item_and_its_interval_is_over_seeds(out):
    summary = summary_of(out)
    [difference] = summary["differences"]
    expected = by_hand(out)
    assert summary["reference"] == "answer_only"
    assert list(difference["per_seed"].values()) == pytest.approx(expected)
    assert difference["ci95"] == pytest.approx([float(end) for end in t_interval(expected)])
    assert difference["items"] == 120


def test_only_items_that_both_runs_scored_are_paired(out):
    rows = folders.read_scores(folders.newest_runs(out)[0].folder)
    fewer = rows.filter([index % 2 == 0 for index in range(rows.num_rows)])
    assert comparison.paired_difference(rows, fewer, "image/correct").tolist() == [0.0] * 60
    assert comparison.paired_difference(rows, fewer, "image/absent").size == 0


def test_groups_without_shared_items_have_no_difference(tmp_path):
    write_job(tmp_path, "answer_only", 0)
    write_job(tmp_path, "explanation", 1)
    assert summary_of(tmp_path)["differences"] == []


def test_one_shared_seed_gives_a_difference_without_an_interval(tmp_path):
    for arm in LEVELS:
        write_job(tmp_path, arm, 0)
    [difference] = summary_of(tmp_path)["differences"]
    assert difference["ci95"] is None


def test_runs_with_another_learning_rate_are_another_group(out):
    write_job(out, "explanation", 0, lr=3e-3, place="runs", key="mine")
    summary = summary_of(out)
    labels = [group["label"] for group in summary["groups"]]
    assert labels == ["answer_only", "explanation (optim.lr=0.001)", "explanation (optim.lr=0.003)"]
    assert summary["differing"]["optim.lr"]["0.003"] == [labels[2]]
    assert "run.seed" not in summary["differing"]


def test_a_later_attempt_replaces_the_earlier_one(out):
    first = next(run for run in folders.newest_runs(out) if run.arm == "explanation" and run.seed == 2)
    again = first.folder.with_name(f"{first.key}-2")
    shutil.copytree(first.folder, again)
    assert len(folders.newest_runs(out)) == 10
    assert again in [run.folder for run in folders.newest_runs(out)]


def test_the_files_hold_every_run_and_open(out):
    (out / "mlflow-runs.json").write_text(json.dumps({folders.newest_runs(out)[0].folder.name: "f" * 32}))
    command.summarise(out, folders.newest_runs(out))
    with (out / "compare.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert {row["arm"] for row in rows} == set(LEVELS)
    assert [row["mlflow_run_id"] for row in rows].count("f" * 32) == 1
    mean = folders.mean_scores(folders.read_scores(out / "jobs" / rows[0]["run"]))["blank/correct"]
    assert float(rows[0]["blank/correct"]) == pytest.approx(mean)
    with Image.open(out / "compare.png") as picture:
        assert picture.size[0] > 800


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_the_files_is_replaced_and_not_waited_for(out):
    for name in ("compare.csv", "compare.png"):
        os.mkfifo(out / name)
    command.summarise(out, folders.newest_runs(out))
    assert (out / "compare.csv").is_file()
    assert (out / "compare.png").is_file()


def test_the_command_prints_one_json_object(out, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--out", str(out), "--json", "--against", "explanation"])
    assert stopped.value.code == 0
    summary = json.loads(capsys.readouterr().out)["papers"]["medthink"]
    assert summary["reference"] == "explanation"
    assert summary["differences"][0]["effect"] == pytest.approx(-np.mean(by_hand(out)))


def test_the_table_names_arms_interval_and_job_keys(out, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--out", str(out)])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(run.folder.name[:12] in text for run in folders.newest_runs(out))
    assert f"{np.mean(by_hand(out)):+.4f}" in text
    assert "objective.target: answer_only (answer_only); explanation (explanation)" in text


def test_square_brackets_in_a_name_are_printed_and_not_obeyed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    write_job(tmp_path, "[red]arm[/]", 0)
    write_job(tmp_path, "other", 0)
    with pytest.raises(SystemExit):
        main(["compare", "--out", str(tmp_path)])
    assert "[red]arm[/]" in capsys.readouterr().out


def test_fewer_than_two_runs_is_a_wrong_request(tmp_path, capsys):
    write_job(tmp_path, "explanation", 0)
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "1 finished runs" in capsys.readouterr().err


def test_the_metric_compared_is_the_headline_that_the_paper_declares(out, monkeypatch):
    entries = entries_of(out)
    assert comparison.choose_metric(entries, "") == "image/correct"
    declared = replace(load_papers(["medthink"])[0].claims, headline="bleu4", condition="blank")
    monkeypatch.setattr(registry, "declarations", lambda names: {"medthink": declared})
    assert comparison.choose_metric(entries, "") == "blank/bleu4"
    assert comparison.choose_metric(entries, "correct") == "blank/correct"
    assert comparison.choose_metric(entries, "shuffled/correct") == "shuffled/correct"


def test_runs_of_a_paper_that_is_not_installed_are_compared_by_the_first_metric_they_have(tmp_path):
    for arm in LEVELS:
        write_job(tmp_path, arm, 0, paper="elsewhere")
    assert summary_of(tmp_path, "elsewhere")["metric"] == "blank/correct"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "accuracy"}, "image/correct"),
        ({"against": "nothing"}, "answer_only, explanation"),
    ],
)
def test_an_unknown_metric_or_arm_lists_the_known_ones(out, options, message):
    with pytest.raises(RequestError, match=message):
        command.summarise(out, folders.newest_runs(out), **options)


def test_runs_are_named_by_folder_key_or_beginning(out):
    runs = folders.newest_runs(out)
    names = [runs[0].key, str(runs[1].folder), runs[2].key[:10]]
    assert [run.key for run in command.choose_runs(out, names)] == [run.key for run in runs[:3]]
    with pytest.raises(RequestError, match="No finished run"):
        command.choose_runs(out, ["zzz"])
    with pytest.raises(RequestError, match="10 runs"):
        command.choose_runs(out, [""])


def test_paper_and_preset_narrow_the_choice(out):
    write_job(out, "explanation", 0, paper="mmedpo")
    write_job(out, "explanation", 0, preset="smoke")
    assert {run.paper for run in command.choose_runs(out, [], papers=["mmedpo"])} == {"mmedpo"}
    assert {run.preset for run in command.choose_runs(out, [], preset="smoke")} == {"smoke"}


@pytest.fixture
def two_papers(out):
    """Runs of a second paper beside those of the first: another headline, and arms of its own."""
    for arm, level in {"dpo": 0.6, "start": 0.5, "explanation": 0.55}.items():
        for seed in range(2):
            write_job(out, arm, seed, accuracy=level, paper="mmedpo")
    return out


@pytest.mark.slow
def test_papers_stand_apart_each_by_its_own_headline(two_papers, monkeypatch):
    declared = {name: load_papers([name])[0].claims for name in ("medthink", "mmedpo")}
    declared["mmedpo"] = replace(declared["mmedpo"], headline="bleu4")
    monkeypatch.setattr(registry, "declarations", lambda names: {name: declared[name] for name in set(names)})
    summary = command.summarise(two_papers, folders.newest_runs(two_papers))
    first, second = summary["papers"].values()
    assert list(summary["papers"]) == ["medthink", "mmedpo"]
    assert (first["metric"], second["metric"]) == ("image/correct", "image/bleu4")
    assert [group["label"] for group in first["groups"]] == ["answer_only", "explanation"]
    assert [group["label"] for group in second["groups"]] == ["dpo", "explanation", "start"]
    assert [difference["label"] for difference in second["differences"]] == ["explanation", "start"]
    assert set(second["differing"]) == {"objective.target"}
    assert summary["notes"] == [command.APART]
    alone = command.summarise(two_papers, command.choose_runs(two_papers, [], papers=["medthink"]))
    assert alone["papers"]["medthink"] == first
    assert alone["notes"] == []


@pytest.mark.slow
def test_one_table_and_one_picture_hold_every_paper(two_papers):
    command.summarise(two_papers, command.choose_runs(two_papers, [], papers=["mmedpo"]))
    with Image.open(two_papers / "compare.png") as picture:
        height = picture.size[1]
    command.summarise(two_papers, folders.newest_runs(two_papers))
    with (two_papers / "compare.csv").open(encoding="utf-8") as file:
        table = csv.DictReader(file)
        rows = list(table)
    assert table.fieldnames[-3:] == ["wall_s", "commit", "mlflow_run_id"]
    assert [row["paper"] for row in rows] == ["medthink"] * 10 + ["mmedpo"] * 6
    with Image.open(two_papers / "compare.png") as picture:
        assert picture.size[1] > 1.5 * height


def test_the_printed_tables_name_their_paper_and_the_notes_what_is_not_compared(two_papers, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    write_job(two_papers, "alone", 0, paper="vitar")
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--out", str(two_papers), "--against", "start"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "mmedpo: image/correct, seeds pooled; difference from start, paired by item" in text
    assert "Note: medthink: it has no arm 'start', so its arms are compared with answer_only." in text
    assert "Note: vitar: alone is its only group of runs, so there is nothing to compare it with." in text
    assert f"Note: {command.APART}" in text


def test_a_paper_without_the_metric_is_left_out_and_said(two_papers):
    for folder in (run.folder for run in folders.newest_runs(two_papers) if run.paper == "mmedpo"):
        scores = folders.read_scores(folder).drop_columns(["bleu4"])
        folders.pq.write_table(scores, folder / "scores.parquet")
    summary = command.summarise(two_papers, folders.newest_runs(two_papers), metric="bleu4")
    assert list(summary["papers"]) == ["medthink"]
    assert summary["notes"][0].startswith(
        "mmedpo: no run has the metric 'bleu4', so it is left out; there are blank/co"
    )
    assert summary["notes"][1:] == [
        "medthink: answer_only: no image/bleu4, so it is left out.",
        "medthink: explanation is its only group of runs, so there is nothing to compare it with.",
    ]
    with pytest.raises(RequestError, match="by paper medthink: blank/.*; mmedpo: blank/correct"):
        command.summarise(two_papers, folders.newest_runs(two_papers), metric="dice")


def test_sizes_without_a_shared_item_are_shown_without_a_difference_and_said(tmp_path):
    for seed, preset in ((0, "quick"), (100, "full")):
        write_job(tmp_path, "explanation", seed, preset=preset)
    notes = command.summarise(tmp_path, folders.newest_runs(tmp_path))["notes"]
    assert notes == [
        "medthink: explanation (quick): no item and seed in common with explanation (full), so no difference."
    ]


def test_an_arm_that_no_paper_has_lists_those_of_each(two_papers):
    with pytest.raises(RequestError, match="medthink: answer_only, explanation; mmedpo: dpo, explanation, start"):
        command.summarise(two_papers, folders.newest_runs(two_papers), against="nothing")


def test_a_paper_without_runs_is_refused_with_those_that_have_some(two_papers):
    with pytest.raises(RequestError, match="--paper is 'vitar'.*there are runs of medthink, mmedpo"):
        command.choose_runs(two_papers, [], papers=["medthink", "vitar"])


def test_damaged_scores_name_the_file(out):
    folder = folders.newest_runs(out)[0].folder
    (folder / "scores.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(WorkError, match=r"scores\.parquet cannot be read"):
        entries_of(out)


@pytest.mark.slow
def test_comparing_imports_neither_torch_nor_mlflow(out):
    code = (
        "import sys; from pathlib import Path; from lightbox.runs import folders; from lightbox.cli import compare\n"
        f"out = Path({str(out)!r}); compare.summarise(out, folders.newest_runs(out))\n"
        "sys.exit(any(name in sys.modules for name in ('mlflow', 'torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, env=dict(os.environ)).returncode == 0
