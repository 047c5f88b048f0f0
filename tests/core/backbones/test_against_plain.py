"""Every family against plain transformers: processor, chat template and model as their documentation calls them.

Both sides read the same conversations with 0, 1 and 2 images that are not square, padded on the left.
"""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.conversation import Conversation, assistant, user
from lightbox.backbones.loading import load
from lightbox.testing.shrunk import save_shrunk

NAMES = ["llava-1.5-7b", "llava-med", "llava-next", "qwen2-vl-7b", "qwen2.5-vl-7b", "medgemma-4b"]
LIMIT = 1e-5
STEPS = 6


def picture(seed, height, width):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(0, 60, 90), picture(1, 100, 57), picture(2, 56, 150)]
ROWS = [([], "Side?"), (IMAGES[:1], "Is there an effusion?"), (IMAGES[1:], "Which of these has the larger nodule?")]


@pytest.fixture(scope="module", params=NAMES)
def backbone(request, tmp_path_factory):
    loaded = load(str(save_shrunk(request.param, tmp_path_factory.mktemp("plain"))))
    with torch.no_grad():  # choices that are wide apart, and no image tokens among them
        head = loaded.part(loaded.family.head)
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3)))
        head.weight[[loaded.end_id, *loaded.tokenizer.added_tokens_decoder]] = 0
    return loaded


def plain_inputs(backbone, rows):
    """What the processor makes of the rows, by the documented calls."""
    texts = []
    for images, text in rows:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        message = [{"role": "user", "content": content}]
        texts.append(backbone.processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    nested = [images for images, _ in rows]
    flat = [image for images in nested for image in images]
    begin = backbone.tokenizer.bos_token
    is_begun = begin is not None and texts[0].startswith(begin)
    pictures = {} if not flat else {"images": nested if backbone.family.name == "gemma3" else flat}
    encoded = backbone.processor(
        text=texts,
        **pictures,
        padding=True,
        padding_side="left",
        add_special_tokens=not is_begun,
        return_tensors="pt",
    )
    return dict(encoded)


def batch_of(backbone, rows):
    conversations = [Conversation((user(*images, text),)) for images, text in rows]
    return backbone.prepare_conversations(conversations, max_tokens=500, padding="left")


@pytest.mark.slow
@pytest.mark.parametrize("places", [(0,), (1,), (2,), (0, 1, 2)], ids=["text", "one", "two", "together"])
@torch.no_grad()
def test_inputs_logits_and_greedy_ids_are_those_of_plain_transformers(backbone, places):
    rows = [ROWS[place] for place in places]
    plain, batch = plain_inputs(backbone, rows), batch_of(backbone, rows)
    assert set(plain) - {"token_type_ids", "mm_token_type_ids"} <= set(batch.inputs)
    for name in plain.keys() & batch.inputs.keys():
        assert torch.equal(plain[name], batch.inputs[name]), name
    wanted = backbone.model(**plain, use_cache=False).logits
    have = backbone.model(**backbone.inputs_of(batch), use_cache=False).logits
    assert (have - wanted).abs().max() <= LIMIT
    settings = copy.deepcopy(backbone.core.generation_config)
    settings.update(do_sample=False, temperature=1.0, top_p=1.0, top_k=50, repetition_penalty=1.0)
    ids = backbone.core.generate(**plain, generation_config=settings, max_new_tokens=STEPS)
    assert torch.equal(ids[:, -STEPS:], backbone.generate(batch, max_new_tokens=STEPS).ids)


@torch.no_grad()
def test_vision_features_are_those_of_plain_transformers(backbone):
    pixels = backbone.processor.image_processor(IMAGES, return_tensors="pt")
    fields = {name: pixels[name] for name in backbone.IMAGE_FIELDS}
    wanted = backbone.core.get_image_features(**fields, return_dict=True).pooler_output
    for have, want in zip(backbone.project(backbone.tower(IMAGES)), wanted, strict=True):
        assert (have - want).abs().max() <= LIMIT


@torch.no_grad()
def test_log_probabilities_are_those_of_plain_transformers(backbone):
    """Of an answer behind each prompt, by softmax over all logits of the model's own forward."""
    answer = backbone.target_ids("the left lung")
    conversations = [Conversation((user(*images, text), assistant("the left lung"))) for images, text in ROWS]
    have = backbone.sequence_logps(backbone.prepare_conversations(conversations, max_tokens=500))
    for row, (images, text) in enumerate(ROWS):
        plain = plain_inputs(backbone, [(images, text)])
        more = torch.tensor([answer])
        for name, filler in (("attention_mask", 1), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
            if name in plain:
                plain[name] = torch.cat([plain[name], torch.full_like(more, filler)], dim=1)
        plain["input_ids"] = torch.cat([plain["input_ids"], more], dim=1)
        logps = backbone.model(**plain, use_cache=False).logits[0, -len(answer) - 1 : -1].log_softmax(dim=-1)
        wanted = logps.gather(1, more.T).sum()
        assert (have[row] - wanted).abs() <= LIMIT * len(answer)


@torch.no_grad()
def test_encoder_decoders_read_and_say_what_plain_transformers_does(tmp_path):
    """Florence-2 with an image a row, T5 with none: inputs, logits of an answer, greedy ids."""
    texts = [text for _, text in ROWS]
    for name in ("florence-2-base", "unifiedqa-t5-base"):
        own = load(str(save_shrunk(name, tmp_path / name)))
        pictures = {"images": IMAGES} if own.family.has_vision else {}
        plain = dict(own.processor(text=texts, **pictures, padding=True, padding_side="right", return_tensors="pt"))
        batch = own.prepare(IMAGES if pictures else None, texts, ["left", "right", "no"], max_tokens=400)
        for key, value in plain.items():
            assert torch.equal(batch.inputs[key], value), (name, key)
        answers = batch.inputs["decoder_input_ids"]
        wanted = own.model(**plain, decoder_input_ids=answers, use_cache=False).logits
        have = own.model(**own.inputs_of(batch), use_cache=False).logits
        assert (have - wanted).abs().max() <= LIMIT
        settings = copy.deepcopy(own.core.generation_config)
        settings.update(do_sample=False, num_beams=1, no_repeat_ngram_size=0, early_stopping=False)
        # Florence-2's would end an answer that is cut off; None among settings is filled in from the model's own
        settings.forced_eos_token_id = own.core.generation_config.forced_eos_token_id = None
        settings.max_new_tokens = STEPS
        ids = own.core.generate(**plain, generation_config=settings)[:, 1:]
        asked = own.prepare(IMAGES if pictures else None, texts, max_tokens=400)
        assert torch.equal(own.generate(asked, max_new_tokens=STEPS).ids, ids)
