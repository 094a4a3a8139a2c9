"""One flow line, with dense output: the verb `flow_line`, and `Line`, its result.

The line is a block of one lane (`engine`). All accepted steps are kept, with their interpolants and
the fraction of each that was used, so that the state at any flow time can be evaluated. The step is
found by a search in the times of the steps, and the position θ within the step by solving
t(θ) = time in the interpolant of t. Derivatives of the line are computed in forward mode.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from equinox.internal import nondifferentiable_backward
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from flowlab import _tables
from flowlab._checks import real, shown
from flowlab.flow import AbstractFlow
from flowlab.measures import Measure
from flowlab.solve.compilation import compiled, exact_products
from flowlab.solve.crossings import implicit, interpolated, root
from flowlab.solve.engine import Tape, advance, safe_problem
from flowlab.solve.lane_lifecycle import begin, finish
from flowlab.solve.method import Method, make_method, problem_for
from flowlab.solve.problem import (
    Problem,
    check_states,
    check_target,
    default_rtol,
)
from flowlab.solve.stiffness import bounded_rates, steady, stiff_solvers
from flowlab.solve.thin_line import refuse_thin, thin_line
from flowlab.solve.watched import Watched
from flowlab.until import AbstractTarget, Clock, Outcome, told_of_domain

__all__ = ["Line", "flow_line"]

_MOST_STEPS, _FEWEST_STEPS = 4096, 256
_ROOM = 2**30  # bytes
_ROUNDING = 4096  # machine epsilons, one for each of the default steps
_SHOWN = 12  # the most numbers of a state that are written out
_PATIENCE = 24  # steps at the bound of stability after which another method is tried: about
# 150 evaluations, a small part of those of a whole line that is not stiff
_NO_BOUND = 2**31 - 1
_NOT_ENDED = 0  # the code of a line that has not ended
_ENDS = 3  # states per step besides its stages: both ends, and the state at its end
_FORWARD_ALONE = (
    "A flow line has derivatives in forward mode alone: use jax.jvp or jax.jacfwd in place of "
    "jax.grad, jax.vjp or jax.jacrev."
)


class Line(eqx.Module):
    """A flow line (a trajectory), from its start to its end.

    Arrays are NumPy arrays. Under `jit`, `vmap` or `jvp` they are JAX arrays, whose rows after the
    last step are NaN.

    Attributes:
        times: Flow times of `states`, shape (k,): the start and the ends of the steps. With
            `dense=False`, the two ends of the line and the times in `save_at`.
        states: States at `times`; leaves of shape (k, ...).
        outcome: The outcome of the start, a code of `until.Outcome`.
        time: Flow time at which the target was reached; NaN if it was not.
        end_time: Flow time at which the line ends, for whatever reason.
        end: State at the end; a component that was absorbed by the boundary is 0.
        level_times: Flow time at which each level of the target was reached, shape (levels,).
        measures: Results of the measures, by name.
        steps: Number of accepted steps.
        watched: Values asked for by `watch`, at `times`: `"u"`, the log-ratios of all n pairs in
            nats, shape (k, n, 2), and `"loss"`, shape (k,).
    """

    times: Any
    states: Any
    outcome: Any
    time: Any
    end_time: Any
    end: Any
    level_times: Any
    measures: dict[str, Any]
    steps: Any
    _problem: Problem
    _method: Method
    _tape: Tape | None
    watched: dict[str, Any] = eqx.field(default_factory=dict)

    @property
    def solver(self) -> str:
        """The name of the solver that was used.

        If no solver was asked for, and this is a solver for stiff flows, it used time as the clock,
        or arc length on a domain with an absorbing boundary, whatever clock was asked for.
        """
        return self._method.name

    def __repr__(self) -> str:
        """A summary on one line: how the line ended, or that it is traced."""
        if _is_traced(self):
            return "Line(traced)"
        name = Outcome(int(self.outcome)).name
        flow, ended = self._problem.flow, np.asarray(self.end_time)
        told = told_of_domain(
            flow.domain, np.asarray(self.outcome), self.end, ended, flow.components
        )
        shown = (
            f"end_time={self.end_time!s}, end={self._end()}, {self.steps} steps by {self.solver}"
        )
        return f"Line({name}: {shown}{told})"

    def _end(self) -> str:
        """A short text of the state at the end; for PyTrees and large states, their shapes."""
        if isinstance(self.end, np.ndarray) and self.end.size <= _SHOWN:
            return np.array2string(self.end, max_line_width=np.inf)  # type: ignore[arg-type]
        sizes = [str(np.shape(leaf)) for leaf in jax.tree.leaves(self.end)]
        return f"arrays of shape {', '.join(sizes)}"

    def _facts(self) -> list[tuple[str, ...]]:
        """The results of the line as rows of a table, for a notebook."""
        return [
            ("outcome", Outcome(int(self.outcome)).name),
            ("flow time to the target", f"{float(self.time):.6g}"),
            ("flow time at the end", f"{float(self.end_time):.6g}"),
            ("state at the end", self._end()),
            ("steps", f"{int(self.steps):,} by {self.solver}"),
            *((name.replace("_", " "), _measured(held)) for name, held in self.measures.items()),
        ]

    def _repr_html_(self) -> str | None:
        if _is_traced(self):
            return None
        return _tables.html(repr(self._problem.flow), self._facts())

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the line on its plane; see `flowlab.plots.lines`.

        Args:
            ax: The matplotlib Axes to draw on; None for new ones.

        Raises:
            ValueError: If the states do not have two components.
        """
        from flowlab import plots

        flow = self._problem.flow
        domain = flow.domain if flow.wall == "slide" else None
        return plots.lines([self], domain=domain, ax=ax)

    @property
    def components(self) -> tuple[str, ...] | None:
        """Names of the components of a state; None if they have none or the state is a PyTree."""
        return self._problem.flow.components

    def at(self, time: npt.ArrayLike) -> PyTree[Float[ArrayLike, "..."]]:
        """The states at flow times.

        Args:
            time: Flow times from 0 to the end of the line, any shape.

        Raises:
            ValueError: If a time lies outside the line (unless the call is traced), or the line was
                made with `dense=False`.

        Accuracy: about the tolerance of the line, as of the solver's interpolant.
        """
        if self._tape is None:
            raise ValueError(
                "Argument `dense` must be True for states between steps, but was False; "
                "ask for states with `save_at` instead."
            )
        if _is_traced(self) or _is_traced(time):
            return _states_at(self, jnp.asarray(time))
        asked = real("time", time).astype(np.asarray(self.times).dtype)
        if not np.all(self.covers(asked)):
            last = max(float(self.end_time), float(np.asarray(self.times)[-1]))
            raise ValueError(
                f"Argument `time` must lie on the line, between 0 and {last:.6g}, "
                f"but is {shown(asked)}."
            )
        with jax.enable_x64(asked.dtype == np.float64):
            return _as_numpy(_compiled_states_at(self, asked))

    def covers(self, time: npt.ArrayLike) -> Bool[np.ndarray, "..."]:
        """Mask of the flow times that lie on the line, up to rounding; needs an untraced line."""
        times = np.asarray(self.times)
        asked, last = np.asarray(time, times.dtype), max(float(self.end_time), float(times[-1]))
        return (asked >= 0) & (asked <= _just_past(last, times.dtype))


def _measured(held: Any) -> str:
    """The result of a measure as text on one line."""
    if isinstance(held, np.ndarray) and 1 <= held.size <= _SHOWN:
        return np.array2string(held, precision=6)
    return f"{len(jax.tree.leaves(held))} arrays"


def flow_line(
    flow: AbstractFlow,
    start: PyTree[Float[ArrayLike, "..."]],
    *,
    until: AbstractTarget,
    clock: Clock | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    measures: Sequence[Measure] = (),
    reverse: bool = False,
    max_steps: int | None = None,
    dense: bool = True,
    save_at: npt.ArrayLike | None = None,
    watch: Sequence[Watched] = (),
    u_atol: float | None = None,
    progress: bool | None = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Line:
    """Integrate the flow line (the trajectory) of one start, up to a target.

    The call can be traced (`jax.jit`, `jax.vmap`, `jax.jvp`). Derivatives of any order are
    available in forward mode; the sizes of the steps are treated as constants.

    Args:
        flow: The flow.
        start: One state: an array of shape (d,), or a PyTree.
        until: The target at which the line ends, from `flowlab.until`.
        clock: The independent variable. None for arc length, which is regular everywhere, or for
            time if the target is a time and the domain has no absorbing boundary.
        rtol: Relative tolerance of the state and of the flow time; None for 1e-6, or 1e-4 in
            float32.
        atol: Absolute tolerance of the state. None for rtol × 1e-3 × smallest nonzero component of
            the start, or for no absolute tolerance on a domain of positive components.
        solver: An explicit Runge–Kutta solver of diffrax with an error estimate; `solve.ROCK4()` or
            `solve.RKC2()` for stiff flows with a constant metric; or `solve.Rodas5P()` for small
            stiff states. The last three use time as the default clock. None for Tsit5, or Dopri8 if
            rtol < 3e-8. If stability, and not accuracy, keeps the steps of Tsit5 or Dopri8 short,
            the line is integrated again from its start with a stiff solver: Rodas5P for up to 32
            components; for more, or if Rodas5P fails, ROCK4 and then RKC2 (RKC2 first if
            rtol ≥ 1e-5). The stiff solver uses time as the clock, or arc length on a domain with an
            absorbing boundary, whatever `clock` says. `Line.solver` names the solver that was used.
        measures: Measures to evaluate along the line, from `flowlab.measures`.
        reverse: Whether to follow the flow backwards, up the potential.
        max_steps: Number of attempted steps after which the outcome is `step_limit`. Memory is
            allocated for all of them. None for 4096; for a large state, for as many as fit into
            about 1 GiB, but at least 256.
        dense: False for a large state, such as the parameters of a model: no step is recorded, and
            the line needs memory for 13 states on the device, whatever the number of steps. The
            options below need `dense=False`.
        save_at: Flow times at which to save the state, besides the two ends; saved states are kept
            on the host.
        watch: Values to save with each state: `"loss"`, `"u"` (the log-ratios of all pairs), or
            both.
        u_atol: Tolerance per step of the log-ratio of every response, in nats. None for `rtol`
            nats, or for no such tolerance if the flow has no pairs; infinite for no such tolerance.
            The error of a log-ratio is its derivative in the direction of the state's error, so
            that log-probabilities must have forward derivatives.
        progress: Whether to show a progress bar; None shows one on a terminal if the line takes
            long.
        checkpoint: A file to which the state of the integration is written every half a minute and
            at the end. The same call resumes the line from the file, even after kill -9, and gives
            the bits of an uninterrupted line on the same machine with the same versions. A file of
            another line is refused.

    Raises:
        ValueError: If the start has the wrong shape, is not finite or lies outside the domain; a
            tolerance is too small for the dtype; `clock`, `until` and `reverse` cannot be combined;
            an option has no effect on a dense line; `dense` is False for a traced line or a clock
            of loss or margin; or `checkpoint` is not a file of this line.
        RuntimeError: If the line is differentiated in reverse mode.

    Accuracy: the relative error per step of state and time is `rtol`. Compared with closed forms,
        times have a median error below 10·rtol. At an rtol of 1e-11, second and third derivatives
        through an event are accurate to 1e-6, and to 6e-6 if the line reaches a wall and leaves it.
    """
    _check_reverse(until, reverse)
    asked = {"watch": watch, "u_atol": u_atol, "progress": progress, "checkpoint": checkpoint}
    if dense:
        refuse_thin(save_at=save_at, **asked)
    traced = _is_traced(start) or _is_traced(flow)
    start, dtype = check_states("start", start, flow, batched=False)
    given = {"until": until, "clock": clock, "rtol": rtol, "atol": atol, "measures": measures}
    given |= {"reverse": reverse, "alone": True, "tangents": traced, "save_at": save_at}
    with jax.enable_x64(dtype == np.float64):
        problem = problem_for(solver, flow, dtype, start, **given)
        method = make_method(solver, rtol=default_rtol(dtype) if rtol is None else rtol)
        if dense:
            return _dense_line(
                (problem, method), start, max_steps, traced, fixed=solver is not None
            )
        most = _MOST_STEPS if max_steps is None else max_steps
        fields = thin_line((problem, method), start, most, traced=traced, **asked)
        return _fit(Line(**fields, _problem=problem, _method=method, _tape=None), start)


def _dense_line(
    solved: tuple[Problem, Method],
    start: PyTree[Any],
    max_steps: int | None,
    traced: bool,
    *,
    fixed: bool,
) -> Line:
    """A line with recorded steps; by a stiff solver if needed, unless the solver is `fixed`."""
    max_steps = _affordable_steps(solved[1], start) if max_steps is None else max_steps
    if traced:
        return _traced_line(solved, start, max_steps)
    if fixed:
        return _line_now(solved, start, max_steps)
    return _line_by_choice(solved, start, max_steps)


def _traced_line(solved: tuple[Problem, Method], start: PyTree[Array], max_steps: int) -> Line:
    """A line inside a traced program, which cannot be integrated again under another clock."""
    with exact_products():
        line, _ = _line(solved, start, max_steps)
    return nondifferentiable_backward(line, msg=_FORWARD_ALONE)


def _line_now(
    solved: tuple[Problem, Method],
    start: PyTree[np.ndarray],
    max_steps: int,
    patience: np.int32 | None = None,
) -> Line:
    """A line in NumPy arrays, integrated again under arc length if it strayed under its clock."""
    line, strayed = _as_numpy(_compiled_line(solved, start, max_steps, patience))
    if strayed:
        problem, method = solved
        again = (safe_problem(problem), method), start, max_steps, patience
        line, _ = _as_numpy(_compiled_line(*again))
    return _trimmed(_fit(line, start))


def _line_by_choice(
    solved: tuple[Problem, Method], start: PyTree[np.ndarray], max_steps: int
) -> Line:
    """A line by the default solver, or by a stiff solver if only stability limits the steps.

    If no solver reaches an end, the line with the largest final time.
    """
    problem, method = solved
    line = _line_now(solved, start, max_steps, np.int32(_PATIENCE))
    if line.outcome not in (_NOT_ENDED, Outcome.step_limit):
        return line
    lines, rate = [], _bounded_rate(line)
    limits: Any = dict(rate=rate, max_steps=max_steps)
    for solver in () if rate is None else stiff_solvers(problem, start, **limits):
        other = (steady(problem), make_method(solver, rtol=float(problem.rtol)))
        lines.append(_line_now(other, start, max_steps))
        if lines[-1].outcome not in (Outcome.step_limit, Outcome.non_finite):
            return lines[-1]
    if line.outcome == _NOT_ENDED:
        line = _line_now(solved, start, max_steps, np.int32(_NO_BOUND))
    return max((line, *lines), key=lambda line: line.end_time)


def _bounded_rate(line: Line) -> float | None:
    """The fastest rate of a line whose last steps were limited by stability alone; else None."""
    if line.steps < _PATIENCE:
        return None
    lately = (line.times[-1] - line.times[-1 - _PATIENCE]) / _PATIENCE
    last = jax.tree.map(lambda x: x[-1:], line.states)
    return float(bounded_rates(line._problem, last, np.asarray([lately]))[0]) or None


def _check_reverse(until: AbstractTarget, reverse: bool) -> None:
    check_target(until)
    if reverse and until.of_state:
        raise ValueError(
            "Argument `reverse` must be False for a target that lies down the flow, but is True; "
            "use until.time or until.boundary."
        )


def _affordable_steps(method: Method, start: PyTree[Any]) -> int:
    """The default of `max_steps`: the number of steps whose stages fit into the memory allowed."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(start))
    stages = method.solver.stages
    return int(np.clip(_ROOM // ((stages + _ENDS) * size), _FEWEST_STEPS, _MOST_STEPS))


def _line(
    solved: tuple[Problem, Method],
    start: PyTree[Array],
    max_steps: int,
    patience: Int[Array, ""] | None = None,
) -> tuple[Line, Bool[Array, ""]]:
    """A line, and whether it strayed under its clock; without outcome if out of patience."""
    problem, method = solved
    lanes = begin(problem, jax.tree.map(lambda x: jnp.asarray(x)[..., None], start))
    lanes, tries, tape = advance(
        problem, method, lanes, max_steps=max_steps, tape_length=max_steps, patience=patience
    )
    assert tape is not None
    spent = lanes.outcome == 0
    if patience is not None:
        spent = spent & (tries >= max_steps)
    code = jnp.where(spent, jnp.int32(Outcome.step_limit), lanes.outcome)
    lanes = eqx.tree_at(lambda x: x.outcome, lanes, code)
    results = jax.tree.map(lambda x: x[..., 0], finish(problem, lanes))
    del results["saved"]
    times, states = _corners(problem, method, tape, start)
    line = Line(times=times, states=states, **results, _problem=problem, _method=method, _tape=tape)
    return line, lanes.strayed[0]


@partial(compiled, optimise=False)
def _compiled_line(
    solved: tuple[Problem, Method],
    start: PyTree[Array],
    max_steps: int,
    patience: Int[Array, ""] | None,
) -> tuple[Line, Bool[Array, ""]]:
    return _line(solved, start, max_steps, patience)


def _corners(problem: Problem, method: Method, tape: Tape, start: PyTree[Array]) -> tuple[Any, Any]:
    """Times and states at the start and at the end of each step; NaN after the last step."""
    points = interpolated(method, _steps_as_lanes(tape.dense), tape.end[:, 0])
    states = jax.vmap(problem.flow.domain.state, in_axes=-1, out_axes=0)(points.coordinates)
    taken = jnp.arange(tape.end.shape[0], dtype=jnp.int32) < tape.count

    def with_first(first: Array, rest: Array) -> Array:
        mask = jnp.reshape(taken, (-1, *(1,) * (rest.ndim - 1)))
        return jnp.concatenate([jnp.asarray(first)[None], jnp.where(mask, rest, jnp.nan)])

    times = with_first(jnp.zeros((), points.time.dtype), points.time)
    return times, jax.tree.map(with_first, start, states)


def _steps_as_lanes(dense: PyTree[Array]) -> PyTree[Array]:
    """The recorded steps of a single lane, rearranged as one step of many lanes."""
    return jax.tree.map(lambda x: jnp.moveaxis(x[..., 0], 0, -1), dense)


def _states_at(line: Line, time: Any) -> PyTree[Array]:
    tape = line._tape
    assert tape is not None
    flat = jnp.ravel(time)
    times = jnp.where(jnp.isnan(line.times), jnp.inf, line.times)
    last = tape.end.shape[0] - 1
    step = jnp.clip(jnp.searchsorted(times, flat, side="right") - 1, 0, last)
    step = jnp.minimum(step, jnp.maximum(tape.count - 1, 0))
    dense = _steps_as_lanes(jax.tree.map(lambda x: x[step], tape.dense))
    place = _place_of(line._method, dense, flat)
    points = interpolated(line._method, dense, place)
    states = jax.vmap(line._problem.flow.domain.state, in_axes=-1)(points.coordinates)
    known = flat <= jnp.max(jnp.where(jnp.isnan(line.times), 0, line.times))
    at_end = ~known & (flat <= _just_past(line.end_time, flat.dtype))

    def shaped(state: Array, end: ArrayLike, corners: Array) -> Array:
        state = jnp.where(tape.count == 0, jnp.asarray(corners)[0], state)

        def spread(mask: Array) -> Array:
            return jnp.reshape(mask, (-1, *(1,) * (state.ndim - 1)))

        full = jnp.broadcast_to(jnp.asarray(end), state.shape)
        values = jnp.where(spread(known), state, jnp.where(spread(at_end), full, jnp.nan))
        return jnp.reshape(values, time.shape + state.shape[1:])

    return jax.tree.map(shaped, states, line.end, line.states)


_compiled_states_at = compiled(_states_at, optimise=False)


def _just_past(time: Any, dtype: Any) -> Any:
    """The time at the end of a line, enlarged by the rounding errors of many steps."""
    return time * (1 + _ROUNDING * float(jnp.finfo(dtype).eps))


def _place_of(method: Method, dense: PyTree[Array], time: Float[Array, " q"]) -> Array:
    """The position of each time in its step, with derivatives as an implicit function."""
    frozen = lax.stop_gradient(dense)

    def ahead(place: Float[Array, " q"]) -> Float[Array, " q"]:
        return lax.stop_gradient(time) - interpolated(method, frozen, place).time

    zeros, ones = jnp.zeros_like(time), jnp.ones_like(time)
    first, last = ahead(zeros), ahead(ones)
    found = jnp.where(last > 0, ones, root(ahead, first, last, (first > 0) & (last <= 0)))
    found = lax.stop_gradient(jnp.where(first <= 0, zeros, found))
    return implicit(lambda place: time - interpolated(method, dense, place).time, found)


def _fit(line: Line, start: PyTree[Any]) -> Line:
    """The line, unchanged; a start outside the domain, or not finite, is an error."""
    shown = jax.tree.map(lambda x: np.asarray(x).tolist(), start)
    code = int(line.outcome)
    if code == Outcome.outside_domain:
        raise ValueError(
            "Argument `start` must lie in the domain of the flow, "
            f"{line._problem.flow.domain.described}, but is {shown}."
        )
    if code == Outcome.non_finite and int(line.steps) == 0:
        raise ValueError(
            f"Argument `start` must be finite, with a finite flow at this state, but is {shown}."
        )
    return line


def _trimmed(line: Line) -> Line:
    tape = line._tape
    assert tape is not None
    count = int(tape.count)
    times, states = jax.tree.map(lambda x: x[: count + 1], (line.times, line.states))
    kept = max(count, 1)
    tape = Tape(jax.tree.map(lambda x: x[:kept], tape.dense), tape.end[:kept], tape.count)
    return eqx.tree_at(lambda x: (x.times, x.states, x._tape), line, (times, states, tape))


def _as_numpy(tree: PyTree[Any]) -> PyTree[Any]:
    return jax.tree.map(lambda x: np.asarray(x) if eqx.is_array(x) else x, tree)


def _is_traced(tree: PyTree[Any]) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
