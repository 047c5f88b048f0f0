import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lightbox.adapters.fused import FUSED, FusedLinear, use_fused
from lightbox.testing.close import assert_close

bitsandbytes = pytest.importorskip("bitsandbytes")


def bare(quant, dtype, *, bias=True, in_width=64, out_width=128, device="cpu"):
    """Two linear layers in a row."""
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(in_width, out_width, bias=bias), nn.Linear(out_width, in_width, bias=bias))
    model = plain.to(dtype)
    if quant == "nf4":
        layers = [
            bitsandbytes.nn.Linear4bit(
                x.in_features,
                x.out_features,
                bias=bias,
                compute_dtype=dtype,
                quant_type="nf4",
                quant_storage=torch.uint8,
            )
            for x in plain
        ]
    elif quant == "int8":
        layers = [
            bitsandbytes.nn.Linear8bitLt(x.in_features, x.out_features, bias=bias, has_fp16_weights=False)
            for x in plain
        ]
    else:
        layers = []
    if layers:
        model = nn.Sequential(*layers)
        model.load_state_dict(plain.state_dict())
        model.to(device)
        model.is_loaded_in_4bit, model.is_loaded_in_8bit = quant == "nf4", quant == "int8"
    return model.to(device).requires_grad_(False)


def with_lora(model, **settings):
    wrapped = get_peft_model(model, LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": r"\d"} | settings)))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return wrapped.train()


def results(model, x):
    """Output, and gradients of the input and of every trainable tensor."""
    model.zero_grad()
    x = x.clone().requires_grad_(True)
    y = model(x * 1)  # no leaf: autocast keeps casts of leaves, and bitsandbytes makes one without a graph
    (y.float() * torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)).sum().backward()
    found = {"y": y.detach(), "x": x.grad}
    return found | {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def compare(quant, dtype, device="cpu"):
    stock = with_lora(bare(quant, dtype, device=device))
    fused = with_lora(bare(quant, dtype, device=device))
    assert use_fused(fused) == {FUSED: 2}
    x = torch.randn(2, 7, 64, dtype=dtype, device=device)
    wanted, found = results(stock, x), results(fused, x)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        scale = value.float().abs().max()
        assert found[name].dtype == value.dtype, name
        assert_close(found[name].float() / scale, value.float() / scale, dtype=str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_a_fused_layer_gives_what_peft_gives_and_the_same_gradients(quant, dtype):
    compare(quant, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_a_fused_layer_gives_what_peft_gives_on_a_gpu(quant, dtype):
    compare(quant, dtype, device="cuda")


def test_derivatives_are_those_of_finite_differences():
    torch.manual_seed(0)
    base = nn.Linear(5, 3).double().requires_grad_(False)
    x, a, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 4, 5), (2, 5), (3, 2)))
    torch.autograd.gradcheck(lambda *tensors: FusedLinear.apply(tensors[0], base, *tensors[1:], 1.7), (x, a, b))


def test_it_computes_base_plus_scaled_product():
    base = nn.Linear(3, 2).requires_grad_(False)
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        base.bias.copy_(torch.tensor([10.0, 20]))
    a, b = torch.tensor([[0.0, 0, 1]]), torch.tensor([[1.0], [2]])
    y = FusedLinear.apply(torch.tensor([[1.0, 2, 3]]), base, a, b, 0.5)
    assert y.tolist() == [[1 + 10 + 0.5 * 3, 2 + 20 + 0.5 * 2 * 3]]


def test_non_contiguous_inputs_and_a_frozen_input_are_fine():
    stock, fused = with_lora(bare("none", torch.float32)), with_lora(bare("none", torch.float32))
    use_fused(fused)
    x = torch.randn(64, 5).T
    assert not x.is_contiguous()
    assert_close(fused(x), stock(x).detach())
    fused(x).sum().backward()
    assert all(p.grad is not None for p in fused.parameters() if p.requires_grad)


@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_autocast_computes_in_its_dtype_and_gives_float32_gradients(quant):
    stock, fused = with_lora(bare(quant, torch.float32)), with_lora(bare(quant, torch.float32))
    use_fused(fused)
    x = torch.randn(6, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted, found = results(stock, x), results(fused, x)
    for name, value in wanted.items():
        scale = value.float().abs().max()
        assert_close(found[name].float() / scale, value.float() / scale, dtype="bfloat16")
    assert found["base_model.model.0.lora_A.default.weight"].dtype == torch.float32


def test_without_an_addition_in_the_way_a_call_goes_to_peft():
    fused = with_lora(bare("none", torch.float32))
    base = bare("none", torch.float32)
    use_fused(fused)
    x = torch.randn(3, 64)
    with fused.disable_adapter():
        assert torch.equal(fused(x), base(x))
    fused.add_adapter("second", LoraConfig(r=2, lora_alpha=2, target_modules=r"\d", init_lora_weights=False))
    first = fused(x)
    fused.base_model.set_adapter(["default", "second"])
    both = fused(x)
    fused.base_model.set_adapter("second")
    second = fused(x)
    assert not torch.equal(first, both)
    stock = with_lora(bare("none", torch.float32))
    stock.add_adapter("second", LoraConfig(r=2, lora_alpha=2, target_modules=r"\d", init_lora_weights=False))
    stock.load_state_dict(fused.state_dict())
    stock.base_model.set_adapter(["default", "second"])
    assert_close(both, stock(x).detach())
    stock.base_model.set_adapter("second")
    assert_close(second, stock(x).detach())
    fused.base_model.set_adapter("default")
    fused.merge_adapter()
    assert_close(fused(x), first.detach(), dtype="float32")


@pytest.mark.parametrize(
    ("settings", "reason"), [({"use_dora": True}, "dora"), ({"lora_dropout": 0.1}, "dropout"), ({}, FUSED)]
)
def test_what_cannot_be_fused_is_counted_by_its_reason(settings, reason):
    assert use_fused(with_lora(bare("none", torch.float32), **settings)) == {reason: 2}


def test_a_base_that_trains_is_left_to_peft():
    model = with_lora(bare("none", torch.float32))
    model.base_model.model[0].base_layer.weight.requires_grad_(True)
    assert use_fused(model) == {"trained base": 1, FUSED: 1}


def test_fusing_twice_and_copying_change_nothing():
    model = with_lora(bare("nf4", torch.float32))
    names = list(model.state_dict())
    use_fused(model)
    kinds = [type(m) for m in model.modules()]
    use_fused(model)
    assert [type(m) for m in model.modules()] == kinds
    assert list(model.state_dict()) == names
    x = torch.randn(3, 64)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
