"""Where MedPLIB's training begins: words, tags, what is taken over as shipped and what is drawn."""

import pytest
import torch
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

from lightbox.backbones.llava import LlavaBackbone
from lightbox.backbones.loading import load
from lightbox.paths import shared_data
from lightbox.phantom.modalities import MODALITIES
from lightbox.pretrain import llava
from lightbox.pretrain.modality_llava import TAGS, WORDS, make_start, make_tokenizer, standard_pictures, write_start
from lightbox.pretrain.tower import clip_patches


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def start(tokenizer):
    return make_start(tokenizer, seed=0, tower="tiny/tower")


def test_the_tokenizer_begins_as_that_of_the_tiny_llava(tokenizer):
    older = llava.make_tokenizer()
    assert {word: k for word, k in tokenizer.get_vocab().items() if k < len(older)} == older.get_vocab()
    assert tokenizer.tokenize("What is shown ?") == older.tokenize("What is shown ?")


def test_each_tag_and_each_word_of_any_modality_is_one_token(tokenizer):
    for word in (*TAGS, *WORDS):
        assert tokenizer.tokenize(word) == [word]
    for modality in MODALITIES.values():
        for name in modality.classes:
            assert tokenizer.tokenize(f"Segment the {name} .")[2:-1] == name.split()


def test_tags_stay_in_a_text_without_special_tokens(tokenizer):
    text = "what is <region><region_feature></region> ? it is <SEG> ."
    said = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert said.replace(" ", "") == text.replace(" ", "")


@pytest.mark.slow
def test_language_and_tower_are_as_shipped_and_the_rest_is_drawn(start, tokenizer):
    before = LlavaForConditionalGeneration.from_pretrained(shared_data() / "weights" / "llava")
    old, new = before.model.language_model.state_dict(), start.model.language_model.state_dict()
    n = len(old["embed_tokens.weight"])
    assert torch.equal(new["embed_tokens.weight"][:n], old.pop("embed_tokens.weight"))
    assert len(new["embed_tokens.weight"]) == len(tokenizer)
    assert all(torch.equal(new[name], value) for name, value in old.items())
    tower = CLIPVisionModel.from_pretrained(shared_data() / "weights" / "tower")
    own = start.model.vision_tower.state_dict()
    assert all(torch.equal(own[name], value) for name, value in tower.state_dict().items())
    projector = before.model.multi_modal_projector.state_dict()
    drawn = start.model.multi_modal_projector.state_dict()
    assert not any(torch.equal(drawn[name], value) for name, value in projector.items() if value.ndim > 1)


@pytest.mark.slow
def test_a_seed_draws_projector_and_new_words_and_moves_no_generator(start, tokenizer):
    state = torch.get_rng_state()
    again, other = (make_start(tokenizer, seed=seed, tower="tiny/tower").state_dict() for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    own = start.state_dict()
    assert all(torch.equal(own[name], value) for name, value in again.items())
    differ = {name for name, value in other.items() if not torch.equal(own[name], value)}
    assert differ == {
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
        *(f"model.multi_modal_projector.linear_{k}.weight" for k in (1, 2)),
        "model.multi_modal_projector.linear_1.bias",
    }


def test_the_projector_first_sees_features_of_mean_0_and_deviation_1(start):
    features = clip_patches(start.model.vision_tower, standard_pictures()).flatten(0, 1)
    hidden = start.model.multi_modal_projector.linear_1(features)
    assert hidden.mean().abs() < 0.1
    assert 0.7 < hidden.std() < 1.4


def test_a_written_start_is_loaded_as_any_llava(tmp_path, tokenizer):
    backbone = load(str(write_start(tmp_path, tower="tiny/tower")))
    assert isinstance(backbone, LlavaBackbone)
    assert backbone.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert "shared_data" not in (tmp_path / "config.json").read_text()
