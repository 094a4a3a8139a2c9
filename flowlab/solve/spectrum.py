"""Checks that a flow and a clock suit a solver for stiff flows.

A stabilised solver needs a field whose Jacobian has a real spectrum. For a constant metric M, the
Jacobian of v = −M∇L is −M·Hessian, a product of a positive and a symmetric matrix. It is similar to
a symmetric matrix, so its eigenvalues are real. Under the clock of time this is the Jacobian of the
field. Under arc length it is multiplied by a projection along the velocity: the spectrum stays real
if M is a multiple of the identity. With other metrics it may not be real, and only the error
estimate guards the steps. Under the clocks of loss and margin, or with a metric that depends on the
state, the spectrum may not be real either, and such problems are refused.
"""

from typing import Any

import jax
from jax.extend.core import Literal
from jaxtyping import PyTree

from flowlab.flow import AbstractFlow
from flowlab.solve.clocks import AbstractLevelClock
from flowlab.solve.problem import Problem

__all__ = ["check_real_spectrum", "check_still_field", "metric_is_constant"]


def check_real_spectrum(problem: Problem, state: PyTree[Any], solver: str) -> None:
    """Refuse a stabilised solver for a problem whose spectrum need not be real.

    Args:
        problem: The problem.
        state: One state; only shapes and dtypes matter.
        solver: The name of the solver, for messages.
    """
    if isinstance(problem.clock, AbstractLevelClock):
        raise ValueError(
            'Argument `clock` must be "arc_length" or "time" with the solver '
            f"{solver}, which needs a Jacobian with a real spectrum, but is "
            f'"{problem.clock.name}".'
        )
    if not metric_is_constant(problem.flow, state):
        raise ValueError(
            "Argument `solver` must be another one, such as diffrax.Tsit5(), for a flow whose "
            f"metric depends on the state, but is {solver}, which needs a Jacobian with a real "
            "spectrum."
        )


def check_still_field(problem: Problem, solver: str) -> None:
    """Refuse a clock under which the field depends on the clock itself: loss and margin.

    `solver` is the name of the solver, for messages.
    """
    if isinstance(problem.clock, AbstractLevelClock):
        raise ValueError(
            'Argument `clock` must be "arc_length" or "time" with the solver '
            f"{solver}, which needs a field that does not depend on its clock, but is "
            f'"{problem.clock.name}".'
        )


def metric_is_constant(flow: AbstractFlow, state: PyTree[Any]) -> bool:
    """True if no operation of the metric depends on the state."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    traced = jax.make_jaxpr(flow.metric)(shapes, shapes).jaxpr
    moving: set[Any] = set(traced.invars[: len(jax.tree.leaves(shapes))])

    def depends(variable: Any) -> bool:
        return not isinstance(variable, Literal) and variable in moving

    for equation in traced.eqns:
        if any(map(depends, equation.invars)):
            moving.update(equation.outvars)
    return not any(map(depends, traced.outvars))
