"""Spoiled inputs that once gave a traceback or silence, found by benchmarks/spoiled_inputs.py, and a slice of it."""

import gzip
import io
import json
import os
import struct
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightbox.adapters.manifest import read_adapter
from lightbox.backbones import weights
from lightbox.backbones.preflight import check_files
from lightbox.config import register_schema
from lightbox.errors import RequestError, WorkError
from lightbox.paper.composition import resolve
from lightbox.readers import parquet
from lightbox.readers.cuts import open_cut
from lightbox.readers.images import load_image
from lightbox.readers.parquet import image_bytes
from lightbox.readers.pixels import load_pixels
from lightbox.testing.boxes.config import Config
from lightbox.testing.spoiled.every_kind import SHARES, shared_out, trial_of
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
    assert [outcome for outcome in outcomes if outcome.verdict in BAD] == []
    assert sum(outcome.verdict == "refused" for outcome in outcomes) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_some_spoiled_inputs_of_each_other_kind_are_refused_or_harmless(name, work):
    outcomes = [trial_of(name, seed, work) for seed in range(8)]
    assert [outcome for outcome in outcomes if outcome.verdict in BAD] == []


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


def png_of(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


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


def test_yaml_that_repeats_itself_is_refused_before_it_fills_the_memory(paper):
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    text = "\n".join(["a0: &a0 [ha]", *lines]).encode()
    with pytest.raises(RequestError, match=r"train\.yaml, line 2, has the alias '\*a0'.*written out"):
        resolve(paper("broken_yaml_e", text), ["experiment=head"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", 2.5),
        ("lora_alpha", [8]),
        ("lora_alpha", "8"),
        ("lora_dropout", -1),
        ("use_dora", "no"),
        ("target_modules", {"q_proj": 1}),
        ("modules_to_save", [3]),
        ("base_model_name_or_path", 7),
    ],
)
def test_a_description_of_a_lora_that_peft_would_not_write_is_refused(tmp_path, key, value):
    sound = {"peft_type": "LORA", "base_model_name_or_path": "tiny/llava", "r": 2, "lora_alpha": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(sound))
    assert read_adapter(tmp_path)["adapter"]["alpha"] == 4.0
    (tmp_path / "adapter_config.json").write_text(json.dumps(sound | {key: value}))
    with pytest.raises(WorkError, match=f"adapter_config.json has the field '{key}'"):
        read_adapter(tmp_path)


def test_a_manifest_that_leads_nowhere_does_not_make_an_adapter_of_peft(tmp_path):
    plain = {"peft_type": "LORA", "base_model_name_or_path": "tiny/llava", "r": 2, "lora_alpha": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain))
    (tmp_path / "manifest.json").symlink_to("gone.json")
    with pytest.raises(RequestError, match=r"There is no manifest\.json"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("text", ["", '{"sha256": 3}', "{}", "[1]", '{"sha256": {"a": 5'])
def test_a_card_that_is_none_is_refused(tmp_path, text):
    (tmp_path / weights.CARD).write_text(text)
    with pytest.raises(WorkError, match="It is no card of a model"):
        weights.check_card(tmp_path)


def make_pipe(path):
    os.mkfifo(path)


def make_loop(path):
    path.symlink_to(path.name)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [make_pipe, make_loop, Path.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_weights_that_are_no_file_are_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match=r"model\.safetensors is no file"):
        check_files(tmp_path, "model.backbone is 'here'")


TAGS = {"one row more": (257, 12, 13), "half the width": (256, 8, 4), "strips of two rows": (278, 12, 2)}


@pytest.mark.parametrize("name", TAGS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_tiff_whose_sides_and_pieces_do_not_agree_is_refused(tmp_path, name, mode):
    file, (tag, old, new) = tmp_path / "a.tif", TAGS[name]
    Image.new(mode, (8, 12), 90 if mode == "L" else (9, 90, 200)).save(file)
    assert load_pixels(file).shape[:2] == (12, 8)
    content = bytearray(file.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    places = [start + 2 + 12 * n for n in range(count)]
    (place,) = (place for place in places if struct.unpack_from("<H", content, place) == (tag,))
    kind = {3: "<H", 4: "<I"}[struct.unpack_from("<H", content, place + 2)[0]]
    assert struct.unpack_from(kind, content, place + 8) == (old,)
    struct.pack_into(kind, content, place + 8, new)
    file.write_bytes(content)
    with pytest.raises(RequestError, match=r"a\.tif"):
        load_pixels(file)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize(("mode", "size"), [("L", (33, 75)), ("RGB", (41, 300)), ("RGBA", (5, 4)), ("I;16", (33, 75))])
def test_a_sound_tiff_is_read_however_it_is_packed(tmp_path, mode, size, compression):
    if (mode, compression) == ("I;16", "jpeg"):
        mode = "L"  # JPEG has 8 bits
    Image.new(mode, size).save(tmp_path / "a.tif", compression=compression)
    assert load_pixels(tmp_path / "a.tif").shape[:2] == size[::-1]


def test_a_page_of_parquet_with_fewer_rows_than_its_group_is_refused(tmp_path, monkeypatch):
    table = pa.table({"image": [{"bytes": png_of(Image.new("L", (4, 4)))}]})
    pq.write_table(table, tmp_path / "a.parquet")
    row = tmp_path / "a.parquet" / "0"
    assert image_bytes(row).startswith(b"\x89PNG")
    monkeypatch.setattr(parquet, "_group", lambda *_: pa.chunked_array([[]], pa.struct([("bytes", pa.binary())])))
    with pytest.raises(RequestError, match="parquet file cannot be read"):
        image_bytes(row)


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
