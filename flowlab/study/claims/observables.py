"""Observables for the claims: the field at the starts of a geometry, and the flow lines from them.

n: number of starts, over all β; starts that had already met the target are left out.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from flowlab.ensemble import Runs
from flowlab.flow import AbstractFlow, norm
from flowlab.policies import AbstractPolicy
from flowlab.solve import compiled
from flowlab.study.data import LEVEL, Geometry, StudyData, ratios_at, wide
from flowlab.until import Outcome

__all__ = [
    "EVERYWHERE",
    "HIGH",
    "LEFT",
    "LOW",
    "LOWER",
    "LOWER_LEFT",
    "LOWER_RIGHT",
    "UPPER_LEFT",
    "UPPER_RIGHT",
    "Region",
    "Observables",
    "observe",
]

# The paper names corners without bounds. A fifth of the side is small enough for a corner and large
# enough to contain starts of any grid. The bounds do not coincide with the centre of any cell.
LOW = 0.2
HIGH = 0.8
_DEPTH = 1e-100  # a ratio so close to 0 that any power of it that vanishes has vanished


@dataclass(frozen=True)
class Region:
    """A rectangle in the unit square of ratios: lower < x < upper.

    Attributes:
        chosen: Lower and upper bound of x1.
        rejected: Lower and upper bound of x2.
    """

    chosen: tuple[float, float] = (0.0, np.inf)
    rejected: tuple[float, float] = (0.0, np.inf)

    def contains(self, ratios: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """A mask of the ratios that lie in the region."""
        lower, upper = np.transpose([self.chosen, self.rejected])
        return np.all((ratios > lower) & (ratios < upper), axis=1)


EVERYWHERE = Region()
LEFT = Region(chosen=(0.0, LOW))
LOWER = Region(rejected=(0.0, LOW))
LOWER_LEFT = Region((0.0, LOW), (0.0, LOW))
LOWER_RIGHT = Region((HIGH, np.inf), (0.0, LOW))
UPPER_LEFT = Region((0.0, LOW), (HIGH, np.inf))
UPPER_RIGHT = Region((HIGH, np.inf), (HIGH, np.inf))


class FieldAtStarts(eqx.Module):
    """The free field of a geometry at the starts, in float64.

    Attributes:
        ratios: The ratios (x1, x2), shape (n, 2).
        rate: The rates (x1', x2'), shape (n, 2).
        speed: Euclidean speed in the coordinates of the geometry.
        edge_speed: The speed with x1 lowered to 1e-100, and the speed with x2 lowered to 1e-100,
            shape (n, 2).
        kernel: The kernel entries k_ww, k_wl and k_ll, shape (n, 3).
        reference_rate: The rates (u_w', u_l') at the reference state, shape (n, 2).
        theorem_error: Relative error of the derivatives of Theorem 1, transformed to the state.
        identity_error: Relative error of the gradient from the identity of C17.
    """

    ratios: Float[np.ndarray, "n 2"]
    rate: Float[np.ndarray, "n 2"]
    speed: Float[np.ndarray, " n"]
    edge_speed: Float[np.ndarray, "n 2"]
    kernel: Float[np.ndarray, "n 3"]
    reference_rate: Float[np.ndarray, "n 2"]
    theorem_error: Float[np.ndarray, " n"]
    identity_error: Float[np.ndarray, " n"]


class FlowLines(eqx.Module):
    """The flow lines from the starts, walls included.

    Attributes:
        reached: True if the loss level was reached.
        arrival: Flow time to the loss level; inf if it was not reached.
        end: Ratios at the loss level, shape (n, 2).
        later: Ratios at the flow time that all starts of a β have in common, shape (n, 2).
        dwell_share: Fraction of the flow time at less than half the median speed.
        start_rate_ratio: |x1'| / |x2'| at the start.
        end_rate_ratio: |x1'| / |x2'| at the loss level.
    """

    reached: Bool[np.ndarray, " n"]
    arrival: Float[np.ndarray, " n"]
    end: Float[np.ndarray, "n 2"]
    later: Float[np.ndarray, "n 2"]
    dwell_share: Float[np.ndarray, " n"]
    start_rate_ratio: Float[np.ndarray, " n"]
    end_rate_ratio: Float[np.ndarray, " n"]


class Relative(eqx.Module):
    """Quantities divided by their medians over the starts with the same β.

    Attributes:
        rate: |x1'| and |x2'| of the free field at the start, each divided by its median, shape (n,
            2).
        speed: Speed of the free field at the start.
        edge_speed: The speed with x1 lowered to 1e-100, and with x2 lowered to 1e-100, divided by
            the median speed, shape (n, 2).
        slowest_speed: Lowest speed on the way to the loss level, divided by the median speed.
        arrival: Flow time to the loss level, divided by the median over the starts that reach it.
        moved: Distance from the start at the flow time that all starts of a β have in common, in
            the coordinates of the geometry.
    """

    rate: Float[np.ndarray, "n 2"]
    speed: Float[np.ndarray, " n"]
    edge_speed: Float[np.ndarray, "n 2"]
    slowest_speed: Float[np.ndarray, " n"]
    arrival: Float[np.ndarray, " n"]
    moved: Float[np.ndarray, " n"]


class Searches(eqx.Module):
    """Results of the instruments for the β of each start; NaN if the geometry was not searched.

    Attributes:
        saddles: Saddle points in the box around the starts.
        traps: Minima above the loss level in this box.
        smallest_gradient: The smallest |∇L| that the search found away from critical points.
        elasticity: Median relative change of the arrival time per relative change of the start.
    """

    saddles: Float[np.ndarray, " n"]
    traps: Float[np.ndarray, " n"]
    smallest_gradient: Float[np.ndarray, " n"]
    elasticity: Float[np.ndarray, " n"]


class Observables(eqx.Module):
    """The observables of the starts of one geometry, over all β.

    Chosen and rejected refer to the ratios x1 and x2 of the first pair.

    Attributes:
        beta: β.
        field: The free field at the start.
        lines: The flow line from the start.
        relative: Observables of the field and the lines, divided by their medians.
        searches: The results of searches around the starts with the same β.
        lateness: The arrival time of starts in the slow region of this start, divided by that of
            neighbouring starts. It is 1 outside of slow regions, and NaN except on the free ratio
            plane.
        own: The chosen response at the start and at the common flow time, shape (n, 2): x1 if a
            state is (x1, x2), else u_w.
    """

    beta: Float[np.ndarray, " n"]
    field: FieldAtStarts
    lines: FlowLines
    relative: Relative
    searches: Searches
    lateness: Float[np.ndarray, " n"]
    own: Float[np.ndarray, "n 2"]

    @property
    def count(self) -> int:
        """The number of starts, over all β."""
        return len(self.beta)

    @property
    def start(self) -> Float[np.ndarray, "n 2"]:
        """Ratios (x1, x2) at the start."""
        return self.field.ratios

    @property
    def rate(self) -> Float[np.ndarray, "n 2"]:
        """Rates (x1', x2') of the free field at the start."""
        return self.field.rate

    @property
    def change(self) -> Float[np.ndarray, "n 2"]:
        """Changes (Δx1, Δx2) from the start to the loss level."""
        return self.lines.end - self.start

    @property
    def rise_over_fall(self) -> Float[np.ndarray, " n"]:
        """The ratio x1' / −x2' at the start, walls included; negative if both fall or both rise."""
        return self.lines.start_rate_ratio * -np.sign(self.rate[:, 0] * self.rate[:, 1])

    @property
    def coupling(self) -> Float[np.ndarray, " n"]:
        """The ratio k_wl / k_ww at the start."""
        return self.field.kernel[:, 1] / self.field.kernel[:, 0]

    def where(self, chosen: Bool[np.ndarray, " n"]) -> "Observables":
        """The observables of a subset of the starts, given by a mask."""
        return jax.tree.map(lambda values: values[chosen], self)

    def within(self, region: Region) -> "Observables":
        """The observables of the starts in a region."""
        return self.where(region.contains(self.start))

    def by_beta(self) -> "list[Observables]":
        """The observables of the starts of each β separately."""
        return [self.where(self.beta == beta) for beta in np.unique(self.beta)]


def observe(data: StudyData, geometry: Geometry) -> Observables:
    """The observables of one geometry over all β, without starts that met the target already."""
    parts = [_observe_at(data, geometry, beta) for beta in data.settings.betas]
    return jax.tree.map(lambda *values: np.concatenate(values), *parts)


def _observe_at(data: StudyData, geometry: Geometry, beta: float) -> Observables:
    made = data.runs[geometry.name, beta]
    runs, at_time, found = made.to_level, made.at_time, made.instruments
    field, lines = _field(geometry, beta, runs.starts), _lines(geometry, runs, at_time)
    there, here = geometry.coordinates(at_time.end), geometry.coordinates(runs.starts)
    moved, rate = np.linalg.norm(there - here, axis=1), np.abs(field.rate)
    speed = np.median(field.speed)
    own = np.stack([field.ratios[:, 0], lines.later[:, 0]], axis=1)
    everything = Observables(
        beta=np.full(len(own), beta),
        field=field,
        lines=lines,
        relative=Relative(
            rate=rate / np.median(rate, axis=0),
            speed=field.speed / speed,
            edge_speed=field.edge_speed / speed,
            slowest_speed=runs.measures["slowest_speed"] / speed,
            arrival=lines.arrival / made.common_time,
            moved=moved / np.median(moved),
        ),
        searches=Searches(
            saddles=np.full(len(own), found.count("saddle")),
            traps=np.full(len(own), found.count("minimum", LEVEL)),
            smallest_gradient=np.full(len(own), found.smallest_gradient),
            elasticity=np.full(len(own), found.elasticity),
        ),
        lateness=found.lateness(field.ratios),
        own=own if geometry.in_ratios else np.log(own),
    )
    return everything.where(runs.outcome != Outcome.started_past_target)


def _lines(geometry: Geometry, runs: Runs, at_time: Runs) -> FlowLines:
    return FlowLines(
        reached=runs.outcome == Outcome.reached,
        arrival=np.where(np.isnan(runs.time), np.inf, runs.time),
        end=geometry.ratios(runs.end),
        later=geometry.ratios(at_time.end),
        dwell_share=runs.measures["dwell_share"],
        start_rate_ratio=_first_pair(runs.measures["rate_ratio_x_start"]),
        end_rate_ratio=_first_pair(runs.measures["rate_ratio_x_end"]),
    )


def _first_pair(values: Any) -> Any:
    """The values that belong to the first pair."""
    return values[:, 0] if isinstance(values, np.ndarray) and values.ndim > 1 else values


def _field(geometry: Geometry, beta: float, starts: PyTree[np.ndarray]) -> FieldAtStarts:
    ratios = geometry.ratios(starts)
    edges = [ratios.copy(), ratios.copy()]
    for component, edge in enumerate(edges):
        edge[:, component] = _DEPTH
    sides = [geometry.states(edge) for edge in edges]
    with jax.enable_x64(True):
        states, sides = wide((starts, sides))
        found = _field_at(geometry.flow(beta), geometry.policy, jnp.asarray(beta), states, sides)
        return FieldAtStarts(**jax.tree.map(np.asarray, found))


@partial(compiled, optimise=False)
def _field_at(
    flow: AbstractFlow,
    policy: AbstractPolicy,
    beta: Float[Array, ""],
    states: PyTree[Array],
    sides: list[PyTree[Array]],
) -> dict[str, Array]:
    def one(state: PyTree[Array], sides: list[PyTree[Array]]) -> dict[str, Array]:
        velocity = flow.velocity(state)
        ratios, rates = jax.jvp(lambda s: ratios_at(policy, s), (state,), (velocity,))
        reference = policy.reference_state
        at_reference = jax.jvp(
            lambda s: ratios_at(policy, s), (reference,), (flow.velocity(reference),)
        )[1]
        gradient = flow.gradient(state)
        return dict(
            ratios=ratios.reshape(-1, 2)[0],
            rate=rates.reshape(-1, 2)[0],
            speed=norm(velocity),
            edge_speed=jnp.stack([flow.speed(side) for side in sides]),
            kernel=_own_kernel(policy.kernel(state)),
            reference_rate=at_reference.reshape(-1, 2)[0],  # there x = 1, so that u' = x'
            theorem_error=_deviation(gradient, _by_theorem(policy, beta, state)),
            identity_error=_deviation(gradient, _by_identity(policy, beta, state)),
        )

    return jax.vmap(one)(states, sides)


def _by_theorem(
    policy: AbstractPolicy, beta: Float[Array, ""], state: PyTree[Array]
) -> PyTree[Array]:
    """The gradient with respect to the state, from the formulas of Theorem 1; mean over pairs."""
    ratios, pull = jax.vjp(lambda s: ratios_at(policy, s), state)
    chosen, rejected = ratios[..., 0], ratios[..., 1]
    total = chosen**beta + rejected**beta
    by_chosen = -beta * rejected**beta / (chosen * total)
    by_rejected = beta * rejected ** (beta - 1) / total
    return pull(jnp.stack([by_chosen, by_rejected], axis=-1) / total.size)[0]


def _by_identity(
    policy: AbstractPolicy, beta: Float[Array, ""], state: PyTree[Array]
) -> PyTree[Array]:
    """The right-hand side of the identity of C17, −mean β σ(−z) (∇π_w/π_w − ∇π_l/π_l)."""

    def probabilities(state: PyTree[Array]) -> Float[Array, "*p 2"]:
        pairs = policy.pairs(state)
        return jnp.exp(jnp.stack([pairs.chosen, pairs.rejected], axis=-1))

    values, pull = jax.vjp(probabilities, state)
    weight = beta * jax.nn.sigmoid(-beta * policy.pairs(state).margin) / (values.size // 2)
    pushed = jnp.stack([-weight, weight], axis=-1)
    return pull(pushed / values)[0]


def _deviation(found: PyTree[Array], wanted: PyTree[Array]) -> Float[Array, ""]:
    return norm(jax.tree.map(jnp.subtract, found, wanted)) / norm(wanted)


def _own_kernel(kernel: Float[Array, "..."]) -> Float[Array, " 3"]:
    """The kernel entries k_ww, k_wl and k_ll of the first pair."""
    own = kernel[0, :, 0, :] if kernel.ndim == 4 else kernel
    return jnp.stack([own[0, 0], own[0, 1], own[1, 1]])
