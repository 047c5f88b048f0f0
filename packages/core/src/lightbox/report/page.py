"""The results page: one HTML file that needs nothing else, from one results document. No torch.

Every text of a data set or a model is escaped by the template, and a content policy lets no script and no address in.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lightbox.claims import registry
from lightbox.claims.spec import PaperClaims
from lightbox.report import claim_view, figures, gallery
from lightbox.report.numbers import duration, number
from lightbox.runs import index_place

MOST_CURVES = 6


def write_page(results: dict[str, Any], path: Path, *, folder: Path | None = None) -> None:
    """Write `results` as one self-contained page.

    Args:
        results: the document, see `lightbox.claims.results`; its lists of extras may lack.
        path: the HTML file; replaced as a whole.
        folder: where the document lies, which example images are relative to; None takes the page's own folder.
    """
    html = render(results, folder=folder or path.parent, run_ids=_run_ids(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.new")
    half.write_text(html, encoding="utf-8")
    half.replace(path)


def render(results: Mapping[str, Any], *, folder: Path, run_ids: Mapping[str, str]) -> str:
    """The page as text; `run_ids` are MLflow run ids by job key, empty where there is no index."""
    papers = list(dict.fromkeys(claim["paper"] for claim in results["claims"]))
    known = _declared(papers)
    titles = {paper: {arm.name: arm.title for arm in found.arms.values()} for paper, found in known.items()}
    claims = [
        claim_view.view(
            claim,
            results,
            label=claim["id"] if len(papers) == 1 else f"{claim['paper']} {claim['id']}",
            titles=titles.get(claim["paper"], {}),
        )
        for claim in results["claims"]
    ]
    curves = results.get("curves", {})
    environment = Environment(
        loader=PackageLoader("lightbox.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        papers=papers,
        title=known[papers[0]].title if papers[0] in known and len(papers) == 1 else ", ".join(papers),
        glossary=claim_view.glossary(),
        claims=claims,
        summary=_summary(results, claims),
        forest=_forest(claims),
        curves=[_curves(paper, curves[paper]) for paper in papers if curves.get(paper)],
        cards=gallery.cards(results.get("examples", []), folder=folder),
        jobs=[_job(row, run_ids) for row in results.get("jobs", [])],
        errors=results.get("errors", []),
        origin=_origin(results),
    )


def _declared(papers: list[str]) -> dict[str, PaperClaims]:
    """What the installed ones of these papers declare: titles that the document does not hold."""
    installed = registry.installed_packages()
    return {paper: registry.load_paper(paper, installed[paper]).claims for paper in papers if paper in installed}


def _run_ids(path: Path) -> dict[str, str]:
    """MLflow run ids, where the page lies in `<out>/reproduce/<name>/`."""
    folders = path.resolve().parents
    return index_place.known_run_ids(folders[2]) if len(folders) > 2 else {}


def _summary(results: Mapping[str, Any], claims: list[dict[str, Any]]) -> dict[str, Any]:
    """What was decided, in numbers and sentences for the top of the page."""
    family = results.get("family") or {}
    waiting = [claim for claim in claims if claim["is_waiting"]]
    counts: dict[str, int] = {}
    for claim in claims:
        counts[claim["chip"]["label"]] = counts.get(claim["chip"]["label"], 0) + 1
    return {
        "preset": results["preset"],
        "is_smoke": results["preset"] == "smoke",
        "verdicts": family.get("verdicts", 0),
        "reproduced": family.get("reproduced", 0),
        "expected_false": f"{family.get('expected_false', 0.0):.2g}",
        "chance_of_any": f"{100 * family.get('chance_of_any_false', 0.0):.0f} %",
        "share_at_most": f"{100 * family.get('share_false_at_most', 0.0):.0f} %",
        "counts": counts,
        "waiting": len(waiting),
        "skipped": results.get("skipped", []),
    }


def _forest(claims: list[dict[str, Any]]) -> dict[str, str]:
    panels = [claim["panel"] for claim in claims if claim["panel"].rows]
    texts = []
    for claim in claims:
        rows = [f"{row['name']} ({row['role']}) {row['effect']}, {row['interval_words']}" for row in claim["contrasts"]]
        texts.append(f"{claim['label']}: " + "; ".join(rows))
    alt = "Forest plot of every contrast with its 95 % interval. " + ". ".join(texts) + "."
    return {"source": figures.data_uri(figures.forest(panels)), "alt": alt}


def _curves(paper: str, by_metric: Mapping[str, Any]) -> dict[str, str]:
    """Learning curves of one paper: training and validation losses first, at most six metrics."""
    names = sorted(by_metric, key=lambda name: ("loss" not in name, name))
    shown = {name: by_metric[name] for name in names[:MOST_CURVES]}
    ends = []
    for name, by_arm in shown.items():
        said = []
        for arm, seeds in by_arm.items():
            last = [points[-1][1] for points in seeds if points and points[-1][1] is not None]
            said += [f"{arm} {number(sum(last) / len(last))}"] if last else []
        ends.append(f"{name} ends at {', '.join(said)}")
    alt = f"Learning curves of {paper}, mean over seeds. " + ". ".join(ends) + "."
    source = figures.data_uri(figures.curves(shown))
    return {"paper": paper, "source": source, "alt": alt, "left_out": ", ".join(names[MOST_CURVES:])}


def _job(row: Mapping[str, Any], run_ids: Mapping[str, str]) -> dict[str, Any]:
    peak = row.get("peak_gib")
    return {
        "paper": row["paper"],
        "arm": row["arm"],
        "seed": row["seed"],
        "key": row["key"],
        "mlflow": run_ids.get(row["key"], ""),
        "commit": row.get("commit") or "",
        "time": duration(row.get("wall_s")),
        "peak": "" if peak is None else f"{peak:.1f} GiB",
        "origin": "committed scores" if row.get("reused") else "run here",
    }


def _origin(results: Mapping[str, Any]) -> dict[str, Any]:
    machine = results.get("machine") or {}
    machine = machine if isinstance(machine, dict) else {"hardware": str(machine)}
    papers = list(dict.fromkeys(claim["paper"] for claim in results["claims"]))
    return {
        "commit": results["commit"],
        "started": results["started"].replace("T", " ").replace("Z", " UTC"),
        "wall": duration(results["wall_s"]),
        "hardware": machine.get("hardware", ""),
        "versions": ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items() if version),
        "command": f"lightbox reproduce {' '.join(papers)} --preset {results['preset']}",
    }
