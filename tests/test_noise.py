"""Noise against exact laws: of first passages, of stationary states, of covariances."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned
from scipy import integrate, stats

import flowlab as fl
from flowlab.domains import Box, Quadrant
from flowlab.losses import CPO, DPO, SFT
from flowlab.policies import RatioPlane, TabularSoftmax
from flowlab.potentials import Bowl, DoubleWell
from flowlab.solve import (
    Minibatch,
    Thermal,
    exit_from,
    exit_from_interval,
    noisy_runs,
)
from flowlab.until import Outcome

TOO_FAR = 4  # standard errors
NONSENSE: Any = "much"


def slope(state):
    """A plane that falls along the first component at the rate 1."""
    return -state[0]


def ball(state):
    return 1 - state @ state


def bent(state, covector):
    """The metric M = 1 + x²."""
    return (1 + state**2) * covector


FREE = fl.Flow(slope)
DOWN = exit_from_interval(high=1.0)
MANY_PATHS = 8000
PATHS = 3900  # from 4,000 on a program is optimised, which takes longer than these paths


@pytest.fixture(scope="module")
def down():
    """Brownian motion with a drift, in steps as long as a good part of the way."""
    return noisy_runs(
        FREE,
        np.zeros((PATHS, 2)),
        noise=Thermal(0.5),
        until=DOWN,
        step=0.3,
        seed=0,
        block_size=1000,
    )


def test_the_first_passage_of_a_drifting_path_has_its_exact_law_at_any_step(down):
    # Drift 1, variance 1 per time, to 1: inverse Gaussian of mean 1 and shape 1.
    assert np.all(down.outcome == Outcome.reached) and np.all(down.exited)
    assert stats.kstest(down.exit_time, stats.invgauss(1.0).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(down.exit_time, down.end_time)
    np.testing.assert_allclose(down.end[:, 0], 1.0, rtol=1e-12)


def test_the_place_of_the_first_passage_has_its_exact_law_at_any_step(down):
    along = down.end[:, 1] / np.sqrt(down.exit_time)
    assert stats.kstest(along, "norm").pvalue > 1e-3


def test_the_mean_exit_time_comes_with_its_standard_error(down):
    mean, error = down.mean_exit_time()
    assert mean == np.mean(down.exit_time)
    np.testing.assert_allclose(error, stats.sem(down.exit_time), rtol=1e-12)


def test_a_seed_gives_the_same_bits_whatever_the_block_and_the_paths_beside(down):
    options: dict[str, Any] = dict(noise=Thermal(0.5), until=DOWN, step=0.3, block_size=333)
    again = noisy_runs(FREE, np.zeros((700, 2)), seed=0, **options)
    np.testing.assert_array_equal(again.exit_time, down.exit_time[:700])
    np.testing.assert_array_equal(again.end, down.end[:700])
    other = noisy_runs(FREE, np.zeros((700, 2)), seed=1, **options)
    assert not np.any(other.end[:, 1] == down.end[:700, 1])
    assert len(np.unique(down.end[:, 1])) == PATHS  # each path has noise of its own


@pytest.fixture(scope="module")
def escapes():
    """Paths out of the left well of a double well, by the length of the step."""
    flow, starts = fl.Flow(DoubleWell(barrier=1.0, distance=2.0)), np.full((MANY_PATHS, 1), -1.0)
    until = exit_from_interval(high=0.5)
    return {
        step: noisy_runs(flow, starts, noise=Thermal(0.4), until=until, step=step, seed=1)
        for step in (0.08, 0.02, 0.01)
    }


@pytest.mark.exhaustive
def test_escapes_from_a_double_well_take_the_exact_mean_first_passage_time(escapes):
    mean, error = escapes[0.01].mean_exit_time()
    assert abs(mean - mean_first_passage(-1.0, 0.5, 0.4)) < TOO_FAR * error
    assert error < 0.015 * mean


@pytest.mark.exhaustive
def test_the_error_of_escape_times_falls_with_the_step_below_their_standard_error(escapes):
    exact = mean_first_passage(-1.0, 0.5, 0.4)
    measured = {step: runs.mean_exit_time() for step, runs in escapes.items()}
    errors = {step: abs(mean - exact) / error for step, (mean, error) in measured.items()}
    assert errors[0.08] > 4 * TOO_FAR  # so that there is something to fall
    # At least as fast as the step, within the two standard errors that chance may add.
    assert errors[0.02] < errors[0.08] / 4 + 2
    assert errors[0.01] < errors[0.08] / 8 + 2


@pytest.fixture(scope="module")
def settled():
    """Paths in a bowl, long after their start."""
    starts = np.tile([1.0, -0.5], (PATHS, 1))
    until = fl.until.time(4.0)
    return noisy_runs(
        fl.Flow(Bowl(2.0)), starts, noise=Thermal(0.5), until=until, step=0.01, seed=2
    )


@pytest.mark.exhaustive
def test_paths_in_a_bowl_settle_to_the_variance_temperature_over_curvature(settled):
    assert np.all(settled.outcome == Outcome.reached) and not np.any(settled.exited)
    np.testing.assert_allclose(settled.end_time, 4.0, rtol=1e-12)
    variances = np.var(settled.end, axis=0)
    error = 0.25 * np.sqrt(2 / PATHS)
    assert np.max(np.abs(variances - 0.25)) < TOO_FAR * error
    assert 0.25 * 2 * 0.01 / 2 < error  # the bias of Euler's rule, λ h/2 of the variance
    assert np.max(np.abs(np.mean(settled.end, axis=0))) < TOO_FAR * np.sqrt(0.25 / PATHS)
    assert abs(np.corrcoef(settled.end.T)[0, 1]) < TOO_FAR / np.sqrt(PATHS)


class WithoutDrift(Thermal):
    """Thermal noise that leaves out T div M."""

    def drift(self, flow, state):
        return jnp.zeros_like(state)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("noise", "power"), [(Thermal, 0), (WithoutDrift, 1)])
def test_the_gibbs_density_of_a_bent_metric_needs_the_divergence_of_the_metric(noise, power):
    # Stationary is e^(−L/T) with the term, and e^(−L/T)/M without it.
    flow, temperature = fl.Flow(Bowl(1.0), metric=bent), 0.25
    runs = noisy_runs(
        flow,
        np.zeros((PATHS, 1)),
        noise=noise(temperature),
        until=fl.until.time(4.0),
        step=0.01,
        seed=3,
    )

    def moment(n, power):
        def density(x):
            return x**n * np.exp(-(x**2) / (2 * temperature)) / (1 + x**2) ** power

        return integrate.quad(density, -8, 8)[0]

    for n in (2, 4):
        sample = runs.end[:, 0] ** n
        wanted, other = (moment(n, p) / moment(0, p) for p in (power, 1 - power))
        assert abs(np.mean(sample) - wanted) < TOO_FAR * stats.sem(sample)
        assert abs(np.mean(sample) - other) > 2 * TOO_FAR * stats.sem(sample)


def test_the_divergence_of_a_metric_is_that_derived_by_hand():
    def metric(y, v):
        return v + y * (y @ v)  # M = 1 + y yᵀ, whose divergence is (d + 1) y

    y = jnp.asarray([0.3, -0.7, 0.2])
    flow = fl.Flow(Bowl(), metric=metric)
    drift = jax.jit(lambda y: Thermal(0.2).drift(flow, y))
    np.testing.assert_allclose(drift(y), 0.2 * 4 * y, rtol=1e-13)
    covariance = jax.jit(lambda y: Thermal(0.2).covariance(flow, y))
    for state in (y, y[:2], y[:1]):
        wanted = 0.4 * (np.eye(len(state)) + np.outer(state, state))
        np.testing.assert_allclose(covariance(state), wanted, rtol=1e-13)


def test_thermal_noise_goes_with_a_singular_metric():
    policy = TabularSoftmax([0.5, 0.3, 0.2], (0, 1), fisher=True)
    flow = fl.preference_flow(DPO(0.1), policy)
    fisher = np.diag([0.5, 0.3, 0.2]) - np.outer([0.5, 0.3, 0.2], [0.5, 0.3, 0.2])
    wanted = 2 * 0.7 * np.linalg.pinv(fisher)
    found = jax.jit(lambda y: Thermal(0.7).covariance(flow, y))(policy.reference_state)
    np.testing.assert_allclose(found, wanted, atol=1e-13)


PAIRS = [(0, 1), (1, 2), (0, 3)]
LOGITS = np.array([0.1, -0.4, 0.3, 0.8])


@pytest.mark.parametrize("weights", thinned([None, [1.0, 2.0, 5.0]], [[1.0, 2.0, 5.0]]))
@pytest.mark.parametrize("fisher", [False, True])
def test_minibatch_noise_has_the_covariance_of_the_gradients_of_the_pairs(weights, fisher):
    flow, policy = three_pairs(weights, fisher)
    shares = np.ones(3) / 3 if weights is None else np.array(weights) / 8
    found = jax.jit(lambda y: Minibatch(0.2, 4).covariance(flow, y))(LOGITS)
    np.testing.assert_allclose(found, by_hand(shares, fisher, policy), atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize(
    "loss", [SFT(), pytest.param(CPO(beta=0.5, nll_weight=0.7), marks=pytest.mark.exhaustive)]
)
def test_minibatch_noise_of_a_mean_over_tokens_is_that_of_batches_of_pairs_of_unlike_lengths(loss):
    policy = TabularSoftmax([0.4, 0.3, 0.2, 0.1], PAIRS, lengths=np.array([10, 40, 9, 20]))
    flow = fl.preference_flow(loss, policy, weights=np.array([1.0, 2.0, 5.0]))

    batch, shares = 80, np.array([1, 2, 5]) / 8
    first, second = np.divmod(np.arange((batch + 1) ** 2), batch + 1)
    counts = np.stack([first, second, batch - first - second], axis=1)[first + second <= batch]

    def mean(y, drawn):
        return loss.mean(policy.pairs(y), drawn)

    @jax.jit
    def both(y):  # the gradients of every batch that can be drawn, and what is to be tested
        every = jax.vmap(jax.grad(mean), (None, 0))(y, jnp.asarray(counts, float))
        return every, Minibatch(0.2, 1).covariance(flow, y)

    gradients, found = map(np.asarray, both(jnp.asarray(LOGITS)))
    spreads = []
    for part in (2, 1):  # batches of half the size are those in which all stand twice
        halved = np.all(counts % part == 0, axis=1)
        chances = halved * stats.multinomial(batch // part, shares).pmf(counts // part)
        centred = gradients - chances @ gradients
        spreads.append(0.2 * batch / part * centred.T @ (chances[:, None] * centred))
    # A ratio differs from its linear part by a term in 1/batch, which this leaves out.
    wanted = 2 * spreads[1] - spreads[0]
    assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)


def test_a_step_with_minibatch_noise_has_that_covariance_and_the_drift_of_the_flow():
    flow, policy = three_pairs(None, False)
    count, step = PATHS, 1e-3
    starts = np.tile(LOGITS, (count, 1))
    runs = noisy_runs(
        flow, starts, noise=Minibatch(0.2, 4), until=fl.until.time(step), step=step, seed=4
    )
    wanted = step * by_hand(np.ones(3) / 3, False, policy)
    np.testing.assert_allclose(np.cov(runs.end.T), wanted, atol=5 * np.max(wanted) / count**0.5)
    drift = step * np.asarray(flow.velocity(jnp.asarray(LOGITS)))
    error = np.sqrt(np.diag(wanted) / count)
    assert np.all(np.abs(np.mean(runs.end - LOGITS, axis=0) - drift) < TOO_FAR * error)


def test_an_axis_absorbs_as_many_paths_as_it_must_and_none_leaves_the_orthant():
    # Without a drift a path at distance a is absorbed by time t with probability erfc(a/√(4Tt)).
    flow = fl.Flow(lambda y: 0.0 * y[0], domain=Quadrant())
    starts = np.tile([0.5, 30.0], (PATHS, 1))
    runs = noisy_runs(flow, starts, noise=Thermal(0.5), until=fl.until.time(1.0), step=0.25, seed=5)
    absorbed = runs.outcome == Outcome.at_wall
    exact = 2 * stats.norm.cdf(-0.5)
    error = np.sqrt(exact * (1 - exact) / PATHS)
    assert abs(np.mean(absorbed) - exact) < TOO_FAR * error
    np.testing.assert_array_equal(runs.outcome[~absorbed], Outcome.reached)
    assert np.all(runs.end[absorbed, 0] == 0) and np.all(runs.end[~absorbed, 0] > 0)
    assert np.all(runs.end_time[absorbed] < 1) and np.all(runs.end_time[~absorbed] == 1)


@pytest.mark.exhaustive
def test_a_level_is_an_exit_too():
    flow, starts = fl.Flow(Bowl(1.0)), np.full((4, 2), 2.0)
    options: dict[str, Any] = dict(noise=Thermal(0.1), step=0.01, seed=6)
    level = noisy_runs(flow, starts, until=fl.until.loss_below(0.5), **options)
    edge = noisy_runs(flow, starts, until=exit_from(lambda y: 0.5 * (y @ y) - 0.5), **options)
    assert np.all(level.exited)
    np.testing.assert_allclose(level.exit_time, edge.exit_time, rtol=1e-12)
    np.testing.assert_allclose(0.5 * np.sum(level.end**2, axis=1), 0.5, rtol=1e-3)


@pytest.mark.exhaustive
def test_every_start_has_an_outcome_of_its_own():
    flow = fl.Flow(lambda y: -0.25 * jnp.sum(y**4))  # runs away in finite time
    starts = np.array([[0.1, 0.0], [2.0, 0.0], [np.nan, 0.0], [1e150, 0.0], [1e80, 0.0]])
    until = exit_from(lambda y: 1 - y[1] ** 2 - jnp.where(y[0] == 2, 2, 0), time_limit=0.02)
    runs = noisy_runs(flow, starts, noise=Thermal(1e-6), until=until, step=0.01, seed=7)
    named = [Outcome(code).name for code in runs.outcome]
    assert named[:4] == ["time_limit", "started_past_target", "non_finite", "non_finite"]
    assert named[4] == "non_finite" and runs.end_time[4] == 0.01  # in its second step
    assert np.isfinite(runs.end[4]).all()
    np.testing.assert_array_equal(np.isnan(runs.exit_time), True)
    np.testing.assert_array_equal(runs.end[1], starts[1])
    assert repr(runs) == (
        "NoisyRuns(5 paths of steps 0.01: "
        "{'started_past_target': 1, 'time_limit': 1, 'non_finite': 3})"
    )
    with pytest.raises(ValueError, match="A mean exit time needs .* unknown for 5 of 5"):
        runs.mean_exit_time()


@pytest.mark.exhaustive
def test_paths_end_after_the_most_steps_allowed():
    runs = noisy_runs(
        fl.Flow(Bowl()),
        np.zeros((3, 1)),
        noise=Thermal(1e-3),
        until=exit_from(ball),
        step=0.1,
        seed=8,
        max_steps=7,
    )
    assert np.all(runs.outcome == Outcome.step_limit)
    np.testing.assert_allclose(runs.end_time, 0.7)


@pytest.mark.exhaustive
def test_a_step_is_shortened_to_a_whole_part_of_the_time():
    runs = noisy_runs(
        fl.Flow(Bowl()),
        np.zeros((2, 1)),
        noise=Thermal(0.1),
        until=fl.until.time(1.0),
        step=0.3,
        seed=9,
    )
    assert runs.step == 0.25
    np.testing.assert_array_equal(runs.end_time, 1.0)


@pytest.mark.exhaustive
def test_the_precision_and_the_structure_of_the_starts_are_those_of_the_ends():
    starts = {"a": np.ones((3, 2), np.float32), "b": np.zeros((3,), np.float32)}
    flow = fl.Flow(lambda y: 0.5 * jnp.sum(y["a"] ** 2) + y["b"] ** 2)
    runs = noisy_runs(flow, starts, noise=Thermal(0.1), until=fl.until.time(0.1), step=0.1, seed=10)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), runs.end) == {
        "a": ((3, 2), np.float32),
        "b": ((3,), np.float32),
    }


class Unweighted(DPO):
    """A loss whose mean leaves out the weights."""

    def mean(self, pairs, weights=None):
        del weights
        return jnp.mean(self(pairs))


def run_with(**changes):
    options: dict[str, Any] = dict(
        flow=fl.Flow(Bowl()),
        starts=np.zeros((3, 2)),
        noise=Thermal(0.1),
        until=fl.until.time(1.0),
        step=0.1,
        seed=0,
    )
    return noisy_runs(**{**options, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flow": fl.Flow(Bowl(), domain=Box())}, "`flow` must have a domain without walls"),
        ({"noise": 0.1}, "`noise` must be a noise such as Thermal"),
        ({"noise": Minibatch()}, r"must not be Minibatch\(...\) for a flow without several pairs"),
        (
            {"noise": Minibatch(), "flow": fl.preference_flow(DPO(0.1), RatioPlane())},
            r"must not be Minibatch\(...\) for a flow without several pairs",
        ),
        (
            {
                "noise": Minibatch(),
                "flow": fl.preference_flow(Unweighted(0.5), TabularSoftmax([0.25] * 4, PAIRS)),
                "starts": LOGITS[None],
            },
            r"must not be Minibatch\(...\) for Unweighted, whose mean over a single pair",
        ),
        ({"step": 0.0}, "`step` must be positive and finite"),
        ({"step": NONSENSE}, "`step` must be positive and finite"),
        ({"seed": -1}, "`seed` must be an int from 0 to"),
        ({"seed": 0.5}, "`seed` must be an int from 0 to"),
        ({"block_size": 0}, "`block_size` must be a positive int"),
        ({"max_steps": 0}, "`max_steps` must be an int from 1 to"),
        ({"until": 1.0}, "`until` must be a target"),
        ({"until": fl.until.loss_below(1.0, 0.5)}, "`until` must be a time, a single level"),
        ({"until": fl.until.boundary()}, "`until` must be a time, a single level"),
        ({"until": exit_from(lambda y: y)}, "`inside` must give one number"),
        ({"until": exit_from_interval(0.0, component=2)}, "`component` must be less than 2"),
    ],
)
def test_what_cannot_be_run_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        run_with(**changes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Thermal(0.0), "`temperature` must be positive and finite"),
        (lambda: Minibatch(learning_rate=-1.0), "`learning_rate` must be positive and finite"),
        (lambda: Minibatch(batch_size=0), "`batch_size` must be positive and finite"),
        (lambda: exit_from(NONSENSE), "`inside` must be a function"),
        (lambda: exit_from(ball, time_limit=0.0), "`time_limit` must be positive"),
        (lambda: exit_from_interval(), "`low` and `high` must be finite with low < high"),
        (lambda: exit_from_interval(1.0, 0.0), "`low` and `high` must be finite"),
        (lambda: exit_from_interval(np.inf), "`low` and `high` must be finite"),
        (lambda: exit_from_interval(NONSENSE), "`low` and `high` must be finite"),
        (lambda: exit_from_interval(0.0, component=-1), "`component` must be a non-negative int"),
    ],
)
def test_bad_numbers_of_noises_and_exits_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def mean_first_passage(start, end, temperature):
    """(1/T) ∫_start^end e^(V(y)/T) ∫_−∞^y e^(−V(z)/T) dz dy for V = (1 − x²)²."""

    def potential(x):
        return (1 - x**2) ** 2 / temperature

    def inner(y):
        return integrate.quad(lambda z: np.exp(potential(y) - potential(z)), -4, y)[0]

    return integrate.quad(inner, start, end)[0] / temperature


def three_pairs(weights, fisher):
    policy = TabularSoftmax([0.4, 0.3, 0.2, 0.1], PAIRS, fisher=fisher)
    return fl.preference_flow(DPO(0.5), policy, weights=weights), policy


def by_hand(shares, fisher, policy):
    """η/b M C M for η = 0.2 and b = 4: the gradient of a pair is −β σ(−β h)(e_w − e_l)."""
    ratios = LOGITS - np.asarray(policy.reference_state)
    gradients = np.zeros((3, 4))
    for row, (chosen, rejected) in zip(gradients, PAIRS, strict=True):
        weight = 0.5 / (1 + np.exp(0.5 * (ratios[chosen] - ratios[rejected])))
        row[chosen], row[rejected] = -weight, weight
    centred = gradients - shares @ gradients
    covariance = centred.T @ (shares[:, None] * centred)
    probabilities = np.exp(LOGITS) / np.sum(np.exp(LOGITS))
    information = np.diag(probabilities) - np.outer(probabilities, probabilities)
    metric = np.linalg.pinv(information) if fisher else np.eye(4)
    return 0.2 / 4 * metric @ covariance @ metric
