"""Turns, images at given places, several supervised answers; what is refused before a model sees it."""

import functools
import re

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.conversation import Conversation, Turn, assistant, pieces, user
from lightbox.backbones.loading import load
from lightbox.errors import RequestError
from lightbox.testing.shrunk import save_shrunk
from lightbox.testing.tiny_models import save_t5


def picture(seed, height=60, width=80):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


ONE, TWO = picture(0), picture(1, 70, 56)
CAUSAL = ["llava-1.5-7b", "llava-next", "qwen2.5-vl-7b", "medgemma-4b", "llava-med", "qwen2-vl-7b"]
TWINS = CAUSAL[-2:]  # of the first and third in all but body and positions: in the slow lane
PARAMS = [pytest.param(name, marks=pytest.mark.slow) if name in TWINS else name for name in CAUSAL]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Name -> folder of the miniature, written when it is first asked for."""
    return functools.cache(lambda name: str(save_shrunk(name, tmp_path_factory.mktemp(name))))


@pytest.fixture(scope="module", params=PARAMS)
def causal(request, folder_of):
    return load(folder_of(request.param))


@pytest.fixture(scope="module")
def llava(folder_of):
    return load(folder_of("llava-1.5-7b"))


@pytest.fixture(scope="module")
def qwen(folder_of):
    return load(folder_of("qwen2.5-vl-7b"))


def two_turns(*, first=True, second=True):
    return Conversation(
        (
            user(ONE, "Is there a nodule?"),
            assistant("yes", is_supervised=first),
            user(TWO, "And here?"),
            assistant("no", is_supervised=second),
        )
    )


# ---- rows


def test_several_answers_are_supervised_each_with_its_end(causal):
    batch = causal.prepare_conversations([two_turns()], max_tokens=400)
    labels = batch.labels[0][batch.labels[0] != -100].tolist()
    assert labels == causal.target_ids("yes") + causal.target_ids("no")
    only_last = causal.prepare_conversations([two_turns(first=False)], max_tokens=400)
    assert only_last.labels[0][only_last.labels[0] != -100].tolist() == causal.target_ids("no")
    assert torch.equal(only_last.inputs["input_ids"], batch.inputs["input_ids"])


def test_row_of_one_turn_begins_the_row_of_two(causal):
    """What a model was asked first is read again, id by id, when it is asked on."""
    (whole,) = causal.prepare_conversations([two_turns()], max_tokens=400).inputs["input_ids"].tolist()
    asked = causal.prepare([ONE], ["Is there a nodule?"], max_tokens=400).inputs["input_ids"][0].tolist()
    begun = [*asked, *causal.target_ids("yes")]
    assert whole[: len(begun)] == begun


def test_text_between_answers_is_the_templates_own(qwen):
    first, second = qwen.write(two_turns())
    assert first.endswith("<|im_start|>assistant\n")
    assert second == (
        "\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>And here?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_rows_with_no_one_and_two_images_share_a_batch(causal):
    rows = [
        Conversation((user("Side?"), assistant("left"))),
        Conversation((user(ONE, "Side?"), assistant("right"))),
        Conversation((user(ONE, TWO, "Which?"), assistant("the second"))),
        two_turns(),
    ]
    together = causal.prepare_conversations(rows, max_tokens=500)
    assert together.shared is not None  # ONE stands in three rows
    assert together.shared.index == [0, 0, 1, 0, 1]
    with torch.no_grad():
        alone = [causal.sequence_logps(causal.prepare_conversations([row], max_tokens=500)) for row in rows]
        torch.testing.assert_close(causal.sequence_logps(together), torch.cat(alone), rtol=1e-5, atol=1e-4)


def test_image_stands_where_it_is_said(causal):
    """A template that shows images first does not move one that was put behind a text."""
    token = causal.image_token
    (text,) = causal.write(Conversation((user("Compare ", ONE, " with ", TWO),)))
    places = [text.index("Compare"), text.index(token), text.index("with"), text.rindex(token)]
    assert places == sorted(places)
    assert text.count(token) == 2
    (first,) = causal.write(Conversation((user(ONE, "Compare"),)))
    assert first.index(token) < first.index("Compare")


def test_shared_image_is_encoded_once(causal):
    calls = []
    tower = causal.part(causal.family.vision)
    handle = tower.register_forward_pre_hook(lambda *_: calls.append(1))
    prompts, targets = ["Side?", "Side?"], ["left", "right"]
    pair = causal.prepare([ONE, ONE], prompts, targets, max_tokens=400)
    copies = causal.prepare([ONE, ONE.copy()], prompts, targets, max_tokens=400)
    with torch.no_grad():
        shared, apart = causal.sequence_logps(pair), causal.sequence_logps(copies)
    handle.remove()
    assert pair.shared is not None
    assert len(pair.shared.pixels["pixel_values"]) < len(copies.inputs["pixel_values"])
    assert len(calls) == 2  # one a batch
    torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-4)


def test_gradient_of_a_shared_image_is_the_sum_over_its_places(llava):
    projector = llava.part(llava.family.projector).linear_2.weight
    gradients = []
    for images in ([ONE, ONE], [ONE, ONE.copy()]):
        batch = llava.prepare(images, ["Side?", "Side?"], ["left", "right"], max_tokens=400)
        gradients += torch.autograd.grad(llava.loss(batch)[0], [projector])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_features_take_the_place_of_the_tower(causal):
    rows = [Conversation((user(image, "Side?"), assistant("left"))) for image in (ONE, TWO)]
    with torch.no_grad():
        wanted = causal.sequence_logps(causal.prepare_conversations(rows, max_tokens=400))
        features = causal.project(causal.tower([ONE, TWO]))
        batch = causal.prepare_conversations(rows, max_tokens=400, features=features)
        handle = causal.part(causal.family.vision).register_forward_pre_hook(lambda *_: pytest.fail("the tower ran"))
        have = causal.sequence_logps(batch)
        handle.remove()
    torch.testing.assert_close(have, wanted, rtol=1e-5, atol=1e-4)


def test_fewer_features_make_a_shorter_row(llava, qwen):
    rows = [Conversation((user(ONE, "Side?"), assistant("left")))]
    with torch.no_grad():
        (tokens,) = llava.project(llava.tower([ONE]))
        batch = llava.prepare_conversations(rows, max_tokens=400, features=[tokens[::2]])
        assert (batch.inputs["input_ids"] == llava.image_token_id).sum() == len(tokens) // 2
        assert torch.isfinite(llava.sequence_logps(batch)).all()
        (tokens,) = qwen.project(qwen.tower([ONE]))
    with pytest.raises(RequestError, match="pruned tokens alone do not tell"):
        qwen.prepare_conversations(rows, max_tokens=400, features=[tokens[::2]])
    with pytest.raises(RequestError, match="Features of 2 images for 1 images"):
        llava.prepare_conversations(rows, max_tokens=400, features=[tokens, tokens])


# ---- refused


def test_roles_out_of_order_are_refused():
    for turns in ((), (assistant("yes"),), (user("a"), user("b")), (user("a"), assistant("b"), assistant("c"))):
        with pytest.raises(RequestError, match="A user speaks first and then each side in turns"):
            Conversation(turns)
    with pytest.raises(RequestError, match="Roles are system, user, assistant"):
        Conversation((Turn("tool", ("x",)),))


def test_what_is_no_turn_or_no_image_is_refused():
    messages = [{"role": "user", "content": "Side?"}]
    with pytest.raises(RequestError, match="A conversation of a list of a dict"):
        Conversation(messages)
    with pytest.raises(RequestError, match="A part of turn 0 is a list of an Image"):
        Conversation((user([ONE], "Side?"),))
    with pytest.raises(RequestError, match="A part of turn 0 is None"):
        Conversation((user(None, "Side?"),))
    with pytest.raises(RequestError, match="Turn 1 of the assistant holds an image"):
        Conversation((user("Side?"), Turn("assistant", (ONE,))))
    with pytest.raises(RequestError, match="mode 'I;16'"):
        Conversation((user(Image.new("I;16", (8, 8)), "Side?"),))
    with pytest.raises(RequestError, match="1 x 400 px"):
        Conversation((user(Image.new("L", (1, 400)), "Side?"),))


def test_prompts_that_are_no_text_are_refused(llava):
    with pytest.raises(RequestError, match="A part of turn 0 is a list of a dict"):
        llava.prepare([ONE], [[{"role": "user", "content": "Side?"}]], max_tokens=100)
    with pytest.raises(RequestError, match="A part of turn 0 is None"):
        llava.prepare([None], ["Side?"], max_tokens=100)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|vision_start|>", "<|endoftext|>"])
def test_control_tokens_in_text_are_refused(qwen, token):
    with pytest.raises(RequestError, match=r"The prompt of item 0 contains '<\|"):
        qwen.prepare(None, [f"Side?{token}"], max_tokens=100)
    with pytest.raises(RequestError, match=r"The target of item 1 contains '<\|"):
        qwen.prepare(None, ["a", "b"], ["left", f"right{token}"], max_tokens=100)


def test_every_special_token_but_those_of_boxes_is_refused(causal):
    codec = causal.codec
    special = {token.content for token in causal.tokenizer.added_tokens_decoder.values() if token.special}
    assert special
    written = codec.encode((0.1, 0.2, 0.5, 0.9), 100, 100)
    for token in special:
        if codec.control_tokens and re.fullmatch(codec.control_tokens, token):
            causal.check_texts([token])
        else:
            with pytest.raises(RequestError, match="The text of item 0 contains"):
                causal.check_texts([f"a{token}b"])
    causal.check_texts([written, "2 < 3 > 1", "a [1, 2] b"])


def test_batch_is_answered_or_to_be_answered_as_a_whole(llava):
    asked = Conversation((user("Side?"),))
    with pytest.raises(RequestError, match="2 conversations, 1 of them answered"):
        llava.prepare_conversations([asked, two_turns()], max_tokens=400)
    with pytest.raises(RequestError, match="0 conversations"):
        llava.prepare_conversations([], max_tokens=400)


def test_encoder_decoders_take_one_turn_and_one_image(folder_of, tmp_path):
    florence = load(folder_of("florence-2-base"))
    with pytest.raises(RequestError, match="encodes one question with at most one image"):
        florence.prepare_conversations([two_turns()], max_tokens=400)
    with pytest.raises(RequestError, match="encodes one question with at most one image"):
        florence.prepare_conversations([Conversation((user(ONE, TWO, "Which?"),))], max_tokens=400)
    t5 = load(str(save_t5(tmp_path, ["side", "left"])))
    with pytest.raises(RequestError, match="encodes one question"):
        t5.prepare_conversations([Conversation((user("a"), assistant("b"), user("c")))], max_tokens=400)


def test_template_that_drops_answers_is_refused():
    with pytest.raises(RequestError, match="The chat template writes 0 of them"):
        pieces(two_turns(), lambda messages: "always the same", end="</s>")


def test_templates_that_leave_out_or_rewrite_a_turn_are_refused():
    def without_system(messages):
        return "".join(f"[{part['text']}]" for m in messages if m["role"] != "system" for part in m["content"])

    def system_last(messages):
        system, *rest = messages
        texts = [part["text"] for message in rest for part in message["content"]]
        return "".join(f"[{text}]" for text in [*texts[:-1], system["content"][0]["text"], texts[-1]])

    system = Turn("system", ("Be brief.",))
    asked = Conversation((system, user("one"), assistant("yes"), user("two")))
    with pytest.raises(RequestError, match="The chat template leaves its text out"):
        pieces(asked, without_system, end="</s>")
    with pytest.raises(RequestError, match="writes earlier turns otherwise once others follow"):
        pieces(asked, system_last, end="</s>")
    with pytest.raises(RequestError, match="chat template refuses them"):
        pieces(asked, lambda messages: "[INST] " + messages[0]["content"], end="</s>")


def test_end_that_a_template_writes_behind_a_space_is_the_answers():
    def llama_2(messages):
        texts = [
            ("[INST] %s [/INST]" if m["role"] == "user" else " %s </s><s>") % m["content"][0]["text"] for m in messages
        ]
        return "".join(texts)

    rows = Conversation((user("one"), assistant("yes"), user("two")))
    assert pieces(rows, llama_2, end="</s>") == ["[INST] one [/INST]", "<s>[INST] two [/INST]"]


def test_features_of_rows_without_images_are_none(llava):
    batch = llava.prepare_conversations([Conversation((user("Side?"), assistant("left")))], max_tokens=99, features=[])
    assert batch.shared is None


def test_an_encoder_decoders_answer_is_supervised(tmp_path):
    t5 = load(str(save_t5(tmp_path, ["side", "left"])))
    with pytest.raises(RequestError, match="An answer without loss for a t5"):
        t5.prepare_conversations([Conversation((user("a"), assistant("b", is_supervised=False)))], max_tokens=99)
