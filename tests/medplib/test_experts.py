"""Experts out of dense models: what must be bitwise equal, what within 1e-6, who gets gradients, what is refused."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lightbox.errors import RequestError
from lightbox.paper.wider_networks import widen_networks
from lightbox.testing.shrunk import shrunk_config
from medplib.assembly import add_experts, average_experts, load_experts, mixtures, save_experts
from medplib.experts import MixtureSettings, TokenRouter
from medplib.mixtral import from_mixtral, to_mixtral
from medplib.routing import routed_to

LAYERS = "model.layers"
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,  # whole vectors: torch rounds the rest of a row of activations in another way
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 61,
    "initializer_range": 0.05,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
TOLERANCE = {"rtol": 0, "atol": 1e-6}


def llama(seed=0, **changes):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(SIZES | changes))).eval()


def qwen2(seed=0):
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()


def qwen2_5_vl(seed=0):
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(shrunk_config("qwen2.5-vl-7b")).eval()


FAMILIES = {
    "llama": (llama, LAYERS),
    "qwen2": (qwen2, LAYERS),
    "qwen2_5_vl": (qwen2_5_vl, "model.language_model.layers"),
}


def trained(model, layers, seed):
    """The model after a stage that changed its feed-forward networks only."""
    other = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in other.get_submodule(layers):
            for parameter in layer.mlp.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return other


def batch(rows=3, t=11, lengths=(11, 7, 4), *, left=False, vocabulary=61):
    """Token ids and mask, padded on one side."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(10, vocabulary, (rows, t), generator=generator)
    mask = torch.arange(t) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": (mask.flip(1) if left else mask).long()}


@torch.no_grad()
def logits(model, inputs):
    """Of tokens that are no padding."""
    return model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]


@pytest.fixture(scope="module")
def stages():
    """A dense Llama and two experts that were trained from it."""
    base = llama()
    return base, {"grounding": trained(base, LAYERS, 1), "language": trained(base, LAYERS, 2)}


def mixed(base, sources, layers=LAYERS, **settings):
    return add_experts(copy.deepcopy(base), sources, layers=layers, settings=MixtureSettings(**settings)).eval()


# ---- exactness


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weight", ["one", "straight_through"])
def test_two_copies_of_a_dense_model_are_that_model_to_the_last_bit(family, weight):
    make, layers = FAMILIES[family]
    dense = make()
    both = mixed(dense, {"a": dense, "b": dense.state_dict()}, layers, weight=weight)
    vocabulary = dense.config.get_text_config().vocab_size - 20
    inputs = batch(t=40, lengths=(40, 40, 40), vocabulary=min(61, vocabulary))
    seen = count_rows(both)
    assert torch.equal(logits(both, inputs), logits(dense, inputs))
    # a product of fewer rows than that is another kernel's, here as in a dense layer, and rounds in another order
    assert all(min(counts.values()) >= 4 for counts in seen.values())
    with torch.enable_grad():
        assert torch.equal(both(**inputs, use_cache=False).logits, dense(**inputs, use_cache=False).logits)


def test_copies_with_a_row_or_two_each_are_the_dense_model_but_for_rounding(stages):
    base, _ = stages
    both = mixed(base, {"a": base, "b": base})
    few = batch(rows=1, t=3, lengths=(3,))
    torch.testing.assert_close(logits(both, few), logits(base, few), **TOLERANCE)


def test_copies_with_two_experts_a_token_are_the_dense_model(stages):
    base, _ = stages
    both = mixed(base, {"a": base, "b": base}, top_k=2, weight="prob")
    torch.testing.assert_close(logits(both, batch()), logits(base, batch()), **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [False, True])
def test_forced_routing_is_the_model_that_the_expert_came_from(family, left):
    make, layers = FAMILIES[family]
    base = make()
    sources = {"grounding": trained(base, layers, 1), "language": trained(base, layers, 2)}
    both = mixed(base, sources, layers)
    vocabulary = min(61, base.config.get_text_config().vocab_size - 20)
    padded, whole = batch(left=left, vocabulary=vocabulary), batch(lengths=(11, 11, 11), vocabulary=vocabulary)
    for name, source in sources.items():
        with routed_to(both, name):
            torch.testing.assert_close(logits(both, padded), logits(source, padded), **TOLERANCE)
            assert torch.equal(logits(both, whole), logits(source, whole))  # as many rows, the same bits
    assert (logits(both, whole) - logits(sources["grounding"], whole)).abs().max() > 1e-3


def test_each_row_can_have_its_own_expert(stages):
    base, sources = stages
    both, inputs = mixed(base, sources), batch()
    names = ("language", "grounding", "language")
    with routed_to(both, names):
        out = both(**inputs, use_cache=False).logits
    for row, name in enumerate(names):
        is_token = inputs["attention_mask"][row].bool()
        own = sources[name](**inputs, use_cache=False).logits[row]
        torch.testing.assert_close(out[row][is_token], own[is_token], **TOLERANCE)
    with routed_to(both, names[:2]), pytest.raises(RequestError, match="2 experts for a batch of 3 rows"):
        both(**inputs)
    with pytest.raises(RequestError, match=r"'vision'.*The experts are grounding, language"), routed_to(both, "vision"):
        pass


@pytest.mark.parametrize("settings", [{}, {"weight": "prob"}, {"weight": "prob", "top_k": 2}])
@pytest.mark.parametrize("left", [False, True])
def test_the_output_of_a_row_does_not_depend_on_its_batch(stages, settings, left):
    base, sources = stages
    both, inputs = mixed(base, sources, **settings), batch(left=left)
    together = both(**inputs, use_cache=False).logits
    for row in range(3):
        is_token = inputs["attention_mask"][row].bool()
        alone = both(input_ids=inputs["input_ids"][row][is_token][None], use_cache=False).logits[0]
        torch.testing.assert_close(together[row][is_token], alone, **TOLERANCE)


@pytest.mark.parametrize("left", [False, True])
def test_generation_with_a_cache_says_what_whole_forwards_say(stages, left):
    base, sources = stages
    both, inputs = mixed(base, sources), batch(left=True) if left else batch(rows=1, lengths=(11,))
    ids = both.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    for row in range(len(ids)):
        own = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
        for _ in range(4):
            own = torch.cat([own, both(input_ids=own).logits[:, -1:].argmax(-1)], dim=1)
        assert own[0, -4:].tolist() == ids[row, -4:].tolist()


# ---- rows and gradients


def count_rows(model):
    """Rows that entered each expert of each layer, filled while the model runs."""
    counts = {path: dict.fromkeys(part.experts, 0) for path, part in mixtures(model)}
    for path, part in mixtures(model):
        for name, expert in part.experts.items():

            def add(module, args, own=counts[path], name=name):
                own[name] += len(args[0])

            expert.register_forward_pre_hook(add)
    return counts


@pytest.mark.parametrize("settings", [{}, {"weight": "prob", "top_k": 2}])
def test_rows_that_enter_experts_are_tokens_times_k_and_never_padding(stages, settings):
    base, sources = stages
    both = mixed(base, sources, **settings)
    counts = count_rows(both)
    both(**batch(), use_cache=False)
    assert [sum(own.values()) for own in counts.values()] == [(11 + 7 + 4) * settings.get("top_k", 1)] * 2


def test_a_batch_of_padding_alone_passes_through(stages):
    base, sources = stages
    both, nothing = mixed(base, sources), torch.zeros(2, 5, dtype=torch.long)
    assert both(input_ids=nothing + 11, attention_mask=nothing).logits.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"weight": "prob"}, True),
        ({"weight": "straight_through"}, True),
        ({"weight": "one"}, False),
        ({"weight": "prob", "top_k": 2}, True),
        ({"router": "random"}, False),
    ],
)
def test_which_weights_teach_the_router(stages, settings, learns):
    base, sources = stages
    both, inputs = mixed(base, sources, **settings).train(), batch()
    both(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    for _, part in mixtures(both):
        for row in part.router.rows.values():
            assert (row.grad is not None and bool(row.grad.abs().max() > 1e-6)) == learns


def test_mixtral_with_one_expert_a_token_teaches_its_router_nothing():
    """The trap that `straight_through` avoids: divided by its own sum the weight is 1, whatever the router says."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(mixtral_config(top_k=1)).train()
    inputs = batch()
    model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    assert all(layer.mlp.gate.weight.grad.abs().max() < 1e-8 for layer in model.model.layers)
    assert all(layer.mlp.experts.down_proj.grad.abs().max() > 1e-6 for layer in model.model.layers)


def test_layers_that_are_computed_again_give_the_same_gradients_in_any_order(stages):
    """Two forwards before one backward: each layer must find the padding of its own call."""
    base, sources = stages
    gradients = {}
    for again in (False, True):
        both = mixed(base, sources).train()
        if again:
            both.gradient_checkpointing_enable({"use_reentrant": False})
        losses = [both(**one, labels=one["input_ids"]).loss for one in (batch(), batch(lengths=(3, 9, 11)))]
        sum(losses).backward()
        gradients[again] = {name: parameter.grad for name, parameter in both.named_parameters()}
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient, **TOLERANCE)


def test_a_copy_of_the_model_reads_its_own_masks(stages):
    base, sources = stages
    both = mixed(base, sources)
    other = copy.deepcopy(both)
    both(**batch(lengths=(1, 1, 1)))
    assert torch.equal(logits(other, batch()), logits(mixed(base, sources), batch()))
    parts = dict(mixtures(other))
    assert len({id(part.routing) for part in parts.values()}) == 1
    assert all(part is not own for part, (_, own) in zip(parts.values(), mixtures(both), strict=True))


# ---- controls and layouts


def test_the_average_of_experts_is_a_dense_model(stages):
    base, sources = stages
    mean = average_experts(copy.deepcopy(base), sources, layers=LAYERS)
    name = "model.layers.1.mlp.up_proj.weight"
    wanted = (sources["grounding"].state_dict()[name] + sources["language"].state_dict()[name]) / 2
    torch.testing.assert_close(mean.state_dict()[name], wanted)
    assert mean.state_dict().keys() == base.state_dict().keys()


def mixtral_config(top_k):
    return MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=top_k, sliding_window=None, head_dim=12)


@pytest.mark.parametrize("settings", [{}, {"weight": "prob", "top_k": 2}])
def test_mixtral_and_back(stages, settings):
    base, sources = stages
    both = mixed(base, sources, **settings)
    peer = MixtralForCausalLM(mixtral_config(settings.get("top_k", 1))).eval()
    peer.load_state_dict(to_mixtral(both), strict=True)
    whole = batch(lengths=(11, 11, 11))
    torch.testing.assert_close(logits(both, whole), logits(peer, whole), **TOLERANCE)
    states, routers = from_mixtral(peer.state_dict(), ("grounding", "language"))
    again = mixed(base, states, **settings)
    for path, part in mixtures(again):
        part.router.load_state_dict(routers[path])
    assert torch.equal(logits(again, whole), logits(both, whole))
    with pytest.raises(RequestError, match="3 names for the 2 experts at model.layers.0.mlp"):
        from_mixtral(peer.state_dict(), ("a", "b", "c"))


def test_experts_are_saved_and_loaded_with_their_router(stages, tmp_path):
    base, sources = stages
    both = mixed(base, sources, weight="prob", seed=4)
    part = dict(mixtures(both))["model.layers.1.mlp"]
    torch.nn.init.normal_(part.router.rows["language"])
    save_experts(tmp_path / "experts", both)
    again = load_experts(tmp_path / "experts", copy.deepcopy(base))
    assert torch.equal(logits(again, batch()), logits(both, batch()))
    assert dict(mixtures(again))["model.layers.0.mlp"].settings == MixtureSettings(weight="prob", seed=4)
    with pytest.raises(RequestError, match="no mixture.json"):
        load_experts(tmp_path, copy.deepcopy(base))
    with pytest.raises(RequestError, match="Its layers have them already"):
        load_experts(tmp_path / "experts", again)


def test_a_saved_expert_without_one_of_its_weights_is_named(stages, tmp_path):
    base, sources = stages
    folder = save_experts(tmp_path / "experts", mixed(base, sources))
    tensors, missing = load_file(folder / "mixture.safetensors"), "model.layers.1.mlp.experts.language.up_proj.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != missing}, folder / "mixture.safetensors")
    with pytest.raises(RequestError, match=r"'language' at model\.layers\.1\.mlp: missing up_proj\.weight"):
        load_experts(folder, copy.deepcopy(base))


def test_a_saved_router_without_one_of_its_rows_is_named(stages, tmp_path):
    folder = save_experts(tmp_path / "experts", mixed(*stages))
    tensors, missing = load_file(folder / "mixture.safetensors"), "model.layers.1.mlp.router.rows.language"
    save_file({name: tensor for name, tensor in tensors.items() if name != missing}, folder / "mixture.safetensors")
    with pytest.raises(RequestError, match=r"at model\.layers\.1\.mlp: missing rows\.language"):
        load_experts(folder, copy.deepcopy(stages[0]))


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_row_of_the_router_is_that_of_the_expert_of_its_name_in_any_order(names):
    router = TokenRouter(4, names, generator=torch.Generator().manual_seed(0), is_learned=True)
    assert tuple(router.rows) == names
    states = torch.randn(3, 4)
    for place, name in enumerate(names):
        torch.testing.assert_close(router(states)[:, place], states @ router.rows[name])


def test_lora_finds_the_linear_layers_of_experts(stages):
    base, sources = stages
    wrapped = get_peft_model(mixed(base, sources), LoraConfig(r=2, target_modules=r".*\.experts\..*\.up_proj"))
    inputs = batch()
    wrapped.train()(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    learned = [name for name, p in wrapped.named_parameters() if p.requires_grad and p.grad is not None]
    assert any(".experts.grounding.up_proj.lora_B" in name for name in learned)
    assert any(".experts.language.up_proj.lora_B" in name for name in learned)


# ---- what is refused


def spoiled(model, change):
    state = dict(model.state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("model.layers.1.mlp.up_proj.weight"),
            r"'language' at model\.layers\.1\.mlp: missing up_proj",
        ),
        (
            lambda s: s.update({"model.layers.0.mlp.up_proj.lora_A": torch.ones(1)}),
            r"unexpected up_proj\.lora_A",
        ),
        (
            lambda s: s.update({"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}),
            r"of another shape up_proj\.weight",
        ),
        (
            lambda s: s.update({"model.norm.weight": torch.zeros(48)}),
            r"1 tensors .* outside the experts, such as model.norm",
        ),
        (lambda s: s.update({"seg.weight": torch.zeros(4)}), r"outside the experts, such as seg\.weight"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_by_name(stages, change, message):
    base, sources = stages
    with pytest.raises(RequestError, match=message):
        mixed(base, sources | {"language": spoiled(sources["language"], change)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda base, sources: mixed(base, {"one": base}),
            r"The experts are \['one'\], 1 for a token\. A mixture has two",
        ),
        (lambda base, sources: mixed(base, sources | {"a.b": base}), "'a.b' cannot name a module"),
        (lambda base, sources: mixed(base, sources, "model.blocks"), "layers is 'model.blocks'"),
        (lambda base, sources: mixed(mixed(base, sources), sources), "Its layers have them already"),
        (lambda base, sources: mixed(base, sources, top_k=2), "top_k is 2 and weight is straight_through"),
        (lambda base, sources: mixed(base, sources, weight="half"), "weight is 'half'"),
    ],
)
def test_requests_that_make_no_mixture_are_refused(stages, call, message):
    with pytest.raises(RequestError, match=message):
        call(*stages)


def test_a_mask_that_says_nothing_of_tokens_is_refused(stages):
    both = mixed(*stages)
    with pytest.raises(RequestError, match=r"attention_mask is a Tensor of shape \(1, 1, 11, 11\)"):
        both(input_ids=batch(rows=1, lengths=(11,))["input_ids"], attention_mask=torch.ones(1, 1, 11, 11).bool())


def test_saving_what_holds_an_adapter_is_refused(stages, tmp_path):
    both = mixed(*stages)
    get_peft_model(both, LoraConfig(r=2, target_modules=r".*\.experts\..*\.up_proj"))
    with pytest.raises(RequestError, match="The experts hold an adapter, at model.layers.0.mlp.experts.grounding"):
        save_experts(tmp_path / "experts", both)
    with pytest.raises(RequestError, match="A model without experts"):
        save_experts(tmp_path / "experts", nn.Linear(2, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wider_network_begins_as_the_one_it_was_and_can_learn_with_all_of_it(family):
    make, layers = FAMILIES[family]
    model = make()
    wide, inputs = copy.deepcopy(model), batch()
    widen_networks(wide, layers=layers)
    for own, wider in zip(model.get_submodule(layers), wide.get_submodule(layers), strict=True):
        assert wider.mlp.up_proj.out_features == 2 * own.mlp.up_proj.out_features
    torch.testing.assert_close(wide(**inputs).logits, model(**inputs).logits, **TOLERANCE)
    wide(**inputs).logits.square().mean().backward()
    for wider in wide.get_submodule(layers):
        added = wider.mlp.down_proj.weight.grad[:, wider.mlp.down_proj.in_features // 2 :]
        assert (added.abs().sum(0) > 0).all()


def test_a_wider_network_is_saved_and_read_at_its_width(tmp_path):
    wide = widen_networks(llama(), layers=LAYERS)
    wide.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(again(**batch()).logits, wide(**batch()).logits, rtol=0, atol=0)
