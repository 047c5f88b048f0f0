"""`lightbox bench kernels`: red tests are refused, all sides give the same, and what is timed is what is said."""

import csv
import json
import time

import pytest
import torch

from lightbox.bench import ledger
from lightbox.bench.kernels import measure, operators, peers, shapes
from lightbox.cli import main
from lightbox.errors import RequestError, WorkError
from lightbox.kernels.greedy_select.op import greedy_select

TINY = (
    shapes.Shape(
        "tiny", [17, 33], [12, 20], [12, 20], [5, 7], heads=2, head_width=8, width=48, lm_width=24, text=4, axes=3,
        vocabulary=50,
    ),
    shapes.Shape(
        "tiny S4 of one length", [16, 16], [16, 16], [16, 16], [6, 6], heads=2, head_width=8, width=48, lm_width=24,
        text=4, vocabulary=50,
    ),
    shapes.Shape(
        "tiny training", [17, 33], [12, 20], [12, 20], [5, 7], head_width=8, width=16, lm_width=24, text=4,
        vocabulary=50, has_gradients=True,
    ),
)  # fmt: skip
QUICK = {"rounds": 1, "round_s": 1e-4, "compiles": False}


@pytest.fixture
def no_tests(monkeypatch):
    """The operators' tests have run elsewhere; which were asked for."""
    asked = []
    monkeypatch.setattr(measure, "check_tests", lambda name, device: asked.append(name))
    return asked


def cases_of(name, shape, dtype=torch.float32):
    return list(operators.OPERATORS[name].cases(operators.Inputs(shape, "cpu", dtype)))


def test_each_operator_is_timed_against_every_peer_and_the_floor(no_tests):
    rows = measure.run(shapes=TINY, **QUICK)
    assert no_tests == list(operators.OPERATORS)
    by_case = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    names = {case.partition(", ")[0] for case in by_case}
    assert names == {
        "segment_select", "greedy_select maxmin", "greedy_select dpp", "attn_colmean", "attn_colmean with lse",
        "assign_merge", "assign_merge forward and backward", "ragged_splice", "ragged_splice forward and backward",
        "few_query_scores", "temporal_keep",
    }  # fmt: skip
    assert (
        len(by_case) == 6 + 9 + 2
    )  # S4 with the log-sum-exp given, and stacks of one length; training of what has gradients alone
    for own in by_case.values():
        assert [row["peer"] for row in own[:2]] == [operators.PUBLISHED, operators.PLAIN]
        assert own[2]["peer"] in ("floor, bytes", "floor, FLOP")
        assert all(row["value"] > 0 and row["ratio"] > 0 and row["unit"] == "us" for row in own)
        assert all("p20" in row["notes"] and "p80" in row["notes"] for row in own)
        assert all(measure.FORMS["cpu"] in row["notes"] for row in own)
        assert {row["goal"] for row in own} == {""}  # goals are those of a card


@pytest.mark.slow
def test_a_slower_peer_has_a_larger_ratio_and_a_faster_one_a_smaller_one():
    def waiting(seconds):
        return lambda: time.sleep(seconds) or torch.ones(1)

    case = operators.Case("case", waiting(0.05), {"slow": waiting(0.2), "fast": waiting(0)}, lambda c: None, 64)
    rows = {row["peer"]: row for row in measure.measure(case, "cpu", torch.float32, **QUICK)}
    assert rows["slow"]["ratio"] > 2
    assert rows["fast"]["ratio"] < 0.6
    assert rows["slow"]["value"] >= 50_000
    assert rows["floor, bytes"]["ratio"] < 0.5  # 64 bytes are copied in far less


def test_flop_are_the_floor_where_they_take_longer():
    case = operators.Case("case", lambda: torch.ones(1), {}, lambda c: None, n_bytes=2, flop=1e12)
    (row,) = measure.measure(case, "cpu", torch.float32, **QUICK)
    assert row["peer"] == "floor, FLOP"
    assert "1e+03 GFLOP" in row["notes"]
    assert row["ratio"] > 100  # far below what can be


@pytest.mark.parametrize("theirs", [torch.tensor([1.0, 2.1]), torch.ones(3), torch.tensor([1.0, torch.nan])])
def test_a_peer_that_gives_another_result_is_not_timed(theirs):
    ours = torch.tensor([1.0, 2.0])
    case = operators.Case("case", lambda: ours, {"other": lambda: theirs}, lambda c: None, 64)
    with pytest.raises(WorkError, match="case: other gives another result than ours"):
        measure.measure(case, "cpu", torch.float32, **QUICK)


def test_picks_may_differ_where_gains_nearly_tie_and_no_further():
    case = operators.Case("case", lambda: None, {}, lambda c: None, 1, is_picking=True)
    ours = torch.arange(20)
    assert (
        measure.check_same(case, "other", ours, torch.cat([ours[:19], torch.tensor([77])])) == "95.0% of picks the same"
    )
    for theirs in (ours + 10, torch.arange(19), torch.arange(40)):
        with pytest.raises(WorkError, match="other gives another result"):
            measure.check_same(case, "other", ours, theirs)


@pytest.mark.parametrize("name", ["segment_select", "greedy_select", "attn_colmean", "assign_merge", "ragged_splice"])
def test_peers_see_what_the_operator_is_given(name):
    """Different inputs, different results: no form gives a constant, and none of them looks at another case's."""
    results = []
    for keep in ([5, 7], [6, 4]):
        shape = shapes.Shape(
            "tiny", [17, 33 + keep[0]], [12 + keep[0], 20], [12, 20], keep, heads=2, head_width=8, width=16, lm_width=8,
            text=4, vocabulary=50,
        )  # fmt: skip
        case = cases_of(name, shape)[0]
        results.append([part.tolist() for part in measure._parts(next(iter(case.peers.values()))())])
    assert results[0] != results[1]


@pytest.mark.parametrize("name", ["few_query_scores", "temporal_keep"])
def test_peers_of_operators_on_stacks_see_what_the_operator_is_given(name):
    results = []
    for length in (16, 20):
        shape = shapes.Shape("S4", [length] * 3, [length] * 3, [length] * 3, [6] * 3, heads=2, head_width=8, width=16)
        (case,) = cases_of(name, shape)
        results.append([part.tolist() for part in measure._parts(next(iter(case.peers.values()))())])
    assert results[0] != results[1]


def test_what_torch_compile_is_given_gives_the_same():
    for name in operators.OPERATORS:
        for shape in TINY:
            if shape.has_gradients and not operators.OPERATORS[name].has_gradients:
                continue
            for case in cases_of(name, shape):
                seen = []
                call = case.to_compile(lambda form, seen=seen: seen.append(form) or form)
                measure.check_same(case, "compiled", case.ours(), call())
                assert seen[0].__module__ == peers.__name__


def test_good_forms_take_no_matrix_apart_where_one_image_is_shorter():
    feat = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    cu, k = torch.tensor([0, 3, 40], dtype=torch.int32), torch.tensor([2, 5], dtype=torch.int32)
    assert peers.pick_far(feat, [3, 37], k, cu, 5, 7).tolist() == greedy_select(feat, cu, k, 7).tolist()


def test_sizes_are_said_to_be_scaled_down_where_they_are():
    assert all("scaled down" in shape.name for shape in shapes.SMALL)
    assert {shape.name[:2] for shape in shapes.SMALL} == {shape.name[:2] for shape in shapes.FULL} == {
        "S1", "S2", "S3", "S4", "S5"
    }  # fmt: skip
    for shape in shapes.FULL + shapes.SMALL:
        assert sum(shape.tiles) == sum(shape.images)
        assert all(0 < count <= length for count, length in zip(shape.keep, shape.images, strict=True))


# ---- no times without tests


def checkout_with(folder, text):
    path = folder / "tests" / "kernels" / "test_greedy_select.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return folder


def test_an_operator_whose_tests_are_red_is_not_timed(tmp_path, monkeypatch):
    root = checkout_with(tmp_path, "def test_it():\n    assert 1 == 2\n")
    timed = []
    monkeypatch.setattr(measure, "repo_root", lambda: root)
    monkeypatch.setattr(measure, "measure", lambda *args, **kwargs: timed.append(args))
    with pytest.raises(WorkError) as caught:
        measure.run(only=["greedy_select"], shapes=TINY)
    assert timed == []
    assert "The tests of greedy_select do not pass: 1 failed" in caught.value.given
    assert caught.value.why == "How fast a wrong result comes says nothing."
    assert "tests/kernels/test_greedy_select.py" in caught.value.do


@pytest.mark.parametrize(
    ("code", "printed", "is_green"),
    [
        (0, "54 passed, 50 deselected in 40.81s", True),
        (0, "3 skipped in 0.1s", False),
        (5, "no tests ran in 0.1s", False),
        (1, "1 failed, 53 passed in 40s", False),
        (2, "1 error in 0.2s", False),
        (0, "", False),
    ],
)
def test_tests_that_did_not_run_are_no_green_tests(code, printed, is_green):
    assert measure.is_green(code, printed) is is_green


def test_green_tests_run_against_the_package_that_is_timed(tmp_path):
    text = "import lightbox\n\ndef test_it():\n    assert lightbox.__file__ == {!r}\n"
    root = checkout_with(tmp_path, text.format(measure.lightbox.__file__))
    measure.check_tests("greedy_select", "cpu", root=root)


def test_an_installed_wheel_has_no_tests_and_is_told_so(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="there is no tests/kernels/test_greedy_select.py"):
        measure.check_tests("greedy_select", "cpu", root=tmp_path)

    def nowhere():
        raise RequestError("The current folder is '/'", "It holds no shared_data", "Go elsewhere")

    monkeypatch.setattr(measure, "repo_root", nowhere)
    with pytest.raises(RequestError, match="this installation lies in no checkout") as caught:
        measure.run(only=["greedy_select"], shapes=TINY)
    assert "an installed wheel brings none" in caught.value.why


def test_every_operator_has_its_tests(request):
    for name in operators.OPERATORS:
        assert (request.config.rootpath / "tests" / "kernels" / f"test_{name}.py").is_file()


# ---- the command


def exit_code(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_the_command_prints_goals_and_records_on_request(monkeypatch, tmp_path, capsys):
    row = {"case": "a", "peer": "b", "value": 1.5, "unit": "us", "ratio": 2.5, "goal": ">= 2", "notes": "n"}
    monkeypatch.setattr(measure, "run", lambda **options: [row | {"notes": str(sorted(options.items()))}])
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr("lightbox.cli.bench.repo_root", lambda: tmp_path)
    assert exit_code("bench", "kernels", "--only", "greedy_select", "--rounds", "2") == 0
    printed = capsys.readouterr().out
    assert "goal" in printed
    assert ">= 2" in printed
    table = tmp_path / "benchmarks" / "results.csv"
    assert not table.exists()
    assert exit_code("bench", "kernels", "--record", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["goal"] == ">= 2"
    with table.open() as file:
        (recorded,) = csv.DictReader(file)
    assert tuple(recorded) == ledger.HEADER
    assert (recorded["benchmark"], recorded["ratio"]) == ("kernels", "2.5")
    assert recorded["notes"] == "goal >= 2; [('only', ()), ('rounds', 5)]"


def test_long_notes_stand_beside_the_numbers_on_a_wide_terminal_only(monkeypatch, capsys):
    row = {"case": "a", "peer": "b", "value": 1.5, "unit": "us", "ratio": 2.5, "goal": "", "notes": "long-note"}
    monkeypatch.setattr(measure, "run", lambda **options: [row])
    for columns, is_shown in (("80", False), ("200", True)):
        monkeypatch.setenv("COLUMNS", columns)
        assert exit_code("bench", "kernels") == 0
        printed = capsys.readouterr().out
        assert ("long-note" in printed) == is_shown
        assert ("--json" in printed) != is_shown


def test_an_operator_that_does_not_exist_is_refused(capsys):
    assert exit_code("bench", "kernels", "--only", "greedy") == 2
    assert "greedy_select" in capsys.readouterr().err
