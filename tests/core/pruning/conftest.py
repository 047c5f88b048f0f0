"""Plain models of every family that can be pruned, made once a process."""

import functools

import pytest

from lightbox.testing.plain_models import PRUNABLE, PlainModel
from lightbox.testing.shrunk import save_shrunk


@pytest.fixture(scope="session")
def plain_models(tmp_path_factory):
    """(name, attention) -> model, made once a process."""
    folder = functools.cache(lambda name: save_shrunk(name, tmp_path_factory.mktemp("shrunk")))
    return functools.cache(lambda name, attention="sdpa": PlainModel(name, folder(name), attention))


@pytest.fixture(params=PRUNABLE)
def plain(request, plain_models):
    return plain_models(request.param)


@pytest.fixture
def llava(plain_models):
    return plain_models("llava-1.5-7b")


@pytest.fixture
def llava_next(plain_models):
    return plain_models("llava-next")


@pytest.fixture
def qwen(plain_models):
    return plain_models("qwen2.5-vl-7b")
