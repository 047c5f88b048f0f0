"""`lightbox memory`: what it prints, what it refuses, and that it needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightbox.adapters.memory import cards, fits
from lightbox.adapters.memory.named import NAMED, config_of, describe
from lightbox.adapters.memory.prediction import Request, predict
from lightbox.backbones.families import family_of
from lightbox.bench import ledger
from lightbox.cli.app import load
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError


def ask(*arguments):
    load("memory").main(args=[*arguments], standalone_mode=False)


def request(**changes):
    config = NAMED["qwen2.5-vl-7b"]
    qlora = AdapterConfig(kind="lora", quant="nf4")
    return Request(config, family_of(config, name="qwen2.5-vl-7b"), **({"adapter": qlora} | changes))


def test_parts_add_up_and_a_quantised_base_is_the_largest_of_them(capsys):
    ask("--model", "qwen2.5-vl-7b", "--json")
    said = json.loads(capsys.readouterr().out)
    assert sum(said["parts_bytes"].values()) == said["total_bytes"]
    assert max(said["parts_bytes"], key=said["parts_bytes"].get) == "quantised weights"
    assert sum(said["parameters"].values()) == pytest.approx(8.292e9, rel=1e-3)
    assert said["status"] == cards.PREDICTED


def test_the_largest_batch_fits_and_one_row_more_does_not(capsys):
    ask("--model", "medgemma-4b", "--json")
    batches = json.loads(capsys.readouterr().out)["largest_batch"]
    config = NAMED["medgemma-4b"]
    step = Request(config, family_of(config, name="medgemma-4b"), AdapterConfig(kind="lora", quant="nf4"))
    for card in cards.CARDS_GB:
        usable = cards.usable_bytes(card)
        assert predict(fits.with_batch(step, batches[f"{card} GB"])).total <= usable
        assert predict(fits.with_batch(step, batches[f"{card} GB"] + 1)).total > usable


def test_fewer_bits_fewer_visual_tokens_and_a_smaller_optimiser_take_less():
    whole = predict(request()).total
    assert predict(request(adapter=AdapterConfig(kind="lora"))).total > whole
    assert predict(request(adapter=AdapterConfig())).total > predict(request(adapter=AdapterConfig(kind="lora"))).total
    assert predict(request(keep=0.25)).total < whole
    assert predict(request(optimizer="adamw_8bit")).total < whole
    assert predict(request(checkpoint_layers=False)).total > whole


def test_every_model_known_by_name_is_in_the_table():
    rows = list(fits.table(Path("absent.csv")))
    assert {row[0] for row in rows} == set(NAMED)
    assert all(row[-1] == cards.PREDICTED for row in rows)


def test_a_recorded_measurement_of_this_very_step_is_named(tmp_path):
    rows, step = tmp_path / "results.csv", request()
    row = {"case": describe("qwen2.5-vl-7b", step), "peer": "", "value": 7168.0, "unit": "MiB", "ratio": 1, "notes": ""}
    ledger.append(rows, cards.BENCHMARK, [row])
    assert fits.fit("qwen2.5-vl-7b", step, rows).status.startswith("measured 7.00 GiB of tensors")
    assert fits.fit("qwen2.5-vl-7b", request(tokens=512), rows).status == cards.PREDICTED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lava-7b"], "Did you mean"),
        (["--model", "Qwen/Qwen2.5-VL-7B-Instruct"], "config.json of a hub id is not on this machine"),
        (["--model", "llava-1.5-7b", "--tokens", "9000"], "positions for 4096 tokens"),
        (["--model", "llava-1.5-7b", "--tokens", "100"], "576 image tokens"),
        (["--model", "llava-1.5-7b", "--batch", "0"], "--batch is 0"),
        (["--model", "llava-1.5-7b", "--adapter", "qlra"], "Did you mean --adapter=qlora"),
        (["--model", "llava-1.5-7b", "--keep", "0"], "share of the visual tokens"),
        (["--model", "llava-1.5-7b", "--adapter", "none", "--card", "24"], "adapter.kind=lora"),
        (["--model", "llava-1.5-7b", "--card", "2"], "choose a smaller model or card"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(arguments, message):
    with pytest.raises(RequestError, match=message):
        ask(*arguments)


def test_a_card_that_is_too_small_is_told_the_settings_that_fit():
    assert fits.settings_for(request(batch=16), 12) == "optim.micro_batch_size=4"
    assert fits.settings_for(request(), 2) == ""


def test_a_folder_with_a_config_is_enough(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(NAMED["llava-1.5-7b"]))
    assert config_of(str(tmp_path)) == json.loads(json.dumps(NAMED["llava-1.5-7b"]))


def test_memory_needs_no_torch():
    code = (
        "import sys; from lightbox.cli.app import load; "
        "load('memory').main(args=['--model', 'tiny/llava', '--tokens', '128', '--supervised', '8'], "
        "standalone_mode=False); assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Largest batch by card" in done.stdout
