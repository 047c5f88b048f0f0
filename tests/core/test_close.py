"""The tolerance table itself."""

import numpy as np
import pytest

from lightbox.testing.close import TOLERANCES, assert_close


@pytest.mark.parametrize("dtype", sorted(TOLERANCES))
def test_a_difference_above_the_table_fails_and_one_below_passes(dtype):
    relative, absolute = TOLERANCES[dtype]
    assert_close(np.array([1.0 + relative / 2]), np.array([1.0]), dtype=dtype)
    with pytest.raises(AssertionError):
        assert_close(np.array([1.0 + 2 * (relative + absolute)]), np.array([1.0]), dtype=dtype)


def test_nan_and_other_shapes_are_never_close():
    with pytest.raises(AssertionError):
        assert_close(np.array([np.nan]), np.array([np.nan]))
    with pytest.raises(AssertionError, match="shape"):
        assert_close(np.zeros((1, 2)), np.zeros(2))


def test_the_row_follows_the_dtype_of_what_was_computed():
    off = np.array([1.00005], dtype=np.float16)
    assert_close(off, np.array([1.0]))
    with pytest.raises(AssertionError):
        assert_close(np.array([1.00005]), np.array([1.0]))
