"""The chat client asks once, keeps the answer, tells nobody the key, and sends nothing that may not leave."""

import json
import logging
import socket

import pytest
import requests

from lightbox import chat
from lightbox.chat import ChatModel, ask
from lightbox.errors import RequestError, WorkError

KEY = "sk-secret/0123+abcd"
HELLO = [{"role": "user", "content": "hello"}]
OUTSIDE = "https://models.example/v1"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(chat, "BACKOFF_S", 0)
    monkeypatch.setattr(chat, "MOST_WAIT_S", 0.01)


@pytest.fixture
def say(endpoint, tmp_path):
    """Ask the local endpoint."""

    def said(messages=HELLO, datasets=(), **settings):
        return ask(ChatModel(endpoint.url, "m", **settings), messages, datasets=datasets, cache=tmp_path / "kept")

    return said


@pytest.fixture
def outside(monkeypatch):
    """Requests that would have left for another machine; each is answered "fine"."""
    sent = []

    def send(self, request, **_):
        sent.append(request)
        reply = requests.Response()
        reply.status_code, reply._content = 200, b'{"choices": [{"message": {"content": "fine"}}]}'
        return reply

    monkeypatch.delenv(chat.KEY_VARIABLE, raising=False)
    monkeypatch.setattr(requests.Session, "send", send)
    return sent


def test_an_answer_is_asked_for_once_and_then_read_from_its_file(endpoint, say, tmp_path):
    endpoint.answers("first", "second")
    assert [say(), say()] == ["first", "first"]
    path, headers, body = endpoint.seen[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body == {"model": "m", "messages": HELLO, "temperature": 0.0, "max_tokens": 1024, "seed": 0}
    assert say(timeout_s=5) == "first"
    assert len(endpoint.seen) == 1
    kept = list((tmp_path / "kept").iterdir())
    assert [path.suffix for path in kept] == [".json"]
    assert len(bytes.fromhex(kept[0].stem)) == 32


@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": None}, {"temperature": 1}, {"max_tokens": 9}, "other"])
def test_whatever_decides_the_answer_asks_anew(endpoint, say, change):
    endpoint.answers("first", "second")
    assert say() == "first"
    other = {"messages": [{"role": "user", "content": "bye"}]} if change == "other" else change
    assert say(**other) == "second"
    assert ("seed" in endpoint.seen[1][2]) == (change != {"seed": None})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace("first", "forged"),
        lambda text: text.replace('"seed":0', '"seed":NaN'),
        lambda text: "[1]",
    ],
)
def test_a_cut_or_edited_answer_is_refused_until_its_file_is_deleted(endpoint, say, tmp_path, spoil):
    endpoint.answers("first", "second")
    say()
    (kept,) = (tmp_path / "kept").iterdir()
    assert spoil(kept.read_text()) != kept.read_text()
    kept.write_text(spoil(kept.read_text()))
    with pytest.raises(RequestError, match="It was cut or edited.*Delete it"):
        say()
    assert len(endpoint.seen) == 1
    kept.unlink()
    assert say() == "second"


def test_the_key_is_sent_and_stands_in_no_log_file_error_or_representation(
    endpoint, say, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv(chat.KEY_VARIABLE, f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    endpoint.answers(f"your key is {KEY}")
    assert say() == "your key is [key]"
    assert endpoint.seen[0][1]["Authorization"] == f"Bearer {KEY}"
    escaped = json.dumps(KEY).replace("/", "\\/").replace("+", "\\u002b")
    echoes = [
        (401, f'{{"error": {{"message": {escaped}}}}}', {}),
        (500, f"bad {KEY}", {}),
        (200, f"<p>{KEY}", {}),
        (400, "x" * 190 + KEY, {}),
    ]
    for number, reply in enumerate(echoes):
        endpoint.replies[:] = [reply]
        with pytest.raises((RequestError, WorkError)) as caught:
            say(seed=number + 1)
        assert caught.value.__cause__ is None
        assert "secret" not in str(caught.value)
        assert number == 3 or "[key]" in caught.value.why
    assert "POST" in caplog.text
    assert "secret" not in caplog.text
    assert [path for path in (tmp_path / "kept").iterdir() if "secret" in path.read_text()] == []
    assert "secret" not in repr(ChatModel(endpoint.url, "m"))


@pytest.mark.parametrize("key", ["two secret words", "secret-é-key", 'secret"quoted', "secret\nkey", "brief"])
def test_a_malformed_key_is_refused_without_showing_it(endpoint, say, monkeypatch, key):
    monkeypatch.setenv(chat.KEY_VARIABLE, key)
    with pytest.raises(RequestError, match="8 or more ASCII characters") as caught:
        say()
    assert key not in str(caught.value)
    assert endpoint.seen == []


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_busy_server_is_asked_again(endpoint, say, status):
    endpoint.replies.append((status, "", {"Retry-After": "3600"}))
    endpoint.answers("done")
    assert say() == "done"
    assert len(endpoint.seen) == 2


@pytest.mark.parametrize(
    ("reply", "kind", "why", "requests_made"),
    [
        ((429, "slow down", {}), WorkError, "status 429: 'slow down'.*kept", 1 + chat.RETRIES),
        ((500, "", {}), WorkError, "status 500", 1 + chat.RETRIES),
        ((401, '{"error": "no key"}', {}), RequestError, "no key.*Set LIGHTBOX_CHAT_KEY", 1),
        ((403, "", {}), RequestError, "status 403", 1),
        ((404, "no model m", {}), RequestError, "no model m.*Check the model's name", 1),
        ((307, "", {"Location": "/v2"}), RequestError, "status 307", 1),
        ((200, "<html>\x1b[2J", {}), WorkError, r"without a text under choices: '<html>\\x1b", 1),
        ((200, "[" * 100_000, {}), WorkError, "without a text", 1),
        ((200, "[]", {}), WorkError, "without a text", 1),
        ((200, '{"choices": []}', {}), WorkError, "without a text", 1),
        ((200, '{"choices": [{"message": {"content": null}}]}', {}), WorkError, "without a text", 1),
        ((200, '{"choices": [{"message": {"content": " "}}]}', {}), WorkError, "without a text", 1),
        (
            (200, '{"choices": [{"finish_reason": "length", "message": {"content": "half"}}]}', {}),
            WorkError,
            "cut at max_tokens=1024",
            1,
        ),
    ],
)
def test_what_is_no_answer_is_an_error_that_names_model_and_reason_and_is_not_kept(
    endpoint, say, tmp_path, reply, kind, why, requests_made
):
    endpoint.replies.append(reply)
    with pytest.raises(kind, match=why) as caught:
        say()
    assert caught.value.given.startswith(f"Model 'm' at {endpoint.url}")
    assert len(endpoint.seen) == requests_made
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_late_server_is_given_up_and_not_asked_again(endpoint, say):
    endpoint.replies.append(None)
    with pytest.raises(WorkError, match="timeout_s=0.2 s"):
        say(timeout_s=0.2)
    assert len(endpoint.seen) == 1


def test_a_server_that_does_not_run_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RequestError, match=f"127.0.0.1:{port}/v1 was asked.*cannot be reached.*Connection refused"):
        ask(ChatModel(f"http://127.0.0.1:{port}/v1", "m"), HELLO, datasets=[], cache=tmp_path)


def test_a_folder_that_cannot_be_made_is_refused_before_the_question(endpoint, say, tmp_path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(RequestError, match="It cannot be made"):
        say()
    assert endpoint.seen == []


@pytest.mark.parametrize("name", ["ms_cxr", "vindr_cxr", "padchest_gr"])
def test_what_may_not_leave_is_refused_before_anything_is_sent(outside, tmp_path, name):
    def ask_outside(*datasets):
        return ask(ChatModel(OUTSIDE, "m"), HELLO, datasets=datasets, cache=tmp_path / "outside")

    for datasets in ([name], ["vqa_rad", name]):
        with pytest.raises(RequestError, match=f"{name} was meant for {OUTSIDE}.*forbids services outside"):
            ask_outside(*datasets)
    assert outside == []
    assert [ask_outside("vqa_rad"), ask_outside()] == ["fine", "fine"]
    assert len(outside) == 1
    with pytest.raises(RequestError, match="forbids"):  # nor is an answer to it taken from the cache
        ask_outside(name)


def test_what_may_not_leave_may_be_asked_about_on_this_machine(endpoint, say):
    endpoint.answers("here")
    assert say(datasets=["ms_cxr"]) == "here"


def test_a_data_set_without_a_card_is_refused_here_too(endpoint, say):
    with pytest.raises(RequestError, match="no dataset card 'mimic_cxr'"):
        say(datasets=["mimic_cxr"])
    assert endpoint.seen == []


def test_this_machine_is_reached_without_the_proxy_of_the_environment(endpoint, say, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    endpoint.answers("direct")
    assert say() == "direct"


def test_no_password_of_a_netrc_is_sent(outside, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine models.example login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert requests.Session().prepare_request(requests.Request("POST", OUTSIDE)).headers["Authorization"]
    ask(ChatModel(OUTSIDE, "m"), HELLO, datasets=[], cache=tmp_path)
    assert "Authorization" not in outside[0].headers


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://models.example/v1", "Plain http"),
        ("http://127.0.0.1.models.example/v1", "Plain http"),
        ("http://0.0.0.0:8000", "Plain http"),
        ("http://localhost.:8000", "none of the form"),
        ("https://models..example/v1", "none of the form"),
        ("https://me:secret@models.example/v1", "none of the form"),
        ("http://127.0.0.1:80@models.example/secret", "none of the form"),
        ("http://models.example\\@127.0.0.1/secret", "none of the form"),
        ("https://models.example/v1?key=secret", "none of the form"),
        ("https://models.example/v1#secret", "none of the form"),
        ("file:///secret", "none of the form"),
        ("", "none of the form"),
    ],
)
def test_an_address_that_is_open_or_unclear_is_refused(url, why):
    with pytest.raises(RequestError, match=why) as caught:
        ChatModel(url, "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_hosts_of_this_machine_may_be_asked_in_plain_http(host):
    assert ChatModel(f"http://{host}:8000/v1", "m").is_here
    assert not ChatModel("https://models.example", "m").is_here


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model", " "),
        ("temperature", float("nan")),
        ("temperature", 3),
        ("seed", -1),
        ("max_tokens", 0),
        ("timeout_s", 0),
        ("timeout_s", float("inf")),
    ],
)
def test_a_setting_out_of_range_is_named(setting, value):
    with pytest.raises(RequestError, match=f"{setting} is .*It must be"):
        ChatModel(**{"url": OUTSIDE, "model": "m"} | {setting: value})
