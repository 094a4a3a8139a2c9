"""The engine: a block of lanes, integrated together by one explicit or stiff method.

A lane is one flow line during its integration. Its unknowns are the coordinates of its state (log x
on a positive domain), its flow time, the integrals of its measures, and the integral of the
pressure on the walls that hold it. The independent variable is a clock (`clocks`), and `field`
gives the derivatives.

All lanes of a block share the step h. A lane that would pass a level or a time at which its clock
can end takes the fraction of h up to that point. `errors` divides the embedded error estimate by
the tolerance. The largest quotient q of all lanes decides whether h is accepted, and diffrax's
controller sets the next h: proportional to q^(−1/order), or, for stabilised methods, by a PI
controller. After an accepted step, each lane is treated separately:

1. `crossings` locates the first zero of the lane's signals in the interpolant of the step. The lane
   then stays at that point, and `events` applies the event: a wall, a level, the end. The folds of
   measures get seven equally spaced points, ends included, from the interpolant up to there.
2. If a clock of loss or margin is at a level, the loss or margin of the state is compared with the
   level, within 10·rtol times its size (at least one nat for a margin). A lane before the level
   continues with a corrected clock. A lane past the level, or no nearer to it than before the step,
   starts again from its start under the arc-length clock, and locates the level by a signal.
3. `stationarity` ends the lanes that have come to rest.

A single lane must not slow down its block indefinitely. If the next step would be below 1e-5 of the
first, the lanes with too large errors are evicted, and are continued elsewhere under the arc-length
clock (from their start if they are at a level or past it); the others go on with the first step and
a new count of steps. Under arc length, with a stiff solver, and for a single line, a lane whose
steps would be below 1e-12 of the first ends instead, with the outcome `step_limit` or `non_finite`.

Source: Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I (1993), sections II.4
(step-size control) and II.6 (interpolants); Söderlind, ACM Trans. Math. Softw. 29 (2003) 1–26 (PI
controllers).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from flowlab._arrays import like
from flowlab.measures import NODES, Nodes
from flowlab.solve.clocks import ARC_LENGTH, AbstractLevelClock, Hand
from flowlab.solve.crossings import first_crossing, followed, interpolated, shortened
from flowlab.solve.errors import lane_errors
from flowlab.solve.events import apply_clock_event, apply_event
from flowlab.solve.field import motion
from flowlab.solve.method import Method, terms
from flowlab.solve.problem import Lanes, Point, Problem, lanewise, select
from flowlab.solve.rosenbrock import OfSmallLanes
from flowlab.solve.runge_kutta import RungeKutta
from flowlab.solve.signals import signals, signals_after
from flowlab.solve.stabilised import OfLanes
from flowlab.solve.stationarity import rested
from flowlab.until import Outcome

__all__ = [
    "Lanes",
    "Loop",
    "Problem",
    "Tape",
    "advance",
    "first_loop",
    "go_on",
    "resume",
    "safe_problem",
]

_EVICT_BELOW = 1e-5
"""Part of the first step under which the lanes that want a smaller one leave the block."""
_GIVE_UP_BELOW = 1e-12
"""The same where there is no other place to go on."""
_NEAR_BOUND = 2.5
"""Products of a step and the fastest rate from which on stability may limit it: to some 3 or more
a usual method is stable, and where accuracy limits it the product stays about one."""
_GROWTH = 10.0  # times the longest step that a lane has taken before: a limit on the next step

Errors = Callable[[Problem, Lanes, Point, Any], Float[Array, " n"]]
"""The error of each lane over what is allowed, from the lanes before a step, their points after it,
and the solver's estimate."""


class Tape(eqx.Module):
    """The accepted steps of a block, one after the other on the first axis.

    Attributes:
        dense: The data of the solver's interpolants, on a first axis of steps.
        end: The fraction of each step that a lane used, shape (steps, n).
        count: Number of steps recorded.
    """

    dense: PyTree[Float[Array, "steps ..."]]
    end: Float[Array, "steps n"]
    count: Int[Array, ""]


class Loop(eqx.Module):
    """The state of the integration loop between two attempted steps.

    Attributes:
        lanes: The lanes.
        step: Length of the next step.
        controller_state: State of the step-size controller.
        solver_state: State of the solver.
        jumped: Whether the field of a lane has changed since the last step.
        tries: Number of attempted steps.
        tape: The record of the accepted steps; None for no record.
        limited: Count of steps at the bound of stability; None if they are not counted.
    """

    lanes: Lanes
    step: Float[Array, ""]
    controller_state: PyTree[Array]
    solver_state: PyTree[Array]
    jumped: Bool[Array, ""]
    tries: Int[Array, ""]
    tape: Tape | None
    limited: Int[Array, ""] | None = None


def safe_problem(problem: Problem) -> Problem:
    """The same problem under the arc-length clock, which is regular everywhere."""
    return dataclasses.replace(problem, clock=ARC_LENGTH)


def resume(problem: Problem, lanes: Lanes) -> Lanes:
    """Prepare evicted lanes for continuation from their present points under another clock."""
    ready = dataclasses.replace(
        lanes, evicted=jnp.zeros_like(lanes.evicted), fraction=jnp.ones_like(lanes.fraction)
    )
    fresh = lanewise(lambda lane: signals(problem, lane, lane.point))(ready)
    return dataclasses.replace(ready, signals=fresh)


def advance(
    problem: Problem,
    method: Method,
    lanes: Lanes,
    *,
    max_steps: Int[Array, ""] | int,
    keep: Int[Array, ""] | int = 0,
    tape_length: int | None = None,
    errors: Errors | None = None,
    patience: Int[Array, ""] | int | None = None,
) -> tuple[Lanes, Int[Array, ""], Tape | None]:
    """Advance the lanes of a block by shared steps.

    Args:
        problem: The problem.
        method: The solver and its step-size controller.
        lanes: The lanes.
        max_steps: The largest number of attempted steps.
        keep: The loop stops when at most this many lanes are running.
        tape_length: Number of steps that the record has room for; None for no record.
        errors: The function that gives the errors for the step-size control; None for
            `lane_errors`.
        patience: The loop stops after this number of steps at the bound of stability, for explicit
            Runge–Kutta methods; None for no such stop.

    Returns:
        The lanes, the number of attempted steps, and the record of the accepted steps, or None.
    """
    errors = lane_errors if errors is None else errors
    loop = first_loop(problem, method, lanes, tape_length)
    if patience is not None:
        loop = dataclasses.replace(loop, limited=jnp.zeros((), jnp.int32))
    keep, max_steps = jnp.asarray(keep, jnp.int32), jnp.asarray(max_steps, jnp.int32)

    def going(loop: Loop) -> Bool[Array, ""]:
        running = jnp.sum(loop.lanes.active, dtype=jnp.int32)
        going = (running > keep) & (loop.tries < max_steps)
        return going if patience is None else going & (_counted(loop) < patience)

    loop = go_on(problem, method, loop, going, errors)
    return loop.lanes, loop.tries, loop.tape


def go_on(
    problem: Problem,
    method: Method,
    loop: Loop,
    going: Callable[[Loop], Bool[Array, ""]],
    errors: Errors,
) -> Loop:
    """The loop state after as many attempted steps as `going` allows."""
    return lax.while_loop(going, lambda loop: _stepped(problem, method, loop, errors), loop)


def first_loop(
    problem: Problem, method: Method, lanes: Lanes, tape_length: int | None = None
) -> Loop:
    """The loop state before the first attempted step.

    Args:
        problem: The problem.
        method: The method.
        lanes: The lanes.
        tape_length: Number of steps that the record has room for; None for no record.
    """
    solver, step = method.solver, _first_step(problem, method)
    zero = jnp.zeros_like(step)
    never = jnp.full_like(step, jnp.inf)
    _, controller_state = method.controller.init(
        terms(problem), zero, never, zero, step, None, solver.func, _order(problem, method)
    )
    if problem.eventful:  # the first step evaluates the field at its start, as after a jump
        solver_state = solver.blank(lanes.point)
    else:
        solver_state = solver.init(terms(problem), zero, step, lanes.point, lanes)
    tape = None
    if tape_length is not None:
        tape = Tape(
            solver.room(lanes.point, tape_length),
            jnp.zeros((tape_length, *lanes.progress.shape), step.dtype),
            jnp.zeros((), jnp.int32),
        )
    tries = jnp.zeros((), jnp.int32)
    return Loop(lanes, step, controller_state, solver_state, jnp.asarray(True), tries, tape)


def _counted(loop: Loop) -> Int[Array, ""]:
    """The count of steps at the bound of stability, for a loop that has one."""
    assert loop.limited is not None
    return loop.limited


def _first_step(problem: Problem, method: Method) -> Float[Array, ""]:
    if method.constant_step is not None:
        return method.constant_step
    return jnp.asarray(problem.clock.first_step, problem.rtol.dtype)


def _stepped(problem: Problem, method: Method, loop: Loop, errors_of: Errors) -> Loop:
    """The loop state after one more attempted step."""
    lanes = _with_fractions(problem, loop.lanes, loop.step)
    zero = jnp.zeros_like(loop.step)
    jumped = loop.jumped if problem.eventful else False
    after, error, dense, solver_state, _ = method.solver.step(
        terms(problem), zero, loop.step, lanes.point, lanes, loop.solver_state, jumped
    )
    errors = errors_of(problem, lanes, after, error)
    keep, next_step, controller_state = _judged(problem, method, loop, jnp.max(errors))

    def accepted(loop: Loop) -> tuple[Lanes, Bool[Array, ""], Array, Tape | None]:
        step = (loop.step, after, dense, solver_state)
        arrived, jump, end, used = _arrived(problem, method, lanes, step)
        longest = jnp.max(jnp.where(lanes.active, end, 0)) if problem.eventful else one
        return arrived, jump, longest, _recorded(loop.tape, *used)

    def rejected(loop: Loop) -> tuple[Lanes, Bool[Array, ""], Array, Tape | None]:
        return lanes, loop.jumped, one, loop.tape

    one = jnp.ones_like(loop.step)
    if problem.eventful or loop.tape is not None or jax.tree.leaves(lanes.folds):
        arrived, jump, longest, tape = lax.cond(keep, accepted, rejected, loop)
    else:
        arrived, jump, longest, tape = accepted(loop)
        arrived = select(jnp.broadcast_to(keep, lanes.active.shape), arrived, lanes)
    kept = partial(jnp.where, keep)
    first = _first_step(problem, method)
    whole = jnp.any(lanes.active & (lanes.fraction == 1))
    next_step = _held_back(next_step, loop.step, first, keep & ~whole, longest)
    limiting = (errors >= 1) & ~keep
    arrived, next_step, relieved = _evict_limiting_lanes(
        (problem, method), arrived, limiting, jnp.isinf(errors), (next_step, first)
    )
    if isinstance(method.solver, OfLanes | OfSmallLanes):
        next_step = jnp.minimum(next_step, method.solver.longest_step(solver_state, lanes))
    solver_state = jax.tree.map(kept, solver_state, method.solver.again(loop.solver_state))
    tries = jnp.where(relieved, 0, loop.tries + 1)
    step = lax.stop_gradient(next_step)
    limited = _at_the_bound(method, loop.limited, dense, keep)
    return Loop(arrived, step, controller_state, solver_state, jump, tries, tape, limited)


def _at_the_bound(
    method: Method, count: Int[Array, ""] | None, dense: PyTree[Array], keep: Bool[Array, ""]
) -> Int[Array, ""] | None:
    """The count of steps at the bound of stability: an accepted step adds or subtracts 1."""
    if count is None or not isinstance(method.solver, RungeKutta):
        return count
    near = method.solver.stretch(dense) >= _NEAR_BOUND
    return jnp.where(keep, jnp.where(near, count + 1, jnp.maximum(count - 1, 0)), count)


def _judged(
    problem: Problem, method: Method, loop: Loop, error: Float[Array, ""]
) -> tuple[Bool[Array, ""], Float[Array, ""], PyTree[Array]]:
    """The controller's decision: whether the step is accepted, the next step, and its state."""
    zero, order = jnp.zeros_like(loop.step), _order(problem, method)
    keep, _, end, _, state, _ = method.controller.adapt_step_size(
        zero, loop.step, zero, zero, None, error, order, loop.controller_state
    )
    keep = jnp.asarray(keep)
    return keep, jnp.where(keep, end - loop.step, end), state


def _held_back(
    step: Float[Array, ""],
    before: Float[Array, ""],
    first: Float[Array, ""],
    all_cut: Bool[Array, ""],
    longest: Float[Array, ""],
) -> Float[Array, ""]:
    """The next step, limited if no lane took the whole of the last step.

    The error of such a step says little, and without a limit the step would keep growing while
    events cut it short.
    """
    step = jnp.where(all_cut, jnp.minimum(step, before), step)
    gone = jnp.maximum(_GROWTH * longest * before, first)
    return jnp.where(longest < 1, jnp.minimum(step, gone), step)


def _order(problem: Problem, method: Method) -> float:
    order = method.solver.order(terms(problem))
    if order is None:
        raise ValueError(f"Argument `solver` must have an order, but {method.name} has none.")
    return order


def _with_fractions(problem: Problem, lanes: Lanes, step: Float[Array, ""]) -> Lanes:
    """The lanes with their fractions of the next step, chosen to end at levels and times."""
    if problem.ends_by_clock:
        goal = lanewise(lambda lane: _goal(problem, lane))(lanes)
        fraction = jnp.clip((goal - lanes.progress) / step, 0, 1)
    else:
        fraction = jnp.ones_like(lanes.progress)
    fraction = jnp.where(lanes.active, fraction, 0)
    return eqx.tree_at(lambda x: x.fraction, lanes, fraction)


def _goal(problem: Problem, lane: Lanes) -> Float[Array, ""]:
    """The value of the clock at a lane's next level or time to save at, whichever is first."""
    clock = problem.clock
    goal = clock.goal(_hand(lane), clock.levels(problem.flow, problem.target), lane.level)
    if clock.keeps_time and problem.save_at.size:
        save = problem.save_at[jnp.minimum(lane.next_save, problem.save_at.size - 1)]
        left = lane.next_save < problem.save_at.size
        goal = jnp.minimum(goal, jnp.where(left, save / lane.span, jnp.inf))
    return goal


def _hand(lane: Lanes) -> Hand:
    return Hand(lane.start_value, lane.span, lane.progress)


def _arrived(
    problem: Problem,
    method: Method,
    lanes: Lanes,
    step: tuple[Float[Array, ""], Point, PyTree[Array], PyTree[Array]],
) -> tuple[Lanes, Bool[Array, ""], Float[Array, " n"], tuple[PyTree[Array], Float[Array, " n"]]]:
    """The lanes after an accepted step, with their events applied.

    Args:
        problem: The problem.
        method: The solver and its step-size controller.
        lanes: The lanes before the step.
        step: Of the whole step, its length, the points after it, the data of its interpolant, and
            the state of the solver.

    Returns:
        The lanes; whether the field of any lane changed; the fraction of the step that each lane
        took; and the data of the interpolants with the fractions of them that were used.
    """
    place, end, fired, (dense, used) = _until_events(problem, method, lanes, step)
    folds = lanes.folds
    if jax.tree.leaves(folds):
        folds = _folded(problem, method, lanes, dense, used)
    active = lanes.active
    progress = lanes.progress + end * lanes.fraction * step[0]
    moved = dataclasses.replace(
        lanes, point=place, progress=progress, steps=lanes.steps + 1, folds=folds
    )
    moved = apply_event(problem, moved, fired)
    if problem.ends_by_clock:
        goals = lanewise(lambda lane: _goal(problem, lane))(lanes)
        due = (end == 1) & (progress >= goals * (1 - 4 * jnp.finfo(progress.dtype).eps))
        if isinstance(problem.clock, AbstractLevelClock):
            moved, due = _checked_at_level(problem, problem.clock, moved, due, lanes.progress)
        moved = lanewise(lambda lane, here: apply_clock_event(problem, lane, here))(moved, due)
    if not problem.ends_on_level and problem.target.moments is None:
        moved = rested(problem, moved)
    moved = select(active, moved, lanes)
    jumped = jnp.any(active & ((fired >= 0) | (end < 1)))
    if lanes.signals.shape[0]:
        frozen = lax.stop_gradient(moved)
        fresh = lanewise(lambda lane, kind: signals_after(problem, lane, kind))(frozen, fired)
        moved = eqx.tree_at(lambda x: x.signals, moved, fresh)
    return moved, jumped, end, (dense, used)


def _until_events(
    problem: Problem,
    method: Method,
    lanes: Lanes,
    step: tuple[Float[Array, ""], Point, PyTree[Array], PyTree[Array]],
) -> tuple[
    Point,
    Float[Array, " n"],
    Int[Array, " n"],
    tuple[PyTree[Array], Float[Array, " n"]],
]:
    """The points at which the lanes end in an accepted step, at events or at its end.

    After the points come the fraction of the step that each lane took; the index of its event or
    -1; and the data of the interpolants with the fractions of them that were used.
    """
    length, after, dense, _ = step
    end = jnp.ones_like(lanes.progress)
    fired = jnp.full(lanes.outcome.shape, -1, jnp.int32)
    if not lanes.signals.shape[0]:
        return after, end, fired, (dense, end)
    crossed, end, fired = first_crossing(problem, method, lanes, after, dense)
    if isinstance(method.solver, OfLanes):
        event = (crossed, end, fired)
        end, found, dense = shortened(problem, method.solver, lanes, event, step)
    else:
        found = interpolated(method, dense, end)
    place = select(crossed, found, after)
    if problem.tangents:
        place, end = followed(problem, lanes, (crossed, end, fired), place, length)
    return place, end, fired, (dense, jnp.ones_like(end) if method.shares_stages else end)


def _checked_at_level(
    problem: Problem,
    clock: AbstractLevelClock,
    lanes: Lanes,
    due: Bool[Array, " n"],
    earlier: Float[Array, " n"],
) -> tuple[Lanes, Bool[Array, " n"]]:
    """Compare the lanes whose clock is at a level (`due`) with their actual loss or margin.

    The clock has the error with which the solver integrates the rate of the loss or margin. A lane
    before its level continues with its clock set to its actual loss or margin. A lane past its
    level, or no nearer to it than at the clock's value `earlier`, has strayed, and starts again
    under the arc-length clock. The result is the lanes, and a mask of lanes at their level.
    """

    def look(lanes: Lanes) -> tuple[Float[Array, " n"], Bool[Array, " n"], Bool[Array, " n"]]:
        return lanewise(lambda lane: _at_level(problem, clock, lane))(lanes)

    def trust(lanes: Lanes) -> tuple[Float[Array, " n"], Bool[Array, " n"], Bool[Array, " n"]]:
        return lanes.progress, lanes.evicted, lanes.evicted

    due = due & lanes.active
    progress, there, before = lax.cond(jnp.any(due), look, trust, lax.stop_gradient(lanes))
    strayed = due & ~(there | (before & (progress > earlier)))
    progress = jnp.where(due & before, progress, lanes.progress)
    lanes = eqx.tree_at(
        lambda x: (x.progress, x.strayed, x.evicted),
        lanes,
        (progress, lanes.strayed | strayed, lanes.evicted | strayed),
    )
    return lanes, due & there


def _past_level(problem: Problem, lanes: Lanes, asked: Bool[Array, " n"]) -> Bool[Array, " n"]:
    """Mask of the lanes in `asked` whose actual loss or margin is at or past their level.

    Such a lane cannot be continued under another clock, since it would never reach the level.
    """
    clock = problem.clock
    if not isinstance(clock, AbstractLevelClock):
        return jnp.zeros_like(asked)

    def look(lanes: Lanes) -> Bool[Array, " n"]:
        return ~lanewise(lambda lane: _at_level(problem, clock, lane))(lanes)[2]

    frozen = lax.stop_gradient(lanes)
    return lax.cond(jnp.any(asked), look, lambda lanes: jnp.zeros_like(asked), frozen)


def _at_level(
    problem: Problem, clock: AbstractLevelClock, lane: Lanes
) -> tuple[Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
    """The actual progress of a lane, and two flags: at its level; before its level."""
    state = problem.flow.domain.state(lane.point.coordinates)
    reading = clock.reading(problem.flow, state, problem.flow.potential(state))
    levels = clock.levels(problem.flow, problem.target)
    assert levels is not None
    level = like(levels, reading)[lane.level]
    return clock.arrival(_hand(lane), reading, level, problem.rtol)


def _folded(
    problem: Problem, method: Method, lanes: Lanes, dense: PyTree[Array], end: Float[Array, " n"]
) -> tuple[PyTree[Array], ...]:
    """The folds of the measures, updated by a step of which each lane used the fraction `end`."""
    parts = jnp.linspace(0, 1, NODES, dtype=end.dtype)
    nodes = jax.vmap(lambda part: interpolated(method, dense, part * end))(parts)

    def of_lane(lane: Lanes, points: Point) -> tuple[PyTree[Array], ...]:
        states = jax.vmap(lambda point: problem.flow.domain.state(point.coordinates))(points)
        velocities = jax.vmap(lambda state: motion(problem, state, lane.walls).velocity)(states)
        seen = Nodes(points.time, states, velocities)
        pairs = zip(problem.measures, lane.folds, strict=True)
        return tuple(m.fold(problem.flow, carry, seen) for m, carry in pairs)

    return lanewise(of_lane)(lanes, nodes)


def _recorded(tape: Tape | None, dense: PyTree[Array], end: Float[Array, " n"]) -> Tape | None:
    if tape is None:
        return None
    return Tape(
        jax.tree.map(lambda all_, one: all_.at[tape.count].set(one), tape.dense, dense),
        tape.end.at[tape.count].set(end),
        tape.count + 1,
    )


def _evict_limiting_lanes(
    solved: tuple[Problem, Method],
    lanes: Lanes,
    limiting: Bool[Array, " n"],
    hopeless: Bool[Array, " n"],
    steps: tuple[Float[Array, ""], Float[Array, ""]],
) -> tuple[Lanes, Float[Array, ""], Bool[Array, ""]]:
    """Evict, or end, the lanes whose errors would make the next step too small.

    The smallest allowed step is a fraction of the first: 1e-5 if lanes can be continued under the
    arc-length clock, else 1e-12. Lanes of a stiff solver cannot: another clock would not help, and
    their first steps are far smaller than the later ones.

    Returns:
        The lanes; the next step, reset to the first if lanes were removed; and whether any were.
    """
    (problem, method), (step, first) = solved, steps
    stiff = not isinstance(method.solver, RungeKutta)
    last_resort = problem.alone or problem.clock.regular or stiff
    smallest = _GIVE_UP_BELOW if last_resort else _EVICT_BELOW
    limiting = limiting & lanes.active & (step < smallest * first)
    if last_resort:
        code = jnp.where(hopeless, Outcome.non_finite, Outcome.step_limit)
        outcome = jnp.where(limiting, code.astype(jnp.int32), lanes.outcome)
        lanes = eqx.tree_at(lambda x: x.outcome, lanes, outcome)
    else:
        strayed = lanes.strayed | limiting & _past_level(problem, lanes, limiting)
        evicted = (lanes.evicted | limiting, strayed)
        lanes = eqx.tree_at(lambda x: (x.evicted, x.strayed), lanes, evicted)
    relieved = jnp.any(limiting)
    return lanes, jnp.where(relieved, first, step), relieved
