"""Flow lines that record no steps: their states, what is watched, checkpoints, refusals."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import flowlab as fl
from flowlab import until
from flowlab.solve import Line, thin_line

BETA = 4.0
FLOW = fl.preference_flow(fl.DPO(BETA), fl.LogRatioPlane())
BOWL = fl.Flow(lambda y: jnp.sum(y**2))
START = np.zeros(2)
TIMES = [1.0, 2.0]
# All lines but those that are refused share one program.
ASKED: dict[str, Any] = {"until": until.time(3.0), "dense": False, "save_at": TIMES}
LOOSE: dict[str, Any] = {"rtol": 0.1, "atol": 10.0, "u_atol": 1e6}
TIGHT: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9, "u_atol": 1e6}


class Bowl(eqx.Module):
    """A response that slopes down a bowl; one that is possible in a tube alone; one that rounds."""

    width: Any
    slope: Any

    def __call__(self, state: Any) -> Any:
        a, b = state
        inside = jnp.log(self.width**2 - (b - a**2) ** 2)
        return jnp.stack([-(a**2) / 2 - b**2, inside, -1e15 + self.slope * a])


@pytest.fixture(scope="module")
def line() -> Line:
    return fl.flow_line(FLOW, START, watch=["loss", "u"], **ASKED, **TIGHT)


def test_states_are_those_of_the_closed_form(line: Line) -> None:
    """Of h' = 2β/(1 + e^{βh}), which is h + (e^{βh} − 1)/β = 2βt."""
    np.testing.assert_allclose(line.times, [0, *TIMES, 3], rtol=1e-12)
    margins = line.states[:, 0] - line.states[:, 1]
    times = (margins + np.expm1(BETA * margins) / BETA) / (2 * BETA)
    np.testing.assert_allclose(times, line.times, rtol=1e-6)
    np.testing.assert_allclose(line.states[:, 0], margins / 2, rtol=1e-9)
    np.testing.assert_array_equal(line.states[-1], line.end)
    assert line.outcome == until.Outcome.reached and line.time == pytest.approx(3)
    np.testing.assert_allclose(line.watched["u"], line.states, atol=1e-14)
    wanted = np.log1p(np.exp(-BETA * margins))
    np.testing.assert_allclose(line.watched["loss"], wanted, rtol=1e-12)


def test_log_ratios_are_kept_to_a_tolerance_of_their_own(line: Line) -> None:
    loose = fl.flow_line(FLOW, START, **ASKED, **LOOSE)
    held = fl.flow_line(FLOW, START, **ASKED, **{**LOOSE, "u_atol": 1e-4})
    errors = [np.max(np.abs(found.end - line.end)) for found in (loose, held)]
    assert errors[1] < 1e-3 and errors[0] > 10 * errors[1]
    assert held.steps > loose.steps


@pytest.mark.parametrize(("width", "slope"), [(1e-8, 0.0), (1e4, 1e3)], ids=["edge", "rounding"])
def test_neither_an_edge_nor_rounding_hides_the_error_of_a_log_ratio(
    width: float, slope: float
) -> None:
    """a = e^{−t} and b = e^{−2t} run in the middle of the tube b ≈ a², beyond which u is NaN."""
    responses = Bowl(jnp.asarray(width), jnp.asarray(slope))
    policy = fl.Policy.from_function(
        responses, reference=np.ones(2), preferences=[(0, 1), (0, 2)], lengths=1.0
    )
    flow = fl.preference_flow(fl.losses.SFT(), policy)
    held = fl.flow_line(flow, np.ones(2), watch=["u"], **ASKED, **{**LOOSE, "u_atol": 1e-5})
    assert held.outcome == until.Outcome.reached
    np.testing.assert_allclose(held.watched["u"][:, 0, 1], 0, atol=1e-4)
    errors = slope * (held.states[:, 0] - np.exp(-held.times))
    np.testing.assert_allclose(errors, 0, atol=1e-4)


def test_a_line_that_was_cut_off_is_resumed_to_the_same_bits(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "line.npz"
    calls, advanced = [0], thin_line._advanced

    def twice(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return advanced(*arguments)

    monkeypatch.setattr(thin_line, "SAVED_EVERY", 0.0)
    asked: dict[str, Any] = {"watch": ["loss", "u"], "checkpoint": file, **ASKED, **TIGHT}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(thin_line, "_advanced", twice)
        fl.flow_line(FLOW, START, **asked)
    resumed = fl.flow_line(FLOW, START, **asked)
    for name in ("times", "states", "end", "steps"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(line, name))
    np.testing.assert_array_equal(resumed.watched["u"], line.watched["u"])
    again = fl.flow_line(FLOW, START, **asked)  # of which nothing is left to do
    np.testing.assert_array_equal(again.end, line.end)
    with pytest.raises(
        ValueError, match="Argument `checkpoint` must be a new file or a checkpoint of"
    ):
        fl.flow_line(FLOW, START, **{**asked, "until": until.time(4.0)})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda line: line.at(0.5),
            "Argument `dense` must be True for states between steps, but was False; "
            "ask for states with `save_at` instead.",
        ),
        (
            lambda _: fl.flow_line(FLOW, START, until=until.time(1.0), save_at=[0.5]),
            "Argument `save_at` must not be given with dense=True, where it has no effect",
        ),
        (
            lambda _: fl.flow_line(BOWL, START, u_atol=1.0, **ASKED),
            "Argument `u_atol` must be None for a flow without pairs, but is 1.0.",
        ),
        (
            lambda _: fl.flow_line(FLOW, START, u_atol=0.0, **ASKED),
            "Argument `u_atol` must lie in (0, inf], but is 0.0.",
        ),
        (
            lambda _: fl.flow_line(BOWL, START, watch=["u"], **ASKED),
            'Argument `watch` must not hold "u" for a flow without pairs, but does.',
        ),
        (
            lambda _: fl.flow_line(
                FLOW, START, until=until.loss_below(0.1), clock="loss", dense=False
            ),
            'Argument `clock` must be "time" or "arc_length" with dense=False, but is "loss".',
        ),
        (
            lambda _: fl.flow_line(FLOW, START, **{**ASKED, "save_at": [0.5, 0.25]}),
            "Argument `save_at` must hold positive increasing flow times, but is [0.5, 0.25].",
        ),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[Line], Any], sentence: str, line: Line) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call(line)
