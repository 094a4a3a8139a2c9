"""Explicit Runge–Kutta methods of diffrax, for lanes that each take a fraction of a step.

Lane i takes the step φᵢh with its own φᵢ in [0, 1], so the step in the formulas of the method is an
array over the lanes. Each stage is evaluated for all lanes at once. The stages are written out in
optimised programs, and run in a loop in programs that should compile quickly.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from flowlab.solve.rows import written_out

__all__ = ["RungeKutta"]


class RungeKutta(diffrax.AbstractSolver):
    """An explicit Runge–Kutta method for lanes that each take a fraction of a shared step.

    Tableau, order, error estimate and interpolant are those of `method`. Each lane takes the
    fraction `args.fraction` (last axis) of the step. In optimised programs the stages are written
    out, since the fields are small and a step then needs no buffer. In other programs the stages
    are a loop over a buffer, as in diffrax, so that the field is compiled once instead of once per
    stage. Derivatives are forward-mode only.

    Args:
        method: An explicit Runge–Kutta solver of diffrax with one tableau.
    """

    method: diffrax.AbstractERK
    term_structure: ClassVar = diffrax.ODETerm

    @property
    def interpolation_cls(self) -> Callable[..., Any]:  # type: ignore[override]
        return self.method.interpolation_cls

    @property
    def stages(self) -> int:
        """The number of slopes that the interpolant of a step stores."""
        return self._tableau.num_stages

    def room(self, y: PyTree[Array], steps: int) -> dict[str, PyTree[Array]]:
        """A zero buffer for the interpolants of a number of steps."""

        def zeros(*lead: int) -> PyTree[Array]:
            return jax.tree.map(lambda leaf: jnp.zeros((*lead, *leaf.shape), leaf.dtype), y)

        return {"y0": zeros(steps), "y1": zeros(steps), "k": zeros(steps, self.stages)}

    def order(self, terms: Any) -> int | None:
        return self.method.order(terms)

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> PyTree[Array] | None:
        del t1
        return terms.vf(t0, y0, args) if self._tableau.fsal else None

    def blank(self, y0: PyTree[Array]) -> PyTree[Array] | None:
        """A solver state of zeros, of the shapes that `init` returns, for a first step."""
        return jax.tree.map(jnp.zeros_like, y0) if self._tableau.fsal else None

    def again(self, state: PyTree[Array] | None) -> PyTree[Array] | None:
        """The solver state for the next try after a rejected step: unchanged."""
        return state

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Any, Any, dict[str, Any], Any, diffrax.RESULTS]:
        tableau = self._tableau
        whole = t1 - t0
        part = whole * args.fraction

        def slope(node: float | Array, y: Any) -> Any:
            return terms.vf(t0 + node * whole, y, args)

        if not tableau.fsal:
            first = slope(0.0, y0)
        elif made_jump is False:
            first = solver_state
        else:
            first = lax.cond(made_jump, lambda: slope(0.0, y0), lambda: solver_state)
        solved = self._written_out if written_out() else self._in_a_loop
        y1, error, stages, last = solved(slope, first, y0, part)
        dense = {"y0": y0, "y1": y1, "k": stages}
        return y1, error, dense, last if tableau.fsal else None, diffrax.RESULTS.successful

    def stretch(self, dense: dict[str, PyTree[Array]]) -> Array:
        """An estimate of h·ρ, step times fastest rate, from the last two stages of a step.

        Both stages belong to the end of the step, but are different points y and y′ with slopes f
        and f′; the estimate is h·|f − f′|/|y − y′|. Of several lanes, the largest value.

        Source: Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.2.
        """
        rows = [np.zeros(self.stages), np.zeros(self.stages)]
        for row, weights in zip(rows, self._tableau.a_lower[-2:], strict=True):
            row[: len(weights)] = weights
        apart = rows[1] - rows[0]

        def squared(difference: Array) -> Array:
            return jnp.sum(difference**2, axis=tuple(range(difference.ndim - 1)))

        pushed, moved = 0.0, 0.0
        for stages in jax.tree.leaves(dense["k"].packed_coordinates):
            moves = jnp.tensordot(jnp.asarray(apart, stages.dtype), stages, axes=1)
            pushed = pushed + squared(stages[-1] - stages[-2])
            moved = moved + squared(moves)
        return jnp.max(jnp.sqrt(pushed / jnp.where(moved > 0, moved, jnp.inf)))

    def _written_out(self, slope: Callable[..., Any], first: Any, y0: Any, part: Array) -> Any:
        """The end of a step, its error, the slopes times each lane's step, and the last slope.

        The stages are written out.
        """
        tableau = self._tableau
        slopes = [first]
        for row, node in zip(tableau.a_lower, tableau.c, strict=True):
            slopes.append(slope(float(node), _sum(y0, part, row, slopes)))
        y1 = _sum(y0, part, tableau.b_sol, slopes)
        error = _sum(None, part, tableau.b_error, slopes)
        stages = jax.tree.map(lambda *leaves: jnp.stack([_times(part, k) for k in leaves]), *slopes)
        return y1, error, stages, slopes[-1]

    def _in_a_loop(self, slope: Callable[..., Any], first: Any, y0: Any, part: Array) -> Any:
        """The end of a step, its error, the slopes times each lane's step, and the last slope.

        The stages are a loop.
        """
        tableau = self._tableau
        square = np.zeros((tableau.num_stages - 1, tableau.num_stages))
        for row, weights in zip(square, tableau.a_lower, strict=True):
            row[: len(weights)] = weights
        rows, nodes = jnp.asarray(square, part.dtype), jnp.asarray(tableau.c, part.dtype)

        def stage(i: Array, slopes: Any) -> Any:
            new = slope(nodes[i], _weighted(y0, part, rows[i], slopes))
            return jax.tree.map(lambda all_, one: all_.at[i + 1].set(one), slopes, new)

        room = jax.tree.map(
            lambda k: jnp.zeros((tableau.num_stages, *k.shape), k.dtype).at[0].set(k), first
        )
        slopes = lax.fori_loop(0, len(rows), stage, room)
        y1 = _weighted(y0, part, jnp.asarray(tableau.b_sol, part.dtype), slopes)
        error = _weighted(None, part, jnp.asarray(tableau.b_error, part.dtype), slopes)
        stages = jax.tree.map(lambda all_: _times(part, all_), slopes)
        return y1, error, stages, jax.tree.map(lambda all_: all_[-1], slopes)

    @property
    def _tableau(self) -> diffrax.ButcherTableau:
        return self.method.tableau  # type: ignore[return-value]


def _sum(y: Any, step: Array, weights: np.ndarray, slopes: list[Any]) -> Any:
    """The sum y + step·Σ weights·slopes, without y if it is None; zero weights are omitted."""
    used = [(float(w), k) for w, k in zip(weights, slopes, strict=False) if w != 0]

    def rise(*parts: Array) -> Array:
        total = sum(w * part for (w, _), part in zip(used, parts, strict=True))
        return _times(step, total)  # type: ignore[arg-type]

    return _onto(y, jax.tree.map(rise, *(k for _, k in used)))


def _weighted(y: Any, step: Array, weights: Array, slopes: Any) -> Any:
    """The sum y + step·Σ weights·slopes, without y if it is None; the slopes are stacked."""
    return _onto(y, jax.tree.map(lambda k: _times(step, jnp.tensordot(weights, k, axes=1)), slopes))


def _onto(y: Any, rises: Any) -> Any:
    """The sum of y and increments; the increments alone if y is None."""
    return rises if y is None else jax.tree.map(jnp.add, y, rises)


def _times(step: Array, leaf: Array) -> Array:
    """A leaf, lanes on its last axis, times the step of each lane."""
    return jnp.reshape(step, (1,) * (leaf.ndim - step.ndim) + step.shape) * leaf
