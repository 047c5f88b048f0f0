"""The page: which components there are, and what happens when one is used. Made with gradio, which is optional.

No component of gradio takes or shows a picture here: all of them would write it to disk. A file comes in the data of an
event, and every picture on the page is an address that holds its bytes.
"""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import gradio as gr

from lightbox.errors import LightboxError
from lightbox.view.answers import error_html, picture_address
from lightbox.view.checkpoints import list_checkpoints
from lightbox.view.viewer import Viewer

ASSETS = files("lightbox.view") / "assets"
NO_PAPER = "none"
WAITING = '<div class="lb-answer"><p class="lb-asked">{} ...</p></div>'
HEAD = """
<h1>Lightbox viewer</h1>
<p>One image, one question, and what two trained models make of it, side by side.</p>
<p class="lb-honest">For research and teaching, not for clinical use. Never open data of patients that you may not use.
An image stays in this machine's memory and its header is dropped; words burned into its pixels are shown as they
are.</p>
"""


@dataclass(frozen=True)
class Side:
    """The choices for one of the two models."""

    paper: gr.Dropdown
    checkpoint: gr.Dropdown
    question: gr.Textbox


@dataclass(frozen=True)
class Slicing:
    """Which slice of a volume is shown; `row` holds the other three and is hidden for a 2D image."""

    row: gr.Row
    plane: gr.Dropdown
    index: gr.Slider
    channel: gr.Slider

    @property
    def place(self) -> list[Any]:
        """The components that say which slice it is."""
        return [self.plane, self.index, self.channel]


def build_page(viewer: Viewer) -> gr.Blocks:
    """The page, with its events."""
    names = list(viewer.papers)
    with gr.Blocks(title="Lightbox viewer", analytics_enabled=False) as page:
        gr.HTML(f'<div class="lb-head">{HEAD}</div>')
        with gr.Row():
            with gr.Column(scale=2):
                film = _film()
                facts = gr.HTML("", elem_id="facts", apply_default_css=False)
                slicing = _slicing()
            with gr.Column(scale=3):
                question = gr.Textbox(label="question", elem_id="question", lines=1)
                options = gr.Textbox(
                    label="options", info="of a closed question, such as yes, no; may be empty", elem_id="options"
                )
                first, second = _side("A", names), _side("B", [NO_PAPER, *names])
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
        with gr.Row():
            answers = [gr.HTML("", elem_id=f"answer-{letter}", apply_default_css=False) for letter in "ab"]
        events = Events(viewer)
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        chosen = [first.paper, second.paper]
        for event in (page.load, first.paper.change):
            event(events.choose_first, chosen, [first.checkpoint, film, question], **quiet)
        second.paper.change(events.choose_second, chosen, [second.checkpoint, film, second.question], **quiet)
        opened = [film, facts, slicing.row, *slicing.place]
        film.upload(events.open_upload, None, opened, trigger_mode="always_last", **quiet)
        slicing.plane.input(events.turn, slicing.plane, slicing.index, **quiet).then(
            events.cut, slicing.place, [film, facts], **quiet
        )
        for slider in (slicing.index, slicing.channel):
            slider.input(events.cut, slicing.place, [film, facts], trigger_mode="always_last", **quiet)
        asked = [question, options, film, *slicing.place]
        asked += [first.paper, first.checkpoint, second.paper, second.checkpoint, second.question]
        # one at a time: where a model is busy, the next page waits in the queue and is shown its place there
        once = {"concurrency_limit": 1, "api_visibility": "private"}
        gr.on([ask.click, question.submit], events.answer_both, asked, answers, **once)
        page.unload(events.forget)
    return page


def _film() -> gr.HTML:
    """The image, with what is drawn on it as its value; see `canvas.js`."""
    return gr.HTML(
        value="",
        html_template=(ASSETS / "canvas.html").read_text(encoding="utf-8"),
        js_on_load=(ASSETS / "canvas.js").read_text(encoding="utf-8"),
        elem_id="film",
        apply_default_css=False,
        picture="",
        takes_region=False,
    )


def _slicing() -> Slicing:
    with gr.Row(visible=False) as row:
        plane = gr.Dropdown([], label="plane", elem_id="plane")
        index = gr.Slider(0, 1, step=1, label="slice", elem_id="slice")
        channel = gr.Slider(0, 1, step=1, label="channel", elem_id="channel")
    return Slicing(row, plane, index, channel)


def _side(letter: str, names: list[str]) -> Side:
    end = letter.lower()
    with gr.Group():
        with gr.Row():
            paper = gr.Dropdown(names, value=names[0], label=f"paper {letter}", elem_id=f"paper-{end}")
            checkpoint = gr.Dropdown(
                [], label=f"checkpoint {letter}", allow_custom_value=True, elem_id=f"checkpoint-{end}", scale=2
            )
        # another paper's model was taught other words
        own = gr.Textbox(
            label="question B", placeholder="the question above", elem_id="question-b", visible=letter == "B"
        )
    return Side(paper, checkpoint, own)


class Events:
    """What happens on the page; each method returns what becomes of the components that it is connected to."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer

    def choose_first(self, first: str, second: str) -> tuple[Any, Any, Any]:
        """Checkpoints of the paper chosen for A, whether a region can be drawn, and a question to begin with."""
        return self._checkpoints(first), self._drawing(first, second), self._viewer.papers[first].example

    def choose_second(self, first: str, second: str) -> tuple[Any, Any, Any]:
        """The same for B, whose question stays empty where A is of the same paper."""
        is_own = second in self._viewer.papers and second != first
        example = self._viewer.papers[second].example if is_own else ""
        return self._checkpoints(second), self._drawing(first, second), example

    def _checkpoints(self, paper: str) -> Any:
        papers = self._viewer.papers
        runs = list_checkpoints(self._viewer.out, papers[paper].package) if paper in papers else {}
        choices = [(label, str(folder)) for label, folder in runs.items()]
        return gr.Dropdown(choices=choices, value=choices[0][1] if choices else None)

    def _drawing(self, *names: str) -> Any:
        papers = self._viewer.papers
        return gr.HTML(takes_region=any(papers[name].takes_regions for name in names if name in papers))

    def open_upload(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        """Show what was uploaded: the film, what it is, and which slices there are."""
        try:
            upload = self._viewer.open_upload(str(request.session_hash), event.content, int(event.size))
        except LightboxError as error:
            return [gr.HTML(picture=""), error_html(None, error), gr.Row(visible=False), *[gr.skip()] * 3]
        counts, plane = upload.counts, upload.first_plane
        middle = counts.get(plane, 0) // 2
        pixels = upload.pixels(plane, middle)
        height, width = pixels.shape[:2]
        kinds = [f"{upload.kind}, {width} x {height} pixels", *(f"{n} {name} slices" for name, n in counts.items())]
        return [
            gr.HTML(picture=picture_address(pixels)),
            f'<p class="lb-facts">{html.escape(", ".join(kinds))}</p>',
            gr.Row(visible=bool(counts)),
            gr.Dropdown(choices=list(counts), value=plane or None),
            gr.Slider(maximum=max(1, counts.get(plane, 0) - 1), value=middle),
            gr.Slider(maximum=max(1, upload.channels - 1), value=0, visible=upload.channels > 1),
        ]

    def turn(self, plane: str, request: gr.Request) -> Any:
        """The slices of another plane, from its middle."""
        try:
            count = self._viewer.sessions.find(str(request.session_hash)).counts.get(plane, 1)
        except LightboxError:  # `cut`, which follows, says so
            return gr.skip()
        return gr.Slider(maximum=max(1, count - 1), value=count // 2)

    def cut(self, plane: str, index: float, channel: float, request: gr.Request) -> tuple[Any, Any]:
        """Show another slice."""
        try:
            pixels = self._viewer.sessions.find(str(request.session_hash)).pixels(plane, int(index), int(channel))
        except LightboxError as error:
            return gr.skip(), error_html(None, error)
        return gr.HTML(picture=picture_address(pixels)), gr.skip()

    def answer_both(
        self,
        question: str,
        options: str,
        drawn: str,
        plane: str | None,
        index: float | None,
        channel: float | None,
        paper_a: str,
        run_a: str,
        paper_b: str,
        run_b: str,
        question_b: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any]]:
        """Ask A and then B; a page that is closed in between spares the second one."""
        session = str(request.session_hash)
        told = {"options": options, "drawn": drawn, "place": (plane or "", int(index or 0), int(channel or 0))}
        has_second = paper_b in self._viewer.papers
        yield (
            WAITING.format("asking A; its first question opens it"),
            WAITING.format("B comes next") if has_second else "",
        )
        yield self._viewer.answer(session, paper_a, run_a, question, **told), gr.skip()
        if has_second:
            yield gr.skip(), self._viewer.answer(session, paper_b, run_b, question_b.strip() or question, **told)

    def forget(self, request: gr.Request) -> None:
        """Let go of the image of a page that was closed."""
        self._viewer.sessions.forget(str(request.session_hash))
