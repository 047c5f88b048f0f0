"""`lightbox bench pruning`: prompts are shorter on one side alone, and what is said is what was timed."""

import time
from dataclasses import replace

import pytest

from lightbox.adapters.memory.request import Request
from lightbox.backbones.families import family_of
from lightbox.backbones.published import shrunk_values
from lightbox.bench import pruning as bench
from lightbox.bench.random_models import build, make_batch
from lightbox.cli import main
from lightbox.errors import RequestError, WorkError
from lightbox.pruning import pipeline
from lightbox.testing.plain_models import PRUNABLE

RUN = {"repeats": 2, "new_tokens": 2}


def tiny_request(name="llava-1.5-7b"):
    config = shrunk_values(name)
    request = Request(config, family_of(config, name=name), dtype="fp32", device="cpu", supervised=1)
    return replace(request, tokens=request.row_images.visual + 8)


@pytest.fixture(scope="module")
def rows():
    return bench.run(request=tiny_request(), budget=0.25, **RUN)


def test_each_method_is_compared_with_the_same_model_unpruned(rows):
    assert [(row["case"].partition(",")[0], row["peer"]) for row in rows[:4]] == [
        ("time to first token", bench.UNPRUNED),
        ("2 new tokens", bench.UNPRUNED),
        ("LM prefill alone", bench.UNPRUNED),
        ("selection", bench.OWN_TIME),
    ]
    # the language model's part is the same whatever chose the tokens
    assert len(rows) == 3 * len(bench.METHODS) + 1
    for name in bench.METHODS:
        assert sum(f", {name} at 25%, CPU" in row["case"] for row in rows) == 3 + (name == bench.METHODS[0])
    assert all(row["value"] > 0 and row["ratio"] > 0 for row in rows)
    assert all("24 -> 12 tokens" in row["notes"] for row in rows)
    assert all("p20" in row["notes"] and "p80" in row["notes"] for row in rows)
    words = (
        "random weights, tower 32 x 3 (pruned calls leave out layers that nothing reads), LM 64 x 2, FFN 128, batch 1"
    )
    assert all(words in row["notes"] for row in rows)


def test_goals_stand_beside_what_is_held_to_them(rows):
    goals = {row["case"].partition(" at ")[0]: row["goal"] for row in rows}
    assert goals["time to first token, cls_topk"] == goals["time to first token, random"] == ">= 2.5"
    assert goals["LM prefill alone, cls_topk"] == ">= 3.5"
    assert goals["selection, cls_topk"] == goals["selection, divprune"] == "<= 0.05"
    assert goals["selection, cdpruner"] == goals["selection, random"] == ""


def test_a_selection_is_part_of_its_call(rows):
    shares = [row["ratio"] for row in rows if row["peer"] == bench.OWN_TIME]
    assert all(0 < share < 1 for share in shares)


@pytest.mark.parametrize("name", PRUNABLE)
def test_either_side_gives_the_language_model_its_own_prompt(name):
    request = tiny_request(name)
    backbone = build(request.config, quant="none", dtype="fp32", device="cpu")
    visual = request.row_images.visual
    comparison = bench.Comparison(backbone.core, make_batch(backbone, request).inputs, "random", 0.25, request)
    with comparison.pruning:
        lengths = [comparison._prompt(is_pruned)["inputs_embeds"].shape[1] for is_pruned in (True, False)]
    assert lengths == [8 + round(visual / 4), 8 + visual]


def test_a_selection_that_takes_long_shows_in_its_share_and_in_the_time_to_the_first_token(monkeypatch):
    choose = pipeline.choose
    monkeypatch.setattr(pipeline, "choose", lambda *args: time.sleep(0.05) or choose(*args))
    rows = bench.run(methods=["random"], request=tiny_request(), **RUN)
    ratios = {row["case"].partition(",")[0]: row["ratio"] for row in rows}
    assert ratios["selection"] > 0.5
    assert ratios["time to first token"] < 0.5
    assert ratios["LM prefill alone"] > 0.3


def test_a_side_that_prunes_nothing_is_not_timed(monkeypatch):
    monkeypatch.setattr(pipeline.Pruning, "_pruned", lambda self, inputs, encoded: inputs)
    with pytest.raises(WorkError, match="random at a budget of 0.2 left 24 of 24 tokens, 16 of them visual"):
        bench.run(methods=["random"], request=tiny_request(), **RUN)


def test_steps_of_the_pipeline_are_what_they_were_behind_a_watch():
    before = pipeline.choose
    with bench.watched(("choose",), "cpu"):
        assert pipeline.choose is not before
    assert pipeline.choose is before
    with pytest.raises(RuntimeError), bench.watched(("choose",), "cpu"):
        raise RuntimeError
    assert pipeline.choose is before


@pytest.mark.parametrize("options", [{"methods": ["fastv"]}, {"methods": ["lesion_safe"]}, {"budget": 1.0}])
def test_what_cannot_be_measured_is_refused(options):
    with pytest.raises(RequestError, match=r"--method is|--budget is"):
        bench.run(**options)


def test_the_model_of_a_device_has_the_sizes_that_are_said():
    small, large = (bench.request_for(device) for device in ("cpu", "cuda"))
    assert (small.row_images.visual, small.tokens) == (576, 640)
    assert (large.row_images.visual, large.dtype) == (2928, "bf16")


def test_the_command_asks_for_what_it_was_told(monkeypatch, capsys):
    row = {"case": "a", "peer": "b", "value": 1.5, "unit": "ms", "ratio": 2.5, "goal": ">= 2.5", "notes": "n"}
    asked = []
    monkeypatch.setattr(bench, "run", lambda **options: asked.append(options) or [row])
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "pruning", "--method", "hired", "--budget", "0.1", "--repeats", "3"])
    assert asked == [{"methods": ["hired"], "budget": 0.1, "repeats": 3}]
    assert ">= 2.5" in capsys.readouterr().out
