"""What the claims look at: the runs of one geometry over all β, and the field at their starts.

n: starts, over all β; those that had met the target at the start are left out.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowlab.flow import AbstractFlow
from flowlab.study.data import Geometry, StudyData
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
    "Sight",
    "gradients",
    "look",
    "velocities",
]

# The paper names corners without bounds. A fifth of the side is small enough to be a corner and
# large enough to hold a sample of any grid; the bounds lie on no centre of a cell.
LOW = 0.2
HIGH = 0.8


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
class Sight:
    """The runs of one geometry over all β, as arrays over the starts.

    "Relative" is to the median over the starts of the same β. Speeds and `moved` are in the
    coordinates of the geometry; everything called chosen or rejected is about the ratios x1 and x2.

    Attributes:
        beta: β of the run.
        median_speed: Median speed of the free field over the starts of that β.
        start: Ratios (x1, x2) at the start, shape (n, 2).
        end: Ratios at the loss level.
        rate: Rates (x1', x2') of the free field at the start.
        relative_rate: |x1'| and |x2'|, each relative to its median.
        relative_speed: Speed of the free field at the start, relative.
        relative_slowest: Slowest speed on the way, walls included, over the median at the starts.
        dwell_share: Part of the way's time spent at less than half the median speed.
        start_rate_ratio: |x1'| / |x2'| at the start, walls included.
        end_rate_ratio: The same at the loss level.
        reached: Whether the loss level was reached.
        arrival: Flow time to the loss level; inf where it was not reached.
        relative_arrival: Arrival over the median arrival.
        own_start: State at the start, in the coordinates of the geometry.
        own_later: State at the flow time that all starts of a β have in common.
        later: Ratios at that time.
        moved: Relative distance moved until that time.
    """

    beta: Float[np.ndarray, " n"]
    median_speed: Float[np.ndarray, " n"]
    start: Float[np.ndarray, "n 2"]
    end: Float[np.ndarray, "n 2"]
    rate: Float[np.ndarray, "n 2"]
    relative_rate: Float[np.ndarray, "n 2"]
    relative_speed: Float[np.ndarray, " n"]
    relative_slowest: Float[np.ndarray, " n"]
    dwell_share: Float[np.ndarray, " n"]
    start_rate_ratio: Float[np.ndarray, " n"]
    end_rate_ratio: Float[np.ndarray, " n"]
    reached: Bool[np.ndarray, " n"]
    arrival: Float[np.ndarray, " n"]
    relative_arrival: Float[np.ndarray, " n"]
    own_start: Float[np.ndarray, "n 2"]
    own_later: Float[np.ndarray, "n 2"]
    later: Float[np.ndarray, "n 2"]
    moved: Float[np.ndarray, " n"]

    @property
    def count(self) -> int:
        """Number of starts, over all β."""
        return len(self.beta)

    @cached_property
    def change(self) -> Float[np.ndarray, "n 2"]:
        """Changes (Δx1, Δx2) from the start to the loss level."""
        return self.end - self.start

    def where(self, chosen: Bool[np.ndarray, " n"]) -> "Sight":
        """Some of the starts."""
        parts = {f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self)}
        return Sight(**parts)

    def within(self, region: Region) -> "Sight":
        """The starts in a region."""
        return self.where(region.contains(self.start))


def look(data: StudyData, geometry: Geometry) -> Sight:
    """The runs of one geometry over all β, without starts that had met the target before."""
    parts = [_one(data, geometry, beta) for beta in data.settings.betas]
    names = [f.name for f in dataclasses.fields(Sight)]
    return Sight(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def velocities(
    geometry: Geometry, beta: float, states: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2"]:
    """Velocity of the free field at states, in the coordinates of the geometry, in float64."""
    with jax.enable_x64(True):
        return np.asarray(_velocities(geometry.flow(beta), jnp.asarray(states, float)))


def gradients(
    geometry: Geometry, beta: float, states: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2"]:
    """Gradient of the loss by the ratios (x1, x2), by automatic differentiation, in float64.

    Where a state is (u_w, u_l), by the chain rule: ∂L/∂x = (∂L/∂u) / x.
    """
    with jax.enable_x64(True):
        own = np.asarray(_gradients(geometry.flow(beta), jnp.asarray(states, float)))
    return own if geometry.in_ratios else own / geometry.ratios(states)


@eqx.filter_jit
def _velocities(flow: AbstractFlow, states: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    return jax.vmap(flow.velocity)(states)


@eqx.filter_jit
def _gradients(flow: AbstractFlow, states: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    return jax.vmap(flow.gradient)(states)


def _one(data: StudyData, geometry: Geometry, beta: float) -> Sight:
    key = (geometry.name, beta)
    runs, later = data.to_level[key], data.at_time[key].end
    states = np.asarray(runs.starts, float)
    start = geometry.ratios(states)
    velocity = velocities(geometry, beta, states)
    rate = velocity if geometry.in_ratios else velocity * start
    speed = np.hypot(*velocity.T)
    moved = np.hypot(*(later - states).T)
    arrival = np.where(np.isnan(runs.time), np.inf, runs.time)
    measured = runs.measures
    everything = Sight(
        beta=np.full(len(states), beta),
        median_speed=np.full(len(states), np.median(speed)),
        start=start,
        end=geometry.ratios(np.asarray(runs.end, float)),
        rate=rate,
        relative_rate=np.abs(rate) / np.median(np.abs(rate), axis=0),
        relative_speed=speed / np.median(speed),
        relative_slowest=measured["slowest_speed"] / np.median(speed),
        dwell_share=measured["dwell_share"],
        start_rate_ratio=measured["rate_ratio_x_start"],
        end_rate_ratio=measured["rate_ratio_x_end"],
        reached=runs.outcome == Outcome.reached,
        arrival=arrival,
        relative_arrival=arrival / data.common_time[key],
        own_start=states,
        own_later=np.asarray(later, float),
        later=geometry.ratios(np.asarray(later, float)),
        moved=moved / np.median(moved),
    )
    return everything.where(runs.outcome != Outcome.started_past_target)
