"""Packed tokens for tests of operators, and the three lanes one test body runs in: PyTorch, interpreter, CUDA."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SIZES = (1, 2, 63, 64, 65, 577, 1000)
"""Around the edges of a block, one image of LLaVA-1.5, and more than a block."""
SIZED = [(n, torch.float32) for n in SIZES] + [(n, torch.float16) for n in SIZES[:-1]]
"""The interpreter takes seconds for a thousand tokens, so half precision stops before them."""
POISON = -(2**30)  # an integer that no offset, index or position of a test is


def offsets(lengths: Sequence[int]) -> Tensor:
    """int32 offsets [S+1] of segments with these lengths."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def counts(numbers: Sequence[int]) -> Tensor:
    """int32 [S]."""
    return torch.tensor(numbers, dtype=torch.int32)


def sign_rows(n: int, d: int, seed: int = 0) -> Tensor:
    """Rows of +1 and -1: with d a power of 4, norms and cosines are exact in float32, and many tie exactly."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 2, (n, d), generator=generator) * 2 - 1).float()


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same whatever ran before."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Lane:
    """Where a test body runs: `name` is "cpu" (PyTorch), "interpreter" or "gpu" (Triton)."""

    name: str

    @property
    def device(self) -> str:
        return "cuda" if self.name == "gpu" else "cpu"

    def pick(self, eager: Callable[..., Any], launch: Callable[..., Any]) -> Callable[..., Any]:
        """The form that this lane checks, taking CPU tensors and giving CPU tensors back."""
        call = eager if self.name == "cpu" else launch

        def moved(*args: Any, **options: Any) -> Any:
            result = call(*map(self._there, args), **{key: self._there(value) for key, value in options.items()})
            return tuple(part.cpu() for part in result) if isinstance(result, tuple) else result.cpu()

        return moved

    def _there(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value


class Poison:
    """Stands in for `torch.empty` and its like: results are NaN (or `POISON`), with walls of the same around them.

    What a kernel does not write shows in the result; what it writes beside its result shows in the walls.
    """

    WALL = 64

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def wrap(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`make`, with a poisoned result."""

        def filled(*args: Any, **options: Any) -> Tensor:
            made = make(*args, **options)
            if made.dtype == torch.bool or made.device.type == "meta":
                return made
            value = torch.nan if made.is_floating_point() else POISON
            buffer = torch.full((made.numel() + 2 * self.WALL,), value, dtype=made.dtype, device=made.device)
            self.buffers.append(buffer)
            return buffer[self.WALL : -self.WALL].view(made.shape)

        return filled

    def walls_stand(self) -> bool:
        """Whether nothing was written beside any of the results."""
        for buffer in self.buffers:
            walls = torch.cat([buffer[: self.WALL], buffer[-self.WALL :]])
            if not (walls.isnan() if walls.is_floating_point() else walls == POISON).all():
                return False
        return True
