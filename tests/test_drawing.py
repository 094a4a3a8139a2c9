"""Starts drawn on a device: the bits that NumPy gives on the host."""

import jax
import numpy as np
import pytest

from flowlab.ensemble.drawing import chunk_on
from flowlab.starts import DrawnStarts, grid

SIZE = 64
LOW, HIGH = (0.01, -3.0, 0.2), (1.0, 7.0, 0.3)
SETS = {
    "uniform in three dimensions": DrawnStarts("uniform", 200, LOW, HIGH, 5),
    "uniform in single precision": DrawnStarts("uniform", 200, LOW[:2], HIGH[:2], 5, "float32"),
    "more than 32 bits can count": DrawnStarts("uniform", 2**40, LOW[:1], HIGH[:1], 9),
    "grid": DrawnStarts("grid", (17, 11), LOW[:2], HIGH[:2]),
    "grid of as many cells on each side": DrawnStarts("grid", 6, LOW, HIGH, dtype="float32"),
    "Sobol'": DrawnStarts("sobol", 200, LOW, HIGH, 3),
}


@pytest.mark.parametrize("before_the_end", [170, 71, 30, 1])
@pytest.mark.parametrize("starts", SETS.values(), ids=SETS)
def test_a_chunk_on_a_device_has_the_bits_of_the_host(starts, before_the_end):
    first = starts.count - before_the_end
    with jax.enable_x64(starts.dtype == "float64"):
        found = np.asarray(chunk_on(jax.devices()[0], starts, first, SIZE))
    wanted = starts.part(first, min(first + SIZE, starts.count))
    assert found.dtype == wanted.dtype
    assert found.shape == (SIZE, wanted.shape[1])
    assert found[: len(wanted)].tobytes() == wanted.tobytes()
    assert np.all(np.isnan(found[len(wanted) :]))


def test_a_grid_of_as_many_cells_on_each_side_counts_them_all():
    drawn = DrawnStarts("grid", 6, LOW, HIGH)
    assert drawn.count == 216
    np.testing.assert_array_equal(drawn.part(0, 216), grid(6, LOW, HIGH))
