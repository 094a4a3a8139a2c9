"""ROCK4: the stabilised method of order 4, based on tabulated orthogonal polynomials.

Of s stages, the first s − 4 follow the three-term recurrence of orthogonal polynomials. Their
weight is chosen such that four further stages give order 4. The last four stages amplify rounding
by (h·ρ)⁴/80, with the step h and the fastest rate ρ. Therefore h·ρ is at most about 640 at rtol
1e-6 in float64, and 13 at 1e-4 in float32. The coefficients are in `rock4.json`, and were not
copied from the paper but computed by `benchmarks/_rock4_table.py`.

Source: Abdulle, SIAM J. Sci. Comput. 23 (2002) 2041–2054.
"""

import json
from functools import cache, partial
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from flowlab.solve.stabilised import AbstractStabilised, Slope, spread

__all__ = ["ROCK4", "recurrence"]

_LAST = 4  # stages that give the order, after those of the recurrence
_SLACK = (
    0.05  # over s², of the point where z = 0 beyond the end of the interval: it is damped there
)
_KEPT = 0.98  # of the stable interval, a margin for rounding
_GAIN = 80.0  # |w(z)| ≈ z⁴/80: the product of its zeros
_NOISE = 0.5  # of rtol: the largest amplified rounding error


class ROCK4(AbstractStabilised):
    """The orthogonal Runge–Kutta–Chebyshev method of order 4, an explicit method for stiff flows.

    With ρ the largest rate, a step of length h takes about 1.7·√(h·ρ) evaluations of the field. A
    standard explicit method covers the same time in many short steps, with about 2·h·ρ evaluations.
    The last four stages amplify rounding errors in the fastest directions by (h·ρ)⁴/80. The
    rounding errors of the field are also amplified, so that compensated sums would not help. Steps
    are kept short enough that the amplified errors stay below half of the tolerance: h·ρ is at most
    about 2,000 at an rtol of 1e-4, 640 at 1e-6 and 110 at 1e-9, in float64. If rates differ by a
    factor of 1e5 or more, `RKC2` can need fewer evaluations. ROCK4 can be used as `solver=` in
    `flow_line` and `sweep`, under the clocks of time and of arc length and with a constant metric,
    and in `diffrax.diffeqsolve`.

    All stages but the last four are a three-term recurrence of polynomials that are orthogonal with
    the weight w²/√(1 − x²). The last four stages have the stability function w, of degree four with
    complex zeros. Together with the recurrence they satisfy the conditions of order 4. The error
    estimate and the interpolant use the slopes of the last four stages and the point before these,
    which are damped in fast directions. They do not use the slopes at the ends of the step, which
    are not damped.

    Source: Abdulle, Fourth order Chebyshev methods with recurrence relation, SIAM J. Sci. Comput.
        23 (2002) 2041–2054. The zeros of w and the last stages were computed by
        `benchmarks/_rock4_table.py`; the error estimate differs from the paper's.

    Accuracy: order 4; the interpolant has order 3. If the spectrum is not real, a step can be
        unstable; the error estimate detects this, and the steps become shorter.
    """

    def order(self, terms: Any) -> int:
        del terms
        return 4

    def error_order(self, terms: Any) -> int:
        del terms
        return 4

    def stages(self, reach: Float[Array, ""]) -> Int[Array, ""]:
        table = _table()
        return jnp.asarray(table.degrees)[self._index(reach)]

    def longest(self, dtype: Any, rtol: Any) -> Float[Array, ""]:
        lengths = _table().lengths
        allowed = _GAIN * _NOISE / float(jnp.finfo(dtype).eps) * jnp.asarray(rtol, dtype)
        return _KEPT * jnp.clip(allowed ** (1 / _LAST), float(lengths[0]), float(lengths[-1]))

    def stepped(
        self, slope: Slope, y0: PyTree[Array], part: Float[Array, "*n"], stages: Int[Array, ""]
    ) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array], PyTree[Array]]:
        table, dtype = _table(), part.dtype
        row = jnp.searchsorted(jnp.asarray(table.degrees), stages)
        begin = jnp.asarray(table.begins)[row]
        recurrence, places = (jnp.asarray(x, dtype) for x in (table.recurrence, table.places))

        def stage(j: Array, carry: Any) -> Any:
            last, before = carry
            rise, back, again = recurrence[begin + j]
            f = slope(places[begin + j], last)

            def combined(y1: Array, y2: Array, f: Array) -> Array:
                return rise * spread(part, f) * f + back * y1 + again * y2

            return jax.tree.map(combined, last, before, f), last

        inner = lax.fori_loop(0, stages - _LAST, stage, (y0, y0))[0]
        last = {name: jnp.asarray(x, dtype)[row] for name, x in table.last.items()}
        moved = jax.tree.map(jnp.subtract, inner, y0)

        def final(i: Array, slopes: PyTree[Array]) -> PyTree[Array]:
            f = slope(last["places"][i], _sum(inner, last["inner"][i], slopes))
            return jax.tree.map(
                lambda all_, one: all_.at[i].set(spread(part, one) * one), slopes, f
            )

        room = jax.tree.map(lambda y: jnp.zeros((_LAST, *y.shape), y.dtype), y0)
        slopes = lax.fori_loop(0, _LAST, final, room)
        y1 = _sum(inner, last["end"], slopes)
        error, bend, twist = (
            _sum(jax.tree.map(partial(jnp.multiply, last[name][0]), moved), last[name][1:], slopes)
            for name in ("error", "bend", "twist")
        )
        return y1, error, bend, twist

    def _index(self, reach: Float[Array, ""]) -> Int[Array, ""]:
        lengths = jnp.asarray(_KEPT * _table().lengths, reach.dtype)
        return jnp.minimum(jnp.searchsorted(lengths, reach), len(lengths) - 1)


class _Table(NamedTuple):
    """Coefficients for a set of t numbers of stages.

    Attributes:
        degrees: The numbers of stages.
        lengths: The lengths of the stable intervals of the negative axis.
        begins: The first row of each number of stages in `recurrence` and `places`.
        recurrence: For each stage of the recurrences, the weights of the slope and of the two
            previous stages.
        places: The fraction of the step at which each of these slopes is taken.
        last: Coefficients of the last four stages by name, with the degrees on the first axis.
    """

    degrees: Int[np.ndarray, " t"]
    lengths: Float[np.ndarray, " t"]
    begins: Int[np.ndarray, " t"]
    recurrence: Float[np.ndarray, "r 3"]
    places: Float[np.ndarray, " r"]
    last: dict[str, Float[np.ndarray, "t ..."]]


@cache
def _table() -> _Table:
    text = resources.files("flowlab.solve").joinpath("rock4.json").read_text("utf-8")
    rows = json.loads(text)["degrees"]
    degrees = np.array([row["stages"] for row in rows], np.int32)
    found = [recurrence(row["stages"], row["zeros"]) for row in rows]
    weights, lengths = [part for part, _ in found], [length for _, length in found]
    names = ("inner", "places", "end", "error", "bend", "twist")
    return _Table(
        degrees,
        np.array(lengths),
        np.concatenate([[0], np.cumsum(degrees - _LAST)[:-1]]).astype(np.int32),
        np.concatenate(weights),
        np.concatenate([_places(part) for part in weights]),
        {name: np.array([row[name] for row in rows]) for name in names},
    )


def recurrence(stages: int, zeros: list[float]) -> tuple[Float[np.ndarray, "r 3"], float]:
    """The recurrence for s stages, and the length of its stable interval.

    Row j of the recurrence defines stage g_j, with the step h, the field f and g_0 = y0:
    g_j = row[0]·h·f(g_{j−1}) + row[1]·g_{j−1} + row[2]·g_{j−2}.

    Args:
        stages: s, the number of stages and the degree of the stability polynomial.
        zeros: (A, B, C, D): w has the zeros 1 − (A ± iB)/s² and 1 − (C ± iD)/s².

    The polynomials are orthogonal on [−1, 1] with the weight w²/√(1 − x²). They are computed by
    Stieltjes' procedure on enough Gauss–Chebyshev nodes that it is exact.
    """
    count, size = stages - _LAST, stages**2
    origin = 1 + 2 * _SLACK / size  # where z = 0
    nodes = np.cos((np.arange(stages + 8) + 0.5) * np.pi / (stages + 8))
    pairs = [(1 - real / size, imaginary / size) for real, imaginary in (zeros[:2], zeros[2:])]
    weight = np.prod([(nodes - a) ** 2 + b**2 for a, b in pairs], axis=0)
    weight = (weight / np.max(weight)) ** 2
    last, before = np.full(len(nodes), 1 / np.sqrt(np.sum(weight))), np.zeros(len(nodes))
    value, earlier, slope, slope_earlier, norm = 1.0, 0.0, 0.0, 0.0, 0.0
    rows = np.zeros((count, 3))
    for j in range(count):
        mean = np.sum(weight * nodes * last**2)
        new = (nodes - mean) * last - norm * before
        next_norm = np.sqrt(np.sum(weight * new**2))
        before, last = last, new / next_norm
        ahead = ((origin - mean) * value - norm * earlier) / next_norm
        slope, slope_earlier = (
            (value + (origin - mean) * slope - norm * slope_earlier) / next_norm,
            slope,
        )
        rows[j] = np.array([value, (origin - mean) * value, -norm * earlier]) / (next_norm * ahead)
        # Values at the origin are normalised to 1, so that they do not overflow.
        earlier, value = value / ahead, 1.0
        slope, slope_earlier, norm = slope / ahead, slope_earlier / ahead, next_norm
    of_weight = sum(2 * (origin - a) / ((origin - a) ** 2 + b**2) for a, b in pairs)
    rate = slope + of_weight  # dR/dx there, which is dR/dz times what x is long in z
    rows[:, 0] /= rate
    return rows, float((1 + origin) * rate)


def _places(rows: Float[np.ndarray, "r 3"]) -> Float[np.ndarray, " r"]:
    """The fraction of the step at which the slope of each stage is taken."""
    places, before = [0.0], 0.0
    for rise, back, again in rows:
        places.append(rise + back * places[-1] + again * before)
        before = places[-2]
    return np.array(places[:-1])


def _sum(start: PyTree[Array], weights: Float[Array, " 4"], slopes: PyTree[Array]) -> PyTree[Array]:
    """A point plus a weighted sum of slopes, which are stacked on the first axis."""
    return jax.tree.map(lambda y, k: y + jnp.tensordot(weights, k, axes=1), start, slopes)
