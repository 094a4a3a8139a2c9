"""Training logs: the two real ones in tests/data, and small files written here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowlab import logs

DATA = Path(__file__).parent / "data"
DISTINCT = DATA / "dpo_beta0.1_distinct_sft30.json"
SIMILAR = DATA / "dpo_beta0.1_similar_sft300.json"
BETA = 0.1

OPTIONAL = {
    "learning_rate": "learning_rate",
    "logp_chosen": "logps/chosen",
    "logp_rejected": "logps/rejected",
    "loss": "loss",
    "gradient_norm": "grad_norm",
    "accuracy": "rewards/accuracies",
}


def raw_rows(path: Path) -> list[dict[str, Any]]:
    return [row for row in json.loads(path.read_text())["log_history"] if "loss" in row]


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "loss": 0.5, "rewards/chosen": 0.2, "rewards/rejected": -0.3, **values}


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "trainer_state.json"
    path.write_text(json.dumps({"log_history": rows}))
    return path


def refusal(path: Path, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        logs.read(path, beta=BETA)
    message = str(caught.value)
    assert message.startswith("Argument `path` must ")
    assert str(path) in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("path", [DISTINCT, SIMILAR], ids=lambda path: path.stem)
def test_every_column_of_a_real_log_is_the_one_in_the_file(path):
    log, rows = logs.read(path, beta=BETA), raw_rows(path)
    assert len(rows) == 120
    for name, key in {"step": "step", **OPTIONAL}.items():
        column = getattr(log, name)
        assert column.dtype == np.float64
        np.testing.assert_array_equal(column, [row[key] for row in rows])


@pytest.mark.parametrize("path", [DISTINCT, SIMILAR], ids=lambda path: path.stem)
def test_log_ratios_times_beta_are_the_logged_rewards(path):
    log, rows = logs.read(path, beta=BETA), raw_rows(path)
    for column, key in [
        (log.u_chosen, "rewards/chosen"),
        (log.u_rejected, "rewards/rejected"),
        (log.margin, "rewards/margins"),
    ]:
        np.testing.assert_allclose(BETA * column, [row[key] for row in rows], rtol=1e-5, atol=1e-7)


def test_points_are_chosen_and_rejected_log_ratios_side_by_side():
    log = logs.read(DISTINCT, beta=BETA)
    assert log.points.shape == (120, 2)
    np.testing.assert_array_equal(log.points[:, 0], log.u_chosen)
    np.testing.assert_array_equal(log.points[:, 1], log.u_rejected)


@pytest.mark.parametrize("beta", [0.25, np.float32(0.25), np.array(0.25)], ids=repr)
def test_path_and_beta_are_kept(tmp_path, beta):
    log = logs.read(str(written(tmp_path, row(1))), beta=beta)
    assert (log.path, log.beta) == (tmp_path / "trainer_state.json", 0.25)
    assert isinstance(log.beta, float)


@pytest.mark.parametrize("path", [DISTINCT, SIMILAR], ids=lambda path: path.stem)
def test_a_real_log_starts_at_the_reference_at_time_zero(path):
    log = logs.read(path, beta=BETA)
    np.testing.assert_array_equal(log.points[0], [0.0, 0.0])
    assert log.time[0] == 0.0
    assert log.loss[0] == pytest.approx(np.log(2), rel=1e-6)


def test_the_time_of_a_row_per_step_is_the_sum_of_the_rates_before_it():
    log = logs.read(DISTINCT, beta=BETA)
    np.testing.assert_allclose(log.time, 3e-4 * np.arange(120), rtol=1e-12)


def test_time_weights_each_rate_by_the_steps_of_its_row_and_lies_in_their_middle(tmp_path):
    steps, rates = [1, 4, 6], [0.1, 0.2, 0.4]
    log = logs.read(
        written(
            tmp_path,
            *(row(step, learning_rate=rate) for step, rate in zip(steps, rates, strict=True)),
        ),
        beta=BETA,
    )
    rate_of_step = np.array([0.1, 0.2, 0.2, 0.2, 0.4, 0.4])
    time_before_step = np.concatenate([[0.0], np.cumsum(rate_of_step)[:-1]])
    means = [time_before_step[:1].mean(), time_before_step[1:4].mean(), time_before_step[4:].mean()]
    np.testing.assert_allclose(log.time, means, rtol=1e-12)


def test_a_log_of_every_kth_row_has_times_within_the_steps_it_stands_for(tmp_path):
    rows = [row(step, learning_rate=1e-3 / step) for step in range(5, 101, 5)]
    log = logs.read(written(tmp_path, *rows), beta=BETA)
    assert np.all(np.diff(log.time) > 0)
    after = np.cumsum(5 * log.learning_rate)
    assert np.all(log.time < after)
    assert np.all(log.time[1:] > after[:-1])


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_missing_optional_column_is_nan_everywhere(tmp_path, name):
    full = {key: 0.5 for key in OPTIONAL.values()}
    del full[OPTIONAL[name]]
    rows = [
        {"step": step, "rewards/chosen": 0.0, "rewards/rejected": 0.0, **full} for step in (1, 2)
    ]
    log = logs.read(written(tmp_path, *rows), beta=BETA)
    for other in OPTIONAL:
        assert np.all(np.isnan(getattr(log, other)) == (other == name))
    assert np.all(np.isnan(log.time)) == (name == "learning_rate")


def test_null_and_nan_in_optional_columns_are_nan(tmp_path):
    log = logs.read(
        written(tmp_path, row(1, loss=None, grad_norm=float("nan")), row(2, grad_norm=1)), beta=BETA
    )
    np.testing.assert_array_equal(log.loss, [np.nan, 0.5])
    np.testing.assert_array_equal(log.gradient_norm, [np.nan, 1.0])


def test_an_infinite_value_in_an_optional_column_stays_infinite(tmp_path):
    log = logs.read(written(tmp_path, row(1, loss=float("inf")), row(2, loss=10**400)), beta=BETA)
    np.testing.assert_array_equal(log.loss, [np.inf, np.inf])


def test_evaluations_and_summary_stand_apart_and_other_rows_are_left_out(tmp_path):
    evaluation = {"step": 1, "eval_loss": 0.6, "eval_rewards/chosen": 0.1}
    summary = {"step": 2, "train_runtime": 3.0, "rewards/chosen": 9.0, "rewards/rejected": 9.0}
    path = written(tmp_path, row(1), evaluation, {"step": 1, "note": 7.0}, row(2), summary)
    log = logs.read(path, beta=BETA)
    np.testing.assert_array_equal(log.step, [1.0, 2.0])
    assert log.evaluations == (evaluation,)
    assert log.summary == summary


def test_the_summary_of_a_real_log_is_its_last_row_and_there_are_no_evaluations():
    log = logs.read(SIMILAR, beta=BETA)
    assert log.summary == json.loads(SIMILAR.read_text())["log_history"][-1]
    assert log.summary["train_runtime"] == 3.2517
    assert log.evaluations == ()


def test_a_run_cut_short_has_an_empty_summary(tmp_path):
    assert logs.read(written(tmp_path, row(1)), beta=BETA).summary == {}


@pytest.mark.parametrize(
    "beta", [0, -0.1, float("nan"), float("inf"), "0.1", None, True, [0.1], 0.1j], ids=repr
)
def test_a_beta_that_is_not_positive_and_finite_is_refused(beta):
    with pytest.raises(ValueError, match="Argument `beta` must be positive and finite, but is"):
        logs.read(DISTINCT, beta=beta)


def test_a_missing_file_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere.json", FileNotFoundError)


def test_a_directory_is_refused(tmp_path):
    written(tmp_path, row(1))
    assert "is a directory" in refusal(tmp_path, IsADirectoryError)


@pytest.mark.parametrize(
    "content",
    [b"", b"step,loss\n1,0.5\n", b'{"log_history": [', b"\xff\xfe\x00\x01\xff", b"[" * 200_000],
    ids=["empty", "csv", "cut off", "binary", "nested too deeply"],
)
def test_a_file_that_is_not_json_is_refused(tmp_path, content):
    path = tmp_path / "trainer_state.json"
    path.write_bytes(content)
    assert "is not JSON (" in refusal(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("[]", "a list"),
        ("3", "a number"),
        ('"x"', "a string"),
        ("true", "a truth value"),
        ("null", "null"),
        ("NaN", "NaN"),
    ],
)
def test_a_top_level_that_is_no_object_is_refused(tmp_path, content, kind):
    path = tmp_path / "trainer_state.json"
    path.write_text(content)
    assert f"holds {kind} at its top level" in refusal(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "lacks the key `log_history`"),
        ({"log_history": {}}, "has a `log_history` that is not a list of objects"),
        ({"log_history": [1]}, "has a `log_history` that is not a list of objects"),
        ({"log_history": []}, "has an empty `log_history`"),
        ({"log_history": [{"step": 1, "eval_loss": 1.0}]}, "holds no training rows"),
    ],
)
def test_a_file_without_a_usable_history_is_refused(tmp_path, content, reason):
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps(content))
    assert reason in refusal(path)


@pytest.mark.parametrize("key", ["rewards/chosen", "rewards/rejected"])
def test_a_training_row_without_rewards_is_refused_by_key_and_step(tmp_path, key):
    incomplete = row(7)
    del incomplete[key]
    reason = f"lacks the key `{key}` in the training row of step 7"
    assert reason in refusal(written(tmp_path, row(1), incomplete))


def test_a_log_of_plain_finetuning_is_refused_for_its_missing_rewards(tmp_path):
    path = written(tmp_path, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4})
    assert "lacks the key `rewards/chosen` in the training row of step 1" in refusal(path)


def test_a_training_row_without_a_step_is_refused(tmp_path):
    incomplete = row(2)
    del incomplete["step"]
    assert "lacks the key `step` in a training row" in refusal(
        written(tmp_path, row(1), incomplete)
    )


@pytest.mark.parametrize("key", ["rewards/chosen", "rewards/rejected"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (float("nan"), "NaN"),
        (float("-inf"), "an infinite number"),
        (10**400, "a number beyond float64"),
        (None, "null"),
        ("0.1", "a string"),
        (True, "a truth value"),
    ],
)
def test_rewards_that_are_not_finite_numbers_are_refused_by_key_and_step(
    tmp_path, key, value, kind
):
    path = written(tmp_path, row(1), row(30, **{key: value}))
    assert f"holds {kind} for `{key}` in the training row of step 30" in refusal(path)


@pytest.mark.parametrize("key", OPTIONAL.values())
def test_an_optional_value_that_is_no_number_is_refused_by_key_and_step(tmp_path, key):
    path = written(tmp_path, row(1), row(2, **{key: "high"}))
    assert f"holds a string for `{key}` in the training row of step 2" in refusal(path)


@pytest.mark.parametrize(("steps", "place"), [((0, 1), "row 1"), ((1, 3, 3), "row 3")])
def test_steps_that_do_not_increase_from_one_on_are_refused(tmp_path, steps, place):
    message = refusal(written(tmp_path, *(row(step) for step in steps)))
    assert f"steps do not increase from 1 on: {place} of them" in message
