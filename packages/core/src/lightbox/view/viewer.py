"""What the page does with an upload and a question: images of open pages, answers as HTML. No torch, no gradio."""

import base64
import binascii
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lightbox.errors import LightboxError, RequestError
from lightbox.paper.entries import Entries
from lightbox.view.answers import Asked, answer_html, error_html
from lightbox.view.checkpoints import HeldModels, checkpoint_folder
from lightbox.view.regions import region_of, words_of
from lightbox.view.uploads import Upload, check_size, read_upload

MOST_SESSIONS = 8
"""Pages whose image is held; that of the one seen least recently goes first."""


@dataclass
class Sessions:
    """The upload of each open page, forgotten when the page closes."""

    uploads: dict[str, Upload] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, session: str, upload: Upload) -> None:
        """Hold an upload in the place of the one before."""
        with self.lock:
            self.uploads.pop(session, None)
            self.uploads[session] = upload
            while len(self.uploads) > MOST_SESSIONS:
                self.uploads.pop(next(iter(self.uploads)))

    def find(self, session: str) -> Upload:
        """The upload of a page.

        Raises:
            RequestError: there is none.
        """
        with self.lock:
            upload = self.uploads.get(session)
        if upload is None:
            raise RequestError("No image is open", "A model is asked about an image", "Choose a file first")
        return upload

    def forget(self, session: str) -> None:
        """Let go of what a page uploaded."""
        with self.lock:
            self.uploads.pop(session, None)


@dataclass(frozen=True)
class Viewer:
    """What the events of the page call.

    Args:
        papers: entries by name.
        out: folder under which trainings are listed.
    """

    papers: Mapping[str, Entries]
    out: Path
    models: HeldModels = field(default_factory=HeldModels)
    sessions: Sessions = field(default_factory=Sessions)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def open_upload(self, session: str, content: str, size_bytes: int) -> Upload:
        """Decode an upload and hold it.

        Args:
            session: of the page.
            content: base64; "" where the browser found it too large to send.
            size_bytes: of the file.

        Raises:
            RequestError: what `read_upload` refuses; the former upload is forgotten all the same.
        """
        self.sessions.forget(session)
        check_size(size_bytes)
        try:
            upload = read_upload(base64.b64decode(content, validate=True))
        except binascii.Error as err:
            raise RequestError("The upload", "It did not arrive whole", "Choose the file again") from err
        self.sessions.keep(session, upload)
        return upload

    def answer(
        self,
        session: str,
        paper: str,
        checkpoint: str,
        question: str,
        *,
        options: str = "",
        drawn: str | None = "",
        place: tuple[str, int, int] = ("", 0, 0),
    ) -> str:
        """Ask one model; HTML of its answer, or of the three parts of an error.

        Args:
            session: of the page.
            paper: its name.
            checkpoint: folder of a run.
            question: text.
            options: choices of a closed question, separated by commas.
            drawn: region, see `regions.region_of`.
            place: plane, index and channel of the slice of a volume.
        """
        asked = Asked(paper, Path(checkpoint or "").name, question.strip(), number=next(self.numbers))
        started = time.monotonic()
        try:
            if not asked.question:
                raise RequestError("The question is empty", "There is nothing to answer", "Write one")
            choices = tuple(choice.strip() for choice in options.split(",") if choice.strip())
            if len(choices) == 1:
                raise RequestError(
                    f"The options are '{options}'", "A closed question has two or more", "Separate them by commas"
                )
            folder = checkpoint_folder(checkpoint or "")
            pixels = self.sessions.find(session).pixels(*place)
            # of two papers side by side, one may answer about the whole image alone
            region = region_of(drawn, pixels.shape[:2]) if self.papers[paper].takes_regions else None
            asked = replace(asked, checkpoint=folder.name, region=words_of(region))
            told = {"options": choices, "region": region}
            prediction = self.models.ask(self.papers[paper], folder, pixels, asked.question, **told)
            return answer_html(asked, pixels, prediction, wall_s=time.monotonic() - started)
        except LightboxError as error:
            return error_html(asked, error)
