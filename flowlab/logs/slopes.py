"""How losses push on the two responses, at the places that a run went through.

A log tells neither lengths nor, always, log-probabilities. What is said of a loss is what holds for
short and for long responses, the two of a pair being equally long.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float

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
_PADS = (32, 512)  # points: two shapes for all logs, the windows and a line, so two programs
MOST_POINTS = _PADS[-1]
_ALIKE = 1e-9  # relative: two slopes of double precision, computed in two ways


@dataclass(frozen=True)
class Slopes:
    """How one loss pushes.

    Attributes:
        chosen: −∂L/∂log π of the chosen response, at each point: positive where the loss gains by
            its rise.
        rejected: ∂L/∂log π of the rejected one, at each point: positive where the loss gains by its
            fall.
        places: The number of points; the values are those at all of them for each guess in turn.
    """

    chosen: Float[np.ndarray, " p"]
    rejected: Float[np.ndarray, " p"]
    places: int

    def after_first(self) -> "Slopes":
        """The slopes at all points but the first."""
        chosen, rejected = (
            side.reshape(-1, self.places)[:, 1:].ravel() for side in (self.chosen, self.rejected)
        )
        return Slopes(chosen, rejected, self.places - 1)

    @property
    def of_margin(self) -> bool:
        """Whether both sides are pushed alike everywhere, as by a loss of the margin."""
        size = np.abs(self.chosen) + np.abs(self.rejected)
        return bool(np.all(np.abs(self.chosen - self.rejected) <= _ALIKE * size))

    @property
    def of_guesses(self) -> bool:
        """Whether they depend on what a log does not tell: lengths, or log-probabilities."""
        parts = np.stack([self.chosen, self.rejected]).reshape(2, -1, self.places)
        return bool(np.any(np.abs(parts - parts[:, :1]) > _ALIKE * np.abs(parts).max(axis=0)))


def catalogue(beta: float) -> dict[str, AbstractLoss]:
    """Every loss of one pair by its name, at a β where it has one."""
    found = {}
    for name, loss in CATALOGUE.items():
        if not loss.of_batch:
            found[name] = named(name, beta=beta) if hasattr(loss, "beta") else loss
    return found


def without_reference(loss: AbstractLoss) -> bool:
    """Whether the rewards that TRL logs for a loss are β·log π, not β times a log-ratio."""
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
        references: Log-probabilities of the two responses under the reference; None where they are
            not known, and then two guesses are taken in turn.
        lengths: Numbers of tokens of both responses, each in turn.

    Returns:
        Slopes with k values for each length and each guess.
    """
    listed = list(losses.values())
    known = UNKNOWN if references is None else (references,)
    room = next(size for size in _PADS if size >= len(points)) - len(points)
    padded = np.concatenate([points, np.zeros((room, 2))])
    parts = []
    with jax.enable_x64(True):
        for reference in known:
            for length in lengths:
                at = (padded[:, 0], padded[:, 1], *np.asarray([*reference, length]))
                parts.append(np.asarray(_compiled(listed, *at))[:, :, : len(points)])
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
    with jax.enable_x64(True):
        chosen, rejected = np.transpose(points)
        values = _compiled_loss(loss, chosen, rejected, np.asarray(reference), np.asarray(length))
        return np.asarray(values)


def _pairs(
    chosen: Array, rejected: Array, reference: tuple[ArrayLike, ArrayLike], length: ArrayLike
) -> Pair:
    fill = jax.numpy.full_like
    references = fill(chosen, reference[0]), fill(chosen, reference[1])
    tokens, nothing = fill(chosen, length), jax.numpy.zeros_like(chosen)
    sides = chosen + references[0], rejected + references[1]
    return Pair(*sides, *references, tokens, tokens, nothing)


def _gradients(
    losses: list[AbstractLoss],
    chosen: Float[Array, " p"],
    rejected: Float[Array, " p"],
    ref_chosen: Float[Array, ""],
    ref_rejected: Float[Array, ""],
    length: Float[Array, ""],
) -> Float[Array, "loss 2 p"]:
    """Derivatives of each loss by the two log-probabilities, at each point."""

    def total(loss: AbstractLoss, sides: tuple[Array, Array]) -> Float[Array, ""]:
        return loss(_pairs(*sides, (ref_chosen, ref_rejected), length)).sum()

    sides = chosen, rejected
    found = [jax.grad(lambda s, loss=loss: total(loss, s))(sides) for loss in losses]
    return jax.numpy.stack([jax.numpy.stack(one) for one in found])


def _value(
    loss: AbstractLoss,
    chosen: Float[Array, " p"],
    rejected: Float[Array, " p"],
    reference: Float[Array, "2"],
    length: Float[Array, ""],
) -> Float[Array, " p"]:
    return loss(_pairs(chosen, rejected, (reference[0], reference[1]), length))


_compiled = compiled(_gradients, optimise=False)
_compiled_loss = compiled(_value, optimise=False)
