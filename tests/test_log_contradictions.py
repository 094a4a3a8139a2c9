"""What a log contradicts, of the β and the loss that somebody names, and what is said then."""

import json
from pathlib import Path

import numpy as np
import pytest

from flowlab import logs, losses
from flowlab.logs import report

DATA = Path(__file__).parent / "data"
ADAMW = "dpo_beta0.1_similar_sft300.json"
DISTINCT = "dpo_beta0.1_distinct_sft30.json"


def read(name, **given):
    return logs.diagnose(logs.read(DATA / name, beta=0.1), **given)


def test_a_beta_that_does_not_fit_is_named_and_that_of_the_file_is_taken():
    right, wrong = (logs.diagnose(logs.read(DATA / DISTINCT, beta=b)) for b in (0.1, 0.05))
    assert any("fits β = 0.1 better than 0.05" in one for one in wrong.doubts)
    assert (right.beta_given, wrong.beta_given, wrong.log.beta) == (None, 0.05, 0.1)
    np.testing.assert_allclose(wrong.points, right.points, rtol=1e-12)
    assert wrong.loss == right.loss  # whose β it is, too
    told, wanted = report.to_json(wrong), report.to_json(right)
    assert (told.pop("beta_given"), wanted.pop("beta_given")) == (0.05, 0.1)
    assert (len(told.pop("doubts")), len(wanted.pop("doubts"))) == (1, 0)
    assert told.keys() == wanted.keys()
    assert told["margin"] == pytest.approx(wanted["margin"])
    assert "computed with β = 0.1, not with the given 0.05" in report.text(wrong).replace("\n", " ")


def test_nothing_follows_from_a_loss_that_does_not_fit():
    other = read(ADAMW, loss=losses.SummedIPO(0.1))
    assert any("the loss is 0.6931" in one and "would be 25" in one for one in other.doubts)
    assert (other.effects, other.rest, other.forecast, other.shift) == (None,) * 4
    assert other.coupling.value == pytest.approx(-0.516, abs=1e-3)  # which is measured
    assert "does not fit the file" in report.text(other).replace("\n", " ")
    assert not read(ADAMW, loss=losses.DPO(0.1)).doubts


def test_rewards_of_another_kind_than_the_loss_needs_are_a_contradiction(tmp_path):
    with pytest.raises(ValueError, match=r"loss with a reference.*at step 1 they are not below 0"):
        read(ADAMW, loss=losses.SimPO())
    rows = [
        {"step": s, "rewards/chosen": -0.2 - 0.01 * s, "rewards/rejected": -0.3 - 0.02 * s}
        | {"logps/chosen": -20.0 - 0.1 * s, "logps/rejected": -30.0 + 0.1 * s}
        for s in range(1, 21)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="not a multiple of the log-probabilities"):
        logs.diagnose(logs.read(path, beta=0.1), losses.SimPO())


def test_a_loss_below_its_value_at_the_mean_margin_is_noticed(tmp_path):
    rows = [
        {"step": s, "loss": 0.2, "rewards/chosen": 0.0, "rewards/rejected": -0.1 * s}
        for s in range(1, 4)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = logs.diagnose(logs.read(tmp_path / "rows.json", beta=0.1))
    assert any("cannot be below" in one for one in found.doubts)
