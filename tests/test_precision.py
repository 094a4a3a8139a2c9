"""Every array-like of real numbers is a start, in the precision that it has."""

import array
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import flowlab as fl
from flowlab import plans, until
from flowlab.solve import check_states

POINTS = np.array([[1.0, 2.0], [3.0, 0.1]])
FLOW = fl.Flow(lambda y: 0.5 * jnp.sum(y**2))


class Tensor:
    """What other libraries have: numbers that NumPy can take."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return POINTS.astype(dtype or self.dtype)


def frozen() -> np.ndarray:
    held = POINTS.copy()
    held.setflags(write=False)
    return held


DOUBLE: dict[str, Callable[[], Any]] = {
    "lists": POINTS.tolist,
    "whole numbers": lambda: np.array([[1, 2], [3, 4]]),
    "the other order of bytes": lambda: POINTS.astype(np.dtype(float).newbyteorder()),
    "long doubles": lambda: POINTS.astype(np.longdouble),
    "read-only": frozen,
    "strides": lambda: np.repeat(POINTS, 2, axis=0)[::2],
    "xarray": lambda: xarray.DataArray(POINTS),
    "fractions": lambda: [[Fraction(1, 2), 1], [2, 3]],
    "whole numbers beyond 64 bits": lambda: np.array([[10**30, 1], [2, 3]]),
    "a tensor": lambda: Tensor("f8"),
    "JAX": lambda: jnp.asarray(POINTS),
    "a mask that hides nothing": lambda: np.ma.masked_array(POINTS, mask=False),
}
SINGLE: dict[str, Callable[[], Any]] = {
    "float32": lambda: POINTS.astype("f4"),
    "float32 in the other order of bytes": lambda: POINTS.astype(np.dtype("f4").newbyteorder()),
    "float16": lambda: POINTS.astype("f2"),
    "bfloat16": lambda: jnp.asarray(POINTS, jnp.bfloat16),
    "a tensor of float32": lambda: Tensor("f4"),
    "a list of arrays": lambda: list(POINTS.astype("f4")),
}
EVERY = [(name, make, np.float64) for name, make in DOUBLE.items()]
EVERY += [(name, make, np.float32) for name, make in SINGLE.items()]


@pytest.mark.parametrize(("make", "dtype"), [e[1:] for e in EVERY], ids=[e[0] for e in EVERY])
def test_starts_keep_their_numbers_and_their_precision(make, dtype):
    states, found = check_states("starts", make(), FLOW, batched=True)
    assert states.dtype == found == dtype
    assert states.dtype.isnative
    np.testing.assert_array_equal(states, np.asarray(make()).astype(dtype))
    plan = plans.Plan(make(), flow=FLOW, until=until.time(1.0))
    np.testing.assert_array_equal(plan.starts.part(0, 2), states)
    assert plan.starts.dtype == np.dtype(dtype).name


@pytest.mark.parametrize(
    ("wrong", "told"),
    {
        "hidden": (np.ma.masked_array(POINTS, mask=POINTS > 2), "but some are masked; fill them"),
        "complex": (POINTS + 1j, "but has dtype complex128"),
        "truth": (POINTS > 1, "but has dtype bool"),
        "text": ([["a", "b"]], r"but is \[\['a', 'b'\]\]"),
        "ragged": ([[1, 2], [3]], r"but is \[\[1, 2\], \[3\]\]"),
    }.values(),
)
def test_what_holds_no_real_numbers_is_refused_in_a_sentence(wrong, told):
    with pytest.raises(ValueError, match=rf"^Argument `starts` must hold real numbers, {told}"):
        check_states("starts", wrong, FLOW, batched=True)


def test_a_start_may_be_a_list_of_what_is_traced_or_of_numbers_of_numpy():
    def end(*first: Any) -> Any:
        return fl.flow_line(FLOW, [*first], until=until.time(1.0)).end

    np.testing.assert_allclose(jax.jit(end)(1.0, 2.0), np.exp(-1) * np.array([1, 2]), rtol=1e-4)
    for start in ((np.float32(1), np.float32(2)), array.array("f", [1, 2])):
        states, dtype = check_states("start", start, FLOW, batched=False)
        assert dtype == np.float32
        np.testing.assert_array_equal(states, [1, 2])


def test_a_function_that_has_come_to_give_a_vector_is_refused():
    held = {"vector": False}
    flow = fl.Flow(lambda y: y if held["vector"] else jnp.sum(y))
    check_states("starts", POINTS, flow, batched=True)
    held["vector"] = True
    with pytest.raises(ValueError, match="`potential` must give one number"):
        check_states("starts", POINTS, flow, batched=True)
