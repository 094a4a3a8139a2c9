"""The slopes of losses with respect to the two log-probabilities, at the points of a run.

A log does not contain the lengths of responses, and may lack their log-probabilities. Slopes are
therefore computed for short and for long responses, where both responses of a pair are equally
long. A statement about a loss is made only if it is true in both cases.
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
# Guesses of the reference log-probabilities if the log has none. A statement about a loss is then
# made only if the loss does not depend on them.
UNKNOWN = ((-20.0, -20.0), (-300.0, -200.0))
# Numbers of points to which programs are padded: one for all losses at the windows of any log, and
# one for a single loss at any points.
_WINDOWS = 32
MOST_POINTS = 512
_ALIKE = 1e-9  # relative: two slopes of double precision, computed in two ways


@dataclass(frozen=True)
class Slopes:
    """The slopes of one loss at several points.

    Attributes:
        chosen: −∂L/∂log π of the chosen response; positive if the loss raises the chosen response.
        rejected: ∂L/∂log π of the rejected response; positive if the loss lowers the rejected
            response.
        count: The number of points. The arrays hold the values at all points for the first guess of
            lengths and log-probabilities, then for the second guess, and so on.
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
        """True if the two slopes are always equal, so that the loss depends only on the margin."""
        size = np.abs(self.chosen) + np.abs(self.rejected)
        return bool(np.all(np.abs(self.chosen - self.rejected) <= _ALIKE * size))

    @property
    def of_guesses(self) -> bool:
        """True if the slopes depend on lengths or log-probabilities that a log does not contain."""
        parts = np.stack([self.chosen, self.rejected]).reshape(2, -1, self.count)
        return bool(np.any(np.abs(parts - parts[:, :1]) > _ALIKE * np.abs(parts).max(axis=0)))


def catalogue(beta: float) -> dict[str, AbstractLoss]:
    """All losses of one pair by name, with a given β if they have a β."""
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
    """The slopes of losses at points (u_w, u_l), for each length and each guess of the reference.

    Args:
        losses: The losses, by name.
        points: The points, at most 512.
        references: Log-probabilities of the two responses under the reference. None if they are not
            known; two guesses are then used, one after the other.
        lengths: Numbers of tokens. Each is used, one after the other, for both responses.

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
        points: The points (u_w, u_l), shape (k, 2).
        reference: Log-probabilities of the two responses under the reference.
        length: Number of tokens of each response.
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
    """Pairs at points (u_w, u_l), with further pairs at the reference up to a fixed number."""
    held = np.concatenate([points, np.zeros((size - len(points), 2))])
    references = [np.full(size, float(one)) for one in reference]
    sides = held[:, 0] + references[0], held[:, 1] + references[1]
    tokens = np.full(size, float(length))
    of_pairs: Any = (*sides, *references, tokens, tokens, np.zeros(size))  # NumPy's, till traced
    return Pair(*of_pairs)


def _derivatives(losses: list[AbstractLoss], pairs: Pair) -> Float[Array, "loss 2 p"]:
    """The derivatives of each loss with respect to the two log-probabilities, for each pair.

    Forward mode computes both derivatives in one trace, in which every pair occurs twice, once for
    each direction. This takes half the time of a gradient.
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
