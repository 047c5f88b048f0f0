"""What the MLflow index says of one run: tags, parameters, metrics, as plain values. Imports no mlflow."""

import math
import re
from collections.abc import Iterator

from lightbox.files import digest
from lightbox.runs import folders

POINTS_PER_CURVE = 2000
LONGEST_PARAM = 500


def run_tags(run: folders.Run) -> dict[str, str]:
    """Who the run is and what it was made from; empty values are left out."""
    card = folders.read_card(run.folder)
    tags = {
        "paper": run.paper,
        "arm": run.arm,
        "seed": "" if run.seed is None else str(run.seed),
        "preset": run.preset,
        "commit": run.commit,
        "hardware": run.hardware,
        "device": str(card.get("device", "")),
        "config_digest": digest(run.config)[:16],
        "data_digest": digest(run.inputs)[:16],
    }
    return {name: value for name, value in tags.items() if value}


def run_params(run: folders.Run) -> dict[str, str]:
    """The configuration, flat; a long value is named by its digest and stands in full in the artifact job.json."""
    flat = folders.flatten(run.config)
    return {
        _name(key): text if len(text) <= LONGEST_PARAM else f"sha256 {digest(text)[:16]}, see job.json"
        for key, text in flat.items()
    }


def run_metrics(run: folders.Run) -> Iterator[tuple[str, float, int]]:
    """(key, value, step): curves thinned to about 2,000 points, score means at step 0; finite ones only.

    The others are counted in `nonfinite_points`: mlflow stores an infinity as 1.8e308 on SQLite, so an exploded loss
    would plot as a huge number.
    """
    hidden = 0
    for key, points in folders.read_history(run.folder).items():
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        hidden += len(points) - len(finite)
        stride = max(1, math.ceil(len(finite) / POINTS_PER_CURVE))
        for step, value in [*finite[:-1:stride], *finite[-1:]]:
            yield _name(key), value, step
    scores = folders.read_scores(run.folder)
    if scores is not None:
        yield "test/rows", float(scores.num_rows), 0
        for key, mean in folders.mean_scores(scores).items():
            hidden += not math.isfinite(mean)
            if math.isfinite(mean):
                yield _name(f"test/{key}"), mean, 0
    if run.wall_s is not None:
        yield "wall_s", float(run.wall_s), 0
    yield "nonfinite_points", float(hidden), 0


def _name(key: str) -> str:
    """A key that mlflow accepts: letters, digits and ``_-. /:`` only, at most 250 characters."""
    return re.sub(r"[^\w\-. /:]", "_", key)[:250]
