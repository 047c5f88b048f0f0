import pytest
import torch
from PIL import Image

from lightbox.adapters import guards
from lightbox.adapters.attach import attach
from lightbox.adapters.tokens import add_tokens
from lightbox.backbones.published import GENERATORS
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError

TOKENS = ["<mask_0>", "<lesion>"]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_new_token_gets_one_id_and_starts_at_the_mean_of_its_pieces(loaded, name):
    backbone = loaded(name)
    pieces = backbone.tokenizer("<lesion>", add_special_tokens=False)["input_ids"]
    wanted = backbone.core.get_input_embeddings().weight[pieces].mean(dim=0)
    ids = add_tokens(backbone.core, backbone.tokenizer, TOKENS)
    assert backbone.tokenizer("<lesion>", add_special_tokens=False)["input_ids"] == [ids["<lesion>"]]
    assert ids["<lesion>"] not in pieces
    torch.testing.assert_close(backbone.core.get_input_embeddings().weight[ids["<lesion>"]], wanted)


def test_spare_rows_of_the_table_are_used_before_it_grows(loaded):
    backbone = loaded("llava-1.5-7b")
    rows = len(backbone.core.get_input_embeddings().weight)
    used = len(backbone.tokenizer)
    assert used < rows
    add_tokens(backbone.core, backbone.tokenizer, ["<a>"])
    assert len(backbone.core.get_input_embeddings().weight) == rows
    many = [f"<n{i}>" for i in range(rows - used + 5)]
    ids = add_tokens(backbone.core, backbone.tokenizer, many)
    assert len(backbone.core.get_input_embeddings().weight) == max(ids.values()) + 1 > rows
    assert len(backbone.core.get_output_embeddings().weight) == max(ids.values()) + 1


def test_the_same_tokens_give_the_same_ids_and_rows(loaded):
    first, second = loaded("qwen2.5-vl-7b"), loaded("qwen2.5-vl-7b")
    many = [f"<n{i}>" for i in range(60)]
    assert add_tokens(first.core, first.tokenizer, many) == add_tokens(second.core, second.tokenizer, many)
    for table in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(first.core, table)().weight, getattr(second.core, table)().weight)


@pytest.mark.parametrize("tokens", [["<image>"], ["<a>", "<a>"]])
def test_a_token_that_is_known_or_given_twice_is_refused(loaded, tokens):
    backbone = loaded("llava-1.5-7b")
    with pytest.raises(RequestError, match=rf"The new tokens '{tokens[0]}'"):
        add_tokens(backbone.core, backbone.tokenizer, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("name", GENERATORS)
def test_only_rows_of_new_tokens_train_in_table_and_head(loaded, batch_of, name, quant):
    backbone = loaded(name, quant=quant)
    ids = add_tokens(backbone.core, backbone.tokenizer, TOKENS)
    adapter = AdapterConfig(kind="lora", quant=quant, r=4)
    trained = attach(backbone, adapter, new_token_ids=list(ids.values()))
    groups = {g.group: g for g in guards.trainable_report(trained.model, trained.family)}
    is_tied = name in ("medgemma-4b", "florence-2-base", "unifiedqa-t5-base")
    assert groups["new tokens"].count == (1 if is_tied else 2) * 2 * 64
    table = trained.core.get_input_embeddings().weight.detach().clone()
    with trained.model.disable_adapter():
        base = trained.core.get_input_embeddings().weight.detach().clone()

    batch = trained.prepare(make_images(trained), ["Where is <lesion>?"], ["at <mask_0>"], max_tokens=300)
    optimizer = torch.optim.SGD([p for p in trained.model.parameters() if p.requires_grad], lr=1.0)
    trained.loss(batch)[0].backward()
    optimizer.step()
    now = trained.core.get_input_embeddings().weight.detach()
    changed = (now != table).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(ids.values())
    with trained.model.disable_adapter():
        assert torch.equal(trained.core.get_input_embeddings().weight, base)


def make_images(backbone):
    return [Image.new("RGB", (70, 90), (90, 30, 200))] if backbone.family.has_vision else None
