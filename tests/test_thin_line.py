"""Flow lines that record no steps: their states, what is watched, checkpoints, refusals."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import flowlab as fl
from flowlab import until
from flowlab.solve import thin_line

PROBABILITIES = np.array([0.1, 0.05, 0.5, 0.35])
START = np.log(PROBABILITIES)
POLICY = fl.TabularSoftmax(PROBABILITIES, [(0, 1), (2, 0), (3, 1), (2, 3)])
FLOW = fl.preference_flow(fl.DPO(0.5), POLICY)
# y' = −(1, 4)·y, whose state at t is known.
BOWL = fl.Flow(lambda y: jnp.sum(jnp.array([0.5, 2.0]) * y**2))
CORNER = np.array([1.0, 2.0])
TIMES = [0.25, 0.5]
ASKED: dict[str, Any] = {"until": until.time(1.0), "dense": False}


def exact(times: Any) -> np.ndarray:
    return CORNER * np.exp(-np.outer(times, [1.0, 4.0]))


@pytest.fixture(scope="module")
def line() -> fl.Line:
    return fl.flow_line(BOWL, CORNER, save_at=TIMES, watch=["loss"], **ASKED)


def test_states_are_those_of_the_closed_form(line: fl.Line) -> None:
    np.testing.assert_allclose(line.times, [0, *TIMES, 1], rtol=1e-12)
    np.testing.assert_allclose(line.states, exact(line.times), rtol=1e-5)
    np.testing.assert_array_equal(line.states[-1], line.end)
    assert line.outcome == until.Outcome.reached and line.time == pytest.approx(1)
    values = np.sum(np.array([0.5, 2.0]) * line.states**2, axis=1)
    np.testing.assert_allclose(line.watched["loss"], values, rtol=1e-12)
    dense = fl.flow_line(BOWL, CORNER, until=until.time(1.0))
    np.testing.assert_allclose(line.end, dense.end, rtol=1e-5)


def test_log_ratios_are_watched_and_kept_to_a_tolerance() -> None:
    loose = {"rtol": 0.1, "atol": 10.0, **ASKED}  # which the state alone allows in few steps
    free = fl.flow_line(FLOW, START, u_atol=np.inf, watch=["u"], **loose)
    held = fl.flow_line(FLOW, START, u_atol=1e-7, watch=["u"], **loose)
    tight = fl.flow_line(FLOW, START, rtol=1e-10, **ASKED)
    pairs = POLICY.pairs(tight.end)
    wanted = np.stack([pairs.u_chosen, pairs.u_rejected], axis=-1)
    assert held.watched["u"].shape == (2, 4, 2) and np.all(held.watched["u"][0] == 0)
    errors = [np.max(np.abs(found.watched["u"][-1] - wanted)) for found in (free, held)]
    assert errors[1] < 1e-5 and errors[0] > 10 * errors[1] and held.steps > free.steps


def test_a_line_that_was_killed_is_resumed_to_the_same_bits(
    line: fl.Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "line.npz"
    calls, advanced = [0], thin_line._advanced

    def once(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return advanced(*arguments)

    monkeypatch.setattr(thin_line, "SAVED_EVERY", 0.0)
    asked: dict[str, Any] = {"save_at": TIMES, "watch": ["loss"], "checkpoint": file, **ASKED}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(thin_line, "_advanced", once)
        fl.flow_line(BOWL, CORNER, **asked)
    resumed = fl.flow_line(BOWL, CORNER, **asked)
    for name in ("times", "states", "end", "steps"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(line, name))
    np.testing.assert_array_equal(resumed.watched["loss"], line.watched["loss"])
    with pytest.raises(ValueError, match="Argument `checkpoint` must be a new file or that of th"):
        fl.flow_line(BOWL, CORNER, **{**asked, "until": until.time(2.0)})
    again = fl.flow_line(BOWL, CORNER, **asked)  # of which nothing is left to do
    np.testing.assert_array_equal(again.end, line.end)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda line: line.at(0.5),
            "Argument `dense` must be True for a line that knows its states between steps, but "
            "was False: ask for states with `save_at`.",
        ),
        (
            lambda _: fl.flow_line(BOWL, CORNER, until=until.time(1.0), save_at=[0.5]),
            "Argument `save_at` must not be given with dense=True, where it has no effect",
        ),
        (
            lambda _: fl.flow_line(BOWL, CORNER, u_atol=1.0, **ASKED),
            "Argument `u_atol` must be None for a flow without pairs, but is 1.0.",
        ),
        (
            lambda _: fl.flow_line(FLOW, START, u_atol=0.0, **ASKED),
            "Argument `u_atol` must lie in (0, inf], but is 0.0.",
        ),
        (
            lambda _: fl.flow_line(BOWL, CORNER, watch=["u"], **ASKED),
            'Argument `watch` must not ask for "u" of a flow without pairs.',
        ),
        (
            lambda _: fl.flow_line(
                BOWL, CORNER, until=until.loss_below(0.1), clock="loss", dense=False
            ),
            'Argument `clock` must be "time" or "arc_length" with dense=False, but is "loss".',
        ),
        (
            lambda _: fl.flow_line(BOWL, CORNER, save_at=[0.5, 0.25], **ASKED),
            "Argument `save_at` must hold positive increasing flow times, but is [0.5, 0.25].",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(
    call: Callable[[fl.Line], Any], sentence: str, line: fl.Line
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call(line)
