import copy

import pytest
import torch

from lightbox.adapters.reference import keep_reference, reference
from lightbox.errors import RequestError


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("projector", ["frozen", "lora", "full"])
@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2.5-vl-7b", "florence-2-base"])
def test_with_adapters_off_every_bit_is_the_base_s(loaded, attached, logits_of, name, quant, projector):
    base = loaded(name, quant=quant)
    base.core.requires_grad_(False)  # torch folds some products by whether the weight wants a gradient
    backbone, _ = attached(name, quant=quant, projector=projector)
    trained = logits_of(backbone)
    with reference(backbone.model) as model:
        assert model is backbone.model
        assert torch.equal(logits_of(backbone), logits_of(base))
    assert torch.equal(logits_of(backbone), trained)
    assert not torch.equal(trained, logits_of(base))


def test_what_trains_is_untouched_inside_and_after(attached):
    backbone, _ = attached("llava-1.5-7b", projector="full")
    before = flags(backbone.model)
    with reference(backbone.model):
        assert flags(backbone.model) == before
    assert flags(backbone.model) == before


def test_an_error_inside_brings_the_adapters_back(attached, logits_of):
    backbone, _ = attached("llava-1.5-7b", projector="full")
    trained = logits_of(backbone)
    with pytest.raises(ZeroDivisionError), reference(backbone.model):
        _ = 1 / 0
    assert torch.equal(logits_of(backbone), trained)


def test_references_nest(attached, logits_of):
    backbone, _ = attached("llava-1.5-7b")
    keep_reference(backbone.model)
    with reference(backbone.model):
        base = logits_of(backbone)
        with reference(backbone.model, "adapter:reference"):
            pass
        assert torch.equal(logits_of(backbone), base)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_a_kept_reference_stays_while_the_adapter_goes_on(attached, logits_of, batch_of, quant, dtype):
    backbone, _ = attached("llava-1.5-7b", quant=quant, dtype=dtype, projector="full")
    tuned, before = logits_of(backbone), flags(backbone.model)
    keep_reference(backbone.model)
    assert {n: f for n, f in flags(backbone.model).items() if n in before} == before
    assert not any(f for n, f in flags(backbone.model).items() if n not in before)
    optimizer = torch.optim.AdamW([p for p in backbone.model.parameters() if p.requires_grad], lr=0.01)
    backbone.loss(batch_of(backbone))[0].backward()
    optimizer.step()
    now = logits_of(backbone)
    assert not torch.equal(now, tuned)
    with reference(backbone.model, "adapter:reference"):
        assert torch.equal(logits_of(backbone), tuned)
    assert torch.equal(logits_of(backbone), now)


def test_a_preference_loss_of_an_untrained_policy_sees_no_difference(attached, batch_of):
    backbone, _ = attached("llava-1.5-7b", is_awake=False)
    batch = batch_of(backbone)
    policy = backbone.sequence_logps(batch)
    with torch.no_grad(), reference(backbone.model):
        base = backbone.sequence_logps(batch)
    assert torch.equal(policy, base)
    policy.sum().backward()
    assert any(p.grad is not None for p in backbone.model.parameters())


def test_a_merged_model_has_no_reference(attached):
    backbone, _ = attached("llava-1.5-7b")
    backbone.model.merge_adapter()
    with pytest.raises(RequestError, match="Adapters are merged into 14 layers"), reference(backbone.model):
        pass
    with pytest.raises(RequestError, match="Adapters are merged into 14 layers"):
        keep_reference(backbone.model)


@pytest.mark.parametrize(
    ("kind", "why"), [("adapter:sft", "The adapters here are default"), ("nothing", "It is base or adapter:NAME")]
)
def test_an_unknown_reference_is_refused(attached, kind, why):
    backbone, _ = attached("llava-1.5-7b")
    with pytest.raises(RequestError, match=why), reference(backbone.model, kind):
        pass


def test_a_reference_is_not_overwritten(attached):
    backbone, _ = attached("llava-1.5-7b")
    keep_reference(backbone.model)
    with pytest.raises(RequestError, match="The adapter 'reference'. There is one of that name already"):
        keep_reference(backbone.model)


def test_keeping_a_reference_moves_no_random_generator(attached):
    backbone, _ = attached("llava-1.5-7b")
    state = copy.deepcopy(torch.get_rng_state())
    keep_reference(backbone.model)
    assert torch.equal(torch.get_rng_state(), state)
