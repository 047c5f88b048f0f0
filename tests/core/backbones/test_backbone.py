"""The interface that all families share, on a tiny LLaVA and T5: labels, padding, order, sums, generation."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import StoppingCriteriaList

from lightbox.adapters.lora import add_lora
from lightbox.backbones.generation import Ends
from lightbox.backbones.loading import load
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.losses.language import token_cross_entropy
from lightbox.testing.tiny_models import save_llava, save_t5

PROMPTS = ["Is there an effusion?", "Side?", "Where is the nodule"]
TARGETS = ["yes, left", "no", "upper zone"]
WORDS = "is there an effusion side where the nodule yes left no upper zone".split()


def picture(seed, height=40, width=50):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load(str(save_llava(tmp_path_factory.mktemp("llava"))))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return load(str(save_t5(tmp_path_factory.mktemp("t5"), WORDS)))


@pytest.fixture(params=["llava", "t5"])
def case(request):
    """A backbone and the images for it."""
    backbone = request.getfixturevalue(request.param)
    return backbone, IMAGES if backbone.family.has_vision else None


def test_a_row_is_template_image_question_answer_and_end(llava):
    """The golden example: every token of a row with its label."""
    batch = llava.prepare([IMAGES[0]], ["Is it?"], ["no"], max_tokens=100)
    tokens = llava.tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][0])
    row = list(zip(tokens, batch.labels[0].tolist(), strict=True))
    assert row == [
        ("<s>", -100),  # what every row begins with
        *((token, -100) for token in "USER:"),  # LLaVA-1.5's prompt
        ("Ġ", -100),
        *[("<image>", -100)] * 16,  # 32 px in patches of 8, class token dropped
        ("Ċ", -100),
        *((token, -100) for token in ["I", "s", "Ġ", "i", "t", "?"]),  # the question
        ("Ġ", -100),
        *((token, -100) for token in "ASSISTANT:"),
        ("n", llava.tokenizer.convert_tokens_to_ids("n")),  # the answer carries the loss
        ("o", llava.tokenizer.convert_tokens_to_ids("o")),
        ("</s>", llava.tokenizer.eos_token_id),  # and so does its end
    ]
    assert batch.inputs["pixel_values"].shape == (1, 3, 32, 32)


def test_an_encoder_decoder_row_has_its_answer_beside_the_decoder(t5):
    batch = t5.prepare(None, ["is there an effusion ?", "side ?"], ["no", "upper zone"], max_tokens=9)
    names = t5.tokenizer.convert_ids_to_tokens
    assert names(batch.inputs["input_ids"][0]) == ["is", "there", "an", "effusion", "?", "</s>"]
    assert names(batch.inputs["input_ids"][1]) == ["side", "?", "</s>", "<pad>", "<pad>", "<pad>"]
    assert batch.inputs["attention_mask"][1].tolist() == [1, 1, 1, 0, 0, 0]
    assert names(batch.inputs["decoder_input_ids"][1]) == ["<pad>", "upper", "zone"]
    assert names(batch.labels[1]) == ["upper", "zone", "</s>"]
    assert batch.labels[0].tolist() == [*t5.tokenizer.convert_tokens_to_ids(["no", "</s>"]), -100]


def full_logits(backbone, batch):
    logits = backbone.model(**batch.inputs, use_cache=False).logits
    return (logits, batch.labels) if backbone.family.is_encoder_decoder else (logits[:, :-1], batch.labels[:, 1:])


def test_loss_is_that_of_full_logits_in_value_and_gradient(case):
    backbone, images = case
    batch = backbone.prepare(images, PROMPTS, TARGETS, max_tokens=200)
    parameters = [p for p in backbone.model.parameters() if p.requires_grad]
    wanted, count = token_cross_entropy(*full_logits(backbone, batch))
    wanted_grads = torch.autograd.grad(wanted, parameters, allow_unused=True)
    total, tokens, means = backbone.loss(batch)
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    assert tokens == count == (batch.labels != -100).sum()
    torch.testing.assert_close(total, wanted, rtol=1e-6, atol=0)
    assert 0 <= means["token_acc"] <= 1
    assert sum(grad is not None for grad in wanted_grads) > 20
    for have, want in zip(grads, wanted_grads, strict=True):
        assert (have is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


def test_gradients_of_items_one_by_one_add_up_to_those_of_the_batch(case):
    """Accumulation 3 x 1 equals 1 x 3 with unequal lengths, since losses are sums."""
    backbone, images = case
    parameters = [p for p in backbone.model.parameters() if p.requires_grad]
    together = backbone.loss(backbone.prepare(images, PROMPTS, TARGETS, max_tokens=200))[0]
    wanted = torch.autograd.grad(together, parameters, allow_unused=True)
    items = [
        backbone.prepare(images and images[i : i + 1], PROMPTS[i : i + 1], TARGETS[i : i + 1], max_tokens=200)
        for i in range(3)
    ]
    alone = torch.stack([backbone.loss(item)[0] for item in items]).sum()
    torch.testing.assert_close(alone, together, rtol=1e-6, atol=0)
    for have, want in zip(torch.autograd.grad(alone, parameters, allow_unused=True), wanted, strict=True):
        if want is not None:
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


def test_logits_are_computed_for_supervised_rows_only(case):
    backbone, images = case
    shapes = []
    handle = backbone.core.lm_head.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
    batch = backbone.prepare(images, PROMPTS, TARGETS, max_tokens=200)
    backbone.loss(batch)
    handle.remove()
    assert shapes == [((batch.labels != -100).sum(), backbone.core.config.get_text_config().vocab_size)]


def test_sequence_log_probability_is_the_sum_over_answer_and_end(case):
    backbone, images = case
    batch = backbone.prepare(images, PROMPTS, TARGETS, max_tokens=200)
    logits, labels = full_logits(backbone, batch)
    wanted = torch.stack([-token_cross_entropy(logits[[i]], labels[[i]])[0] for i in range(len(labels))])
    torch.testing.assert_close(backbone.sequence_logps(batch), wanted, rtol=1e-6, atol=1e-5)


def test_sequence_log_probability_by_hand(llava):
    batch = llava.prepare([IMAGES[0]], ["Side?"], ["no"], max_tokens=200)
    logps = llava.model(**batch.inputs).logits[0].log_softmax(dim=-1)
    n, o, end = llava.tokenizer.convert_tokens_to_ids(["n", "o", "</s>"])
    by_hand = logps[-4, n] + logps[-3, o] + logps[-2, end]
    torch.testing.assert_close(llava.sequence_logps(batch)[0], by_hand, rtol=1e-6, atol=1e-5)


def test_padding_changes_nothing(case):
    """Alone or beside longer rows, padded on the right or on the left: the same numbers."""
    backbone, images = case
    long = [*PROMPTS[:2], PROMPTS[2] + " " + " ".join(WORDS)]
    alone = [
        backbone.sequence_logps(backbone.prepare(images and [images[i]], [long[i]], [TARGETS[i]], max_tokens=250))
        for i in range(3)
    ]
    for side in ("right", "left"):
        together = backbone.sequence_logps(backbone.prepare(images, long, TARGETS, max_tokens=250, padding=side))
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-4)


def test_order_in_the_batch_changes_nothing(case):
    backbone, images = case
    logps = backbone.sequence_logps(backbone.prepare(images, PROMPTS, TARGETS, max_tokens=200))
    order = [2, 0, 1]
    other = backbone.sequence_logps(
        backbone.prepare(
            images and [images[i] for i in order],
            [PROMPTS[i] for i in order],
            [TARGETS[i] for i in order],
            max_tokens=200,
        )
    )
    torch.testing.assert_close(other, logps[order], rtol=1e-6, atol=1e-5)


def test_the_image_changes_the_answer(llava):
    batch = llava.prepare(IMAGES, PROMPTS, TARGETS, max_tokens=200)
    other = llava.prepare(IMAGES[1:] + IMAGES[:1], PROMPTS, TARGETS, max_tokens=200)
    difference = (llava.sequence_logps(batch) - llava.sequence_logps(other)).abs()
    assert (difference > 1e-4).all()


def test_text_alone_is_possible(llava):
    batch = llava.prepare(None, ["Side?"], ["no"], max_tokens=100)
    assert "pixel_values" not in batch.inputs
    assert "<image>" not in llava.tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][0])
    assert llava.loss(batch)[1] == 3


def test_images_are_given_in_the_dtype_of_the_weights(tmp_path):
    backbone = load(str(save_llava(tmp_path)), dtype="bf16")
    batch = backbone.prepare(IMAGES, PROMPTS, TARGETS, max_tokens=200)
    assert batch.inputs["pixel_values"].dtype == torch.bfloat16
    assert backbone.loss(batch)[0].dtype == torch.float32


# ---- generation


def generate_uncached(backbone, image, prompt, steps):
    """One token at a time, reading the whole row anew each time."""
    batch = backbone.prepare(image, [prompt], max_tokens=200)
    inputs = dict(batch.inputs)
    if backbone.family.is_encoder_decoder:
        ids = torch.tensor([[backbone.decoder_start_id]])
        key, begin = "decoder_input_ids", 1
    else:
        ids, key, begin = inputs.pop("input_ids"), "input_ids", inputs["attention_mask"].shape[1]
    for _ in range(steps):
        inputs[key] = ids
        if key == "input_ids":
            inputs["attention_mask"] = torch.ones_like(ids)
        best = backbone.model(**inputs, use_cache=False).logits[:, -1].argmax(dim=-1)
        ids = torch.cat([ids, best[:, None]], dim=1)
        if best == backbone.end_id:
            break
    return backbone.read_ids(ids[0, begin:]).strip()


@torch.no_grad()
def test_cached_generation_equals_uncached(case):
    backbone, images = case
    if not backbone.family.has_vision:  # random weights end at once otherwise
        backbone = copy.deepcopy(backbone)
        backbone.core.lm_head.weight[backbone.end_id] = 0
    texts = backbone.answer(images, PROMPTS, max_new_tokens=12, batch_size=3)
    wanted = [generate_uncached(backbone, images and [images[i]], PROMPTS[i], 12) for i in range(3)]
    assert texts == wanted
    assert len(set(texts)) > 1 or not backbone.family.has_vision


def test_batches_of_generation_change_nothing_and_keep_the_order(case):
    backbone, images = case
    texts = backbone.answer(images, PROMPTS, max_new_tokens=8, batch_size=3)
    assert backbone.answer(images, PROMPTS, max_new_tokens=8, batch_size=2) == texts
    assert backbone.answer(images and images[::-1], PROMPTS[::-1], max_new_tokens=8) == texts[::-1]


def test_a_stop_string_ends_an_answer_and_is_cut_off(llava):
    free = llava.answer(IMAGES, PROMPTS, max_new_tokens=12)
    stop = free[0][3]
    stopped = llava.answer(IMAGES, PROMPTS, max_new_tokens=12, stop=[stop])
    assert stopped == [text.partition(stop)[0].strip() for text in free]


def test_rows_are_ended_one_by_one_by_end_tokens_and_stop_strings(llava):
    x, n, o, end = llava.tokenizer.convert_tokens_to_ids(["x", "n", "o", "</s>"])
    criterion = Ends([end], ["no"], llava.tokenizer, prompt_tokens=2)
    steps = [[[x, n, o], [x, x, n], [x, x, x]], [[x, n, o, x], [x, x, n, o], [x, x, x, end]]]
    assert StoppingCriteriaList([criterion])(torch.tensor(steps[0]), None).tolist() == [False] * 3  # n o: from a prompt
    assert StoppingCriteriaList([criterion])(torch.tensor(steps[1]), None).tolist() == [False, True, True]
    assert criterion.lengths.tolist() == [0, 2, 2]


def test_settings_of_the_checkpoint_do_not_change_greedy_choices(llava):
    texts = llava.answer(IMAGES, PROMPTS, max_new_tokens=12)
    other = llava.with_model(copy.deepcopy(llava.model))
    settings = other.core.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.num_beams = 5.0, 1, 3
    settings.do_sample, settings.temperature = True, 3.0
    assert other.answer(IMAGES, PROMPTS, max_new_tokens=12) == texts


def test_prompt_and_answer_must_fit_the_context(llava):
    with pytest.raises(RequestError, match="the model's context is 256"):
        llava.answer(IMAGES[:1], ["a" * 200], max_new_tokens=100)
    with pytest.raises(RequestError, match="max_new_tokens is 300, and the model's context is 256"):
        llava.answer(IMAGES[:1], ["a"], max_new_tokens=300)


def test_an_empty_stop_string_is_refused(llava):
    with pytest.raises(RequestError, match="Every text holds it"):
        llava.answer(IMAGES[:1], ["a"], max_new_tokens=3, stop=[""])


# ---- wrappers


class Wrapper(nn.Module):
    """As data-parallel wrappers are: the model is `module`, and calls go through the wrapper."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, **inputs):
        self.calls += 1
        return self.module(**inputs)


def test_a_wrapped_model_is_called_through_its_wrapper(case):
    backbone, images = case
    wrapper = Wrapper(backbone.model)
    wrapped = backbone.with_model(wrapper)
    batch = backbone.prepare(images, PROMPTS, TARGETS, max_tokens=200)
    assert wrapped.core is backbone.model
    assert torch.equal(wrapped.loss(batch)[0], backbone.loss(batch)[0])
    assert wrapper.calls == 1
    assert wrapped.answer(images, PROMPTS, max_new_tokens=4) == backbone.answer(images, PROMPTS, max_new_tokens=4)


def test_an_adapted_model_is_read_through_its_adapter(tmp_path):
    backbone = load(str(save_llava(tmp_path)))
    batch = backbone.prepare(IMAGES, PROMPTS, TARGETS, max_tokens=200)
    base = backbone.sequence_logps(batch).detach()
    texts = backbone.answer(IMAGES, PROMPTS, max_new_tokens=6)
    adapted = backbone.with_model(add_lora(backbone.model, backbone.family, AdapterConfig(kind="lora", r=2)))
    assert adapted.core is backbone.model
    torch.testing.assert_close(adapted.sequence_logps(batch), base, rtol=1e-6, atol=1e-6)  # additions start at 0
    assert adapted.answer(IMAGES, PROMPTS, max_new_tokens=6) == texts
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    logits, labels = full_logits(adapted, batch)
    wanted = torch.stack([-token_cross_entropy(logits[[i]], labels[[i]])[0] for i in range(len(labels))])
    have = adapted.sequence_logps(batch)
    torch.testing.assert_close(have, wanted, rtol=1e-6, atol=1e-5)
    assert (have - base).abs().min() > 1e-3
    assert adapted.answer(IMAGES, PROMPTS, max_new_tokens=6) != texts


# ---- what is refused


def test_a_prompt_that_names_the_image_token_is_refused(llava):
    with pytest.raises(RequestError, match="image token count would not fit"):
        llava.prepare(IMAGES[:1], ["What does <image> show?"], max_tokens=100)


def test_the_model_decides_how_many_tokens_an_image_has(llava):
    other = copy.copy(llava)
    other.processor = copy.deepcopy(llava.processor)
    other.processor.patch_size = 16  # a processor of another model would write 4
    batch = other.prepare(IMAGES[:1], ["Side?"], max_tokens=100)
    assert (batch.inputs["input_ids"] == llava.image_token_id).sum() == 16


@pytest.mark.parametrize(("written", "times"), [("", 0), ("<image><image>", 2)])
def test_a_template_with_fewer_or_more_images_than_there_are_is_refused(tmp_path, written, times):
    part = "{{ '%s' if c['type'] == 'image' else c['text'] }}" % written  # noqa: UP031  Jinja is full of braces
    template = "{% for m in messages %}{% for c in m['content'] %}" + part + "{% endfor %}{% endfor %}"
    backbone = load(str(save_llava(tmp_path, template=template)))
    with pytest.raises(RequestError, match=f"chat template writes '<image>' {times} times.* it has 1 images"):
        backbone.prepare(IMAGES[:1], ["Side?"], max_tokens=100)


def test_images_wider_than_8_bit_are_refused(llava):
    with pytest.raises(RequestError, match="mode 'I;16'"):
        llava.prepare([Image.new("I;16", (8, 8))], ["Side?"], max_tokens=100)


def test_grey_images_are_read_as_grey_colours(llava):
    grey = IMAGES[0].convert("L")
    one, other = (llava.prepare([i], ["Side?"], max_tokens=100) for i in (grey, grey.convert("RGB")))
    assert torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])


def test_images_for_a_text_model_are_refused(t5):
    with pytest.raises(RequestError, match="It reads text only"):
        t5.prepare(IMAGES[:1], ["side"], max_tokens=100)
    with pytest.raises(RequestError, match="It reads text only"):
        t5.tower(IMAGES[:1])


def test_a_loss_needs_targets(llava):
    with pytest.raises(RequestError, match="Prepare it with targets"):
        llava.loss(llava.prepare(IMAGES[:1], ["Side?"], max_tokens=100))
