"""A Florence-2 that selects words of a description: which it selects, and that the rest of it is not read."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.attention import choose
from lightbox.backbones.families import BY_MODEL_TYPE
from lightbox.backbones.florence2 import Florence2OnFeatures
from lightbox.backbones.florence2_bank import N_PATCHES, Florence2WithBank, select_words
from lightbox.pretrain.florence2 import make_model, make_processor, make_tokenizer

TASK = "<CAPTION_TO_PHRASE_GROUNDING>"
PROMPTS = [f"{TASK}vabu means dense disc , left hilum", f"{TASK}zexa"]
TARGETS = ["<loc_3><loc_4><loc_20><loc_63>", ""]


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer).eval()
    how = choose("eager", device="cpu", dtype="fp32", model_type="florence2")
    more = {"attention": how, "name": "tiny", "revision": "", "quant": "none", "dtype": torch.float32}
    return (model, make_processor(tokenizer), BY_MODEL_TYPE["florence2"]), more


def bank(parts, n_words):
    positional, more = parts
    return Florence2WithBank(*positional, separator=" means ", n_words=n_words, **more)


@pytest.fixture(scope="module")
def patches(parts):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)) for _ in PROMPTS]
    return bank(parts, 1).encode_images(images)


def test_words_that_are_like_the_best_patches_are_selected_in_their_order():
    torch.manual_seed(0)
    words = torch.eye(12)[None, :8]
    seen = 0.01 * torch.randn(1, 3 * N_PATCHES, 12)
    for place, word in enumerate([5, 2, 2, 5, 2]):  # five patches are like two of the words
        seen[0, 3 * place, word] += 1.0
    is_word = torch.ones(1, 8, dtype=torch.bool)
    places, are_words = select_words(seen, words, is_word, 2)
    assert places.tolist() == [[2, 5]]
    assert are_words.all()
    is_word[0, 5] = False
    places, are_words = select_words(seen, words, is_word, 8)
    assert places.tolist() == [list(range(8))]
    assert are_words.tolist() == [[place != 5 for place in range(8)]]


def test_only_selected_words_are_read(parts, patches):
    backbone = bank(parts, 2)
    with torch.no_grad():
        batch = backbone.prepare(patches, PROMPTS, TARGETS)
        inputs = backbone.inputs_of(batch)
        assert batch.inputs["bank_input_ids"].shape[1] == 2 + len("dense disc , left hilum".split())
        assert inputs["attention_mask"][:, -2:].tolist() == [[1, 1], [0, 0]]  # the other prompt describes nothing
        assert inputs["encoder_outputs"][0].shape[1] == batch.inputs["input_ids"].shape[1] + 2


def test_a_prompt_without_a_description_is_read_as_without_a_bank(parts, patches):
    positional, more = parts
    plain, with_bank = Florence2OnFeatures(*positional, **more), bank(parts, 3)
    with torch.no_grad():
        losses = [each.loss(each.prepare(patches[1:], PROMPTS[1:], TARGETS[:1]))[0] for each in (plain, with_bank)]
    torch.testing.assert_close(*losses)
    assert plain.answer(patches[1:], PROMPTS[1:], max_new_tokens=8) == with_bank.answer(
        patches[1:], PROMPTS[1:], max_new_tokens=8
    )


def test_the_description_gets_a_gradient_and_changes_the_loss(parts, patches):
    backbone = bank(parts, 3)
    read = []  # embeddings of prompt, description and answer

    def keep(_module, _inputs, output):
        output.retain_grad()
        read.append(output)

    hook = backbone.core.get_input_embeddings().register_forward_hook(keep)
    losses = []
    for text in ("dense disc , left hilum", "hazy band , right base"):
        read.clear()
        total, _, _ = backbone.loss(backbone.prepare(patches[:1], [f"{TASK}vabu means {text}"], TARGETS[:1]))
        total.backward()
        losses.append(float(total.detach()))
        assert read[1].shape[1] == 2 + len(text.split())
        assert read[1].grad.abs().max() > 0
    hook.remove()
    assert losses[0] != losses[1]


def test_answers_do_not_depend_on_the_other_rows(parts, patches):
    backbone = bank(parts, 3)
    together = backbone.answer(patches, PROMPTS, max_new_tokens=8)
    assert together == backbone.answer(patches, PROMPTS, max_new_tokens=8, batch_size=1)
    assert backbone.answer(None, PROMPTS, max_new_tokens=4)
