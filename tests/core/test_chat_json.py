"""A model's JSON is asked for until it can be read, with waits, and only what can be read is kept."""

import json
import logging
import socket

import pytest

from lightbox import chat, chat_json
from lightbox.chat import ChatModel
from lightbox.chat_json import ATTEMPTS, ask_json
from lightbox.errors import RequestError, WorkError

HELLO = [{"role": "user", "content": "how many?"}]
KEY = "sk-secret/0123+abcd"


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that were waited for; none is."""
    waited = []
    monkeypatch.setattr(chat_json.time, "sleep", waited.append)
    monkeypatch.setattr(chat, "BACKOFF_S", 0)
    return waited


def number_of(fields):
    if not isinstance(fields.get("n"), int):
        raise ValueError("n is no number")
    return fields["n"]


@pytest.fixture
def say(endpoint, tmp_path):
    def said(**settings):
        return ask_json(
            ChatModel(endpoint.url, "m", **settings), HELLO, number_of, datasets=[], cache=tmp_path / "kept"
        )

    return said


def test_prose_is_asked_again_with_what_was_wrong_and_only_the_readable_answer_is_kept(endpoint, say, waits, tmp_path):
    endpoint.answers("I cannot say.", 'Well: {"n": "two"}', '```json\n{"n": 2}\n```')
    assert say() == 2
    assert waits == [1.0, 2.0]
    first, second, third = (body["messages"] for _, _, body in endpoint.seen)
    assert first == HELLO
    assert [turn["content"] for turn in second[:2]] == ["how many?", "I cannot say."]
    assert [turn["content"] for turn in third[1:]] == [
        'Well: {"n": "two"}',
        "That cannot be read: n is no number. Answer with one JSON object as asked, and nothing else.",
    ]
    kept = [path.read_text() for path in (tmp_path / "kept").rglob("*.json")]
    assert len(kept) == 1
    assert "cannot say" not in kept[0]


def test_a_readable_answer_is_not_asked_for_again_whatever_the_timeout(endpoint, say):
    endpoint.answers('{"n": 3}')
    assert [say(), say(timeout_s=7)] == [3, 3]
    assert len(endpoint.seen) == 1


def test_prose_to_the_end_is_an_error_of_three_parts_and_the_next_call_asks_anew(endpoint, say):
    endpoint.answers("never")
    with pytest.raises(WorkError, match="answered 'never'.*cannot be read.*3 times.*ask another model"):
        say()
    assert len(endpoint.seen) == ATTEMPTS
    endpoint.replies.clear()
    endpoint.answers('{"n": 1}')
    assert say() == 1
    assert len(endpoint.seen) == ATTEMPTS + 1


@pytest.mark.parametrize("answer", ["[1]", '{"n": 1} and {"n": 2}', "{" * 100_000, "}{"])
def test_what_is_no_single_object_is_refused(endpoint, say, answer):
    endpoint.answers(answer)
    with pytest.raises(WorkError, match="cannot be read"):
        say()


def test_a_server_that_is_down_is_tried_with_growing_waits(waits, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(WorkError, match="cannot be reached.*3 times.*that the server runs"):
        ask_json(ChatModel(f"http://127.0.0.1:{port}", "m"), HELLO, number_of, datasets=[], cache=tmp_path)
    assert waits == [1.0, 2.0]


def test_what_concerns_every_question_is_not_tried_again(endpoint, say, waits):
    endpoint.replies.append((401, "no key", {}))
    with pytest.raises(RequestError, match="Set LIGHTBOX_CHAT_KEY"):
        say()
    assert (len(endpoint.seen), waits) == (1, [])


def test_the_key_is_in_no_log_file_or_error_when_the_model_repeats_it(endpoint, say, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv(chat.KEY_VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)
    endpoint.answers(f"your key is {KEY}")
    with pytest.raises(WorkError) as caught:
        say()
    assert endpoint.seen[-1][1]["Authorization"] == f"Bearer {KEY}"
    texts = [str(caught.value), caplog.text, json.dumps([body for _, _, body in endpoint.seen])]
    texts += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert [text for text in texts if "secret" in text] == []
