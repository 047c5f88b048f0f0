"""The choice of attention, and xformers' masks and layouts against eager, with a stand-in where there is no GPU."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image
from torch import nn

from lightbox.backbones import attention
from lightbox.backbones.attention import choose, register_xformers, xformers_attention
from lightbox.backbones.loading import load
from lightbox.backbones.published import GENERATORS
from lightbox.errors import RequestError
from lightbox.testing.shrunk import build, save_shrunk, shrunk_config

FLASH = "flash_attn"


@pytest.fixture
def packages(monkeypatch):
    """What is installed, as the test says."""

    def install(*names):
        monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: object() if name in names else None)

    return install


class LowerTriangularMask:
    """xformers' causal mask, of which models see only that there is one."""

    def materialize(self, shape, dtype):
        return torch.full(shape, float("-inf"), dtype=dtype).triu(1)


@pytest.fixture
def stand_in(monkeypatch):
    """xformers' operator as its documentation defines it, with its rules on shapes and alignment; records its calls."""
    calls = []

    def operator(query, key, value, attn_bias=None, p=0.0, scale=None):
        assert query.shape[0] == key.shape[0]
        assert query.shape[-1] % 8 == 0
        assert query.shape[2:] == key.shape[2:] == value.shape[2:]  # b t k e, as many key heads as query heads
        scores = torch.einsum("btke,bske->bkts", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if isinstance(attn_bias, torch.Tensor):
            assert attn_bias.shape == scores.shape
            assert attn_bias.dtype == query.dtype
            assert all(stride % 8 == 0 for stride in attn_bias.stride()[:-1])
            assert attn_bias.stride(-1) == 1
            scores = scores + attn_bias
        elif attn_bias is not None:
            scores = scores + attn_bias.materialize(tuple(scores.shape[-2:]), dtype=scores.dtype)
        calls.append(attn_bias)
        return torch.einsum("bkts,bske->btke", nn.functional.dropout(scores.softmax(-1), p), value)

    operators = SimpleNamespace(memory_efficient_attention=operator, LowerTriangularMask=LowerTriangularMask)
    monkeypatch.setattr(attention, "_operators", lambda: operators)
    register_xformers()
    return calls


def ask(requested, **changes):
    return choose(requested, **({"device": "cuda", "dtype": "bf16", "model_type": "llava"} | changes))


def test_auto_takes_flash_where_it_is_installed_and_right(packages):
    packages(FLASH)
    choice = ask("auto")
    assert (choice.name, choice.implementation) == ("flash", "flash_attention_2")
    assert "skips padding" in choice.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cpu"}, "the device is cpu"),
        ({"dtype": "fp32"}, "the model is in fp32"),
        ({"model_type": "gemma3"}, "image tokens of Gemma 3 see each other"),
        ({"model_type": "t5"}, "adds its relative positions"),
        ({"model_type": "florence2"}, "heads as wide as the image has patches"),
    ],
)
def test_auto_takes_torchs_own_and_says_why_else(packages, changes, reason):
    packages(FLASH, "xformers")
    choice = ask("auto", **changes)
    assert (choice.name, choice.implementation) == ("sdpa", "sdpa")
    assert reason in choice.reason
    with pytest.raises(RequestError, match=reason):
        ask("flash", **changes)


def test_flash_without_its_package_is_refused(packages):
    packages("xformers")
    assert "flash-attn is not installed" in ask("auto").reason
    with pytest.raises(RequestError, match=r"flash-attn is not installed\. Set model\.attention=sdpa"):
        ask("flash")


def test_xformers_needs_its_package_and_a_gpu(packages):
    packages(FLASH)
    with pytest.raises(RequestError, match="xformers is not installed"):
        ask("xformers")
    packages("xformers")
    with pytest.raises(RequestError, match="no operator for the CPU, and the device is cpu"):
        ask("xformers", device="cpu", dtype="fp32")
    assert ask("xformers").implementation == "xformers"
    assert "xformers" in transformers.AttentionInterface()


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_what_is_asked_is_taken(name):
    assert ask(name, device="cpu") == attention.AttentionChoice(name, "as requested")


def test_unknown_attention_is_refused_with_the_known_ones():
    with pytest.raises(RequestError, match=r"model\.attention is 'magic'.*auto, sdpa, xformers, flash, eager"):
        ask("magic")


def text_batch(vocabulary):
    """Two rows, the first padded on the left, so that some queries see nothing."""
    ids = torch.randint(10, vocabulary - 40, (2, 21), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    return {"input_ids": ids, "attention_mask": mask}


def run_with(model, implementation, **inputs):
    model.set_attn_implementation(implementation)
    model.zero_grad()
    logits = model(**inputs).logits
    is_read = inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
    logits[is_read].square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach()[is_read], gradients


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-med", "qwen2.5-vl-7b", "medgemma-4b", "unifiedqa-t5-base"])
def test_xformers_gives_what_eager_gives_forward_and_backward(name, stand_in):
    """Padding, grouped heads, sliding windows and T5's bias, over whole language models."""
    torch.manual_seed(0)
    model = build(name, shrunk_config(name)).eval()
    inputs = text_batch(480)
    if name == "unifiedqa-t5-base":
        inputs |= {"decoder_input_ids": inputs["input_ids"][:, ::2]}
        inputs["decoder_attention_mask"] = torch.ones_like(inputs["decoder_input_ids"])
    expected, expected_gradients = run_with(model, "eager", **inputs)
    assert not stand_in
    found, gradients = run_with(model, "xformers", **inputs)
    assert stand_in
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert gradients.keys() == expected_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[key], atol=1e-6, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATORS)
def test_xformers_gives_what_eager_gives_with_images(name, stand_in, tmp_path):
    """Towers with windows and with attention between channels, image tokens that see each other, cross-attention."""
    backbone = load(str(save_shrunk(name, tmp_path)), attention="eager")
    images = [Image.fromarray(torch.randint(0, 256, size, dtype=torch.uint8).numpy()) for size in ((70, 90), (60, 130))]
    batch = backbone.prepare(
        images if backbone.family.has_vision else None,
        ["Side?", "Is there an effusion?"],
        ["no", "yes"],
        max_tokens=300,
    )
    wanted = backbone.sequence_logps(batch)
    backbone.model.set_attn_implementation("xformers")
    torch.testing.assert_close(backbone.sequence_logps(batch), wanted, atol=1e-4, rtol=1e-5)
    assert stand_in


@pytest.mark.parametrize("name", ["clip-vit-l-336", "siglip-so400m"])
def test_towers_need_no_mask(name, stand_in):
    torch.manual_seed(0)
    model = build(name, shrunk_config(name)).eval()
    pixels = torch.randn(2, 3, 56, 56)
    model.set_attn_implementation("eager")
    expected = model(pixel_values=pixels).last_hidden_state
    model.set_attn_implementation("xformers")
    torch.testing.assert_close(model(pixel_values=pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-4)
    assert set(stand_in) == {None}


def test_heads_of_any_width_are_filled_up(stand_in):
    """Florence-2's tower has heads as wide as the image has patches, here 9."""
    query, key, value = (torch.randn(1, 2, 4, 9) for _ in range(3))
    mixed, _ = xformers_attention(nn.Module(), query, key, value, None, is_causal=False)
    expected = nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(mixed, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_causal_without_padding_takes_xformers_own_mask_and_one_query_none(stand_in):
    torch.manual_seed(0)
    layer = nn.Module()
    query, key, value = (torch.randn(1, heads, 5, 8) for heads in (4, 2, 2))
    mixed, weights = xformers_attention(layer, query, key, value, None, is_causal=True)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(mixed, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)
    assert weights is None
    assert type(stand_in[-1]) is LowerTriangularMask
    xformers_attention(layer, query[:, :, -1:], key, value, None, is_causal=True)
    assert stand_in[-1] is None


def test_query_that_sees_nothing_gives_numbers(stand_in):
    layer = nn.Module()
    query, key, value = (torch.randn(1, 2, 3, 8) for _ in range(3))
    mask = torch.tensor([[[[False, False, False], [True, False, False], [True, True, False]]]])
    mixed, _ = xformers_attention(layer, query, key, value, mask)
    assert torch.isfinite(mixed).all()
    torch.testing.assert_close(mixed[:, 0], value.mean(dim=2), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mixed[:, 1], value[:, :, 0], atol=1e-6, rtol=1e-5)


def test_capped_scores_are_refused():
    tensor = torch.zeros(1, 1, 2, 8)
    with pytest.raises(RequestError, match="It cannot cap them"):
        xformers_attention(nn.Module(), tensor, tensor, tensor, None, softcap=30.0)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2), ("float16", 5e-3)])
@pytest.mark.parametrize("name", ["llava-med", "qwen2.5-vl-7b", "medgemma-4b", "unifiedqa-t5-base"])
def test_xformers_on_a_gpu_gives_what_eager_gives(name, dtype, tolerance):
    """The same whole models with xformers' own operators; the bound is relative to the size of the logits."""
    pytest.importorskip("xformers")
    torch.manual_seed(0)
    assert choose("xformers", device="cuda", dtype=dtype, model_type=name).name == "xformers"
    model = build(name, shrunk_config(name)).eval().to("cuda", getattr(torch, dtype))
    inputs = {key: value.cuda() for key, value in text_batch(480).items()}
    if name == "unifiedqa-t5-base":
        inputs |= {"decoder_input_ids": inputs["input_ids"][:, ::2]}
        inputs["decoder_attention_mask"] = torch.ones_like(inputs["decoder_input_ids"])
    expected, expected_gradients = run_with(model, "eager", **inputs)
    found, gradients = run_with(model, "xformers", **inputs)
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    assert gradients.keys() == expected_gradients.keys()
    norm = torch.stack([gradient.float().norm() for gradient in expected_gradients.values()]).norm()
    apart = torch.stack([(gradients[k] - v).float().norm() for k, v in expected_gradients.items()]).norm()
    assert apart < 10 * tolerance * norm
