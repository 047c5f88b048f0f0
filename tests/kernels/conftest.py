"""One test body, three lanes: PyTorch on the CPU, Triton's interpreter (marked), a CUDA device (marked)."""

import jaxtyping
import pytest
import torch

from lightbox.kernels import backend
from lightbox.testing.packed import Lane, Poison


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("interpreter", marks=pytest.mark.interpreter),
        pytest.param("gpu", marks=pytest.mark.gpu),
    ]
)
def lane(request, monkeypatch):
    """The lane; whatever an operator allocates there without filling is NaN, and nothing is written beside it."""
    if request.param == "interpreter" and not backend.is_interpreted():
        pytest.skip("Triton's interpreter is off: start the process with TRITON_INTERPRET=1")
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.fail("tests marked gpu need a CUDA device, and there is none")
    poison = Poison()
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison.wrap(getattr(owner, name)))
    yield Lane(request.param)
    assert poison.walls_stand()


@pytest.fixture
def unchecked():
    """Shapes are checked by the operators alone, and not by the types on their functions."""
    disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", disabled)


@pytest.fixture
def compiled(unchecked):
    """torch.compile in one graph, without a C++ compiler; the checker of shapes is off, which it cannot trace."""
    torch._dynamo.reset()
    yield lambda call, **options: torch.compile(call, fullgraph=True, backend="aot_eager", **options)
    torch._dynamo.reset()
