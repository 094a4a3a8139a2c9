"""The order of samples, against torch and accelerate."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from refusals import assert_refused

from flowlab.descent import hf_order

GOLDEN = json.loads((Path(__file__).parent / "data" / "orders.json").read_text("utf-8"))


@pytest.mark.parametrize(("n", "seed", "permutation"), GOLDEN["permutations"])
def test_an_epoch_is_the_permutation_that_torch_draws(
    n: int, seed: int, permutation: list[int]
) -> None:
    (order,) = hf_order(n, 1, n, seed)
    assert order.tolist() == permutation


@pytest.mark.parametrize(("n", "seed", "ends"), GOLDEN["ends"])
def test_long_permutations_begin_and_end_as_those_of_torch(
    n: int, seed: int, ends: list[int]
) -> None:
    (order,) = hf_order(n, 1, n, seed)
    assert [*order[:3], *order[-3:]] == ends


@pytest.mark.parametrize("row", GOLDEN["epochs"])
def test_steps_are_the_batches_that_accelerate_gives_to_the_processes(row: dict) -> None:
    steps = [step for epoch in row.pop("steps") for step in epoch]
    assert [order.tolist() for order in hf_order(**row, epochs=2)] == steps


def test_steps_that_accumulate_are_batches_in_a_row_and_end_with_the_epoch() -> None:
    single, several = hf_order(10, 2, 2), hf_order(10, 2, 2, accumulation=2)
    assert [len(step) for step in several] == [4, 4, 2] * 2
    np.testing.assert_array_equal(np.concatenate(several), np.concatenate(single))


def test_orders_that_there_are_none_of_are_refused() -> None:
    assert_sentence = partial(assert_refused, hf_order)
    assert_sentence("Argument `epochs` must be a positive int, but is 0.", 4, 0, 2)
    assert_sentence(
        "Argument `n` must be an int from 1 to 214748363, but is 214748364.", 214748364, 1, 2
    )
    assert_sentence("Argument `drop_last` must be True or False, but is 1.", 4, 1, 2, drop_last=1)
    assert_sentence(
        "Argument `n` must be at least 6, the samples in one batch of every process, if "
        "`drop_last` is True, but is 5.",
        *(5, 1, 3),
        processes=2,
        drop_last=True,
    )
