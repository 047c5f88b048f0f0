"""Score one policy: model -> images -> answers under a budget -> scores. What every entry calls; nothing is trained."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lightbox.adapters.manifest import base_facts
from lightbox.paper.learner import UNTRAINED, open_backbone
from lightbox.paper.pretrained import Pretrained
from lightbox.runs import folders
from lightbox.studies.pruning import evaluate
from lightbox.studies.pruning.config import Config
from lightbox.studies.pruning.data import load_split
from lightbox.train.card import describe


def run(
    cfg: Config,
    base: Pretrained,
    folder: Path,
    *,
    cache: Path,
    needs: Mapping[str, Path],
    keeps_model: bool,
    memory_advice: Callable[[int], str] | None = None,
) -> None:
    """Run the arm that `cfg` describes and leave scores, an empty history, examples and card in `folder`.

    Args:
        cfg: everything.
        base: what `model.backbone` names.
        folder: of this run.
        cache, needs, keeps_model, memory_advice: not used; nothing is trained, and no arm reads another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    backbone = open_backbone(base.under(cfg), base)
    folders.write_history(folder, {})
    evaluate.evaluate(cfg, backbone, load_split(cfg), folder=folder)
    facts = describe(backbone.model, backbone.device, cfg.run, notes=[UNTRAINED]) | base_facts(backbone)
    folders.write_card(folder, facts | {"wall_s": round(time.perf_counter() - started, 1)})
