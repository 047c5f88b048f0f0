"""What every family keeps to, on each published model in miniature: labels, sums, padding, generation, vision."""

import copy
import functools

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.loading import CLASSES, load
from lightbox.backbones.published import GENERATORS
from lightbox.config import OptimConfig, RunConfig
from lightbox.errors import RequestError
from lightbox.losses.language import token_cross_entropy
from lightbox.testing.shrunk import save_shrunk
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit

PROMPTS = ["Is there an effusion?", "Side?", "Where is the nodule in the left zone of the lung?"]
TARGETS = ["yes, on the left", "no", "the upper zone"]


def picture(seed, height, width):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(0, 70, 90), picture(1, 64, 150), picture(2, 130, 60)]


SEEING = [name for name in GENERATORS if name != "unifiedqa-t5-base"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Name -> backbone, loaded once."""
    return functools.cache(lambda name: load(str(save_shrunk(name, tmp_path_factory.mktemp("shrunk")))))


@pytest.fixture(scope="module", params=GENERATORS)
def backbone(request, loaded):
    return loaded(request.param)


@pytest.fixture(scope="module", params=SEEING)
def seeing(request, loaded):
    """A family that reads images."""
    return loaded(request.param)


@pytest.fixture(scope="module")
def images(backbone):
    return IMAGES if backbone.family.has_vision else None


def prepared(backbone, order=(0, 1, 2), *, prompts=PROMPTS, **settings):
    return backbone.prepare(
        [IMAGES[i] for i in order] if backbone.family.has_vision else None,
        [prompts[i] for i in order],
        [TARGETS[i] for i in order],
        **({"max_tokens": 400} | settings),
    )


def full_logits(backbone, batch):
    """Logits of all positions beside the labels that they predict."""
    logits = backbone.model(**batch.inputs, use_cache=False).logits
    return (logits, batch.labels) if backbone.family.is_encoder_decoder else (logits[:, :-1], batch.labels[:, 1:])


def first_ids(backbone):
    """What an encoder-decoder's decoder is given before it chooses."""
    if not backbone.family.is_encoder_decoder:
        return []
    begin = [backbone.tokenizer.bos_token_id] if backbone.family.name == "florence2" else []
    return [backbone.decoder_start_id, *begin]


@pytest.mark.slow
def test_every_family_has_its_class_and_its_miniature(backbone):
    assert type(backbone) is CLASSES[backbone.family.name]
    assert not backbone.model.training


def test_labels_cover_the_target_and_its_end_only(backbone):
    batch = prepared(backbone)
    for index, target in enumerate(TARGETS):
        labels = batch.labels[index]
        is_target = labels != -100
        wanted = backbone.target_ids(target)
        assert labels[is_target].tolist() == wanted
        assert wanted[-1] == backbone.end_id
        assert backbone.read_ids(torch.tensor(wanted)).strip() == target
        if backbone.family.is_encoder_decoder:
            shifted = [backbone.decoder_start_id, *wanted[:-1]]
            assert batch.inputs["decoder_input_ids"][index, : len(shifted)].tolist() == shifted
        else:
            ids, mask = batch.inputs["input_ids"][index], batch.inputs["attention_mask"][index]
            assert ids[is_target].tolist() == wanted
            assert is_target.nonzero().flatten().tolist() == list(range(mask.sum() - len(wanted), mask.sum()))


def test_sliced_loss_is_the_full_loss_in_value_and_gradient(backbone):
    batch = prepared(backbone)
    parameters = [parameter for parameter in backbone.model.parameters() if parameter.requires_grad]
    wanted, count = token_cross_entropy(*full_logits(backbone, batch))
    wanted_gradients = torch.autograd.grad(wanted, parameters, allow_unused=True)
    total, tokens, _ = backbone.loss(batch)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    assert tokens == count == (batch.labels != -100).sum()
    torch.testing.assert_close(total, wanted, rtol=1e-6, atol=0)
    assert sum(gradient is not None for gradient in wanted_gradients) > 20
    for have, want in zip(gradients, wanted_gradients, strict=True):
        assert (have is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-5)


def test_sequence_log_probability_by_hand(backbone):
    batch = prepared(backbone, order=[1])
    logits, labels = full_logits(backbone, batch)
    logps = logits[0].log_softmax(dim=-1)
    by_hand = sum(logps[place, label] for place, label in enumerate(labels[0].tolist()) if label != -100)
    torch.testing.assert_close(backbone.sequence_logps(batch)[0], by_hand, rtol=1e-6, atol=1e-5)


@pytest.mark.slow
def test_padding_and_order_change_nothing(backbone):
    """Alone, beside rows and images of other sizes, padded left or right, by more or less, in another order."""
    long = [*PROMPTS[:2], PROMPTS[2] * 2]
    alone = torch.cat(
        [backbone.sequence_logps(prepared(backbone, [i], prompts=p)) for i, p in enumerate([PROMPTS, PROMPTS, long])]
    )
    for prompts, rows in ((PROMPTS, [0, 1]), (long, [0, 1, 2])):
        for side in ("right", "left"):
            together = backbone.sequence_logps(prepared(backbone, prompts=prompts, padding=side))
            torch.testing.assert_close(together[rows], alone[rows], rtol=1e-5, atol=1e-4)
    other = backbone.sequence_logps(prepared(backbone, [2, 0, 1], prompts=long))
    torch.testing.assert_close(other, alone[[2, 0, 1]], rtol=1e-5, atol=1e-4)


def test_eager_attention_gives_the_same(backbone):
    batch = prepared(backbone)
    wanted = backbone.sequence_logps(batch)
    other = backbone.with_model(copy.deepcopy(backbone.model))
    other.model.set_attn_implementation("eager")
    torch.testing.assert_close(other.sequence_logps(batch), wanted, rtol=1e-5, atol=1e-4)


def test_one_step_on_a_batch_lowers_its_loss(backbone):
    other = backbone.with_model(copy.deepcopy(backbone.model))
    batch = prepared(other)
    optimizer = torch.optim.AdamW(other.model.parameters(), lr=1e-3)
    before, tokens, _ = other.loss(batch)
    (before / tokens).backward()
    optimizer.step()
    assert other.loss(batch)[0] < before - 1


@pytest.mark.slow
def test_miniature_goes_through_train_evaluate_and_predict(backbone, images, tmp_path):
    """By the step driver: the loss falls, an evaluation and predictions are made, and what is saved answers alike."""
    other = backbone.with_model(copy.deepcopy(backbone.model))

    def evaluate(model):
        answers = other.with_model(model).answer(images, PROMPTS, max_new_tokens=3)
        return {"val/acc": float(np.mean([a == t for a, t in zip(answers, TARGETS, strict=True)]))}

    history = fit(
        other.model,
        lambda model, batch: other.with_model(model).loss(batch),
        BatchSource(3, lambda indices: prepared(other, indices), batch_size=3, seed=0),
        optim=OptimConfig(lr=2e-3, max_steps=6, batch_size=3, micro_batch_size=1),
        run=RunConfig(seed=0, log_every_steps=1),
        out=tmp_path / "run",
        evaluate=evaluate,
    )
    losses = [value for _, value in history["train/loss"]]
    assert losses[-1] < losses[0] - 0.3
    assert len(history["val/acc"]) == 1
    other.core.save_pretrained(tmp_path / "saved")
    other.processor.save_pretrained(tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    batch = prepared(other)
    assert torch.equal(again.sequence_logps(batch), other.with_model(other.model.eval()).sequence_logps(batch))
    answers = [one.answer(images, PROMPTS, max_new_tokens=4) for one in (again, other)]
    assert answers[0] == answers[1]


def test_image_decides_the_answer(seeing):
    batch = prepared(seeing)
    other = seeing.prepare(IMAGES[1:] + IMAGES[:1], PROMPTS, TARGETS, max_tokens=400)
    difference = (seeing.sequence_logps(batch) - seeing.sequence_logps(other)).abs()
    assert (difference > 1e-4).all()


def test_text_alone_is_read_without_image_tokens(backbone):
    batch = backbone.prepare(None, PROMPTS, TARGETS, max_tokens=400)
    assert "pixel_values" not in batch.inputs
    assert backbone.image_token_id is None or (batch.inputs["input_ids"] != backbone.image_token_id).all()
    assert torch.isfinite(backbone.loss(batch)[0])
    texts = backbone.answer(None, PROMPTS, max_new_tokens=4)
    assert len(texts) == 3


# ---- generation


def never_ending(backbone):
    """The backbone with an end that random weights do not choose at once, and with wider choices between tokens."""
    other = backbone.with_model(copy.deepcopy(backbone.model))
    with torch.no_grad():
        head = other.part(other.family.head)
        generator = torch.Generator().manual_seed(3)
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=generator))
        head.weight[[other.end_id, *other.tokenizer.added_tokens_decoder]] = 0  # images cannot be generated
    return other


@torch.no_grad()
def generate_uncached(backbone, image, prompt, steps):
    """Ids, one at a time, reading the whole row anew each time."""
    inputs = dict(backbone.prepare(image, [prompt], max_tokens=400).inputs)
    if backbone.family.is_encoder_decoder:
        ids = torch.tensor([first_ids(backbone)])
    else:
        ids = inputs.pop("input_ids")
    begin = ids.shape[1]
    for _ in range(steps):
        if backbone.family.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        else:
            new = ids.shape[1] - begin
            row = backbone.prepare(image, [prompt], max_tokens=400).inputs
            inputs |= {key: torch.cat([row[key], row[key].new_zeros(1, new)], dim=1) for key in token_fields(row)}
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        best = backbone.model(**inputs, use_cache=False).logits[:, -1].argmax(dim=-1)
        ids = torch.cat([ids, best[:, None]], dim=1)
    return ids[0, begin:].tolist()


def token_fields(row):
    return [key for key in ("token_type_ids", "mm_token_type_ids") if key in row]


@pytest.mark.slow
def test_cached_generation_of_a_batch_equals_uncached_of_each(backbone, images):
    other = never_ending(backbone)
    steps = 10
    texts = other.answer(images, PROMPTS, max_new_tokens=steps + len(first_ids(other)[1:]), batch_size=3)
    ids = [generate_uncached(other, images and [images[i]], PROMPTS[i], steps) for i in range(3)]
    assert other.end_id not in {token for row in ids for token in row}
    assert texts == [other.read_ids(torch.tensor(row)).strip() for row in ids]
    assert len({token for row in ids for token in row}) > 3


@pytest.mark.slow
def test_batches_of_generation_change_nothing_and_keep_the_order(backbone, images):
    other = never_ending(backbone)
    texts = other.answer(images, PROMPTS, max_new_tokens=6, batch_size=3)
    assert other.answer(images, PROMPTS, max_new_tokens=6, batch_size=1) == texts
    assert other.answer(images and images[::-1], PROMPTS[::-1], max_new_tokens=6, batch_size=2) == texts[::-1]


def test_loss_after_generation_is_the_loss_before(backbone, images):
    """Qwen2-VL keeps positions of the last images in the model."""
    batch = prepared(backbone)
    before = backbone.loss(batch)[0]
    backbone.answer(images and images[::-1], PROMPTS, max_new_tokens=3)
    assert torch.equal(backbone.loss(batch)[0], before)
    text = backbone.prepare(None, PROMPTS[:2], TARGETS[:2], max_tokens=400)
    assert torch.isfinite(backbone.loss(text)[0])


# ---- boxes


def test_box_in_an_answer_comes_back_through_the_tokenizer(backbone):
    """Location and box tokens are special in some tokenizers, and what is read must still hold the box."""
    box, size = (0.125, 0.25, 0.5, 0.75), (90, 70)
    text = f"a nodule {backbone.codec.encode(box, *size)}"
    read = backbone.read_ids(torch.tensor(backbone.target_ids(text)))
    (found,) = backbone.codec.decode(read, *size)
    across, down = backbone.codec.step(*size)
    assert found == pytest.approx(box, abs=max(across, down))


# ---- vision tokens


def test_vision_tokens_are_what_the_language_model_reads(seeing):
    seen = {}

    def record(_, arguments, inputs):
        seen["embeds"] = inputs["inputs_embeds"] if "inputs_embeds" in inputs else arguments[0]

    reader = seeing.part(seeing.family.language)
    reader = reader.encoder if seeing.family.is_encoder_decoder else reader
    handle = reader.register_forward_pre_hook(record, with_kwargs=True)
    batch = prepared(seeing)
    with torch.no_grad():
        seeing.loss(batch)
        handle.remove()
        tokens = seeing.project(seeing.tower(IMAGES))
    is_image = batch.inputs["input_ids"] == seeing.image_token_id
    assert [len(own) for own in tokens] == is_image.sum(dim=1).tolist()
    torch.testing.assert_close(torch.cat(tokens), seen["embeds"][is_image], rtol=1e-4, atol=1e-5)


def test_taps_are_outputs_of_the_towers_layers(seeing):
    features = seeing.tower(IMAGES, layers=(0, -1))
    again = seeing.tower(IMAGES[1:], layers=(0,))
    assert set(features.taps) == {0, -1}
    assert len(features.grids) == 3
    for layer in (0, -1):
        assert len(features.taps[layer].outputs) == 3
        assert all(torch.isfinite(tap).all() for tap in features.taps[layer].outputs)
    for tap, other in zip(features.taps[0].outputs[1:], again.taps[0].outputs, strict=True):
        torch.testing.assert_close(tap, other, rtol=1e-4, atol=1e-5)
    first, last = (features.taps[layer].outputs[0][0] for layer in (0, -1))
    assert not torch.allclose(first, last[: len(first)])
    with pytest.raises(RequestError, match="Name layers that are there"):
        seeing.tower(IMAGES, layers=(40,))


def test_prompt_that_names_the_image_token_is_refused(seeing):
    token = seeing.image_token or seeing.processor.image_token
    with pytest.raises(RequestError, match="image token count would not fit"):
        seeing.prepare(IMAGES[:1], [f"What does {token} show?"], max_tokens=400)


def test_half_precision_is_loaded_whatever_the_file_holds(backbone):
    other = load(backbone.name, dtype="bf16")
    assert {parameter.dtype for parameter in other.model.parameters()} == {torch.bfloat16}
    batch = prepared(other)
    floats = [value for value in batch.inputs.values() if value.is_floating_point()]
    assert all(value.dtype == torch.bfloat16 for value in floats)
    loss, tokens, _ = other.loss(batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss / tokens, backbone.loss(prepared(backbone))[0] / tokens, rtol=2e-2, atol=0)
