"""Derivatives of ends and arrival times with respect to the start, and Lyapunov exponents.

The flow map Φ maps a start y₀ to the end of its line, at a target or at a fixed flow time T; τ(y₀)
is the time of arrival at the target. DΦ and ∇τ come from forward-mode differentiation of the
integration (`solve.tangents`), events included. A level located by a signal, as under arc length,
is differentiated by the implicit function theorem; under the clocks of loss and margin the
integration ends at the level itself, and the flow time is differentiated as one of the unknowns.
The finite-time Lyapunov exponent is (1/T) log σ_max(DΦ), with σ_max the largest singular value.

n: starts; d: components of a state; k: components of an end.

Source: Shadden, Lekien and Marsden, Physica D 212 (2005) 271–304, for the exponents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int
from scipy.linalg import expm

from flowlab import until as targets
from flowlab._checks import positive
from flowlab.ensemble.blocks import BlockPrograms, Device, block_size_on, solved, worth_optimising
from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.measures.base import Space, check_space, position
from flowlab.solve import (
    Method,
    Problem,
    check_counts,
    check_states,
    compiled,
    default_rtol,
    make_method,
    one_of,
    problem_for,
)
from flowlab.solve.tangents import first_with_tangents, later_with_tangents
from flowlab.until import AbstractTarget, Clock, Outcome

__all__ = ["Exponents", "Sensitivity", "lyapunov", "sensitivity"]

_PROGRAMS = BlockPrograms(first_with_tangents, later_with_tangents, enough_blocks=512)
_SOLVED = ("outcome", "time", "end", "by_start", "time_by_start")  # as in `Sensitivity`
_WIDTH = 8  # numbers per vector instruction of a processor, at most


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Derivatives of ends and arrival times of flow lines with respect to their starts.

    Attributes:
        starts: The starts, shape (n, d).
        of: The space whose coordinates starts and ends are differentiated in.
        outcome: The outcome of each start, a code of `until.Outcome`, shape (n,).
        time: Flow time at which the target was reached, NaN if it was not, shape (n,).
        end: The end of each line, in the coordinates of the space, shape (n, k).
        jacobian: ∂ end_i / ∂ start_j, shape (n, k, d); NaN if it is undefined.
        time_gradient: ∂ time / ∂ start_j, shape (n, d); NaN if it is undefined, and 0 if the target
            is a time.
    """

    starts: Float[np.ndarray, "n d"]
    of: Space
    outcome: Int[np.ndarray, " n"]
    time: Float[np.ndarray, " n"]
    end: Float[np.ndarray, "n k"]
    jacobian: Float[np.ndarray, "n k d"]
    time_gradient: Float[np.ndarray, "n d"]

    @property
    def defined(self) -> Bool[np.ndarray, " n"]:
        """Mask of the starts that have derivatives."""
        return np.all(np.isfinite(self.jacobian), axis=(1, 2)) & np.all(
            np.isfinite(self.time_gradient), axis=1
        )

    @property
    def undefined(self) -> int:
        """The number of starts without derivatives."""
        return int(np.sum(~self.defined))

    @property
    def growth(self) -> Float[np.ndarray, " n"]:
        """The largest singular value of each Jacobian: the largest growth of a small change."""
        growth = np.full(len(self.starts), np.nan, self.jacobian.dtype)
        whole = np.all(np.isfinite(self.jacobian), axis=(1, 2))
        growth[whole] = np.linalg.norm(self.jacobian[whole], ord=2, axis=(1, 2))
        return growth

    def __repr__(self) -> str:
        """A summary on one line: the number of starts, and of starts without derivatives."""
        size = len(self.starts)
        return f"Sensitivity({size} starts in {self.of!r}, undefined at {self.undefined})"


@dataclass(frozen=True, eq=False)
class Exponents:
    """Largest finite-time Lyapunov exponents; NumPy functions use it as the array `values`.

    Attributes:
        values: The exponents, per unit of flow time, shape (n,); NaN if undefined.
        starts: The starts, shape (n, d).
        time: The flow time T.
        of: The space in which distances are measured.
        outcome: The outcome of each start, a code of `until.Outcome`, shape (n,).
    """

    values: Float[np.ndarray, " n"]
    starts: Float[np.ndarray, "n d"]
    time: float
    of: Space
    outcome: Int[np.ndarray, " n"]

    @property
    def undefined(self) -> int:
        """The number of starts without an exponent: they ended before T, failed or underflowed."""
        return int(np.sum(np.isnan(self.values)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The array `values`."""
        return np.array(self.values, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        """A summary on one line: the number of starts, and of starts without an exponent."""
        size = len(self.values)
        return f"Exponents({size} starts at time {self.time:g}, undefined at {self.undefined})"


def sensitivity(
    flow: AbstractFlow,
    starts: Float[ArrayLike, "n d"],
    *,
    until: AbstractTarget,
    of: Space = "state",
    clock: Clock | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: Any = None,
    block_size: int | None = None,
    devices: Sequence[Device] | None = None,
    max_steps: int = 4096,
    optimise: bool | None = None,
) -> Sensitivity:
    """Derivatives of the end of a flow line, and of its arrival time, with respect to its start.

    If the target is a level (of the loss, a margin, a speed), the end stays on that level when the
    start changes, and the arrival time changes; the module describes how. If the target is a time,
    the time is fixed. With `of="u"` for a preference flow, the Jacobian maps changes of the initial
    log-ratios of chosen and rejected to changes of their final log-ratios. If a target has several
    levels, the last one counts.

    Derivatives are undefined, NaN, if the target was not reached: because the line was absorbed by
    the boundary, stopped at a wall, came to rest, or started past the target.
    `Sensitivity.undefined` counts such starts. A start that is a critical point has the derivative
    exp(−T·D(M∇L)) at a fixed time T, with the metric M and the potential L.

    For a line that slides along a wall, derivatives are with respect to starts whose lines also
    slide. They are one-sided if a line just touches a wall or starts on it, since neighbours on one
    side slide and neighbours on the other side do not. After sliding the Jacobian is singular,
    because neighbouring lines have merged.

    Args:
        flow: The flow.
        starts: Starts, shape (n, d). Lines are integrated in their dtype, float32 or float64.
        until: The target at which lines end, from `flowlab.until`.
        of: The space whose coordinates starts and ends are differentiated in: `"state"`; for a
            preference flow whose pairs have as many coordinates as its state, also `"x"` (ratios),
            `"u"` (log-ratios) or `"probability"`.
        clock: The independent variable; None for the default of the target.
        rtol: Relative tolerance of state and flow time; None for 1e-6, or 1e-4 in float32.
        atol: Absolute tolerance of the state; None as in `sweep`.
        solver: An explicit Runge–Kutta solver of diffrax with an error estimate, or `solve.ROCK4()`
            or `solve.RKC2()` for stiff flows with a constant metric, with time as the default
            clock. None for Tsit5, or Dopri8 if rtol < 3e-8.
        block_size: Number of starts that share a step; None for the default of `sweep`, divided by
            the number of components.
        devices: JAX devices to use; None for all local ones.
        max_steps: Number of attempted steps of a block after which the outcome is `step_limit`, as
            in `sweep`.
        optimise: Whether the compiler optimises its code; None optimises from 4,000 starts on.

    Raises:
        ValueError: If the starts have the wrong shape, the space is not defined for the flow, or an
            option is out of range.

    Accuracy: the derivatives are those of the discrete flow line, with its step sizes treated as
        constants. The step-size control keeps the relative error of the state in a step below
        `rtol`, and that of the derivatives, relative to the largest of them, below 10·rtol. Near a
        minimum, where derivatives decay, steps are therefore shorter than the state alone needs.
        Measured errors at rtol = 1e-6 (median and worst), relative to the norm of a Jacobian: at a
        level of DPO on the ratio plane, 1e-7 and 1e-6 with the clock `margin`, 2e-6 and 5e-5 with
        `arc_length`; at a fixed time, 2e-7 and 2e-5 on Himmelblau's function, 1e-6 and 6e-4 on the
        ratio plane, the worst for lines that are about to be absorbed. At rtol = 1e-8 the errors
        are a hundredth of these or less.
    """
    check_counts(block_size, max_steps)
    check_space(of)
    array, dtype = check_states("starts", starts, flow, batched=True)
    array = _matrix(array)
    with jax.enable_x64(dtype == np.float64):
        rtol = default_rtol(dtype) if rtol is None else rtol
        problem = problem_for(
            solver,
            flow,
            dtype,
            one_of(array),
            until=until,
            clock=clock,
            rtol=rtol,
            atol=atol,
            tangents=True,
        )
        method = make_method(solver, rtol=rtol)
        _check_square(problem.flow, array, of)
        found = _solved(problem, method, array, block_size, devices, max_steps, optimise)
        if until.moments is not None:
            _at_rest(problem, array, float(np.asarray(until.moments)[-1]), found)
        if of != "state":
            _in_space(problem, array, of, found)
    return Sensitivity(array, of, *(found[name] for name in _SOLVED))


def lyapunov(
    flow: AbstractFlow,
    starts: Float[ArrayLike, "n d"],
    *,
    time: float,
    of: Space = "state",
    rtol: float | None = None,
    **options: Any,
) -> Exponents:
    """Largest finite-time Lyapunov exponents: the largest rate at which neighbours separate.

        (1/T) log σ_max(DΦ_T),   Φ_T the flow map over the flow time T, σ_max the largest
                                 singular value

    The exponent is positive where neighbouring starts separate, for example near a saddle. A map of
    the exponent has ridges along the boundaries between basins.

    The exponent is undefined, NaN, if the line ends before T, absorbed by the boundary (on the
    ratio plane, extinction) or stopped at a wall. It is also undefined if σ_max underflows, below
    1e-291 in float64 and 1e-30 in float32, as near a minimum after long times.
    `Exponents.undefined` counts such starts.

    Args:
        flow: The flow.
        starts: Starts, shape (n, d).
        time: The flow time T, positive.
        of: The space in which distances are measured at both ends, as in `sensitivity`.
        rtol: Relative tolerance of state and flow time; None for 1e-6, or 1e-4 in float32.
        options: Further options of `sensitivity`.

    Raises:
        ValueError: If `time` is not positive and finite, and as of `sensitivity`.

    Source: Shadden, Lekien and Marsden, Physica D 212 (2005), 271–304, definition 2.1.

    Accuracy: the error is the relative error of σ_max (see `sensitivity`) divided by T.
    """
    duration = positive("time", time)
    moved = sensitivity(flow, starts, until=targets.time(duration), of=of, rtol=rtol, **options)
    growth, numbers = moved.growth, np.finfo(moved.growth.dtype)
    with np.errstate(invalid="ignore"):
        growth[growth < numbers.tiny / numbers.eps] = np.nan
    values = np.log(growth) / growth.dtype.type(duration)
    return Exponents(values, moved.starts, duration, of, moved.outcome)


def _solved(
    problem: Problem,
    method: Method,
    starts: Float[np.ndarray, "n d"],
    block_size: int | None,
    devices: Sequence[Device] | None,
    max_steps: int,
    optimise: bool | None,
) -> dict[str, Any]:
    """Ends and their derivatives with respect to the start, NaN if undefined."""
    used = jax.local_devices() if devices is None else list(devices)
    size = block_size or _block_size(used[0], starts.shape[1])
    found = solved(
        problem,
        method,
        starts,
        devices=used,
        size=min(size, len(starts)),
        max_steps=max_steps,
        optimise=worth_optimising(len(starts)) if optimise is None else optimise,
        programs=_PROGRAMS,
    )
    found["by_start"][~found["defined"]] = np.nan
    found["time_by_start"][~found["defined"]] = np.nan
    return found


def _block_size(device: Device, components: int) -> int:
    """The number of starts that share a step; each start takes one lane per component."""
    return max(block_size_on(device) // components // _WIDTH, 1) * _WIDTH


def _matrix(starts: Any) -> Float[np.ndarray, "n d"]:
    if not isinstance(starts, np.ndarray) or starts.ndim != 2 or not starts.size:
        shape = starts.shape if isinstance(starts, np.ndarray) else "that of a PyTree"
        raise ValueError(
            "Argument `starts` must have shape (n, d), since derivatives are taken with respect to "
            f"vectors, but has shape {shape}."
        )
    return starts


def _check_square(flow: AbstractFlow, starts: Float[np.ndarray, "n d"], of: Space) -> None:
    """Refuse a space that a flow does not have, or whose dimension is not that of its states."""
    if of == "state":
        return
    if not isinstance(flow, PreferenceFlow):
        raise ValueError(f'Argument `of` must be "state" for a flow without pairs, but is {of!r}.')
    one = jax.ShapeDtypeStruct(starts.shape[1:], starts.dtype)
    coordinates = jax.eval_shape(lambda y: position(flow, y, of), one).size
    if coordinates != starts.shape[1]:
        raise ValueError(
            f'Argument `of` must be "state" here, but is {of!r}, and the {coordinates} coordinates '
            f"of the pairs do not determine a state of {starts.shape[1]} components."
        )


def _at_rest(
    problem: Problem, starts: Float[np.ndarray, "n d"], duration: float, found: dict[str, Any]
) -> None:
    """Fill in the derivatives, at a fixed time, of starts that are critical points."""
    resting = (found["outcome"] == Outcome.at_critical_point) & (found["steps"] == 0)
    if not np.any(resting):
        return
    operations = problem.operations
    rates = np.asarray(_field_by_state(problem.flow, starts[resting], operations=operations))
    found["by_start"][resting] = expm(duration * rates)
    found["time_by_start"][resting] = 0


def _in_space(
    problem: Problem, starts: Float[np.ndarray, "n d"], of: Space, found: dict[str, Any]
) -> None:
    """Transform ends and Jacobians J to the coordinates P of a space: P'(end)·J·P'(start)⁻¹."""
    positions = partial(_positions, problem.flow, operations=problem.operations)
    _, at_start = map(np.asarray, positions(starts, of))
    end, at_end = map(np.asarray, positions(found["end"], of))
    regular = np.all(np.isfinite(at_start), axis=(1, 2))
    regular[regular] = np.linalg.matrix_rank(at_start[regular]) == starts.shape[1]
    safe = np.where(regular[:, None, None], at_start, np.eye(starts.shape[1], dtype=starts.dtype))
    back = np.where(regular[:, None, None], np.linalg.inv(safe), np.nan)
    found["end"] = end
    with np.errstate(invalid="ignore"):
        found["by_start"] = at_end @ found["by_start"] @ back
    found["time_by_start"] = (found["time_by_start"][:, None, :] @ back)[:, 0, :]


@compiled
def _field_by_state(flow: AbstractFlow, states: Float[Array, "n d"]) -> Float[Array, "n d d"]:
    return jax.vmap(jax.jacfwd(flow.velocity))(states)


@compiled
def _positions(
    flow: AbstractFlow, states: Float[Array, "n d"], of: Space
) -> tuple[Float[Array, "n k"], Float[Array, "n k d"]]:
    """States in the coordinates of a space, and the derivatives of these coordinates."""

    def place(state: Float[Array, " d"]) -> Float[Array, " k"]:
        return jnp.ravel(position(flow, state, of))

    return jax.vmap(place)(states), jax.vmap(jax.jacfwd(place))(states)
