"""The results page: one HTML file that needs nothing else, from one results document. No torch.

Every text of a data set or a model is escaped by the template, and a content policy lets no script and no address in.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from lightbox.claims import registry
from lightbox.claims.document import Curves, Document
from lightbox.claims.verdicts import PRESETS_WITHOUT_VERDICT
from lightbox.files import replace_text
from lightbox.report import figures, gallery, numbers
from lightbox.report.claim_view import CHIPS, ClaimView
from lightbox.runs import index_place

MOST_CURVES = 6
AGREEMENT = {True: ("=", "agrees"), False: ("≠", "differs"), None: ("?", "not comparable")}
"""Mark and word for a published effect beside ours."""


def write_page(document: Document, path: Path, *, folder: Path | None = None) -> None:
    """Write a document as one self-contained page.

    Args:
        document: see `lightbox.claims.document`.
        path: the HTML file; replaced as a whole.
        folder: where the document lies, which example images are relative to; None takes the page's own folder.
    """
    replace_text(path, render(document, folder=folder or path.parent, run_ids=_run_ids(path)))


def render(document: Document, *, folder: Path, run_ids: Mapping[str, str]) -> str:
    """The page as text; `run_ids` are MLflow run ids by job key, empty where there is no index."""
    papers = list(dict.fromkeys(claim.paper for claim in document.claims))
    declared = registry.declarations(papers)
    claims = [
        ClaimView(claim, document, claim.id if len(papers) == 1 else f"{claim.paper} {claim.id}")
        for claim in document.claims
    ]
    return _template().render(
        papers=papers,
        title=declared[papers[0]].title if papers[0] in declared and len(papers) == 1 else ", ".join(papers),
        glossary=CHIPS.values(),
        agreement=AGREEMENT,
        none_sign=numbers.NONE,
        document=document,
        family=document.family,
        started=document.started.replace("T", " ").replace("Z", " UTC"),
        versions=", ".join(f"{name} {version}" for name, version in document.machine["versions"].items() if version),
        is_exercise=document.preset in PRESETS_WITHOUT_VERDICT,
        claims=claims,
        waiting=sum(view.chip.tone == "wait" for view in claims),
        forest=_forest(claims),
        curves=[_curves(paper, document.curves[paper]) for paper in papers if document.curves.get(paper)],
        titles={(paper, arm): one.title for paper in declared for arm, one in declared[paper].arms.items()},
        gallery=gallery.Gallery(document.examples, folder=folder),
        shared_pictures=gallery.shared_pictures,
        own_pictures=gallery.own_pictures,
        run_ids=run_ids,
    )


@cache
def _template() -> Template:
    return template_of("page.html.j2")


def template_of(name: str) -> Template:
    """A template of a page: every value is escaped, and one that is not there is an error."""
    environment = Environment(
        loader=PackageLoader("lightbox.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (numbers.signed, numbers.interval, numbers.number, numbers.level, numbers.duration, numbers.percent)
    environment.globals |= {form.__name__: form for form in formats}
    return environment.get_template(name)


def _run_ids(path: Path) -> dict[str, str]:
    """MLflow run ids, where the page lies in `<out>/reproduce/<name>/`."""
    folders = path.resolve().parents
    return index_place.known_run_ids(folders[2]) if len(folders) > 2 else {}


def _forest(claims: Sequence[ClaimView]) -> tuple[str, str]:
    """The forest plot of all contrasts and its alternative text."""
    texts = []
    for view in claims:
        rows = []
        for c in view.claim.contrasts:
            ends, percent = view.claim.deciding_interval(c)
            words = numbers.interval_words(ends, view.digits, percent)
            rows.append(f"{c.name} ({c.role}) {numbers.signed(c.effect, view.digits)}, {words}")
        texts.append(f"{view.label}: {'; '.join(rows)}")
    alt = "Forest plot of every contrast with the interval that decides it. " + ". ".join(texts) + "."
    return figures.data_uri(figures.forest(tuple(view.panel for view in claims if view.panel.rows))), alt


def _curves(paper: str, by_metric: Curves) -> dict[str, str]:
    """Learning curves of one paper: training and validation losses first, at most six metrics."""
    names = sorted(by_metric, key=lambda name: ("loss" not in name, name))
    shown = {name: by_metric[name] for name in names[:MOST_CURVES]}
    ends = []
    for name, by_arm in shown.items():
        means = []
        for arm, seeds in by_arm.items():
            last = [points[-1][1] for points in seeds if points and points[-1][1] is not None]
            means += [f"{arm} {numbers.number(sum(last) / len(last))}"] if last else []
        ends.append(f"{name} ends at {', '.join(means)}")
    alt = f"Learning curves of {paper}, mean over seeds. " + ". ".join(ends) + "."
    source = figures.data_uri(figures.curves(shown))
    return {"paper": paper, "source": source, "alt": alt, "left_out": ", ".join(names[MOST_CURVES:])}
