"""Attribute tables: ours are sound, and every kind of fault is named with file, row and field."""

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lightbox import knowledge, phantom
from lightbox.cli.data import app
from lightbox.errors import RequestError
from lightbox.phantom.ontology import TRIPLES
from lightbox.readers.catalog import DATASETS

LOOK = {
    "name": "rib fracture",
    "shape": "step in an arc",
    "density": "dark line on bright bone",
    "location": "chest wall",
    "appearance": "A curved bone has a kink.",
    "sources": {"shape": "book", "density": "book", "location": "book", "appearance": "book"},
}
OTHER = LOOK | {"name": "mass/nodule", "shape": "round", "appearance": "A ball."}


@pytest.fixture
def write(tmp_path):
    """Rows of a table of findings, covered by one data set -> its file."""

    def written(*rows, covers=("rib fracture", "mass/nodule")):
        path = tmp_path / "chest_findings.yaml"
        table = {"works": {"book": "A book"}, "covers": {"a_set": list(covers)}, "classes": list(rows)}
        path.write_text(json.dumps(table, indent=1))  # JSON is YAML
        return path

    return written


def test_our_tables_are_sound_and_cover_their_data_sets():
    table = knowledge.findings()
    assert {name: len(classes) for name, classes in table.covers.items()} == {
        "vindr_cxr": 22, "padchest_gr": 25, "ms_cxr": 8, "chestx_det": 13, "nih_boxes": 8, "nih_cxr_mass_boxes": 2,
        "covid_cxr_masks": 14, "bccd": 3, "blood_smear_csv": 2,
    }  # fmt: skip
    assert len(set(table.covers["vindr_cxr"]) & set(table.covers["padchest_gr"])) == 4
    assert len(table.looks) == 62
    assert table.covers.keys() <= DATASETS.keys()
    assert {name: len(values) for name, values in knowledge.synonyms().words.items()} == {
        "shape": 7, "density": 4, "side": 2, "place": 5,
    }  # fmt: skip


def test_a_class_is_met_in_whatever_case_a_data_set_writes_it():
    table = knowledge.findings()
    assert table.look_of("rbc") is table.look_of("RBC") is not None
    assert table.look_of("Ild") is table.looks["ILD"]
    assert table.look_of("leukocyte") is None


@pytest.mark.parametrize("name", sorted(knowledge.findings().covers))
def test_no_two_classes_of_a_set_are_described_alike(name):
    table = knowledge.findings()
    looks = [table.look_of(one) for one in table.covers[name]]
    assert len({look.description.lower() for look in looks}) == len(looks)
    assert len({look.appearance.lower() for look in looks}) == len(looks)


def test_a_class_in_two_tables_is_refused(write, tmp_path, monkeypatch):
    write(LOOK, OTHER)
    (tmp_path / "more.yaml").write_text((tmp_path / "chest_findings.yaml").read_text())
    shipped = knowledge.folder()
    monkeypatch.setattr(knowledge, "folder", lambda: tmp_path)
    with pytest.raises(RequestError, match="Another table"):
        knowledge.findings()
    (tmp_path / knowledge.PHANTOM).write_text((shipped / knowledge.PHANTOM).read_text())
    faults = {name: len(of_file) for name, (_, of_file) in knowledge.check(tmp_path).items()}
    assert faults == {"chest_findings.yaml": 0, "more.yaml": 2, "phantom.yaml": 0}


def test_a_folder_without_a_table_is_refused(tmp_path):
    (tmp_path / knowledge.PHANTOM).write_text((knowledge.folder() / knowledge.PHANTOM).read_text())
    with pytest.raises(RequestError, match="no table of findings"):
        knowledge.check(tmp_path)


def test_no_text_of_the_phantom_holds_a_synonym():
    said = set()
    for vocabulary in ("named", "triples"):
        knobs = phantom.Knobs(vocabulary=vocabulary, triples="all")
        seeds = phantom.seed_range("development", 0, 200)
        for case in phantom.draw_cases(seeds, knobs, with_pixels=False, questions_per_case=8):
            texts = [case.report.text, *(f"{q.text} {q.answer} {q.rationale} {q.options}" for q in case.questions)]
            said |= set(re.findall(r"[a-z]+", " ".join(texts).lower()))
    assert "costophrenic" in said
    synonyms = {w for values in knowledge.synonyms().words.values() for words in values.values() for w in words}
    assert len(synonyms) == 3 * 18
    assert synonyms & said == set()


def test_a_finding_in_other_words_has_a_synonym_of_each_attribute():
    words = knowledge.synonyms()
    assert " ".join(words.describe(("disc", "dense", "right upper")).values()) == "coin white starboard top"
    assert words.describe(("oval", "haze", "hilum"), draws=(1, 1, 0, 1))["location"] == "gate"
    other = words.describe(("disc", "dense", "right upper"), draws=(1, 5, 0, 2))
    assert other == {"shape": "ball", "density": "opaque", "location": "starboard crown"}
    with pytest.raises(KeyError):
        words.describe(("square", "dense", "right upper"))


def test_there_is_a_pseudo_word_for_each_triple_and_none_means_anything():
    assert len(set(knowledge.PSEUDO_WORDS)) == len(TRIPLES)
    synonyms = {w for values in knowledge.synonyms().words.values() for words in values.values() for w in words}
    assert not {*knowledge.PSEUDO_WORDS} & (synonyms | knowledge.phantom_words())


def test_a_sound_table_has_no_fault(write):
    table, faults = knowledge.read_findings(write(LOOK, OTHER))
    assert faults == []
    assert table.looks["rib fracture"].description == "step in an arc, dark line on bright bone, chest wall"


@pytest.mark.parametrize(
    ("change", "row", "field", "why"),
    [
        ({"shape": ""}, "1 rib fracture", "shape", "at least 1 character"),
        ({"colour": "red"}, "1 rib fracture", "colour", "Unexpected"),
        ({"shape": 3}, "1 rib fracture", "shape", "valid string"),
        ({"appearance": "Old fractures."}, "rib fracture", "appearance", "names its class"),
        ({"name": "x"}, "x", "name", "No data set"),
        ({"name": "x"}, "rib fracture", "name", "no row describes it"),
        ({"sources": LOOK["sources"] | {"shape": "hearsay"}}, "rib fracture", "sources.shape", "The works are book"),
        ({"shape": "Round"}, "rib fracture", "description", "mass/nodule has the same"),
        ({"appearance": "a  ball."}, "rib fracture", "appearance", "mass/nodule has the same"),
        ({"name": "mass/nodule"}, "2 mass/nodule", "name", "An earlier row has that name"),
        ({"name": "Mass/Nodule"}, "2 mass/nodule", "name", "An earlier row has that name"),
    ],
)
def test_each_fault_names_file_row_and_field_and_the_rest_is_read(write, change, row, field, why):
    path = write(LOOK | change, OTHER)
    table, faults = knowledge.read_findings(path)
    given = [fault.given for fault in faults if why in fault.why]
    assert any(text.startswith(f"File '{path}', row '{row}', field '{field}' is ") for text in given), faults
    assert "mass/nodule" in table.looks
    with pytest.raises(RequestError, match="Correct the row"):
        knowledge.findings(path)


@pytest.mark.parametrize("last", ["mass", "nodules"])
def test_either_name_of_a_class_with_two_is_its_name(write, last):
    _, faults = knowledge.read_findings(write(LOOK, OTHER | {"appearance": f"One of two {last}."}))
    assert [fault.given.split("'")[3] for fault in faults] == ["mass/nodule"]


@pytest.mark.parametrize(
    ("old", "new", "row", "why"),
    [
        ("coin", "disc", "disc", "The phantom says it itself"),
        ("coin", "hazy", "disc", "The phantom says it itself"),
        ("coin", "small coin", "disc", "not one plain word"),
        ("coin", "egg", "oval", "It stands for disc already"),
        ("[coin, ball, button]", "[coin, ball]", "disc", "It needs 3 words"),
        ("  disc:", "  square:", "disc", "It needs 3 words"),
        ("  disc:", "  square:", "square", "has no such shape"),
    ],
)
def test_each_fault_of_a_synonym_is_named(tmp_path, old, new, row, why):
    path = tmp_path / knowledge.PHANTOM
    path.write_text((knowledge.folder() / knowledge.PHANTOM).read_text().replace(old, new))
    words, faults = knowledge.read_synonyms(path)
    assert any(f"row '{row}', field 'shape'" in fault.given and why in fault.why for fault in faults), faults
    assert words.words["density"]["dense"] == ("white", "solid", "opaque")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("classes: [", "not YAML"),
        ("[]", "A table has works, covers, classes"),
        ("works: {}\ncovers: {}", "A table has works, covers, classes"),
        ("works: &a {}\ncovers: *a\nclasses: []", "aliases"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, why):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(RequestError, match=why):
        knowledge.read_findings(tmp_path / "x.yaml")


def test_the_command_checks_the_tables(write, tmp_path):
    runner = CliRunner()
    sound = runner.invoke(app, ["validate", "knowledge"])
    assert (sound.exit_code, sound.stdout.strip().splitlines()[-1]) == (0, "sound")
    write(LOOK, OTHER | {"shape": ""})
    (tmp_path / knowledge.PHANTOM).write_text((knowledge.folder() / knowledge.PHANTOM).read_text())
    broken = runner.invoke(app, ["validate", "knowledge", "--root", str(tmp_path)])
    assert broken.exit_code == 1
    assert "field 'shape' is ''" in " ".join(broken.stdout.split())
    assert runner.invoke(app, ["validate", "knowledge", "--root", str(tmp_path), "--json"]).exit_code == 1


def test_reading_tables_needs_no_torch():
    code = "import sys, lightbox.knowledge; lightbox.knowledge.findings(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=knowledge.folder())
