"""The tiny `llava`: its rows, its files, and that it answers from the image."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lightbox.backbones.loading import load
from lightbox.backbones.towers import load_tower
from lightbox.backbones.weights import CARD, digest_of
from lightbox.paths import shared_data
from lightbox.pretrain.llava import ASSISTANT, BOS, IMAGE, PREFIX, USER, make_model, make_tokenizer, standardise
from lightbox.pretrain.llava_rows import (
    CAPTION_TURN,
    IMAGE_TURN,
    ChatRows,
    ChatSet,
    Turn,
    answer_logits,
    chat_loss,
    chat_set,
    turn_mask,
)
from lightbox.pretrain.llava_scores import read_report, score_answers, score_captions, write_captions
from lightbox.pretrain.tower import normalise
from lightbox.testing.close import assert_close

FOLDER = shared_data() / "weights" / "llava"
IMAGE_TOKENS = 64


@pytest.fixture(scope="module")
def model():
    return LlavaForConditionalGeneration.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def held_back():
    return chat_set("validation", 150)


def rows_of(chats, processor):
    return ChatRows(chats, processor.tokenizer, prefix=PREFIX, assistant=ASSISTANT)


def test_tokenizer_is_the_shipped_one_and_reads_the_chat_form(processor):
    tokenizer = make_tokenizer()
    assert tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    text = "USER: <image>\nIs there a nodule? ASSISTANT: yes"
    tokens = [BOS, USER, IMAGE, "is", "there", "a", "nodule", "?", ASSISTANT, "yes"]
    for one in (tokenizer, processor.tokenizer):
        assert one.convert_ids_to_tokens(one(text)["input_ids"]) == tokens
        assert (one.pad_token_id, one.eos_token, one.bos_token) == (0, "</s>", BOS)
        assert one.decode(one("a hazy oval .")["input_ids"], skip_special_tokens=True) == "a hazy oval ."
        assert one.unk_token_id not in one("zebra crossing 1024 (x) [y]!")["input_ids"]


def test_processor_writes_the_prompt_that_pretraining_used(processor, held_back):
    content = [{"type": "image"}, {"type": "text", "text": "is there a nodule ?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert prompt == "USER: <image>\nis there a nodule ? ASSISTANT:"
    inputs = processor(images=Image.fromarray(held_back.cases[0].images[0]), text=prompt, return_tensors="pt")
    ids = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert ids == [*PREFIX, "is", "there", "a", "nodule", "?", ASSISTANT]
    assert ids.count(IMAGE) == IMAGE_TOKENS
    assert_close(inputs["pixel_values"], normalise(held_back.pixels([0])))


def test_a_row_holds_each_turn_with_its_labels_and_positions(processor, held_back):
    chats = ChatSet(held_back.cases[:1], [[Turn("caption", "describe", "clear ."), Turn("count", "how many", "one")]])
    batch = rows_of(chats, processor).collate([0])
    ids = processor.tokenizer.convert_tokens_to_ids
    start = len(PREFIX)
    # one column a token after the image: what it is, its turn, its position, the token that it must predict
    wanted = [
        ("describe", 2, 0, None),
        (ASSISTANT, 2, 1, "clear"),
        ("clear", 2, 2, "."),
        (".", 2, 3, "</s>"),
        ("</s>", 2, 4, None),
        ("how", 3, 0, None),
        ("many", 3, 1, None),
        (ASSISTANT, 3, 2, "one"),
        ("one", 3, 3, "</s>"),
        ("</s>", 3, 4, None),
    ]
    for k, (token, turn, position, label) in enumerate(wanted, start):
        assert batch["input_ids"][0, k] == ids(token)
        assert batch["turns"][0, k] == turn
        assert batch["position_ids"][0, k] == start + position
        assert batch["labels"][0, k] == (-100 if label is None else ids(label))
    assert batch["input_ids"].shape == (1, start + len(wanted))
    assert (batch["turns"][0, :start] == IMAGE_TURN).all()
    assert (batch["labels"][0, :start] == -100).all()


def test_a_turn_sees_the_image_and_itself_only():
    sees = turn_mask(torch.tensor([[IMAGE_TURN, IMAGE_TURN, CAPTION_TURN, CAPTION_TURN, 3, 0]]))[0, 0].int().tolist()
    assert sees == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],  # caption
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],  # question: not the caption
        [1, 1, 0, 0, 0, 1],  # padding sees itself, so its softmax is defined; nothing sees padding
    ]


def test_turns_in_one_row_give_the_logits_that_each_gives_alone(model, processor, held_back):
    rows = rows_of(held_back, processor)
    with torch.inference_mode():
        together, _ = answer_logits(model, rows.collate([0, 1]))
        alone = []
        for i in (0, 1):
            for prompt, answer in rows.texts[i]:
                ids = torch.tensor([[*rows.prefix, *prompt, rows.assistant, *answer]])
                logits = model(input_ids=ids, pixel_values=normalise(held_back.pixels([i]))).logits
                alone.append(logits[0, -len(answer) - 1 :])
    assert len(alone) == len(rows.texts[0]) + len(rows.texts[1])
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_padding_and_order_of_rows_do_not_change_the_loss(model, processor, held_back):
    rows = rows_of(held_back, processor)
    with torch.inference_mode():
        total, tokens, _ = chat_loss(model, rows.collate([0, 1, 2]))
        parts = [chat_loss(model, rows.collate([i])) for i in (2, 0, 1)]
    assert_close(total, sum(part[0] for part in parts))
    assert int(tokens) == sum(int(part[1]) for part in parts)


def test_a_new_model_starts_from_the_tiny_tower_with_a_projector_that_sees_unit_features(processor, held_back):
    model, pixels = make_model(processor.tokenizer), held_back.pixels(range(60))
    standardise(model, pixels)
    seen = []
    hook = model.model.multi_modal_projector.linear_1.register_forward_hook(
        lambda _, args, out: seen.append((*args, out))
    )
    with torch.inference_mode():
        model.get_image_features(pixel_values=normalise(pixels))
    hook.remove()
    ((features, projected),) = seen
    assert_close(features, load_tower("tiny/tower").encode(torch.from_numpy(pixels)))
    assert projected.flatten(0, 1).mean(dim=0).abs().max() < 1e-4
    assert 0.5 < projected.std() < 2


def test_both_ways_of_loading_give_the_same_answers(model, processor, held_back):
    backbone = load("tiny/llava")
    images = [Image.fromarray(case.images[0]) for case in held_back.cases[:6]]
    prompts = [turns[1].prompt for turns in held_back.turns[:6]]
    texts = [f"USER: <image>\n{prompt} ASSISTANT:" for prompt in prompts]
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    plain = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    assert backbone.answer(images, prompts, max_new_tokens=8) == plain
    assert all(plain)


@pytest.mark.slow
def test_answers_come_from_the_image(model, processor, held_back):
    """By at least 20 points over mean grey, over another image, and over the best guess from the text."""
    scores = score_answers(model, rows_of(held_back, processor), text_only={})
    for kind in ("presence", "side", "zone", "count", "naming", "threshold", "composition"):
        assert scores[kind] > 0.7, kind
        assert scores[kind] > scores[f"{kind}_blank"] + 0.2, kind
        assert scores[kind] > scores[f"{kind}_shuffled"] + 0.2, kind


@pytest.mark.slow
def test_captions_name_findings_of_their_own_image(model, processor, held_back):
    indices = list(range(100))
    captions = write_captions(model, processor.tokenizer, rows_of(held_back, processor), indices)
    cases = [held_back.cases[i] for i in indices]
    own, other = score_captions(captions, cases), score_captions(captions, [*cases[1:], cases[0]])
    assert own["caption_finding_recall"] > other["caption_finding_recall"] + 0.3
    assert own["caption_finding_precision"] > other["caption_finding_precision"] + 0.3
    assert np.mean([bool(read_report(text).names) for text in captions]) > 0.5


def test_card_tells_what_it_starts_from_saw_and_scores():
    card = json.loads((FOLDER / CARD).read_text())
    assert card["starts_from"] == {"tiny/tower": digest_of("tiny/tower")}
    assert card["parameters"] <= 1_300_000
    for hidden in ("preference pairs", "text-biased questions", "boxes", "test seeds", "held-out triples"):
        assert hidden in card["must_not_see"]
    scores = card["scores"]
    for kind in ("presence", "side"):
        rivals = [scores[f"{kind}_{rival}"] for rival in ("blank", "shuffled", "text_only")]
        assert scores[kind] > max(rivals) + 0.2
        assert abs(scores[f"{kind}_text_only"] - 0.5) < 0.03
