"""What the tiny florence2 is taught: phrases that fit their boxes, of known triples only, in the form it is used in."""

from typing import Any

import numpy as np
import pytest
import torch

from lightbox.backbones.codecs import FlorenceBins
from lightbox.knowledge import PSEUDO_WORDS, synonyms
from lightbox.phantom import draw_cases, seed_range
from lightbox.phantom.ontology import CLASS_NAMES
from lightbox.phantom.splits import triple_mask
from lightbox.pretrain.florence2 import EXTRA_WORDS, make_model, make_processor, make_tokenizer
from lightbox.pretrain.florence2_rows import (
    BINS,
    BOS,
    EOS,
    KINDS,
    PAD,
    PARTS,
    PHRASES_PER_CASE,
    WORLDS,
    PhraseRows,
    ask,
    encode,
    phrase_loss,
    phrase_set,
    write,
)
from lightbox.pretrain.florence2_scores import draw_boxes


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return PhraseRows(phrase_set("pretrain", 60), tokenizer)


def cases_of(knobs, n=60):
    return [c for c in draw_cases(seed_range("pretrain", 3, n), knobs, questions_per_case=0) if c.findings]


@pytest.mark.parametrize("knobs", WORLDS, ids=lambda knobs: f"{knobs.distractors} distractors")
def test_a_phrase_has_the_boxes_of_every_finding_that_fits_it_and_of_no_other(knobs):
    rng = np.random.default_rng(0)
    for case in cases_of(knobs):
        for kind in KINDS:
            phrase = ask(case, kind, rng)
            fits = [
                finding
                for finding in case.findings
                if any(
                    write({part: finding.attributes[part] for part in parts}) == phrase.text
                    for parts in (PARTS, PARTS[:2], *((part,) for part in PARTS))
                )
            ]
            assert sorted(phrase.boxes) == sorted(box for finding in fits for box in finding.boxes)
            assert bool(phrase.boxes) == (kind != "absent")
            assert list(phrase.boxes) == sorted(phrase.boxes, key=lambda box: (box.y0, box.x0))


@pytest.mark.parametrize("knobs", WORLDS, ids=lambda knobs: f"{knobs.distractors} distractors")
def test_only_known_triples_are_drawn(knobs):
    assert knobs.triples == "known"
    assert 0 < triple_mask("known").sum() < len(triple_mask("known"))
    shapes = {finding.attributes["shape"] for case in cases_of(knobs) for finding in case.findings}
    assert "ring" not in shapes


def test_no_phrase_names_a_class_or_a_held_out_shape():
    phrases = [phrase for of_case in phrase_set("pretrain", 150).phrases for phrase in of_case]
    words = {word for phrase in phrases for word in phrase.text.split()}
    assert not words & {*CLASS_NAMES, "ring", *EXTRA_WORDS, *PSEUDO_WORDS}


def test_each_word_of_appearance_and_each_location_is_one_token(tokenizer):
    later = [w for values in synonyms().words.values() for words in values.values() for w in words]
    for word in (*EXTRA_WORDS, *later, *PSEUDO_WORDS, *(f"<loc_{k}>" for k in range(BINS)), "<image>"):
        assert tokenizer.tokenize(word) == [word]
    assert tokenizer.unk_token_id not in tokenizer("vorpal bright , lung 7")["input_ids"]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (BOS, PAD, EOS)


def test_a_row_is_what_the_processor_makes_of_the_grounding_task(tokenizer, rows):
    phrase = rows.data.phrases[0][0]
    processor: Any = make_processor(tokenizer)
    image = np.repeat(rows.data.pixels[0][..., None], 3, axis=2)
    made = processor(text=f"<CAPTION_TO_PHRASE_GROUNDING>{phrase.text}", images=image, return_tensors="pt")
    n_image = processor.num_image_tokens
    assert (made["input_ids"][0, :n_image] == tokenizer.convert_tokens_to_ids("<image>")).all()
    assert made["input_ids"][0, n_image:].tolist() == rows.prompts[0]
    torch.testing.assert_close(made["pixel_values"][0], rows.collate([0])["pixel_values"][0], atol=1e-5, rtol=0)


def test_phrases_of_an_image_share_its_tower_pass_and_nothing_else(tokenizer, rows):
    torch.manual_seed(0)
    model = make_model(tokenizer).eval()
    batch = rows.collate([2, 5])
    with torch.no_grad():
        shared = model.model.language_model.encoder(**encode(model, batch)).last_hidden_state
        image = torch.full((1, 65), tokenizer.convert_tokens_to_ids("<image>"))
        ids = torch.tensor([rows.prompts[PHRASES_PER_CASE * 5 + 1]])
        alone = model.model.language_model.encoder(
            **encode(
                model,
                {**batch, "pixel_values": batch["pixel_values"][1:], "input_ids": ids}
                | {"attention_mask": torch.ones_like(ids)},
            )
        ).last_hidden_state
        by_hugging_face = model(
            input_ids=torch.cat([image, ids], dim=1),
            pixel_values=batch["pixel_values"][1:],
            decoder_input_ids=torch.tensor([[EOS]]),
        ).encoder_last_hidden_state
    torch.testing.assert_close(shared[PHRASES_PER_CASE + 1, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(by_hugging_face, alone, atol=1e-5, rtol=1e-4)


def test_the_loss_is_that_of_hugging_face(tokenizer, rows):
    torch.manual_seed(0)
    model = make_model(tokenizer).eval()
    batch = rows.collate([0, 1])
    total, tokens, _ = phrase_loss(model, batch)
    theirs = model(**encode(model, batch), labels=batch["labels"]).loss
    assert tokens == (batch["labels"] != -100).sum()
    torch.testing.assert_close(total / tokens, theirs)


def test_targets_read_back_as_the_boxes(tokenizer, rows):
    codec = FlorenceBins(BINS)
    flat = [phrase for phrases in rows.data.phrases for phrase in phrases]
    for ids, phrase in zip(rows.targets, flat, strict=True):
        boxes = codec.decode(tokenizer.decode(ids).replace(" ", ""), BINS, BINS)
        assert len(boxes) == len(phrase.boxes)
        assert all(
            abs(a - b) <= 1 / BINS
            for box, true in zip(boxes, phrase.boxes, strict=True)
            for a, b in zip(box, true, strict=True)
        )


def test_boxes_are_drawn_for_every_phrase(tokenizer, rows):
    torch.manual_seed(0)
    assert len(draw_boxes(make_model(tokenizer).eval(), tokenizer, rows, [0, 3])) == 2 * PHRASES_PER_CASE
