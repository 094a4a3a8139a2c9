"""Flow lines under each policy, against closed forms and SciPy; a network of 10,000 parameters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_policy import PAIRS, POLICIES, PROBABILITIES, network, parameters
from grids import thinned
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import expit, log_softmax

import flowlab as fl
from flowlab import exact, measures, until
from flowlab.domains import Quadrant
from flowlab.flow import inner
from flowlab.policies import CoupledKernel, FeatureModel, LogLinear, Policy
from flowlab.solve import line as line_module
from flowlab.solve import make_method
from flowlab.until import Outcome

TIMES = np.array([0.1, 1.0, 20.0, 300.0])
BETAS = [0.1, 0.8]
LIGHT: dict[str, Any] = dict(optimise=False, progress=False)


def saved_margins(policy, starts, *, weights=None, betas=BETAS):
    """Margins of all pairs at the start and at TIMES, for each β and start."""
    flow = fl.preference_flow(fl.DPO(0.1), policy, weights=weights)
    options: dict[str, Any] = dict(
        until=until.time(TIMES[-1] + 1), save_at=TIMES, rtol=1e-11, **LIGHT
    )
    runs = fl.sweep(flow, starts, over={"beta": betas}, **options)
    assert np.all(runs.outcome == Outcome.reached)
    saved = np.asarray(runs.saved)
    margins = eqx.filter_jit(lambda states: jax.vmap(lambda y: policy.pairs(y).margin)(states))
    shape = saved.shape[: saved.ndim - len(policy.state_shape)]
    late = margins(saved.reshape(-1, *policy.state_shape))
    return margins(starts), np.reshape(late, shape + late.shape[1:])


def wright_omega(first, contraction):
    """Margins at TIMES for each β and start, by the Wright omega law."""
    return exact.kernel_margin(
        TIMES, first[None, :, None], np.array(BETAS)[:, None, None], np.diag([contraction, 0])
    )


@pytest.mark.parametrize("name", POLICIES)
def test_a_flow_knows_its_clocks_where_64_bits_are_off_without_a_warning(name):
    policy = POLICIES[name]
    of_one_pair = policy.pairs(policy.reference_state).chosen.shape == ()
    with jax.enable_x64(False):
        flow = fl.preference_flow(fl.DPO(0.3), policy)
        assert (until.loss_below(0.1).clocks(flow)[0] == "margin") == of_one_pair


@pytest.mark.parametrize("count", thinned([2, 3, 10, 1000], {3}))
def test_the_margin_of_a_softmax_follows_the_wright_omega_law(count):
    rng = np.random.default_rng(count)
    policy = fl.TabularSoftmax(rng.dirichlet(np.ones(count)) * 0.9 + 0.1 / count)
    first, found = saved_margins(policy, rng.normal(0, 2, (3, count)))
    np.testing.assert_allclose(found, wright_omega(np.asarray(first), 2.0), rtol=1e-9, atol=1e-9)


@pytest.mark.exhaustive
def test_the_margin_of_a_log_linear_policy_contracts_at_the_distance_of_its_features():
    rng = np.random.default_rng(5)
    features = rng.normal(size=(5, 3))
    policy = LogLinear(features, (3, 1), reference=[0.4, -1.0, 0.2])
    first, found = saved_margins(policy, rng.normal(size=(3, 3)))
    contraction = np.sum((features[3] - features[1]) ** 2)
    np.testing.assert_allclose(found, wright_omega(np.asarray(first), contraction), rtol=1e-9)


@pytest.mark.exhaustive
def test_disjoint_pairs_over_prompts_contract_at_their_share_of_the_mean():
    rng = np.random.default_rng(6)
    policy = fl.TabularSoftmax(rng.dirichlet(np.ones(3), 4), [(i, 0, 2) for i in range(4)])
    first, found = saved_margins(policy, rng.normal(size=(2, 4, 3)))
    for pair in range(4):
        wanted = wright_omega(np.asarray(first)[:, pair], 2 / 4)
        np.testing.assert_allclose(found[..., pair], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.exhaustive
def test_weights_share_the_mean_among_disjoint_pairs():
    weights = np.array([3.0, 1.0])
    policy = fl.TabularSoftmax(np.full((2, 2), 0.5), [(0, 0, 1), (1, 0, 1)])
    first, found = saved_margins(policy, np.zeros((1, 2, 2)), weights=weights)
    for pair in range(2):
        wanted = wright_omega(np.asarray(first)[:, pair], 2 * weights[pair] / 4)
        np.testing.assert_allclose(found[..., pair], wanted, rtol=1e-9, atol=1e-9)


def solved(field, start, times):
    """States at times by SciPy's DOP853, and its dense output."""
    answer = solve_ivp(
        field,
        (0, times[-1]),
        start,
        method="DOP853",
        t_eval=times,
        rtol=1e-13,
        atol=1e-15,
        dense_output=True,
    )
    assert answer.success
    return answer.y.T, answer.sol


def test_under_the_fisher_metric_log_probabilities_move_as_scipy_has_them():
    beta, start = 0.4, np.array([0.3, -0.5, 1.0, 0.0])
    gap = np.log(PROBABILITIES[2] / PROBABILITIES[1])

    def field(_, logs):
        # u' = −K ∇_u L with K_ij = δ_ij/π_i − 1, on all four log-probabilities.
        pull = beta * expit(-beta * (logs[2] - logs[1] - gap))
        slope = np.array([0, -pull, pull, 0])
        return slope / np.exp(logs) - slope.sum()

    times = np.linspace(0, 0.3, 21)
    wanted, _ = solved(field, log_softmax(start), times)
    policy = fl.TabularSoftmax(PROBABILITIES, (2, 1), fisher=True)
    line = fl.flow_line(
        fl.preference_flow(fl.DPO(beta), policy), start, until=until.time(0.3), rtol=1e-11
    )
    np.testing.assert_allclose(log_softmax(line.at(times), axis=1), wanted, rtol=1e-9)


def test_where_references_are_alike_the_probability_plane_is_the_ratio_plane_in_other_units():
    p = 0.25
    policy = fl.ProbabilityPlane(np.log(p), np.log(p), Quadrant())
    starts = np.random.default_rng(7).uniform(0.02, 0.4, (6, 2))
    flow = fl.preference_flow(fl.DPO(0.3), policy)
    runs = fl.sweep(flow, starts, until=until.loss_below(0.1), rtol=1e-11, **LIGHT)
    wanted = p**2 * exact.ratio_plane_time(starts / p, 0.3, level=0.1)
    np.testing.assert_allclose(runs.time, wanted, rtol=1e-9)
    np.testing.assert_allclose((runs.end**2).sum(axis=1), (starts**2).sum(axis=1), rtol=1e-9)


@pytest.mark.exhaustive
def test_where_references_differ_the_probability_plane_moves_as_scipy_has_it():
    references, beta, start = np.array([0.3, 0.05]), 0.5, np.array([0.1, 0.2])

    def field(_, probabilities):
        ratios = probabilities / references
        pull = beta * expit(-beta * np.log(ratios[0] / ratios[1]))
        return [pull / probabilities[0], -pull / probabilities[1]]

    times = np.linspace(0, 0.05, 21)
    wanted, _ = solved(field, start, times)
    flow = fl.preference_flow(fl.DPO(beta), fl.ProbabilityPlane(*np.log(references)))
    line = fl.flow_line(flow, start, until=until.time(0.05), rtol=1e-11)
    np.testing.assert_allclose(line.at(times), wanted, rtol=1e-10)


# Why the chosen falls, and comes back ---------------------------------------------------------

DIP_END = 80.0


@pytest.fixture(scope="module")
def dip():
    """The feature model in which the chosen falls and recovers: our line, and SciPy's solution."""
    readout, features = np.array([[1, 0.5], [1, -0.5], [0, 3]]), np.array([0.3, 0])
    gap = (readout[0] - readout[1]) @ features

    def field(_, flat):
        w, h = flat[:6].reshape(3, 2), flat[6:]
        pull = 0.1 * expit(-0.1 * ((w[0] - w[1]) @ h - gap))
        return np.concatenate([pull * h, -pull * h, np.zeros(2), pull * (w[0] - w[1])])

    times = np.linspace(0, DIP_END, 161)
    wanted, dense = solved(field, np.concatenate([readout.ravel(), features]), times)
    policy = FeatureModel(readout, features)
    line = fl.flow_line(
        fl.preference_flow(fl.DPO(0.1), policy),
        policy.reference_state,
        until=until.time(DIP_END),
        rtol=1e-11,
    )
    return policy, line, times, wanted, dense


def test_the_line_of_a_feature_model_is_that_of_scipy_to_ten_digits(dip):
    _, line, times, wanted, _ = dip
    states = line.at(times)
    found = np.concatenate([states["readout"].reshape(-1, 6), states["features"]], axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)
    sizes = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert sizes.max() < 1e-10


def test_in_a_feature_model_the_chosen_dips_a_third_response_peaks_and_the_chosen_recovers(dip):
    policy, line, _, _, dense = dip

    def of_scipy(time):
        flat = dense(time)
        return log_softmax(flat[:6].reshape(3, 2) @ flat[6:])

    def of_line(time):
        return np.asarray(policy.log_probs(line.at(time)))

    def rates(logs, time):
        return (logs(time + 1e-3) - logs(time - 1e-3)) / 2e-3

    first = of_scipy(0.0)
    found = []
    for logs in (of_scipy, of_line):
        lowest = brentq(lambda t, logs=logs: rates(logs, t)[0], 5, 35, xtol=1e-9)
        peak = brentq(lambda t, logs=logs: rates(logs, t)[2], 5, 35, xtol=1e-9)
        back = brentq(lambda t, logs=logs: logs(t)[0] - first[0], lowest, DIP_END, xtol=1e-9)
        found.append((lowest, first[0] - logs(lowest)[0], peak, np.exp(logs(peak)[2]), back))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[0], (23.2, 0.88, 23.6, 0.847, 35.6), rtol=4e-3)
    assert of_line(DIP_END)[0] > first[0] + 0.5


@pytest.mark.exhaustive
def test_pairs_that_share_responses_lower_a_chosen_one_where_each_alone_raises_it():
    start = np.log(PROBABILITIES)
    rates = {}
    for pairs in (PAIRS, *PAIRS):
        policy = fl.TabularSoftmax(PROBABILITIES, pairs)
        flow = fl.preference_flow(fl.DPO(0.1), policy)
        _, rate = jax.jvp(policy.log_probs, (start,), (flow.velocity(start),))
        rates[str(pairs)] = rate
    # By hand at the reference, where σ(−z) = ½: θ' = (β/2)/3 × (1, −2, 2, −1).
    pull = 0.05 / 3 * np.array([1, -2, 2, -1])
    np.testing.assert_allclose(rates[str(PAIRS)], pull - PROBABILITIES @ pull, rtol=1e-12)
    assert rates[str(PAIRS)][0] < 0
    for chosen, rejected in PAIRS:
        assert rates[str((chosen, rejected))][chosen] > 0


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9, 1.1])
def test_a_coupled_kernel_lowers_the_chosen_exactly_where_its_ratio_is_above_1(ratio, coupled):
    runs, starts, ratios = coupled
    case = ratios.index(ratio)
    kernel = 0.7 * np.array([[1, ratio], [ratio, 1.5]])
    wanted = exact.kernel_state(5.0, starts, 0.4, kernel)
    np.testing.assert_allclose(runs.end[case], wanted, rtol=1e-8)
    change = runs.measures["change_chosen_u"][case]
    assert np.all(np.sign(change) == np.sign(1 - ratio))


@pytest.fixture(scope="module")
def coupled():
    """A sweep over the ratio of a coupled kernel, by which nothing is compiled again."""
    ratios = [0.0, 0.5, 0.9, 1.1]
    starts = np.random.default_rng(8).uniform(-3, 3, (5, 2))
    flow = fl.preference_flow(fl.DPO(0.4), fl.LogRatioPlane(CoupledKernel(0.2, chosen=0.7)))
    runs = fl.sweep(
        flow,
        starts,
        until=until.time(5.0),
        over={"ratio": ratios},
        measures=[measures.change("u")],
        rtol=1e-9,
        **LIGHT,
    )
    return runs, starts, ratios


@pytest.mark.exhaustive
def test_a_kernel_of_the_state_moves_log_ratios_as_scipy_has_them():
    def kernel(u):
        axis = jnp.stack([jnp.sin(u[0]), jnp.cos(u[1])])
        return jnp.eye(2) + jnp.outer(axis, axis)

    def field(_, u):
        pull = 0.4 * expit(-0.4 * (u[0] - u[1]))
        axis, slope = np.array([np.sin(u[0]), np.cos(u[1])]), np.array([pull, -pull])
        return slope + axis * (axis @ slope)

    times, start = np.linspace(0, 10, 11), np.array([-1.0, 0.5])
    flow = fl.preference_flow(fl.DPO(0.4), fl.LogRatioPlane(kernel))
    line = fl.flow_line(flow, start, until=until.time(10.0), rtol=1e-11)
    np.testing.assert_allclose(line.at(times), solved(field, start, times)[0], rtol=1e-9)


@pytest.mark.exhaustive
def test_several_pairs_go_through_measures_and_targets_of_pairs():
    policy = fl.TabularSoftmax(PROBABILITIES, PAIRS)
    flow = fl.preference_flow(fl.DPO(0.5), policy)
    starts = np.log(PROBABILITIES) + np.array([[0.0, 0, 0, 0], [0.5, 0, -1.0, 0.3]])
    listed = [
        measures.change("u"),
        measures.path_length("u"),
        measures.rate_ratio("probability"),
        measures.margin_at(2.0),
    ]
    target = until.margin_above(3.0, of="min")
    runs = fl.sweep(flow, starts, until=target, measures=listed, rtol=1e-9, **LIGHT)
    assert np.all(runs.outcome == Outcome.reached)
    before, after = (jax.vmap(policy.pairs)(states) for states in (starts, runs.end))
    np.testing.assert_allclose(np.min(after.margin, axis=1), 3.0, rtol=1e-8)
    changes = {"chosen": after.u_chosen - before.u_chosen}
    changes["rejected"] = after.u_rejected - before.u_rejected
    for name, change in changes.items():
        np.testing.assert_allclose(runs.measures[f"change_{name}_u"], change, rtol=1e-8)
    crossed = jax.vmap(policy.pairs)(runs.measures["margin_2_state"]).margin
    np.testing.assert_allclose(np.mean(crossed, axis=1), 2.0, rtol=1e-6)
    moved = np.exp(after.chosen) - np.exp(before.chosen)
    fallen = np.exp(after.rejected) - np.exp(before.rejected)
    total = runs.measures["rate_ratio_probability_total"]
    np.testing.assert_allclose(total, np.abs(moved / fallen), rtol=1e-6)
    chord = np.sqrt(np.sum(changes["chosen"] ** 2 + changes["rejected"] ** 2, axis=1))
    assert np.all(runs.measures["path_length_u"] > chord)
    assert np.all(runs.measures["path_length_u"] < 2 * chord)


# A network ------------------------------------------------------------------------------------

WIDTHS = (2, 98, 98, 3)  # 98 × (2 + 1 + 98 + 1) + 98 × 3 = 10,290 parameters
NETWORK_END = 1.0


def stretched(state, covector):
    """A metric that depends on the state: softplus of each parameter."""
    return jax.tree.map(lambda y, c: jax.nn.softplus(y) * c, state, covector)


@pytest.mark.parametrize(
    "metric",
    thinned([None, stretched], ()),
)
def test_the_loss_of_a_network_falls_at_the_squared_length_of_its_gradient(metric):
    reference = parameters(*WIDTHS)
    assert sum(leaf.size for leaf in jax.tree.leaves(reference)) > 10_000
    policy = Policy.from_function(
        network, reference=reference, preferences=[(0, 1), (4, 3), (4, 5)], metric=metric
    )
    flow = fl.preference_flow(fl.DPO(0.5), policy, weights=np.array([1.0, 2.0, 0.5]))
    line = fl.flow_line(flow, reference, until=until.time(NETWORK_END), rtol=1e-7, max_steps=200)
    assert line.outcome == Outcome.reached

    @jax.jit
    @jax.vmap
    def loss_and_rate(state):
        loss, gradient = jax.value_and_grad(flow.potential)(state)
        return loss, -inner(gradient, flow.metric(state, gradient))

    nodes, shares = np.polynomial.legendre.leggauss(16)
    times = NETWORK_END * (nodes + 1) / 2
    around = np.concatenate([times - 1e-3, times + 1e-3, [0, NETWORK_END], times])
    losses, rates = loss_and_rate(line.at(around))
    fallen = NETWORK_END / 2 * shares @ np.asarray(rates[-16:])
    np.testing.assert_allclose(losses[-17] - losses[-18], fallen, rtol=1e-6)
    slopes = (losses[16:32] - losses[:16]) / 2e-3
    np.testing.assert_allclose(slopes, rates[-16:], rtol=3e-5)  # of the difference quotient
    assert losses[-17] < 0.9 * losses[-18]


def test_a_line_keeps_room_for_fewer_steps_where_a_state_is_large():
    def steps(size):
        return line_module._affordable_steps(make_method(rtol=1e-6), np.zeros(size))

    assert steps(2) == 4096
    # Tsit5 keeps seven stages, both ends of a step and its corner: ten numbers for each of a state.
    assert steps(20_000) == 2**30 // (20_000 * 8 * 10)
    assert steps(10**7) == 256
