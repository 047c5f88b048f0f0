"""Run a script as `python SCRIPT FIGURES` would, and note which of its lines printed what.

Called as `python -m lightbox.site.record SCRIPT FIGURES RECORD`. What the script prints still goes to standard output;
RECORD gets it once more, as JSON, after the script has ended well.
"""

import io
import json
import runpy
import sys
import time
from pathlib import Path
from typing import TextIO


class LineOutput(io.TextIOBase):
    """A standard output that knows, of all it passes on, the line of the script that was running.

    Args:
        stream: where texts go on to.
        script: path of the script, as it is run.
    """

    def __init__(self, stream: TextIO, script: str) -> None:
        self.stream, self.script = stream, script
        self.texts: list[tuple[int, str]] = []

    def write(self, text: str, /) -> int:
        """Pass a text on and keep it; a script's end prints from no line, which counts as its last one."""
        frame = sys._getframe(1)
        while frame is not None and (frame.f_code.co_filename, frame.f_code.co_name) != (self.script, "<module>"):
            frame = frame.f_back
        line = frame.f_lineno if frame is not None else self.texts[-1][0] if self.texts else 1
        self.texts.append((line, text))
        return self.stream.write(text)

    def flush(self) -> None:
        """Flush the stream behind."""
        self.stream.flush()


def main(script: str, figures: str, record: str) -> None:
    """Run `script` with the folder `figures` as its one argument, and write `record`."""
    sys.argv = [script, figures]
    sys.path[0] = str(Path(script).parent)  # as for a script; -m has put the current folder there
    output = LineOutput(sys.stdout, script)
    sys.stdout = output
    runpy.run_path(script, run_name="__main__")
    sys.stdout = output.stream
    noted = {"cpu_s": time.process_time(), "day": time.strftime("%Y-%m-%d"), "texts": output.texts}
    Path(record).write_text(json.dumps(noted), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
