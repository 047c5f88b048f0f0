"""What several files of tests begin with."""

import pytest

from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper


@pytest.fixture
def toy(tmp_path):
    """Folder of the package `toy`, importable during the test and by workers."""
    write_toy_paper(tmp_path / "src")
    yield tmp_path / "src" / "toy"
    forget_toy_paper(tmp_path / "src")
