"""All tiny foundation models by name: those of `build`, and later ones.

Published results of the core read `build` as their code, since importing any module of this package imports it. A model
that comes later is entered here instead, which nothing but the command line imports, so those results keep their keys.
"""

import json
import shutil
import time
from pathlib import Path

from lightbox.backbones.weights import CARD
from lightbox.errors import RequestError
from lightbox.paths import default_out, shared_data
from lightbox.pretrain.build import NAMES as EARLIER
from lightbox.pretrain.build import build as build_earlier
from lightbox.pretrain.build import compare_scores, write_card
from lightbox.pretrain.modality_tower import build_modality_tower
from lightbox.pretrain.qwen2_5_vl import build_qwen2_5_vl
from lightbox.pretrain.sam import build_sam

LATER = {"qwen2_5_vl": build_qwen2_5_vl, "sam": build_sam, "modality_tower": build_modality_tower}
NAMES = (*EARLIER, *LATER)


def build(name: str | None = None, out: Path | None = None, *, max_steps: int | None = None) -> list[dict]:
    """Build one tiny foundation model, or all of them; see `build.build`.

    Args:
        name: one of `NAMES`; None builds all.
        out: output folder; None means ./lightbox-out. A killed build continues from its checkpoints there.
        max_steps: fewer steps, for tests.

    Returns:
        The cards, each with `differs`: scores outside the shipped card's tolerance, as name -> (shipped, rebuilt).

    Raises:
        RequestError: unknown name.
    """
    if name is not None and name not in NAMES:
        raise RequestError(
            f"'{name}' is asked for", "There is no such tiny foundation model", f"Choose one of {', '.join(NAMES)}"
        )
    earlier = build_earlier(name, out, max_steps=max_steps) if name is None or name in EARLIER else []
    later = [one for one in LATER if name in (None, one)]
    return earlier + [_build_one(one, (out or default_out()) / "pretrain", max_steps=max_steps) for one in later]


def _build_one(name: str, out: Path, *, max_steps: int | None) -> dict:
    folder, work = out / name, out / f"{name}-work"
    folder.mkdir(parents=True, exist_ok=True)
    started, cpu_started = time.monotonic(), time.process_time()
    facts = LATER[name](folder, work, max_steps=max_steps)
    facts["build_minutes"] = round((time.monotonic() - started) / 60, 1)
    facts["cpu_minutes"] = round((time.process_time() - cpu_started) / 60, 1)
    card = write_card(folder, name, facts)
    shutil.rmtree(work)
    shipped = shared_data() / "weights" / name / CARD
    card["differs"] = compare_scores(json.loads(shipped.read_text()), card) if shipped.is_file() else {}
    return card
