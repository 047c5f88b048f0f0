"""Answers of a language model that must be one JSON object with certain fields; prose is asked again. No torch."""

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightbox.chat import ChatModel, UnreachableError, ask
from lightbox.errors import WorkError
from lightbox.files import digest, to_plain
from lightbox.readers.documents import parse_json

ATTEMPTS = 3
WAIT_S = 1.0
"""Before the second attempt, in s; before the third twice as long."""

Content = TypeVar("Content")


def ask_json(
    chat: ChatModel,
    messages: Sequence[Mapping[str, str]],
    read: Callable[[Mapping[str, Any]], Content],
    *,
    datasets: Collection[str],
    cache: Path,
) -> Content:
    """What `read` makes of the model's JSON object; a readable answer is kept, see `chat.ask`, and no other is.

    A server that cannot be reached, and an answer that cannot be read, are tried `ATTEMPTS` times in all, with growing
    waits. The model is shown its unreadable answer and what was wrong with it. What the client itself tries again, as
    a busy server, is not tried once more here.

    Args:
        chat: whom to ask.
        messages: the conversation, each with `role` and `content`.
        read: gets the fields; raises ValueError, with the reason, where they are no answer.
        datasets: see `chat.ask`.
        cache: folder with one folder a conversation.

    Raises:
        RequestError: what `chat.ask` refuses, but for a server that cannot be reached.
        WorkError: no readable answer after all attempts, or a server that is late, busy or broken.
    """
    failure: WorkError | None = None
    conversation = [dict(message) for message in messages]
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        # a folder of its own, so that an unreadable answer can be taken out again
        kept = cache / digest([deciding(chat), conversation])
        try:
            answer = ask(chat, conversation, datasets=datasets, cache=kept)
        except UnreachableError as err:
            failure = WorkError(err.given, f"{err.why} It was tried {ATTEMPTS} times", err.do)
            continue
        try:
            return read(_fields(answer))
        except ValueError as err:
            shutil.rmtree(kept)
            given = f"Model '{chat.model}' at {chat.url} answered {answer!r:.200}"
            why = f"That cannot be read: {err}. It was tried {ATTEMPTS} times"
            failure = WorkError(given, why, "Run the command again, or ask another model")
            complaint = f"That cannot be read: {err}. Answer with one JSON object as asked, and nothing else."
            turns = {"role": "assistant", "content": answer}, {"role": "user", "content": complaint}
            conversation = [*(dict(message) for message in messages), *turns]
    assert failure is not None
    raise failure


def deciding(chat: ChatModel) -> dict[str, Any]:
    """What of a model and its settings decides an answer: all but how long is waited for it."""
    return {name: value for name, value in to_plain(chat).items() if name != "timeout_s"}


def _fields(answer: str) -> Mapping[str, Any]:
    """The JSON object in an answer; words or a fence around it do no harm."""
    fields = parse_json(answer[answer.find("{") : answer.rfind("}") + 1])
    if not isinstance(fields, dict):
        raise ValueError("it holds no JSON object")
    return fields
