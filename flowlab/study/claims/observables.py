"""What the claims look at: the runs of one geometry over all β, and the field at their starts.

n: starts, over all β; those that had met the target at the start are left out.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from flowlab.flow import AbstractFlow, norm
from flowlab.policies import AbstractPolicy
from flowlab.solve import compiled
from flowlab.study.data import LEVEL, Geometry, StudyData, ratios_at
from flowlab.until import Outcome

__all__ = [
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

# The paper names corners without bounds. A fifth of the side is small enough to be a corner and
# large enough to hold a sample of any grid; the bounds lie on no centre of a cell.
LOW = 0.2
HIGH = 0.8
_DEPTH = 1e-100  # a ratio so close to 0 that any power of it that vanishes has vanished


@dataclass(frozen=True)
class Region:
    """A part of the unit square of ratios: lower < x < upper.

    Attributes:
        chosen: Lower and upper end of x1.
        rejected: Lower and upper end of x2.
    """

    chosen: tuple[float, float] = (0.0, np.inf)
    rejected: tuple[float, float] = (0.0, np.inf)

    def contains(self, ratios: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Which ratios lie in the region."""
        lower, upper = np.transpose([self.chosen, self.rejected])
        return np.all((ratios > lower) & (ratios < upper), axis=1)


LEFT = Region(chosen=(0.0, LOW))
LOWER = Region(rejected=(0.0, LOW))
LOWER_LEFT = Region((0.0, LOW), (0.0, LOW))
LOWER_RIGHT = Region((HIGH, np.inf), (0.0, LOW))
UPPER_LEFT = Region((0.0, LOW), (HIGH, np.inf))
UPPER_RIGHT = Region((HIGH, np.inf), (HIGH, np.inf))


@dataclass(frozen=True)
class Observables:
    """The runs of one geometry over all β, as arrays over the starts.

    "Relative" is to the median over the starts of the same β. Speeds and `moved` are Euclidean in
    the coordinates of the geometry; everything called chosen or rejected is about the ratios x1 and
    x2, of the first pair where there are several.

    Attributes:
        beta: β of the run.
        median_speed: Median speed of the free field over the starts of that β.
        start: Ratios (x1, x2) at the start, shape (n, 2).
        end: Ratios at the loss level.
        rate: Rates (x1', x2') of the free field at the start.
        relative_rate: |x1'| and |x2'|, each relative to its median.
        relative_speed: Speed of the free field at the start, relative.
        speed_at_edge: The same with x1, or x2, taken to 1e-100, shape (n, 2).
        relative_slowest: Slowest speed on the way, walls included, over the median at the starts.
        dwell_share: Part of the way's time spent at less than half the median speed.
        start_rate_ratio: |x1'| / |x2'| at the start, walls included.
        end_rate_ratio: The same at the loss level.
        reached: Whether the loss level was reached.
        arrival: Flow time to the loss level; inf where it was not reached.
        relative_arrival: Arrival over the median arrival.
        own_start: The chosen response at the start: x1 where a state is (x1, x2), else u_w.
        own_later: The same at the flow time that all starts of a β have in common.
        later: Ratios at that time.
        moved: Relative distance moved until that time.
        log_change: Change of u_w from the start to the loss level.
        theorem_error: Relative error of Theorem 1's derivatives, brought to the state.
        identity_error: Relative error of the gradient by the identity of C17.
        kernel: k_ww, k_wl and k_ll at the start, shape (n, 3).
        reference_rate: Rates (u_w', u_l') of the free field at the reference state, shape (n, 2).
        saddles: Saddle points that a search of the box around the starts has found; NaN without.
        traps: Minima above the loss level that it has found.
        smallest_gradient: The smallest |∇L| that it met away from critical points.
        lateness: How many times later the starts of the slow region around a start arrive than
            their neighbours; 1 outside of all; NaN but on the free ratio plane.
        elasticity: Median relative change of the arrival per relative change of the start; NaN but
            on the free ratio plane.
    """

    beta: Float[np.ndarray, " n"]
    median_speed: Float[np.ndarray, " n"]
    start: Float[np.ndarray, "n 2"]
    end: Float[np.ndarray, "n 2"]
    rate: Float[np.ndarray, "n 2"]
    relative_rate: Float[np.ndarray, "n 2"]
    relative_speed: Float[np.ndarray, " n"]
    speed_at_edge: Float[np.ndarray, "n 2"]
    relative_slowest: Float[np.ndarray, " n"]
    dwell_share: Float[np.ndarray, " n"]
    start_rate_ratio: Float[np.ndarray, " n"]
    end_rate_ratio: Float[np.ndarray, " n"]
    reached: Bool[np.ndarray, " n"]
    arrival: Float[np.ndarray, " n"]
    relative_arrival: Float[np.ndarray, " n"]
    own_start: Float[np.ndarray, " n"]
    own_later: Float[np.ndarray, " n"]
    later: Float[np.ndarray, "n 2"]
    moved: Float[np.ndarray, " n"]
    log_change: Float[np.ndarray, " n"]
    theorem_error: Float[np.ndarray, " n"]
    identity_error: Float[np.ndarray, " n"]
    kernel: Float[np.ndarray, "n 3"]
    reference_rate: Float[np.ndarray, "n 2"]
    saddles: Float[np.ndarray, " n"]
    traps: Float[np.ndarray, " n"]
    smallest_gradient: Float[np.ndarray, " n"]
    lateness: Float[np.ndarray, " n"]
    elasticity: Float[np.ndarray, " n"]

    @property
    def count(self) -> int:
        """Number of starts, over all β."""
        return len(self.beta)

    @cached_property
    def change(self) -> Float[np.ndarray, "n 2"]:
        """Changes (Δx1, Δx2) from the start to the loss level."""
        return self.end - self.start

    @cached_property
    def rise_over_fall(self) -> Float[np.ndarray, " n"]:
        """x1' / −x2' at the start, walls included: below 0 where both fall, or both rise."""
        return self.start_rate_ratio * -np.sign(self.rate[:, 0] * self.rate[:, 1])

    @cached_property
    def coupling(self) -> Float[np.ndarray, " n"]:
        """k_wl / k_ww at the start."""
        return self.kernel[:, 1] / self.kernel[:, 0]

    def where(self, chosen: Bool[np.ndarray, " n"]) -> "Observables":
        """Some of the starts."""
        parts = {f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self)}
        return Observables(**parts)

    def within(self, region: Region) -> "Observables":
        """The starts in a region."""
        return self.where(region.contains(self.start))

    def by_beta(self) -> "list[Observables]":
        """The starts of each β apart."""
        return [self.where(self.beta == beta) for beta in np.unique(self.beta)]


def observe(data: StudyData, geometry: Geometry) -> Observables:
    """The runs of one geometry over all β, without starts that had met the target before."""
    parts = [_one(data, geometry, beta) for beta in data.settings.betas]
    names = [f.name for f in dataclasses.fields(Observables)]
    return Observables(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def _one(data: StudyData, geometry: Geometry, beta: float) -> Observables:
    key = (geometry.name, beta)
    runs, later = data.to_level[key], data.at_time[key].end
    here, seen = _facts(geometry, beta, runs.starts), data.instruments[key]
    start, ends, laters = here["ratios"], geometry.ratios(runs.end), geometry.ratios(later)
    speed = here["speed"]
    moved = np.linalg.norm(geometry.coordinates(later) - geometry.coordinates(runs.starts), axis=1)
    arrival = np.where(np.isnan(runs.time), np.inf, runs.time)
    measured = {name: _first_pair(values) for name, values in runs.measures.items()}
    own = (lambda ratios: ratios[:, 0]) if geometry.in_ratios else (lambda x: np.log(x[:, 0]))
    everything = Observables(
        beta=np.full(len(start), beta),
        median_speed=np.full(len(start), np.median(speed)),
        start=start,
        end=ends,
        rate=here["rate"],
        relative_rate=np.abs(here["rate"]) / np.median(np.abs(here["rate"]), axis=0),
        relative_speed=speed / np.median(speed),
        speed_at_edge=here["edge"] / np.median(speed),
        relative_slowest=measured["slowest_speed"] / np.median(speed),
        dwell_share=measured["dwell_share"],
        start_rate_ratio=measured["rate_ratio_x_start"],
        end_rate_ratio=measured["rate_ratio_x_end"],
        reached=runs.outcome == Outcome.reached,
        arrival=arrival,
        relative_arrival=arrival / data.common_time[key],
        own_start=own(start),
        own_later=own(laters),
        later=laters,
        moved=moved / np.median(moved),
        log_change=np.log(ends[:, 0] / start[:, 0]),
        theorem_error=here["theorem_error"],
        identity_error=here["identity_error"],
        kernel=here["kernel"],
        reference_rate=here["reference_rate"],
        saddles=np.full(len(start), seen.count("saddle")),
        traps=np.full(len(start), seen.count("minimum", LEVEL)),
        smallest_gradient=np.full(len(start), seen.smallest_gradient),
        lateness=seen.lateness(start),
        elasticity=np.full(len(start), seen.elasticity),
    )
    return everything.where(runs.outcome != Outcome.started_past_target)


def _first_pair(values: Any) -> Any:
    """What was measured of the first pair, where there are several."""
    return values[:, 0] if isinstance(values, np.ndarray) and values.ndim > 1 else values


def _facts(geometry: Geometry, beta: float, starts: PyTree[np.ndarray]) -> dict[str, np.ndarray]:
    """What the field is at the starts, and beside the axes; in float64."""
    ratios = geometry.ratios(starts)
    edges = [ratios.copy(), ratios.copy()]
    for component, edge in enumerate(edges):
        edge[:, component] = _DEPTH
    sides = [geometry.states(edge) for edge in edges]
    with jax.enable_x64(True):
        states, *sides = (
            jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), part)
            for part in (starts, *sides)
        )
        found = _facts_at(geometry.flow(beta), geometry.policy, jnp.asarray(beta), states, sides)
        return jax.tree.map(np.asarray, found)


@partial(compiled, optimise=False)
def _facts_at(
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
        return {
            "ratios": ratios.reshape(-1, 2)[0],
            "rate": rates.reshape(-1, 2)[0],
            "reference_rate": at_reference.reshape(-1, 2)[0],  # there x = 1, so that u' = x'
            "speed": norm(velocity),
            "edge": jnp.stack([flow.speed(side) for side in sides]),
            "kernel": _own_kernel(policy.kernel(state)),
            "theorem_error": _deviation(gradient, _by_theorem(policy, beta, state)),
            "identity_error": _deviation(gradient, _by_identity(policy, beta, state)),
        }

    return jax.vmap(one)(states, sides)


def _by_theorem(
    policy: AbstractPolicy, beta: Float[Array, ""], state: PyTree[Array]
) -> PyTree[Array]:
    """Theorem 1's partial derivatives by x1 and x2, brought to the state; the mean over pairs."""
    ratios, pull = jax.vjp(lambda s: ratios_at(policy, s), state)
    chosen, rejected = ratios[..., 0], ratios[..., 1]
    total = chosen**beta + rejected**beta
    by_chosen = -beta * rejected**beta / (chosen * total)
    by_rejected = beta * rejected ** (beta - 1) / total
    return pull(jnp.stack([by_chosen, by_rejected], axis=-1) / total.size)[0]


def _by_identity(
    policy: AbstractPolicy, beta: Float[Array, ""], state: PyTree[Array]
) -> PyTree[Array]:
    """−mean β σ(−z) (∇π_w/π_w − ∇π_l/π_l), the gradients those of the probabilities."""

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
    """k_ww, k_wl and k_ll of the first pair."""
    own = kernel[0, :, 0, :] if kernel.ndim == 4 else kernel
    return jnp.stack([own[0, 0], own[0, 1], own[1, 1]])
