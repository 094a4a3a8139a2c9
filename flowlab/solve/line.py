"""One flow line, with dense output."""

import dataclasses
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
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from flowlab import _tables
from flowlab._checks import real, shown
from flowlab.flow import AbstractFlow
from flowlab.measures import Measure
from flowlab.solve.chebyshev import RKC2
from flowlab.solve.clocks import clock_named
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
    steady_clock,
)
from flowlab.solve.rock import ROCK4
from flowlab.solve.spectrum import metric_is_constant
from flowlab.solve.stabilised import spectral_radius
from flowlab.solve.thin_line import refuse_thin, thin_line
from flowlab.solve.watched import Watched
from flowlab.until import AbstractTarget, Clock, Outcome, told_of_domain

__all__ = ["Line", "flow_line"]

_MOST_STEPS, _FEWEST_STEPS = 4096, 256
_ROOM = 2**30  # bytes
_ROUNDING = 4096  # machine epsilons, one for each step that may be taken
_SHOWN = 12  # numbers of a state that are written out
_CRAWLED = 64  # steps in a row, the last ones, that are looked at where none are left
_UNSTABLE = 1.0  # of these over the fastest rate: usual methods are stable up to some 3 to 6, and
# where accuracy limits a step the fastest rate is no matter, or all rates are alike
_LOOSE = 1e-5  # rtol from which on order 2 is tried before order 4, which gains little there
_ENDS = 3  # states kept of a step beside its stages: both ends in the record, and its corner
_FORWARD_ALONE = (
    "A flow line has derivatives in forward mode alone: use jax.jvp or jax.jacfwd in place of "
    "jax.grad, jax.vjp or jax.jacrev."
)


class Line(eqx.Module):
    """A flow line from its start to its end.

    NumPy arrays where the call was not traced; under `jit`, `vmap` or `jvp` JAX arrays, whose rows
    after the last step are NaN.

    Attributes:
        times: Flow times at the ends of the steps, the start first, shape (k,); of a line made with
            `dense=False`, those to save at, and its two ends.
        states: States there; leaves of shape (k, ...).
        outcome: What became of the start, a code of `until.Outcome`.
        time: Flow time at which the target was reached; NaN where it was not.
        end_time: Flow time at which the line ends, for whatever reason.
        end: State there; a component that was absorbed by the boundary is 0.
        level_times: Flow time at which each level of the target was met, shape (levels,).
        measures: What was measured, by name.
        steps: Accepted steps.
        watched: What was watched at the states, by name, on a first axis of length k: `"u"`, the
            log-ratios of all pairs, nats, shape (k, n, 2), and `"loss"`, shape (k,).
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
        """The name of the solver that made the steps."""
        return self._method.name

    def __repr__(self) -> str:
        """A summary on one line: how the line ended; of a traced line, that it is one."""
        if _is_traced(self):
            return "Line(traced)"
        name = Outcome(int(self.outcome)).name
        flow, ended = self._problem.flow, np.asarray(self.end_time)
        told = told_of_domain(
            flow.domain, np.asarray(self.outcome), self.end, ended, flow.components
        )
        shown = f"end_time={self.end_time!s}, end={self._end()}, {self.steps} steps"
        return f"Line({name}: {shown}{told})"

    def _end(self) -> str:
        """The end of the line on one line; of states that are PyTrees, or large, what they are."""
        if isinstance(self.end, np.ndarray) and self.end.size <= _SHOWN:
            return np.array2string(self.end, max_line_width=np.inf)  # type: ignore[arg-type]
        sizes = [str(np.shape(leaf)) for leaf in jax.tree.leaves(self.end)]
        return f"arrays of shape {', '.join(sizes)}"

    def _facts(self) -> list[tuple[str, ...]]:
        """The result of the line as rows of a table, for a notebook."""
        return [
            ("outcome", Outcome(int(self.outcome)).name),
            ("flow time to the target", f"{float(self.time):.6g}"),
            ("flow time at the end", f"{float(self.end_time):.6g}"),
            ("state at the end", self._end()),
            ("steps", f"{int(self.steps):,}"),
            *((name.replace("_", " "), _measured(held)) for name, held in self.measures.items()),
        ]

    def _repr_html_(self) -> str | None:
        if _is_traced(self):
            return None
        return _tables.html(repr(self._problem.flow), self._facts())

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the line on its plane; see `flowlab.plots.lines`.

        Args:
            ax: The matplotlib Axes to draw on; None for one of a new Figure.

        Raises:
            ValueError: If the states are on no plane.
        """
        from flowlab import plots

        flow = self._problem.flow
        domain = flow.domain if flow.wall == "slide" else None
        return plots.lines([self], domain=domain, ax=ax)

    @property
    def components(self) -> tuple[str, ...] | None:
        """Names of the components of a state, where it is one array that has such."""
        return self._problem.flow.components

    def at(self, time: npt.ArrayLike) -> PyTree[Float[ArrayLike, "..."]]:
        """The states at flow times.

        Args:
            time: Flow times from 0 to the end of the line, any shape.

        Raises:
            ValueError: If a time lies outside of the line (where the call is not traced), or it was
                made with `dense=False`.

        Accuracy: that of the solver's interpolant, about the tolerance of the line.
        """
        if self._tape is None:
            raise ValueError(
                "Argument `dense` must be True for a line that knows its states between steps, but "
                "was False: ask for states with `save_at`."
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
        """Mask of the flow times that lie on the line, up to rounding; not for a traced line."""
        times = np.asarray(self.times)
        asked, last = np.asarray(time, times.dtype), max(float(self.end_time), float(times[-1]))
        return (asked >= 0) & (asked <= _just_past(last, times.dtype))


def _measured(held: Any) -> str:
    """A measured number, or several, on one line."""
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
    """The flow line of one start, until a target.

    Can be traced (`jax.jit`, `jax.vmap`, `jax.jvp`). Derivatives, of any order, are forward-mode:
    those of the steps that were taken, whose sizes are held fixed.

    Args:
        flow: What to follow.
        start: One state: an array of shape (d,), or a PyTree.
        until: When to stop, from `flowlab.until`.
        clock: The independent variable; None for the arc length, regular everywhere (or for time,
            where the target is one and no boundary is in reach).
        rtol: Relative tolerance, of the state and of the flow time; None for 1e-6, or 1e-4 where
            the dtype is float32.
        atol: Absolute tolerance of the state; None for rtol × 1e-3 × its smallest component, and
            for none at all on a domain of positive components.
        solver: Any explicit Runge–Kutta solver of diffrax with an error estimate, or
            `solve.ROCK4()` or `solve.RKC2()` for stiff flows with a constant metric, by default
            under the clock of time. None for Tsit5, or Dopri8 where rtol < 3e-8; where these run
            out of steps that only stability keeps short, ROCK4 follows the line from its start, and
            where that does not suffice RKC2, in the other order where rtol ≥ 1e-5. `Line.solver`
            says which it was.
        measures: What to measure, from `flowlab.measures`.
        reverse: Follow the flow backwards, up the potential.
        max_steps: Steps to try before the outcome is `step_limit`, for all of which the line keeps
            room; None for 4096, or for a large state as many as take about 1 GiB, at least 256.
        dense: False for a large state, such as the parameters of a model: no step is recorded, so
            that the line takes 14 copies of the state on the device, however many its steps. What
            follows is for that alone.
        save_at: Flow times whose states to keep, beside the two ends; they go to the host.
        watch: What to keep of all pairs there: `"loss"`, `"u"`, the log-ratios of each, or both.
        u_atol: Tolerance per step of the log-ratio of every response, nats; None for `rtol` nats,
            or for none where the flow has no pairs; infinite for none.
        progress: Whether to show a progress bar; None where it takes long, on a terminal.
        checkpoint: A file to write what the line has come to, every half a minute and at its end.
            The same call resumes it, after kill -9 too, to the bits of an undisturbed line on the
            same machine with the same versions. A file of another line is refused.

    Raises:
        ValueError: If the start has the wrong shape, is not finite or lies outside of the domain; a
            tolerance is below what the dtype can hold; clock, target and `reverse` do not go
            together; an option is given that has no effect on a dense line, or `dense` is False for
            a traced line or a clock of loss or margin; or `checkpoint` is the file of something
            else.
        RuntimeError: If it is differentiated in reverse mode.

    Accuracy: `rtol` per step, relative to state and time; the errors of times that were compared
        with closed forms are below 10·rtol in the median. Second and third derivatives through an
        event were compared at an rtol of 1e-11: they are right to 1e-6, and to 6e-6 where a wall is
        met and left again.
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
    """A line with the record of its steps; by another solver where it is stiff, unless fixed."""
    max_steps = _affordable_steps(solved[1], start) if max_steps is None else max_steps
    if traced:
        return _traced_line(solved, start, max_steps)
    line = _line_now(solved, start, max_steps)
    return line if fixed else _stabilised_if_stiff(line, start, max_steps)


def _traced_line(solved: tuple[Problem, Method], start: PyTree[Array], max_steps: int) -> Line:
    """A line within a program that is traced; whoever runs that sees to what becomes of it."""
    with exact_products():
        line, _ = _line(solved, start, max_steps)
    return nondifferentiable_backward(line, msg=_FORWARD_ALONE)


def _line_now(solved: tuple[Problem, Method], start: PyTree[np.ndarray], max_steps: int) -> Line:
    """A line in NumPy, followed again under the clock regular everywhere if its own led astray."""
    line, strayed = _as_numpy(_compiled_line(solved, start, max_steps))
    if strayed:
        problem, method = solved
        line, _ = _as_numpy(_compiled_line((safe_problem(problem), method), start, max_steps))
    return _trimmed(_fit(line, start))


def _stabilised_if_stiff(line: Line, start: PyTree[np.ndarray], max_steps: int) -> Line:
    """A line whose steps were too short for stability's sake, followed again by other ones."""
    problem = line._problem
    crawled = line.outcome == Outcome.step_limit and line.steps >= _CRAWLED
    if not (crawled and metric_is_constant(problem.flow, start)):
        return line
    lately = (line.times[-1] - line.times[-1 - _CRAWLED]) / _CRAWLED
    fastest = float(_compiled_radius(problem, jax.tree.map(lambda x: x[-1], line.states)))
    if not fastest * lately >= _UNSTABLE:
        return line
    clock = clock_named(steady_clock(problem.flow)).towards(problem.target)
    problem, rtol = dataclasses.replace(problem, clock=clock), float(problem.rtol)
    for solver in (RKC2(), ROCK4()) if rtol >= _LOOSE else (ROCK4(), RKC2()):
        line = _line_now((problem, make_method(solver, rtol=rtol)), start, max_steps)
        if line.outcome != Outcome.step_limit:
            break
    return line


def _check_reverse(until: AbstractTarget, reverse: bool) -> None:
    check_target(until)
    if reverse and until.of_state:
        raise ValueError(
            "Argument `reverse` must be False for a target that lies down the flow, but is True; "
            "use until.time or until.boundary."
        )


def _affordable_steps(method: Method, start: PyTree[Any]) -> int:
    """The steps to try where nobody says how many: of each, all stages are recorded."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(start))
    stages = method.solver.stages
    return int(np.clip(_ROOM // ((stages + _ENDS) * size), _FEWEST_STEPS, _MOST_STEPS))


def _line(
    solved: tuple[Problem, Method], start: PyTree[Array], max_steps: int
) -> tuple[Line, Bool[Array, ""]]:
    """A line, and whether its clock has led it off its way."""
    problem, method = solved
    lanes = begin(problem, jax.tree.map(lambda x: jnp.asarray(x)[..., None], start))
    lanes, tries, tape = advance(problem, method, lanes, max_steps=max_steps, tape_length=max_steps)
    assert tape is not None
    code = jnp.where(lanes.outcome == 0, jnp.int32(Outcome.step_limit), lanes.outcome)
    lanes = eqx.tree_at(lambda x: x.outcome, lanes, code)
    results = jax.tree.map(lambda x: x[..., 0], finish(problem, lanes))
    del results["saved"], tries
    times, states = _corners(problem, method, tape, start)
    line = Line(times=times, states=states, **results, _problem=problem, _method=method, _tape=tape)
    return line, lanes.strayed[0]


@partial(compiled, optimise=False)
def _compiled_radius(problem: Problem, state: PyTree[Array]) -> Float[Array, ""]:
    """The fastest rate of the free flow at a state, per flow time."""
    return spectral_radius(problem.flow.velocity, jax.tree.map(jnp.asarray, state))


@partial(compiled, optimise=False)
def _compiled_line(
    solved: tuple[Problem, Method], start: PyTree[Array], max_steps: int
) -> tuple[Line, Bool[Array, ""]]:
    return _line(solved, start, max_steps)


def _corners(problem: Problem, method: Method, tape: Tape, start: PyTree[Array]) -> tuple[Any, Any]:
    """Times and states at the start and at the end of each step; NaN after the last."""
    points = interpolated(method, _steps_as_lanes(tape.dense), tape.end[:, 0])
    states = jax.vmap(problem.flow.domain.state, in_axes=-1, out_axes=0)(points.coordinates)
    taken = jnp.arange(tape.end.shape[0], dtype=jnp.int32) < tape.count

    def with_first(first: Array, rest: Array) -> Array:
        mask = jnp.reshape(taken, (-1, *(1,) * (rest.ndim - 1)))
        return jnp.concatenate([jnp.asarray(first)[None], jnp.where(mask, rest, jnp.nan)])

    times = with_first(jnp.zeros((), points.time.dtype), points.time)
    return times, jax.tree.map(with_first, start, states)


def _steps_as_lanes(dense: PyTree[Array]) -> PyTree[Array]:
    """Recorded steps of a block of one lane, as one step of many lanes."""
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
    """A time as late as rounding in many steps can make the end of a line appear early."""
    return time * (1 + _ROUNDING * float(jnp.finfo(dtype).eps))


def _place_of(method: Method, dense: PyTree[Array], time: Float[Array, " q"]) -> Array:
    """Position of each time in its step; its derivatives are those of the implicit function."""
    frozen = lax.stop_gradient(dense)

    def ahead(place: Float[Array, " q"]) -> Float[Array, " q"]:
        return lax.stop_gradient(time) - interpolated(method, frozen, place).time

    zeros, ones = jnp.zeros_like(time), jnp.ones_like(time)
    first, last = ahead(zeros), ahead(ones)
    found = jnp.where(last > 0, ones, root(ahead, first, last, (first > 0) & (last <= 0)))
    found = lax.stop_gradient(jnp.where(first <= 0, zeros, found))
    return implicit(lambda place: time - interpolated(method, dense, place).time, found)


def _fit(line: Line, start: PyTree[Any]) -> Line:
    """A line as it is, unless nothing could be followed from its start."""
    shown = jax.tree.map(lambda x: np.asarray(x).tolist(), start)
    code = int(line.outcome)
    if code == Outcome.outside_domain:
        raise ValueError(
            "Argument `start` must lie in the domain of the flow, "
            f"{line._problem.flow.domain.described}, but is {shown}."
        )
    if code == Outcome.non_finite and int(line.steps) == 0:
        raise ValueError(
            f"Argument `start` must be finite, and the flow at it too, but the start is {shown}."
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
