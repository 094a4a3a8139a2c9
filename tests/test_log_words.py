"""The words of a diagnosis: bounds on their safe side, alarms, baselines, and names of losses."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from flowlab import logs, losses
from flowlab.logs import report
from flowlab.logs.rounding import down, down_to, up, up_to
from flowlab.logs.verdict import has_diverged
from flowlab.losses.trl import from_trl, loss_type_of

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def said():
    """The texts of three runs, on one line each."""
    names = {
        "adamw": "dpo_beta0.1_similar_sft300",
        "sgd": "dpo_beta0.1_similar_sft300_sgd_lr0.001",
        "overshoot": "log_overshoot",
    }
    found = {
        key: logs.diagnose(logs.read(DATA / f"{name}.json", beta=0.1))
        for key, name in names.items()
    }
    return {key: " ".join(report.text(one).split()) for key, one in found.items()}


def as_decimal(text):
    return Decimal(text.replace("−", "-"))


def test_bounds_are_rounded_to_the_side_on_which_they_hold():
    values = [*np.random.default_rng(0).normal(scale=3, size=200), 0.0, 1.0, -1e-9, 1e-9, 1395.5]
    for value in map(float, values):
        exact = Decimal(value)
        for low, high in ((down(value), up(value)), (down_to(value), up_to(value))):
            assert as_decimal(low) <= exact <= as_decimal(high)
        assert as_decimal(up(value)) - as_decimal(down(value)) <= Decimal("0.01")
    assert (down_to(1 / 2.24), up_to(0.0611), up(-0.001), down(-0.001)) == (
        "0.44",
        "0.062",
        "0.00",
        "−0.01",
    )
    assert (up_to(123.4), down(1395.5, 0), up(1.0), up_to(0.0)) == ("130", "1395", "1.00", "0")


def test_every_bound_in_the_text_is_on_its_safe_side(said):
    # λ = |ρ| is at most 0.4472, and ρ lies in (−0.5832, −0.4472).
    assert "with λ at most 0.44 " in said["adamw"]
    assert "ρ = −0.52, between −0.59 and −0.44 with" in said["adamw"]
    assert "with w at least 0.062 where log π is summed over tokens" in said["adamw"]
    # The margin is 1417.18 nats and the ceiling 21.6787: 1395.5.
    assert (
        "can never exceed +21.68. Of the margin of 1417 nats at least 1395 had" in said["overshoot"]
    )
    assert "k is at most 1.00; the log sets no useful lower limit" in said["sgd"]
    assert "30.99" not in said["sgd"]


def test_a_run_that_diverged_says_so_first(said):
    told = said["overshoot"]
    alarm = "In short: the rejected log-ratio fell by 1418 nats in 30 steps: the run diverged."
    assert alarm in told and told.index(alarm) < told.index("What happened")
    assert "a factor of 10^−616," in told  # 1418.05/log(10)
    assert "The last row lies 0.87 nats lower than the first, but 4 rows cannot tell" in told
    assert "diverged" not in said["adamw"] + said["sgd"]


def test_divergence_is_many_nats_that_no_loss_of_this_scale_asks_for():
    assert has_diverged(-1418.0, 0.1) and has_diverged(1418.0, 0.1)
    assert not has_diverged(-150.0, 0.01)  # β·Δu = 1.5: an ordinary margin with a small β
    assert not has_diverged(-80.0, 1.0)  # exp(−80) is a normal number of single precision
    assert np.float32(np.exp(-80.0)) >= np.finfo(np.float32).smallest_normal
    assert has_diverged(-88.0, 1.0)


def test_a_change_is_told_from_the_first_rows_and_from_the_reference(said):
    # exp(−2.217) and exp(−2.931)
    two = "2.22 nats below steps 1–20 (×0.11), 2.93 nats below the reference (×0.053)"
    assert two in said["adamw"]
    assert "the first column is not 0, for it averages steps" in said["adamw"]
    assert "the first column is not 0" not in said["overshoot"]
    assert "Each number is that of the row named above it" in said["overshoot"]


def test_a_back_test_is_told_by_what_was_foretold_and_what_came(said):
    # From the middle at 1.6973 to 3.1304 foretold and 2.7522 measured: 1.4331 for 1.0549.
    told = "predicted +3.13, actual +2.75 (growth overestimated by ≈ 36 %)."
    assert told in said["adamw"]
    assert "predicted −2.42, actual −2.93 (0.51 nats too high)." in said["adamw"]
    assert "predicted +0.00, actual +0.12 (0.12 nats too low)." in said["sgd"]


def test_learning_rates_are_told_of_only_where_they_are_used(said):
    assert "learning rates are those" not in said["overshoot"]  # they are known there


@pytest.mark.parametrize(
    ("ours", "trainer", "theirs", "fields", "told"),
    [
        ("dpo", "dpo", "sigmoid", {}, "sigmoid"),
        ("exo", "dpo", "exo_pair", {"label_smoothing": 0.1}, "exo_pair"),
        ("sppo", "dpo", "sppo_hard", {}, "sppo_hard"),
        ("length_normalised_dpo", "dpo", "sigmoid_norm", {}, "sigmoid_norm"),
        ("cpo", "cpo", "sigmoid", {}, "sigmoid of CPO"),
        (
            "dpo_jensen_shannon",
            "dpo",
            "sigmoid",
            {"f_divergence_type": "js_divergence"},
            "sigmoid with js_divergence",
        ),
    ],
)
def test_the_name_that_trl_has_for_a_loss_gives_it(ours, trainer, theirs, fields, told):
    known = losses.named(ours)
    assert loss_type_of(known) == told
    made = from_trl(trainer, theirs, **fields)
    assert type(made) is type(known)
    assert type(getattr(made, "divergence", None)) is type(getattr(known, "divergence", None))


def test_losses_stand_with_the_names_of_trl_where_these_differ(said):
    assert "exo (exo_pair), length_normalised_dpo (sigmoid_norm)" in said["adamw"]
    assert "ipo, summed_ipo, hinge, " in said["adamw"]
    assert loss_type_of(losses.CalDPO()) is None
