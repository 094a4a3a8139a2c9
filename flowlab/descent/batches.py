"""The pairs of each step of a training run.

Letters in shapes: n pairs, b pairs of a step.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from flowlab import _checks as checks

__all__ = ["checked_batches", "drawn_batches"]


def checked_batches(
    name: str, batches: Sequence[npt.ArrayLike], count: int
) -> list[Int[np.ndarray, " b"]]:
    """The given indices of pairs for each step, as arrays, after a check.

    Args:
        name: The name of the argument in messages.
        batches: The indices of the pairs of each step.
        count: The number of pairs.

    Raises:
        ValueError: If there is no step, or if a step is empty or has an index without a pair.
    """
    steps = [np.asarray(taken) for taken in batches]
    if not steps:
        raise ValueError(f"Argument `{name}` must have at least one step, but is empty.")
    for number, taken in enumerate(steps, start=1):
        fits = taken.ndim == 1 and taken.size and taken.dtype.kind in "iu"
        if not fits or taken.min() < 0 or taken.max() >= count:
            raise ValueError(
                f"Argument `{name}` must have in each step indices of the {count} pairs, counted "
                f"from 0, but step {number} is {checks.shown(taken)}."
            )
    return [taken.astype(np.int32) for taken in steps]


def drawn_batches(
    count: int,
    size: int,
    steps: int,
    seed: int,
    weights: Float[np.ndarray, " n"] | None,
    *,
    replacement: bool,
) -> list[Int[np.ndarray, " b"]]:
    """Indices of pairs for each step, drawn at random.

    Args:
        count: The number of pairs.
        size: The number of pairs in a step.
        steps: The number of steps.
        seed: The seed of the random numbers.
        weights: The probabilities of the pairs are proportional to these weights if `replacement`
            is true; None for equal probabilities.
        replacement: True to draw each pair from all pairs. False to draw every pair once, in random
            order, before any pair is drawn again; a step may then contain the end of one order and
            the beginning of the next.
    """
    generator = np.random.default_rng(seed)
    if replacement:
        chances = None if weights is None else weights / np.sum(weights)
        drawn = generator.choice(count, (steps, size), p=chances)
    else:
        orders = -(-steps * size // count)
        drawn = np.concatenate([generator.permutation(count) for _ in range(orders)])
        drawn = drawn[: steps * size].reshape(steps, size)
    return list(drawn.astype(np.int32))
