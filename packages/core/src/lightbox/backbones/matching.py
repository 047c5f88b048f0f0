"""Whether what was loaded belongs together: tensors and their class, a tokenizer and its model."""

import re
from typing import Any

from lightbox.errors import RequestError

SHOWN = 5


def check_tensors(
    loading_info: dict[str, Any], class_name: str, request: str, *, may_lack: str = "", may_hold_more: bool = False
) -> list[str]:
    """Refuse weights that do not fit their class.

    Args:
        loading_info: what `from_pretrained` says with `output_loading_info`.
        class_name: of the model.
        request: what was asked for, for messages.
        may_lack: regular expression, matched at the start of a name, of parameters that the file may lack.
        may_hold_more: True lets a file hold tensors that the class does not read.

    Returns:
        Names of tensors in the file that the class does not read, sorted.

    Raises:
        RequestError: with names by kind.
    """
    # what a class adds of its own (a fusion) is new and in no file
    missing = [name for name in loading_info["missing_keys"] if not may_lack or not re.match(may_lack, name)]
    reshaped = [str(key) for key in loading_info["mismatched_keys"]]
    unread = sorted(loading_info["unexpected_keys"])
    if missing or reshaped or (unread and not may_hold_more):
        lists = {"missing": missing, "unexpected": unread, "of another shape": reshaped}
        text = "; ".join(f"{kind}: {_first(names)}" for kind, names in lists.items())
        raise RequestError(
            f"{request}, read as {class_name}", f"Its tensors do not fit; {text}", "Use weights of that architecture"
        )
    return unread


def check_tokenizer(tokens: int, rows: int, request: str) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings.

    Raises:
        RequestError: with both counts.
    """
    if tokens > rows:  # fewer is usual: tables are filled up to a round size
        raise RequestError(
            f"{request}: {tokens} tokens and {rows} embeddings",
            "A token without an embedding cannot be read",
            "Use the tokenizer that was saved with the model",
        )


def _first(names: list[str]) -> str:
    if not names:
        return "none"
    rest = len(names) - SHOWN
    return ", ".join(sorted(names)[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
