"""Answers with ids, log-probabilities, states and memory: against the full forward, alone and in batches."""

import copy
import functools

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.adapters.kbit import checkpoint_language
from lightbox.backbones.conversation import Conversation, user
from lightbox.backbones.generation import Choice, Sampling
from lightbox.backbones.loading import load
from lightbox.errors import RequestError
from lightbox.testing.shrunk import save_shrunk


def picture(seed, height=60, width=80):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(0), picture(1, 70, 56), picture(2, 90, 60)]
PROMPTS = ["Is there an effusion?", "Side?", "Where is the nodule in the left zone of the lung?"]
CAUSAL = ["llava-1.5-7b", "llava-next", "qwen2.5-vl-7b", "medgemma-4b", "qwen2-vl-7b"]
# the last is the twin of the third in all but its tower: in the slow lane
PARAMS = [pytest.param(name, marks=pytest.mark.slow) if name == CAUSAL[-1] else name for name in CAUSAL]
STEPS = 8


def lively(backbone):
    """With choices that are wide apart, no end token at once, and no image tokens."""
    with torch.no_grad():
        head = backbone.part(backbone.family.head)
        generator = torch.Generator().manual_seed(3)
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=generator))
        head.weight[[backbone.end_id, *backbone.tokenizer.added_tokens_decoder]] = 0
    return backbone


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Name -> folder of the miniature, written when it is first asked for."""
    return functools.cache(lambda name: str(save_shrunk(name, tmp_path_factory.mktemp(name))))


@pytest.fixture(scope="module", params=[*PARAMS, "florence-2-base", "unifiedqa-t5-base"])
def backbone(request, folder_of):
    return lively(load(folder_of(request.param)))


@pytest.fixture(scope="module", params=PARAMS)
def causal(request, folder_of):
    return lively(load(folder_of(request.param)))


@pytest.fixture(scope="module")
def llava(folder_of):
    return lively(load(folder_of("llava-1.5-7b")))


def asked(backbone, order=(0, 1, 2)):
    images = [IMAGES[i] for i in order] if backbone.family.has_vision else None
    return backbone.prepare(images, [PROMPTS[i] for i in order], max_tokens=400, padding="left")


@torch.no_grad()
def forced(backbone, batch, generated):
    """Log-probability of each generated id and the state that chose it, by one forward over prompt and answer."""
    inputs = dict(backbone.inputs_of(batch))
    ids = generated.ids
    head = backbone.part(backbone.family.head)
    seen = {}
    handle = head.register_forward_pre_hook(lambda _, arguments: seen.update(rows=arguments[0]))
    if backbone.family.is_encoder_decoder:
        start = torch.full((len(ids), 1), backbone.decoder_start_id)
        inputs["decoder_input_ids"] = torch.cat([start, ids[:, :-1]], dim=1)
    else:
        for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                more = torch.full_like(ids, int(name == "attention_mask"))
                inputs[name] = torch.cat([inputs[name], more], dim=1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    logits = backbone.model(**inputs, use_cache=False).logits
    handle.remove()
    last = logits.shape[1] - (0 if backbone.family.is_encoder_decoder else 1)
    span = slice(last - ids.shape[1], last)
    return logits[:, span].log_softmax(dim=-1).gather(2, ids[..., None])[..., 0], seen["rows"][:, span]


@pytest.mark.slow
def test_log_probabilities_and_states_are_those_of_the_full_forward(backbone):
    batch = asked(backbone)
    generated = backbone.generate(batch, max_new_tokens=STEPS, with_states=True)
    assert generated.ids.shape == (3, STEPS)
    assert generated.is_token.all()
    logps, states = forced(backbone, batch, generated)
    # Florence-2's settings force the first token of an answer, which then has probability 1
    own = slice(1 if backbone.family.name == "florence2" else 0, None)
    torch.testing.assert_close(generated.logps[:, own], logps[:, own], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(generated.states, states, rtol=1e-4, atol=1e-5)
    assert generated.texts == [backbone.read_ids(row) for row in generated.ids]


def test_drawn_rows_do_not_depend_on_their_batch(backbone):
    sampling = Sampling(seeds=(5, 6, 7), temperature=0.7, top_p=0.9)
    together = backbone.generate(asked(backbone), max_new_tokens=STEPS, sampling=sampling)
    order = (2, 0)
    other = Sampling(seeds=(7, 5), temperature=0.7, top_p=0.9)
    apart = backbone.generate(asked(backbone, order), max_new_tokens=STEPS, sampling=other)
    assert torch.equal(apart.ids, together.ids[list(order)])
    again = backbone.generate(asked(backbone), max_new_tokens=STEPS, sampling=Sampling(seeds=(5, 6, 8)))
    assert not torch.equal(again.ids, together.ids)


def test_several_samples_a_prompt_encode_its_image_once(causal):
    calls = []
    handle = causal.part(causal.family.vision).register_forward_pre_hook(lambda *_: calls.append(1))
    sampling = Sampling(seeds=(1, 2), samples=3, temperature=1.5)
    many = causal.generate(asked(causal, (0, 2)), max_new_tokens=STEPS, sampling=sampling)
    handle.remove()
    assert calls == [1]
    assert many.ids.shape == (6, STEPS)
    assert len({tuple(row) for row in many.ids[:3].tolist()}) > 1
    alone = causal.generate(
        asked(causal, (2,)), max_new_tokens=STEPS, sampling=Sampling(seeds=(2,), samples=3, temperature=1.5)
    )
    assert torch.equal(alone.ids, many.ids[3:])
    logps, _ = forced(causal, causal._repeated(asked(causal, (0, 2)), 3), many)
    torch.testing.assert_close(many.logps, logps, rtol=1e-5, atol=1e-5)


def test_draws_follow_the_probabilities():
    """The first token of 4,000 samples against its distribution, total variation; and top_p cuts the tail."""
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    probs = scores.softmax(dim=-1)
    order = probs.argsort(descending=True)
    for top_p in (1.0, 0.5):
        choice = Choice(Sampling(seeds=(0, 1), samples=2000, top_p=top_p), max_new_tokens=1)
        drawn = choice(torch.zeros(4000, 1), scores.expand(4000, -1)).argmax(dim=-1)
        shares = torch.bincount(drawn, minlength=len(probs)) / len(drawn)
        # the likeliest tokens that stand before half of the probability, and the one that reaches it
        allowed = order[(probs[order].cumsum(0) - probs[order]) < top_p]
        wanted = torch.zeros_like(probs)
        wanted[allowed] = probs[allowed] / probs[allowed].sum()
        assert shares[wanted == 0].sum() == 0
        assert (shares - wanted).abs().sum() / 2 < 0.05
        torch.testing.assert_close(choice.logps[0], probs.log()[drawn])


def test_rows_end_one_by_one(llava):
    free = llava.generate(asked(llava), max_new_tokens=STEPS)
    parts = {text[begin : begin + 4] for text in free.texts for begin in range(1, len(text) - 4)}
    stop = min(part for part in parts if sum(part in text for text in free.texts) == 1)  # may lie across tokens
    stopped = llava.generate(asked(llava), max_new_tokens=STEPS, stop=[stop])
    lengths = stopped.is_token.sum(dim=1).tolist()
    assert min(lengths) < STEPS
    assert max(lengths) == STEPS
    for row, length in enumerate(lengths):
        assert torch.equal(stopped.ids[row, :length], free.ids[row, :length])
        assert stopped.texts[row] == free.texts[row].partition(stop)[0]
        assert (stopped.logps[row, length:] == 0).all()


def test_hidden_rows_and_token_log_probabilities_are_those_of_the_forward(backbone):
    images = IMAGES if backbone.family.has_vision else None
    batch = backbone.prepare(images, PROMPTS, ["yes, left", "no", "upper zone"], max_tokens=400)
    logps = backbone.token_logps(batch)
    assert logps.shape == batch.labels.shape
    torch.testing.assert_close(logps.sum(dim=1), backbone.sequence_logps(batch), rtol=1e-6, atol=1e-5)
    assert ((logps < 0) == (batch.labels != -100)).all()
    places = torch.zeros_like(batch.labels, dtype=torch.bool)
    places[0, 1] = places[2, 0] = True
    with torch.no_grad():
        seen = {}
        head = backbone.part(backbone.family.head)
        handle = head.register_forward_pre_hook(lambda _, arguments: seen.update(rows=arguments[0]))
        backbone.model(**backbone.inputs_of(batch), use_cache=False)
        handle.remove()
    rows = backbone.hidden_rows(batch, places)
    assert rows.requires_grad
    torch.testing.assert_close(rows, seen["rows"][places], rtol=1e-5, atol=1e-6)
    with pytest.raises(RequestError, match="Make it beside"):
        backbone.hidden_rows(batch, places[:, :-1])


def test_spans_of_tokens_cover_the_text(backbone):
    ids = torch.tensor(backbone.target_ids("a small nodule in the left lung"))
    spans = backbone.token_spans(ids)
    text = backbone.read_ids(ids)
    assert "".join(text[begin:end] for begin, end in spans) == text
    assert spans[-1][0] == spans[-1][1]  # the end is no text


def test_confidence_of_a_box_is_that_of_its_tokens(folder_of):
    florence = load(folder_of("florence-2-base"))
    text = f"mass{florence.codec.encode((0.1, 0.2, 0.5, 0.9), 64, 64)}"
    batch = florence.prepare([IMAGES[0]], ["Where?"], [text], max_tokens=200)
    ids = batch.labels[0]
    (span,) = florence.codec.spans(florence.read_ids(ids), 64, 64)
    inside = [begin >= span.begin and end <= span.end and begin < end for begin, end in florence.token_spans(ids)]
    assert sum(inside) == 4
    assert florence.tokenizer.convert_ids_to_tokens(ids[inside])[0] == "<loc_6>"
    assert (florence.token_logps(batch)[0][inside] < 0).all()


# ---- a next turn


TURNS = [user(IMAGES[1], "And here?"), user("Why?"), user(IMAGES[0], "Is this the same side?")]


@torch.no_grad()
def assert_continued_equals_full(backbone, order, stop):
    """Ids and logits of a second turn against one forward over the whole row, row by row."""
    first = backbone.generate(asked(backbone, order), max_new_tokens=STEPS, stop=[stop], with_memory=True)
    calls = []
    handle = backbone.part(backbone.family.vision).register_forward_pre_hook(lambda *_: calls.append(1))
    turns = [TURNS[i] for i in order]
    batch = backbone.continued(first, turns)
    second = backbone.generate(batch, max_new_tokens=STEPS)
    handle.remove()
    assert len(calls) == any(turn.images for turn in turns)  # the first images are not encoded again
    for row in range(len(order)):
        is_read = torch.cat([batch.inputs["attention_mask"][row].bool(), second.is_token[row]])
        ids = torch.cat([batch.inputs["input_ids"][row], second.ids[row]])[is_read][None]
        pixels = backbone.read_images(batch.conversations[row].images)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | pixels
        if backbone.TYPE_FIELD:
            inputs[backbone.TYPE_FIELD] = (ids == backbone.image_token_id).long()
        assert sum(backbone.tokens_per_image(pixels)) == (ids == backbone.image_token_id).sum()
        logits = backbone.model(**inputs, use_cache=False).logits[0]
        length = int(second.is_token[row].sum())
        logps = logits[-length - 1 : -1].log_softmax(dim=-1)
        assert torch.equal(logps.argmax(dim=-1), second.ids[row, :length])
        chosen = logps.gather(1, ids[0, -length:, None])[:, 0]
        torch.testing.assert_close(second.logps[row, :length], chosen, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_continued_conversation_equals_the_full_forward(causal):
    """With a second image, in rows whose first answers end at different places."""
    free = causal.generate(asked(causal), max_new_tokens=STEPS)
    stop = causal.read_ids(free.ids[1, 3:4])
    lengths = causal.generate(asked(causal), max_new_tokens=STEPS, stop=[stop]).is_token.sum(dim=1)
    assert len(lengths.unique()) > 1
    if causal.family.name != "gemma3":
        assert_continued_equals_full(causal, (0, 1, 2), stop)
        return
    for row in range(3):
        assert_continued_equals_full(causal, (row,), stop)
    first = causal.generate(asked(causal), max_new_tokens=STEPS, stop=[stop], with_memory=True)
    with pytest.raises(RequestError, match="Its layers look back over a window"):
        causal.continued(first, TURNS)


def test_another_batch_between_two_turns_changes_nothing(causal):
    """Qwen2-VL keeps positions of the last images in the model."""
    answers = []
    for is_disturbed in (False, True):
        first = causal.generate(asked(causal, (1,)), max_new_tokens=STEPS, with_memory=True)
        if is_disturbed:
            causal.generate(asked(causal, (2,)), max_new_tokens=2)
        answers.append(causal.generate(causal.continued(first, [user("Why?")]), max_new_tokens=STEPS).ids)
    assert torch.equal(*answers)


# ---- refused


def test_turns_that_do_not_fit_the_memory_are_refused(llava):
    first = llava.generate(asked(llava), max_new_tokens=2, with_memory=True)
    with pytest.raises(RequestError, match="2 turns behind 3 answers"):
        llava.continued(first, [user("a"), user("b")])
    without = llava.generate(asked(llava), max_new_tokens=2)
    with pytest.raises(RequestError, match="3 turns behind 3 answers without memory"):
        llava.continued(without, [user("a")] * 3)
    with pytest.raises(RequestError, match="the model's context is 512"):
        llava.continued(first, [user("lung " * 600)] * 3)
    with pytest.raises(RequestError, match="contains '</s>'"):
        llava.continued(first, [user("a</s>")] * 3)


def test_a_memory_is_continued_once_with_as_many_rows_as_it_has(llava):
    first = llava.generate(asked(llava), max_new_tokens=2, with_memory=True)
    again = copy.deepcopy(first)
    batch = llava.continued(first, [user("Why?")] * 3)
    with pytest.raises(RequestError, match="A cache goes on with as many rows as it has"):
        llava.generate(batch, max_new_tokens=2, sampling=Sampling(seeds=(1, 2, 3), samples=2))
    ids = llava.generate(batch, max_new_tokens=2).ids
    with pytest.raises(RequestError, match="it was continued before"):
        llava.continued(first, [user("Why?")] * 3)
    assert torch.equal(llava.generate(llava.continued(again, [user("Why?")] * 3), max_new_tokens=2).ids, ids)


def test_memory_of_an_encoder_decoder_is_refused(folder_of):
    florence = load(folder_of("florence-2-base"))
    with pytest.raises(RequestError, match="encodes its prompt anew"):
        florence.generate(asked(florence), max_new_tokens=2, with_memory=True)


def test_batches_that_cannot_be_answered_are_refused(llava):
    with pytest.raises(RequestError, match="A batch with targets to be answered"):
        llava.generate(llava.prepare(IMAGES, PROMPTS, ["a", "b", "c"], max_tokens=400), max_new_tokens=2)
    with pytest.raises(RequestError, match="Rows that end with padding"):
        llava.generate(llava.prepare(IMAGES, PROMPTS, max_tokens=400), max_new_tokens=2)
    with pytest.raises(RequestError, match="2 seeds for 3 rows"):
        llava.generate(asked(llava), max_new_tokens=2, sampling=Sampling(seeds=(1, 2)))
    with pytest.raises(RequestError, match="Every text holds it"):
        llava.generate(asked(llava), max_new_tokens=2, stop=["a", ""])
    for wrong in ({"temperature": 0.0}, {"top_p": 1.5}, {"samples": 0}, {"seeds": (-1,)}):
        with pytest.raises(RequestError, match="A draw needs"):
            Sampling(**({"seeds": (1,)} | wrong))


def test_a_conversation_without_images_goes_on(llava):
    other = copy.copy(llava)
    batch = other.prepare_conversations([Conversation((user("Side?"),))], max_tokens=100, padding="left")
    first = other.generate(batch, max_new_tokens=3, with_memory=True)
    assert other.generate(other.continued(first, [user("Why?")]), max_new_tokens=3).ids.shape == (1, 3)


def test_settings_of_the_checkpoint_decide_nothing(llava):
    wanted = llava.generate(asked(llava), max_new_tokens=4)
    other = llava.with_model(copy.deepcopy(llava.model))
    config = other.core.generation_config
    config.update(suppress_tokens=wanted.ids.flatten().tolist(), guidance_scale=3.0, max_time=1e-6, stop_strings=["a"])
    assert torch.equal(other.generate(asked(other), max_new_tokens=4).ids, wanted.ids)
    assert other.core.generation_config is config


def test_draws_do_not_depend_on_how_long_an_answer_may_be(llava):
    sampling = Sampling(seeds=(5,), samples=2)
    short, long = (llava.generate(asked(llava, (0,)), max_new_tokens=n, sampling=sampling).ids for n in (3, 6))
    assert torch.equal(long[:, :3], short)


def test_what_would_be_read_wrongly_is_refused(llava):
    first = llava.generate(asked(llava), max_new_tokens=2, with_memory=True)
    batch = llava.continued(first, [user("Why?")] * 3)
    with pytest.raises(RequestError, match="Its earlier turns, with their images, are in its cache"):
        llava.hidden_rows(batch, torch.ones_like(batch.inputs["input_ids"], dtype=torch.bool))
    llava.generate(batch, max_new_tokens=2)
    with pytest.raises(RequestError, match="was answered before"):
        llava.generate(batch, max_new_tokens=2)
    with pytest.raises(RequestError, match="It is a list of strings"):
        llava.generate(asked(llava), max_new_tokens=2, stop="lung")
    other = llava.with_model(copy.deepcopy(llava.model))
    checkpoint_language(other.core, other.family)
    assert other.generate(asked(other), max_new_tokens=2).ids.shape == (3, 2)
    other.model.train()
    with pytest.raises(RequestError, match="each token would be read alone"):
        other.generate(asked(other), max_new_tokens=2)


def test_signs_of_several_bytes_have_spans_that_go_forward(llava):
    ids = torch.tensor(llava.target_ids("a \u2014 \u00fc \U0001f600 b"))
    spans = llava.token_spans(ids)
    assert all(begin <= end for begin, end in spans)
    text = llava.read_ids(ids)
    assert "".join(text[begin:end] for begin, end in spans) == text
