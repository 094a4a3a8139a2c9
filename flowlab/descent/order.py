"""The order in which Hugging Face's Trainer draws samples, without torch."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from flowlab import _checks as checks

__all__ = ["hf_order"]

_MOST = 2**32 // 20  # from so many samples on, torch draws permutations in another way
_SEEDS = 2**32  # what the generator of torch makes of a seed: its lowest 32 bits


def hf_order(
    n: int,
    epochs: int,
    batch_size: int,
    seed: int = 42,
    accumulation: int = 1,
    processes: int = 1,
    drop_last: bool = False,
) -> list[Int[np.ndarray, " sample"]]:
    """The samples of each optimiser step, as the Trainer of transformers and accelerate draw them.

    The order of an epoch is `torch.randperm(n)` on the CPU with seed `seed` + epoch, cut into
    batches. A step consists of successive batches, one for each process and each accumulation step.
    The last step of an epoch may have fewer samples. With several processes, the epoch is instead
    padded with samples from its beginning.

    Args:
        n: Number of samples, less than 214,748,364.
        epochs: Number of passes over all samples.
        batch_size: Number of samples in a batch of one process (`per_device_train_batch_size`).
        seed: The `seed` of the training arguments, or their `data_seed` if it is given.
        accumulation: Number of batches of one process in a step (`gradient_accumulation_steps`).
        processes: Number of processes.
        drop_last: True to leave out samples that do not fill a batch for every process
            (`dataloader_drop_last`).

    Returns:
        For each optimiser step, the indices of its samples, shape (sample,).

    Raises:
        ValueError: If a number is out of its range, if `drop_last` is not a bool, or if an epoch
            has no batch.

    Source: `randperm` on CPUs of PyTorch 2.13, a Fisher–Yates shuffle over the 32-bit outputs of
        MT19937; `SeedableRandomSampler` and `BatchSamplerShard` of accelerate 1.15.

    Accuracy: exact.
    """
    n = checks.integer("n", n, most=_MOST - 1)
    seed = checks.integer("seed", seed, 0)
    width = checks.integer("batch_size", batch_size) * checks.integer("processes", processes)
    step = width * checks.integer("accumulation", accumulation)
    if not isinstance(drop_last, bool):
        raise ValueError(f"Argument `drop_last` must be True or False, but is {drop_last!r}.")
    if drop_last and n < width:
        raise ValueError(
            f"Argument `n` must be at least {width}, the samples in one batch of every process, "
            f"if `drop_last` is True, but is {n}."
        )
    taken = n - n % width if drop_last else n if processes == 1 else -(-n // width) * width
    found: list[np.ndarray] = []
    for epoch in range(checks.integer("epochs", epochs)):
        # If there are too few samples, the first ones are taken again.
        found.extend(_split(np.resize(_permutation(n, seed + epoch), taken), step))
    return found


def _split(order: Int[np.ndarray, " n"], step: int) -> Iterator[Int[np.ndarray, " sample"]]:
    """The samples of each step of an epoch."""
    return (order[first : first + step] for first in range(0, len(order), step))


def _permutation(n: int, seed: int) -> Int[np.ndarray, " n"]:
    """The permutation `torch.randperm(n)` on the CPU with a seed."""
    drawn = np.random.RandomState(seed % _SEEDS).randint(0, 2**32, size=n - 1, dtype=np.uint32)
    swaps = (np.arange(n - 1) + drawn % (n - np.arange(n - 1))).tolist()
    order = list(range(n))
    for here, there in enumerate(swaps):
        order[here], order[there] = order[there], order[here]
    return np.array(order)
