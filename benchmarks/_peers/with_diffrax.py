"""diffrax under `jax.vmap`, by three clocks.

Batches of starts go to one thread for each core, since one call for all starts uses little more
than one core and waits for its slowest start. The plainest way, in one call, is kept as well.
Tolerances are arrays, so that none compiles again.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix

from . import Peer, Solved, Way
from .problems import BETA, END_MARGIN, LEVEL, Clock, Problem, Wall

__all__ = ["ROOT", "SOLVERS", "by_margin", "by_time", "in_batches", "peers"]

STARTS = 16384
STARTS_IN_ONE_CALL = 8192
BATCH = 1024
MAX_STEPS = 4096
SOLVERS = {"Tsit5": diffrax.Tsit5(), "Dopri8": diffrax.Dopri8()}
ROOT = optimistix.Newton(1e-13, 1e-13)
AT_ROOT = 1e-7  # of a signal: what a root may leave
UNIT_OF_TIME = 1e-3  # in which the absolute tolerance does not matter for the time

Signal = Callable[[Any], jax.Array]
Solve = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Times and steps, from starts and a relative tolerance."""


def peers(problem: Problem, cores: int) -> dict[str, Peer]:
    """The clocks that suit a problem: flow time, the logarithm of the loss, the margin."""
    makers: dict[str, Callable[[Problem, Any], Solve]] = {
        "time, event": by_time,
        "log-loss clock": by_loss,
        "margin clock": by_margin,
    }
    if problem.wall is not None:
        del makers["log-loss clock"]
    if problem.clock is None:
        del makers["margin clock"]
    plain = {name: _in_one_call(by_time(problem, solver)) for name, solver in SOLVERS.items()}
    found = {"diffrax vmap, time, event, one call": Peer(plain, STARTS_IN_ONE_CALL)}
    for clock, made in makers.items():
        methods = {name: in_batches(made(problem, s), cores) for name, s in SOLVERS.items()}
        found[f"diffrax vmap, {clock}"] = Peer(methods, STARTS)
    return found


def _in_one_call(solve: Solve) -> Way:
    def way(points: np.ndarray, rtol: float) -> Solved:
        times, steps = solve(jnp.asarray(points), jnp.asarray(rtol))
        return Solved(np.asarray(times), float(steps.mean()))

    return way


def in_batches(solve: Solve, threads: int, batch: int = BATCH) -> Way:
    """A way that gives each thread so many starts at a time."""
    once = _in_one_call(solve)

    def way(points: np.ndarray, rtol: float) -> Solved:
        parts = [points[first : first + batch] for first in range(0, len(points), batch)]
        with ThreadPoolExecutor(threads) as pool:
            solved = list(pool.map(lambda part: once(part, rtol), parts))
        steps = sum(len(part) * (s.steps or 0) for part, s in zip(parts, solved, strict=True))
        return Solved(np.concatenate([s.times for s in solved]), steps / len(points))

    return way


def _vmapped(solve: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]) -> Solve:
    return jax.jit(jax.vmap(solve, in_axes=(0, None)))


def _integrated(
    solver: Any,
    velocity: Callable[[Any], Any],
    start: Any,
    end: float,
    tolerances: dict[str, Any],
    signal: Signal | None = None,
    root: Any = ROOT,
) -> tuple[Any, jax.Array, jax.Array]:
    """State, time and steps at the end, or where a signal falls to 0."""

    def condition(t: Any, y: Any, args: Any, **kwargs: Any) -> jax.Array:
        del t, args, kwargs
        assert signal is not None
        return signal(y)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: velocity(y)),
        solver,
        t0=0.0,
        t1=end,
        dt0=None,
        y0=start,
        stepsize_controller=diffrax.PIDController(**tolerances),
        event=None if signal is None else diffrax.Event(condition, root),
        max_steps=MAX_STEPS,
        throw=False,
    )
    assert solution.ts is not None
    state = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    return state, solution.ts[-1], solution.stats["num_steps"]


def _tolerances(problem: Problem, start: jax.Array, rtol: jax.Array) -> dict[str, Any]:
    atol = 1e-3 * rtol * jnp.min(start) if problem.positive else rtol
    return {"rtol": rtol, "atol": atol}


def by_time(problem: Problem, solver: Any, root: Any = ROOT) -> Solve:
    """Integration of the state over flow time, as one would write it; ended by real-valued events.

    `root` finds them; its tolerances have to be such as the dtype can hold.
    """

    def velocity(state: jax.Array) -> jax.Array:
        return -problem.metric(jax.grad(problem.loss)(state))

    def above(state: jax.Array) -> jax.Array:
        return problem.loss(state) - LEVEL

    def solve(start: jax.Array, rtol: jax.Array) -> tuple[jax.Array, jax.Array]:
        tolerances = _tolerances(problem, start, rtol)
        follow = partial(_integrated, solver, end=problem.latest, tolerances=tolerances, root=root)
        if problem.wall is None:
            return follow(velocity, start, signal=above)[1:]
        return _by_time_along_wall(problem.wall, velocity, above, start, follow)

    return _vmapped(solve)


def _by_time_along_wall(
    wall: Wall, velocity: Callable[[Any], Any], above: Signal, start: jax.Array, follow: Any
) -> tuple[jax.Array, jax.Array]:
    """Freely to the level, the wall or the release, along the wall to the release, and freely.

    Of two events diffrax takes the first in its list, not in time, and it misses a wall that is
    crossed and left again in one step: so each stretch has one signal, the smallest of several.
    Under `vmap` every start goes through all stretches; it stands still in those not for it.
    """

    def pressure(state: jax.Array) -> jax.Array:
        return wall.outward(velocity(state))

    def pressed(state: jax.Array) -> jax.Array:
        return jnp.minimum(above(state), pressure(state))

    def inside(state: jax.Array) -> jax.Array:
        return jnp.minimum(wall.room(state), pressed(state))

    stretches = (
        (velocity, inside, pressed),
        (lambda x: wall.along(velocity(x)), pressed, pressed),
        (velocity, above, above),
    )
    state, time, steps = start, jnp.zeros(()), jnp.zeros((), int)
    for move, signal, wanted in stretches:
        going = jnp.where(wanted(state) > AT_ROOT, 1.0, 0.0)
        state, more, tried = follow(lambda x, m=move, g=going: g * m(x), state, signal=signal)
        time, steps = time + going * more, steps + tried
    return time, steps


def by_loss(problem: Problem, solver: Any) -> Solve:
    """Integration of state and time over the logarithm of the loss, which ends on the level."""

    def solve(start: jax.Array, rtol: jax.Array) -> tuple[jax.Array, jax.Array]:
        length = jnp.log(problem.loss(start) / LEVEL)

        def velocity(state: tuple[jax.Array, jax.Array]) -> Any:
            value, gradient = jax.value_and_grad(problem.loss)(state[0])
            moved = problem.metric(gradient)
            rate = length * value / jnp.vdot(gradient, moved)
            return -rate * moved, rate / UNIT_OF_TIME

        begin = (start, jnp.zeros(()))
        tolerances = _tolerances(problem, start, rtol)
        state, _, steps = _integrated(solver, velocity, begin, 1.0, tolerances)
        return state[1] * UNIT_OF_TIME, steps

    return _vmapped(solve)


def by_margin(problem: Problem, solver: Any) -> Solve:
    """Integration of (u, t) over the margin, which ends on the level; events at walls alone."""
    clock, wall = problem.clock, problem.wall
    assert clock is not None

    def solve(start: jax.Array, rtol: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_ratios = jnp.log(start) if problem.positive else start
        state = jnp.append(log_ratios, 0.0)
        tolerances = {"rtol": rtol, "atol": rtol}
        follow = partial(_integrated, solver, end=1.0, tolerances=tolerances)
        if wall is not None:
            state, steps = _by_margin_along_wall(wall, clock, state, follow)
        else:
            state, _, steps = follow(_free(clock, _to_go(state)), state)
        return state[2] * UNIT_OF_TIME, steps

    return _vmapped(solve)


def _by_margin_along_wall(
    wall: Wall, clock: Clock, state: jax.Array, follow: Any
) -> tuple[jax.Array, jax.Array]:
    """The same stretches as over time; a start has no way to go in those that are not for it."""

    def pressure(state: jax.Array) -> jax.Array:
        return wall.outward(_pull(state))

    def inside(state: jax.Array) -> jax.Array:
        return jnp.minimum(wall.room(jnp.exp(state[:2])), pressure(state))

    def span(state: jax.Array) -> jax.Array:
        return jnp.where(pressure(state) > AT_ROOT, _to_go(state), 0.0)

    state, _, first = follow(_free(clock, span(state)), state, signal=inside)
    state, _, more = follow(_sliding(wall, span(state)), state, signal=pressure)
    state, _, last = follow(_free(clock, _to_go(state)), state)
    return state, first + more + last


def _to_go(state: jax.Array) -> jax.Array:
    return END_MARGIN - (state[0] - state[1])


def _pull(state: jax.Array) -> jax.Array:
    """The velocity in x, without the factor β σ(−βh)."""
    return jnp.exp(-state[:2]) * jnp.array([1.0, -1.0])


def _free(clock: Clock, span: jax.Array) -> Callable[[Any], Any]:
    def velocity(state: jax.Array) -> jax.Array:
        chosen, rejected, time = clock.rates(state[0], state[1], jnp.exp)
        return span * jnp.stack([jnp.asarray(chosen), jnp.asarray(rejected), time / UNIT_OF_TIME])

    return velocity


def _sliding(wall: Wall, span: jax.Array) -> Callable[[Any], Any]:
    def velocity(state: jax.Array) -> jax.Array:
        moved = wall.along(_pull(state)) * jnp.exp(-state[:2])
        time = (1 + jnp.exp(BETA * (state[0] - state[1]))) / (BETA * UNIT_OF_TIME)
        return span * jnp.append(moved, time) / (moved[0] - moved[1])

    return velocity
