"""Answers that share a row have the log-probabilities and gradients that they have apart."""

import pytest
import torch
from PIL import Image

from lightbox.backbones.conversation import Conversation, assistant, user
from lightbox.backbones.loading import load
from lightbox.backbones.rows import IGNORED, UNLIMITED, SharedImages
from lightbox.paper.answer_rows import Answered, answer_logps, answer_rows
from lightbox.testing.shrunk import save_shrunk

SAID = [
    ("what is there ?", "a nodule", "an effusion on the left", "no"),
    ("is there a nodule in the right upper zone ?", "yes", "no", "maybe"),
    ("report", "there is a nodule in the left lung .", "clear", "nothing"),
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load(str(save_shrunk("llava-1.5-7b", tmp_path_factory.mktemp("llava"))), attention="sdpa")


@pytest.fixture(scope="module")
def images():
    return [Image.new("L", (32, 32), 40 * place) for place in range(len(SAID))]


def apart(backbone, images, said):
    """A row an answer, as the backbone makes it."""
    turns = [
        Conversation((user(image, prompt), assistant(answer)))
        for image, (prompt, *answers) in zip(images, said, strict=True)
        for answer in answers
    ]
    return backbone.prepare_conversations(turns, max_tokens=UNLIMITED)


def joined(backbone, images, said):
    """A row a prompt."""
    read = apart(backbone, images, said)
    answered, n = [], len(said[0]) - 1
    for start in range(0, len(read.labels), n):
        rows = range(start, start + n)
        ids = [read.inputs["input_ids"][row][read.inputs["attention_mask"][row].bool()] for row in rows]
        first = int((read.labels[start] != IGNORED).int().argmax())
        answered.append(Answered(ids[0][:first].tolist(), [own[first:].tolist() for own in ids]))
    batch = answer_rows(answered, backbone.tokenizer.pad_token_id)
    shared = SharedImages(backbone.read_images(images), list(range(len(images))))
    return type(batch)(batch.inputs, batch.labels, shared=shared), answered


def gradients_of(backbone, logps):
    backbone.model.zero_grad()
    (logps * torch.linspace(1, 2, len(logps))).sum().backward()
    return {name: own.grad.clone() for name, own in backbone.model.named_parameters() if own.grad is not None}


@pytest.mark.parametrize("n_answers", [1, 2, 3])
def test_joined_answers_have_the_log_probabilities_and_gradients_of_rows_apart(backbone, images, n_answers):
    said = [own[: 1 + n_answers] for own in SAID]
    rows = apart(backbone, images, said)
    batch, answered = joined(backbone, images, said)
    assert len(batch.labels) == len(said)
    assert batch.inputs["input_ids"].shape[1] == max(map(len, answered))
    expected = backbone.sequence_logps(rows)
    logps, tokens = answer_logps(backbone, batch)
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    assert tokens.tolist() == (rows.labels != IGNORED).sum(dim=1).tolist()
    theirs, own = gradients_of(backbone, expected), gradients_of(backbone, logps)
    assert own.keys() == theirs.keys()
    for name in own:
        torch.testing.assert_close(own[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)


def test_an_answer_does_not_depend_on_those_before_it(backbone, images):
    other = [(prompt, "something else that is longer", second) for prompt, _, second, _ in SAID]
    with torch.no_grad():
        first, second = (
            answer_logps(backbone, joined(backbone, images, said)[0])[0].view(-1, 2)
            for said in ([own[:3] for own in SAID], other)
        )
    torch.testing.assert_close(first[:, 1], second[:, 1], rtol=1e-5, atol=1e-5)
    assert (first[:, 0] - second[:, 0]).abs().min() > 0.1


def test_a_row_reads_its_prompt_once_and_its_last_token_again_for_each_further_answer(backbone):
    own = Answered([5, 6, 7], [[8, 9], [10], [11, 12]])
    batch = answer_rows([own], backbone.tokenizer.pad_token_id)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 7, 10, 7, 11, 12]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 2, 3, 4]]
    assert batch.labels.tolist() == [[IGNORED] * 3 + [8, 9, IGNORED, 10, IGNORED, 11, 12]]
    sees = [row.nonzero().flatten().tolist() for row in batch.inputs["attention_mask"][0, 0]]
    assert sees[4] == [0, 1, 2, 3, 4]
    assert sees[6] == [0, 1, 5, 6]
    assert sees[9] == [0, 1, 7, 8, 9]
    assert len(own) == 10
