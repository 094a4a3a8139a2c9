"""What a log says of its run, against runs whose coupling is known, and against real logs."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from matplotlib.patches import Ellipse

from flowlab import logs, losses, plots
from flowlab.logs import coupling, forecast, report, slopes
from flowlab.logs.coupling import Coupling
from flowlab.logs.slopes import Slopes
from flowlab.logs.verdict import displacement
from flowlab.logs.windows import windows

DATA = Path(__file__).parent / "data"
ADAMW = "dpo_beta0.1_similar_sft300.json"
SGD = "dpo_beta0.1_similar_sft300_sgd_lr0.001.json"
DISTINCT = "dpo_beta0.1_distinct_sft30.json"
NOISE = np.array([[0.25, 0.85 * 0.3], [0.85 * 0.3, 0.36]])  # correlated at 0.85


def read(name, **given):
    return logs.diagnose(logs.read(DATA / name, beta=0.1), **given)


def without_losses(name):
    """A real log without its losses, which would contradict those of another loss."""
    log = logs.read(DATA / name, beta=0.1)
    return dataclasses.replace(log, loss=np.full_like(log.loss, np.nan))


def of_straight_run(rng, rows, rho, *, length=4.0, growing=False):
    """Windows of a run along (ρ, −1) that slows down, with noise of batches."""
    run = length * -np.expm1(-3 * np.arange(rows) / rows) / -np.expm1(-3)
    scale = np.sqrt(2 * np.arange(rows) / rows) if growing else np.ones(rows)
    noise = rng.standard_normal((rows, 2)) @ np.linalg.cholesky(NOISE).T * scale[:, None]
    step = np.arange(1.0, rows + 1)
    return windows(step, step, np.outer(run, [rho, -1.0]) + noise)


@pytest.mark.parametrize(
    ("rows", "rho", "growing"),
    [(12, -0.5, False), (60, -0.5, False), (60, 0.3, True), (480, 0.1, True), (480, -0.5, False)],
)
def test_the_interval_of_the_coupling_covers_in_95_of_100_runs(rows, rho, growing):
    rng = np.random.default_rng(0)
    runs = [of_straight_run(rng, rows, rho, growing=growing) for _ in range(1000)]
    found = [coupling.effective_coupling(run.change()) for run in runs]
    known = [one for one in found if one.known]
    assert len(known) > 950
    covered = sum(one.low <= rho <= one.high for one in known) + len(found) - len(known)
    assert 930 <= covered <= 970


def test_a_run_that_drifts_straight_is_hardly_ever_called_displaced():
    rng = np.random.default_rng(1)
    rising = [displacement(of_straight_run(rng, 480, 0.3)) for _ in range(100)]
    assert not any(one.falls or one.transient for one in rising)
    # Where the chosen response does not move at all, a fall is seen by chance in 2.5 %.
    still = [displacement(of_straight_run(rng, 120, 0.0)) for _ in range(600)]
    assert 6 <= sum(bool(one.falls) for one in still) <= 27
    assert sum(bool(one.transient) for one in still) <= 27


def test_a_fall_is_seen_with_its_step_and_depth_and_a_dip_is_called_transient():
    steps = np.arange(1.0, 201)
    wave = np.sin(steps) / 50  # stands for noise: it has no trend
    fall = np.where(steps > 100, -2.0, 0.0) + wave
    found = displacement(windows(steps, steps, fall[:, None]))
    assert (found.falls, found.transient, found.from_step) == (True, False, 101)
    assert found.depth == pytest.approx(2.0, abs=0.02)
    dip = np.where((steps > 100) & (steps <= 140), -2.0, 0.0) + wave
    found = displacement(windows(steps, steps, dip[:, None]))
    assert (found.falls, found.transient, found.from_step) == (False, True, 101)


def test_the_interval_is_that_of_fieller_and_open_where_the_rejected_did_not_move():
    rng = np.random.default_rng(2)
    run = of_straight_run(rng, 480, -0.5)
    found = coupling.effective_coupling(run.change())
    change = run.change()
    # At the ends, u_w + ρ·u_l is just as far from 0 as chance allows in 95 of 100.
    for end in (found.low, found.high):
        weights = np.array([1.0, end])
        deviation = np.sqrt(weights @ change.covariance @ weights)
        freedom = change.freedom(np.array([1.0, found.value]))
        quantile = scipy.stats.t.ppf(0.975, freedom)
        assert abs(weights @ change.value) == pytest.approx(quantile * deviation, rel=1e-9)
    assert not coupling.effective_coupling(
        of_straight_run(rng, 480, 0.2, length=0.01).change()
    ).known
    assert not coupling.effective_coupling(of_straight_run(rng, 6, 0.2).change()).known


def test_noise_is_measured_beside_any_drift():
    rng = np.random.default_rng(3)
    seen = [of_straight_run(rng, 480, -0.5, length=50.0).scatter for _ in range(40)]
    np.testing.assert_allclose(np.mean(seen, axis=(0, 1)), NOISE, rtol=0.05)


def kernels_along(rho, across):
    """Kernels with K·(1, −1) along (ρ, ±1), found by search: semidefinite, of any scale."""
    found = []
    for c in np.linspace(-60, 60, 24_001):
        for k_ww in (1.0, 0.0):
            # (k_ww − c) : (c − k_ll) as ρ : across, and not against the loss.
            k_ll = c - across * (k_ww - c) / rho
            kernel = np.array([[k_ww, c], [c, k_ll]])
            if np.linalg.eigvalsh(kernel)[0] >= -1e-9 and (k_ww - c) * rho >= 0:
                found.append(kernel)
    return np.array(found)


@pytest.mark.parametrize(
    ("rho", "across"), [(-0.5, -1), (-0.9, -1), (0.2, -1), (0.7, -1), (1.5, 1)]
)
def test_effects_are_those_under_every_kernel_that_the_coupling_leaves(rho, across):
    allowed = kernels_along(rho, across)
    assert len(allowed) > 20
    own = Slopes(np.ones(1), np.ones(1), 1)
    rng = np.random.default_rng(4)
    others = {str(k): Slopes(rng.normal(size=1), rng.normal(size=1), 1) for k in range(60)}
    others |= {"sft": Slopes(np.ones(1), np.zeros(1), 1), "dpo": own}
    known = Coupling(rho, rho, rho, across > 0)
    found = coupling.effects(known, own, others)
    assert found is not None
    for name, slope in others.items():
        force = np.array([slope.chosen[0], -slope.rejected[0]])
        speeds = allowed[:, 0] @ force
        wanted = "lowers" if np.all(speeds <= 1e-9) else "raises"
        wanted = wanted if np.all(speeds <= 1e-9) or np.all(speeds >= -1e-9) else "either"
        assert found[name] == wanted, (name, slope)
    assert set(found.values()) == {"lowers", "raises", "either"}
    low, high = coupling.kernel_range(known) or (np.nan, np.nan)
    ratios = allowed[allowed[:, 0, 0] > 0, 0, 1]
    assert low == pytest.approx(ratios.min(), abs=0.01)
    assert high == pytest.approx(ratios.max(), abs=0.01)


def test_an_interval_of_couplings_is_certain_only_of_what_holds_at_each():
    own = Slopes(np.ones(1), np.ones(1), 1)
    shift = {lam: Slopes(np.ones(1), np.full(1, lam), 1) for lam in (0.3, 0.5, 1.0)}
    named = {str(lam): slope for lam, slope in shift.items()}
    found = coupling.effects(Coupling(-0.5, -0.6, -0.4), own, named)
    assert found == {"0.3": "raises", "0.5": "either", "1.0": "lowers"}
    assert coupling.shift_that_holds(Coupling(-0.5, -0.6, -0.4)) == 0.4
    assert coupling.likelihood_that_holds(Coupling(-0.5, -0.6, -0.4), 0.05) == pytest.approx(0.075)
    assert coupling.effects(Coupling(0.1, -0.1, 0.3), own, named)["1.0"] == "either"  # type: ignore[index]
    assert coupling.shift_that_holds(Coupling(0.1, -0.1, 0.3)) is None
    # The margin fell: no kernel does that under a loss that raises it.
    assert coupling.effects(Coupling(-1.5, -1.7, -1.3), own, named) is None
    assert coupling.kernel_range(Coupling(-1.5, -1.7, -1.3)) is None


@pytest.mark.parametrize(
    ("interval", "rises", "wanted"),
    [
        ((-0.6, -0.5, -0.4), False, (1.0, 2.5)),
        ((-1.2, -0.9, -0.8), False, (1.0, 1.25)),  # of −1.2 there is no kernel
        ((0.1, 0.2, 0.3), False, (-10.0, 1.0)),
        ((-0.1, 0.1, 0.3), False, (-np.inf, np.inf)),
        ((0.0, 0.1, 0.2), False, (-np.inf, 1.0)),
        ((-0.2, -0.1, 0.0), False, (1.0, np.inf)),
        ((1.25, 1.5, 2.0), True, (0.5, 1.0)),
        ((0.9, 1.5, 2.0), True, (0.5, 1.0)),
    ],
)
def test_the_range_of_kernels_is_that_of_every_coupling_of_the_interval(interval, rises, wanted):
    low, value, high = interval
    found = coupling.kernel_range(Coupling(value, low, high, rises))
    assert found == pytest.approx(wanted)  # b/a at the end nearest 0, and 1


def test_a_coupling_that_may_be_zero_leaves_the_kernel_open(tmp_path):
    time = np.linspace(0, 1, 60)
    found = logs.diagnose(log_of(tmp_path, 0 * time, -20 * time))
    assert found.coupling.low < 0 < found.coupling.high
    said = " ".join(report.text(found).split())
    assert "The log leaves k open, since ρ may be 0." in said
    assert report.to_json(found)["k_wl_over_k_ww"] == [None, None]
    known = read(ADAMW)
    told = " ".join(report.text(known).split())
    assert f"k lies between 1.00 and {-1 / known.coupling.high:.2f}." in told


def test_slopes_are_the_derivatives_of_the_losses():
    points = np.array([[0.0, 0.0], [-1.0, -2.5], [0.5, -7.0]])
    found = slopes.push(slopes.catalogue(0.3), points, (-12.0, -15.0), (10.0,))
    assert len(found) == 30
    weight = 0.3 * scipy.special.expit(-0.3 * (points[:, 0] - points[:, 1]))
    np.testing.assert_allclose(found["dpo"].chosen, weight, rtol=1e-12)
    np.testing.assert_allclose(found["dpo"].rejected, weight, rtol=1e-12)
    assert found["dpo"].of_margin and found["exo"].of_margin and not found["kto"].of_margin
    np.testing.assert_allclose(found["sft"].chosen, 0.1)
    small = 1e-6
    for name in ("kto", "orpo", "dpop", "sppo", "cal_dpo"):
        loss = slopes.catalogue(0.3)[name]
        for side, slope in ((0, -found[name].chosen), (1, found[name].rejected)):
            away = small * np.eye(2)[side]
            ends = [
                slopes.loss_values(loss, points[1:] + s * away, (-12, -15), 10) for s in (1, -1)
            ]
            rise = (ends[0] - ends[1]) / (2 * small)
            np.testing.assert_allclose(rise, slope[1:], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (losses.ConservativeDPO(0.1, 0.1), np.log(9) / 0.1),
        (losses.EXO(0.2, 1e-3), np.log(999) / 0.2),
        (losses.SummedIPO(0.1), 5.0),
        (losses.Hinge(0.1), 10.0),
        (losses.DPO(0.1), None),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_loss_rests_where_its_slope_is_zero(loss, wanted):
    beta = float(loss.beta)
    found = forecast.rest(forecast.slope_of(loss), 1.0, beta)
    assert found == (None if wanted is None else pytest.approx(wanted, rel=1e-5))
    if isinstance(loss, losses.SummedIPO):  # from beyond, it comes back
        assert forecast.rest(forecast.slope_of(loss), 30.0, beta) == pytest.approx(5.0, rel=1e-4)


def test_a_forecast_solves_the_flow_with_the_fitted_coupling_and_stops_at_probability_one():
    beta, kernel = 0.2, np.array([[1.0, 1.3], [1.3, 2.2]])

    def velocity(_, u):
        return beta * scipy.special.expit(-beta * (u[0] - u[1])) * kernel @ [1.0, -1.0]

    times = np.arange(0.0, 60.5, 0.5)
    solved = scipy.integrate.solve_ivp(velocity, (0, 90), [0, 0], rtol=1e-10, dense_output=True)
    seen = windows(np.arange(1.0, 122), times, solved.sol(times).T)
    slope = forecast.slope_of(losses.DPO(beta))
    ahead = forecast.forecast(seen, slope, np.full(2, np.inf), time=90 - seen.time[-1])
    assert ahead is not None and not ahead.bounded
    # Means of windows of a curve lie a little beside it.
    np.testing.assert_allclose(ahead.end, solved.y[:, -1], rtol=5e-3)
    tested = forecast.back_test(seen, slope, np.full(2, np.inf))
    assert tested is not None and tested.margin_share < 5e-3
    rising = np.array([[1.0, 0.2], [0.2, 1.0]])
    kernel[:] = rising
    solved = scipy.integrate.solve_ivp(velocity, (0, 90), [0, 0], rtol=1e-10, dense_output=True)
    seen = windows(np.arange(1.0, 122), times, solved.sol(times).T)
    bound = seen.mean[-1, 0] + 0.1
    ahead = forecast.forecast(seen, slope, np.array([bound, np.inf]), time=30.0)
    assert ahead is not None and ahead.bounded
    assert ahead.end[0] == pytest.approx(bound)


def log_of(folder, chosen, rejected, beta=0.1):
    """A log of two log-ratios over the steps, with noise of batches in all rows but the first."""
    noise = np.random.default_rng(6).normal(size=(len(chosen), 2))
    noise[0] = 0.0
    rewards = beta * (np.stack([chosen, rejected], axis=1) + noise)
    rows = [
        {"step": s, "rewards/chosen": w, "rewards/rejected": r}
        for s, (w, r) in enumerate(rewards.tolist(), 1)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return logs.read(folder / "rows.json", beta=beta)


def test_the_sft_weight_holds_at_the_steepest_place_of_a_run_and_at_none_beyond_the_rest(tmp_path):
    time = np.linspace(0, 1, 60)
    below = log_of(tmp_path, -10 * time, 60 - 40 * time)  # begins 60 nats below the reference
    found = logs.diagnose(below)
    assert found.shift is not None
    steepest = 0.1 * scipy.special.expit(-0.1 * (found.windows.mean @ [1.0, -1.0]).min())
    assert steepest > 0.099
    assert found.likelihood == pytest.approx(steepest * (1 / found.shift - 1), rel=1e-9)
    assert "Pairs of negative margin are pushed harder" in " ".join(report.text(found).split())
    passed = log_of(tmp_path, -10 * time, -40 * time)
    found = logs.diagnose(passed, losses.ConservativeDPO(0.1, 0.2))  # rests at 13.9 of 30 nats
    assert found.shift is not None and found.likelihood is None
    assert "SFT term" not in report.text(found) and "DPO-Shift" in report.text(found)


def test_a_flat_loss_is_said_to_be_flat_and_another_to_pull_back(tmp_path):
    # Its margin ends far beyond 1/β.
    hinge = logs.diagnose(without_losses(DISTINCT), losses.Hinge(0.1))
    assert hinge.rest == pytest.approx(10.0, rel=1e-5) and hinge.pulls_back is False
    said = " ".join(report.text(hinge).split())
    assert "is flat from a margin of 10 nats on" in said and "larger one back" not in said
    assert report.to_json(hinge)["rest_pulls_back"] is False
    smooth = logs.diagnose(without_losses(DISTINCT), losses.ConservativeDPO(0.1, 0.1))
    assert smooth.pulls_back is True and "and pulls a larger one back" in report.text(smooth)
    assert forecast.rest(forecast.slope_of(losses.Hinge(0.1)), 30.0, 0.1) == pytest.approx(10.0)
    assert read(DISTINCT).pulls_back is None


def test_a_run_beyond_the_rest_of_its_loss_is_not_foretold():
    # The slope is 0 at log(9)/0.1 = 22 nats, so the time from 18 to 26 nats is infinite.
    slope, open_ended = forecast.slope_of(losses.ConservativeDPO(0.1, 0.1)), np.full(2, np.inf)
    steps = np.arange(1.0, 61)
    for margins in ((0.0, 30.0), (18.0, 26.0), (30.0, 40.0)):
        run = np.linspace(*margins, 60)
        seen = windows(steps, steps, np.stack([run / 3, -run * 2 / 3], axis=1))
        assert forecast.forecast(seen, slope, open_ended, time=30.0) is None
    run = np.linspace(40.0, 30.0, 60)  # comes back, and goes on to do so
    seen = windows(steps, steps, np.stack([run / 3, -run * 2 / 3], axis=1))
    back = forecast.forecast(seen, slope, open_ended, time=30.0)
    assert back is not None and 21.97 < back.end @ [1.0, -1.0] < 30.5


def test_rows_of_one_side_alone_are_told(tmp_path):
    rng = np.random.default_rng(5)
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        rows = [{"step": s, f"rewards/{side}": -0.1 * s + rng.normal()} for s in range(1, 31)]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        found = logs.diagnose(logs.read(tmp_path / "rows.json", beta=0.1))
        said = " ".join(report.text(found).split())
        assert f"{side} log-ratio" in said and f"{other} log-ratio" not in said
        assert "needs at least 8 rows with both rewards" in said
        assert ("In short: the chosen responses became less likely" in said) == (side == "chosen")


def test_an_adamw_run_falls_with_a_coupling_near_minus_a_half():
    found = read(ADAMW)
    assert found.displacement.falls and not found.displacement.transient
    assert found.displacement.from_step == 21
    assert found.displacement.depth == pytest.approx(2.217, abs=1e-3)
    assert found.coupling.value == pytest.approx(-0.516, abs=1e-3)
    assert -0.65 < found.coupling.low < -0.5 < found.coupling.high < -0.4
    assert found.kernels == pytest.approx((1.0, -1 / found.coupling.high))
    assert found.effects is not None
    assert {found.effects[name] for name in ("dpo", "ipo", "hinge", "exo", "odpo")} == {"lowers"}
    assert found.effects["sft"] == "raises"
    assert found.shift == pytest.approx(-found.coupling.high)
    assert found.bounds == pytest.approx([2.966, 6.568], abs=1e-3)
    assert found.back_test is not None and found.back_test.margin_share == pytest.approx(
        0.36, abs=0.01
    )
    assert not found.doubts


def test_an_sgd_run_does_not_fall_and_its_dip_is_not_claimed():
    found = read(SGD)
    chosen = found.windows.mean[:, 0]
    deviation = np.sqrt(found.windows.covariance[:, 0, 0])
    assert len(chosen) == 24 and set(found.windows.count) == {20}
    for place, mean, noise in ((2, 0.045, 0.008), (7, -0.03, 0.02), (23, 0.12, 0.035)):
        assert chosen[place] == pytest.approx(mean, abs=5e-3)
        assert deviation[place] == pytest.approx(noise, rel=0.3)
    assert (found.displacement.falls, found.displacement.transient) == (False, False)
    said = report.text(found)
    assert "No. The last rows lie 0.11" in said
    assert "for a while" not in said and "below zero" not in said


def test_a_run_of_distinct_responses_gains_on_both_sides():
    found = read(DISTINCT)
    assert found.displacement.falls is False
    assert found.coupling.value == pytest.approx(0.097, abs=1e-3)
    assert found.kernels == pytest.approx((-1 / found.coupling.low, 1.0))
    said = " ".join(report.text(found).split())
    assert "at least 36.38 had to come from a fall of the rejected responses" in said


def test_an_overshoot_is_told_and_no_line_goes_beyond_a_probability_of_one():
    found = read("log_overshoot.json")
    assert found.chosen is not None and found.rejected is not None
    assert (found.chosen.last, found.rejected.last) == pytest.approx((-0.87, -1418), abs=0.1)
    assert found.bounds[0] == pytest.approx(21.68, abs=0.01)
    assert found.log.rates == "next"
    assert found.log.loss[-1] == found.log.learning_rate[-1] == 0
    assert found.displacement.falls is None and not found.coupling.known
    assert found.uncoupled is not None
    assert np.all(found.uncoupled[:, 0] <= found.bounds[0])
    lines = plots.training_run(found).lines
    drawn = [np.asarray(line.get_xdata()) for line in lines if line.get_linestyle() == "-"]
    assert max(x.max() for x in drawn if x.size > 1) == pytest.approx(found.bounds[0])


def test_a_policy_that_does_not_move_is_told_with_the_rates_that_were_applied():
    found = read("log_stuck.json")
    assert not found.moved
    said = " ".join(report.text(found).split())
    assert "The policy did not move." in said
    assert "Learning rates of up to 1.4e-05 were applied all the same" in said


def test_a_log_with_nan_is_used_for_what_it_has():
    found = read("log_kto_nan.json")
    assert found.name == "kto" and not found.assumed
    assert found.log.nan_from == 2
    assert found.chosen is not None and found.rejected is not None
    assert (found.chosen.rows, found.rejected.rows) == (3, 2)
    assert (found.chosen.last, found.rejected.last) == pytest.approx((3.0879, 2.3544))
    assert report.to_json(found)["skipped_rows"] == 2
    assert "From step 2 on the loss or a reward is NaN." in report.text(found)


def test_a_log_of_orpo_has_log_probabilities_and_never_log_ratios():
    found = read("log_orpo.json")
    assert found.name == "orpo" and found.reference_free
    assert len(found.log.points) == 0 and np.all(np.isnan(found.log.u_chosen))
    np.testing.assert_allclose(found.points[[0, -1], 0], [-0.794, -0.692])
    assert found.doubts == [
        "The rewards in the file are 0.05 times the log-probabilities, so β is 0.05. The "
        "following is computed with β = 0.05, not with the given 0.1."
    ]
    said = report.text(found)
    assert "went from −0.98 to −0.79, by +0.19" in said.replace("\n", " ")
    assert "chosen log-ratio" not in said
    with pytest.raises(ValueError, match="`runs` must hold runs with log-ratios"):
        plots.training_run(found)
    assert "log-probability" in str(found.plot().get_legend_handles_labels()[1])
    with pytest.raises(ValueError, match="`loss` must be a loss without a reference"):
        read("log_orpo.json", loss=losses.DPO(0.1))


def test_evaluations_alone_are_told_and_a_path_is_not():
    found = read("log_evaluations_only.json")
    assert found.evaluated and found.log.step.size == 0
    assert found.chosen is not None
    assert (found.chosen.first, found.chosen.last) == pytest.approx((-16.414, -15.154))
    said = " ".join(report.text(found).split())
    assert "the path of a run needs training rows" in said
    assert not found.drawable


def test_a_log_without_rewards_says_which_file_has_them():
    with pytest.raises(ValueError, match=r"give the trainer_state\.json of a preference run"):
        read("log_llamafactory.jsonl")


def test_a_reference_free_loss_is_told_by_the_rewards_or_by_its_name(tmp_path):
    rows = [
        {"step": s, "rewards/chosen": -2.0 - 0.01 * s, "rewards/rejected": -3.0 - 0.02 * s}
        for s in range(1, 21)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    log = logs.read(path, beta=2.0)
    assert not log.reference_free
    told = logs.diagnose(log, losses.SimPO(), name="simpo")
    assert told.reference_free and told.points[0, 0] == pytest.approx(-1.005)
    with_log_probabilities = [
        {**r, **{f"logps/{side}": r[f"rewards/{side}"] / 2 for side in ("chosen", "rejected")}}
        for r in rows
    ]
    path.write_text(json.dumps(with_log_probabilities))
    found = logs.diagnose(logs.read(path, beta=2.0))
    assert found.reference_free and found.name is None and not found.doubts
    half = [
        {k: float(jnp.bfloat16(0.85 * v if k.startswith("rewards/") else v)) for k, v in r.items()}
        for r in with_log_probabilities
    ]
    path.write_text(json.dumps(half))
    log = logs.read(path, beta=1.7)
    assert log.reference_free and log.reward_per_nat == pytest.approx(1.7, rel=4e-3)
    assert report.to_json(found)["loss"] is None


def test_a_loss_whose_answer_depends_on_a_number_is_told_with_that_number():
    found = read(ADAMW)
    assert found.shift == pytest.approx(0.45, abs=0.01)
    assert found.effects is not None and "dpo_shift" not in found.effects
    said = report.text(found)
    assert said.count("DPO-Shift") == 1 and said.count("dpo_shift") == 1
    # Where λ does not decide it stays among the others.
    risen = read(DISTINCT)
    assert risen.shift is None and risen.effects is not None and "dpo_shift" in risen.effects


def test_json_has_the_promised_keys_and_null_where_nothing_is_known():
    found = report.to_json(read("log_overshoot.json"))
    keys = "moved chosen rejected margin displacement coupling rest skipped_rows loss".split()
    assert set(keys) <= set(found)
    assert set(found["displacement"]) >= {"falls", "transient", "from_step", "depth"}
    assert found["coupling"] == {"value": None, "low": None, "high": None}
    told = json.loads(json.dumps(report.to_json(read(ADAMW)), allow_nan=False))
    assert told["coupling"]["value"] == pytest.approx(-0.516, abs=1e-3)
    assert told["displacement"]["falls"] is True and told["rest"] is None
    smoothed = report.to_json(read(ADAMW, loss=losses.ConservativeDPO(0.1, 0.1)))
    assert smoothed["rest"] == pytest.approx(np.log(9) / 0.1, rel=1e-5)
    assert smoothed["rest_done"] == pytest.approx(2.752 / 21.97, rel=1e-3)
    token = report.to_json(logs.diagnose(without_losses(ADAMW), losses.IPO(0.1)))
    assert (token["rest"], token["rest_per_token"]) == (5.0, True)


def test_runs_are_drawn_over_each_other_with_ellipses_of_their_noise():
    runs = [read(ADAMW), read(SGD)]
    ax = plots.training_run(*runs)
    assert len(ax.patches) >= 30
    labels = ax.get_legend_handles_labels()[1]
    assert {run.title for run in runs} <= set(labels)
    steps = plots.training_steps(*runs)
    assert {run.title for run in runs} <= set(steps.get_legend_handles_labels()[1])
    with pytest.raises(ValueError, match="all have a reference or all have none"):
        plots.training_steps(runs[0], read("log_orpo.json"))


def test_ellipses_and_bands_hold_95_percent_with_the_few_rows_that_tell_the_noise(tmp_path):
    time = np.linspace(0, 1, 12)
    found = logs.diagnose(log_of(tmp_path, -10 * time, -40 * time))
    seen, freedom = found.windows, found.windows.freedom[0]
    assert seen.pooled and 5 < freedom < 7
    # Hotelling's T² of two quantities, and Student's t of one.
    square = 2 * freedom / (freedom - 1) * scipy.stats.f.ppf(0.95, 2, freedom - 1)
    ellipse = plots.training_run(found).patches[0]
    assert isinstance(ellipse, Ellipse)
    axes = np.sort([ellipse.get_width(), ellipse.get_height()])
    wanted = 2 * np.sqrt(square * np.linalg.eigvalsh(seen.covariance[0]))
    np.testing.assert_allclose(axes, wanted, rtol=1e-9)
    band = plots.training_steps(found).collections[0].get_paths()[0].vertices
    half = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(seen.covariance[:, 0, 0])
    assert np.ptp(np.asarray(band)[:, 1]) == pytest.approx(
        np.max(seen.mean[:, 0] + half) - np.min(seen.mean[:, 0] - half)
    )
    # Over all windows of 500 runs of this many rows it holds the mean in 95 of 100, about.
    rng, steps = np.random.default_rng(7), np.arange(1.0, 13)
    runs = [windows(steps, steps, rng.normal(size=(12, 2))) for _ in range(500)]
    means, inverses = (
        np.stack([r.mean for r in runs]),
        np.linalg.inv([r.covariance for r in runs]),
    )
    off = np.einsum("rwi,rwij,rwj->rw", means, inverses, means)
    assert 0.94 <= np.mean(off <= square) <= 0.98 and np.mean(off <= 5.991) < 0.85


def test_a_page_holds_the_text_the_pictures_and_a_table_of_contents(tmp_path):
    runs = [read(ADAMW), read("log_stuck.json"), read("log_orpo.json")]
    report.write(runs, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for href in {part.split("'")[0] for part in page.split("href='#")[1:]}:
        assert f"id='{href}'" in page
    assert page.count("data:image/png;base64,") == 3
    assert "The policy did not move." in page and "width=device-width" in page
    assert "<td class='number'>−2.93</td>" in page
    told = json.loads((tmp_path / "diagnosis.json").read_text(encoding="utf-8"))
    assert [one["moved"] for one in told] == [True, False, True]
    report.write(runs[:1], tmp_path)  # an earlier report is replaced
    (tmp_path / "report.html").unlink()
    with pytest.raises(ValueError, match="`folder` must be a new folder"):
        report.write(runs, tmp_path)
