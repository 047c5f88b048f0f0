"""What the weights cannot do is refused in three sentences, before torch is imported."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import pytest

from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.paper.pretrained import check_pretrained, find_pretrained
from lightbox.paper.schema import from_plain
from medthink.cli import ENTRIES
from medthink.config import Config, inputs, resolve

SMOKE = ["preset=smoke", "run.seed=0"]


def check(overrides):
    """Ask for a training, as far as that goes without torch."""
    return ENTRIES.accept(overrides, "train")


def write_adapter(folder, base, **changes):
    """An adapter's folder as far as it is read without torch."""
    folder.mkdir()
    record = {
        "format": 1,
        "kind": "adapter",
        "base": {"name": str(base), "revision": "", "digest": "", "family": "llava"},
        "quant": "nf4",
        "dtype": "bfloat16",
        "adapter": dataclasses.asdict(AdapterConfig(kind="lora", quant="nf4", r=4)),
    }
    (folder / "manifest.json").write_text(json.dumps(record | changes))
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.tower=DIR"], "model.tower is 'DIR'. It reads images through a tower of its own"),
        (
            ["model.features=f.safetensors", "data.source=r_slake", "data.root=x"],
            "model.features is 'f.safetensors'. It reads",
        ),
        (["objective.pads=official"], "The official code counts pads in a T5's target"),
        (["model.dropout_prob=0.1"], "against over-fitting, adapter.dropout_prob"),
        (["data.source_tokens=600"], "data.source_tokens is 600 and .* positions for 512 tokens"),
        (["data.target_tokens=601"], "data.target_tokens is 601 and .* positions for 512 tokens"),
    ],
)
def test_what_only_a_t5_has_is_refused_beside_a_vlm(llava_folder, overrides, message):
    with pytest.raises(RequestError, match=message):
        check([*SMOKE, "experiment=explanation", f"model.backbone={llava_folder}", *overrides])


def test_a_fusion_is_trained_as_a_whole(t5_folder):
    with pytest.raises(RequestError, match="it is the fusion that joins image and text"):
        check([*SMOKE, f"model.backbone={t5_folder}", "adapter.kind=lora", "adapter.projector=lora"])


@pytest.mark.parametrize("backbone", ["t5_folder", "llava_folder"])
@pytest.mark.parametrize("more", [[], ["adapter.kind=lora", "adapter.quant=nf4", "model.dtype=bf16"]])
def test_good_requests_pass(backbone, more, request):
    folder = request.getfixturevalue(backbone)
    check([*SMOKE, "experiment=reader", f"model.backbone={folder}", *more])


def test_every_weight_in_sixteen_bits_is_refused():
    with pytest.raises(RequestError, match="a small update is rounded away"):
        resolve([*SMOKE, "model.dtype=bf16"])


@pytest.mark.slow
def test_wrong_weights_exit_2_before_torch_is_imported(llava_folder):
    code = "import sys; from medthink.cli import train\ntry:\n    train(sys.argv[1:])\nexcept SystemExit as stop:\n"
    code += "    sys.exit(9 if 'torch' in sys.modules or 'transformers' in sys.modules else stop.code)"
    command = [sys.executable, "-c", code, f"model.backbone={llava_folder}", "objective.pads=official"]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 3


def test_adapter_is_scored_on_its_base_stored_as_in_training(llava_folder, tmp_path):
    folder = write_adapter(tmp_path / "model", llava_folder)
    cfg = check([*SMOKE, f"model.backbone={folder}", "objective.is_trained=false"])
    own = find_pretrained(str(folder)).under(cfg)
    assert (own.model.backbone, own.model.dtype, own.adapter.quant) == (str(llava_folder), "bf16", "nf4")
    plain = resolve([*SMOKE, f"model.backbone={llava_folder}", "objective.is_trained=false"])
    assert inputs(cfg)["backbone"].startswith(inputs(plain)["backbone"] + " + ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "objective.is_trained is true. A second adapter on top of it"),
        (
            ["objective.is_trained=false", "adapter.kind=lora", "adapter.quant=int8"],
            "on a base that is stored otherwise",
        ),
    ],
)
def test_adapter_where_a_model_is_needed_is_refused(llava_folder, tmp_path, overrides, message):
    folder = write_adapter(tmp_path / "model", llava_folder)
    with pytest.raises(RequestError, match=message):
        check([*SMOKE, f"model.backbone={folder}", *overrides])


def test_profile_that_the_adapter_was_trained_with_may_stay(llava_folder, tmp_path):
    folder = write_adapter(tmp_path / "model", llava_folder)
    given = [f"model.backbone={folder}", "data.root=x", "objective.is_trained=false", "data.source_tokens=256"]
    check(["preset=consumer_gpu", "run.seed=0", *given])


def test_adapter_without_its_base_names_it(llava_folder, tmp_path):
    base = shutil.copytree(llava_folder, tmp_path / "base")
    folder = write_adapter(tmp_path / "model", base)
    shutil.rmtree(base)
    with pytest.raises(RequestError, match=f"Without that model it means nothing.* Put the model back to '{base}'"):
        find_pretrained(str(folder))


def write_plain_adapter(folder, base, **changes):
    """The description that plain peft writes, as far as it is read without torch."""
    folder.mkdir()
    plain = {"peft_type": "LORA", "base_model_name_or_path": str(base), "revision": None, "r": 8, "lora_alpha": 16}
    (folder / "adapter_config.json").write_text(json.dumps(plain | {"target_modules": ["q_proj"]} | changes))
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    return folder


def test_adapter_of_plain_peft_is_found_with_its_base_and_stored_as_configured(llava_folder, tmp_path):
    folder = write_plain_adapter(tmp_path / "plain", llava_folder)
    asked = ["objective.is_trained=false", "model.dtype=bf16", "adapter.kind=lora", "adapter.quant=nf4"]
    cfg = resolve([*SMOKE, f"model.backbone={folder}", *asked])
    base = find_pretrained(cfg.model.backbone)
    check_pretrained(cfg, base)
    assert (base.name, base.adapter, base.family.name) == (str(llava_folder), folder, "llava")
    settled = base.under(cfg)
    assert (settled.model.backbone, settled.model.dtype) == (str(llava_folder), "bf16")
    assert (settled.adapter.r, settled.adapter.alpha, settled.adapter.quant) == (8, 16.0, "nf4")
    assert re.fullmatch(settled.adapter.targets, "model.language_model.layers.0.self_attn.q_proj")


def test_adapter_of_plain_peft_on_a_hub_id_takes_its_revision_from_the_settings(tmp_path):
    folder = write_plain_adapter(tmp_path / "plain", "llava-hf/llava-1.5-7b-hf")
    with pytest.raises(
        RequestError, match="was trained on 'llava-hf/llava-1.5-7b-hf'.*can change, so the same command"
    ):
        find_pretrained(str(folder))
    assert find_pretrained(str(folder), "0" * 40).revision == "0" * 40


def test_adapter_of_another_kind_is_refused(tmp_path):
    folder = write_plain_adapter(tmp_path / "plain", "some/model", peft_type="PROMPT_TUNING")
    with pytest.raises(RequestError, match="holds an adapter of kind PROMPT_TUNING"):
        check([*SMOKE, f"model.backbone={folder}"])


def test_weights_without_a_tower_beside_them_are_all_that_a_vlm_reads(llava_folder, t5_folder):
    of_vlm = inputs(resolve([*SMOKE, f"model.backbone={llava_folder}"]))
    of_t5 = inputs(resolve([*SMOKE, f"model.backbone={t5_folder}"]))
    assert set(of_vlm) == {"data", "device", "backbone"}
    assert set(of_t5) == {"data", "device", "backbone", "tower"}


def test_recorded_configuration_is_read_back_with_defaults_for_what_is_newer():
    cfg = resolve([*SMOKE, "adapter.kind=lora"])
    plain = dataclasses.asdict(cfg)
    assert from_plain(Config, plain) == cfg
    del plain["train"], plain["model"]["image_px"]
    assert from_plain(Config, plain) == cfg
