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
    ("content", "reason"),
    [
        (b"", "is neither JSON"),
        (b"step,accuracy\n1,0.5\n", "is neither JSON"),
        (b'{"log_history": [', "is not JSON ("),
        (b"[" * 200_000, "is not JSON ("),
        (b"\x80\x03c__main__\nRun", "holds binary data"),
        (b"PK\x03\x04\0\0", "holds binary data"),
    ],
    ids=["empty", "another table", "cut off", "nested too deeply", "pickle", "archive"],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, reason):
    path = tmp_path / "trainer_state.json"
    path.write_bytes(content)
    assert reason in refusal(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "lacks the key `log_history`"),
        ({"log_history": {}}, "has a `log_history` that is not a list of objects"),
        ({"log_history": [1]}, "has a `log_history` that is not a list of objects"),
        ({"log_history": []}, "has a `log_history` that is empty"),
        ([], "holds a list at its top level that is empty"),
        (3, "holds a number at its top level that is not a list of objects"),
        (None, "holds null at its top level that is not a list of objects"),
        ({"log_history": [{"step": 1, "note": 1.0}]}, "holds no training rows"),
        ({"log_history": [{"step": 1, "eval_loss": 1.0}]}, "holds losses without `rewards/chosen`"),
        ([{"step": 1, "loss": 0.5}], "give the trainer_state.json of a preference run"),
    ],
)
def test_a_file_without_usable_rows_is_refused(tmp_path, content, reason):
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps(content))
    assert reason in refusal(path)


def test_a_pickle_of_arguments_is_never_opened(tmp_path, monkeypatch):
    path = tmp_path / "training_args.bin"
    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was opened"))
    assert "is never opened" in refusal(path)


@pytest.mark.parametrize("key", [*OPTIONAL.values(), "rewards/chosen", "rewards/rejected"])
@pytest.mark.parametrize(
    ("value", "kind"), [("high", "a string"), (True, "a truth value"), ([1], "a list")]
)
def test_what_is_no_number_is_refused_by_key_and_step(tmp_path, key, value, kind):
    path = written(tmp_path, row(1), row(30, **{key: value}))
    assert f"holds {kind} for `{key}` in the row of step 30" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 10**400, None, ""], ids=repr)
def test_a_row_is_kept_for_the_side_that_it_has(tmp_path, value):
    log = logs.read(written(tmp_path, row(1), row(2, **{"rewards/chosen": value})), beta=0.5)
    np.testing.assert_array_equal(log.u_chosen, [0.4, np.nan])
    np.testing.assert_array_equal(log.u_rejected, [-0.6, -0.6])
    np.testing.assert_array_equal(log.points, [[0.4, -0.6]])
    assert log.skipped == {}


def test_what_is_left_out_is_counted_by_its_reason(tmp_path):
    neither = {"step": 4, "loss": 0.1, "rewards/chosen": None}
    nameless = {"loss": 0.1, "rewards/chosen": 1.0}
    path = written(tmp_path, row(1), row(2, loss=9.0), row(2), neither, nameless, {"step": 5})
    log = logs.read(path, beta=BETA)
    np.testing.assert_array_equal(log.loss, [0.5, 0.5])
    assert sorted(log.skipped.values()) == [1, 1, 1, 1]
    assert {reason.split(" ", 2)[1] for reason in log.skipped} == {"that", "rows"}
    assert "4 rows left out" in repr(log)


ROWS = [row(s, learning_rate=1e-3, **{"logps/chosen": -3.0 * s}) for s in (10, 20)]


def as_printed(rows):
    return "Loading...\n" + "".join(f" 5%|# | 1/20 [00:01<00:20]{r}\r\n" for r in rows)


def as_wandb(rows, prefix=""):
    keys = [key for key in rows[0] if key != "step"]
    header = ["Step", f"{prefix}train/global_step", *(f"{prefix}train/{key}" for key in keys)]
    lines = [[k, r["step"], *(r[key] for key in keys)] for k, r in enumerate(rows)]
    return "\n".join(",".join(map(str, line)) for line in [header, *lines])


def as_tags(rows):
    lines = [f"{r['step']},train/{k},{v}" for r in rows for k, v in r.items() if k != "step"]
    return "\n".join(["step,tag,value", *lines])


FORMS = {
    "state": lambda rows: json.dumps({"best_metric": None, "log_history": rows}),
    "list": json.dumps,
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
    "printed dicts": as_printed,
    "texts for numbers": lambda rows: as_printed([{k: str(v) for k, v in r.items()} for r in rows]),
    "W&B": as_wandb,
    "W&B with the run's name": lambda rows: as_wandb(rows, "my run - "),
    "semicolons": lambda rows: as_wandb(rows).replace(",", ";"),
    "tags": as_tags,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_same_rows_are_read_from_every_form_that_they_come_in(tmp_path, form, encoding):
    path = tmp_path / "any.ending"
    path.write_text(FORMS[form](ROWS), encoding=encoding, newline="")
    log = logs.read(path, beta=0.2)
    np.testing.assert_array_equal(log.step, [10, 20])
    np.testing.assert_allclose(log.u_chosen, [1.0, 1.0])
    np.testing.assert_allclose(log.logp_chosen, [-30.0, -60.0])
    np.testing.assert_allclose(log.time, [1e-3 * 4.5, 1e-3 * 14.5])
    assert log.skipped == {}


def test_printed_rows_are_literals_and_nothing_else_of_them_is_read(tmp_path):
    path = tmp_path / "out.log"
    made = tmp_path / "made"
    call = f"{{'loss': __import__('pathlib').Path({str(made)!r}).touch(), 'rewards/chosen': 1.0}}"
    good = "{'loss': nan, 'rewards/chosen': -0.5, 'rewards/rejected': -inf}"
    broken = "{'loss': <object at 0x7f>, 'rewards/chosen': 1.0}"
    path.write_text(f"{good}\n{call}\n{broken}\n{{'loss': 0.1, 'rewards/chosen': -0.25}}")
    log = logs.read(path, beta=0.5)
    np.testing.assert_array_equal(log.u_chosen, [-1.0, 2.0, -0.5])
    np.testing.assert_array_equal(log.loss, [np.nan, np.nan, 0.1])
    assert np.all(np.isnan(log.u_rejected)) and not made.exists()
    assert not log.numbered and log.nan_from == 1
    np.testing.assert_array_equal(log.step, [1, 2, 3])
    assert log.skipped == {"lines that look like rows and cannot be read": 1}


def test_numbers_of_numpy_and_torch_are_read_from_printed_rows(tmp_path):
    path = tmp_path / "out.log"
    path.write_text(
        "{'step': 1, 'loss': np.float64(0.6), 'rewards/chosen': tensor(0.2, device='cuda:0')}\n"
        "{'step': 2, 'loss': 0.5, 'rewards/chosen': numpy.float32(-0.4), 'note': <b> if 1 else 2}\n"
        "{'step': 3, 'loss': tensor([0.1, 0.2]), 'rewards/chosen': np.float64(nan)}\n"
    )
    log = logs.read(path, beta=0.2)
    np.testing.assert_array_equal(log.loss, [0.6])
    np.testing.assert_allclose(log.u_chosen, [1.0])
    assert log.skipped == {
        "lines that look like rows and cannot be read": 1,
        "training rows without a reward of either response": 1,
    }
    path.write_text("{'loss': <object>, 'rewards/chosen': 1.0}\n{'note': 1}")
    said = refusal(path)
    assert "lines that look like rows and cannot be read (1)" in said
    assert "rows that are neither of training nor of an evaluation (1)" in said


NESTED = {
    "beside": lambda r: {**r, "memory": {"allocated": {"now": 1.0}}},
    "in metrics": lambda r: {
        "global_step": r["step"],
        "metrics": {k: v for k, v in r.items() if k != "step"},
    },
    "by group": lambda r: {
        "step": r["step"],
        "train": {k: v for k, v in r.items() if k != "step" and not k.startswith("rewards/")},
        "rewards": {side: r[f"rewards/{side}"] for side in ("chosen", "rejected")},
        "eval": {"loss": 9.0},
    },
}


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("form", ["lines", "state", "printed dicts"])
def test_rows_with_objects_inside_are_read_whole(tmp_path, nested, form):
    path = tmp_path / "rows.txt"
    path.write_text(FORMS[form](list(map(NESTED[nested], ROWS))), newline="")
    log = logs.read(path, beta=0.2)
    np.testing.assert_array_equal(log.step, [10, 20])
    np.testing.assert_array_equal(log.loss, [0.5, 0.5])
    np.testing.assert_allclose(log.points, [[1.0, -1.5]] * 2)
    np.testing.assert_allclose(log.logp_chosen, [-30.0, -60.0])
    assert log.skipped == {}


def test_rows_inside_an_object_that_is_no_row_are_found(tmp_path):
    path = tmp_path / "state.txt"
    state = json.dumps({"log_history": ROWS}, indent=1)
    for text in (f"saved: {state}", state.replace("]", ",]"), state[:-4]):
        path.write_text(text)
        np.testing.assert_array_equal(logs.read(path, beta=0.2).step, [10, 20])


def test_a_resumption_at_an_earlier_step_leaves_the_branch_that_it_abandons(tmp_path):
    first = [row(step, loss=1.0) for step in range(1, 101)]
    again = [row(step, loss=2.0) for step in range(51, 71)]
    log = logs.read(written(tmp_path, *first, *again), beta=BETA)
    np.testing.assert_array_equal(log.step, np.arange(1, 71))
    np.testing.assert_array_equal(log.loss, [1.0] * 50 + [2.0] * 20)
    assert log.skipped == {
        "rows that a resumption at an earlier step, or a new run, leaves behind": 50
    }
    # A table that begins with the last row is turned over, and loses none.
    log = logs.read(written(tmp_path, *first[::-1]), beta=BETA)
    np.testing.assert_array_equal(log.step, np.arange(1, 101))
    assert log.skipped == {}


def test_evaluations_of_an_abandoned_branch_are_left_out_and_counted(tmp_path):
    def run(begin, end, mark):
        for step in range(begin, end + 1):
            yield row(step, loss=mark)
            if step % 10 == 0:
                yield {"step": step, "eval_loss": mark}

    # Resumed at 50 after 100 steps, and cut short before it came to the evaluation at 80.
    path = written(tmp_path, *run(1, 100, 1.0), *run(51, 75, 2.0))
    log = logs.read(path, beta=BETA)
    told = [(one["step"], one["eval_loss"]) for one in log.evaluations]
    assert told == [*((10 * k, 1.0) for k in range(1, 6)), (60, 2.0), (70, 2.0)]
    behind = "rows that a resumption at an earlier step, or a new run, leaves behind"
    assert log.skipped == {behind: 50, f"evaluation {behind}": 5}
    # Several sets evaluated at one step are no resumption; nor is a table with the last row on top.
    twice = [{"step": s, f"eval_{n}_loss": s} for s in (10, 20) for n in "ab"]
    whole = [row(1), *twice, row(21)]
    for rows in (whole, whole[::-1]):
        log = logs.read(written(tmp_path, *rows), beta=BETA)
        assert [one["step"] for one in log.evaluations] == [10, 10, 20, 20]
        assert log.skipped == {}


def test_of_two_runs_without_steps_in_one_text_the_later_is_read(tmp_path):
    path = tmp_path / "out.log"
    # Epochs are logged with few digits, so that neighbours share one.
    runs = [
        [{"loss": k, "rewards/chosen": 0.1, "epoch": round(n / 60, 2)} for n in range(30)]
        for k in (1, 2)
    ]
    path.write_text("\n".join(map(str, runs[0] + runs[1])))
    log = logs.read(path, beta=BETA)
    np.testing.assert_array_equal(log.loss, [2.0] * 30)
    np.testing.assert_array_equal(log.step, np.arange(1, 31))
    assert log.skipped == {
        "rows that a resumption at an earlier step, or a new run, leaves behind": 30
    }
    path.write_text("\n".join(map(str, runs[0] + runs[1][18:])))  # resumed at an epoch of 0.3
    log = logs.read(path, beta=BETA)
    np.testing.assert_array_equal(log.loss, [1.0] * 18 + [2.0] * 12)


def test_quantities_of_a_table_in_any_order_of_steps_are_gathered(tmp_path):
    path = tmp_path / "tags.csv"
    sides = [f"{s},train/rewards/{side},0.1" for side in ("chosen", "rejected") for s in (10, 20)]
    path.write_text("\n".join(["step,tag,value", *sides, "5,train/loss,0.6", "10,train/loss,0.5"]))
    log = logs.read(path, beta=BETA)
    np.testing.assert_array_equal(log.step, [10, 20])
    np.testing.assert_array_equal(log.loss, [0.5, np.nan])


def test_a_log_that_begins_late_has_its_first_row_in_the_middle_of_its_own_steps(tmp_path):
    rows = [row(step, learning_rate=1e-3) for step in range(5010, 5050, 10)]
    log = logs.read(written(tmp_path, *rows), beta=BETA)
    np.testing.assert_allclose(log.time, 1e-3 * np.array([5004.5, 5014.5, 5024.5, 5034.5]))


def test_evaluations_beside_training_rows_in_a_table_stand_apart(tmp_path):
    path = tmp_path / "wandb.csv"
    path.write_text(
        "train/global_step,train/loss,train/rewards/chosen,train/rewards/rejected,"
        "eval/loss,eval/rewards/chosen,train/loss__MAX\n"
        "1,0.69,0.0,0.0,,,9\n2,,,,0.6,0.1,\n3,0.5,0.2,-0.3,,,9\n"
    )
    log = logs.read(path, beta=0.1)
    np.testing.assert_array_equal(log.step, [1, 3])
    np.testing.assert_array_equal(log.loss, [0.69, 0.5])
    assert [e["eval_rewards/chosen"] for e in log.evaluations] == ["0.1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Wall time,Step,Value\n1,2,0.5\n", "holds one quantity, as TensorBoard exports it"),
        ("Step,a - train/loss,b - train/loss\n1,2,0.5\n", "holds 2 runs; export one run"),
    ],
)
def test_a_table_that_lacks_what_a_run_needs_says_what_to_give(tmp_path, text, reason):
    path = tmp_path / "export.csv"
    path.write_text(text)
    assert reason in refusal(path)


@pytest.mark.parametrize(
    ("rates", "whose", "times"),
    [
        # A warm-up of 4 steps to 4e-3: the first step of all is made with a rate of 0.
        ([0.0, 1e-3, 2e-3], "own", [0.0, 0.0, 1e-3]),
        ([1e-3, 2e-3, 3e-3], "next", [0.0, 0.0, 1e-3]),
        ([3e-3, 3e-3, 3e-3], "unknown", [0.0, 3e-3, 6e-3]),
        # A linear decay over these three steps, from 3e-3 to the 0 of a fourth.
        ([3e-3, 2e-3, 1e-3], "own", [0.0, 3e-3, 5e-3]),
        ([2e-3, 1e-3, 0.0], "next", [0.0, 3e-3, 5e-3]),
    ],
)
def test_a_schedule_shows_whose_the_logged_rates_are(tmp_path, rates, whose, times):
    rows = [row(step, learning_rate=rate) for step, rate in enumerate(rates, 1)]
    log = logs.read(written(tmp_path, *rows, {"step": 3, "train_runtime": 1.0}), beta=BETA)
    assert log.rates == whose
    np.testing.assert_allclose(log.time, times, rtol=1e-12, atol=1e-18)


def test_a_step_of_null_is_no_step(tmp_path):
    rows = [row(step, learning_rate=1e-3 * (4 - step)) for step in (1, 2, 3)]
    ends = {"step": None, "train_runtime": 1.0}
    log = logs.read(written(tmp_path, *rows, row(None), ends), beta=BETA)  # type: ignore[arg-type]
    assert log.rates == "unknown"
    assert log.skipped == {"training rows without a step": 1}
    np.testing.assert_array_equal(log.step, [1, 2, 3])


def test_a_dataset_of_a_log_has_its_columns_with_units():
    log = logs.read(SIMILAR, beta=BETA)
    dataset = log.to_xarray()
    np.testing.assert_array_equal(dataset["u_chosen"], log.u_chosen)
    assert dataset["u_chosen"].attrs["units"] == "nats"
    assert set(dataset.coords) == {"step", "time"}
    assert dataset.attrs["beta"] == BETA


def test_a_log_says_what_it_is():
    said = repr(logs.read(SIMILAR, beta=BETA))
    assert said == (
        "TrainingLog('dpo_beta0.1_similar_sft300.json', beta=0.1, 120 training rows (step 1 to "
        "120), (u_w, u_l) from (0, 0) to (-2.53, -5.15) nats)"
    )


def test_a_log_draws_itself_and_one_without_log_ratios_says_so():
    assert logs.read(SIMILAR, beta=BETA).plot().get_xlabel().startswith("$u_")
    with pytest.raises(ValueError, match="`log` must have training rows with both log-ratios"):
        logs.read(DATA / "log_orpo.json", beta=BETA).plot()
