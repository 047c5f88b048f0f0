"""Shipped models as versioned bundles: MONAI reads the metadata, and new bytes need a new version."""

import json
from dataclasses import replace

import pytest
from monai.bundle import ConfigParser
from monai.bundle.properties import MetaProperties

from lightbox.backbones import bundles, weights
from lightbox.backbones.bundles import read_descriptions, write_bundle
from lightbox.cli import app as front
from lightbox.errors import RequestError
from lightbox.paths import shared_data

SHIPPED = sorted(path.name for path in (shared_data() / "weights").iterdir() if path.is_dir())


def test_every_shipped_model_is_described():
    assert sorted(read_descriptions()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_the_newest_version_of_each_is_the_files_that_are_shipped(name):
    bundles.check_version(name, read_descriptions()[name])


def test_files_of_another_version_are_refused_with_what_to_write(monkeypatch, tmp_path):
    older = read_descriptions() | {"tower": replace(read_descriptions()["tower"], weights="0" * 64)}
    monkeypatch.setattr(bundles, "read_descriptions", lambda: older)
    with pytest.raises(RequestError, match="Version 1.0.0 is 000000000000, the files are .*Raise its version"):
        write_bundle("tower", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_monai_finds_every_field_that_it_requires(tmp_path):
    folder = write_bundle("tiny/sam", tmp_path)
    parser = ConfigParser()
    parser.read_meta(str(folder / "configs" / "metadata.json"))
    assert all(parser.get(facts["id"]) is not None for facts in MetaProperties.values())
    assert parser.get("_meta_::network_data_format::inputs::image::spatial_shape") == [64, 64]


def test_a_bundle_holds_the_model_its_card_and_its_licence(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        front.main(["data", "bundle", "t5", str(tmp_path)])
    assert ended.value.code == 0
    folder = tmp_path / "t5-1.0.0"
    assert capsys.readouterr().out.strip() == str(folder)
    card = json.loads((folder / "models" / "card.json").read_text())
    assert weights.check_card(folder / "models") == card
    written = json.loads((folder / "configs" / "metadata.json").read_text())
    assert written["eval_metrics"] == card["scores"]
    assert written["license"] == "Apache-2.0"
    assert (folder / "LICENSE").read_text().lstrip().startswith("Apache License")
    text = (folder / "docs" / "README.md").read_text()
    assert "Not for clinical use" in text
    assert all(f"`{name}`" in text for name in card["scores"])
    with pytest.raises(RequestError, match="It is there already"):
        write_bundle("t5", tmp_path)


def test_a_model_that_is_not_shipped_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(RequestError, match="NAME is 'tiny/gpt'. The shipped models are .*tower"):
        write_bundle("tiny/gpt", tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tower: {title: t}", "missing 7 required"),
        ("- a list", "no attribute 'items'"),
        ("tower: [", "flow"),
    ],
)
def test_a_damaged_table_is_refused_by_its_path(tmp_path, text, why):
    path = tmp_path / "bundles.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=why):
        read_descriptions(path)


def test_a_version_without_its_change_is_refused(tmp_path):
    text = (shared_data() / "bundles.yaml").read_text().replace("version: 1.0.0", "version: 1.1.0", 1)
    path = tmp_path / "bundles.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match="is version 1.1.0, and the last of its changelog"):
        read_descriptions(path)
