"""A JSON object too large to be held, read one (key, value) at a time: what `documents.read_json` refuses for its size.

`SAMed2D_v1.json` maps 3.8 million images to their masks, above a GiB of text, and may lie in a zip file in parts.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightbox.errors import RequestError

_CHUNK = 1 << 20
MAX_PAIR_CHARS = 1 << 22
"""Longest text of one key and its value; a bracket that is never closed would else read the rest into memory."""
_BLANK = " \t\r\n"


def file_chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, a MiB at a time.

    Raises:
        RequestError: missing, no regular file, or unreadable.
    """
    if not path.is_file():
        raise RequestError(f"File '{path}'", "There is no such file", "Check the root folder, or fetch the set first")
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except OSError as err:
        raise RequestError(f"File '{path}'", f"It cannot be read: {err.strerror}", "Check its permissions") from err


def read_pairs(chunks: Iterable[bytes], *, source: str) -> Iterator[tuple[str, object]]:
    """Yield each key of a JSON object with its value.

    Args:
        chunks: pieces of UTF-8 text, cut anywhere.
        source: what the text is called in a message.

    Raises:
        RequestError: not UTF-8, not a JSON object, or cut short; what came before has been yielded.

    Example:
        >>> list(read_pairs([b'{"a": [1', b', 2], "b": {}}'], source="text"))
        [('a', [1, 2]), ('b', {})]
    """
    text = _Text(chunks, source)
    text.take("{")
    if text.sign() == "}":
        return
    while True:
        key = text.value()
        if not isinstance(key, str):
            raise text.broken(f"a key is {key!r:.40}, not text")
        text.take(":")
        yield key, text.value()
        if text.sign() == "}":
            return
        text.take(",")


class _Text:
    """The text that was not read yet, refilled as it is used up."""

    def __init__(self, chunks: Iterable[bytes], source: str) -> None:
        self.source = source
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._values = json.JSONDecoder()
        self._held, self._at, self._before = "", 0, 0

    def sign(self) -> str:
        """The next sign that is not blank."""
        while True:
            while self._at < len(self._held):
                if self._held[self._at] not in _BLANK:
                    return self._held[self._at]
                self._at += 1
            if not self._more():
                raise self.broken("it ends too early")

    def take(self, sign: str) -> None:
        """Pass over one sign that must stand next."""
        if self.sign() != sign:
            raise self.broken(f"{self.sign()!r} stands where {sign!r} belongs")
        self._at += 1

    def value(self) -> object:
        """The next JSON value."""
        self.sign()
        while True:
            try:
                value, end = self._values.raw_decode(self._held, self._at)
            except (ValueError, RecursionError) as err:
                if len(self._held) - self._at > MAX_PAIR_CHARS or isinstance(err, RecursionError) or not self._more():
                    raise self.broken(str(err)) from err
                continue
            # a number may go on in the next piece, which a sign behind it rules out
            if end < len(self._held) and self._held[end] in _BLANK + ",:]}" or not self._more():
                self._at = end
                return value

    def broken(self, why: str) -> RequestError:
        """The error that names the place, in characters from the start."""
        return RequestError(
            self.source, f"It is no JSON object, at character {self._before + self._at}: {why}", "Fetch the file again"
        )

    def _more(self) -> bool:
        for chunk in self._chunks:
            try:
                text = self._decoder.decode(chunk)
            except UnicodeDecodeError as err:
                raise self.broken(f"byte {err.start} of a piece is not UTF-8") from err
            if text:
                self._before += self._at
                self._held, self._at = self._held[self._at :] + text, 0
                return True
        return False
