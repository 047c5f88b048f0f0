"""A paper without torch that can be asked, runs of it, and a viewer over them."""

import json
import os
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.entries import PICTURES, Entries

QUESTION = "what is seen ?"


@pytest.fixture
def asking(monkeypatch):
    """The package `asked`: its predict answers at once, waits for `go`, or refuses; `opened` lists what was opened."""
    notes = SimpleNamespace(
        opened=[], asked=[], seen=[], go=threading.Event(), begun=threading.Event(), busy=0, most_busy=0
    )
    notes.go.set()

    def load_run(folder):
        notes.opened.append(folder.name)
        return {"model of": folder.name}

    def predict(image, question, *, folder, options=(), regions=(), opened=None):
        image, region = getattr(image, "pixels", image), next(iter(regions), None)
        notes.busy += 1
        notes.most_busy = max(notes.most_busy, notes.busy)
        notes.begun.set()
        notes.go.wait(20)
        notes.busy -= 1
        notes.seen.append(image)
        notes.asked.append((question, folder.name, options, region, image.shape))
        if question == "refuse ?":
            raise RequestError("'refuse ?' is asked for", "The run was not taught it", "Ask something else")
        return {
            "answer": f"{opened['model of']} says <b>{question}</b>",
            "boxes": [(0.1, 0.2, 0.5, 0.6)],
            "labels": ["a thing"],
            "turn 1": "looks {{ 7 * 7 }} ${7 * 7}",
            PICTURES: {"mask 1": Image.fromarray((np.asarray(image) > 100).astype(np.uint8) * 255)},
            "note": "not shown twice",
        }

    modules = {"asked": ModuleType("asked"), "asked.predict": ModuleType("asked.predict")}
    modules["asked.predict"].load_run, modules["asked.predict"].predict = load_run, predict
    modules["asked"].predict = modules["asked.predict"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return notes


@pytest.fixture
def entries(asking):
    return {
        "asked": Entries("asked", takes_regions=True, example=QUESTION),
        "whole": Entries("whole", example="is it ?"),
    }


@pytest.fixture
def runs(tmp_path):
    """Write finished runs of the package `asked`, or of another, under `out/runs`, the last one newest."""

    def write(*names, paper="asked"):
        folders = []
        for place, name in enumerate(names):
            folder = tmp_path / "out" / "runs" / name
            (folder / "model").mkdir(parents=True)
            record = {"paper": paper, "arm": name, "seed": 0, "preset": "smoke", "config": {}}
            (folder / "job.json").write_text(json.dumps(record))
            os.utime(folder / "job.json", (1e9 + place, 1e9 + place))
            folders.append(folder)
        return folders

    return write
