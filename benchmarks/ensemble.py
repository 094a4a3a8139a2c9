"""Starts per second to a loss level, against other ways to solve the same flow lines.

Ratio plane, DPO with beta 0.3, starts uniform on [0.01, 1]^2, time to L = 0.1, float64, two
tolerances. The time of every flow line is known in closed form, so an error stands beside each
speed. Compilation is measured apart; repetitions of all ways are interleaved, and the median is
reported.

Each rival runs at the tightest tolerance, a power of the square root of ten, at which both its
median and its largest error are no smaller than those of flowlab: none pays for digits that
flowlab does not deliver. Its absolute tolerance is flowlab's own default, per start where it can
be. Slow rivals get the first of the starts only; speeds are per start.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from _common import emit, parser
from scipy.integrate import solve_ivp

import flowlab
from flowlab import exact, starts, until

BETA, LEVEL = 0.3, 0.1
LOWER, UPPER = (0.01, 0.01), (1.0, 1.0)
RTOLS = (1e-6, 1e-9)
LOOSEST = 1e-2
REPETITIONS = 7
PILOT = 1024  # starts on which a rival's tolerance is chosen
LATEST = 10.0  # beyond the longest time, 3.75 from (1, 1)
MAX_STEPS = 4096
TINY = 1e-9  # below every ratio on the way, 5.5e-6 and more

Way = Callable[[np.ndarray, float], np.ndarray]
"""Times to the level, from starts of shape (n, 2) and a relative tolerance."""


def loss(state: jax.Array) -> jax.Array:
    """The DPO loss at (x1, x2), as one would write it."""
    return jax.nn.softplus(BETA * (jnp.log(state[1]) - jnp.log(state[0])))


def controller(start: jax.Array, rtol: jax.Array) -> diffrax.PIDController:
    """The controller of diffrax; tolerances are arrays, so that none compiles again."""
    return diffrax.PIDController(rtol=rtol, atol=1e-3 * rtol * jnp.min(start))


def solver_for(rtol: float) -> diffrax.AbstractSolver:
    """The solver that flowlab takes at a tolerance."""
    return diffrax.Dopri8() if rtol < 3e-8 else diffrax.Tsit5()


def way_of_flowlab(points: np.ndarray, rtol: float) -> np.ndarray:
    """`flowlab.sweep`."""
    flow = flowlab.preference_flow(flowlab.DPO(BETA), flowlab.RatioPlane())
    target = until.loss_below(LEVEL)
    return flowlab.sweep(flow, points, until=target, rtol=rtol, progress=False).time


@partial(jax.jit, static_argnums=2)
@partial(jax.vmap, in_axes=(0, None, None))
def _with_event(start: jax.Array, rtol: jax.Array, solver: diffrax.AbstractSolver) -> jax.Array:
    def velocity(t: Any, state: jax.Array, args: Any) -> jax.Array:
        del t, args
        return -jax.grad(loss)(state)

    def above(t: Any, y: jax.Array, args: Any, **kwargs: Any) -> jax.Array:
        del t, args, kwargs
        return loss(y) - LEVEL

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        solver,
        t0=0.0,
        t1=LATEST,
        dt0=None,
        y0=start,
        stepsize_controller=controller(start, rtol),
        event=diffrax.Event(above, optimistix.Newton(1e-12, 1e-12)),
        max_steps=MAX_STEPS,
        throw=False,
    )
    assert solution.ts is not None
    return solution.ts[-1]


@partial(jax.jit, static_argnums=2)
@partial(jax.vmap, in_axes=(0, None, None))
def _with_log_loss(start: jax.Array, rtol: jax.Array, solver: diffrax.AbstractSolver) -> jax.Array:
    def velocity(s: Any, state: tuple[jax.Array, jax.Array], length: jax.Array) -> Any:
        del s
        value, gradient = jax.value_and_grad(loss)(state[0])
        rate = length * value / jnp.vdot(gradient, gradient)
        return -rate * gradient, rate

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        solver,
        t0=0.0,
        t1=1.0,
        dt0=None,
        y0=(start, jnp.zeros(())),
        args=jnp.log(loss(start) / LEVEL),
        stepsize_controller=controller(start, rtol),
        max_steps=MAX_STEPS,
        throw=False,
    )
    assert solution.ys is not None
    return solution.ys[1][-1]


def way_of_events(points: np.ndarray, rtol: float) -> np.ndarray:
    """`jax.vmap` of `diffeqsolve` in x over time, ended by a real-valued event."""
    return np.asarray(_with_event(points, jnp.asarray(rtol), solver_for(rtol)))


def way_of_log_loss(points: np.ndarray, rtol: float) -> np.ndarray:
    """`jax.vmap` of `diffeqsolve` in x over the logarithm of the loss."""
    return np.asarray(_with_log_loss(points, jnp.asarray(rtol), solver_for(rtol)))


def way_of_scipy(points: np.ndarray, rtol: float) -> np.ndarray:
    """`scipy.integrate.solve_ivp`, RK45, one start at a time, ended by an event."""

    def velocity(t: float, state: np.ndarray) -> tuple[float, float]:
        del t
        # A step that is too long leaves the quadrant before it is rejected.
        chosen, rejected = max(float(state[0]), TINY), max(float(state[1]), TINY)
        pull = BETA / (1 + (chosen / rejected) ** BETA)
        return pull / chosen, -pull / rejected

    def above(t: float, state: np.ndarray) -> float:
        del t
        ratio = max(float(state[1]), TINY) / max(float(state[0]), TINY)
        return math.log1p(ratio**BETA) - LEVEL

    above.terminal = True  # type: ignore[attr-defined]
    times = []
    for start in points:
        atol = 1e-3 * rtol * start.min()
        solved = solve_ivp(velocity, (0, LATEST), start, rtol=rtol, atol=atol, events=above)
        times.append(solved.t_events[0][0] if solved.t_events[0].size else np.nan)
    return np.array(times)


def errors(times: np.ndarray, points: np.ndarray) -> dict[str, float]:
    """Median and largest relative error against the closed form."""
    true = exact.ratio_plane_time(points, BETA, level=LEVEL)
    off = np.nan_to_num(np.abs(times - true) / true, nan=np.inf)
    return {
        "median_error": float(np.median(off)),
        "largest_error": float(np.max(off)),
    }


def fair_tolerance(way: Way, points: np.ndarray, rtol: float, times: np.ndarray) -> float:
    """The tightest tolerance at which a rival's errors are no smaller than those of `times`."""
    chosen, ours = LOOSEST, errors(times, points)
    for tried in LOOSEST * 10.0 ** (-np.arange(1, 24) / 2):
        theirs = errors(way(points, float(tried)), points)
        if any(theirs[name] < ours[name] for name in ours) or tried < rtol / 1000:
            break
        chosen = float(tried)
    return chosen


def timed(way: Way, points: np.ndarray, rtol: float) -> tuple[float, np.ndarray]:
    """Seconds that a way takes, and its times."""
    began = time.perf_counter()
    times = way(points, rtol)
    return time.perf_counter() - began, times


def compared(points: np.ndarray, counts: dict[str, int], rtol: float, repetitions: int) -> Any:
    """Speed and errors of every way at one tolerance of flowlab."""
    ours = way_of_flowlab(points, rtol)
    rows: dict[str, dict[str, Any]] = {}
    for name, way in WAYS.items():
        pilot = min(PILOT, counts[name])
        tolerance = rtol
        if way is not way_of_flowlab:
            tolerance = fair_tolerance(way, points[:pilot], rtol, ours[:pilot])
        some = points[: counts[name]]
        first, times = timed(way, some, tolerance)
        rows[name] = {"starts": len(some), "rtol": tolerance, "first_call_s": first}
        rows[name] |= {**errors(times, some), "seconds": []}
    for _ in range(repetitions):
        for name, way in WAYS.items():
            took, _ = timed(way, points[: counts[name]], rows[name]["rtol"])
            rows[name]["seconds"].append(took)
    for row in rows.values():
        row["starts_per_s"] = row["starts"] / median(row["seconds"])
    for row in rows.values():
        row["flowlab_is_faster_by"] = rows["flowlab"]["starts_per_s"] / row["starts_per_s"]
    return {"flowlab_rtol": rtol, "ways": rows}


def compile_seconds() -> dict[str, float]:
    """Seconds of the first call with few starts, in which everything is compiled."""
    few = starts.uniform(8, LOWER, UPPER, key=1)
    return {name: timed(way, few, 1e-3)[0] for name, way in WAYS.items()}


WAYS: dict[str, Way] = {
    "flowlab": way_of_flowlab,
    "diffrax vmap, time, event": way_of_events,
    "diffrax vmap, log-loss clock": way_of_log_loss,
    "SciPy solve_ivp, event": way_of_scipy,
}


def main() -> None:
    """Measure and write the result."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--starts", type=int, default=65536, help="starts for flowlab")
    options = arguments.parse_args()
    jax.config.update("jax_enable_x64", True)
    count = 512 if options.smoke else options.starts
    points = starts.uniform(count, LOWER, UPPER, key=0)
    shares = dict(
        zip(WAYS, (count, min(count, 8192), min(count, 8192), min(count, 64)), strict=True)
    )
    if options.smoke:
        shares["SciPy solve_ivp, event"] = 4
    compilation = compile_seconds()
    repetitions = 1 if options.smoke else REPETITIONS
    rtols = RTOLS[:1] if options.smoke else RTOLS
    results = [compared(points, shares, rtol, repetitions) for rtol in rtols]
    emit(
        {
            "benchmark": "ensemble",
            "problem": f"ratio plane, DPO, beta {BETA}, time to L = {LEVEL}, float64",
            "repetitions": repetitions,
            "compile_s": compilation,
            "results": results,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
