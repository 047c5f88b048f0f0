"""The catalogue refuses wrong requests; cards agree with readers."""

from types import SimpleNamespace

import pytest

from lightbox.cli.app import main
from lightbox.errors import RequestError
from lightbox.paper.composition import inputs
from lightbox.readers.catalog import DATASETS, read, root_of
from lightbox.readers.dataset_cards import dataset_cards_dir, dataset_names, load_dataset_card, parse_dataset_card
from lightbox.runs.sources import CHOICES, closure

WANTED = {"vqa_rad", "vqa_med_2019", "slake", "path_vqa", "r_rad", "r_slake", "r_path"}
WANTED |= {"pmc_vqa", "kvasir_vqa", "omnimedvqa", "medxpertqa_mm"}
WANTED |= {"vindr_cxr", "padchest_gr", "ms_cxr", "chestx_det", "nih_boxes", "nih_cxr_mass_boxes", "covid_cxr_masks"}
WANTED |= {"dsb2018_nuclei", "bccd", "blood_smear_csv", "coco", "cvat", "pascal_voc", "yolo", "kitti"}


def test_every_reader_has_a_card_with_the_same_licence_and_title_field():
    assert set(DATASETS) == WANTED
    assert set(dataset_names()) >= WANTED | {"phantom"}
    for name, reader in DATASETS.items():
        assert load_dataset_card(name).licence == reader.licence


def test_every_card_parses_and_says_what_may_leave_the_machine():
    for name in dataset_names():
        card = load_dataset_card(name)
        assert card.files
        assert card.external_api == (
            "allowed" if card.licence in ("CC0-1.0", "CC-BY-4.0", "Apache-2.0") else "forbidden"
        )
        for file in card.files:
            assert file.sha256 == "not recorded" or len(bytes.fromhex(file.sha256)) == 32


def test_the_list_cuts_no_name_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main(["data", "list"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out.split()
    assert set(dataset_names()) <= set(printed)


def test_unknown_card_is_refused_with_a_near_name():
    with pytest.raises(RequestError, match="Did you mean vqa_rad"):
        load_dataset_card("vqarad")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("external_api: allowed", "external_api: perhaps"), "field 'external_api'"),
        (("task: radiology VQA\n", ""), "field 'task'"),
        (("task: radiology VQA\n", "task: radiology VQA\nmood: good\n"), "field 'mood'"),
        (("name: vqa_rad", "name: other"), "named 'other' inside"),
        (("task: radiology VQA\n", "task: [\n"), "not YAML"),
        (("task: radiology VQA\n", "task: !!python/object/apply:os.getcwd []\n"), "not YAML"),
        (("task: radiology VQA\n", "task: &a radiology VQA\nb: *a\n"), "aliases"),
    ],
)
def test_malformed_card_names_file_and_field(tmp_path, change, reason):
    text = (dataset_cards_dir() / "vqa_rad.yaml").read_text()
    assert change[0] in text
    path = tmp_path / "vqa_rad.yaml"
    path.write_text(text.replace(*change))
    with pytest.raises(RequestError, match=reason):
        parse_dataset_card(path)


def test_unknown_name_split_option_and_root_are_refused(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="There is no dataset 'vqa'.*The readers are vqa_rad"):
        read("vqa", tmp_path)
    with pytest.raises(RequestError, match="split='validation' of vqa_rad.*train, test"):
        read("vqa_rad", tmp_path, "validation")
    with pytest.raises(RequestError, match="split='train' of kvasir_vqa.*It has no official split"):
        read("kvasir_vqa", tmp_path, "train")
    with pytest.raises(RequestError, match="option 'langage'.*language, use_masks"):
        read("slake", tmp_path, langage="en")
    with pytest.raises(RequestError, match="takes no options"):
        read("path_vqa", tmp_path, rows=None)
    with pytest.raises(RequestError, match="not a folder"):
        read("vqa_rad", tmp_path / "none")
    monkeypatch.delenv("LIGHTBOX_DATA_ROOT", raising=False)
    with pytest.raises(RequestError, match="Neither --root nor LIGHTBOX_DATA_ROOT is set"):
        read("vqa_rad")


def test_default_root_is_the_folder_of_that_name_below_the_variable(tmp_path, monkeypatch):
    (tmp_path / "slake").mkdir()
    monkeypatch.setenv("LIGHTBOX_DATA_ROOT", str(tmp_path))
    assert root_of("slake") == tmp_path / "slake"
    with pytest.raises(RequestError, match="not a folder"):
        root_of("vqa_rad")


def test_key_of_a_job_follows_the_reader_that_it_uses_and_no_other():
    """A reader that is missing in `CHOICES` would make every job with real data stale when it changes."""
    assert {reader.module for reader in DATASETS.values()} == set(CHOICES["lightbox.readers.catalog"])
    reached = closure("medthink", ("lightbox.readers.catalog", "lightbox.readers.kvasir_vqa")).keys()
    assert reached >= {f"lightbox.readers.{name}" for name in ("kvasir_vqa", "shards", "stores", "members", "rows")}
    assert not {"lightbox.readers.pmc_vqa", "lightbox.readers.slake"} & reached


def test_key_of_a_job_changes_with_a_zip_file(tmp_path):
    cfg = SimpleNamespace(data=SimpleNamespace(is_phantom=False, root=str(tmp_path)), is_baseline=True)
    (tmp_path / "OmniMedVQA.zip").write_bytes(b"one")
    before = inputs(cfg)
    (tmp_path / "OmniMedVQA.zip").write_bytes(b"another")
    assert inputs(cfg) != before
