"""Checks that a flow suits a solver of stiff flows.

For a stabilised one the Jacobian of the field must have a real spectrum.

For a constant metric M, the Jacobian of v = −M∇L is −M·Hessian, a product of a positive and a
symmetric matrix, and so similar to a symmetric one: its eigenvalues are real. The clock of time
keeps it. That of arc length multiplies by a projection along the velocity: the spectrum stays real
where M is a multiple of the identity; with other metrics it need not, and the error estimate alone
guards the steps. Nor need it be real under the clocks of the loss and the margin, or with a metric
that depends on the state, which are refused.
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
        problem: What to solve.
        state: One state, of which only shapes and dtypes matter.
        solver: The name of the solver.
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
    """Raise a ValueError where a solver of a name meets a field that depends on its clock."""
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
