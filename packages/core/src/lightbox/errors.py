"""Errors in three parts: what was given, why it cannot work, what to do.

`RequestError` is the user's request (exit code 2); `WorkError` is work that failed (exit code 1). Both print as
three sentences without a traceback; anything else that reaches the command line is a bug and keeps its traceback.
"""


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


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else text + "."
