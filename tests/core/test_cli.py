"""The front door: what it imports, how it refuses, exit codes, dispatch to papers."""

import errno
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lightbox.cli import app as front
from lightbox.cli import main
from lightbox.cli import train as commands
from lightbox.errors import RequestError, WorkError, guard
from lightbox.paper.asked_images import MaskFile
from lightbox.paper.pixel_prompts import point
from lightbox.records import Box

HEAVY = ("torch", "transformers", "mlflow", "pandas", "numpy", "hydra")
REPORT_IMPORTS = """
import sys
sys.argv[0] = "lightbox"
from lightbox.cli import main
try:
    main()
except SystemExit as end:
    print("\\nIMPORTED", *(name for name in {heavy} if name in sys.modules))
    raise
"""


def run_lightbox(*arguments):
    """Run the command in a new process; stdout ends with the heavy modules that it imported."""
    code = REPORT_IMPORTS.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    return done, done.stdout.rpartition("IMPORTED")[2].split()


@pytest.fixture
def paper(monkeypatch):
    """A paper named toy, whose cli records the calls that reach it."""
    calls = []
    hooks = SimpleNamespace(
        train=lambda argv: calls.append(("train", argv)),
        evaluate=lambda argv: calls.append(("evaluate", argv)),
        predict=lambda **given: calls.append(("predict", given)) or {"answer": "yes"},
    )
    monkeypatch.setattr(commands, "paper_cli", lambda name: hooks)
    return calls


def exit_code(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_help_lists_every_command_and_imports_nothing_heavy():
    done, imported = run_lightbox("--help")
    assert done.returncode == 0, done.stderr
    assert imported == []
    assert [name for name in front.COMMANDS if f" {name} " not in done.stdout] == []


def test_help_on_benchmarks_lists_them_without_torch():
    done, imported = run_lightbox("bench", "--help")
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers"} & set(imported)
    assert [
        name for name in ("data", "train", "memory", "kernels", "pruning", "rollout") if f" {name} " not in done.stdout
    ] == []


@pytest.mark.slow
def test_a_config_typo_names_the_key_and_exits_2_before_any_heavy_import():
    done, imported = run_lightbox("train", "medthink", "optim.lrr=1e-4")
    assert done.returncode == 2, done.stderr
    assert "optim.lrr" in done.stderr
    assert "Did you mean optim.lr" in done.stderr
    assert not {"torch", "transformers", "mlflow", "pandas"} & set(imported)


@pytest.mark.parametrize("name", sorted(front.COMMANDS))
def test_every_command_loads_and_shows_its_own_help(name, capsys):
    assert exit_code(name, "--help") == 0
    assert f"lightbox {name}" in capsys.readouterr().out


def test_version_is_shown(capsys):
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.startswith("lightbox 0.")


def test_an_unknown_command_exits_2_with_a_suggestion(capsys):
    assert exit_code("doctr") == 2
    assert "doctor" in capsys.readouterr().err


def test_a_missing_argument_exits_2():
    assert exit_code("train") == 2


def test_an_unknown_paper_is_refused_with_the_known_ones(capsys):
    assert exit_code("train", "medthnk") == 2
    shown = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in shown] == ["What was given", "Why", "What to do"]
    assert "medthink" in shown[1]
    assert "Did you mean medthink?" in shown[2]


def test_help_on_predict_imports_neither_torch_nor_numpy():
    done, imported = run_lightbox("predict", "--help")
    assert done.returncode == 0, done.stderr
    assert imported == []
    assert [name for name in ("--point", "--box", "--mask", "--slice") if name not in done.stdout] == []


def test_overrides_reach_the_paper_unchanged(paper):
    assert exit_code("train", "toy", "preset=smoke", "optim.lr=1e-4", "data.tags=[a, b]") == 0
    assert exit_code("evaluate", "toy") == 0
    assert paper == [("train", ["preset=smoke", "optim.lr=1e-4", "data.tags=[a, b]"]), ("evaluate", [])]


def test_predict_passes_parsed_options_and_prints_json(paper, capsys, tmp_path):
    image = tmp_path / "image.png"
    image.write_bytes(b"")
    given = ("--image", str(image), "--question", "Is there a nodule?", "--options", "yes, no", "--box", "0,0,0.5,1")
    assert exit_code("predict", "toy", *given, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"answer": "yes"}
    (_, call), *_ = paper
    assert call == {
        **{"image": image, "question": "Is there a nodule?", "options": ("yes", "no"), "run": None, "out": None},
        "regions": (Box(0, 0, 0.5, 1),),
    }  # and no attention or slice: a paper that has none need not know the option
    assert exit_code("predict", "toy", *given, "--out", str(tmp_path / "a.png"), "--attention") == 0
    assert (paper[-1][1]["attention"], paper[-1][1]["out"]) == (True, tmp_path / "a.png")
    capsys.readouterr()
    assert exit_code("predict", "toy", *given) == 0
    assert capsys.readouterr().out == "answer: yes\n"


def test_predict_passes_regions_in_their_order_and_the_slice(paper, tmp_path):
    image, mask = tmp_path / "scan.nii.gz", tmp_path / "m.png"
    for file in (image, mask, tmp_path / "m.png:3"):
        file.write_bytes(b"")
    asked = ("predict", "toy", "--image", str(image), "--question", "q", "--slice", "axial/4")
    assert exit_code(*asked, "--point", "0.5, 0.25", "--point", "0,1") == 0
    assert exit_code(*asked, "--mask", f"{mask}:2", "--mask", str(mask), "--mask", f"{mask}:3") == 0
    points, masks = (call for _, call in paper)
    assert points["regions"] == (point(0.5, 0.25), point(0, 1))
    assert masks["regions"] == (MaskFile(mask, 2), MaskFile(mask), MaskFile(tmp_path / "m.png:3"))
    assert points["slice_name"] == "axial/4"


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--image", "absent.png", "--question", "q"], "--image"),
        (["--image", __file__, "--question", " "], "--question"),
        (["--image", __file__, "--question", "q", "--options", "yes"], "--options"),
        (["--image", __file__, "--question", "q", "--box", "0,0,1"], "--box"),
        (["--image", __file__, "--question", "q", "--box", "0.5,0,0.5,1"], "--box"),
        (["--image", __file__, "--question", "q", "--box", "0,0,nan,1"], "--box"),
        (["--image", __file__, "--question", "q", "--point", "0.5"], "--point"),
        (["--image", __file__, "--question", "q", "--point", "0.5,1.01"], "--point"),
        (["--image", __file__, "--question", "q", "--point", "nan,0"], "--point"),
        (["--image", __file__, "--question", "q", "--mask", "absent.png"], "--mask"),
        (["--image", __file__, "--question", "q", "--mask", f"{__file__}:0"], "--mask"),
        (["--image", __file__, "--question", "q", "--point", "0,0", "--box", "0,0,1,1"], "--point and --box"),
    ],
)
def test_predict_names_the_option_that_is_wrong(paper, capsys, extra, named):
    assert exit_code("predict", "toy", *extra) == 2
    assert named in capsys.readouterr().err
    assert paper == []


def raising(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("a", "b", "c"), 2),
        (WorkError("a", "b", "c"), 1),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "scores.parquet"), 1),
    ],
)
def test_errors_become_exit_codes_without_traceback(error, code, capsys):
    assert guard(raising(error)) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_names_the_file_and_what_to_do(capsys):
    guard(raising(OSError(errno.ENOSPC, "No space left on device", "scores.parquet")))
    shown = capsys.readouterr().err
    assert "scores.parquet" in shown
    assert "--out" in shown


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guard(raising(ZeroDivisionError()))
    with pytest.raises(PermissionError):
        guard(raising(PermissionError(errno.EACCES, "denied")))


@pytest.mark.slow
@pytest.mark.parametrize("given", [["--claims", "T1,T2"], ["--claims", "T1", "--claims", "T2"]])
def test_claims_named_apart_are_all_meant(given, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightbox", "reproduce", "medthink", "--preset", "smoke", "--dry-run", *given])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    said = capsys.readouterr().out
    assert "T1" in said
    assert "T2" in said
