"""One tolerance table per dtype, the same at home and in CI. Loosening a row needs a note beside it."""

from typing import Any

import numpy as np

# dtype: (relative, absolute). About 8 units in the last place for single results, and room for sums of a few
# hundred terms; the absolute part is for values near 0.
TOLERANCES = {
    "float64": (1e-9, 1e-11),
    "float32": (1e-5, 1e-6),
    "float16": (1e-2, 1e-3),
    "bfloat16": (3e-2, 1e-2),
}


def assert_close(actual: Any, expected: Any, *, dtype: str = "") -> None:
    """Raise AssertionError unless two tensors, arrays or numbers agree within the table.

    Args:
        actual: what was computed; NaN is never close to anything.
        expected: the reference, usually float64; its shape must be the same.
        dtype: row of the table; "" takes the dtype that `actual` has.
    """
    dtype = dtype or str(getattr(actual, "dtype", "float64")).removeprefix("torch.")
    relative, absolute = TOLERANCES[dtype]
    got, wanted = _as_float64(actual), _as_float64(expected)
    assert got.shape == wanted.shape, f"shape {got.shape} is not {wanted.shape}"
    np.testing.assert_allclose(got, wanted, rtol=relative, atol=absolute, equal_nan=False)


def _as_float64(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)
