"""Prompts that a group shares, rows that leave, rows of exact ids: against the same without sharing."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.conversation import Conversation, assistant, user
from lightbox.backbones.episodes import batch_of_ids, shared_prompts, some_rows
from lightbox.backbones.generation import Sampling
from lightbox.backbones.loading import load
from lightbox.testing.shrunk import save_shrunk

STEPS, GROUP = 5, 3
SEEDS = tuple(range(2 * GROUP))


def picture(seed, height=60, width=80):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(0), picture(1, 90, 60)]
ASKED = [
    Conversation((user(IMAGES[0], "Side?"),)),
    Conversation((user(IMAGES[1], "Where is the nodule in the lung?"),)),
]


@pytest.fixture(scope="module", params=["qwen2.5-vl-7b", "llava-1.5-7b", "medgemma-4b"])
def causal(request, tmp_path_factory):
    """With choices that are wide apart, no end token at once, and no image tokens."""
    own = load(str(save_shrunk(request.param, tmp_path_factory.mktemp("causal"))))
    with torch.no_grad():
        head = own.part(own.family.head)
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3)))
        head.weight[[own.end_id, *own.tokenizer.added_tokens_decoder]] = 0
    return own


def talk(backbone, batch, *, with_memory=False):
    return backbone.generate(batch, max_new_tokens=STEPS, sampling=Sampling(SEEDS), with_memory=with_memory)


def unshared(backbone):
    again = [row for row in ASKED for _ in range(GROUP)]
    return backbone.prepare_conversations(again, max_tokens=400, padding="left")


def assert_same_answers(ours, theirs):
    assert torch.equal(ours.ids, theirs.ids)
    assert torch.equal(ours.is_token, theirs.is_token)
    torch.testing.assert_close(ours.logps, theirs.logps, rtol=0, atol=1e-5)


def test_a_group_that_shares_its_prompt_answers_as_one_that_does_not(causal):
    widths = []
    handle = causal.part(causal.family.language).register_forward_pre_hook(
        lambda _, __, inputs: widths.append(tuple(inputs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    shared = shared_prompts(causal, ASKED, GROUP)
    handle.remove()
    assert widths == [(2, shared.inputs["input_ids"].shape[1] - 1)]
    assert shared.inputs["input_ids"].shape[0] == 2 * GROUP
    own = talk(causal, shared)
    assert len({tuple(row) for row in own.ids[:GROUP].tolist()}) > 1
    assert_same_answers(own, talk(causal, unshared(causal)))


def test_rows_that_go_on_say_what_they_would_have_said_among_all(causal):
    first = talk(causal, shared_prompts(causal, ASKED, GROUP), with_memory=True)
    going = [1, 3, 4]
    turn = user(IMAGES[0], "Why?")
    if causal.family.name == "gemma3":  # its layers look back over a window, so rows go on one at a time
        going = [4]
    kept = some_rows(copy.deepcopy(first), going)
    assert kept.texts == [first.texts[row] for row in going]
    seconds = [causal.generate(causal.continued(kept, [turn] * len(going)), max_new_tokens=STEPS)]
    for place, row in enumerate(going):
        alone = causal.prepare_conversations([ASKED[row // GROUP]], max_tokens=400, padding="left")
        before = causal.generate(alone, max_new_tokens=STEPS, sampling=Sampling(SEEDS[row : row + 1]), with_memory=True)
        assert torch.equal(before.ids[0], first.ids[row])
        after = causal.generate(causal.continued(before, [turn]), max_new_tokens=STEPS)
        assert torch.equal(after.ids[0], seconds[0].ids[place])
        torch.testing.assert_close(after.logps[0], seconds[0].logps[place], rtol=0, atol=1e-5)


def test_all_rows_that_go_on_are_left_as_they_are(causal):
    first = talk(causal, shared_prompts(causal, ASKED, GROUP), with_memory=True)
    assert some_rows(first, range(2 * GROUP)) is first


def test_rows_of_ids_are_those_of_the_conversations(causal):
    said = [
        Conversation((user(IMAGES[0], "Side?"), assistant("left"))),
        Conversation((user(IMAGES[1], "Where is it?"), assistant("in the upper zone"))),
        Conversation((user(IMAGES[0], "Is there a nodule?"), assistant("no"))),
    ]
    wanted = causal.prepare_conversations(said, max_tokens=400)
    is_read = wanted.inputs["attention_mask"].bool()
    ids = [row[own].tolist() for row, own in zip(wanted.inputs["input_ids"], is_read, strict=True)]
    is_label = [(row[own] != -100).tolist() for row, own in zip(wanted.labels, is_read, strict=True)]
    own = batch_of_ids(causal, ids, is_label, [row.images for row in said])
    assert own.inputs.keys() == wanted.inputs.keys()
    assert all(torch.equal(value, wanted.inputs[name]) for name, value in own.inputs.items())
    assert torch.equal(own.labels, wanted.labels)
    assert own.shared.index == [0, 1, 0]
    assert torch.equal(causal.token_logps(own), causal.token_logps(wanted))
