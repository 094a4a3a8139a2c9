"""Slopes of losses in the two log-probabilities, at the points that a run went through.

A log tells neither lengths nor, always, log-probabilities. What is said of a loss is what holds for
short and for long responses, the two of a pair being equally long.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from flowlab.losses import CATALOGUE, AbstractLoss, Pair, named
from flowlab.solve import compiled

__all__ = [
    "LENGTHS",
    "MOST_POINTS",
    "Slopes",
    "UNKNOWN",
    "catalogue",
    "loss_values",
    "push",
    "without_reference",
]

LENGTHS = (10.0, 1000.0)  # tokens: a phrase and a long answer
# Log-probabilities of the reference where the log has none; a loss is then told of only if it does
# not read them.
UNKNOWN = ((-20.0, -20.0), (-300.0, -200.0))
# Points, up to which programs are padded: one for all losses at the windows of any log, and one
# for a loss alone, wherever it is asked for.
_WINDOWS = 32
MOST_POINTS = 512
_ALIKE = 1e-9  # relative: two slopes of double precision, computed in two ways


@dataclass(frozen=True)
class Slopes:
    """Slopes of one loss at points.

    Attributes:
        chosen: −∂L/∂log π of the chosen response, at each point; positive if a rise lowers the
            loss.
        rejected: ∂L/∂log π of the rejected response, at each point; positive if a fall lowers the
            loss.
        count: The number of points; the values are those at all points, for each guess in turn.
    """

    chosen: Float[np.ndarray, " p"]
    rejected: Float[np.ndarray, " p"]
    count: int

    def after_first(self) -> "Slopes":
        """The slopes at all points but the first."""
        chosen, rejected = (
            side.reshape(-1, self.count)[:, 1:].ravel() for side in (self.chosen, self.rejected)
        )
        return Slopes(chosen, rejected, self.count - 1)

    @property
    def of_margin(self) -> bool:
        """True if the two slopes are equal everywhere: the loss depends only on the margin."""
        size = np.abs(self.chosen) + np.abs(self.rejected)
        return bool(np.all(np.abs(self.chosen - self.rejected) <= _ALIKE * size))

    @property
    def of_guesses(self) -> bool:
        """True if they depend on values that a log does not have: lengths or log-probabilities."""
        parts = np.stack([self.chosen, self.rejected]).reshape(2, -1, self.count)
        return bool(np.any(np.abs(parts - parts[:, :1]) > _ALIKE * np.abs(parts).max(axis=0)))


def catalogue(beta: float) -> dict[str, AbstractLoss]:
    """Every loss of one pair by its name, with a given β if it has one."""
    found = {}
    for name, loss in CATALOGUE.items():
        if not loss.of_batch:
            found[name] = named(name, beta=beta) if hasattr(loss, "beta") else loss
    return found


def without_reference(loss: AbstractLoss) -> bool:
    """True if the rewards that TRL logs for a loss are β·log π, not β times a log-ratio."""
    return type(loss).__module__ == "flowlab.losses.reference_free"


def push(
    losses: Mapping[str, AbstractLoss],
    points: Float[np.ndarray, "k 2"],
    references: tuple[float, float] | None,
    lengths: Sequence[float] = LENGTHS,
) -> dict[str, Slopes]:
    """The slopes of losses at points (u_w, u_l), for each length in turn.

    Args:
        losses: The losses, by name.
        points: The points, at most 512.
        references: Log-probabilities of the two responses under the reference; None if they are not
            known, in which case two guesses are used in turn.
        lengths: Numbers of tokens, each used in turn for both responses.

    Returns:
        Slopes with one value per point for each length and each guess.
    """
    listed = list(losses.values())
    known = UNKNOWN if references is None else (references,)
    size = MOST_POINTS if len(listed) == 1 or len(points) > _WINDOWS else _WINDOWS
    parts = []
    with jax.enable_x64(True):
        for reference in known:
            for length in lengths:
                held = _compiled(listed, _pairs(points, reference, length, size))
                parts.append(np.asarray(held)[:, :, : len(points)])
    joined = np.concatenate(parts, axis=2)
    found = zip(losses, joined, strict=True)
    return {name: Slopes(-one[0], one[1], len(points)) for name, one in found}


def loss_values(
    loss: AbstractLoss,
    points: Float[np.ndarray, "k 2"],
    reference: tuple[float, float],
    length: float,
) -> Float[np.ndarray, " k"]:
    """The loss at points (u_w, u_l).

    Args:
        loss: The loss.
        points: The points.
        reference: Log-probabilities of the two responses under the reference.
        length: Tokens of both responses.
    """
    parts = []
    with jax.enable_x64(True):
        for begin in range(0, len(points), MOST_POINTS):
            part = points[begin : begin + MOST_POINTS]
            held = _compiled_loss(loss, _pairs(part, reference, length, MOST_POINTS))
            parts.append(np.asarray(held)[: len(part)])
    return np.concatenate(parts)


def _pairs(
    points: Float[np.ndarray, "k 2"], reference: tuple[float, float], length: float, size: int
) -> Pair:
    """Pairs at points (u_w, u_l), padded with pairs at the reference to a fixed size."""
    held = np.concatenate([points, np.zeros((size - len(points), 2))])
    references = [np.full(size, float(one)) for one in reference]
    sides = held[:, 0] + references[0], held[:, 1] + references[1]
    tokens = np.full(size, float(length))
    of_pairs: Any = (*sides, *references, tokens, tokens, np.zeros(size))  # NumPy's, till traced
    return Pair(*of_pairs)


def _derivatives(losses: list[AbstractLoss], pairs: Pair) -> Float[Array, "loss 2 p"]:
    """Derivatives of each loss by the two log-probabilities, of each pair.

    Both derivatives come from one forward-mode trace, in which every pair occurs twice, with the
    two directions. That takes half as long as a gradient.
    """
    twice = jax.tree.map(lambda held: jax.numpy.concatenate([held, held]), pairs)
    one, nothing = jax.numpy.ones_like(pairs.chosen), jax.numpy.zeros_like(pairs.chosen)
    directions = [jax.numpy.concatenate(both) for both in ([one, nothing], [nothing, one])]

    def of(loss: AbstractLoss) -> Float[Array, "2 p"]:
        def values(chosen: Array, rejected: Array) -> Array:
            return loss(replace(twice, chosen=chosen, rejected=rejected))

        sides = twice.chosen, twice.rejected
        return jax.jvp(values, sides, tuple(directions))[1].reshape(2, -1)

    return jax.numpy.stack([of(loss) for loss in losses])


def _values(loss: AbstractLoss, pairs: Pair) -> Float[Array, " p"]:
    return loss(pairs)


_compiled = compiled(_derivatives, optimise=False)
_compiled_loss = compiled(_values, optimise=False)
