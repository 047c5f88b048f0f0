"""Operations by hand on a small Llama; what a second expert a token, or a second network of weights, would cost."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightbox.paper.counted_flops import counted_flops
from medplib.assembly import add_experts, mixtures
from medplib.cost import NAMES, measure_cost
from medplib.experts import MixtureSettings

WIDTH, FFN, LAYERS, WORDS, TOKENS = 32, 64, 3, 50, 9


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "vocab_size": WORDS}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)).eval()


@pytest.fixture
def inputs():
    ids = torch.randint(WORDS, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def mixture(dense):
    return add_experts(copy.deepcopy(dense), dict.fromkeys(NAMES, dense), layers="model.layers").eval()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_operations_are_two_for_each_weight_and_token_and_those_of_attention(dense, inputs, attention):
    """Torch does not know what its fused attention on a CPU computes; without it a ratio to the rest is the larger."""
    own = copy.deepcopy(dense)
    own.set_attn_implementation(attention)
    (prompt, word), logits = counted_flops(own, inputs)
    weights = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * FFN) + WIDTH * WORDS
    pair = 2 * 2 * WIDTH * LAYERS * (attention == "eager")  # a query with a key, and their weight with the value
    assert prompt == 2 * weights * TOKENS + pair * TOKENS * TOKENS
    assert word == 2 * weights + pair * (TOKENS + 1)
    assert logits.shape == (1, TOKENS, WORDS)


@torch.no_grad()
def test_a_mixture_adds_its_routers_and_nothing_else(dense, mixture, inputs):
    (own_prompt, own_word), _ = counted_flops(dense, inputs)
    (prompt, word), _ = counted_flops(mixture, inputs)
    router = 2 * LAYERS * WIDTH * len(NAMES)
    assert (prompt - own_prompt, word - own_word) == (router * TOKENS, router)


@torch.no_grad()
def test_a_word_reads_the_networks_of_one_expert_a_layer(dense, mixture, inputs):
    """All weights are in memory; those that a step of decoding reads are a dense model's and the routers'."""
    read = set()
    for module in mixture.modules():
        module.register_forward_pre_hook(lambda own, _: read.update(id(p) for p in own.parameters(recurse=False)))
    mixture(input_ids=inputs["input_ids"][:, :1])
    routers = [p for _, part in mixtures(mixture) for p in part.router.parameters()]
    touched = sum(p.numel() for p in mixture.parameters() if id(p) in read | {id(p) for p in routers})
    n_dense, n_routers = sum(p.numel() for p in dense.parameters()), sum(p.numel() for p in routers)
    assert touched == n_dense + n_routers
    assert sum(p.numel() for p in mixture.parameters()) == touched + LAYERS * 3 * WIDTH * FFN


@pytest.mark.slow
def test_two_experts_a_token_are_noticed(tiny, items):
    one = measure_cost(tiny, items, MixtureSettings())
    two = measure_cost(tiny, items, MixtureSettings(top_k=2, weight="prob"))
    assert (one["rows"], two["rows"]) == (1, 2)
    for name in ("flops_prefill", "flops_decode"):
        assert 1 < one[name] < 1.01 < two[name]
    assert one["rows_official_eval"] > one["rows_official_train"] > 1.4
