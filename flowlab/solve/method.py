"""The method that steps blocks: a Runge–Kutta method of diffrax and its step-size controller."""

from typing import Any

import diffrax
import equinox as eqx
from jaxtyping import Array, Float

from flowlab.solve.field import vector_field
from flowlab.solve.problem import Problem, lanewise
from flowlab.solve.runge_kutta import RungeKutta

__all__ = ["Method", "make_method", "terms"]

_HIGH_ORDER_BELOW = 3e-8  # rtol under which Dopri8 needs less work than Tsit5
_CONTROLLER = diffrax.PIDController(rtol=0.0, atol=1.0)  # it is fed errors over their tolerance


class Method(eqx.Module):
    """A Runge–Kutta method and a step-size controller; `constant_step` is None if steps adapt."""

    solver: RungeKutta
    controller: diffrax.AbstractStepSizeController
    constant_step: Float[Array, ""] | None

    @property
    def name(self) -> str:
        """The name of the solver, as diffrax has it."""
        return type(self.solver.method).__name__


def make_method(
    solver: diffrax.AbstractSolver | None = None,
    *,
    rtol: float,
    constant_step: Float[Array, ""] | None = None,
) -> Method:
    """The method from what a user says; None for Tsit5, or Dopri8 at a small tolerance.

    With `constant_step` the steps are not adapted: to observe the order of a solver.

    Raises:
        ValueError: If the solver is no explicit Runge–Kutta method.
    """
    if solver is None:
        solver = diffrax.Dopri8() if rtol < _HIGH_ORDER_BELOW else diffrax.Tsit5()
    if not isinstance(solver, diffrax.AbstractERK):
        raise ValueError(
            "Argument `solver` must be an explicit Runge–Kutta solver of diffrax such as "
            f"diffrax.Dopri5(), but is {solver!r}."
        )
    if constant_step is None:
        return Method(RungeKutta(solver), _CONTROLLER, None)
    return Method(RungeKutta(solver), diffrax.ConstantStepSize(), constant_step)


def terms(problem: Problem) -> diffrax.ODETerm:
    """The field of a block, as diffrax takes it."""

    def field(offset: Any, point: Any, lanes: Any) -> Any:
        return lanewise(lambda lane, here: vector_field(problem, lane, offset, here))(lanes, point)

    return diffrax.ODETerm(field)
