"""Forecasts of runs: pilots and orders step by step in NumPy, bands by hand, and refusals."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from bigrams import SMALL, TABLE, bigrams, by_hand
from refusals import assert_refused

import flowlab as fl
from flowlab import data, models
from flowlab.descent import hf_order, hf_rates
from flowlab.losses import DPO
from flowlab.policies import LanguageModel
from flowlab.replay import Forecast, forecast, forecasts_table, pilots

REVERSAL = Path(__file__).parent / "data" / "reversal"
PLAIN: dict[str, Any] = {"optimiser": "sgd", "max_grad_norm": 0.0, "schedule": "constant"}
STEPS = 64
WHOLE = [[0, 1]] * STEPS  # all pairs at every step: nothing is drawn
LOSS = DPO(0.5)


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return fl.Policy.from_model(bigrams, TABLE, SMALL)


@pytest.fixture(scope="module")
def slope(policy: LanguageModel) -> Callable[..., np.ndarray]:
    """The gradient of the mean loss of two pairs by the table."""
    flow = fl.preference_flow(LOSS, policy)
    gradient = jax.jit(lambda table, batch: flow.subset(batch).gradient(table))
    return lambda table, batch: np.asarray(gradient(table, np.array(batch)))


def ratios(table: np.ndarray) -> np.ndarray:
    """Log-ratios of all pairs at a table."""
    return by_hand(table) - by_hand(TABLE)


def means(table: np.ndarray) -> np.ndarray:
    """Means of u_w, u_l and the margin."""
    chosen, rejected = ratios(table).mean(axis=0)
    return np.array([chosen, rejected, chosen - rejected])


def descended(slope: Any, rate: float, order: list[list[int]]) -> np.ndarray:
    """The table after plain steps."""
    table = TABLE
    for batch in order:
        table = table - rate * slope(table, batch)
    return table


def test_pilots_that_agree_foretell_the_run(policy: LanguageModel, slope: Any) -> None:
    found = forecast(policy, LOSS, 0.01, [WHOLE, WHOLE], **PLAIN)
    for pilot, stride in zip(found.pilots, (8, 16), strict=True):
        wanted = means(descended(slope, 0.01 * stride, WHOLE[: STEPS // stride]))
        np.testing.assert_allclose(pilot, wanted, rtol=1e-9)
    end = descended(slope, 0.01, WHOLE)
    run, (low, high) = means(end), found.band
    assert np.all((low < run) & (run < high))
    # The error is of first order in the step: that of the eighth is 7/8 of what the two differ by.
    apart, error = found.pilots[1] - found.pilots[0], found.pilots[0] - run
    np.testing.assert_allclose(error / apart, 7 / 8, rtol=0.05)
    assert found.by_pilots and not found.is_draw and "agree, to" in found.text()
    np.testing.assert_array_equal(found.end, found.pilots[0])
    assert (found.gradients, found.of_run, found.cost) == (24, 128, 0.1875)
    np.testing.assert_array_equal(found.signs, np.sign(run))
    np.testing.assert_allclose(found.fell, [np.mean(ratios(end)[:, 0] < 0)])


@pytest.mark.exhaustive  # for each takes a program of its own
@pytest.mark.parametrize("steps", [64, 70])
def test_what_adam_remembers_is_as_long_in_flow_time(
    steps: int, policy: LanguageModel, slope: Any
) -> None:
    rates, order = hf_rates(0.01, steps, schedule="cosine"), [[0, 1]] * steps
    found = forecast(policy, LOSS, rates, [order, order], adam_betas=(0.9, 0.99), max_grad_norm=0)
    for pilot, stride in zip(found.pilots, (8, 16), strict=True):
        table, first, second = TABLE, np.zeros((3, 3)), np.zeros((3, 3))
        count = -(-steps // stride)
        kept = 0.9 ** (steps / count), 0.99 ** (steps / count)
        ends = [place * steps // count for place in range(count + 1)]
        for step, (begin, end) in enumerate(pairwise(ends), start=1):
            gradient = slope(table, [0, 1])
            first = kept[0] * first + (1 - kept[0]) * gradient
            second = kept[1] * second + (1 - kept[1]) * gradient**2
            root = np.sqrt(second / (1 - kept[1] ** step))
            table = table - rates[begin:end].sum() * first / (1 - kept[0] ** step) / (root + 1e-8)
        np.testing.assert_allclose(pilot, means(table), rtol=1e-9)


def test_a_run_that_its_order_decides_is_a_draw(policy: LanguageModel, slope: Any) -> None:
    one, other = [0, 0], [1, 1]
    orders = [[one] * STEPS, [other] * STEPS, [one, other] * (STEPS // 2)]
    found = forecast(policy, LOSS, 4.0, orders, **PLAIN)
    assert not found.by_pilots and found.is_draw
    assert np.all(np.isnan(found.end)) and np.all(np.isfinite(found.median))
    for place, order in enumerate(orders):
        end = descended(slope, 4.0, order)
        np.testing.assert_allclose(found.orders[place], means(end), rtol=1e-7)
        assert found.fell[place] == np.mean(ratios(end)[:, 0] < 0)
    assert found.gradients == 2 * (8 + 4 + 3 * STEPS)


def test_runs_that_were_finished_before_an_interruption_are_kept(
    policy: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {**PLAIN, "checkpoint": tmp_path / "forecast.json"}
    begun, descend = [0], pilots.descend

    def interrupted(*given: Any, **options: Any) -> Any:
        begun[0] += 1
        if begun[0] == 2:
            raise KeyboardInterrupt
        return descend(*given, **options)

    monkeypatch.setattr(pilots, "descend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        forecast(policy, LOSS, 0.01, [WHOLE] * 2, **asked)
    found = forecast(policy, LOSS, 0.01, [WHOLE] * 2, **asked)
    assert begun[0] == 3  # the first pilot was not begun again
    wanted = forecast(policy, LOSS, 0.01, [WHOLE] * 2, **PLAIN)
    np.testing.assert_array_equal(found.pilots, wanted.pilots)
    assert begun[0] == 5 and found.gradients == wanted.gradients
    forecast(policy, LOSS, 0.02, [WHOLE] * 2, **asked)
    assert begun[0] == 7  # another run has ends of its own
    asked["checkpoint"].write_text("[]", "utf-8")
    sentence = "Argument `checkpoint` must be a new file or the file of an earlier forecast, but"
    with pytest.raises(ValueError, match=sentence):
        forecast(policy, LOSS, 0.01, [WHOLE] * 2, **asked)


def test_a_short_run_is_carried_out_at_once(
    policy: LanguageModel, slope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilots, "SHORTEST", 5)  # which 64 steps are too few for, by 16
    found = forecast(policy, LOSS, 0.01, [WHOLE] * 2, **PLAIN)
    assert np.all(np.isnan(found.pilots)) and found.cost == 2
    told = "64 steps are too few for shorter runs to agree, but 2 orders of the pairs do. A furth"
    assert not found.is_draw and found.text().startswith(told)
    np.testing.assert_allclose(found.end, means(descended(slope, 0.01, WHOLE)), rtol=1e-9)


def made_up(orders: np.ndarray) -> Forecast:
    pilots = np.array([[np.nan] * 3, [-1.0, -2.0, 1.0]])
    return Forecast(pilots, orders, np.full(len(orders), 0.5), 400, 100, STEPS)


def test_a_band_holds_a_further_order_three_times_in_four() -> None:
    orders = np.array([[-4.0, -7.0, 3.0], [-2.0, -6.0, 4.0], [-3.0, -6.0, 3.0], [1.0, -1.0, 2.0]])
    found = made_up(orders)
    # 1.4226253 is the 87.5 % point of Student's t with three degrees of freedom.
    half = 1.4226253 * np.sqrt(1.25) * np.std(orders, axis=0, ddof=1)
    np.testing.assert_allclose(found.band, orders.mean(axis=0) + np.array([-half, half]), rtol=1e-6)
    np.testing.assert_array_equal(found.median, [-2.5, -6.0, 3.0])
    np.testing.assert_array_equal(found.signs, [0, -1, 1])
    np.testing.assert_array_equal(found.falls, [True, True, True, False])
    assert "in 4 orders of the pairs it ends at margins from 2 to 4, and a furth" in found.text()
    assert "ends between these with a probability of 0.6; the mean" in found.text()  # 3/5
    assert found.text().endswith("A further order ends in the band with a probability of 0.75.")
    assert "falls in 3 of 4" in forecasts_table({"dpo": found})
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["margin"]["end"] is None and told["margin"]["median"] == 3
    assert told["pilots"] == [[None] * 3, [-1, -2, 1]]


def test_orders_that_broke_off_are_told() -> None:
    found = made_up(np.array([[np.nan] * 3, [-1.0, -2.0, 1.0]]))
    assert found.is_draw and "1 of them broke off" in found.text()
    assert found.text().endswith("There is no band of fewer than two orders.")
    assert found.text().startswith("a run of an eighth of the steps broke off, so that shorter")
    assert np.all(np.isnan(found.band)) and found.median[2] == 1
    assert made_up(np.full((2, 3), np.nan)).is_draw


def test_orders_that_do_not_fit_are_refused(policy: LanguageModel) -> None:
    assert_refused(
        forecast,
        "Argument `orders` must hold at least 2 orders, but holds 1.",
        *(policy, LOSS, 0.1, [WHOLE]),
    )
    assert_refused(
        forecast,
        "Argument `orders` must hold orders with the same number of steps, but the first has "
        "64 and number 2 has 63.",
        *(policy, LOSS, 0.1, [WHOLE, WHOLE[1:]]),
    )


@pytest.mark.exhaustive
def test_the_end_of_a_run_of_sgd_is_foretold_at_a_fifth_of_its_cost() -> None:
    """The run in the log of SGD, which ends at u_w = 0.114 and a margin of 0.820."""
    model, pairs = models.load(REVERSAL), data.preferences(REVERSAL / "pairs.jsonl", REVERSAL)
    orders = [hf_order(len(pairs), 12, 16, seed) for seed in (100, 112)]  # not its own, 42
    found = forecast(model.policy(pairs, chunk=32), DPO(0.1), 0.001, orders, **PLAIN)
    assert found.by_pilots and found.cost < 0.2
    assert found.end[2] == pytest.approx(0.820, rel=0.03)
    assert found.end[0] > 0
