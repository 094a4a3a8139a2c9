"""Checks of the potential and the metric that users pass to a flow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from flowlab._checks import shown
from flowlab._tracing import ImproperFunctionError, in_jax
from flowlab.flow import AbstractFlow, Flow, metric_matrix

__all__ = ["check_functions", "check_potential"]

_METRIC_SEEN = 64  # components up to which a metric is checked as a matrix, in some milliseconds
_METRIC_SLACK = 1e-5  # of its largest entry: the tolerance for rounding, also in float32


def check_functions(name: str, flow: AbstractFlow, states: PyTree[Any], batched: bool) -> None:
    """Check a flow's potential and metric at its states.

    Args:
        name: The name of the argument with the states, for messages.
        flow: The flow.
        states: One state, or many with a leading axis.
        batched: Whether there is a leading axis.

    Raises:
        ValueError: If the potential does not accept a state, or does not return one real number
            computed in JAX; or if the metric of a `Flow` does not return a result of the shape of a
            state, or is not symmetric and positive semidefinite at the first state.
    """
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[int(batched) :], x.dtype), states)
    check_potential(flow, one, name)
    if isinstance(flow, Flow) and flow.operator is not None:
        first = jax.tree.map(lambda x: x[0] if batched else x, states)
        with jax.enable_x64(_is_wide(one)):
            _check_metric(flow, one, first)


def check_potential(flow: AbstractFlow, one: PyTree[Any], name: str = "flow") -> None:
    """Refuse a potential that does not give one real number, computed by JAX, for a state.

    Args:
        flow: The flow.
        one: The shapes and dtypes of a state.
        name: The name of the argument with the states, or with the flow, for messages.

    Raises:
        ImproperFunctionError: If the potential gives something else, or JAX cannot trace it.
    """
    given: list[Any] = []

    def potential(state: PyTree[Array]) -> Any:
        given.append(flow.potential(state))
        return given[-1]

    own = isinstance(flow, Flow)
    with jax.enable_x64(_is_wide(one)), in_jax("potential" if own else "loss"):
        value = jax.eval_shape(potential, one)
    shape = getattr(value, "shape", None)
    if shape != () and not own:
        raise ImproperFunctionError(
            f"Argument `{name}` must be mapped to a single number by the potential, but a state is "
            f"mapped to shape {shape}."
        )
    if shape != ():
        raise ImproperFunctionError(
            "Argument `potential` must give one number for one state, since a flow is the gradient "
            f"flow of a potential, but for a state of shape {_shapes(one)} gives {_told(value)}; "
            "for a field −M∇L, give the function M as `metric`."
        )
    if own and not (isinstance(given[-1], jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)):
        told = given[-1] if not isinstance(given[-1], jax.Array) else f"one of {value.dtype}"
        raise ImproperFunctionError(
            "Argument `potential` must give a real number, computed from the state in JAX, but "
            f"gives {told}."
        )


def _check_metric(flow: Flow, one: PyTree[Any], state: PyTree[np.ndarray]) -> None:
    """Refuse a metric that has the wrong shape or is not symmetric positive semidefinite."""
    raised = jax.eval_shape(flow.metric, one, one)
    wanted, shapes = (jax.tree.map(np.shape, tree) for tree in (one, raised))
    if shapes != wanted:
        raise ValueError(
            f"Argument `metric` must give a result of the shape of a state, {wanted}, but gives "
            f"{shapes}."
        )
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    if size > _METRIC_SEEN:
        return
    matrix = np.asarray(metric_matrix(flow, jax.tree.map(jnp.asarray, state)), np.float64)
    if not np.all(np.isfinite(matrix)):
        return
    slack = _METRIC_SLACK * np.max(np.abs(matrix))
    if np.max(np.abs(matrix - matrix.T)) > slack or np.linalg.eigvalsh(matrix)[0] < -slack:
        raise ValueError(
            "Argument `metric` must be symmetric and positive semidefinite, but is "
            f"{shown(matrix)} at the state {shown(np.concatenate(_flat(state)))}."
        )


def _flat(state: PyTree[np.ndarray]) -> list[np.ndarray]:
    return [np.ravel(leaf) for leaf in jax.tree.leaves(state)]


def _is_wide(one: PyTree[Any]) -> bool:
    return bool(jax.tree.leaves(one)[0].dtype == np.float64)


def _shapes(one: PyTree[Any]) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, one)


def _told(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" if shape is None else f"an array of shape {shape}"
