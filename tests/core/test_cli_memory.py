"""`lightbox memory`: what it prints, what it refuses, and that it needs no torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightbox.adapters.memory.prediction import SPREAD, predict
from lightbox.adapters.memory.request import Request
from lightbox.backbones.families import family_of
from lightbox.backbones.named import NAMED, config_of
from lightbox.bench import ledger
from lightbox.cli.app import load
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.report import gpus

LORA, QLORA = AdapterConfig(kind="lora"), AdapterConfig(kind="lora", quant="nf4")


def ask(*arguments):
    load("memory").main(args=[*arguments], standalone_mode=False)


def a_request(model="qwen2.5-vl-7b", **changes):
    return Request(NAMED[model], family_of(NAMED[model], name=model), **({"adapter": QLORA} | changes))


def test_parts_add_up_and_a_quantised_base_is_the_largest_of_them(capsys):
    ask("--model", "qwen2.5-vl-7b", "--json")
    said = json.loads(capsys.readouterr().out)
    assert sum(said["parts"].values()) == said["total_bytes"]
    assert max(said["parts"], key=said["parts"].get) == "quantised weights"
    assert sum(said["counts"].values()) == pytest.approx(8.292e9, rel=1e-3)
    assert said["status"] == gpus.PREDICTED == "predicted ± 5%, not measured"
    assert said["spread"] == SPREAD
    assert "traced_tensor_bytes" not in said


def test_the_largest_batch_fits_and_one_row_more_does_not(capsys):
    ask("--model", "medgemma-4b", "--json")
    largest = json.loads(capsys.readouterr().out)["largest_batch"]
    step = a_request("medgemma-4b")
    for card in gpus.GPUS_GB:
        assert predict(replace(step, batch=largest[str(card)])).total <= gpus.usable_bytes(card)
        assert predict(replace(step, batch=largest[str(card)] + 1)).total > gpus.usable_bytes(card)


def test_fewer_bits_fewer_visual_tokens_and_a_smaller_optimiser_take_less():
    whole = predict(a_request()).total
    assert predict(a_request(adapter=AdapterConfig())).total > predict(a_request(adapter=LORA)).total > whole
    assert predict(a_request(keep=0.25)).total < whole
    assert predict(a_request(optimizer="adamw_8bit")).total < whole
    assert predict(a_request(checkpoint_layers=False)).total > whole


@pytest.mark.slow
def test_every_model_known_by_name_is_in_the_table():
    rows = list(gpus.table(Path("absent.csv")))
    assert {row[0] for row in rows} == set(NAMED)
    assert all(len(row) == len(gpus.TITLES) and row[-1] == gpus.PREDICTED for row in rows)


def test_a_recorded_measurement_of_this_very_step_is_named(tmp_path):
    rows, step = tmp_path / "results.csv", a_request()
    row = {
        "case": gpus.describe("qwen2.5-vl-7b", step),
        "peer": gpus.PEER,
        "value": 7168.0,
        "unit": "MiB",
        "ratio": 1,
        "notes": "",
    }
    traced = row | {"peer": "traced peak of tensors", "value": 1.0}
    ledger.append(rows, gpus.BENCHMARK, [row, traced])
    assert gpus.said_of(gpus.recorded(rows, row["case"])).startswith("measured 7.00 GiB of tensors")
    assert gpus.recorded(rows, gpus.describe("qwen2.5-vl-7b", a_request(tokens=512))) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lava-7b"], "Did you mean"),
        (["--model", "Qwen/Qwen2.5-VL-7B-Instruct"], "config.json of a hub id is not on this machine"),
        (["--model", "llava-1.5-7b", "--tokens", "9000"], "4096 positions"),
        (["--model", "llava-1.5-7b", "--tokens", "100"], "its image takes 576 tokens"),
        (["--model", "llava-1.5-7b", "--batch", "0"], "--batch is 0"),
        (["--model", "llava-1.5-7b", "--adapter", "qlra"], "Did you mean --adapter=qlora"),
        (["--model", "llava-1.5-7b", "--keep", "0"], "share of visual tokens"),
        (["--model", "unifiedqa-t5-base", "--tokens", "512", "--keep", "0.5"], "reads text only"),
        (["--model", "llava-1.5-7b", "--adapter", "none", "--card", "24"], "adapter.kind=lora"),
        (["--model", "llava-1.5-7b", "--batch", "64", "--card", "12"], "A batch of 12 fits|A batch of 11 fits"),
        (["--model", "llava-1.5-7b", "--card", "2"], "nothing fits"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(arguments, message):
    with pytest.raises(RequestError, match=message):
        ask(*arguments)


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
    assert "24 GB card" in done.stdout


def test_what_a_number_may_be_off_by_is_said_beside_it(capsys):
    ask("--model", "tiny/llava", "--tokens", "128", "--supervised", "8")
    said = " ".join(capsys.readouterr().out.split())
    assert "closed form ± 5% of tensors" in said
    assert "context 0.6 GiB and gaps 5 % of values are allowances" in said
    ask("--model", "tiny/llava", "--tokens", "128", "--supervised", "8", "--device", "cpu")
    assert "context" not in capsys.readouterr().out


@pytest.mark.slow
def test_exact_traces_the_real_model_and_says_how_far_the_closed_form_is(capsys):
    arguments = ["--model", "tiny/llava", "--tokens", "128", "--supervised", "8", "--adapter", "lora", "--exact"]
    ask(*arguments, "--json")
    said = json.loads(capsys.readouterr().out)
    closed = said["total_bytes"] - said["parts"]["context"]
    assert said["traced_tensor_bytes"] == pytest.approx(closed, rel=0.1)
    ask(*arguments)
    assert "GiB of tensors in a trace of the real model, closed form" in " ".join(capsys.readouterr().out.split())


def test_exact_decides_by_the_trace_whether_a_card_is_large_enough(monkeypatch):
    monkeypatch.setattr("lightbox.cli.memory._traced", lambda request: 30 * 1024**3)
    with pytest.raises(RequestError, match="the step takes 30"):
        ask("--model", "llava-1.5-7b", "--card", "24", "--exact")
