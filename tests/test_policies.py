"""The planes: pairs, kernels, metrics, the way back from log-ratios, and bad arguments."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_policy import turning
from refusals import assert_refused

import flowlab as fl
from flowlab import losses
from flowlab.domains import Box, Quadrant, Simplex, WholeSpace
from flowlab.policies import PLANES, CoupledKernel, check_wall

KERNEL = np.array([[2.0, -0.5], [-0.5, 1.0]])
REFERENCES: dict[str, Any] = dict(
    ref_chosen=-3.0, ref_rejected=-11.0, chosen_length=5, rejected_length=7
)
POLICIES = {
    "ratio plane": fl.RatioPlane(Box(2.0, 3.0), **REFERENCES),
    "log-ratio plane": fl.LogRatioPlane(KERNEL, **REFERENCES),
    "log-ratio plane, kernel of rank 1": fl.LogRatioPlane(np.ones((2, 2)), **REFERENCES),
    "log-ratio plane, coupled kernel": fl.LogRatioPlane(CoupledKernel(1.1), **REFERENCES),
    "log-ratio plane, kernel of the state": fl.LogRatioPlane(turning, **REFERENCES),
    "probability plane": fl.ProbabilityPlane(-3.0, -11.0, chosen_length=5, rejected_length=7),
}
LOG_RATIOS = np.random.default_rng(0).uniform(-6, 3, (10, 2))

every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))


def log_ratios(policy, state):
    pair = policy.pairs(state)
    return jnp.stack([pair.u_chosen, pair.u_rejected])


@every_policy
def test_a_pair_carries_the_references_and_the_lengths_of_its_policy(policy):
    pair = policy.pairs(policy.state_at(np.array([-2.0, 0.5])))
    np.testing.assert_allclose([pair.chosen, pair.rejected], [-5.0, -10.5], rtol=1e-14)
    assert (pair.ref_chosen, pair.ref_rejected) == (-3, -11)
    assert (pair.chosen_length, pair.rejected_length) == (5, 7)
    assert pair.offset is None


@every_policy
def test_the_state_at_log_ratios_has_these_log_ratios(policy):
    back = jax.jit(jax.vmap(lambda u: log_ratios(policy, policy.state_at(u))))(LOG_RATIOS)
    np.testing.assert_allclose(back, LOG_RATIOS, rtol=1e-12, atol=1e-14)


def test_states_of_the_ratio_plane_are_ratios_and_those_of_the_other_are_their_logarithms():
    values = np.array([-2.0, 0.5])
    np.testing.assert_allclose(POLICIES["ratio plane"].state_at(values), np.exp(values))
    np.testing.assert_array_equal(POLICIES["log-ratio plane"].state_at(values), values)


@every_policy
def test_the_kernel_is_the_metric_between_the_jacobians_of_the_log_ratios(policy):
    def kernels(values):
        state = policy.state_at(values)
        jacobian = jax.jacobian(lambda y: log_ratios(policy, y))(state)
        metric = jax.vmap(lambda covector: policy.metric(state, covector))(jnp.eye(2))
        return policy.kernel(state), jacobian @ metric @ jacobian.T

    kernel, wanted = jax.jit(jax.vmap(kernels))(LOG_RATIOS)
    np.testing.assert_allclose(kernel, wanted, rtol=1e-12)


@every_policy
def test_log_ratios_move_against_the_gradient_in_them_under_the_kernel(policy):
    loss = fl.DPO(0.4)

    def rates(values):
        state = policy.state_at(values)
        gradient = jax.grad(lambda y: loss(policy.pairs(y)))(state)
        velocity = policy.velocity(state, gradient)
        _, rate = jax.jvp(lambda y: log_ratios(policy, y), (state,), (velocity,))
        slope = jax.grad(lambda u: loss(policy.pairs(policy.state_at(u))))(values)
        return rate, -policy.kernel(state) @ slope

    rate, wanted = jax.jit(jax.vmap(rates))(LOG_RATIOS)
    np.testing.assert_allclose(rate, wanted, rtol=1e-12, atol=1e-15)


def test_kernels_are_those_of_the_table_of_geometries():
    state = POLICIES["ratio plane"].state_at(np.log([0.5, 0.1]))
    np.testing.assert_allclose(POLICIES["ratio plane"].kernel(state), [[4, 0], [0, 100]])
    np.testing.assert_array_equal(POLICIES["log-ratio plane"].kernel(state), KERNEL)
    np.testing.assert_array_equal(fl.LogRatioPlane().kernel(state), np.eye(2))


def test_the_probability_plane_has_the_squares_of_the_probabilities_below_one():
    policy = POLICIES["probability plane"]
    np.testing.assert_allclose(policy.reference_state, np.exp([-3, -11]), rtol=1e-14)
    np.testing.assert_allclose(policy.kernel(jnp.array([0.5, 0.1])), [[4, 0], [0, 100]])
    assert policy.components == ("probability_chosen", "probability_rejected")


def test_a_kernel_that_is_a_function_is_that_of_the_state():
    state = jnp.array([0.3, -2.0])
    axis = np.array([np.sin(0.3), np.cos(-2.0)])
    kernel = POLICIES["log-ratio plane, kernel of the state"].kernel(state)
    np.testing.assert_allclose(kernel, np.eye(2) + np.outer(axis, axis), rtol=1e-14)
    coupled = fl.LogRatioPlane(CoupledKernel(-0.4, rejected=2.0, chosen=3.0)).kernel(state)
    np.testing.assert_allclose(coupled, [[3, -1.2], [-1.2, 6]], rtol=1e-15)


def test_hyper_parameters_inside_of_a_kernel_are_replaced_and_checked():
    flow = fl.preference_flow(fl.DPO(0.3), fl.LogRatioPlane(CoupledKernel(0.5)))
    wanted = fl.preference_flow(fl.DPO(0.3), fl.LogRatioPlane(CoupledKernel(1.1)))
    assert eqx.tree_equal(flow.with_parameter("ratio", 1.1), wanted)
    with pytest.raises(ValueError, match="^Argument `ratio` must be at most the square root of"):
        flow.with_parameter("ratio", 1.3)


def test_integer_log_ratios_cut_nothing_down_to_integers():
    policy = fl.LogRatioPlane(KERNEL, ref_chosen=-0.5)
    integers = jnp.asarray([1, 2])
    assert policy.state_at(integers).dtype == jnp.float64
    np.testing.assert_array_equal(policy.kernel(integers), KERNEL)
    np.testing.assert_array_equal(policy.metric(integers, integers), KERNEL @ [1, 2])
    assert policy.pairs(integers).chosen == 0.5


@every_policy
def test_single_precision_stays_single(policy):
    state = policy.state_at(np.asarray([-2.0, 0.5], np.float32))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(policy.pairs(state))} == {"float32"}
    assert policy.kernel(state).dtype == policy.metric(state, state).dtype == jnp.float32


def test_domains_and_walls_are_the_default_ones_or_those_given():
    assert isinstance(fl.RatioPlane().domain, Quadrant)
    assert isinstance(fl.LogRatioPlane().domain, WholeSpace)
    assert fl.RatioPlane().wall == fl.LogRatioPlane().wall == "stop"
    sliding = fl.RatioPlane(Simplex(0.3, 0.2), wall="slide")
    assert sliding.domain == Simplex(0.3, 0.2)
    assert sliding.wall == check_wall("slide") == "slide"
    assert fl.RatioPlane().state_shape == fl.LogRatioPlane().state_shape == (2,)


@pytest.mark.parametrize(
    ("policy", "ends"),
    [
        (fl.RatioPlane(), (1, 1)),
        (fl.RatioPlane(Box(2.0, 0.5)), (2, 0.5)),
        (fl.RatioPlane(Simplex(0.5, 0.2)), (2, 5)),
        (fl.ProbabilityPlane(-1.0, -2.0), (1, 1)),
    ],
)
def test_the_region_of_a_plane_with_walls_reaches_to_them_along_the_axes(policy, ends):
    assert policy.region == ((0, ends[0]), (0, ends[1]))


def test_planes_have_a_region_and_policies_over_responses_have_none():
    assert fl.LogRatioPlane().region == ((-10, 10), (-10, 10))
    assert all(plane().region is not None for plane in PLANES.values())
    assert fl.TabularSoftmax([0.2, 0.3, 0.5]).region is None


def test_references_are_those_of_the_paper_on_the_ratio_plane_and_twenty_nats_on_the_other():
    assert fl.RatioPlane().ref_chosen == fl.RatioPlane().ref_rejected == 0
    assert fl.LogRatioPlane().ref_chosen == fl.LogRatioPlane().ref_rejected == -20


def test_a_kernel_symmetric_and_semidefinite_to_rounding_is_taken():
    third = 1 / 3
    factors = np.array([[third], [0.1]])
    rounded = factors @ factors.T + np.array([[0, 1e-17], [0, 0]])
    assert rounded[0, 1] != rounded[1, 0]
    np.testing.assert_array_equal(fl.LogRatioPlane(rounded).matrix, rounded)


def test_planes_can_be_built_of_traced_numbers_and_kernels():
    def pair(ref_chosen):
        return fl.ProbabilityPlane(ref_chosen, -2.0, chosen_length=-ref_chosen).pairs(jnp.ones(2))

    slopes = jax.jit(jax.jacfwd(pair))(-3.0)
    assert (slopes.ref_chosen, slopes.chosen_length, slopes.ref_rejected) == (1, -1, 0)
    kernels = jax.vmap(lambda k: fl.LogRatioPlane(k).kernel(jnp.zeros(2)))(np.stack([KERNEL] * 2))
    np.testing.assert_array_equal(kernels, [KERNEL, KERNEL])
    coupled = jax.jit(lambda r: fl.LogRatioPlane(CoupledKernel(r)).kernel(jnp.zeros(2)))(0.5)
    np.testing.assert_array_equal(coupled, [[1, 0.5], [0.5, 1.5]])


@pytest.mark.parametrize("name", ["ratio plane", "probability plane"])
def test_a_plane_made_with_another_number_is_that_of_its_constructor(name):
    policy = POLICIES[name]
    other = dataclasses.replace(policy, chosen_length=9.0)
    assert (other.chosen_length, other.rejected_length) == (9, 7)
    assert eqx.tree_equal(dataclasses.replace(other, chosen_length=5), policy)
    with pytest.raises(ValueError, match="^Argument `ref_chosen` must be finite, but is nan"):
        dataclasses.replace(policy, ref_chosen=np.nan)


BAD_KERNELS = [
    ([1.0, 2.0], "must have shape (2, 2), but has shape (2,)."),
    (np.eye(3), "must have shape (2, 2), but has shape (3, 3)."),
    (4.0, "must have shape (2, 2), but has shape ()."),
    ([[1, np.nan], [np.nan, 1]], "must be finite, but is [[ 1., nan], [nan, 1.]]."),
    ([[np.inf, 0], [0, 1]], "must be finite, but is [[inf, 0.], [ 0., 1.]]."),
    ([[1, 0.5], [0.4, 1]], "must be symmetric, but is [[1.0, 0.5], [0.4, 1.0]]."),
    ([[1, 2], [2, 1]], "must be positive semidefinite, but its smallest eigenvalue is -1."),
    ([[-3, 0], [0, -2]], "must be positive semidefinite, but its smallest eigenvalue is -3."),
]


@pytest.mark.parametrize(("kernel", "sentence"), BAD_KERNELS)
def test_a_kernel_that_is_none_is_refused(kernel, sentence):
    assert_refused(fl.LogRatioPlane, f"Argument `kernel` {sentence}", kernel)


BAD_ARGUMENTS = [
    ("ref_chosen", np.nan, "must be finite, but is nan."),
    ("ref_rejected", -np.inf, "must be finite, but is -inf."),
    ("ref_rejected", [1.0, 2.0], "must be a single number, but has shape (2,)."),
    ("chosen_length", 0, "must be positive and finite, but is 0."),
    ("rejected_length", -2.5, "must be positive and finite, but is -2.5."),
]


@pytest.mark.parametrize("plane", [fl.RatioPlane, fl.LogRatioPlane])
@pytest.mark.parametrize(("argument", "value", "sentence"), BAD_ARGUMENTS)
def test_bad_references_and_lengths_are_refused(plane, argument, value, sentence):
    assert_refused(plane, f"Argument `{argument}` {sentence}", **{argument: value})


BAD_NUMBERS = [
    (lambda: CoupledKernel(np.nan), "`ratio` must be finite, but is nan."),
    (
        lambda: CoupledKernel(0.0, rejected=-1.0),
        "`rejected` must be finite and at least 0, but is -1.0.",
    ),
    (lambda: CoupledKernel(0.0, chosen=0.0), "`chosen` must be positive and finite, but is 0.0."),
    (
        lambda: CoupledKernel(1.5, rejected=2.0),
        "`ratio` must be at most the square root of `rejected`, 1.414, in absolute value, for the "
        "kernel to be positive semidefinite, but is 1.5.",
    ),
    (
        lambda: fl.LogRatioPlane(lambda u: u),
        "`kernel` must have shape (2, 2), but has shape (2,).",
    ),
    (
        lambda: fl.ProbabilityPlane(0.3, -1.0),
        "`ref_chosen` must be a log-probability in nats, at most 0, but is 0.3; for a probability "
        "p give np.log(p).",
    ),
    (
        lambda: fl.ProbabilityPlane(-1.0, -np.inf),
        "`ref_rejected` must be finite, but is -inf.",
    ),
    (
        lambda: fl.ProbabilityPlane(-1.0, -1.0, WholeSpace()),
        "`domain` must be a set of positive ratios such as Quadrant(), but is WholeSpace().",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), BAD_NUMBERS)
def test_bad_numbers_of_kernels_and_probabilities_are_refused(call, sentence):
    assert_refused(call, f"Argument {sentence}")


@pytest.mark.parametrize("wall", ["bounce", "", None, 1])
def test_an_unknown_wall_is_refused(wall):
    sentence = f'Argument `wall` must be "stop" or "slide", but is {wall!r}.'
    assert_refused(fl.RatioPlane, sentence, Box(), wall=wall)


def test_ratios_may_not_have_any_sign():
    sentence = (
        "Argument `domain` must be a set of positive ratios such as Quadrant(), "
        "but is WholeSpace()."
    )
    assert_refused(fl.RatioPlane, sentence, WholeSpace())


@pytest.mark.parametrize("plane", [fl.RatioPlane, fl.LogRatioPlane])
def test_an_offset_of_the_plane_reaches_its_pairs_and_sets_the_margin_of_odpo(plane):
    policy = plane(offset=0.7)
    state = policy.state_at(np.array([0.4, -0.2]))
    assert policy.pairs(state).offset == 0.7
    flow = fl.preference_flow(losses.ODPO(beta=2.0), policy)
    np.testing.assert_allclose(flow.potential(state), np.log1p(np.exp(0.7 - 1.2)), rtol=1e-14)
    other = flow.with_parameter("offset", 0.0)
    np.testing.assert_allclose(other.potential(state), np.log1p(np.exp(-1.2)), rtol=1e-14)


def test_a_plane_without_an_offset_is_refused_by_a_loss_that_needs_one():
    with pytest.raises(ValueError, match="must have an offset for ODPO, but has none; give one"):
        fl.preference_flow(losses.ODPO(), fl.LogRatioPlane())


@pytest.mark.parametrize("plane", [fl.RatioPlane, fl.LogRatioPlane])
def test_an_offset_that_is_no_finite_number_is_refused(plane):
    with pytest.raises(ValueError, match="Argument `offset` must be finite, but is inf"):
        plane(offset=np.inf)
