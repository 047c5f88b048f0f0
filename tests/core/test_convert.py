"""`.pth` to safetensors: tensors pass with digests, everything else is refused, code never runs."""

import hashlib
import json
import struct
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lightbox.cli.data import app
from lightbox.errors import RequestError
from lightbox.readers.convert import convert


class Payload:
    """Unpickling this writes a marker file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def save_torch(path, value):
    torch.save(value, path)
    return path


def test_state_dict_survives_bit_for_bit_with_digests(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    state = OrderedDict(weight=shared, tied=shared, half=torch.ones(2, dtype=torch.bfloat16), turned=shared.T)
    source, dest = save_torch(tmp_path / "a.pth", {"model": state}), tmp_path / "a.safetensors"
    done = convert(source, dest)
    loaded = load_file(dest)
    assert set(loaded) == {"model.weight", "model.tied", "model.half", "model.turned"}
    assert torch.equal(loaded["model.turned"], shared.T)
    assert loaded["model.half"].dtype == torch.bfloat16
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest() == done.source_sha256
    assert record["result_sha256"] == hashlib.sha256(dest.read_bytes()).hexdigest()
    assert (record["tensors"], record["parameters"]) == (4, 20)
    assert (record["source"], record["result"]) == ("a.pth", "a.safetensors")


def test_lone_tensor_and_list_get_plain_names(tmp_path):
    convert(save_torch(tmp_path / "a.pth", torch.zeros(3)), tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == {"tensor"}
    convert(save_torch(tmp_path / "b.pth", [torch.zeros(3), {"x": torch.ones(1)}]), tmp_path / "b.safetensors")
    assert set(load_file(tmp_path / "b.safetensors")) == {"0", "1.x"}


@pytest.mark.parametrize("way", ["torch", "pickle", "old"])
def test_malicious_pickle_never_creates_its_marker(tmp_path, way):
    marker, source = tmp_path / "marker", tmp_path / "evil.pth"
    payload = {"weight": torch.zeros(2), "x": Payload(marker)}
    call, arguments = payload["x"].__reduce__()
    call(*arguments).close()
    assert marker.exists()  # the payload works where it is run
    marker.unlink()
    if way == "pickle":
        texts = (str(marker).encode(), b"w")
        spelled = b"".join(b"X" + struct.pack("<I", len(text)) + text for text in texts)
        source.write_bytes(b"\x80\x02cbuiltins\nopen\n(" + spelled + b"tR.")  # protocol 2: call open(marker, "w")
    else:
        torch.save(payload, source, _use_new_zipfile_serialization=way == "torch")
    with pytest.raises(RequestError, match="could run code"):
        convert(source, tmp_path / "a.safetensors")
    assert not marker.exists()
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"weight": torch.zeros(2), "epoch": 3}, "holds a int at 'epoch'"),
        ({"weight": "text"}, "holds a str at 'weight'"),
        ({1: torch.zeros(2)}, "holds a dict at 'the top'"),
        ({"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}}, "two tensors called 'a.b'"),
        ({"sparse": torch.eye(3).to_sparse()}, "at 'sparse'"),
        ({}, "holds no tensor"),
        (None, "holds a NoneType"),
    ],
)
def test_anything_but_tensors_is_refused(tmp_path, value, why):
    with pytest.raises(RequestError, match=why):
        convert(save_torch(tmp_path / "a.pth", value), tmp_path / "a.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]


def test_files_that_are_no_weights_are_refused(tmp_path):
    source = save_torch(tmp_path / "a.pth", {"w": torch.zeros(100)})
    whole = source.read_bytes()
    for content in (b"", b"text", whole[:200], whole[: len(whole) // 2], b"PK\x03\x04" + b"\0" * 50):
        source.write_bytes(content)
        with pytest.raises(RequestError, match=r"a\.pth"):
            convert(source, tmp_path / "a.safetensors")


def test_destination_must_be_new_and_named_safetensors(tmp_path):
    source = save_torch(tmp_path / "a.pth", torch.zeros(1))
    with pytest.raises(RequestError, match=r"The result is a \.safetensors file"):
        convert(source, tmp_path / "a.bin")
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(RequestError, match="exists already"):
        convert(source, tmp_path / "b.safetensors")
    with pytest.raises(RequestError, match="no such file"):
        convert(tmp_path / "none.pth", tmp_path / "c.safetensors")


def test_command_prints_the_digest(tmp_path):
    source = save_torch(tmp_path / "a.pth", torch.zeros(5))
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "a.safetensors")])
    assert result.exit_code == 0
    digest = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    assert digest in "".join(result.stdout.split())
