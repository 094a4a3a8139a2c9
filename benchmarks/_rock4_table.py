"""Computes the coefficients of ROCK4, `flowlab/solve/rock4.json`, from what defines the method.

The stability polynomial is R = w·P: P of degree s − 4 is orthogonal with the weight w²/√(1 − x²),
and the two pairs of complex zeros of w are such that R agrees with the exponential to order 4, and
stays below 0.95 where it oscillates. Four stages with the stability function w then meet the
conditions of order 4 (one for each of eight trees) together with the recurrence of P; two of their
places are free.

    python benchmarks/_rock4_table.py

Source: Abdulle, Fourth order Chebyshev methods with recurrence relation, SIAM J. Sci. Comput. 23
    (2002) 2041–2054.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq, least_squares

from flowlab.solve.rock import recurrence

TABLE = Path(__file__).resolve().parents[1] / "flowlab" / "solve" / "rock4.json"
MOST = 1000  # stages
GROWTH = 1.1  # from one degree to the next, beyond those that follow each other
FIRST = [*range(5, 14)]
# Of degree 10: from the optimal polynomial, by linear programming, and then by hand.
SEED = (10, np.array([14.62562479, 7.85846857, 1.4918108, 20.98628455]))
SCALE = np.array([10.0, 8.0, 2.0, 20.0])
DAMPED = 0.95  # what |R| stays below where it oscillates
FOLLOWS = -3.0  # z up to which R follows the exponential, which is small there
ORIGIN = 0.1  # s² times how far x is beyond 1 where z = 0
PLACES = (
    0.25,
    0.6,
)  # of the second and the third of the last stages, on the way from P's place to 1
ESTIMATE = 2e-4  # weights of order 4 in the error estimate: as large as the error at h·λ = 1/10

# Trees up to order 5, in the order of `_slopes`: their density γ and their symmetry σ.
DENSITY = np.array([1, 2, 3, 6, 4, 8, 12, 24, 5, 10, 15, 30, 20, 20, 40, 60, 120.0])
SYMMETRY = np.array([1, 1, 2, 1, 6, 1, 2, 1, 24, 2, 2, 1, 2, 6, 1, 2, 1.0])
THIRD, FOURTH = slice(0, 4), slice(4, 8)  # trees up to order 3, and of order 4


def main() -> None:
    """Find all degrees and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TABLE)
    out = parser.parse_args().out
    degrees = list(FIRST)
    while degrees[-1] < MOST:
        degrees.append(int(np.ceil(GROWTH * degrees[-1])))
    zeros = all_zeros(degrees)
    rows = [json.dumps(coefficients(s, zeros[s])) for s in degrees]
    text = ",\n  ".join(rows)
    about = "by benchmarks/_rock4_table.py, after Abdulle (2002)"
    out.write_text(f'{{"about": "{about}", "degrees": [\n  {text}\n]}}\n', "utf-8")


def all_zeros(degrees: list[int]) -> dict[int, np.ndarray]:
    """The zeros of w for all degrees, each from those of its neighbours."""
    middle, found = SEED[0], {SEED[0]: solved(*SEED)}
    for s in [*range(middle - 1, degrees[0] - 1, -1), *(s for s in degrees if s > middle)]:
        near = sorted(found, key=lambda other: abs(other - s))[:2]
        guess = found[near[0]]
        if len(near) == 2 and s > middle:  # they run towards a limit like 1/s²
            size = [1 / n**2 for n in (s, *near)]
            guess = guess + (guess - found[near[1]]) * (size[0] - size[1]) / (size[1] - size[2])
        found[s] = solved(s, guess)
        print(s, found[s].round(6).tolist(), flush=True)
    return found


def solved(s: int, guess: np.ndarray) -> np.ndarray:
    """The zeros from near ones: three conditions of order, and the damping."""

    def conditions(zeros: np.ndarray) -> np.ndarray:
        return np.append(derivatives(s, zeros)[1:] - 1, largest(s, zeros) - DAMPED)

    exact = dict(x_scale=SCALE, xtol=3e-16, ftol=3e-16, gtol=3e-16)
    found = least_squares(conditions, guess, **exact, max_nfev=20).x  # type: ignore[arg-type]
    # The damping may be off by a little, the order not.
    order = lambda zeros: derivatives(s, zeros)[1:] - 1  # noqa: E731
    return least_squares(order, found, **exact, max_nfev=10).x  # type: ignore[arg-type]


def derivatives(s: int, zeros: np.ndarray) -> np.ndarray:
    """The derivatives of R at z = 0, from the first to the fourth."""
    rows, length = recurrence(s, zeros.tolist())
    before, last = np.zeros(5), np.eye(5)[0]
    orders = np.arange(5)
    for rise, back, again in rows:
        shifted = np.append(0, last[:-1]) * orders  # the derivatives of z·P
        last, before = rise * shifted + back * last + again * before, last
    w = weight(s, zeros, length)
    w = [w.deriv(m)(0.0) / w(0.0) if m else 1.0 for m in range(5)]
    binomial = [[1], [1, 1], [1, 2, 1], [1, 3, 3, 1], [1, 4, 6, 4, 1]]
    products = [
        sum(c * w[i] * last[m - i] for i, c in enumerate(row)) for m, row in enumerate(binomial)
    ]
    return np.array(products[1:])


def weight(s: int, zeros: np.ndarray, length: float) -> np.polynomial.Polynomial:
    """W as a polynomial of z."""
    per_z = (2 + ORIGIN / s**2) / length  # x by z
    total = np.polynomial.Polynomial([1.0])
    for real, imaginary in (zeros[:2], zeros[2:]):
        place, high = -(real + ORIGIN) / s**2 / per_z, imaginary / s**2 / per_z
        total *= np.polynomial.Polynomial([place**2 + high**2, -2 * place, 1.0])
    return total


def stability(s: int, zeros: np.ndarray, z: np.ndarray) -> np.ndarray:
    """R at points."""
    rows, length = recurrence(s, zeros.tolist())
    before, last = np.zeros_like(z), np.ones_like(z)
    for rise, back, again in rows:
        last, before = (rise * z + back) * last + again * before, last
    w = weight(s, zeros, length)
    return last * w(z) / w(0.0)


def largest(s: int, zeros: np.ndarray) -> float:
    """The largest |R| where it does not follow the exponential: among its first extrema."""
    _, length = recurrence(s, zeros.tolist())
    angle = np.linspace(0, min(np.pi, 12 * np.pi / s), 1200)
    x = np.cos(angle)
    z = (x - 1 - ORIGIN / s**2) * length / (2 + ORIGIN / s**2)
    sizes = np.abs(stability(s, zeros, z[z < FOLLOWS]))
    top = int(np.argmax(sizes))
    if not 0 < top < len(sizes) - 1:
        return float(sizes[top])
    low, mid, high = sizes[top - 1 : top + 2]  # the top of the parabola through three points
    return float(mid - (low - high) ** 2 / 8 / (low - 2 * mid + high))


def coefficients(s: int, zeros: np.ndarray) -> dict[str, Any]:
    """All that is kept of a degree."""
    inner, end, slopes, weights = last_stages(s, zeros)
    # The point before the last stages, less the start, and their slopes: what all else is made of.
    made_of = np.column_stack([weights[:8], *(slope[:8] for slope in slopes)])
    null = np.linalg.svd(made_of[THIRD])[2][-1]
    of_fourth = made_of[FOURTH] @ null
    error = null * ESTIMATE / np.linalg.norm(of_fourth / SYMMETRY[FOURTH])
    bend, twist = interpolant(made_of, np.append(1.0, end), null)
    return {
        "stages": s,
        "zeros": zeros.tolist(),
        "inner": inner.tolist(),
        "places": (weights[0] + inner.sum(axis=1)).tolist(),
        "end": end.tolist(),
        "error": error.tolist(),
        "bend": bend.tolist(),
        "twist": twist.tolist(),
    }


def last_stages(
    s: int, zeros: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """The matrix of the last stages, their weights in the end, and weights of trees.

    These are those of the four slopes, and of the point that they begin at.
    """
    rows, _ = recurrence(s, zeros.tolist())
    before, start = np.zeros(17), np.zeros(17)
    for rise, back, again in rows:
        start, before = rise * _slopes(start) + back * start + again * before, start
    free = [place * (1 - start[0]) for place in PLACES]

    def last(c4: float) -> float:
        return _four(start, np.array([0, *free, c4]))[2]

    around = 1.02 - start[0]  # where the fourth place of the last stages lies
    c4 = brentq(last, around - 0.05, around + 0.05, xtol=1e-15)
    inner, end, _ = _four(start, np.array([0, *free, c4]))
    slopes: list[np.ndarray] = []
    for i in range(4):
        stage = start + sum((inner[i, j] * slopes[j] for j in range(i)), np.zeros(17))
        slopes.append(_slopes(stage))
    return inner, end, slopes, start


def _slopes(weights: np.ndarray) -> np.ndarray:
    """The weights of trees of a slope, from those of the point that it is taken at.

    With t the tree of one node and [..] a root that carries trees: t, [t], [tt], [[t]], [ttt],
    [t[t]], [[tt]], [[[t]]], and of order 5 [tttt], [tt[t]], [t[tt]], [t[[t]]], [[t][t]], [[ttt]],
    [[t[t]]], [[[tt]]], [[[[t]]]].
    """
    t, one, two, chain, three, mixed, fork, long = weights[:8]
    third = [t**3, t * one, two, chain]
    fourth = [t**4, t**2 * one, t * two, t * chain, one**2, three, mixed, fork, long]
    return np.array([1.0, t, t**2, one, *third, *fourth])


def _four(start: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The stages at places c behind the start, and what the tallest tree lacks."""
    wanted = 1 / DENSITY[:8] - start[:8]
    places = start[0] + c
    b = np.linalg.solve(np.vander(places, 4, increasing=True).T, wanted[[0, 1, 2, 4]])
    rest = start[1] + c * start[0]  # of the tree [t], without what the stages see of each other
    seen = np.linalg.solve(
        [[b[2], b[3]], [b[2] * places[2], b[3] * places[3]]],
        [wanted[3] - b @ rest, wanted[5] - (b * places) @ rest],
    )
    squares = start[2] + c * start[0] ** 2
    left = wanted[6] - b @ squares - (b[2:] @ seen) * (c[1] + 2 * start[0])
    a43 = left / (b[3] * c[2] * (c[2] - c[1]))
    a32, a42 = seen[0] / c[1], (seen[1] - a43 * c[2]) / c[1]
    inner = np.zeros((4, 4))
    inner[1, 0] = c[1]
    inner[2, :2] = c[2] - a32, a32
    inner[3, :3] = c[3] - a42 - a43, a42, a43
    of_chain = rest + np.append([0, 0], seen)
    return inner, b, float(b @ (start[3] + inner @ of_chain) - wanted[7])


def interpolant(
    made_of: np.ndarray, end: np.ndarray, null: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bend and the twist: of order 3 everywhere, and as near to order 4 as can be."""
    bend = np.linalg.lstsq(made_of[THIRD], np.array([0, 1 / 2, 1 / 3, 1 / 6]), rcond=None)[0]
    twist = np.linalg.lstsq(made_of[THIRD], np.array([0, 0, 1 / 3, 1 / 6]), rcond=None)[0]
    places = np.linspace(0.05, 0.95, 19)
    of_null = made_of[FOURTH] @ null / SYMMETRY[FOURTH]
    unknowns, lacks = [], []
    for at in places:
        hump = at * (at - 1)
        now = made_of[FOURTH] @ (at * end + hump * (bend + at * twist))
        lacks.append((at**4 / DENSITY[FOURTH] - now) / SYMMETRY[FOURTH])
        unknowns.append(np.column_stack([hump * of_null, hump * at * of_null]))
    more = np.linalg.lstsq(np.concatenate(unknowns), np.concatenate(lacks), rcond=None)[0]
    return bend + more[0] * null, twist + more[1] * null


if __name__ == "__main__":
    main()
