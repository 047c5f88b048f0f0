"""A Sphinx extension: Python files as pages whose lines links can name, walkthroughs with what they printed."""

from pathlib import Path
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from lightbox.site import walkthroughs

FILE_TYPE = "python-page"
"""Of the suffix .py, for Sphinx."""


class PythonParser(MystParser):
    """Reads a walkthrough as its Markdown, and any other Python file as code with numbered lines."""

    supported = (FILE_TYPE,)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Fill the document; a walkthrough's run lies beside it, where staging has found one."""
        env = document.settings.env
        source = Path(env.doc2path(env.docname))
        if source.name == walkthroughs.NAME:
            run = walkthroughs.run_beside(source)
            folder = run if run.is_dir() else None
            super().parse(walkthroughs.page_text(inputstring, folder, f"{run.name}/{walkthroughs.FIGURES}"), document)
            return
        super().parse(f"# `{source.name}`\n\n`{source.relative_to(env.srcdir)}`\n", document)
        section = document[0]
        assert isinstance(section, nodes.section), "of the heading above"
        section += nodes.raw("", numbered_code(inputstring), format="html")
        about = env.metadata[env.docname]
        about["orphan"] = ""  # it is reached by links and need not stand in the contents
        lines = range(1, inputstring.count("\n") + 2)
        # where the Markdown parser looks for what a link's `#L12` names
        about["myst_slugs"] = {f"L{line}": (line, f"{_LINE}-{line}", source.name) for line in lines}


_LINE = "L"


def numbered_code(text: str) -> str:
    """Python code as HTML with a number and an anchor on every line, in the classes that Sphinx's themes colour."""
    formatter = HtmlFormatter(linenos="inline", linespans=_LINE)
    code = highlight(text, PythonLexer(stripnl=False), formatter)
    return f'<div class="highlight-python numbered notranslate">{code}</div>'


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_source_suffix(".py", FILE_TYPE)
    app.add_source_parser(PythonParser)
    return {"parallel_read_safe": True}
