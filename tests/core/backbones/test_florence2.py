"""Florence-2: what its encoder and decoder read, tasks, location tokens, stages of its tower."""

import copy
import random

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from lightbox.backbones import florence2
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.codecs import FlorenceBins
from lightbox.backbones.loading import load
from lightbox.errors import RequestError
from lightbox.paper.frozen_tower import on_features
from lightbox.testing.shrunk import save_shrunk
from lightbox.testing.shrunk_tokenizers import make_florence

IMAGE = Image.new("RGB", (80, 60), (90, 60, 200))


@pytest.fixture(scope="module")
def florence(tmp_path_factory):
    return load(str(save_shrunk("florence-2-base", tmp_path_factory.mktemp("florence"))))


def read_row(florence, batch, row=0):
    ids, mask = batch.inputs["input_ids"][row], batch.inputs["attention_mask"][row].bool()
    return florence.tokenizer.decode(ids[mask])


def test_encoder_reads_image_and_prompt_and_decoder_the_answer(florence):
    batch = florence.prepare([IMAGE], ["Where is it?"], ["left<loc_3>"], max_tokens=100)
    assert read_row(florence, batch) == "<image>" * 10 + "<s>Where is it?</s>"
    names = florence.tokenizer.convert_ids_to_tokens
    assert names(batch.labels[0]) == ["<s>", *florence.tokenizer.tokenize("left"), "<loc_3>", "</s>"]
    decoder = names(batch.inputs["decoder_input_ids"][0])
    assert decoder == ["</s>", "<s>", *florence.tokenizer.tokenize("left"), "<loc_3>"]
    assert batch.inputs["pixel_values"].shape == (1, 3, 96, 96)


def test_text_alone_is_framed_as_beside_an_image(florence):
    assert read_row(florence, florence.prepare(None, ["Where is it?"], max_tokens=100)) == "<s>Where is it?</s>"


def test_task_is_the_sentence_that_the_model_was_trained_on(florence):
    task, plain = (
        florence.prepare([IMAGE], [prompt], max_tokens=100).inputs["input_ids"]
        for prompt in ("<OD>", "Locate the objects with category name in the image.")
    )
    assert torch.equal(task, plain)
    batch = florence.prepare([IMAGE], ["<CAPTION_TO_PHRASE_GROUNDING>a round mass"], max_tokens=100)
    assert read_row(florence, batch).endswith("<s>Locate the phrases in the caption: a round mass</s>")


def test_task_beside_other_text_is_refused(florence):
    with pytest.raises(RequestError, match="Florence-2's processor refuses it"):
        florence.prepare([IMAGE], ["<OD> and more"], max_tokens=100)


def test_bins_are_as_many_as_location_tokens(florence):
    assert florence.codec == FlorenceBins(64)
    other = copy.copy(florence)
    other.tokenizer = make_florence(locations=1000)
    assert other.codec == FlorenceBins(1000)


def test_location_tokens_stay_in_what_is_read(florence):
    tokenizer = AutoTokenizer.from_pretrained(florence.name)
    ids = tokenizer("mass<loc_1><loc_2><loc_30><loc_40>", add_special_tokens=False)["input_ids"]
    framed = torch.tensor([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, tokenizer.pad_token_id])
    assert florence.read_ids(framed) == "mass<loc_1><loc_2><loc_30><loc_40>"


def test_answer_that_is_cut_off_does_not_get_an_end(florence):
    """The published settings force the end token into the last place, and a begin token into the first."""
    own = florence.core.generation_config
    assert own.forced_eos_token_id == florence.tokenizer.eos_token_id
    ids = florence.generate(florence.prepare([IMAGE], ["Where?"], max_tokens=100), max_new_tokens=3).ids[0]
    assert ids[0] == florence.tokenizer.bos_token_id == own.forced_bos_token_id
    assert ids[-1] != florence.tokenizer.eos_token_id
    assert florence.core.generation_config is own


def test_taps_are_the_four_stages(florence):
    features = florence.tower([IMAGE, IMAGE], layers=(0, 1, 2, 3))
    shapes = [tuple(features.taps[stage].outputs[0].shape) for stage in range(4)]
    assert shapes == [(576, 8), (144, 16), (36, 32), (9, 64)]
    assert features.grids == [(3, 3)] * 2
    assert [len(tokens) for tokens in florence.project(features)] == [10, 10]  # the mean, then the grid


def test_full_size_gives_577_tokens(florence):
    pixels = {"pixel_values": torch.empty(2, 3, 768, 768, device="meta")}
    assert florence.grids(pixels) == [(24, 24)] * 2
    assert florence.tokens_per_image(pixels) == [577, 577]


def test_spans_of_tokens_are_those_that_every_beginning_tells():
    backbone = load("tiny/florence2")
    frame = [backbone.tokenizer.bos_token_id, backbone.tokenizer.eos_token_id, backbone.tokenizer.pad_token_id]
    vocabulary = backbone.tokenizer.get_vocab()
    places = [i for token, i in vocabulary.items() if token.startswith("<loc_")]
    words = [i for token, i in vocabulary.items() if not token.startswith("<")]
    draw = random.Random(0)
    for _ in range(200):
        pools = draw.choices([places, words, frame], weights=[6, 3, 1], k=draw.randint(1, 14))
        ids = torch.tensor([draw.choice(pool) for pool in pools])
        assert backbone.token_spans(ids) == Backbone.token_spans(backbone, ids)


def test_ids_of_a_prompt_are_made_once_and_anew_where_it_has_become_a_token(monkeypatch):
    backbone = load("tiny/florence2")
    first = backbone.text_ids("where is the <new> ?", is_first=True)
    calls, ask = [], type(backbone.processor).__call__
    monkeypatch.setattr(type(backbone.processor), "__call__", lambda *a, **k: calls.append(1) or ask(*a, **k))
    assert backbone.text_ids("where is the <new> ?", is_first=True) == first
    assert not calls
    backbone.tokenizer.add_tokens(["<new>"])
    assert backbone.text_ids("where is the <new> ?", is_first=True) != first


def test_answers_are_the_same_however_many_rows_are_encoded_at_once(monkeypatch):
    backbone = load("tiny/florence2")
    patches = torch.rand(6, 64, 96, generator=torch.Generator().manual_seed(0))
    grounder = on_features(backbone)
    batch = grounder.prepare(patches, [f"finding {n}" for n in range(6)])
    whole = grounder.generate(batch, max_new_tokens=4)
    monkeypatch.setattr(florence2, "PIECE", 4)
    pieces = grounder.generate(batch, max_new_tokens=4)
    assert pieces.texts == whole.texts
    torch.testing.assert_close(pieces.logps, whole.logps)
