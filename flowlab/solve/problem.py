"""The data of the integration: the problem to solve, and the state of the lanes of a block.

A lane is one flow line during its integration. Arrays of a block have the lanes on their last axis,
so that every component of a state is contiguous. Mathematics is written for one lane and mapped
over that axis. In float32 the flow time has that precision as well, the default rtol is 1e-4, and
the smallest possible is 6e-6 (in float64, 1e-6 and 1.1e-14).

d: components of a state; k: levels of the target; m: signals; n: lanes; s: times to save at.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from flowlab._checks import floating, integer, real
from flowlab.flow import AbstractFlow
from flowlab.measures import Measure
from flowlab.solve.clocks import AbstractClock, AbstractLevelClock, clock_named
from flowlab.solve.fingerprints import fingerprint, observed
from flowlab.solve.functions import check_functions
from flowlab.solve.rows import lanewise
from flowlab.until import AbstractTarget, Clock

__all__ = [
    "Lanes",
    "Point",
    "Problem",
    "cast",
    "check_counts",
    "filled",
    "listed_measures",
    "default_rtol",
    "check_states",
    "check_target",
    "lanewise",
    "make_problem",
    "on_device",
    "select",
    "steady_clock",
]

_SHORT = 8  # components up to which a vector is stored as separate arrays
_MOST_STEPS = 2**31 - 1  # the largest int of 32 bits
_SMALLEST_RTOL = 50.0  # machine epsilons


def select(mask: Bool[Array, " n"], new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    """`new` for the lanes in `mask`, `old` for the others; lanes are on the last axis of leaves."""

    def of_leaf(first: Array, second: Array) -> Array:
        if first is second:
            return first
        spread = jnp.reshape(mask, (1,) * (first.ndim - 1) + mask.shape)
        return jnp.where(spread, first, second)

    return jax.tree.map(of_leaf, new, old)


class Components(eqx.Module):
    """A short vector stored as separate components, each an array over the lanes."""

    parts: tuple[Float[Array, "*n"], ...]


class Point(eqx.Module):
    """The unknowns of a lane: coordinates, flow time, integrals of measures, integral of pressure.

    Coordinates that are a single short vector are stored as `Components`. Each operation then acts
    on a whole row of lanes without a transposition, three to four times faster than on an array of
    shape (n, d).

    `pressure` is the time integral of the least pressure on the walls that hold a lane, relative to
    the lane's free speed. As an unknown it has a tolerance, so that steps along walls resolve it,
    and the sign of the pressure follows from the interpolant; the velocity along the walls does not
    contain it. None for flows that do not slide.
    """

    packed_coordinates: PyTree[Float[Array, "*n"]]
    time: Float[Array, "*n"]
    integrals: tuple[Float[Array, "*n"], ...]
    pressure: Float[Array, "*n"] | None

    @classmethod
    def of(
        cls,
        coordinates: PyTree[Array],
        time: Array,
        integrals: tuple[Array, ...],
        pressure: Array | None,
    ) -> "Point":
        """The point of one lane from its coordinates, time, integrals and pressure."""
        return cls(split(coordinates), time, integrals, pressure)

    @property
    def coordinates(self) -> PyTree[Float[Array, "..."]]:
        """The coordinates in the structure that the domain uses."""
        return joined(self.packed_coordinates)


def split(coordinates: PyTree[Array]) -> PyTree[Array]:
    """The coordinates of one lane, as `Components` if they are a short vector."""
    if isinstance(coordinates, jax.Array) and coordinates.ndim == 1:
        if coordinates.size <= _SHORT:
            return Components(tuple(coordinates[i] for i in range(coordinates.size)))
    return coordinates


def joined(held: PyTree[Array]) -> PyTree[Array]:
    """The coordinates from the result of `split`, for one lane or for all lanes of a block."""
    return jnp.stack(held.parts) if isinstance(held, Components) else held


class Lanes(eqx.Module):
    """The state of the lanes of a block, from which the integration can be continued.

    Attributes:
        point: The unknowns of the lanes.
        progress: Value of each lane's clock.
        fraction: Fraction of the shared step that a lane takes; 0 once it is no longer active.
        walls: Mask of the walls that hold a lane, shape (m, n).
        level: Index of the next level of the target.
        level_times: Flow time at which each level was reached, NaN before; shape (k, n).
        saved: Coordinates at the times to save at, NaN before; leaves of shape (s, ..., n). None if
            the caller of the loop saves them instead.
        next_save: Index of the next time to save at.
        folds: The carries of the measures' folds.
        outcome: Code of `Outcome`; 0 while a lane runs.
        evicted: Whether a lane slowed down its block, and must be continued elsewhere.
        strayed: Whether a lane went wrong under its clock, and must start again.
        absorbed: Whether a lane has been absorbed by the boundary.
        steps: Number of accepted steps.
        signals: Values of the signals, each positive until its event; shape (m, n).
        start: Coordinates at the start.
        start_velocity: Velocity at the start, along the walls; None if there are no measures.
        start_value: Potential at the start, or the margin if that is the clock.
        span: Length of the clock's span, from the start to the last level.
        atol: Absolute tolerance of the state; None for no absolute tolerance.
    """

    point: Point
    progress: Float[Array, "*n"]
    fraction: Float[Array, "*n"]
    walls: Bool[Array, "m *n"]
    level: Int[Array, "*n"]
    level_times: Float[Array, "k *n"]
    saved: PyTree[Float[Array, "s ..."]] | None
    next_save: Int[Array, "*n"]
    folds: tuple[PyTree[Array], ...]
    outcome: Int[Array, "*n"]
    evicted: Bool[Array, "*n"]
    strayed: Bool[Array, "*n"]
    absorbed: Bool[Array, "*n"]
    steps: Int[Array, "*n"]
    signals: Float[Array, "m *n"]
    start: PyTree[Float[Array, "*n"]]
    start_velocity: PyTree[Float[Array, "*n"]] | None
    start_value: Float[Array, "*n"]
    span: Float[Array, "*n"]
    atol: Float[Array, "*n"] | None

    @property
    def active(self) -> Bool[Array, "*n"]:
        """True for lanes that are still integrated in this block."""
        return (self.outcome == 0) & ~self.evicted


class Problem(eqx.Module):
    """A problem: flow, target, measures, clock and tolerances.

    Arrays are leaves of the PyTree, so that new values need no compilation.

    Attributes:
        timed: Whether there is a time limit.
        reverse: Whether lines follow the flow backwards.
        alone: Whether a single line is integrated, which cannot slow down others.
        tangents: Whether derivatives are taken through events.
        operations: The fingerprint of the user's functions, a part of the key of compiled programs.
    """

    flow: AbstractFlow
    target: AbstractTarget
    measures: tuple[Measure, ...]
    save_at: Float[Array, " s"]
    rtol: Float[Array, ""]
    atol: Float[Array, ""] | None
    clock: AbstractClock
    timed: bool = eqx.field(static=True)
    reverse: bool = eqx.field(static=True)
    alone: bool = eqx.field(static=True)
    tangents: bool = eqx.field(static=True)
    operations: str = eqx.field(static=True, default="")

    @property
    def ends_on_level(self) -> bool:
        """True if steps end exactly at levels of loss or margin, by the clock."""
        return isinstance(self.clock, AbstractLevelClock)

    @property
    def ends_by_clock(self) -> bool:
        """True if steps end exactly at levels or at times, by the clock."""
        return self.ends_on_level or self.clock.keeps_time

    @property
    def eventful(self) -> bool:
        """True if events may happen within a step, so that the field of a lane may change."""
        limited = self.timed or (self.save_at.size > 0 and not self.clock.keeps_time)
        located = not self.clock.ends_on(self.target)
        domain = self.flow.domain
        walled = len(domain.walls()[0]) > 0 or (domain.absorbing and not self.ends_on_level)
        return limited or located or walled

    @property
    def levels(self) -> int:
        """Number of levels of the target."""
        return np.shape(self.target.levels)[0]


def make_problem(
    flow: AbstractFlow,
    *,
    until: AbstractTarget,
    dtype: Any,
    state: PyTree[Any] = None,
    clock: Clock | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    measures: Sequence[Measure] = (),
    save_at: npt.ArrayLike | None = None,
    reverse: bool = False,
    alone: bool = False,
    tangents: bool = False,
    steady: bool = False,
) -> Problem:
    """A problem from the user's arguments, checked, with arrays in the dtype of the integration.

    Most arguments are those of `flow_line`. `state` is one state, whose shapes are used to check
    the user's functions; None for no check, as in a traced call. `alone` says that a single line is
    integrated, `tangents` that derivatives are taken through events, and `steady` that the solver
    is for stiff flows, so that the default clock is `steady_clock`.

    Raises:
        ValueError: If a tolerance is out of range, the clock is not one of the target's, the times
            in `save_at` are not positive and increasing, or a measure is not defined for the flow.
    """
    whole = alone or save_at is not None
    clock = steady_clock(flow) if clock is None and steady else clock
    kind = _checked_clock(clock, flow, until, reverse=reverse, whole=whole)
    until.check(flow)
    rtol = default_rtol(dtype) if rtol is None else rtol
    _check_tolerances(rtol, atol, dtype)
    _check_measures(listed_measures(measures), flow)
    problem = Problem(
        flow=cast(flow, dtype),
        target=cast(until, dtype),
        measures=cast(tuple(measures), dtype),
        save_at=on_device(_checked_times(save_at), dtype),
        rtol=on_device(rtol, dtype),
        atol=None if atol is None else on_device(atol, dtype),
        clock=kind.towards(until),
        timed=bool(np.isfinite(until.time_limit)),
        reverse=reverse,
        alone=alone,
        tangents=tangents,
    )
    if state is None:
        return problem
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), state)
    return dataclasses.replace(problem, operations=fingerprint(problem, state, observed))


def steady_clock(flow: AbstractFlow) -> Clock:
    """The default clock for stabilised solvers: time, or arc length on an absorbing boundary.

    Under time, the Jacobian keeps a real spectrum; under arc length it does if the metric is a
    multiple of the identity. Arc length also measures the small motion in the fastest directions,
    which makes it slow for stiff lines. Time is not regular at an absorbing boundary, which a line
    reaches in finite time at infinite speed.
    """
    return "arc_length" if flow.domain.absorbing else "time"


def default_rtol(dtype: Any) -> float:
    """The default relative tolerance: 1e-6 in float64, 1e-4 in float32."""
    return 1e-6 if np.dtype(dtype) == np.float64 else 1e-4


def cast(tree: PyTree[Any], dtype: Any) -> PyTree[Any]:
    """A PyTree with its numbers converted to arrays, floats to a given dtype."""

    def leaf(value: Any) -> Any:
        if isinstance(value, float | np.ndarray | np.floating):
            value = np.asarray(value)
            floating = jnp.issubdtype(value.dtype, jnp.floating)
            return on_device(value, dtype if floating else None)
        if not eqx.is_array_like(value):
            return value
        array = jnp.asarray(value)  # a whole number of Python keeps its weak type
        return jnp.asarray(value, dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(leaf, tree)


def on_device(value: Any, dtype: Any = None) -> Array:
    """Numbers as a JAX array of a dtype, converted on the host, without a compiled program."""
    if isinstance(value, jax.Array):
        return jnp.asarray(value, dtype)
    return jax.device_put(np.asarray(value, dtype))  # asarray would compile a program for its shape


def filled(indices: Int[np.ndarray, " n"], length: int) -> Int[np.ndarray, " m"]:
    """Indices padded to a length with repetitions of the last index."""
    return np.concatenate([indices, np.repeat(indices[-1:], length - len(indices))])


def check_counts(block_size: int | None, max_steps: int) -> None:
    """Refuse a block size or a largest number of steps that is not a positive int."""
    if block_size is not None:
        integer("block_size", block_size)
    integer("max_steps", max_steps, most=_MOST_STEPS)


def check_target(until: Any) -> None:
    """Refuse an argument `until` that is not a target."""
    if not isinstance(until, AbstractTarget):
        raise ValueError(
            f"Argument `until` must be a target such as until.loss_below(0.1), but is {until!r}."
        )


def _checked_clock(
    clock: Clock | None,
    flow: AbstractFlow,
    until: AbstractTarget,
    *,
    reverse: bool,
    whole: bool,
) -> type[AbstractClock]:
    """The clock that was asked for, or the target's default; checked for target and measures."""
    check_target(until)
    possible = until.clocks(flow)
    others = tuple(n for n in possible if not issubclass(clock_named(n), AbstractLevelClock))
    possible = others if reverse else possible
    if clock is None:
        return clock_named((others if whole else possible)[0])
    if clock not in possible:
        listed = ", ".join(f'"{name}"' for name in possible)
        raise ValueError(f"Argument `clock` must be one of {listed} here, but is {clock!r}.")
    return clock_named(clock)


def _check_tolerances(rtol: float, atol: float | None, dtype: Any) -> None:
    smallest = _SMALLEST_RTOL * float(jnp.finfo(dtype).eps)
    if not (isinstance(rtol, int | float) and smallest <= rtol < 1):
        name = np.dtype(dtype).name
        cure = "; give the starts as float64 for less" if name == "float32" else ""
        raise ValueError(
            f"Argument `rtol` must lie between {smallest:.2g}, the least for {name}, and 1, "
            f"but is {rtol!r}{cure}."
        )
    if atol is not None and not (np.isfinite(atol) and atol >= 0):
        raise ValueError(f"Argument `atol` must be non-negative and finite, but is {atol!r}.")


def listed_measures(measures: Any) -> Any:
    """The measures, unchanged.

    Raises:
        ValueError: If `measures` is not a list, for example a single measure.
    """
    if isinstance(measures, str) or not isinstance(measures, Iterable):
        single = f"a single one, of {', '.join(getattr(measures, 'names', ()))}"
        given = single if isinstance(measures, Measure) else repr(measures)
        raise ValueError(
            "Argument `measures` must be a list of measures such as [measures.path_length()], "
            f"but is {given}."
        )
    return measures


def _check_measures(measures: Sequence[Any], flow: AbstractFlow) -> None:
    for measure in measures:
        if not isinstance(measure, Measure):
            raise ValueError(
                "Argument `measures` must hold measures such as measures.path_length(), "
                f"but holds {measure!r}."
            )
        measure.check(flow)
    _check_names_differ(measures)


def _check_names_differ(measures: Sequence[Measure]) -> None:
    names = [name for measure in measures for name in measure.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"Argument `measures` must not give one name twice, but gives `{twice[0]}` twice."
        )


def _checked_times(save_at: npt.ArrayLike | None) -> np.ndarray:
    if save_at is None:
        return np.zeros(0)
    times = np.asarray(save_at, dtype=float)
    bad = times.ndim != 1 or not np.all(np.isfinite(times)) or np.any(times <= 0)
    if bad or np.any(np.diff(times) <= 0):
        raise ValueError(
            "Argument `save_at` must hold positive increasing flow times, "
            f"but is {np.asarray(save_at).tolist()}."
        )
    return times


def check_states(
    name: str, states: PyTree[ArrayLike], flow: AbstractFlow, *, batched: bool
) -> tuple[PyTree[Any], Any]:
    """States as arrays of one floating dtype, and this dtype; a traced state is unchanged.

    Args:
        name: The name of the argument, for messages.
        states: One state, or many with a leading axis.
        flow: The flow.
        batched: Whether there is a leading axis.

    Raises:
        ValueError: If `states` does not hold numbers, or has a shape that the flow does not accept.
    """
    if not isinstance(flow, AbstractFlow):
        raise ValueError(
            "Argument `flow` must be a flow such as preference_flow(DPO(0.1), RatioPlane()), "
            f"but is {flow!r}."
        )
    leaves, treedef = jax.tree.flatten(_array_if_list(name, states))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return jax.tree.unflatten(treedef, leaves), jnp.result_type(*leaves)
    arrays = [floating(real(name, leaf)) for leaf in leaves]
    dtype = np.result_type(*arrays, np.float32)
    shapes = [array.shape for array in arrays]
    expected = flow.state_shape
    shape = expected or (shapes[0][1:] if batched else shapes[0])
    wanted = "(n, " + ", ".join(map(str, shape)) + ")" if batched else str(tuple(shape))
    one_array = len(arrays) == 1 and (expected is not None or jax.tree.structure(0) == treedef)
    fits = shapes[0][int(batched) :] == tuple(shape) and len(shapes[0]) == len(shape) + batched
    if one_array and not (fits and len(shape) > 0):
        wanted = wanted if expected else ("(n, d)" if batched else "(d,)")
        raise ValueError(f"Argument `{name}` must have shape {wanted}, but has shape {shapes[0]}.")
    if batched and (len({s[:1] for s in shapes}) != 1 or shapes[0][0] == 0):
        raise ValueError(
            f"Argument `{name}` must hold at least one start, and equally many in every leaf, "
            f"but has shapes {shapes}."
        )
    if not sum(int(np.prod(shape[int(batched) :], dtype=np.int64)) for shape in shapes):
        raise ValueError(
            f"Argument `{name}` must have at least one component, but has shape {shapes[0]}."
        )
    cast = [array.astype(dtype) for array in arrays]
    states = jax.tree.unflatten(treedef, cast)
    _check_structure(name, states, flow, batched)
    check_functions(name, flow, states, batched)
    return states, dtype


def _check_structure(name: str, states: PyTree[Any], flow: AbstractFlow, batched: bool) -> None:
    """Refuse a PyTree that has another structure than the states of the flow, if that is known."""
    if flow.state_shape is not None or flow.reference_state is None:
        return

    def shapes(tree: PyTree[Any], lead: int) -> PyTree[tuple[int, ...]]:
        return jax.tree.map(lambda leaf: np.shape(leaf)[lead:], tree)

    wanted, given = shapes(flow.reference_state, 0), shapes(states, int(batched))
    if wanted != given:
        lead = ", behind an axis for the starts" if batched else ""
        raise ValueError(
            f"Argument `{name}` must have the leaves of a state of the policy, of the shapes "
            f"{wanted}{lead}, but has {given}."
        )


def _array_if_list(name: str, states: Any) -> Any:
    """Convert lists and tuples of numbers to arrays; other PyTrees are unchanged."""
    if states is None:
        raise ValueError(f"Argument `{name}` must hold numbers, but is None.")
    plain = isinstance(states, tuple) and all(isinstance(x, Real) for x in states)
    if not (isinstance(states, list) or plain):
        return states
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(states))
    return jnp.asarray(states) if traced else real(name, states)
