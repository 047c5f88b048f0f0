"""Files of traces: conversations in which a model acts, turn by turn, and answers at the end. No torch."""

from pathlib import Path

from lightbox.backbones.chat_files import Chats, read_chats
from lightbox.paper.replies import ReplyCodec


def read_trace_file(path: Path, codec: ReplyCodec) -> Chats:
    """Read a file of chats in the form of ViTAR's 1K traces; malformed ones name file, row and turn.

    Args:
        path: the file, see `chat_files`.
        codec: that every reply must be readable by: actions first, an answer last.

    Raises:
        RequestError: the file as a whole cannot be read.
    """

    def fault_of(text: str, size_px: tuple[int, int], is_first: bool, is_last: bool) -> str:
        reply = codec.read(text, size_px, is_first=is_first)
        is_in_place = (reply.answer is not None) == is_last
        return reply.failure or ("" if is_in_place else "an answer before the end, or none at it")

    return read_chats(path, fault_of)
