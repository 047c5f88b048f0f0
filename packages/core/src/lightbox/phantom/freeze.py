"""The frozen sample in `shared_data/phantom`: what this generator must draw for ever, or change its version.

`python -m lightbox.phantom.freeze` writes it; a test compares every byte.
"""

import json
from pathlib import Path

import numpy as np

from lightbox.paths import shared_data
from lightbox.phantom.knobs import Knobs
from lightbox.phantom.splits import seed_range
from lightbox.phantom.version import VERSION
from lightbox.phantom.world import draw_cases
from lightbox.records import Case

SAMPLE = {  # every knob that changes pixels or text is turned in one of them
    "default": Knobs(),
    "distractors": Knobs(vocabulary="triples", triples="all", distractors=2),
    "biased": Knobs(rho=0.6, label_noise_pct=20, burned_in_text="marker"),
    "shifted": Knobs(shifted=True, lesion_scale_pct=70, burned_in_text="shortcut", image_px=96),
}
CASES = 8


def sample_cases(name: str) -> list[Case]:
    """The cases of one named world of the sample."""
    return draw_cases(seed_range("development", 999, CASES), SAMPLE[name], questions_per_case=5)


def describe(case: Case) -> dict:
    """Everything about a case but its pixels, as plain JSON."""
    return {
        "id": case.id,
        "findings": [
            {
                "name": f.name,
                "attributes": f.attributes,
                "boxes": [list(b) for b in f.boxes],
                "mask_px": int(f.mask.sum()),
            }
            for f in case.findings
        ],
        "questions": [
            {
                "id": q.id,
                "kind": q.kind,
                "text": q.text,
                "options": list(q.options),
                "answer": q.answer,
                "rationale": q.rationale,
            }
            for q in case.questions
        ],
        "report": case.report.text,
    }


def write_sample(folder: Path) -> None:
    """Write `sample.json` (texts, boxes, facts) and `sample.npz` (pixels) to a folder."""
    worlds = {name: sample_cases(name) for name in SAMPLE}
    text = {"version": VERSION, "worlds": {name: [describe(c) for c in cases] for name, cases in worlds.items()}}
    (folder / "sample.json").write_text(json.dumps(text, indent=1) + "\n")
    np.savez_compressed(
        folder / "sample.npz", **{name: np.stack([c.images[0] for c in cases]) for name, cases in worlds.items()}
    )


if __name__ == "__main__":
    write_sample(shared_data() / "phantom")
