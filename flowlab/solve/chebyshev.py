"""RKC2: the stabilised method of order 2, based on damped Chebyshev polynomials.

The product h·ρ of a step and the fastest rate is at most 2.6e6, with 2,000 stages, in float64, and
52, with 9 stages, in float32.

Source: Sommeijer, Shampine and Verwer, J. Comput. Appl. Math. 88 (1998) 315–326.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from flowlab.solve.stabilised import AbstractStabilised, Slope, spread

__all__ = ["RKC2"]

_DAMPING = 2 / 13  # damping: the polynomials stay so far below 1 inside the interval, as in RKC
_FEWEST, _MOST = 4, 2000  # stages: at least two inner ones of order 2; at most for h·ρ = 2.6e6
_INTERVAL = 1.54  # (s² − 1)/(h·ρ): a little above 3/2, because of the damping; as in RKC
_ERROR = 2 / 3  # ratio of the local error h³y'''/15 to the third divided difference of the stages,
# h³y'''/10, since a stage at c has the term c³/10 instead of c³/6
_ROUNDINGS = 10.0  # machine epsilons: the rounding error of s stages, over s²; as in RKC
_WORTH = 1e-4  # the relative rounding error that is acceptable


class RKC2(AbstractStabilised):
    """The Runge–Kutta–Chebyshev method of order 2, an explicit method for stiff flows.

    With ρ the largest rate, a step of length h takes about 1.24·√(h·ρ) evaluations of the field. A
    standard explicit method covers the same time in many short steps, with about 2·h·ρ evaluations.
    RKC2 is better than `ROCK4` if rates differ by a factor of 1e5 or more, if rtol is 1e-4 or more,
    in curved valleys, and in float32. It can be used as `solver=` in `flow_line` and `sweep`, under
    the clocks of time and of arc length and with a constant metric, and in `diffrax.diffeqsolve`.

    The error estimate and the interpolant of a step use the values at two inner stages and at both
    ends of the step. They do not use slopes, in which errors of the values are multiplied by the
    largest rate.

    Source: Sommeijer, Shampine and Verwer, RKC: an explicit solver for parabolic PDEs, J. Comput.
        Appl. Math. 88 (1998) 315–326.

    Accuracy: order 2. Errors accumulate over the many steps of a line: to 100·rtol for rtol = 1e-6
        over five times the slowest time scale. If the spectrum is not real, a step can be unstable;
        the error estimate detects this, and the steps become shorter.
    """

    def order(self, terms: Any) -> int:
        del terms
        return 2

    def error_order(self, terms: Any) -> int:
        del terms
        return 3

    def stages(self, reach: Float[Array, ""]) -> Int[Array, ""]:
        needed = jnp.ceil(jnp.sqrt(1 + _INTERVAL * reach)).astype(jnp.int32)
        return jnp.maximum(needed, _FEWEST)

    def longest(self, dtype: Any, rtol: Any) -> float:
        del rtol
        rounding = np.sqrt(_WORTH / (_ROUNDINGS * float(jnp.finfo(dtype).eps)))
        most = int(np.clip(rounding, _FEWEST, _MOST))
        return (most**2 - 1) / _INTERVAL

    def stepped(
        self, slope: Slope, y0: PyTree[Array], part: Float[Array, "*n"], stages: Int[Array, ""]
    ) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array], PyTree[Array]]:
        number = part.dtype.type
        s = stages.astype(part.dtype)
        w0, w1 = _scaling(s)
        first, one, nought = slope(number(0), y0), jnp.ones_like(s), jnp.zeros_like(s)
        inner = [jnp.floor(jnp.sqrt(1 + (s**2 - 1) * third)) for third in (1 / 3, 2 / 3)]

        def stage(j: Array, carry: Any) -> Any:
            (last, before), (t, dt, ddt), b, c, kept, nodes = carry
            # Of each pair the last one first, then the one before.
            t = (2 * w0 * t[0] - t[1], t[0])
            dt = (2 * t[1] + 2 * w0 * dt[0] - dt[1], dt[0])
            ddt = (4 * dt[1] + 2 * w0 * ddt[0] - ddt[1], ddt[0])
            new = ddt[0] / dt[0] ** 2
            mu, nu, rise = 2 * new * w0 / b[0], -new / b[1], 2 * new * w1 / b[0]
            back = -(1 - b[0] * t[1]) * rise

            def combined(y0: Array, y1: Array, y2: Array, f: Array, f0: Array) -> Array:
                slopes = rise * f + back * f0
                return y0 + mu * (y1 - y0) + nu * (y2 - y0) + spread(part, f) * slopes

            y = jax.tree.map(combined, y0, last, before, slope(c, last), first)
            c = w1 * ddt[0] / dt[0]
            here = [j.astype(s.dtype) == node for node in inner]
            kept = [
                jax.tree.map(lambda new, old, h=h: jnp.where(h, new, old), y, old)
                for h, old in zip(here, kept, strict=True)
            ]
            nodes = [jnp.where(h, c, old) for h, old in zip(here, nodes, strict=True)]
            return (y, last), (t, dt, ddt), (new, b[0]), c, kept, nodes

        c1 = w1 / w0
        y1 = jax.tree.map(lambda y, f: y + c1 * spread(part, f) * f, y0, first)
        chebyshev = ((w0, one), (one, nought), (nought, nought))
        carry = ((y1, y0), chebyshev, (1 / w0, 1 / (4 * w0**2)), c1, [y0, y0], [nought, nought])
        (end, _), _, _, _, kept, nodes = lax.fori_loop(2, stages + 1, stage, carry)
        bend, twist = _cubic(y0, end, kept, nodes)
        return end, jax.tree.map(lambda third: _ERROR * third, twist), bend, twist


def _scaling(s: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The constants w0 and w1 = T'(w0)/T''(w0) of RKC2 with s stages, without cancellation.

    T is the Chebyshev polynomial of degree s.
    """
    above = _DAMPING / s**2
    root = jnp.sqrt(above * (2 + above))
    angle = s * jnp.arcsinh(root)
    lower = jnp.cosh(angle) * s * root - (1 + above) * jnp.sinh(angle)
    return 1 + above, jnp.sinh(angle) * root**2 / lower


def _cubic(
    y0: PyTree[Array], y1: PyTree[Array], kept: list[PyTree[Array]], nodes: list[Array]
) -> tuple[PyTree[Array], PyTree[Array]]:
    """The coefficients `bend` and `twist` of the `Cubic` through both ends and two inner stages."""

    def beyond(node: Array, y: PyTree[Array]) -> PyTree[Array]:
        """The deviation of a stage from the straight line, divided by θ(θ − 1)."""
        return jax.tree.map(
            lambda a, b, c: (b - a - node * (c - a)) / (node * (node - 1)), y0, y, y1
        )

    low, high = (beyond(node, y) for node, y in zip(nodes, kept, strict=True))
    apart = nodes[1] - nodes[0]
    twist = jax.tree.map(lambda a, b: (b - a) / apart, low, high)
    return jax.tree.map(lambda a, t: a - nodes[0] * t, low, twist), twist
