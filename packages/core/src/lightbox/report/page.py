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

MOST_CURVES, MOST_REWARD_CURVES = 6, 15
REWARD = "train/reward"
"""Logged by arms that learn from rewards, see `paper.group_policy`, with `REWARDED_FIRST` and terms of its own."""
REWARDED_FIRST = (REWARD, "train/zero_variance", "train/entropy")
STILL = 1e-3
"""A curve that never moves by more is named and not drawn, such as that of a failure that was not met."""
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
        ClaimView(
            claim,
            document,
            claim.id if len(papers) == 1 else f"{claim.paper} {claim.id}",
            declared.get(claim.paper),
        )
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
        curves=[one for paper in papers for one in _curves(paper, document.curves.get(paper, {}))],
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


def _curves(paper: str, by_metric: Curves) -> list[dict[str, str]]:
    """Learning curves of one paper, and apart from them those that only arms that learn from rewards have."""
    rewarded = set(by_metric.get(REWARD, {}))
    own = {name: by_arm for name, by_arm in by_metric.items() if rewarded and by_arm.keys() <= rewarded}
    usual = {name: by_arm for name, by_arm in by_metric.items() if name not in own}
    losses_first = sorted(usual, key=lambda name: ("loss" not in name, name))
    terms_first = sorted((name for name in own if _moves(own[name])), key=_place_of_reward)
    sheets = [
        (paper, usual, losses_first[:MOST_CURVES], 2),
        (f"{paper}, training by rewards, means over the episodes of a step", own, terms_first[:MOST_REWARD_CURVES], 3),
    ]
    return [_sheet(title, curves, shown, columns) for title, curves, shown, columns in sheets if shown]


def _place_of_reward(name: str) -> tuple[int, bool]:
    """The reward and what every such arm logs, then its terms, then the rest in the order logged."""
    place = REWARDED_FIRST.index(name) if name in REWARDED_FIRST else len(REWARDED_FIRST)
    return place, not name.startswith(REWARD)


def _moves(by_arm: Mapping[str, Sequence[Sequence[tuple[int, float | None]]]]) -> bool:
    """Whether any two values of a metric differ by more than `STILL`; arms count too, as they may stand apart."""
    values = [value for seeds in by_arm.values() for points in seeds for _, value in points if value is not None]
    return bool(values) and max(values) - min(values) > STILL


def _sheet(title: str, by_metric: Curves, names: Sequence[str], columns: int) -> dict[str, str]:
    """One figure of curves, a panel a metric, with its alternative text and what it leaves out."""
    shown = {name: by_metric[name] for name in names}
    ends = []
    for name, by_arm in shown.items():
        means = []
        for arm, seeds in by_arm.items():
            last = [points[-1][1] for points in seeds if points and points[-1][1] is not None]
            means += [f"{arm} {numbers.number(sum(last) / len(last))}"] if last else []
        ends.append(f"{name} ends at {', '.join(means)}")
    alt = f"Learning curves of {title}, mean over seeds. " + ". ".join(ends) + "."
    source = figures.data_uri(figures.curves(shown, columns=columns))
    left_out = ", ".join(name for name in sorted(by_metric) if name not in shown)
    return {"title": title, "source": source, "alt": alt, "left_out": left_out}
