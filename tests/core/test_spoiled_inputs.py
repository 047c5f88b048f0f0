"""Spoiled inputs that once gave a traceback or silence, found by benchmarks/spoiled_inputs.py, and a slice of it."""

import gzip
import struct
import sys

import nibabel as nib
import numpy as np
import pytest

from lightbox.config import register_schema
from lightbox.errors import RequestError
from lightbox.paper.composition import resolve
from lightbox.readers.cuts import open_cut
from lightbox.readers.images import load_image
from lightbox.testing.boxes.config import Config
from lightbox.testing.spoiled.every_kind import KNOWN, SHARES, known_as, shared_out, trial_of
from lightbox.testing.spoiled.inputs import Kind, Look
from lightbox.testing.spoiled.single_images import png_of_20000_px
from lightbox.testing.spoiled.trial import BAD
from medthink.config import resolve as resolve_medthink

LIGHT = ("pictures", "dicom", "volumes", "yaml", "adapters")
SLOW = tuple(name for name in SHARES if name not in LIGHT)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_some_spoiled_inputs_of_each_light_kind_are_refused_or_harmless(name, work):
    outcomes = [trial_of(name, seed, work) for seed in range(15)]
    assert [outcome for outcome in outcomes if outcome.verdict in BAD and not known_as(outcome)] == []
    assert sum(outcome.verdict == "refused" for outcome in outcomes) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_some_spoiled_inputs_of_each_other_kind_are_refused_or_harmless(name, work):
    outcomes = [trial_of(name, seed, work) for seed in range(8)]
    assert [outcome for outcome in outcomes if outcome.verdict in BAD and not known_as(outcome)] == []


def test_ten_thousand_inputs_are_shared_out_over_all_kinds():
    asked = list(shared_out(10_000))
    assert abs(len(asked) - 10_000) < len(SHARES)
    assert len(set(asked)) == len(asked)
    assert {name for name, _ in asked} == set(SHARES)


@pytest.mark.parametrize(
    ("look", "verdict"),
    [
        (lambda folder: Look((folder / "a.json").read_text()), "silent"),
        (lambda folder: [][0], "traceback"),
        (lambda _: Look("the same"), "same"),
        (lambda folder: (_ for _ in ()).throw(RequestError(f"{folder}", "Why not", "Do")), "unnamed"),
        (lambda folder: (_ for _ in ()).throw(RequestError("A file", "It is broken", "Fetch it")), "unnamed"),
        (lambda folder: (_ for _ in ()).throw(RequestError(f"{folder}", "It is broken", "Fetch it")), "refused"),
    ],
)
def test_each_answer_to_a_spoiled_input_has_its_verdict(look, verdict, tmp_path):
    """The first look is of the sound input, and is what it should be."""

    def write(folder, _):
        (folder / "a.json").write_text('{"a": 1}')

    def look_twice(folder):
        return Look('{"a": 1}' if verdict != "same" else "the same") if "sound" in str(folder) else look(folder)

    assert Kind(write, look_twice).trial("planted", 0, tmp_path, "cut").verdict == verdict


def test_known_faults_have_a_reason():
    assert all(pattern and len(why) > 20 for pattern, why in KNOWN.values())


# -- what was found --------------------------------------------------------------------------------------------------


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """A package with a `conf`, by the text of its train.yaml."""

    def write(name, text):
        conf = tmp_path / name / "conf"
        conf.mkdir(parents=True)
        for file in (conf / "__init__.py", conf.parent / "__init__.py", conf.parent / "config.py"):
            file.touch()
        (conf.parent / "claims.py").write_text("from lightbox.testing.boxes.claims import PAPER\n")
        (conf / "train.yaml").write_bytes(text)
        register_schema(name, "train", Config)
        monkeypatch.syspath_prepend(tmp_path)
        return name

    yield write
    for module in [module for module in sys.modules if module.partition(".")[0].startswith("broken_yaml")]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broken_yaml_a", b"optim: {lr: 1e-3\nrun: a: b"),
        ("broken_yaml_b", b"optim: \xff\xfe"),
        ("broken_yaml_c", b"optim:\0"),
        ("broken_yaml_d", b"a: 1\na: 2\n"),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_with_its_paper_and_no_traceback(paper, name, text):
    with pytest.raises(RequestError, match=f"A YAML file of {name}.conf.*cannot be read.*restore it"):
        resolve(paper(name, text), ["experiment=head"])


def test_a_preset_with_a_name_too_long_for_a_file_is_refused():
    with pytest.raises(RequestError, match=r"chosen by .*preset=x{73}\. It cannot be read: File name too long"):
        resolve_medthink(["preset=" + "x" * 5000])


@pytest.mark.parametrize(("key", "value"), [("adapter.use_dora", "1_000"), ("objective.is_trained", "7")])
def test_a_number_for_true_or_false_is_refused(key, value):
    with pytest.raises(RequestError, match=f"{key} is true or false"):
        resolve_medthink(["preset=smoke", f"{key}={value}"])


def test_a_volume_that_goes_on_behind_its_header_is_refused(tmp_path):
    file = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), file)
    sound = file.read_bytes()
    assert open_cut(file, "axial/0").pixels().shape == (5, 4)
    for place, value in ((46, 1), (70, 256)):  # a third of three sides, and one byte a voxel
        content = bytearray(sound)
        struct.pack_into("<h", content, place, value)
        file.write_bytes(content)
        with pytest.raises(RequestError, match=r"a\.nii.*goes on behind them"):
            open_cut(file, "axial/0")
    file.write_bytes(sound[:400] + b"abc" + sound[400:])
    with pytest.raises(RequestError, match="goes on behind them"):
        open_cut(file, "axial/0")


def test_a_packed_volume_is_read_to_its_checksum_and_no_further_than_its_header_says(tmp_path):
    file = tmp_path / "a.nii.gz"
    values = np.random.default_rng(0).integers(0, 30_000, (40, 50, 60)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), file)
    plain = gzip.decompress(file.read_bytes())
    wrong = bytearray(gzip.compress(plain, mtime=0))
    wrong[-8] ^= 1  # of the checksum
    file.write_bytes(wrong)
    with pytest.raises(RequestError, match="voxels cannot be read: CRC"):
        open_cut(file, "axial/0")
    file.write_bytes(gzip.compress(plain) + gzip.compress(bytes(1 << 24)) * 64)  # a gigabyte of zeros behind it
    with pytest.raises(RequestError, match="goes on behind them"):
        open_cut(file, "axial/0")


def test_an_image_of_20000_pixels_a_side_that_are_all_there_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of_20000_px())
    with pytest.raises(RequestError, match=r"a\.png.*pixels.*decompression bomb"):
        load_image(tmp_path / "a.png")
