"""Which trainings can be asked, and how many models are held at once."""

import os
import threading

import numpy as np
import pytest

from lightbox.errors import RequestError, WorkError
from lightbox.view.checkpoints import HeldModels, checkpoint_folder, list_checkpoints, viewable_papers

PIXELS = np.zeros((8, 8), np.uint8)


def test_every_paper_that_predicts_can_be_chosen():
    papers = viewable_papers()
    assert {"medthink", "k2sight", "mmedpo", "vitar", "medplib"} <= set(papers)
    assert "core" not in papers
    assert all(entries.example for entries in papers.values())


def test_finished_runs_with_a_model_are_listed_newest_first(runs, tmp_path):
    first, second, modelless, damaged = runs("first", "second", "modelless", "damaged")
    runs("foreign", paper="other")
    (modelless / "model").rmdir()
    (damaged / "job.json").write_text("{")
    os.utime(first / "job.json", (2e9, 2e9))
    assert list(list_checkpoints(tmp_path / "out", "asked").values()) == [first, second]
    assert list_checkpoints(tmp_path / "nowhere", "asked") == {}


@pytest.mark.parametrize("text", ["", "  ", "not-a-folder"])
def test_a_checkpoint_is_a_folder(text):
    with pytest.raises(RequestError, match="lightbox train PAPER"):
        checkpoint_folder(text)


def test_two_models_are_held_and_the_one_used_last_stays(asking, entries, runs):
    models, (one, two, three) = HeldModels(), runs("one", "two", "three")
    for folder in (one, two, one, three, one, two):
        models.ask(entries["asked"], folder, PIXELS, "what ?")
        assert len(models) <= 2
    assert asking.opened == ["one", "two", "three", "two"]


def test_a_run_that_was_trained_anew_is_opened_anew(asking, entries, runs):
    models, (folder,) = HeldModels(), runs("one")
    models.ask(entries["asked"], folder, PIXELS, "what ?")
    os.utime(folder / "job.json", (2e9, 2e9))
    models.ask(entries["asked"], folder, PIXELS, "what ?")
    assert asking.opened == ["one", "one"]


def test_a_checkpoint_of_another_paper_is_refused_before_anything_is_opened(asking, entries, runs):
    (folder,) = runs("foreign", paper="other")
    models = HeldModels()
    with pytest.raises(RequestError, match="It is a run of other, and asked reads its own"):
        models.ask(entries["asked"], folder, PIXELS, "what ?")
    assert asking.opened == []
    assert len(models) == 0


def test_a_model_is_asked_one_question_at_a_time(asking, entries, runs):
    models, folders = HeldModels(), runs("one", "two")
    asking.go.clear()
    threads = [
        threading.Thread(target=models.ask, args=(entries["asked"], folder, PIXELS, "what ?")) for folder in folders * 3
    ]
    for thread in threads:
        thread.start()
    assert asking.begun.wait(10)
    asking.go.set()
    for thread in threads:
        thread.join(20)
    assert asking.most_busy == 1
    assert len(asking.asked) == 6


def test_memory_that_runs_out_is_said_and_frees_what_is_held(asking, entries, runs, monkeypatch):
    models, (folder,) = HeldModels(), runs("one")
    models.ask(entries["asked"], folder, PIXELS, "what ?")

    def short(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr("asked.predict.predict", short)
    with pytest.raises(WorkError, match="Memory ran out"):
        models.ask(entries["asked"], folder, PIXELS, "what ?")
    assert len(models) == 0


def test_an_error_that_is_no_shortage_stays_what_it_is(asking, entries, runs, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("asked.predict.predict", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        HeldModels().ask(entries["asked"], runs("one")[0], PIXELS, "what ?")


def test_a_region_reaches_only_papers_that_take_one(asking, entries, runs):
    (folder,) = runs("whole", paper="whole")
    with pytest.raises(RequestError, match="answers about the whole image"):
        entries["whole"].ask(None, PIXELS, "what ?", folder=folder, region=np.ones((8, 8), bool))
