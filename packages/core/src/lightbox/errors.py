"""Errors in three parts: what was given, why it cannot work, what to do.

`RequestError` is the user's request (exit code 2); `WorkError` is work that failed (exit code 1). Both print as
three sentences without a traceback; anything else that reaches the command line is a bug and keeps its traceback.
`guard` is where that happens.
"""

import errno
import sys
from collections.abc import Callable
from typing import Any


class LightboxError(Exception):
    """An error a user can act on.

    Args:
        given: what was given, with its value.
        why: why that cannot work.
        do: what to do instead, naming the option or config key.
    """

    exit_code = 1

    def __init__(self, given: str, why: str, do: str) -> None:
        self.given, self.why, self.do = (_sentence(part) for part in (given, why, do))
        super().__init__(f"{self.given} {self.why} {self.do}")

    def __reduce__(self):  # keeps the three parts when a worker process sends the error home
        return type(self), (self.given, self.why, self.do)


class RequestError(LightboxError):
    """The request was wrong: unknown name, impossible combination, malformed file. Exit code 2."""

    exit_code = 2


class WorkError(LightboxError):
    """The request was fine and the work failed: full disk, non-finite loss, broken digest. Exit code 1."""

    exit_code = 1


def guard(call: Callable[[], Any]) -> int:
    """Run `call` and return the exit code; an error that a user can act on is shown in three lines on stderr.

    Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted. Unexpected errors pass through with
    their traceback: they are bugs.
    """
    try:
        call()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; finished jobs and checkpoints are kept.\n")
        return 130
    except LightboxError as err:
        return _show(err)
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" while writing '{err.filename}'" if err.filename else ""
        return _show(
            WorkError(
                f"The disk filled up{place}",
                "Finished jobs and checkpoints are kept, what was being written is not",
                "Free some space, or choose another folder with --out, and run the same command again",
            )
        )
    return 0


def _show(err: LightboxError) -> int:
    for label, text in (("What was given", err.given), ("Why", err.why), ("What to do", err.do)):
        sys.stderr.write(f"{label}: {text}\n")
    for note in getattr(err, "__notes__", ()):
        sys.stderr.write(f"Where: {note}\n")
    return err.exit_code


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else text + "."
