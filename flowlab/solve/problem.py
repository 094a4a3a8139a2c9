"""The problem that a block of lanes solves, and where these are.

A lane is one start on its way. Arrays of a block carry the lanes on their last axis, so that every
component of a state is contiguous; mathematics is written for one lane and mapped over that axis.

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

_SHORT = 8  # components up to which each is an array of its own
_MOST_STEPS = 2**31 - 1  # which 32 bits count
_SMALLEST_RTOL = 50.0  # machine epsilons


def select(mask: Bool[Array, " n"], new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    """`new` for the lanes of a mask and `old` for the others; lanes on the last axis."""

    def of_leaf(first: Array, second: Array) -> Array:
        if first is second:
            return first
        spread = jnp.reshape(mask, (1,) * (first.ndim - 1) + mask.shape)
        return jnp.where(spread, first, second)

    return jax.tree.map(of_leaf, new, old)


class Components(eqx.Module):
    """A short vector as its components, each an array of its own over the lanes."""

    parts: tuple[Float[Array, "*n"], ...]


class Point(eqx.Module):
    """The integrated quantities: coordinates, flow time, integrals of measures, and pressure.

    Coordinates that are one short vector are held as its `Components`: what is computed for a lane
    is then computed for a whole row of lanes at once, without a transposition, which is three to
    four times faster than on an array of shape (n, d).

    The least pressure on the walls that hold a lane, over the size of its free velocity, is
    integrated over time so that steps along walls resolve it, and that its sign can be read from
    the interpolant: a step would not see it otherwise, as what a wall takes from a velocity is
    missing in it. None where lanes do not slide.
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
        """The point of one lane."""
        return cls(split(coordinates), time, integrals, pressure)

    @property
    def coordinates(self) -> PyTree[Float[Array, "..."]]:
        """The coordinates, in the shape that the domain takes."""
        return joined(self.packed_coordinates)


def split(coordinates: PyTree[Array]) -> PyTree[Array]:
    """The coordinates of one lane with a short vector as its components."""
    if isinstance(coordinates, jax.Array) and coordinates.ndim == 1:
        if coordinates.size <= _SHORT:
            return Components(tuple(coordinates[i] for i in range(coordinates.size)))
    return coordinates


def joined(held: PyTree[Array]) -> PyTree[Array]:
    """The inverse of `split`, for one lane or for all of a block."""
    return jnp.stack(held.parts) if isinstance(held, Components) else held


class Lanes(eqx.Module):
    """State of the lanes of a block, from which they can be continued.

    Attributes:
        point: The unknowns that are integrated.
        progress: Value of each lane's clock.
        fraction: Part of the shared step that a lane takes; 0 once it is no longer active.
        walls: Which walls hold a lane, shape (m, n).
        level: Index of the next level of the target.
        level_times: Flow time at which each level was met, NaN before; shape (k, n).
        saved: Coordinates at the times to save at, NaN before; leaves of shape (s, ..., n); None
            where whoever runs the loop takes them from the point.
        next_save: Index of the next time to save at.
        folds: What the measures carry.
        outcome: Code of `Outcome`; 0 while a lane runs.
        evicted: Whether a lane held up its block, and is to be continued elsewhere.
        strayed: Whether a lane's clock has led it astray, so that it must begin again.
        absorbed: Whether a lane has come to the boundary.
        steps: Accepted steps.
        signals: Positive until an event happens; shape (m, n).
        start: Coordinates at the start.
        start_velocity: Velocity there, along the walls; None where nothing is measured.
        start_value: Potential at the start, or margin where that is the clock.
        span: Length of the way in the clock.
        atol: Absolute tolerance of the state; None for none.
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
        """True if a lane is still on its way in this block."""
        return (self.outcome == 0) & ~self.evicted


class Problem(eqx.Module):
    """A problem and its tolerances; its arrays are leaves, and new values need no compilation.

    `alone`: a single line is solved, which holds up no other. `tangents`: derivatives pass through
    its events. `operations`: the fingerprint of the user's functions, part of the key of compiled
    programs.
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
        """True if the clock itself ends on the levels of the target."""
        return isinstance(self.clock, AbstractLevelClock)

    @property
    def ends_by_clock(self) -> bool:
        """True if the clock itself ends on anything: levels of the target, or times to save at."""
        return self.ends_on_level or self.clock.keeps_time

    @property
    def eventful(self) -> bool:
        """True if there can be events within a step, at which the field of a lane may change."""
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
    """A problem from the user's arguments, checked, with arrays in the dtype of the work.

    `state` gives the shapes of one state, with which functions of the user are checked; None where
    everything is traced. `steady`: the solver is one of stiff flows, so that `steady_clock` is the
    default clock.

    Raises:
        ValueError: If a tolerance cannot be held, a clock cannot measure the way to the target, a
            time to save at is not positive and increasing, or a measure has no meaning here.
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

    Time keeps the spectrum real, and so does arc length where the metric is a multiple of the
    identity. Arc length also counts the small motion across the fastest
    directions, which slows a stiff line down; time does not, but an absorbing boundary is reached
    in a finite time, at infinite speed.
    """
    return "arc_length" if flow.domain.absorbing else "time"


def default_rtol(dtype: Any) -> float:
    """The relative tolerance where the caller gives none: 1e-6 in float64, 1e-4 in float32."""
    return 1e-6 if np.dtype(dtype) == np.float64 else 1e-4


def cast(tree: PyTree[Any], dtype: Any) -> PyTree[Any]:
    """A PyTree whose numbers are arrays, floating ones in a given dtype."""

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
    """Numbers as a JAX array of a dtype, transferred without a compiled conversion."""
    if isinstance(value, jax.Array):
        return jnp.asarray(value, dtype)
    return jax.device_put(np.asarray(value, dtype))  # asarray would compile a program for its shape


def filled(indices: Int[np.ndarray, " n"], length: int) -> Int[np.ndarray, " m"]:
    """Indices padded to a length with the last one."""
    return np.concatenate([indices, np.repeat(indices[-1:], length - len(indices))])


def check_counts(block_size: int | None, max_steps: int) -> None:
    """Refuse numbers of starts or of steps that are not positive ints."""
    if block_size is not None:
        integer("block_size", block_size)
    integer("max_steps", max_steps, most=_MOST_STEPS)


def check_target(until: Any) -> None:
    """Refuse what is not a target."""
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
    """The clock asked for, or else the target's default, checked against target and measures."""
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
    """The measures as a list, checked.

    Raises:
        ValueError: If it is not a list, such as a single measure.
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
    """States as arrays of one floating dtype, and that dtype; a traced state is unchanged.

    Args:
        name: What the caller calls them.
        states: One state, or many with a leading axis.
        flow: What they are states of.
        batched: Whether there is a leading axis.

    Raises:
        ValueError: If they are not numbers, or of a shape that the flow cannot take.
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
    """Refuse a PyTree whose structure is not that of the flow's states, where these are known."""
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
    """Lists and tuples of numbers as arrays; other PyTrees unchanged."""
    if states is None:
        raise ValueError(f"Argument `{name}` must hold numbers, but is None.")
    plain = isinstance(states, tuple) and all(isinstance(x, Real) for x in states)
    if not (isinstance(states, list) or plain):
        return states
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(states))
    return jnp.asarray(states) if traced else real(name, states)
