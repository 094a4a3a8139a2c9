"""The cost to a sweep of one start in a thousand that is unlike the others, and its accuracy.

The saddle (stable y^2 - unstable x^2)/2, followed until it has fallen to a level below the saddle;
every way has a closed form. One start in a thousand is put so close to the stable manifold that its
line lingers beside the saddle, or onto it, so that it comes to rest there, or is not a number. Each
case is the same sweep but for these starts, and its cost is its time over that of the ordinary one.
Repetitions go round all cases, and medians are reported.

The same with `jax.vmap` of diffrax's `diffeqsolve` over time, ended by a root-found event, with
the same solver and tolerances, steps of its own for each start, and fewer starts.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from _common import devices, emit, parser
from _problem import accuracy

import flowlab
from flowlab import exact, until
from flowlab.until import Outcome

UNSTABLE, STABLE = 1.0, 2.0
LEVEL = -0.5
RTOL = 1e-6
STARTS, STARTS_OF_DIFFRAX, SMOKE_STARTS = 65536, 8192, 2000
EVERY = 1000
CLOSE = (1e-12, 1e-9)  # to the stable manifold
REPETITIONS = 5
BISECTIONS = 60
LATEST, MAX_STEPS = 100.0, 4096  # for diffrax; the longest way takes 28

Solved = dict[str, np.ndarray]
Way = Callable[[np.ndarray], Solved]
"""Times, steps and flags of arrival from starts of shape (n, 2)."""


class Case(NamedTuple):
    """A set of starts, which of them are unlike the others, and what is to become of those."""

    starts: np.ndarray
    odd: np.ndarray
    outcome: Outcome


def potential(state: jax.Array) -> jax.Array:
    """The saddle, unstable along the first component."""
    return 0.5 * (STABLE * state[1] ** 2 - UNSTABLE * state[0] ** 2)


def cases(count: int) -> dict[str, Case]:
    """The ordinary starts, and the same with one in a thousand replaced."""
    generator = np.random.default_rng(0)
    ordinary = generator.uniform((0.1, -0.5), (0.5, 0.5), (count, 2))
    odd = np.arange(EVERY // 2, count, EVERY)

    def with_first_component(values: Any) -> np.ndarray:
        changed = ordinary.copy()
        changed[odd, 0] = values
        return changed

    close = np.geomspace(*CLOSE, len(odd))
    return {
        "ordinary": Case(ordinary, odd, Outcome.reached),
        "beside the saddle": Case(with_first_component(close), odd, Outcome.reached),
        "into the saddle": Case(with_first_component(0.0), odd, Outcome.at_critical_point),
        "not a number": Case(with_first_component(np.nan), odd, Outcome.non_finite),
    }


def exact_times(points: np.ndarray) -> np.ndarray:
    """Times to the level, by bisection of the closed form; NaN where it is not reached.

    The line is past the level once |x| is what it would be there with y still at its start, and
    before it as long as |x| is less than with y = 0.
    """
    distance = np.abs(points[:, 0])
    nearest, furthest = (
        np.sqrt((2 * height - 2 * LEVEL) / UNSTABLE)
        for height in (0.0, 0.5 * STABLE * points[:, 1] ** 2)
    )
    fit = np.isfinite(distance) & (distance > 0)
    known = np.where(fit, distance, 1e-3)
    early = exact.saddle_exit_time(known, nearest, UNSTABLE)
    late = exact.saddle_exit_time(known, furthest, UNSTABLE)
    start = np.stack([known, points[:, 1]], axis=1)
    for _ in range(BISECTIONS):
        middle = 0.5 * (early + late)
        x, y = exact.saddle_state(middle, start, unstable=UNSTABLE, stable=STABLE).T
        above = 0.5 * (STABLE * y**2 - UNSTABLE * x**2) > LEVEL
        early, late = np.where(above, middle, early), np.where(above, late, middle)
    return np.where(fit, late, np.nan)


def way_of_flowlab(clock: until.Clock | None) -> Way:
    """`flowlab.sweep` under a clock; None for its own choice."""
    flow, target = flowlab.Flow(potential), until.loss_below(LEVEL)

    def way(points: np.ndarray) -> Solved:
        runs = flowlab.sweep(flow, points, until=target, clock=clock, rtol=RTOL, progress=False)
        return {"time": runs.time, "steps": runs.steps, "outcome": runs.outcome}

    return way


@jax.jit
@jax.vmap
def _with_event(start: jax.Array) -> tuple[jax.Array, ...]:
    def velocity(t: Any, state: jax.Array, args: Any) -> jax.Array:
        del t, args
        return -jax.grad(potential)(state)

    def above(t: Any, y: jax.Array, args: Any, **kwargs: Any) -> jax.Array:
        del t, args, kwargs
        return potential(y) - LEVEL

    atol = 1e-3 * RTOL * jnp.maximum(jnp.min(jnp.abs(start)), CLOSE[0])  # 0 would never do
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5(),
        t0=0.0,
        t1=LATEST,
        dt0=None,
        y0=start,
        stepsize_controller=diffrax.PIDController(RTOL, atol),
        event=diffrax.Event(above, optimistix.Newton(1e-12, 1e-12)),
        max_steps=MAX_STEPS,
        throw=False,
    )
    assert solution.ts is not None
    arrived = solution.result == diffrax.RESULTS.event_occurred
    return solution.ts[-1], solution.stats["num_accepted_steps"], arrived


def way_of_diffrax(points: np.ndarray) -> Solved:
    """`jax.vmap` of `diffeqsolve` over time; it tells arrival from all else, no more."""
    times, steps, arrived = map(np.asarray, _with_event(points))
    outcome = np.where(arrived, Outcome.reached, Outcome.running)
    return {"time": np.where(arrived, times, np.nan), "steps": steps, "outcome": outcome}


def verdict(case: Case, solved: Solved, ordinary: Solved, *, coded: bool) -> dict[str, Any]:
    """Errors of the odd starts and of the others, and how far the odd ones changed the others."""
    wanted = exact_times(case.starts)
    rest = np.setdiff1d(np.arange(len(case.starts)), case.odd)
    result: dict[str, Any] = {"others": accuracy(solved["time"][rest], wanted[rest])}
    shift = np.abs(solved["time"][rest] / ordinary["time"][rest] - 1)
    result["others_changed_by"] = float(np.max(shift))
    if case.outcome == Outcome.reached:
        result["odd"] = accuracy(solved["time"][case.odd], wanted[case.odd])
    for name, those in (("steps_of_others", rest), ("steps_of_odd", case.odd)):
        result[name] = float(np.mean(solved["steps"][those]))
    result["arrived_of_odd"] = int(np.sum(solved["outcome"][case.odd] == Outcome.reached))
    if coded:
        codes, numbers = np.unique(solved["outcome"][case.odd], return_counts=True)
        counts = zip(codes, numbers, strict=True)
        result["outcomes_of_odd"] = {Outcome(code).name: int(number) for code, number in counts}
        right = np.all(solved["outcome"][case.odd] == case.outcome)
        result["outcomes_are_right"] = bool(
            right & np.all(solved["outcome"][rest] == Outcome.reached)
        )
    return result


def measured(way: Way, count: int, repetitions: int, *, coded: bool) -> dict[str, Any]:
    """For each case its seconds, its cost over the ordinary one, and the verdict on its results."""
    known = cases(count)
    began = time.perf_counter()
    ordinary = way(known["ordinary"].starts)
    first = time.perf_counter() - began
    rows = {
        name: {**verdict(case, way(case.starts), ordinary, coded=coded), "seconds": []}
        for name, case in known.items()
    }
    for _ in range(repetitions):
        for name, case in known.items():
            began = time.perf_counter()
            way(case.starts)
            rows[name]["seconds"].append(time.perf_counter() - began)
    usual = median(rows["ordinary"]["seconds"])
    for row in rows.values():
        row["starts_per_s"] = count / median(row["seconds"])
        row["cost"] = median(row["seconds"]) / usual
    return {"starts": count, "first_call_s": first, "cases": rows}


def main() -> None:
    """Measure and write the result."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--starts", type=int, default=STARTS, help="starts for flowlab")
    options = arguments.parse_args()
    jax.config.update("jax_enable_x64", True)
    count = SMOKE_STARTS if options.smoke else options.starts
    fewer = min(count, STARTS_OF_DIFFRAX)
    repetitions = 1 if options.smoke else REPETITIONS
    ways: dict[str, Any] = {
        "flowlab": measured(way_of_flowlab(None), count, repetitions, coded=True)
    }
    if not options.smoke:
        loss = way_of_flowlab("loss")
        ways["flowlab, clock of the loss"] = measured(loss, count, repetitions, coded=True)
    vmapped = measured(way_of_diffrax, fewer, repetitions, coded=False)
    emit(
        {
            "benchmark": "straggler",
            "problem": f"saddle, rates {UNSTABLE} and {STABLE}, time to L = {LEVEL}, float64",
            "devices_seen": devices(),
            "rtol": RTOL,
            "one_start_in": EVERY,
            "repetitions": repetitions,
            "ways": {**ways, "diffrax vmap, time, event": vmapped},
        },
        options.out,
    )


if __name__ == "__main__":
    main()
