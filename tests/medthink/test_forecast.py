"""A card that is too small is refused before torch is imported, with the setting that would fit."""

import json
import shutil

import pytest

from lightbox import machine
from lightbox.backbones.published import PUBLISHED
from lightbox.errors import RequestError
from lightbox.paper.forecast import check_fits, gpu_bytes, memory_advice, step_of
from lightbox.paper.pretrained import find_pretrained
from medthink.config import resolve

LORA = ("adapter.kind=lora", "model.dtype=bf16")
NF4 = (*LORA, "adapter.quant=nf4", "train.checkpoint_layers=true")


@pytest.fixture(scope="module")
def seven_billion(llava_folder, tmp_path_factory):
    """A folder that says it is Qwen2.5-VL-7B; its weights are not looked at here."""
    folder = shutil.copytree(llava_folder, tmp_path_factory.mktemp("qwen") / "weights")
    (folder / "config.json").write_text(json.dumps(PUBLISHED["qwen2.5-vl-7b"].config))
    return folder


@pytest.fixture
def card(monkeypatch):
    """A function that puts cards of so many MiB into this machine."""
    return lambda *sizes: monkeypatch.setattr(
        machine, "gpu_names", lambda: tuple(f"Card, {size} MiB" for size in sizes)
    )


def check(cfg):
    check_fits(cfg, find_pretrained(cfg.model.backbone))


def asked(folder, *more, device="cuda"):
    return resolve(["preset=smoke", "run.seed=0", f"model.backbone={folder}", f"run.device={device}", *more])


def test_base_in_sixteen_bits_does_not_fit_twelve_gib_and_the_message_says_what_does(seven_billion, card):
    card(8192, 12288)
    with pytest.raises(RequestError) as refused:
        check(asked(seven_billion, *LORA))
    assert "the largest card here has 12 GiB" in refused.value.given
    assert "most of it language weights (12.2 GiB)" in refused.value.why
    assert refused.value.do.startswith("Set ")
    assert "adapter.quant=nf4" in refused.value.do


def test_four_bits_fit(seven_billion, card):
    card(12288)
    check(asked(seven_billion, *NF4))


def test_nothing_fits_a_very_small_card(seven_billion, card):
    card(4096)
    with pytest.raises(RequestError, match="Use a smaller model or a larger card"):
        check(asked(seven_billion, *NF4))


@pytest.mark.parametrize("more", [("run.device=cpu",), ("objective.is_trained=false",)])
def test_nothing_is_refused_without_a_training_on_a_card(seven_billion, card, more):
    card(4096)
    check(asked(seven_billion, *NF4, *more))


def test_without_a_card_nothing_is_known(seven_billion, card):
    card()
    assert gpu_bytes() == []
    check(asked(seven_billion, *NF4))


def test_rows_hold_image_prompt_and_target(seven_billion, t5_folder):
    cfg = asked(seven_billion, *NF4, "model.image_px=448", device="cpu")
    row = step_of(cfg, find_pretrained(str(seven_billion)), batch=2, prompt_tokens=100, target_tokens=30)
    assert (row.batch, row.tokens, row.supervised) == (2, 16 * 16 + 100 + 30, 30)
    row = step_of(asked(t5_folder), find_pretrained(str(t5_folder)), batch=1, prompt_tokens=100, target_tokens=30)
    assert (row.tokens, row.supervised, row.images.count) == (100, 30, 0)


@pytest.mark.parametrize("folder", ["t5_folder", "llava_folder", "seven_billion"])
def test_advice_names_the_largest_part(folder, request, card):
    card(12288)
    place = request.getfixturevalue(folder)
    say = memory_advice(asked(place, *LORA), find_pretrained(str(place)))
    assert " predicted most are " in say(4)
