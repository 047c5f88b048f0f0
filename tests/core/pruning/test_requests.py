"""What `prune` refuses, in three parts and before anything runs, and what it reports."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightbox.backbones.loading import load
from lightbox.errors import RequestError
from lightbox.pruning.measure import Drift, Timing
from lightbox.pruning.pipeline import images_by_row, prune
from lightbox.testing.shrunk import save_shrunk


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"method": "divprun"}, "Did you mean 'divprune'"),
        ({"budget": 0}, "above 0"),
        ({"budget": 1.2}, "at most 1.0"),
        ({"positions": "kept"}, "keep, keep_rank, compact"),
        ({"where": "in_llm"}, "inside_llm"),
        ({"where": "inside_llm"}, "where='before_llm'"),
        ({"method": "fastv"}, "where='inside_llm'"),
        ({"alpa": 0.5}, "Did you mean 'alpha'"),
        ({"method": "random", "floor_uniform": 1.5}, "between 0.0 and 1.0"),
        ({"method": "divprune", "floor_uniform": 0.2}, "every token a score"),
        ({"method": "lesion_safe"}, "finding_map="),
        ({"method": "hired", "compat": "code"}, "reference_code"),
        ({"lengths": "whole"}, "original"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(llava, request_, words):
    with pytest.raises(RequestError, match=words) as error:
        prune(llava.model, **({"method": "divprune"} | request_))
    assert all(part.endswith((".", "?", "!")) for part in (error.value.given, error.value.why, error.value.do))


def test_a_family_without_an_adapter_is_refused():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
    with pytest.raises(RequestError, match="type 'llama'.*llava, llava_next, qwen2_vl, qwen2_5_vl, gemma3"):
        prune(model, "random", 0.5)


def test_a_model_without_its_head_is_refused(llava):
    with pytest.raises(RequestError, match="A LlavaModel.*LlavaForConditionalGeneration"):
        prune(llava.model.model, "random", 0.5)


def test_a_second_prune_is_refused_and_the_first_goes_on(llava):
    inputs = llava.inputs()
    waiting = prune(llava.model, "random", 0.5)
    with prune(llava.model, "cls_topk", 0.5) as handle, torch.no_grad():
        expected = llava.model(**inputs).logits
        with pytest.raises(RequestError, match="being pruned"):
            prune(llava.model, "random", 0.5)
        with pytest.raises(RequestError, match="being pruned"):
            waiting.__enter__()
        assert torch.equal(llava.model(**inputs).logits, expected)
        assert handle.report().method == "cls_topk"
    with waiting, torch.no_grad():
        llava.model(**inputs)


def test_more_kept_than_present_is_refused_before_the_language_model(llava):
    calls = []
    hook = llava.model.model.language_model.register_forward_pre_hook(lambda *_: calls.append(1))
    with prune(llava.model, "random", 64), pytest.raises(RequestError, match="64 tokens, and an image has 16"):
        llava.model(**llava.inputs())
    hook.remove()
    assert not calls


def test_scores_that_are_no_numbers_are_refused(llava):
    inputs = llava.inputs([0])
    inputs["pixel_values"] = inputs["pixel_values"] * float("nan")
    with prune(llava.model, "cls_topk", 0.5), pytest.raises(RequestError, match="NaN"):
        llava.model(**inputs)


def test_maps_that_do_not_fit_are_refused(llava):
    inputs = llava.inputs([0, 1])
    for maps, words in (
        (lambda _: [torch.zeros(4, 4)], "1 entries for 2 images"),
        (lambda _: [torch.full((4, 4), 2.0)] * 2, "shares in"),
        (lambda _: [torch.zeros(4)] * 2, "rows and columns"),
    ):
        with (
            prune(llava.model, "lesion_safe", 0.5, finding_map=maps),
            pytest.raises(RequestError, match=words),
        ):
            llava.model(**inputs)


def test_prompts_and_images_that_do_not_match_are_refused(llava):
    inputs = llava.inputs([0, 1])
    with prune(llava.model, "random", 0.5), pytest.raises(RequestError, match="fills its own places"):
        llava.model(**inputs | {"pixel_values": inputs["pixel_values"][:1]})
    with pytest.raises(RequestError, match="4, 4"):
        images_by_row([4, 4], [6, 2])


def test_a_static_cache_is_refused_by_name(llava):
    with prune(llava.model, "random", 0.5), pytest.raises(RequestError, match="static cache"):
        llava.model.generate(**llava.inputs(), max_new_tokens=2, cache_implementation="static")


def test_places_of_logits_are_refused_unless_lengths_are_original(llava):
    inputs = llava.inputs([0])
    where = torch.tensor([5, 20])
    with prune(llava.model, "random", 0.5), pytest.raises(RequestError, match="lengths='original'"):
        llava.model(**inputs, logits_to_keep=where)
    with prune(llava.model, "random", 0.5, lengths="original"), torch.no_grad():
        assert llava.model(**inputs, logits_to_keep=where).logits.shape[1] == 2


def test_a_report_needs_an_image_first(llava):
    with prune(llava.model, "random", 0.5) as handle, pytest.raises(RequestError, match="before any image"):
        handle.report()


def test_measuring_times_both_and_says_when_nothing_is_gained(llava):
    with prune(llava.model, "random", 0.5) as handle:
        report = handle.measure(llava.inputs(), repeats=2)
        assert report.pruned.first_token_s > 0
        assert report.unpruned.first_token_s > 0
        assert report.pruned.peak_bytes is None  # counted on a GPU only
        assert report.tokens_after == [8] * 5
        handle.timings = {"pruned": Timing(0.02, None), "unpruned": Timing(0.01, None)}
        assert "no faster here" in handle.report().warnings[0]
        handle.drift = None
        handle.timings = {"pruned": Timing(0.01, None), "unpruned": Timing(0.02, None)}
        assert handle.report().warnings == []
        assert handle.report().speedup == 2


def test_a_method_is_measured_beside_random_choices(llava):
    inputs = llava.inputs()
    with prune(llava.model, "random", 0.5, seed=1) as handle:
        report = handle.measure(inputs, repeats=1, draws=2)
        assert 0 < report.drift.own == report.drift.random[1], "the second draw is of the same seed"
        assert report.drift.random[0] != report.drift.own
        assert handle.request.options.seed == 1, "the request is the caller's again"
        assert handle.measure(inputs, repeats=1, draws=0).drift is None
        for own, is_warned in ((2.0, True), (1.0, True), (0.5, False)):
            handle.drift = Drift(own, [1.0, 1.0, 3.0])
            assert any("no better than random here" in text for text in handle.report().warnings) == is_warned
        with pytest.raises(RequestError, match="draws is -1"):
            handle.measure(inputs, draws=-1)
    with prune(llava.model, "divprune", 1.0) as handle:
        report = handle.measure(inputs, repeats=1, draws=1)
        assert report.drift.own == 0
        assert not any("random" in text for text in report.warnings), "nothing went, so nothing can be better"


def test_a_backbone_trains_and_answers_pruned(tmp_path):
    """Its loss reads states by place, which `lengths="original"` keeps."""
    backbone = load(str(save_shrunk("llava-1.5-7b", tmp_path / "llava")))
    from lightbox.testing.plain_models import PICTURES  # noqa: PLC0415

    images, prompts = PICTURES[:2], ["Is there an effusion?", "Side?"]
    batch = backbone.prepare(images, prompts, ["yes, on the left", "no"], max_tokens=400)
    whole = backbone.loss(batch)
    with prune(backbone, "divprune", 1.0, lengths="original"):
        assert torch.equal(backbone.loss(batch)[0], whole[0])
    with prune(backbone, "divprune", 0.25, lengths="original") as handle:
        loss, tokens, _ = backbone.loss(batch)
        loss.backward()
        assert tokens == whole[1]
        assert handle.report().tokens_after == [4, 4]
        assert backbone.answer(images, prompts, max_new_tokens=3)
