"""Evaluations, accuracy and memory of solvers of stiff flows, against other methods.

Quadratics with rates from 1 to κ in rotated axes, followed for five e-foldings of the slowest rate;
IPO on pairs of very unequal scale under a linear policy, and a network made linear at its start,
which are quadratics too, with exact solutions by their eigenvalues; Rosenbrock's valley, against
Radau at a tight tolerance. An evaluation is one of the gradient, or of its derivative by a vector.

In 10,000 dimensions ROCK4 by `diffrax.diffeqsolve` against Kvaerno5 with biconjugate gradients:
seconds, and the memory that XLA says the programs take beside their arguments, in states.
"""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix
from _common import devices, emit, parser
from scipy.integrate import solve_ivp

import flowlab
from flowlab import Flow, until
from flowlab.solve import RKC2, ROCK4, Rodas5P

CONDITIONS = (1e3, 1e4, 1e6)
DIMENSIONS = (2, 20, 200)
RTOLS = (1e-4, 1e-6)
FOLDS = 5.0  # e-foldings of the slowest rate that are followed
MANY, STIFF = 10_000, 1e4  # dimensions and condition of the large one
WAYS: dict[str, Any] = {
    "ROCK4": ROCK4(),
    "RKC2": RKC2(),
    "Rodas5P": Rodas5P(),
    "default": None,
}
SMALL = 20  # dimensions up to which solvers with a matrix are measured: ours, and SciPy's BDF
TIGHT = dict(method="Radau", rtol=1e-11, atol=1e-14)

Array = Any


class Problem(NamedTuple):
    """A potential by its gradient, where it starts, how long it is followed, and where it ends."""

    name: str
    gradient: Callable[[Array], Array]
    start: np.ndarray
    time: float
    end: np.ndarray
    condition: float


COUNT = [0]  # of evaluations; outside of a flow, which is taken apart to be compiled


def add_one() -> None:
    """Count one evaluation."""
    COUNT[0] += 1


def counted(gradient: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A gradient that counts how often it is computed, or its derivative by a vector."""

    @jax.custom_jvp
    def found(y: Array) -> Array:
        jax.debug.callback(lambda: add_one())
        return gradient(y)

    @found.defjvp
    def along(primals: Any, tangents: Any) -> Any:
        # Of many vectors at once each is one: the callback is called for each.
        jax.debug.callback(lambda _: add_one(), tangents[0])
        return jax.jvp(gradient, primals, tangents)

    return found


class Counted(Flow):
    """A flow by its gradient, which counts how often that is computed."""

    given: Callable[[Array], Array]

    def __init__(self, gradient: Callable[[Array], Array]) -> None:
        super().__init__(lambda y: y @ gradient(y) / 2)  # right for the quadratics, used by none
        self.given = counted(gradient)

    def gradient(self, state: Array) -> Array:
        return self.given(state)


def rotated(dimensions: int, condition: float, folds: float = FOLDS) -> Problem:
    """A quadratic with rates from 1 to κ, whose axes are reflected at a random plane."""
    normal = np.random.default_rng(0).standard_normal(dimensions)
    normal /= np.linalg.norm(normal)
    rates = np.geomspace(1, condition, dimensions)

    def reflected(y: Array) -> Array:
        return y - 2 * (normal @ y) * normal

    start = reflected(np.ones(dimensions))
    end = reflected(np.exp(-folds * rates))
    name = f"quadratic, {dimensions} dimensions, κ {condition:.0e}"

    def gradient(y: Array) -> Array:
        return reflected(rates * reflected(y))

    return Problem(name, gradient, start, folds, end, condition)


def quadratic(name: str, matrix: np.ndarray, shift: np.ndarray) -> Problem:
    """½ yᵀAy − bᵀy from 0, followed for five e-foldings of its slowest rate that is not 0."""
    rates, axes = np.linalg.eigh(matrix)
    rates = np.where(rates > 1e-12 * rates[-1], rates, 0)
    slowest = np.min(rates[rates > 0])
    duration = FOLDS / slowest
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(rates > 0, -np.expm1(-rates * duration) / rates, duration)
    end = axes @ (gain * (axes.T @ shift))

    def gradient(y: Array) -> Array:
        return jnp.asarray(matrix) @ y - jnp.asarray(shift)

    return Problem(name, gradient, np.full_like(shift, 1e-9), duration, end, rates[-1] / slowest)


def unequal_pairs(pairs: int = 6) -> Problem:
    """Summed IPO, Σ (φ·θ − 1/(2τ))², on pairs whose features differ in scale by up to 300."""
    features = np.random.default_rng(1).standard_normal((pairs, 10))
    features *= np.geomspace(1, 300, pairs)[:, None]
    matrix = 2 * features.T @ features / pairs
    return quadratic(
        "IPO, pairs of unequal scale", matrix, features.T @ np.full(pairs, 10.0) / pairs
    )


def linear_network(width: int = 40, examples: int = 12) -> Problem:
    """Least squares under a network of one layer, linear in its weights as at its start."""
    generator = np.random.default_rng(2)
    inputs = np.linspace(-1, 1, examples)[:, None]
    first, bias = generator.standard_normal((1, width)), generator.standard_normal(width)
    last = generator.standard_normal(width) / np.sqrt(width)
    hidden = np.tanh(inputs * first + bias)
    slopes = (1 - hidden**2) * last
    jacobian = np.concatenate([hidden, slopes * inputs, slopes], axis=1)
    kept = np.linalg.svd(jacobian, full_matrices=False)
    sizes = np.where(kept[1] > 3e-3 * kept[1][0], kept[1], 0)  # κ about 1e5
    jacobian = kept[0] @ np.diag(sizes) @ kept[2]
    wanted = np.sin(3 * inputs[:, 0])
    matrix, shift = jacobian.T @ jacobian, jacobian.T @ wanted
    return quadratic("network, made linear", matrix, shift)


def rosenbrock(steepness: float = 1e4, duration: float = 5.0) -> Problem:
    """Rosenbrock's valley, against Radau at a tight tolerance."""

    def gradient(y: Array) -> Array:
        across = y[1] - y[0] ** 2
        return jnp.stack([-2 * (1 - y[0]) - 4 * steepness * y[0] * across, 2 * steepness * across])

    def velocity(_: float, y: np.ndarray) -> list[float]:
        across = y[1] - y[0] ** 2
        return [2 * (1 - y[0]) + 4 * steepness * y[0] * across, -2 * steepness * across]

    start = np.array([-0.5, 1.0])
    end = solve_ivp(velocity, (0, duration), start, **TIGHT).y[:, -1]  # type: ignore[arg-type]
    return Problem("Rosenbrock, 1e4", gradient, start, duration, end, steepness)


def problems(smoke: bool) -> Iterator[Problem]:
    """All that are measured."""
    if smoke:
        yield rotated(4, 1e3)
        return
    yield from (rotated(d, k) for d in DIMENSIONS for k in CONDITIONS)
    yield from (unequal_pairs(), linear_network(), rosenbrock())


def rows_of(problem: Problem, way: str) -> list[dict[str, Any]]:
    """Evaluations, steps and the error of one way at all tolerances, compiled once."""
    flow, target, found = Counted(problem.gradient), until.time(problem.time), []
    for rtol in RTOLS:
        COUNT[0] = 0
        options: Any = dict(solver=WAYS[way], rtol=rtol, clock="time")
        line = flowlab.flow_line(flow, problem.start, until=target, **options)
        jax.effects_barrier()
        numbers = _row(problem, COUNT[0], line.end, rtol)
        told = {"way": way, "solver": line.solver, "steps": int(line.steps)}
        found.append({**told, "outcome": until.Outcome(int(line.outcome)).name, **numbers})
        print(found[-1], file=sys.stderr, flush=True)
    return found


def peer(problem: Problem, method: str, rtol: float) -> dict[str, Any]:
    """The same of SciPy, Jacobians by differences, each a column at a time, included."""
    gradient = jax.jit(problem.gradient)
    count = 0

    def velocity(_: float, y: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return -np.asarray(gradient(y))

    atol = rtol * 1e-3 * max(float(np.min(np.abs(problem.start))), 1e-12)
    options: Any = dict(method=method, rtol=rtol, atol=atol)
    solved = solve_ivp(velocity, (0, problem.time), problem.start, **options)
    found = _row(problem, count, solved.y[:, -1], rtol)
    return {"way": f"SciPy {method}", "steps": len(solved.t) - 1, **found}


def is_measured(problem: Problem, way: str) -> bool:
    """True if a way is measured on a problem: it is for states of its size."""
    return way != "Rodas5P" or len(problem.start) <= SMALL


def beside(peers: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a problem, with their evaluations over those of a peer at the same tolerance."""
    theirs = {row["rtol"]: row["evaluations"] for row in peers}
    return [{**row, "over_bdf": row["evaluations"] / theirs[row["rtol"]]} for row in found] + peers


def _row(problem: Problem, evaluations: int, end: np.ndarray, rtol: float) -> dict[str, Any]:
    error = np.max(np.abs(end - problem.end)) / np.max(np.abs(problem.end))
    return {
        "problem": problem.name,
        "rtol": rtol,
        "evaluations": evaluations,
        "per_fold_over_root": float(evaluations / FOLDS / np.sqrt(problem.condition)),
        "error_over_rtol": float(error / rtol),
    }


def large(dimensions: int, condition: float, rtol: float) -> list[dict[str, Any]]:
    """ROCK4 and Kvaerno5 with biconjugate gradients, on the same large quadratic."""
    problem = rotated(dimensions, condition, 1.0)
    # diffrax cannot be told that the matrix of a step, I − hγJ, is symmetric and positive, which
    # plain conjugate gradients ask for.
    linear = lineax.BiCGStab(rtol=rtol, atol=rtol)
    newton = optimistix.Newton(rtol=rtol, atol=rtol * 1e-3, linear_solver=linear)
    ways = {
        "ROCK4": ROCK4(),
        "Kvaerno5, biconjugate gradients": diffrax.Kvaerno5(root_finder=newton),
    }
    rows = []
    for name, solver in ways.items():
        solve = _compiled(problem, solver, rtol)
        solve(problem.start)
        began = time.perf_counter()
        end = np.asarray(solve(problem.start))
        seconds = time.perf_counter() - began
        memory = solve.memory_analysis()
        states = memory.temp_size_in_bytes / problem.start.nbytes if memory else None
        error = np.max(np.abs(end - problem.end)) / np.max(np.abs(problem.end)) / rtol
        rows.append({"way": name, "rtol": rtol, "seconds": seconds, "states": states})
        rows[-1]["error_over_rtol"] = float(error)
    return rows


def _compiled(problem: Problem, solver: Any, rtol: float) -> Any:
    def field(t: Any, y: Array, args: Any) -> Array:
        del t, args
        return -problem.gradient(y)

    @jax.jit
    def end(start: Array) -> Array:
        controller = diffrax.PIDController(rtol, rtol * 1e-3, dtmax=0.1)
        terms = diffrax.ODETerm(field)
        options: Any = dict(stepsize_controller=controller, max_steps=4096, throw=False)
        solution = diffrax.diffeqsolve(terms, solver, 0.0, problem.time, 1e-6, start, **options)
        assert solution.ys is not None
        return solution.ys[-1]

    return end.lower(problem.start).compile()


def main() -> None:
    """Measure and write the result."""
    options = parser(__doc__ or "").parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = []
    for problem in problems(options.smoke):
        small = len(problem.start) <= SMALL
        ways = [way for way in WAYS if is_measured(problem, way)]
        found = [row for way in ways for row in rows_of(problem, way)]
        rows += beside([peer(problem, "BDF", rtol) for rtol in RTOLS], found) if small else found
        print(problem.name, file=sys.stderr, flush=True)
    size = 50 if options.smoke else MANY
    result = {
        "benchmark": "stiff",
        "devices_seen": devices(),
        "e_foldings": FOLDS,
        "rows": rows,
        "large": {"dimensions": size, "rows": large(size, STIFF, RTOLS[0])},
    }
    emit(result, options.out)


if __name__ == "__main__":
    main()
