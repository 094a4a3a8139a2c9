"""The method of integration: a solver and its step-size controller.

The default solver is Tsit5, of order 5, or Dopri8, of order 8, if rtol is below 3e-8. Any explicit
Runge–Kutta method of diffrax can be used instead, or a method for stiff flows: stabilised
(`chebyshev`, `rock`) or linearly implicit (`rosenbrock`). The controller gets errors already
divided by their tolerances. For explicit Runge–Kutta methods and Rodas5P it is the elementary
controller, which uses the last error alone. For stabilised methods, whose rejected steps cost many
stages, it is a PI controller with gains 0.4 and 0.3.

Source: Tsitouras, Computers and Mathematics with Applications 62 (2011) 770–775 (Tsit5); Hairer,
Nørsett and Wanner, Solving Ordinary Differential Equations I (1993), section II.5 (Dopri8).
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from flowlab.flow import AbstractFlow
from flowlab.solve.field import vector_field
from flowlab.solve.problem import Problem, lanewise, make_problem
from flowlab.solve.rosenbrock import OfSmallLanes, Rodas5P
from flowlab.solve.runge_kutta import RungeKutta
from flowlab.solve.spectrum import check_real_spectrum, check_still_field
from flowlab.solve.stabilised import AbstractStabilised, OfLanes

__all__ = ["Method", "make_method", "problem_for", "terms"]

_HIGH_ORDER_BELOW = 3e-8  # rtol below which Dopri8 needs less work than Tsit5
_CONTROLLER = diffrax.PIDController(rtol=0.0, atol=1.0)  # for errors over their tolerances
# When all but a few directions have decayed, the error grows from one step to the next of equal
# length, and a rejected step costs many stages: the last two errors predict the next.
_FORESEEING = diffrax.PIDController(rtol=0.0, atol=1.0, pcoeff=0.4, icoeff=0.3)


class Method(eqx.Module):
    """A solver and a step-size controller; `constant_step` is None if step sizes adapt."""

    solver: RungeKutta | OfLanes | OfSmallLanes
    controller: diffrax.AbstractStepSizeController
    constant_step: Float[Array, ""] | None

    @property
    def name(self) -> str:
        """The name of the solver's class."""
        return type(self.solver.method).__name__

    @property
    def shares_stages(self) -> bool:
        """True if all lanes of a block use the same number of stages in a step."""
        return isinstance(self.solver, OfLanes)

    @property
    def unfit_for_kernels(self) -> str | None:
        """The reason why the kernel backend cannot run the method; None if it can."""
        if self.shares_stages:
            return f"the lanes of {self.name} share their number of stages"
        if isinstance(self.solver, OfSmallLanes):
            return f"the lanes of {self.name} solve linear systems"
        return None


def make_method(
    solver: diffrax.AbstractSolver | None = None,
    *,
    rtol: float,
    constant_step: Float[Array, ""] | None = None,
) -> Method:
    """The method with a given solver.

    Args:
        solver: The solver; None for Tsit5, or Dopri8 if rtol is below 3e-8.
        rtol: The relative tolerance.
        constant_step: A fixed step, to observe the order of a solver; None for adaptive steps.

    Raises:
        ValueError: If `solver` is neither an explicit Runge–Kutta method of diffrax, nor
            stabilised, nor Rodas5P.
    """
    if solver is None:
        solver = diffrax.Dopri8() if rtol < _HIGH_ORDER_BELOW else diffrax.Tsit5()
    if not isinstance(solver, diffrax.AbstractERK | AbstractStabilised | Rodas5P):
        raise ValueError(
            "Argument `solver` must be an explicit Runge–Kutta solver of diffrax such as "
            "diffrax.Dopri5(), or solve.Rodas5P() or solve.RKC2() for stiff flows, but is "
            f"{solver!r}."
        )
    stabilised = isinstance(solver, AbstractStabilised)
    if isinstance(solver, Rodas5P):
        stepping = OfSmallLanes(solver)
    else:
        stepping = OfLanes(solver, jnp.asarray(rtol)) if stabilised else RungeKutta(solver)
    controller = _FORESEEING if stabilised else _CONTROLLER
    if constant_step is not None:
        controller = diffrax.ConstantStepSize()
    return Method(stepping, controller, constant_step)


def problem_for(
    solver: Any, flow: AbstractFlow, dtype: Any, state: PyTree[Any], **options: Any
) -> Problem:
    """A checked problem that suits a given solver.

    Args:
        solver: The solver; None for the default.
        flow: The flow.
        dtype: The dtype of the integration, float64 or float32.
        state: One state; if it is traced, the user's functions are not checked.
        options: Further arguments of `make_problem`.

    Raises:
        ValueError: As of `make_problem`, and if the solver does not suit the flow or the clock.
    """
    stabilised, small = isinstance(solver, AbstractStabilised), isinstance(solver, Rodas5P)
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((flow, state)))
    given = None if traced else state
    problem = make_problem(flow, dtype=dtype, state=given, steady=stabilised or small, **options)
    if stabilised:
        check_real_spectrum(problem, state, type(solver).__name__)
    if small:
        check_still_field(problem, type(solver).__name__)
    return problem


def terms(problem: Problem) -> diffrax.ODETerm:
    """The field of a block of lanes, in the form that diffrax takes."""

    def field(offset: Any, point: Any, lanes: Any) -> Any:
        return lanewise(lambda lane, here: vector_field(problem, lane, offset, here))(lanes, point)

    return diffrax.ODETerm(field)
