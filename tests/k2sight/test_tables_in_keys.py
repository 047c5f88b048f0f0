"""Which attribute tables a run's key knows: on phantoms theirs alone, on real data all the others."""

import json
import shutil

import pytest
from PIL import Image

from k2sight.config import inputs, resolve
from lightbox import knowledge
from lightbox.claims.jobs import arm_job
from lightbox.claims.registry import load_papers

TABLES = (knowledge.PHANTOM, "chest_findings.yaml", "blood_cells.yaml")


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A copy of our tables, which stands in for them."""
    copy = shutil.copytree(knowledge.folder(), tmp_path / "knowledge")
    monkeypatch.setattr(knowledge, "folder", lambda: copy)
    return copy


@pytest.fixture
def smears(tmp_path):
    """Overrides of a run on a real set; its files are digested, not read."""
    root = tmp_path / "smears"
    root.mkdir()
    Image.new("L", (8, 8)).save(root / "1.png")
    (root / "all.json").write_text(json.dumps({}))
    return ["data.source=coco", f"data.root={root}", "data.split=by_image"]


def changed_by_each(cfg, tables):
    """Table, edited, or added where it is not one of ours -> names of the inputs of a run that this changes."""
    changed = {}
    for name in (*TABLES, "of_a_user.yaml"):
        before, path = inputs(cfg), tables / name
        text = path.read_text() if path.exists() else ""
        path.write_text(text.replace("round", "circular").replace("coin", "dime") + "\n")
        assert inputs(cfg).keys() == before.keys()
        changed[name] = {key for key, digest in inputs(cfg).items() if digest != before[key]}
    return changed


def test_our_tables_are_the_ones_that_are_edited_here():
    assert set(TABLES) == {path.name for path in knowledge.folder().glob("*.yaml")}


def test_a_row_for_a_real_set_leaves_a_run_on_phantoms_what_it_was(tables):
    """Before, a row for chest radiographs made every published run on phantoms old."""
    changed = changed_by_each(resolve(["preset=smoke", "experiment=defined"]), tables)
    assert changed.pop(knowledge.PHANTOM) == {"knowledge"}
    assert set().union(*changed.values()) == set()


@pytest.mark.parametrize(("arm", "known"), [("defined", {"knowledge"}), ("name", set()), ("blob", set())])
def test_a_run_on_real_data_knows_every_table_but_that_of_phantoms(tables, smears, arm, known):
    changed = changed_by_each(resolve(["preset=smoke", f"experiment={arm}", *smears]), tables)
    assert changed.pop(knowledge.PHANTOM) == set()
    assert list(changed.values()) == [known] * 3


def test_the_key_of_a_published_job_outlives_a_row_for_a_real_set(tables):
    paper = load_papers(["k2sight"])[0]
    key = arm_job(paper, "defined", preset="quick", seed=0).key
    for name in TABLES[1:]:
        (tables / name).write_text((tables / name).read_text().replace("round", "circular"))
    assert arm_job(paper, "defined", preset="quick", seed=0).key == key
    words = tables / knowledge.PHANTOM
    words.write_text(words.read_text().replace("coin", "dime"))
    assert arm_job(paper, "defined", preset="quick", seed=0).key != key
