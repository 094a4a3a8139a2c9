"""The problems: flow lines of DPO to a loss level, with the times known in closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowlab
from flowlab import exact, losses, starts
from flowlab.domains import Box, Simplex
from flowlab.losses import positive

__all__ = ["BETA", "END_MARGIN", "LEVEL", "PROBLEMS", "Clock", "Problem", "Wall"]

BETA, LEVEL = 0.3, 0.1
END_MARGIN = -math.log(math.expm1(LEVEL)) / BETA
KERNEL = np.array([[1.0, 0.5], [0.5, 1.5]])
RESPONSES = 20
LOWER, UPPER = (0.01, 0.01), (1.0, 1.0)

Rates = Callable[[Any, Any, Callable[[Any], Any]], tuple[Any, Any, Any]]
"""Rates of u_chosen, u_rejected and t per unit of the margin, from both u and an exponential."""


@dataclass(frozen=True)
class Clock:
    """The best clock of a plane: the margin u_chosen − u_rejected, which ends on the level exactly.

    The rates are functions of the state (u_chosen, u_rejected) alone, written with operators, so
    that every library can take them. `enter` makes u of starts.
    """

    field: str
    enter: Callable[[np.ndarray], np.ndarray]
    rates: Rates

    def span(self, log_ratios: np.ndarray) -> np.ndarray:
        """The way that the margin has to go, for u of shape (n, 2)."""
        return END_MARGIN - (log_ratios[:, 0] - log_ratios[:, 1])


@dataclass(frozen=True)
class Wall:
    """The wall normal·x = 1, where the outward part of the velocity is dropped."""

    normal: np.ndarray

    def room(self, state: Any) -> Any:
        """The distance left to the wall, positive inside."""
        return 1.0 - (state * self.normal).sum()

    def outward(self, velocity: Any) -> Any:
        """The pressure of a velocity on the wall: released where this is negative."""
        return (velocity * self.normal).sum()

    def along(self, velocity: Any) -> Any:
        """A velocity without its part across the wall."""
        across = self.outward(velocity) / float(self.normal @ self.normal)
        return velocity - across * self.normal


@dataclass(frozen=True)
class Problem:
    """Flow lines from many starts to a loss level.

    Attributes:
        name: As in the option `--problem`.
        text: The problem in words.
        flow: The flow, as flowlab has it.
        draw: This many starts, or somewhat more, from a generator.
        times: Times to the level in closed form.
        loss: The loss at a state, as a user of JAX would write it.
        metric: What makes a velocity of minus its gradient.
        latest: Beyond the longest time.
        positive: Whether a state is positive, so that an error is relative to it.
        clock: The best clock, on planes.
        wall: The wall, if there is one.
    """

    name: str
    text: str
    flow: Callable[[], Any]
    draw: Callable[[int, np.random.Generator], np.ndarray]
    times: Callable[[np.ndarray], np.ndarray]
    loss: Callable[[jax.Array], jax.Array]
    metric: Callable[[jax.Array], jax.Array] = lambda covector: covector
    latest: float = 10.0
    positive: bool = True
    clock: Clock | None = None
    wall: Wall | None = None

    def starts(self, count: int) -> np.ndarray:
        """Starts that have not reached the level yet, shape (count, d)."""
        points = self.draw(count, np.random.default_rng(0))
        return points[self.times(points) > 0][:count]


class OwnLoss(losses.AbstractLoss):
    """DPO as a user might write it, without a derivative rule."""

    beta: Any = positive(BETA)

    def __call__(self, pairs: losses.Pair) -> jax.Array:
        return jax.nn.softplus(-self.beta * pairs.margin)


def ratio_rates(chosen: Any, rejected: Any, exp: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """Rates per unit of the margin on the ratio plane, u' = −diag(x⁻²) ∇_u L."""
    up, down = exp(-2.0 * chosen), exp(-2.0 * rejected)
    unit = 1.0 / (up + down)
    slowness = (1.0 + exp(BETA * (chosen - rejected))) * (1.0 / BETA)
    return up * unit, -(down * unit), slowness * unit


def kernel_rates(chosen: Any, rejected: Any, exp: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """Rates per unit of the margin under a constant kernel, u' = −K ∇_u L."""
    up, down = KERNEL @ [1.0, -1.0]
    slowness = (1.0 + exp(BETA * (chosen - rejected))) * (1.0 / BETA)
    return float(up / (up - down)), float(down / (up - down)), slowness * float(1 / (up - down))


def loss_of_ratios(state: jax.Array) -> jax.Array:
    """The DPO loss at (x1, x2), as one would write it."""
    return jax.nn.softplus(BETA * (jnp.log(state[1]) - jnp.log(state[0])))


def loss_of_log_ratios(state: jax.Array) -> jax.Array:
    """The DPO loss at (u1, u2)."""
    return jax.nn.softplus(BETA * (state[1] - state[0]))


def loss_of_logits(state: jax.Array) -> jax.Array:
    """The DPO loss at logits, of the responses 0 and 1; the reference is uniform."""
    log_ratios = jax.nn.log_softmax(state) + math.log(RESPONSES)
    return jax.nn.softplus(BETA * (log_ratios[1] - log_ratios[0]))


def _square(count: int, generator: np.random.Generator) -> np.ndarray:
    del generator  # the starts that earlier results were measured on
    return starts.uniform(count, LOWER, UPPER, seed=0)


def _triangle(count: int, generator: np.random.Generator) -> np.ndarray:
    points = generator.uniform(size=(3 * count + 64, 2))
    return points[points.sum(axis=1) < 1]


def _kernel_time(margin: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return exact.kernel_time(margin, END_MARGIN, BETA, kernel)


def _on_the_ratio_plane(domain: Any = None) -> Any:
    plane = flowlab.RatioPlane(domain, wall="stop" if domain is None else "slide")
    return flowlab.preference_flow(flowlab.DPO(BETA), plane)


_RATIO = Problem(
    name="ratio",
    text="ratio plane, starts uniform on [0.01, 1]^2",
    flow=_on_the_ratio_plane,
    draw=_square,
    times=lambda points: exact.ratio_plane_time(points, BETA, level=LEVEL),
    loss=loss_of_ratios,
    clock=Clock("ratio", np.log, ratio_rates),
)
_OWN_LOSS = Problem(
    name="own_loss",
    text="as ratio, but for flowlab with a loss that has no derivative rule of its own",
    flow=lambda: flowlab.preference_flow(OwnLoss(), flowlab.RatioPlane()),
    draw=_RATIO.draw,
    times=_RATIO.times,
    loss=loss_of_ratios,
    clock=_RATIO.clock,
)
_KERNEL = Problem(
    name="kernel",
    text="log-ratio plane, kernel [[1, .5], [.5, 1.5]], starts uniform on [-5, 5]^2",
    flow=lambda: flowlab.preference_flow(flowlab.DPO(BETA), flowlab.LogRatioPlane(KERNEL)),
    draw=lambda count, generator: generator.uniform(-5, 5, (2 * count + 64, 2)),
    times=lambda points: _kernel_time(points[:, 0] - points[:, 1], KERNEL),
    loss=loss_of_log_ratios,
    metric=lambda covector: jnp.asarray(KERNEL, covector.dtype) @ covector,
    latest=200.0,
    positive=False,
    clock=Clock("kernel", lambda points: points, kernel_rates),
)
_BOX = Problem(
    name="box",
    text="ratio plane, box x1 <= 1 with sliding, starts uniform on [0.01, 1]^2",
    flow=lambda: _on_the_ratio_plane(Box(1, 1)),
    draw=_square,
    times=lambda points: exact.box_time(points, BETA, wall=1.0, level=LEVEL).total,
    loss=loss_of_ratios,
    clock=Clock("box", np.log, ratio_rates),
    wall=Wall(np.array([1.0, 0.0])),
)
_SIMPLEX = Problem(
    name="simplex",
    text="ratio plane, simplex x1 + x2 <= 1 with sliding and release, starts uniform on it",
    flow=lambda: _on_the_ratio_plane(Simplex()),
    draw=_triangle,
    times=lambda points: exact.simplex_time(points, BETA, level=LEVEL).total,
    loss=loss_of_ratios,
    clock=Clock("simplex", np.log, ratio_rates),
    wall=Wall(np.array([1.0, 1.0])),
)
_SOFTMAX = Problem(
    name="softmax",
    text=f"tabular softmax of {RESPONSES} responses, uniform reference, standard normal logits",
    flow=lambda: flowlab.preference_flow(
        flowlab.DPO(BETA), flowlab.TabularSoftmax(np.full(RESPONSES, 1 / RESPONSES))
    ),
    draw=lambda count, generator: generator.normal(size=(count + 64, RESPONSES)),
    times=lambda points: _kernel_time(points[:, 0] - points[:, 1], np.eye(2)),
    loss=loss_of_logits,
    latest=200.0,
    positive=False,
)

PROBLEMS = {p.name: p for p in (_RATIO, _KERNEL, _BOX, _SIMPLEX, _OWN_LOSS, _SOFTMAX)}
