"""Answers of a language model behind any OpenAI-compatible address: each is asked for once and kept. No torch.

The request goes out by `requests` and not by `huggingface_hub.InferenceClient`. Without a key that one sends the saved
Hugging Face token to any host; it follows redirects with the content, and refuses where HF_HUB_OFFLINE is set.
"""

import ipaddress
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from lightbox.errors import RequestError, WorkError
from lightbox.files import digest, write_json
from lightbox.readers.dataset_cards import load_dataset_card
from lightbox.readers.documents import parse_json

KEY_VARIABLE = "LIGHTBOX_CHAT_KEY"
RETRIES = 3
BACKOFF_S = 1.0
"""The first retry comes at once, the next ones after 2 and 4 times this."""
MOST_WAIT_S = 30
"""What a server may ask for before each retry, in s."""
_RETRIED = (429, *range(500, 600))
# no user, no query, no fragment: a key could stand in them, and they hide which host is meant
_HOST = r"(?:[\w-]{1,63}\.)*[\w-]{1,63}|\[[\da-f:]+\]"
_ADDRESS = re.compile(rf"(https?)://({_HOST})(?::\d{{1,5}})?(?:/[\w.~@%+:-]*)*", re.ASCII | re.IGNORECASE)
# without quotes and backslashes a key reads the same inside JSON; one of three letters would be found in any word
_KEY = re.compile(r"[!#-\[\]-~]{8,}")


class UnreachableError(RequestError):
    """The server of a model cannot be reached; it may run later, so who can wait may ask again."""


@dataclass(frozen=True)
class ChatModel:
    """A model behind an address and how it is asked. The key is not in here: `ask` takes it from LIGHTBOX_CHAT_KEY.

    Args:
        url: the address before /chat/completions, often ending in /v1; plain http for this machine only.
        model: its name, as the server knows it.
        temperature: 0 to 2; 0 asks for the likeliest answer.
        seed: for the server's draws, >= 0; None sends none, for servers that know no seed.
        max_tokens: longest answer, in tokens; a longer one costs time and money.
        timeout_s: longest silence of the server, in s.

    Raises:
        RequestError: a value out of its range.
    """

    url: str
    model: str
    temperature: float = 0.0
    seed: int | None = 0
    max_tokens: int = 1024
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        address = _ADDRESS.fullmatch(self.url)
        if address is None:
            # the address is not repeated: what is wrong with it may be a key in it
            why = "It is none of the form https://HOST[:PORT]/PATH, without user, query and fragment"
            raise RequestError("The address of the model", why, f"Correct it; a key goes into {KEY_VARIABLE}")
        if address[1].lower() == "http" and not self.is_here:
            why = "Plain http shows key and content to everyone on the way"
            raise RequestError(f"The address of the model is {self.url}", why, "Use https; http is for this machine")
        for name, is_good, values in (
            ("model", bool(self.model.strip()), "a name"),
            ("temperature", 0 <= self.temperature <= 2, "0 to 2"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more, or None"),
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("timeout_s", 0 < self.timeout_s < float("inf"), "a number of seconds above 0"),
        ):
            if not is_good:
                raise RequestError(f"{name} is {getattr(self, name)!r}", f"It must be {values}", f"Change {name}")

    @property
    def is_here(self) -> bool:
        """Whether the address is this machine's own; what a server there passes on is not seen."""
        host = _ADDRESS.fullmatch(self.url)[2].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host.lower() == "localhost"


def ask(chat: ChatModel, messages: Sequence[Mapping[str, str]], *, datasets: Collection[str], cache: Path) -> str:
    """The model's answer; the same question to the same model with the same settings is read from `cache`.

    Args:
        chat: whom to ask.
        messages: the conversation, each with `role` and `content`.
        datasets: names of the cards of all data sets that content of the messages comes from; none for our own words.
        cache: folder with one JSON file an answer. Its name is a digest of all that decides the answer.

    Raises:
        RequestError: a data set without a card, or one that may not leave this machine; a kept answer that was cut or
            edited; a malformed key; a request that the server refuses.
        UnreachableError: a server that cannot be reached; a RequestError.
        WorkError: a server that is late, busy or broken, or that answers without text or with a cut one.
    """
    for name in datasets:
        card = load_dataset_card(name)
        if card.external_api == "forbidden" and not chat.is_here:
            raise RequestError(
                f"Content of {name} was meant for {chat.url}",
                f"Its card, licence {card.licence}, forbids services outside this machine",
                "Serve a model here and name its address, such as http://127.0.0.1:8000/v1",
            )
    body = {
        "model": chat.model,
        "messages": [dict(message) for message in messages],
        "temperature": float(chat.temperature),
        "max_tokens": chat.max_tokens,
    } | ({} if chat.seed is None else {"seed": chat.seed})
    asked = {"url": chat.url.rstrip("/"), "body": body}
    path = cache / f"{digest(asked)}.json"
    if path.exists():
        return _kept(path, asked)
    try:  # before the question, which may cost money
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise RequestError(f"Folder '{cache}'", f"It cannot be made: {err.strerror}", "Name another") from err
    answer = _fetch(chat, f"{asked['url']}/chat/completions", body)
    write_json(path, _record(asked, answer))
    return answer


def _record(asked: Mapping[str, Any], answer: str) -> dict[str, Any]:
    return {"asked": asked, "answer": answer, "sha256": digest([asked, answer])}


def _kept(path: Path, asked: Mapping[str, Any]) -> str:
    try:
        record: Any = parse_json(path.read_text(encoding="utf-8"))
        is_whole = record == _record(asked, record["answer"])
    except (OSError, ValueError, TypeError, KeyError):
        is_whole = False
    if not is_whole:
        # not asked again in silence: an answer that was corrected by hand would be lost, or another one used unseen
        raise RequestError(
            f"Kept answer '{path}'", "It was cut or edited, or cannot be read", "Delete it to ask the model again"
        )
    return record["answer"]


def _fetch(chat: ChatModel, url: str, body: Mapping[str, Any]) -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key and not _KEY.fullmatch(key):
        why = "A key has 8 or more ASCII characters without blanks, quotes and backslashes"
        raise RequestError(f"{KEY_VARIABLE} is set", why, "Correct it, or unset it where the server wants none")

    def authorise(request: Any) -> Any:  # also without a key, as requests would else take one from a .netrc
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    # statuses alone are tried again: a late answer may have been paid for, and keeps its own kind of error
    retry = Retry(
        RETRIES, connect=0, read=False, other=0, status_forcelist=_RETRIED, allowed_methods=None, raise_on_status=False,
        backoff_factor=BACKOFF_S, retry_after_max=MOST_WAIT_S,
    )  # fmt: skip
    given = f"Model '{chat.model}' at {chat.url} was asked"
    with requests.Session() as session:
        session.trust_env = not chat.is_here  # a proxy of the environment would carry it off this machine
        session.mount(url, HTTPAdapter(max_retries=retry))
        try:
            reply = session.post(url, json=body, auth=authorise, timeout=chat.timeout_s, allow_redirects=False)
        except requests.Timeout:
            why = f"No answer came within timeout_s={chat.timeout_s:g} s"
            raise WorkError(given, why, "Raise timeout_s, or ask a smaller model") from None
        except requests.RequestException as err:  # its text is scrubbed, so it is not chained
            why = f"It cannot be reached: {_short(str(err).rpartition('Caused by ')[2], key)}"
            raise UnreachableError(given, why, "Check the address and that the server runs") from None
    reply.encoding = "utf-8"
    if reply.status_code != 200:
        kind = WorkError if reply.status_code in _RETRIED else RequestError
        do = {
            401: f"Set {KEY_VARIABLE} to a key of this server",
            403: f"Set {KEY_VARIABLE} to a key that may use this model",
            404: "Check the model's name, and that the address ends before /chat/completions, often in /v1",
            429: "Wait, or ask for a higher limit; answers so far are kept",
        }.get(reply.status_code, "Do what the server says; answers so far are kept")
        raise kind(given, f"It answered with status {reply.status_code}: {_short(reply.text, key)}", do)
    return _text_of(reply.text, chat, key, given)


def _text_of(reply: str, chat: ChatModel, key: str, given: str) -> str:
    try:
        plain: Any = parse_json(reply)
        text, ending = plain["choices"][0]["message"]["content"], plain["choices"][0].get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        text, ending = None, None
    if ending == "length":
        why = f"Its answer was cut at max_tokens={chat.max_tokens}"
        raise WorkError(given, why, "Raise max_tokens")
    if not isinstance(text, str) or not text.strip():
        why = f"It answered without a text under choices: {_short(reply, key)}"
        raise WorkError(given, why, "Check that the address is OpenAI-compatible, or ask another model")
    return text.replace(key, "[key]") if key else text


def _short(text: str, key: str) -> str:
    """At most 200 characters of a text, without the key and control characters."""
    try:
        text = json.dumps(parse_json(text), ensure_ascii=False)  # JSON may write a slash or a plus of a key in escapes
    except ValueError:
        pass
    text = text.replace(key, "[key]") if key else text
    return f"{' '.join(text.split())!r:.200}"
