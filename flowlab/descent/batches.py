"""The pairs of each step of a training run.

n: pairs; b: pairs of a step.
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
    """Indices of pairs for each step, checked.

    Args:
        name: Their name in messages.
        batches: Indices for each step.
        count: The number of pairs.

    Raises:
        ValueError: If there is no step, or one is empty or names a pair that does not exist.
    """
    steps = [np.asarray(taken) for taken in batches]
    if not steps:
        raise ValueError(f"Argument `{name}` must have at least one step, but is empty.")
    for number, taken in enumerate(steps, start=1):
        fits = taken.ndim == 1 and taken.size and taken.dtype.kind in "iu"
        if not fits or taken.min() < 0 or taken.max() >= count:
            raise ValueError(
                f"Argument `{name}` must name some of the {count} pairs in each step, counted from "
                f"0, but step {number} is {checks.shown(taken)}."
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
        size: Pairs of a step.
        steps: Steps.
        seed: Seed of the draws.
        weights: Weights in proportion to which pairs are drawn, with replacement; None for equal
            ones.
        replacement: True to draw each pair from all; False to draw every pair once, in random
            order, before any comes again. A step may combine the end of one such order with the
            beginning of the next.
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
