"""Gemma 3: image tokens that see each other in both directions, one begin token, the end of a turn."""

import copy

import pytest
import torch
from PIL import Image

from lightbox.backbones.loading import load
from lightbox.testing.shrunk import save_shrunk


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return load(str(save_shrunk("medgemma-4b", tmp_path_factory.mktemp("gemma"))))


@pytest.fixture(scope="module")
def batch(gemma):
    return gemma.prepare([Image.new("RGB", (60, 40), (90, 60, 200))], ["Side?"], ["left"], max_tokens=100)


def test_row_is_turn_image_question_answer_and_end_of_turn(gemma, batch):
    """The golden example: every token of a row, its type, and its label."""
    ids = batch.inputs["input_ids"][0]
    tokens = gemma.tokenizer.convert_ids_to_tokens(ids)
    types, labels = batch.inputs["token_type_ids"][0].tolist(), batch.labels[0].tolist()
    assert tokens.count("<bos>") == 1
    assert tokens[:2] == ["<bos>", "<start_of_turn>"]
    first = tokens.index("<start_of_image>")
    assert tokens[first + 1 : first + 6] == [*["<image_soft_token>"] * 4, "<end_of_image>"]
    assert [kind for kind, token in zip(types, tokens, strict=True) if token == "<image_soft_token>"] == [1] * 4
    assert sum(types) == 4
    answer = tokens.index("<start_of_turn>", 2) + 1
    assert gemma.tokenizer.decode(ids[answer:]).strip() == "model\nleft<end_of_turn>"
    assert [token for token, label in zip(tokens, labels, strict=True) if label != -100][-1] == "<end_of_turn>"
    assert gemma.tokenizer.decode([label for label in labels if label != -100]) == "left<end_of_turn>"


def hidden_rows(gemma, inputs):
    seen = {}
    handle = gemma.part(gemma.family.language).register_forward_hook(lambda _, __, out: seen.update(rows=out[0]))
    with torch.no_grad():
        gemma.model(**inputs)
    handle.remove()
    return seen["rows"][0]


def test_first_image_token_sees_the_last_one_and_text_sees_only_back(gemma, batch, monkeypatch):
    """Without token types the model would read image tokens left to right, as text."""
    is_image = batch.inputs["token_type_ids"][0].bool()
    first, last = is_image.nonzero()[0, 0], is_image.nonzero()[-1, 0]
    inputs = {key: value for key, value in batch.inputs.items() if key != "token_type_ids"}
    other = gemma.with_model(copy.deepcopy(gemma.model))
    reader = other.part(other.family.language)

    def move_last(_, __, given):
        embeds = given["inputs_embeds"].clone()
        embeds[0, last] += 1
        return (), given | {"inputs_embeds": embeds}

    reader.register_forward_pre_hook(move_last, with_kwargs=True)
    with_types = (hidden_rows(other, batch.inputs) - hidden_rows(gemma, batch.inputs)).abs().amax(dim=-1)
    without = (hidden_rows(other, inputs) - hidden_rows(gemma, inputs)).abs().amax(dim=-1)
    assert with_types[first] > 1e-4
    assert without[first] == 0
    assert with_types[first - 1] == 0  # text before the image
    assert (with_types[last:] > 0).all()
    assert (without[last:] > 0).all()


def test_answer_ends_with_the_turn_or_with_the_text_where_there_are_no_turns(gemma):
    assert gemma.tokenizer.decode([gemma.end_id]) == "<end_of_turn>"
    other = copy.copy(gemma)
    other.tokenizer = copy.deepcopy(gemma.tokenizer)
    ids = gemma.tokenizer.convert_tokens_to_ids
    other.tokenizer.convert_tokens_to_ids = lambda token: ids("no token" if token == "<end_of_turn>" else token)
    assert other.end_id == gemma.tokenizer.eos_token_id


def test_scores_of_the_checkpoints_sampling_are_not_used(gemma):
    image = Image.new("RGB", (60, 40), (90, 60, 200))
    texts = {gemma.answer([image], ["Side?"], max_new_tokens=5)[0] for _ in range(4)}
    assert len(texts) == 1
    assert gemma.core.generation_config.do_sample
