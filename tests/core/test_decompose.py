"""Classes are taken apart by tables or a model; what a model wrote is checked and marked as such."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from lightbox import knowledge
from lightbox.chat import ChatModel
from lightbox.cli import main
from lightbox.cli.data import app as data_app
from lightbox.decompose import EXAMPLE, FIELDS, PROMPT, decompose, from_model, from_tables
from lightbox.errors import RequestError

STEP = {
    "shape": "step in an arc",
    "density": "dark line on bright bone",
    "location": "chest wall",
    "appearance": "A curved bone has a kink.",
}
BALL = {"shape": "round", "density": "grey", "location": "lung", "appearance": "A lone grey ball."}


@pytest.fixture
def model(endpoint, tmp_path):
    """A source that asks the local endpoint."""
    return from_model(ChatModel(endpoint.url, "qwen3:8b"), cache=tmp_path / "kept")


def run_command(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["knowledge", "decompose", *map(str, arguments)])
    return caught.value.code


def test_a_look_of_a_model_names_it_as_its_only_source(endpoint, model):
    endpoint.answers(f"Here it is:\n```json\n{json.dumps(STEP)}\n```")
    look = model.look_of("rib fracture")
    assert isinstance(look, knowledge.Look)
    assert look.description == "step in an arc, dark line on bright bone, chest wall"
    assert look.sources == dict.fromkeys(FIELDS, "written by qwen3:8b")
    assert "nothing was looked up" in model.works["written by qwen3:8b"]
    system, user = endpoint.seen[0][2]["messages"]
    assert (system["content"], user["content"]) == (PROMPT, "Class: rib fracture")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("I cannot help with that.", "no description"),
        ('{"a":' * 50_000 + "}", "no description"),
        (json.dumps(BALL)[:-9], "no description"),
        (json.dumps([BALL, BALL]), "no description"),
        (json.dumps(BALL | {"name": "x"}), "fields shape, density, location, appearance and no other"),
        (json.dumps({"shape": "round"}), "fields shape"),
        (json.dumps(BALL | {"shape": ["round"]}), "shape: Input should be a valid string"),
        (json.dumps(BALL | {"shape": ""}), "shape: String should have at least 1"),
        (json.dumps(BALL | {"appearance": "x" * 301}), "appearance: String should have at most 300"),
        (json.dumps(BALL | {"shape": EXAMPLE["shape"]}), "repeats the example"),
        (json.dumps(BALL | {"appearance": "Nodules in a lung."}), "names its class"),
        (json.dumps(STEP | {"appearance": "Another."}), "rib fracture has the same"),
        (json.dumps(BALL | {"shape": "&round*"}), "aliases"),
    ],
)
def test_a_faulty_answer_names_class_and_model_and_the_others_are_kept(endpoint, model, answer, why):
    endpoint.answers(json.dumps(STEP), answer, json.dumps(BALL | {"location": "neck"}))
    table, errors = decompose(["rib fracture", "nodule", "goiter"], model, covers="own")
    assert [row["name"] for row in table["classes"]] == table["covers"]["own"] == ["rib fracture", "goiter"]
    (error,) = errors
    assert error.given.startswith("Class 'nodule': ")
    assert "qwen3:8b" in error.given
    assert answer[:8].strip('{"[') in error.given
    assert len(error.given) < 500
    assert why in error.why


def test_a_class_met_again_in_another_case_is_asked_for_once(endpoint, model):
    endpoint.answers(json.dumps(BALL))
    table, errors = decompose(["Nodule", "nodule"], model, covers="own")
    assert (len(table["classes"]), len(endpoint.seen), errors) == (1, 1, [])


def test_a_refused_key_ends_the_work_at_the_first_class(endpoint, model):
    endpoint.replies.append((401, "", {}))
    with pytest.raises(RequestError, match="status 401"):
        decompose(["nodule", "goiter"], model, covers="own")
    assert len(endpoint.seen) == 1


def test_the_tables_are_a_source_that_needs_no_server():
    table, errors = decompose(["CARDIOMEGALY", "rbc", "unicorn"], from_tables(), covers="own")
    looks = knowledge.findings()
    assert [row["shape"] for row in table["classes"]] == [looks.looks[name].shape for name in ("cardiomegaly", "RBC")]
    assert set(table["works"]) == {"chest_findings", "blood_cells"}
    assert ["Class 'unicorn'" in error.given and "None has that class" in error.why for error in errors] == [True]


def test_the_command_writes_a_table_that_passes_validation_and_asks_once(endpoint, tmp_path, capsys):
    endpoint.answers(json.dumps(STEP), json.dumps(BALL))
    folder = tmp_path / "own"
    asked = ("rib fracture", "nodule", "--url", endpoint.url, "--model", "m", "--dataset", "ms_cxr")
    assert run_command(*asked, "--out", folder / "looks.yaml") == 0
    said = capsys.readouterr().out
    assert "2 of 2 classes" in said
    assert "written by m, not looked up" in said
    assert run_command(*asked, "--out", tmp_path / "again.yaml") == 0
    assert (folder / "looks.yaml").read_text() == (tmp_path / "again.yaml").read_text()
    assert len(endpoint.seen) == 2
    assert len(list((tmp_path / "lightbox-out" / "chat").iterdir())) == 2
    table = yaml.safe_load((folder / "looks.yaml").read_text())
    assert table["covers"] == {"ms_cxr": ["rib fracture", "nodule"]}
    assert {work for row in table["classes"] for work in row["sources"].values()} == {"written by m"}
    shutil.copy(knowledge.folder() / knowledge.PHANTOM, folder)
    checked = CliRunner().invoke(data_app, ["validate", "knowledge", "--root", str(folder)])
    assert checked.exit_code == 0, checked.stdout
    assert "looks.yaml" in checked.stdout


def test_the_command_writes_what_is_sound_and_exits_1_for_what_is_not(endpoint, tmp_path, capsys):
    out = tmp_path / "looks.yaml"
    endpoint.answers("no", json.dumps(BALL))
    assert run_command("goiter", "nodule", "--url", endpoint.url, "--model", "m", "--out", out) == 1
    assert "faulty: Class 'goiter': Model 'm' answered 'no'" in capsys.readouterr().err
    assert yaml.safe_load(out.read_text())["covers"] == {"looks": ["nodule"]}
    assert run_command("unicorn", "--out", tmp_path / "none.yaml") == 1
    assert not (tmp_path / "none.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--out", "looks.json"], "a .yaml file"),
        (["--out", "phantom.yaml"], "another kind"),
        (["--out", "there.yaml"], "It exists"),
        (["--out", "x.yaml", "--url", "https://models.example/v1"], "A model needs both"),
        (["--out", "x.yaml", "--model", "m"], "A model needs both"),
        (["--out", "x.yaml", "--url", "http://models.example", "--model", "m"], "Plain http"),
        (["--out", "x.yaml", "--url", "https://models.example", "--model", "m", "--dataset", "ms_cxr"], "forbids"),
        (["--out", "x.yaml", "--url", "https://models.example", "--model", "m", "--dataset", "mimic"], "no dataset"),
    ],
)
def test_a_wrong_request_exits_2_and_writes_nothing(tmp_path, capsys, arguments, why):
    (tmp_path / "there.yaml").write_text("by hand")
    assert run_command("nodule", *arguments) == 2
    assert why in capsys.readouterr().err
    assert (tmp_path / "there.yaml").read_text() == "by hand"
    assert not (tmp_path / "x.yaml").exists()


def test_taking_apart_needs_neither_torch_nor_the_hub(tmp_path):
    code = "import sys, lightbox.decompose; sys.exit(bool({'torch', 'huggingface_hub'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=knowledge.folder())
