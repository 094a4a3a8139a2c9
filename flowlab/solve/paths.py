"""Many paths of a flow with noise, until a time or until they leave a set.

    dy = (−M∇L + c) dt + B dW        (Itô; see `noise`)

Steps are Euler–Maruyama steps of constant length h. A path may leave a set within a step and return
before the end of the step. Between the two ends of a step, the path is to leading order a Brownian
bridge. Its probability of crossing a plane, and the distribution of the time of its first crossing,
are known in closed form, and whether and when a path has left is drawn from them
(`brownian_bridge`). Exit times then have an error of O(h), like the paths themselves, instead of
O(√h).

n: paths; d: numbers in a state; k: components of W; m: boundaries.

Source: Gobet, Stochastic Processes and their Applications 87 (2000) 167–197.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, PyTree

from flowlab._checks import integer, positive
from flowlab.flow import AbstractFlow
from flowlab.solve.brownian_bridge import crossing_fraction, survival_probability
from flowlab.solve.compilation import compiled
from flowlab.solve.exits import AbstractExit, exit_at_level
from flowlab.solve.fingerprints import fingerprint, motion_of
from flowlab.solve.noise import AbstractNoise
from flowlab.solve.problem import cast, check_counts, check_states, filled
from flowlab.until import AbstractTarget, Outcome, counted

__all__ = ["NoisyRuns", "noisy_runs", "vectors"]

_CHUNK = 256  # steps between two checks of which paths have ended
_BLOCK = {"cpu": 512}  # paths that are computed together; as many as a sweep's starts elsewhere
_LARGE_BLOCK = 65_536
_ROOM = 2**26  # numbers in the matrices of a block
_CROSSED = -1  # the outcome of a path that has crossed a boundary in a step, until it is located
_WHOLE = 1e-9  # rounding of a number of steps that should be whole


@dataclass(frozen=True)
class NoisyRuns:
    """Results of many paths, as NumPy arrays.

    Attributes:
        starts: The starts, shape (n, d), or a PyTree of leaves (n, ...).
        outcome: A code of `until.Outcome` for every path, shape (n,). `reached`: the path left the
            set, reached the level, or lasted until the time that is the target. `at_wall`: before
            that, an axis of a positive orthant absorbed the path.
        exit_time: Flow time at which each path left the set or reached the level, shape (n,). NaN
            for paths that did not, and for all paths if the target is a time.
        end_time: Flow time at which each path ended, for whatever reason; NaN for starts that are
            not finite or outside the domain.
        end: States at the ends, leaves of shape (n, ...); an absorbed component is 0.
        step: Length of a step, in flow time.
    """

    starts: PyTree[Float[np.ndarray, "n ..."]]
    outcome: Int[np.ndarray, " n"]
    exit_time: Float[np.ndarray, " n"]
    end_time: Float[np.ndarray, " n"]
    end: PyTree[Float[np.ndarray, "n ..."]]
    step: float

    def __repr__(self) -> str:
        """A summary on one line: the number of paths, and how they ended."""
        named = counted(self.outcome)
        return f"NoisyRuns({len(self.outcome):,} paths of steps {self.step:g}: {named})"

    @property
    def exited(self) -> Bool[np.ndarray, " n"]:
        """Mask of the paths that left the set or reached the level."""
        return np.isfinite(self.exit_time)

    def mean_exit_time(self) -> tuple[float, float]:
        """The mean of the exit times, and its standard error.

        Raises:
            ValueError: If the exit time of a path is unknown, or there are fewer than two paths.
        """
        still = int(np.sum(~self.exited))
        if still or len(self.exit_time) < 2:
            raise ValueError(
                "A mean exit time needs at least two paths, all with known exit times, "
                f"but they are unknown for {still} of {len(self.exit_time)}."
            )
        spread = np.std(self.exit_time, ddof=1) / np.sqrt(len(self.exit_time))
        return float(np.mean(self.exit_time)), float(spread)


def noisy_runs(
    flow: AbstractFlow,
    starts: PyTree[Float[ArrayLike, "n ..."]],
    *,
    noise: AbstractNoise,
    until: AbstractTarget | AbstractExit,
    step: float,
    seed: int,
    block_size: int | None = None,
    max_steps: int = 100_000_000,
) -> NoisyRuns:
    """Simulate paths of a flow with noise, one from each start, until a time or an exit.

    For many paths from one start, repeat the start: `np.tile(start, (10_000, 1))`. Only the ends of
    paths are kept. On a positive orthant, an axis absorbs the paths that reach it.

    Args:
        flow: The flow, on a domain without walls.
        starts: Shape (n, d), or a PyTree with a leading axis n. The paths are computed in its
            dtype, float32 or float64.
        noise: `Thermal(temperature)` or `Minibatch(learning_rate, batch_size)`.
        until: A time, a single level such as `until.loss_below(0.1)`, or a set to leave:
            `exit_from(inside)` or `exit_from_interval(low, high)`.
        step: Length of a step in flow time; shortened so that a whole number of steps fits into the
            time or time limit.
        seed: Seed of the noise, a non-negative int. Each path has its own stream of random numbers,
            so that it depends neither on its block nor on other paths.
        block_size: Number of paths that are computed together; None for 512 on a CPU and 65,536
            elsewhere, or fewer if the matrices of the states need much memory.
        max_steps: Number of steps after which the outcome is `step_limit`.

    Raises:
        ValueError: If the starts have the wrong shape, the flow has walls or cannot have the noise,
            or a number is out of its range.

    Accuracy: weak order 1 in `step`, for states and exit times; crossings within a step are drawn
        as for constant coefficients and a flat boundary. Choose a step that is short compared with
        the fastest time scale of the flow, and halve it to check.

    Source: Gobet, Stochastic Processes and their Applications 87, 167–197 (2000), for the order.
        The time of first crossing of a bridge is that of an inverse Gaussian variable, drawn after
        Michael, Schucany and Haas, The American Statistician 30, 88–90 (1976).
    """
    starts, dtype = check_states("starts", starts, flow, batched=True)
    _check(flow, noise, step, seed, block_size, max_steps)
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    with jax.enable_x64(dtype == np.float64):
        noise.check(flow, jax.tree.map(jnp.asarray, first))
        problem = _problem(flow, noise, until, first, step, seed, max_steps)
        paths = _finished(problem, vectors(starts), block_size)
        ends = jax.vmap(ravel_pytree(problem.example)[1])(jnp.asarray(paths.state))
    return _runs(problem, starts, paths, jax.tree.map(np.asarray, ends))


class _Problem(eqx.Module):
    """The data that all paths share; `example` is a state, `last` the largest number of steps."""

    flow: AbstractFlow
    noise: AbstractNoise
    exit: AbstractExit | None
    step: Float[Array, ""]
    last: Int[Array, ""]
    seed: PRNGKeyArray
    example: PyTree[Array]
    at_last: Outcome = eqx.field(static=True)
    operations: str = eqx.field(static=True, default="")

    @property
    def absorbing(self) -> bool:
        return self.flow.domain.absorbing

    def state(self, vector: Float[Array, " d"]) -> PyTree[Array]:
        return ravel_pytree(self.example)[1](vector)

    def gaps(self, vector: Float[Array, " d"]) -> Float[Array, " m"]:
        """The gaps at a state: those of the set to leave, then the distances from the axes."""
        sets = [] if self.exit is None else [self.exit.gaps(self.flow, self.state(vector))]
        return jnp.concatenate([*sets, vector if self.absorbing else vector[:0]])

    def drift(self, vector: Float[Array, " d"]) -> Float[Array, " d"]:
        state = self.state(vector)
        velocity = ravel_pytree(self.flow.velocity(state))[0]
        return velocity + self.noise.drift(self.flow, state)

    def factor(self, vector: Float[Array, " d"]) -> Float[Array, "d k"]:
        return self.noise.factor(self.flow, self.state(vector))


class _Paths(eqx.Module):
    """State of paths; their random numbers depend on `index` and `count` alone.

    Attributes:
        index: Number of the path.
        state: State before the next step; for a path that has ended, the final state.
        after: State after the last step, for a path that crossed a boundary in that step.
        survival: Probability that no boundary was crossed, for each boundary, conditional on the
            states at the ends of the steps.
        threshold: The survival below which a boundary counts as crossed, drawn once per boundary.
        count: Number of whole steps.
        part: Fraction of a further step until the path ended.
        outcome: A code of `Outcome`, or -1 for a crossing that is not located yet.
    """

    index: Int[Array, "*n"]
    state: Float[Array, "*n d"]
    after: Float[Array, "*n d"]
    survival: Float[Array, "*n m"]
    threshold: Float[Array, "*n m"]
    count: Int[Array, "*n"]
    part: Float[Array, "*n"]
    outcome: Int[Array, "*n"]


def _problem(
    flow: AbstractFlow,
    noise: AbstractNoise,
    until: Any,
    first: PyTree[np.ndarray],
    step: float,
    seed: int,
    max_steps: int,
) -> _Problem:
    left, limit, at_last = _checked_end(until, flow)
    dtype = jax.tree.leaves(first)[0].dtype
    steps = np.ceil(limit / step * (1 - _WHOLE)) if np.isfinite(limit) else np.inf
    if steps > max_steps:
        steps, at_last = max_steps, Outcome.step_limit
    elif np.isfinite(steps):
        step = limit / steps

    problem = _Problem(
        flow=cast(flow, dtype),
        noise=cast(noise, dtype),
        exit=cast(left, dtype),
        step=jnp.asarray(step, dtype),
        last=jnp.asarray(steps, jnp.int32),
        seed=jax.random.key(seed),
        example=jax.tree.map(jnp.asarray, first),
        at_last=at_last,
    )
    return dataclasses.replace(problem, operations=fingerprint(problem, first, _observed))


def _observed(problem: _Problem, state: PyTree[Array]) -> tuple[Any, ...]:
    """All results of a problem's functions at a state, for its fingerprint."""
    vector, _ = ravel_pytree(state)
    seen = problem.drift(vector), problem.factor(vector), problem.gaps(vector)
    return (*seen, motion_of(problem.flow, state))


def _finished(
    problem: _Problem, starts: Float[np.ndarray, "n d"], block_size: int | None
) -> _Paths:
    """The paths at their ends.

    Blocks of paths are advanced some steps at a time, and refilled with unfinished paths.
    """
    count, dimension = starts.shape
    width = min(block_size or _block_size(dimension), count)
    blocks = [filled(np.arange(count)[i : i + width], width) for i in range(0, count, width)]
    begun = [_begun(problem, block.astype(np.int32), starts[block]) for block in blocks]
    paths = jax.tree.map(lambda x: np.empty((count, *x.shape[1:]), x.dtype), begun[0])
    for block, part in zip(blocks, begun, strict=True):
        _write(paths, block, part)
    while len(going := np.flatnonzero(paths.outcome == Outcome.running)):
        block = filled(going[:width], width)
        _write(paths, block, _advanced(problem, _read(paths, block)))
    crossed = np.flatnonzero(paths.outcome == _CROSSED)
    for i in range(0, len(crossed), width):
        block = filled(crossed[i : i + width], width)
        _write(paths, block, _located(problem, _read(paths, block)))
    return paths


def _read(paths: _Paths, block: Int[np.ndarray, " b"]) -> _Paths:
    return jax.tree.map(lambda values: values[block], paths)


def _write(paths: _Paths, block: Int[np.ndarray, " b"], part: _Paths) -> None:
    def write(into: np.ndarray, values: Array) -> None:
        into[block] = np.asarray(values)

    jax.tree.map(write, paths, part)


@partial(compiled, optimise=False)
def _begun(problem: _Problem, index: Int[Array, " n"], starts: Float[Array, "n d"]) -> _Paths:
    def begun(index: Int[Array, ""], vector: Float[Array, " d"]) -> _Paths:
        gaps = problem.gaps(vector)
        return _Paths(
            index=index,
            state=vector,
            after=vector,
            survival=jnp.ones_like(gaps),
            threshold=jax.random.uniform(_keys(problem, index)[1], gaps.shape, vector.dtype),
            count=jnp.int32(0),
            part=jnp.zeros((), vector.dtype),
            outcome=_first_outcome(problem, vector, gaps),
        )

    return jax.vmap(begun)(index, starts)


def _first_outcome(
    problem: _Problem, vector: Float[Array, " d"], gaps: Float[Array, " m"]
) -> Int[Array, ""]:
    sets = len(gaps) - (vector.size if problem.absorbing else 0)
    field = jnp.concatenate([problem.drift(vector), problem.factor(vector).ravel(), gaps])
    cases = (
        (~jnp.all(jnp.isfinite(vector)), Outcome.non_finite),
        (~problem.flow.domain.contains(problem.state(vector)), Outcome.outside_domain),
        (~jnp.all(jnp.isfinite(field)), Outcome.non_finite),
        (jnp.any(gaps[:sets] <= 0), Outcome.started_past_target),
    )
    codes = [jnp.int32(code) for _, code in cases]
    return jnp.select([case for case, _ in cases], codes, jnp.int32(Outcome.running))


def _keys(problem: _Problem, index: Int[Array, ""]) -> tuple[Any, Any, Any]:
    """The random keys of a path: for its steps, its thresholds, and its crossing."""
    steps, thresholds, crossing = jax.random.split(jax.random.fold_in(problem.seed, index), 3)
    return steps, thresholds, crossing


@compiled
def _advanced(problem: _Problem, paths: _Paths) -> _Paths:
    """The paths of a block some steps later; a path that crosses a boundary stays before it."""
    keys = jax.vmap(lambda index: _keys(problem, index)[0])(paths.index)

    def going(carry: tuple[Array, _Paths]) -> Array:
        number, paths = carry
        return (number < _CHUNK) & jnp.any(paths.outcome == Outcome.running)

    def on(carry: tuple[Array, _Paths]) -> tuple[Array, _Paths]:
        number, paths = carry
        return number + 1, jax.vmap(partial(_step, problem))(keys, paths)

    return lax.while_loop(going, on, (jnp.int32(0), paths))[1]


def _step(problem: _Problem, key: PRNGKeyArray, path: _Paths) -> _Paths:
    """A path after one step; unchanged if it has ended, or if it crosses a boundary in the step."""
    before = path.state
    factor = problem.factor(before)
    after = _moved(problem, jax.random.fold_in(key, path.count), before, factor)
    gaps, ahead = problem.gaps(before), problem.gaps(after)
    survival = path.survival * survival_probability(gaps, ahead, _spread(problem, before, factor))
    finite = jnp.all(jnp.isfinite(after))
    crossed = finite & jnp.any(survival <= path.threshold)
    lost = ~finite | (~crossed & jnp.any(jnp.isnan(ahead)))
    last = path.count + 1 >= problem.last
    code = jnp.select(
        [lost, crossed, last],
        [jnp.int32(code) for code in (Outcome.non_finite, _CROSSED, problem.at_last)],
        jnp.int32(Outcome.running),
    )
    stays = lost | crossed
    moved = _Paths(
        index=path.index,
        state=jnp.where(stays, before, after),
        after=after,
        survival=survival,
        threshold=path.threshold,
        count=path.count + (~stays).astype(jnp.int32),
        part=path.part,
        outcome=code,
    )
    runs = path.outcome == Outcome.running
    return jax.tree.map(lambda new, old: jnp.where(runs, new, old), moved, path)


def _moved(
    problem: _Problem, key: PRNGKeyArray, before: Float[Array, " d"], factor: Float[Array, "d k"]
) -> Float[Array, " d"]:
    """The state after one step of Euler–Maruyama, y + h b + B √h ξ."""
    noise = jnp.sqrt(problem.step) * jax.random.normal(key, factor.shape[1:], factor.dtype)
    return before + (problem.step * problem.drift(before) + factor @ noise)


def _spread(
    problem: _Problem, vector: Float[Array, " d"], factor: Float[Array, "d k"]
) -> Float[Array, " m"]:
    """The variance of each gap over a step."""
    slopes = jax.jacrev(problem.gaps)(vector)
    return problem.step * jnp.sum((slopes @ factor) ** 2, axis=-1)


@partial(compiled, optimise=False)
def _located(problem: _Problem, paths: _Paths) -> _Paths:
    """The paths, moved to the times and positions at which they crossed a boundary."""

    def located(path: _Paths) -> _Paths:
        part_key, place_key = jax.random.split(_keys(problem, path.index)[2])
        factor = problem.factor(path.state)
        gaps, ahead = problem.gaps(path.state), problem.gaps(path.after)
        parts = crossing_fraction(part_key, gaps, ahead, _spread(problem, path.state, factor))
        first = jnp.argmin(jnp.where(path.survival <= path.threshold, parts, jnp.inf))
        end = _crossing_place(problem, place_key, path, factor, (first, parts[first]))
        sets = len(gaps) - (end.size if problem.absorbing else 0)
        if problem.absorbing:
            end = jnp.where(jnp.arange(end.size) == first - sets, 0, jnp.maximum(end, 0))
        code = jnp.where(first < sets, jnp.int32(Outcome.reached), jnp.int32(Outcome.at_wall))
        return eqx.tree_at(lambda p: (p.state, p.part, p.outcome), path, (end, parts[first], code))

    return jax.vmap(located)(paths)


def _crossing_place(
    problem: _Problem,
    key: PRNGKeyArray,
    path: _Paths,
    factor: Float[Array, "d k"],
    crossing: tuple[Array, Array],
) -> Float[Array, " d"]:
    """Draw the position at which a path crosses, given the boundary and the fraction of the step.

    The component of the path uncorrelated with the gap is an independent bridge; the gap is set to
    zero.
    """
    boundary, part = crossing
    moved = path.after - path.state
    noise = factor @ jax.random.normal(key, factor.shape[1:], factor.dtype)
    shift = jnp.sqrt(problem.step * part * (1 - part)) * noise
    slope = jax.jacrev(problem.gaps)(path.state)[boundary]
    across = factor @ (slope @ factor)
    gaps = jnp.stack([problem.gaps(path.state)[boundary], problem.gaps(path.after)[boundary]])
    gap = (1 - part) * gaps[0] + part * gaps[1] + slope @ shift
    variance = slope @ across
    pull = across / jnp.where(variance > 0, variance, 1)
    place = path.state + part * moved + shift - pull * gap
    return place - pull * problem.gaps(place)[boundary]  # not 0 yet if the boundary is curved


def _runs(
    problem: _Problem, starts: PyTree[np.ndarray], paths: _Paths, end: PyTree[np.ndarray]
) -> NoisyRuns:
    outcome = np.asarray(paths.outcome)
    times = (np.asarray(paths.count) + np.asarray(paths.part, float)) * float(problem.step)
    unfit = (outcome == Outcome.outside_domain) | (outcome == Outcome.non_finite) & (times == 0)
    left = (outcome == Outcome.reached) & (problem.exit is not None)
    return NoisyRuns(
        starts=starts,
        outcome=outcome,
        exit_time=np.where(left, times, np.nan),
        end_time=np.where(unfit, np.nan, times),
        end=end,
        step=float(problem.step),
    )


def vectors(states: PyTree[np.ndarray]) -> Float[np.ndarray, "n d"]:
    """States with leaves of shape (n, ...), flattened to the rows of a matrix."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(states)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _block_size(dimension: int) -> int:
    wanted = _BLOCK.get(jax.default_backend(), _LARGE_BLOCK)
    return max(1, min(wanted, _ROOM // dimension**2))


def _checked_end(until: Any, flow: AbstractFlow) -> tuple[AbstractExit | None, float, Outcome]:
    """The set to leave or None, the time at which every path ends, and the outcome at that time."""
    left = until
    if isinstance(until, AbstractTarget):
        if until.moments is not None:
            last, outcome = until.deadline
            return None, float(np.asarray(last)), outcome
        until.check(flow)
        left = exit_at_level(until)
    if not isinstance(left, AbstractExit):
        raise ValueError(
            "Argument `until` must be a target such as until.time(1.0), or an exit such as "
            f"exit_from_interval(-1, 1), but is {until!r}."
        )
    return left, left.time_limit, Outcome.time_limit


def _check(
    flow: AbstractFlow, noise: Any, step: Any, seed: Any, block_size: Any, max_steps: Any
) -> None:
    if flow.domain.walls()[1].size:
        raise ValueError(
            "Argument `flow` must have a domain without walls, since noise is not reflected at "
            f"walls, but has {flow.domain!r}."
        )
    if not isinstance(noise, AbstractNoise):
        raise ValueError(
            f"Argument `noise` must be a noise such as Thermal(0.1), but is {noise!r}."
        )
    positive("step", step)
    integer("seed", seed, 0, most=2**32 - 1)
    check_counts(block_size, max_steps)
