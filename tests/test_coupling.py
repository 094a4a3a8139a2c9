"""The kernel with the coupling of a run, and the flow under it."""

import numpy as np
import pytest

from flowlab.logs.coupling import Coupling


@pytest.mark.parametrize(
    ("value", "rises"), [(-0.5, False), (0.2, False), (0.0, False), (1.5, True)]
)
def test_under_its_kernel_a_flow_goes_the_way_of_the_run(value, rises):
    kernel = Coupling(value, value - 0.1, value + 0.1, rises).kernel
    assert kernel is not None
    np.testing.assert_allclose(kernel, kernel.T)
    assert np.trace(kernel) == pytest.approx(2)
    assert np.linalg.eigvalsh(kernel) == pytest.approx([0, 2], abs=1e-12)
    chosen, rejected = kernel @ (1, -1)  # the velocity, where the chosen is pushed up as the other
    assert chosen / abs(rejected) == pytest.approx(value)  # is pushed down
    assert (rejected > 0) == rises


def test_a_run_whose_margin_fell_has_no_kernel():
    assert Coupling(-1.5, -1.7, -1.3).kernel is None
    assert Coupling().kernel is None
