"""Rodas5P: a linearly implicit method of order 5, for small stiff states.

On a stiff flow, stability limits the steps of an explicit method, and not accuracy. Rodas5P takes
steps as long as accuracy permits, for any rates. A step solves eight linear systems with the same
matrix, I/γ − h·J, with the step h and the Jacobian J of the field from d forward derivatives.
Nothing is iterated, so that a step cannot fail to converge.

In the direction of an eigenvector that grows at a rate λ, a step multiplies by a rational function
R(hλ). It equals e^(hλ) to 4e-5 at hλ = 1, but has a pole at 1/γ = 4.7 and tends to 0 beyond the
pole. Long steps would therefore keep a line at a saddle, and the error estimate, which is relative
to the whole state, would not show it. In `sweep` and `flow_line` the next step is at most 1/λ, with
the largest λ of all lanes at the start of the last step; a step with hλ above 1.5 is rejected. On a
GPU or TPU, λ is replaced by an upper bound, the largest eigenvalue of the symmetric part of J.

d: coordinates; n: lanes; r: unknowns of a lane, the d coordinates first.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from diffrax import RESULTS, AbstractLocalInterpolation
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import lu_factor, lu_solve
from jaxtyping import Array, Bool, Float, PyTree

from flowlab.solve.stabilised import spread

__all__ = ["OfSmallLanes", "Quartic", "Rodas5P"]

Field = Callable[[Float[Array, ""], Float[Array, "r *n"]], Float[Array, "r *n"]]
"""The field at a part, in [0, 1], of the step of each lane, and at the numbers of their points."""

_GROWN = 1.0  # hλ of the fastest growing direction, up to which steps are planned
_OVERGROWN = 1.5  # and up to which they are accepted: there, R is e^(hλ) to 1.3e-3
_ROUNDINGS = 64.0  # machine epsilons of its terms, within which a slope counts as linear
_STAGES = 8
_GAMMA = 0.21193756319429014
# Of each stage: the weights of those before it in its point, and in its right-hand side; the part
# of the step where it is; the weight of the derivative by time. A stage from the sixth on begins
# where the one before ends, and so does the end of the step: the last stage is the error.
_POINTS = (
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    (
        *(-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256),
        0.030198172008377946,
    ),
)
_SIDES = (
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (
        *(24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125),
        -0.6610691825249471,
    ),
    (
        *(30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783),
        *(-19.097331116725623, -28.087943162872662),
    ),
    (
        *(37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047),
        *(-40.06618937091002, -54.66780262877968, -9.48861652309627),
    ),
)
_PLACES = (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664)
_BY_TIME = (
    *(_GAMMA, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734),
    2.325825639765069,
)
_INSIDE = (
    (
        *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204),
        *(0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
    ),
    (
        *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796),
        *(20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372),
    ),
    (
        *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643),
        *(-52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722),
    ),
)


class Quartic(AbstractLocalInterpolation):
    """An interpolant: y0 + θ(y1 − y0) + θ(1 − θ)(first + θ·second + θ²·third), θ in [0, 1].

    The coefficients are combinations of the stages, which are damped in stiff directions, without
    values of the field.
    """

    t0: Any
    t1: Any
    y0: PyTree[Array]
    y1: PyTree[Array]
    first: PyTree[Array]
    second: PyTree[Array]
    third: PyTree[Array]

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> PyTree[Array]:
        if t1 is not None:
            later, earlier = self.evaluate(t1), self.evaluate(t0)
            return jax.tree.map(jnp.subtract, later, earlier)
        del left
        place = (t0 - self.t0) / jnp.where(self.t1 == self.t0, 1, self.t1 - self.t0)

        def at(y0: Array, y1: Array, first: Array, second: Array, third: Array) -> Array:
            part = jnp.asarray(place, y0.dtype)
            bend = first + part * (second + part * third)
            return y0 + part * ((y1 - y0) + (1 - part) * bend)

        return jax.tree.map(at, self.y0, self.y1, self.first, self.second, self.third)


class Linear(eqx.Module):
    """The field and its Jacobian at the start of a step; the next step may reuse the Jacobian.

    Attributes:
        y: The unknowns at the start of the step.
        slope: The field at `y`.
        columns: The derivatives of the field with respect to the coordinates.
        growth: The fastest rate at which a deviation grows, 0 if all deviations decay.
    """

    y: Float[Array, "r *n"]
    slope: Float[Array, "r *n"]
    columns: Float[Array, "d r *n"]
    growth: Float[Array, "*n"]


class Rodas5P(diffrax.AbstractAdaptiveSolver):
    """A Rosenbrock method of order 5, for stiff flows of up to some tens of components.

    A step takes eight evaluations of the field, one derivative of the field per component, and
    eight linear systems with the same matrix. Steps are as long as accuracy permits, for any rates
    of the flow, real or complex. Rodas5P can be used as `solver=` in `flow_line` and `sweep`, under
    the clocks of time and of arc length, and in `diffrax.diffeqsolve`. For large states, use
    `ROCK4` or `RKC2`, which need no matrix.

    Source: Steinebach, Construction of Rosenbrock–Wanner method Rodas5P and numerical benchmarks
        within the Julia Differential Equations package, BIT Numer. Math. 63 (2023) 27.

    Accuracy: order 5; the interpolant has order 4. The method is stiffly accurate and L-stable.
        `flow_line` and `sweep` limit its steps where deviations grow, as near a saddle.
        `diffrax.diffeqsolve` does not, and a line that comes within its tolerance of a saddle can
        get stuck there.
    """

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = Quartic

    def order(self, terms: Any) -> int:
        del terms
        return 5

    def error_order(self, terms: Any) -> int:
        del terms
        return 5

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> None:
        del terms, t0, t1, y0, args

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Any, Any, dict[str, Any], Any, RESULTS]:
        del made_jump
        part = jnp.asarray(t1 - t0)
        flat, shaped = ravel_pytree(y0)

        def field(place: Float[Array, ""], numbers: Float[Array, " r"]) -> Float[Array, " r"]:
            return ravel_pytree(terms.vf(t0 + place * part, shaped(numbers), args))[0]

        nought, one = jnp.zeros_like(part), jnp.ones_like(part)
        by_time = jax.jvp(lambda place: field(place, flat), (nought,), (one,))[1]
        there = _derivatives(field, flat, flat.size)
        y1, error, inside = _stepped(field, there, part, by_time)
        dense = {"y0": y0, "y1": shaped(y1)} | {n: shaped(x) for n, x in inside.items()}
        return shaped(y1), shaped(error), dense, solver_state, RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)


class OfSmallLanes(eqx.Module):
    """Rodas5P for lanes that each take the fraction `args.fraction` of a shared step.

    The matrix of a lane contains its coordinates alone, since the coordinates do not depend on the
    other unknowns, such as the flow time. The field must not depend on the clock. If the field
    changes from one step to the next as a linear field does, up to rounding, the Jacobian is
    reused.
    """

    method: Rodas5P

    stages: ClassVar[int] = (
        3  # copies of the state that the interpolant of a step keeps beside ends
    )

    @property
    def interpolation_cls(self) -> Callable[..., Any]:
        return self.method.interpolation_cls

    def room(self, y: PyTree[Array], steps: int) -> dict[str, PyTree[Array]]:
        """A zero buffer for the interpolants of a number of steps."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), y)
        return dict.fromkeys(("y0", "y1", "first", "second", "third"), zeros)

    def order(self, terms: Any) -> int:
        """The power of the step with which the error estimate scales."""
        return self.method.error_order(terms)

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Linear:
        del terms, t0, t1, args
        return self.blank(y0)

    def blank(self, y0: PyTree[Array]) -> Linear:
        """A solver state of NaN, from which no Jacobian is reused, for a first step."""
        lanes = jax.tree.leaves(y0.time)[0].ndim
        flat = jnp.full_like(_rows(y0, lanes)[0], jnp.nan)
        coordinates = len(_rows(y0.packed_coordinates, lanes)[0])
        columns = jnp.full((coordinates, *flat.shape), jnp.nan, flat.dtype)
        return Linear(flat, flat, columns, flat[0])

    def again(self, state: Linear) -> Linear:
        """The solver state after a rejected step: the Jacobian will be computed again."""
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state)

    def longest_step(self, state: Linear, lanes: Any) -> Float[Array, ""]:
        """The longest step that the active lanes can share; infinite if no deviation grows."""
        largest = jnp.max(jnp.where(lanes.active & (state.growth > 0), state.growth, 0))
        return jnp.where(largest > 0, _GROWN / jnp.where(largest > 0, largest, 1), jnp.inf)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Any, Any, dict[str, Any], Any, RESULTS]:
        whole = t1 - t0
        flat, shaped = _rows(y0, args.fraction.ndim)

        def field(place: Float[Array, ""], numbers: Float[Array, "r n"]) -> Float[Array, "r n"]:
            slope = terms.vf(t0 + place * whole, shaped(numbers), args)
            return _rows(slope, args.fraction.ndim)[0]

        there = _known(field, flat, solver_state, made_jump, args.active)
        part = whole * args.fraction
        y1, error, inside = _stepped(field, there, part, None)
        overgrown = spread(part * there.growth > _OVERGROWN, error)
        whole_change = jnp.abs(flat) + jnp.abs(spread(part, flat) * there.slope)
        error = jnp.where(overgrown, whole_change, error)
        # A Jacobian that is not finite where the field is makes no step either.
        known = jnp.all(jnp.isfinite(there.columns), axis=(0, 1))
        error = jnp.where(spread(known, error), error, jnp.nan)
        dense = {"y0": y0, "y1": shaped(y1)} | {n: shaped(x) for n, x in inside.items()}
        return shaped(y1), shaped(error), dense, there, RESULTS.successful


def _stepped(
    field: Field,
    there: Linear,
    part: Float[Array, "*n"],
    by_time: Float[Array, "r *n"] | None,
) -> tuple[Float[Array, "r *n"], Float[Array, "r *n"], dict[str, Float[Array, "r *n"]]]:
    """The end of a step, its error, and the coefficients of its `Quartic`.

    Args:
        field: The field.
        there: The start of the step, with field and Jacobian.
        part: The length of each lane's step.
        by_time: Derivative of the field with respect to the fraction of the step; None for 0.
    """
    y0, solve = there.y, _solver(there, part)
    points, sides = _squares(_POINTS, part.dtype), _squares(_SIDES, part.dtype)
    ones = [1.0] * (_STAGES - len(_PLACES))
    places = jnp.asarray([*_PLACES, *ones], part.dtype)
    drifts = jnp.asarray([*_BY_TIME, *[0.0] * len(ones)], part.dtype)

    def stage(i: Array, carry: Any) -> Any:
        stages, slope = carry
        side = spread(part, slope) * slope + jnp.tensordot(sides[i], stages, axes=1)
        if by_time is not None:
            side = side + drifts[i] * part * by_time
        stages = stages.at[i].set(solve(side))
        ahead = jnp.minimum(i + 1, _STAGES - 1)
        point = y0 + jnp.tensordot(points[ahead], stages, axes=1)
        slope = lax.cond(i + 1 < _STAGES, field, lambda *_: slope, places[ahead], point)
        return stages, slope

    room = jnp.zeros((_STAGES, *y0.shape), y0.dtype)
    stages, _ = lax.fori_loop(0, _STAGES, stage, (room, there.slope))
    last = jnp.asarray([*_POINTS[-1], 1.0, 1.0, 1.0], part.dtype)
    y1 = y0 + jnp.tensordot(last, stages, axes=1)
    bends = jnp.tensordot(jnp.asarray(_INSIDE, part.dtype), stages, axes=1)
    return y1, stages[-1], dict(zip(("first", "second", "third"), bends, strict=True))


def _derivatives(field: Field, y: Float[Array, "r *n"], coordinates: int) -> Linear:
    """The field at points, and its derivatives with respect to the first `coordinates` unknowns."""
    place = jnp.zeros((), y.dtype)
    units = jnp.eye(coordinates, len(y), dtype=y.dtype)
    tangents = jnp.broadcast_to(units[(..., *[None] * (y.ndim - 1))], (coordinates, *y.shape))

    def along(tangent: Float[Array, "r *n"]) -> Any:
        return jax.jvp(lambda y: field(place, y), (y,), (tangent,))

    slope, columns = jax.vmap(along, out_axes=(None, 0))(tangents)
    return Linear(y, slope, columns, _growth(columns))


def _of_coordinates(columns: Float[Array, "d r *n"]) -> Float[Array, "*n d d"]:
    """The Jacobian of each lane's coordinates, as a matrix on the last two axes."""
    return jnp.moveaxis(columns[:, : len(columns)], (0, 1), (-1, -2))


def _growth(columns: Float[Array, "d r *n"]) -> Float[Array, "*n"]:
    """The largest real part of the eigenvalues of a Jacobian, 0 if none is positive."""
    square = lax.stop_gradient(_of_coordinates(jnp.where(jnp.isfinite(columns), columns, 0)))

    def by_eigenvalues(square: Float[Array, "*n d d"]) -> Float[Array, "*n"]:
        return jnp.max(jnp.real(jnp.linalg.eigvals(square)), axis=-1)

    def by_symmetric_part(square: Float[Array, "*n d d"]) -> Float[Array, "*n"]:
        """An upper bound, for devices without eigenvalues of non-symmetric matrices."""
        both = (square + jnp.swapaxes(square, -1, -2)) / 2
        return jnp.linalg.eigvalsh(both)[..., -1]

    found = lax.platform_dependent(square, cpu=by_eigenvalues, default=by_symmetric_part)
    return jnp.maximum(found, 0)


def _known(
    field: Field,
    y: Float[Array, "r *n"],
    before: Linear,
    made_jump: Any,
    active: Bool[Array, "*n"],
) -> Linear:
    """The field at the start of a step, with the previous Jacobian if that is still valid.

    It is valid if the field has changed since as a linear field does, up to rounding.
    """
    coordinates = len(before.columns)
    slope = field(jnp.zeros((), y.dtype), y)

    def pushed(columns: Float[Array, "d r *n"], way: Float[Array, "r *n"]) -> Float[Array, "r *n"]:
        return jnp.sum(columns * way[:coordinates, None], axis=0)

    off = jnp.abs(slope - before.slope - pushed(before.columns, y - before.y))
    sizes = pushed(jnp.abs(before.columns), jnp.abs(y) + jnp.abs(before.y))
    sizes = sizes + jnp.abs(slope) + jnp.abs(before.slope)
    same = jnp.all(off <= _ROUNDINGS * float(jnp.finfo(y.dtype).eps) * sizes, axis=0)
    stale = jnp.asarray(made_jump) | jnp.any(active & ~same)

    def find(_: None) -> tuple[Float[Array, "d r *n"], Float[Array, "*n"]]:
        found = _derivatives(field, y, coordinates)
        return found.columns, found.growth

    def keep(_: None) -> tuple[Float[Array, "d r *n"], Float[Array, "*n"]]:
        return before.columns, before.growth

    columns, growth = lax.cond(lax.stop_gradient(stale), find, keep, None)
    return Linear(y, slope, columns, growth)


def _solver(
    there: Linear, part: Float[Array, "*n"]
) -> Callable[[Float[Array, "r *n"]], Float[Array, "r *n"]]:
    """A function from b to the solution k of (I/γ − h·J)k = b, for each lane."""
    coordinates = len(there.columns)
    moved = (
        spread(part, there.columns) * there.columns
    )  # (d, r, *n): h·J, of which the columns come first
    # A lane that is not finite is no lane to solve for: its step is rejected for its field.
    moved = jnp.where(jnp.isfinite(moved), moved, 0)
    square = _of_coordinates(moved)
    units = jnp.eye(coordinates, dtype=part.dtype) / _GAMMA
    matrices = jnp.broadcast_to(units, square.shape) - square
    factors = lu_factor(matrices)

    def solve(side: Float[Array, "r *n"]) -> Float[Array, "r *n"]:
        upper = jnp.moveaxis(side[:coordinates], 0, -1)[..., None]
        found = jnp.moveaxis(lu_solve(factors, upper)[..., 0], -1, 0)
        pushed = jnp.sum(moved[:, coordinates:] * found[:, None], axis=0)
        return jnp.concatenate([found, _GAMMA * (side[coordinates:] + pushed)])

    return solve


def _squares(rows: tuple[tuple[float, ...], ...], dtype: Any) -> Float[Array, "8 8"]:
    """Weights of stages as a square matrix.

    A missing row is the row before, with 1 added for the stage before.
    """
    square = np.zeros((_STAGES, _STAGES))
    for index in range(_STAGES):
        if index < len(rows):
            square[index, : len(rows[index])] = rows[index]
        else:
            square[index] = square[index - 1]
            square[index, index - 1] = 1
    return jnp.asarray(square, dtype)


def _rows(
    tree: PyTree[Array], lanes: int
) -> tuple[Float[Array, "r *n"], Callable[[Float[Array, "r *n"]], PyTree[Array]]]:
    """All numbers of a PyTree (lanes on its last axes) as rows, and the inverse function."""
    leaves, structure = jax.tree.flatten(tree)
    shapes = [leaf.shape for leaf in leaves]
    last = [shape[len(shape) - lanes :] for shape in shapes]
    flat = [jnp.reshape(leaf, (-1, *end)) for leaf, end in zip(leaves, last, strict=True)]
    cuts = np.cumsum([len(part) for part in flat])[:-1]

    def shaped(rows: Float[Array, "r *n"]) -> PyTree[Array]:
        parts = zip(jnp.split(rows, cuts), shapes, strict=True)
        return jax.tree.unflatten(structure, [jnp.reshape(part, shape) for part, shape in parts])

    return jnp.concatenate(flat), shaped
