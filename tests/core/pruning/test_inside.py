"""FastV and PyramidDrop: hooks between layers, one row, inference."""

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.pruning.pipeline import prune

SUPPORTED = ("llava-1.5-7b", "llava-next", "qwen2-vl-7b", "qwen2.5-vl-7b")
INSIDE = {"where": "inside_llm"}
METHODS = {"fastv": {"layer": 1}, "pyramid_drop": {"layers": (1,)}}


@pytest.fixture(params=SUPPORTED)
def supported(request, plain_models):
    return plain_models(request.param)


def generate(model, inputs):
    return model.generate(
        **inputs,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
def test_whole_budget_is_bitwise_the_unpruned_model(supported, plain_models, method, attention):
    own = plain_models(supported.name, attention)
    inputs = own.inputs([3])
    expected = generate(own.model, inputs)
    with prune(own.model, method, 1.0, **INSIDE, **METHODS[method]):
        actual = generate(own.model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(actual.logits, expected.logits, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_later_tokens_read_what_stayed_at_the_positions_it_had(supported, plain_models, method, attention):
    """Decoding step by step gives what reading prompt and answer at once gives, with the same tokens dropped."""
    own = plain_models(supported.name, attention)
    inputs = own.inputs([0])
    with prune(own.model, method, 0.5, **INSIDE, **METHODS[method]) as handle:
        made = generate(own.model, inputs)
        report = handle.report()
        kept = report.kept[0][0][0]
    assert report.tokens_after == [-(-report.tokens_before[0] // 2)]
    lengths = [made.past_key_values.get_seq_length(layer) for layer in range(2)]
    dropped = int((~kept).sum())
    assert dropped > 0
    assert lengths[0] - lengths[1] == dropped
    # the second layer of a model of two reads kept tokens alone: hide the others from it
    ids = torch.cat([inputs["input_ids"], made.sequences[:, inputs["input_ids"].shape[1] :]], dim=1)
    whole = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        types = torch.zeros_like(ids)
        types[:, : inputs["input_ids"].shape[1]] = inputs["mm_token_type_ids"]
        whole["mm_token_type_ids"] = types
    places = (ids[0] == own.image_token).nonzero().flatten()[~kept]

    def hide(_module, args, kwargs):
        length = args[0].shape[1]
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        mask[:, places] = torch.finfo(torch.float32).min
        return args, kwargs | {"attention_mask": mask[None, None]}

    hook = own.model.model.language_model.layers[1].register_forward_pre_hook(hide, with_kwargs=True)
    logits = own.model(**whole, use_cache=False).logits
    hook.remove()
    start = inputs["input_ids"].shape[1] - 1
    for step in range(4):
        torch.testing.assert_close(made.logits[step], logits[:, start + step], rtol=0, atol=2e-5)


def test_fastv_keeps_what_the_last_token_looks_at(plain_models):
    own = plain_models("llava-1.5-7b", "eager")
    inputs = own.inputs([0])
    with torch.no_grad():
        looks = own.model(**inputs, output_attentions=True).attentions[0].mean(dim=1)[0, -1]
    is_image = inputs["input_ids"][0] == own.image_token
    expected = torch.zeros(16, dtype=torch.bool)
    expected[looks[is_image].topk(5).indices] = True
    with prune(own.model, "fastv", 5, **INSIDE, layer=1) as handle, torch.no_grad():
        own.model(**inputs)
    assert torch.equal(handle.report().kept[0][0][0], expected)


def test_stages_of_a_pyramid_leave_the_budget_at_the_last(plain_models):
    own = plain_models("llava-1.5-7b")
    with pytest.raises(RequestError, match="between 1 and 1"):
        prune(own.model, "pyramid_drop", 0.125, **INSIDE, layers=(1, 2))
    handle = prune(own.model, "pyramid_drop", 0.125, **INSIDE)
    assert {layer: count(576) for layer, count in handle.stages.items()} == {1: 72}


def test_what_cannot_be_is_refused(plain_models):
    own = plain_models("llava-1.5-7b")
    for settings, words in (
        ({"layer": 2}, "layer between 1 and 1"),
        ({"layer": 1, "positions": "compact"}, "positions='keep'"),
        ({"layer": 1, "lengths": "original"}, "lengths='pruned'"),
    ):
        with pytest.raises(RequestError, match=words):
            prune(own.model, "fastv", 0.5, **INSIDE, **settings)
    with pytest.raises(RequestError, match="norm queries and keys"):
        prune(plain_models("medgemma-4b").model, "fastv", 0.5, **INSIDE, layer=1)
    with prune(own.model, "fastv", 0.5, **INSIDE, layer=1):
        with pytest.raises(RequestError, match="one whole prompt at a time"):
            own.model(**own.inputs([0, 1]))
        own.model.train()
        with pytest.raises(RequestError, match=r"model\.eval"):
            own.model(**own.inputs([0]))
        own.model.eval()
        with pytest.raises(RequestError, match="being pruned"):
            prune(own.model, "random", 0.5)


def test_exit_restores_the_model(plain_models):
    own = plain_models("qwen2.5-vl-7b")
    inputs = own.inputs([0])
    with torch.no_grad():
        expected = own.model(**inputs).logits
        with prune(own.model, "fastv", 0.5, **INSIDE, layer=1):
            changed = own.model(**inputs).logits
        assert torch.equal(own.model(**inputs).logits, expected)
    assert changed.shape[1] < expected.shape[1]
    assert not any(layer._forward_pre_hooks for layer in own.model.model.language_model.layers)
