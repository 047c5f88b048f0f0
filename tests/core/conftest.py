"""What several files of tests begin with."""

import shutil

import pytest

from lightbox.runs import index, index_place
from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper


@pytest.fixture
def toy(tmp_path):
    """Folder of the package `toy`, importable during the test and by workers."""
    write_toy_paper(tmp_path / "src")
    yield tmp_path / "src" / "toy"
    forget_toy_paper(tmp_path / "src")


@pytest.fixture
def own_index_environment(monkeypatch):
    """`open_tracker` writes to the environment; put it back, and let no outer server in."""
    for name in (*index_place.ENVIRONMENT, *index_place.PATIENCE, "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def index_template(tmp_path_factory):
    """A migrated empty database, made once: creation costs 3-20 s."""
    folder = tmp_path_factory.mktemp("template")
    tracker = index.open_tracker(folder)
    assert tracker.problem is None
    return folder / "mlflow.db"


@pytest.fixture
def indexed_out(tmp_path, index_template, own_index_environment):
    """An output folder with an empty index."""
    folder = tmp_path / "out folder"  # a space must not matter
    folder.mkdir()
    shutil.copy(index_template, folder / "mlflow.db")
    return folder
