"""Flows: Theorem 1, the Hessian, descent, metrics, several pairs, hyper-parameters, bad input."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from refusals import assert_refused

import flowlab as fl
from flowlab import critical, losses, plots
from flowlab.domains import AbstractDomain, Box, Quadrant, WholeSpace
from flowlab.flow import AbstractFlow
from flowlab.losses import AbstractLoss
from flowlab.policies import AbstractPolicy, WallRule

STATES = np.exp(np.random.default_rng(0).uniform(-6, 0, (30, 2)))
BETAS = (0.05, 0.3, 1.0, 2.5)
KERNEL = np.array([[2.0, -0.5], [-0.5, 1.0]])
# The pairs 0≻1, 2≻3 and 2≻1 of four responses to one prompt.
CHOSEN, REJECTED = np.array([0, 2, 2]), np.array([1, 3, 1])
REFERENCE = np.log([0.1, 0.05, 0.8, 0.05])


velocity_of = eqx.filter_jit(lambda flow, state: flow.velocity(state))
hessians_of = eqx.filter_jit(lambda flow, states: jax.vmap(jax.hessian(flow.potential))(states))
velocities_of = eqx.filter_jit(lambda flow, states: jax.vmap(flow.velocity)(states))


class FourResponses(AbstractPolicy):
    """A tabular softmax over four responses to one prompt, Euclidean in its logits."""

    domain: AbstractDomain = WholeSpace()
    wall: WallRule = eqx.field(static=True, default="stop")

    def pairs(self, state: Array) -> fl.Pair:
        logs, ones = jax.nn.log_softmax(state), jnp.ones(3, state.dtype)
        reference = jnp.asarray(REFERENCE, state.dtype)
        return fl.Pair(
            logs[CHOSEN], logs[REJECTED], reference[CHOSEN], reference[REJECTED], ones, ones
        )


class Bowl(eqx.Module):
    """A potential with two hyper-parameters."""

    curvature: float = 1.0
    centre: float = 0.0
    label: str = "bowl"

    def __call__(self, state: Array) -> Array:
        return 0.5 * self.curvature * ((state - self.centre) ** 2).sum()


class Tempered(AbstractLoss):
    """A loss with a hyper-parameter that policies have too, and one that is not an argument."""

    chosen_length: float
    scale: Any

    def __init__(self, chosen_length: float) -> None:
        self.chosen_length = chosen_length
        self.scale = 2.0

    def __call__(self, pairs: fl.Pair) -> Array:
        return self.scale * pairs.margin


def turned(state, covector):
    """A symmetric positive definite metric that depends on the state."""
    axis = jnp.stack([jnp.sin(state[0]), jnp.cos(state[0])])
    return covector + 3 * axis * jnp.vdot(axis, covector)


FLOWS = {
    "ratio plane": fl.preference_flow(fl.DPO(0.3), fl.RatioPlane()),
    "log-ratio plane": fl.preference_flow(fl.DPO(0.3), fl.LogRatioPlane(KERNEL)),
    "any function, any metric": fl.Flow(lambda y: y[0] ** 2 * y[1] + y[1] ** 3, metric=turned),
}


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("references", [(0.0, 0.0), (-3.0, -11.0)], ids=["paper", "nats"])
def test_velocities_on_the_ratio_plane_are_those_of_theorem_1(beta, references):
    policy = fl.RatioPlane(ref_chosen=references[0], ref_rejected=references[1])
    velocity = velocities_of(fl.preference_flow(fl.DPO(beta), policy), STATES)
    x1, x2 = STATES.T
    weight = beta * x2**beta / (x1**beta + x2**beta)
    np.testing.assert_allclose(velocity, np.stack([weight / x1, -weight / x2], 1), rtol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_the_hessian_on_the_ratio_plane_is_indefinite_with_the_known_determinant(beta):
    flow = fl.preference_flow(fl.DPO(beta), fl.RatioPlane())
    hessian = hessians_of(flow, STATES)
    squares = np.sum(velocities_of(flow, STATES) ** 2, axis=1)
    wanted = -squares / np.sum(STATES**2, axis=1)
    np.testing.assert_allclose(np.linalg.det(hessian), wanted, rtol=1e-9)


def test_velocities_on_the_ratio_plane_are_tangent_to_circles():
    flow = FLOWS["ratio plane"]
    outward = np.sum(STATES * velocities_of(flow, STATES), axis=1)
    np.testing.assert_allclose(outward, 0, atol=1e-15)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=list(FLOWS))
def test_the_potential_falls_at_the_squared_length_of_its_gradient_in_the_metric(flow):
    def rates(state):
        _, rate = jax.jvp(flow.potential, (state,), (flow.velocity(state),))
        gradient = jax.grad(flow.potential)(state)
        return rate, -jnp.vdot(gradient, flow.metric(state, gradient))

    rate, wanted = jax.jit(jax.vmap(rates))(STATES)
    assert np.all(rate < 0)
    np.testing.assert_allclose(rate, wanted, rtol=1e-11)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=list(FLOWS))
def test_the_gradient_is_the_difference_quotient_of_the_potential(flow):
    step = 1e-6
    for direction in np.eye(2):
        ahead = jax.jit(jax.vmap(flow.potential))(STATES * (1 + step * direction))
        behind = jax.jit(jax.vmap(flow.potential))(STATES * (1 - step * direction))
        quotient = (ahead - behind) / (2 * step * (STATES @ direction))
        slope = jax.jit(jax.vmap(flow.gradient))(STATES) @ direction
        np.testing.assert_allclose(quotient, slope, rtol=1e-5, atol=1e-8)


def test_a_metric_is_applied_to_the_gradient():
    flow = FLOWS["any function, any metric"]
    state = jnp.asarray([0.4, 2.0])
    gradient = np.array([2 * 0.4 * 2, 0.4**2 + 12])
    axis = np.array([np.sin(0.4), np.cos(0.4)])
    wanted = -(np.eye(2) + 3 * np.outer(axis, axis)) @ gradient
    np.testing.assert_allclose(velocity_of(flow, state), wanted, rtol=1e-13)
    np.testing.assert_allclose(flow.speed(state), np.linalg.norm(wanted), rtol=1e-13)
    np.testing.assert_allclose(flow.gradient(np.array([0.4, 2.0])), gradient, rtol=1e-13)


def test_without_a_metric_the_flow_is_the_negative_gradient_of_any_pytree():
    flow = fl.Flow(lambda y: (y["a"] ** 2).sum() + 3 * y["b"])
    velocity = flow.velocity({"a": np.array([1.0, -2.0]), "b": 5.0})
    np.testing.assert_allclose(velocity["a"], [-2, 4])
    np.testing.assert_allclose(velocity["b"], -3)
    np.testing.assert_allclose(flow.speed({"a": np.array([1.0, -2.0]), "b": 5.0}), 29**0.5)


def test_what_is_not_given_is_the_whole_space_without_walls():
    flow = fl.Flow(jnp.sum)
    assert (type(flow.domain), flow.wall, flow.state_shape) == (WholeSpace, "stop", None)
    boxed = fl.Flow(jnp.sum, domain=Box(2.0, 3.0), wall="slide")
    assert (boxed.domain, boxed.wall) == (Box(2.0, 3.0), "slide")


def test_a_preference_flow_has_the_domain_the_wall_and_the_pairs_of_its_policy():
    policy = fl.RatioPlane(Box(2.0, 3.0), wall="slide")
    flow = fl.preference_flow(fl.DPO(0.3), policy)
    assert (flow.domain, flow.wall, flow.state_shape) == (policy.domain, "slide", (2,))
    assert flow.pairs(jnp.asarray([1.0, np.e])).margin == -1
    many = fl.preference_flow(fl.DPO(0.3), FourResponses())
    assert many.state_shape is None


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [0.2, 3.0, 1.0], [0, 0, 5]])
def test_several_pairs_pull_in_proportion_to_their_weights(weights):
    logits = np.array([0.3, -1.0, 0.7, 2.0])
    flow = fl.preference_flow(fl.DPO(0.4), FourResponses(), weights=weights)
    pulls = np.zeros((3, 4))
    margins = logits[CHOSEN] - logits[REJECTED] - (REFERENCE[CHOSEN] - REFERENCE[REJECTED])
    for pull, winner, loser, margin in zip(pulls, CHOSEN, REJECTED, margins, strict=True):
        pull[[winner, loser]] = np.array([1, -1]) * 0.4 / (1 + np.exp(0.4 * margin))
    wanted = np.average(pulls, axis=0, weights=weights)
    np.testing.assert_allclose(velocity_of(flow, logits), wanted, rtol=1e-12, atol=1e-15)


def test_pairs_that_share_responses_can_lower_a_chosen_one_under_a_tabular_softmax():
    def rate_of_log_probabilities(weights):
        flow = fl.preference_flow(fl.DPO(0.1), FourResponses(), weights=weights)
        start = jnp.asarray(REFERENCE)
        return jax.jvp(jax.nn.log_softmax, (start,), (velocity_of(flow, start),))[1]

    assert rate_of_log_probabilities(None)[0] < 0
    assert rate_of_log_probabilities([1, 0, 0])[0] > 0


def test_weights_are_those_of_single_precision_in_single_precision():
    flow = fl.preference_flow(fl.DPO(0.4), FourResponses(), weights=np.array([1, 2, 3]))
    assert velocity_of(flow, np.zeros(4, np.float32)).dtype == jnp.float32


def test_a_replaced_hyper_parameter_is_that_of_a_flow_built_with_it():
    policy = fl.RatioPlane(Box(2.0, 3.0), wall="slide", ref_chosen=-3.0, chosen_length=4)
    flow = fl.preference_flow(fl.DPO(0.3), policy)
    wanted = fl.preference_flow(fl.DPO(0.7), policy)
    assert eqx.tree_equal(flow.with_parameter("beta", 0.7), wanted)
    other = fl.RatioPlane(Box(2.0, 3.0), wall="slide", ref_chosen=-5.0, chosen_length=4)
    wanted = fl.preference_flow(fl.DPO(0.3), other)
    assert eqx.tree_equal(flow.with_parameter("ref_chosen", -5.0), wanted)


def test_hyper_parameters_of_the_log_ratio_plane_are_replaced_one_by_one():
    flow = FLOWS["log-ratio plane"]
    wanted = fl.preference_flow(fl.DPO(0.3), fl.LogRatioPlane(KERNEL, ref_rejected=-5.0))
    assert eqx.tree_equal(flow.with_parameter("ref_rejected", -5.0), wanted)
    wanted = fl.preference_flow(fl.DPO(0.3), fl.LogRatioPlane(2 * KERNEL))
    assert eqx.tree_equal(flow.with_parameter("kernel", 2 * KERNEL), wanted)


def test_hyper_parameters_of_a_potential_are_replaced_too():
    flow = fl.Flow(Bowl(curvature=2.0, centre=1.0), metric=turned, domain=Quadrant())
    wanted = fl.Flow(Bowl(curvature=5.0, centre=1.0), metric=turned, domain=Quadrant())
    assert eqx.tree_equal(flow.with_parameter("curvature", 5.0), wanted)


def test_a_hyper_parameter_that_no_constructor_takes_is_replaced_as_it_is():
    flow = fl.preference_flow(Tempered(3.0), FourResponses()).with_parameter("scale", 7.0)
    loss = flow.loss
    assert isinstance(loss, Tempered)
    assert (loss.chosen_length, loss.scale) == (3, 7)


OF_DPO = "`beta`, `ref_chosen`, `ref_rejected`, `chosen_length`, `rejected_length`"
MISUSES: list[tuple[Callable[[], AbstractFlow], str]] = [
    (lambda: fl.Flow(3.0), "`potential` must be a function, but is 3.0."),  # pyright: ignore
    (lambda: fl.Flow(None), "`potential` must be a function, but is None."),  # pyright: ignore
    (
        lambda: fl.Flow(jnp.sum, wall="bounce"),  # pyright: ignore
        '`wall` must be "stop" or "slide", but is \'bounce\'.',
    ),
    (
        lambda: fl.Flow(jnp.sum, wall="slide"),
        "`wall` must be \"stop\" on WholeSpace(), which has no walls, but is 'slide'.",
    ),
    (
        lambda: fl.preference_flow(fl.DPO(0.1), fl.RatioPlane(wall="slide")),
        "`wall` must be \"stop\" on Quadrant(), which has no walls, but is 'slide': the axes "
        "absorb what comes to them, which until.boundary() measures; Box() and Simplex() have "
        "walls, and on LogRatioPlane() there is no boundary.",
    ),
    (
        lambda: fl.preference_flow(0.1, fl.RatioPlane()),  # pyright: ignore
        "`loss` must be a loss such as DPO(0.1) or one of your own, a subclass of AbstractLoss, "
        "but is 0.1.",
    ),
    (
        lambda: fl.preference_flow(fl.DPO(0.1), "plane"),  # pyright: ignore
        "`policy` must be a policy such as RatioPlane(), but is 'plane'.",
    ),
    *(
        (
            lambda weights=weights: fl.preference_flow(
                fl.DPO(0.1), FourResponses(), weights=np.array(weights)
            ),
            f"`weights` must be non-negative with a positive sum, but is {shown}.",
        )
        for weights, shown in (
            ([1, -1, 3], "[ 1. -1.  3.]"),
            ([0, 0, 0], "[0. 0. 0.]"),
            ([1, np.nan, 1], "[ 1. nan  1.]"),
            ([1, np.inf, 1], "[ 1. inf  1.]"),
        )
    ),
    (
        lambda: FLOWS["ratio plane"].with_parameter("gamma", 1.0),
        f"`over` must name one hyper-parameter of the flow ({OF_DPO}), but names 'gamma'.",
    ),
    (
        lambda: FLOWS["any function, any metric"].with_parameter("beta", 1.0),
        "`over` must name one hyper-parameter of the flow (none), but names 'beta'.",
    ),
    (
        lambda: fl.Flow(Bowl()).with_parameter("label", 1.0),
        "`over` must name one hyper-parameter of the flow (`curvature`, `centre`), "
        "but names 'label'.",
    ),
    (
        lambda: FLOWS["ratio plane"].with_parameter("beta", -1.0),
        "`beta` must be positive and finite, but is -1.0.",
    ),
    (
        lambda: FLOWS["log-ratio plane"].with_parameter("chosen_length", 0.0),
        "`chosen_length` must be positive and finite, but is 0.0.",
    ),
    (
        lambda: FLOWS["log-ratio plane"].with_parameter("kernel", 2.0),
        "`kernel` must have shape (2, 2), but has shape ().",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), MISUSES, ids=[s[:40] for _, s in MISUSES])
def test_misuse_is_a_sentence_that_names_the_argument(call, sentence):
    assert_refused(call, f"Argument {sentence}")


def test_a_name_that_both_loss_and_policy_have_names_no_one_hyper_parameter():
    flow = fl.preference_flow(Tempered(3.0), fl.RatioPlane())
    with pytest.raises(ValueError, match="^Argument `over` must name one hyper-parameter"):
        flow.with_parameter("chosen_length", 2.0)


def test_weights_that_do_not_fit_the_pairs_of_a_plane_are_refused():
    for weights in ([1.0, 2.0], 3.0):
        with pytest.raises(ValueError, match="Argument `weights` must have one weight for each"):
            fl.preference_flow(fl.DPO(0.1), fl.RatioPlane(), weights=np.asarray(weights))


def squares(y: Any) -> Any:
    return jnp.sum(y**2)


def by_math(y: Any) -> Any:
    return math.cos(y[0])


def by_numpy(y: Any) -> Any:
    return np.sin(y[0])


def by_cases(y: Any) -> Any:
    return y[0] if y[0] > 0 else y[1]


def _line_of(code: str) -> int:
    lines = Path(__file__).read_text("utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.strip().startswith(code))


NO_FLOW: dict[str, tuple[Any, Any]] = {
    "Argument `potential` must give one number for one state, since a flow is the gradient flow "
    "of a potential, but for a state of shape (2,) gives an array of shape (2,); for a "
    "field −M∇L, give the function M as `metric`.": (lambda y: y**2, None),
    "Argument `potential` must give one number for one state, since a flow is the gradient flow "
    "of a potential, but for a state of shape (2,) gives a tuple; for a field −M∇L, give "
    "the function M as `metric`.": (lambda y: (y[0], y[1]), None),
    "Argument `potential` must be a function that JAX can trace, but `return math.cos(y[0])` "
    f"(line {_line_of('return math.cos')}) needs the value of an array. Use `jax.numpy` in place "
    "of `numpy` and `math`, and `jnp.where` in place of `if`.": (by_math, None),
    "Argument `potential` must be a function that JAX can trace, but `return np.sin(y[0])` "
    f"(line {_line_of('return np.sin')}) needs the value of an array. Use `jax.numpy` in place "
    "of `numpy` and `math`, and `jnp.where` in place of `if`.": (by_numpy, None),
    "Argument `potential` must be a function that JAX can trace, but `return y[0] if y[0] > 0 "
    f"else y[1]` (line {_line_of('return y[0] if')}) needs the value of an array. Use `jax.numpy` "
    "in place of `numpy` and `math`, and `jnp.where` in place of `if`.": (by_cases, None),
    "Argument `potential` must give a real number, computed from the state in JAX, but gives "
    "3.0.": (lambda y: 3.0, None),
    "Argument `potential` must give a real number, computed from the state in JAX, but gives one "
    "of bool.": (lambda y: jnp.all(y > 0), None),
    "Argument `metric` must give a result of the shape of a state, (2,), but gives ().": (
        squares,
        lambda y, p: jnp.sum(p),
    ),
    "Argument `metric` must be symmetric and positive semidefinite, but is [[1., 2.], [0., 1.]] "
    "at the state [1., 1.].": (squares, lambda y, p: jnp.stack([p[0] + 2 * p[1], p[1]])),
    "Argument `metric` must be symmetric and positive semidefinite, but is [[-1., -0.], "
    "[-0., -1.]] at the state [1., 1.].": (squares, lambda y, p: -p),
}


@pytest.mark.parametrize("sentence", NO_FLOW)
def test_what_is_no_potential_or_no_metric_is_refused_when_it_is_to_be_followed(sentence):
    potential, metric = NO_FLOW[sentence]
    flow, until = fl.Flow(potential, metric=metric), fl.until.time(1.0)
    assert_refused(fl.sweep, sentence, flow, np.ones((3, 2)), until=until)
    assert_refused(fl.flow_line, sentence, flow, np.ones(2), until=until)
    if metric is None:
        assert_refused(critical.critical_points, sentence, flow, [(-2, 2), (-2, 2)])
        assert_refused(plots.phase_portrait, sentence, flow)


def test_functions_of_other_arguments_than_a_state_are_refused():
    on_plane = "(on a plane an array of two numbers)"
    sentence = f"Argument `potential` must be a function of one argument, the state {on_plane}, but"
    assert_refused(fl.Flow, f"{sentence} takes (x, y).", lambda x, y: x + y)
    sentence = (
        "Argument `metric` must be a function of two arguments, a state and a covector "
        f"{on_plane}, but takes (p)."
    )
    assert_refused(fl.Flow, sentence, squares, metric=lambda p: p)


def three_numbers(y: Any) -> Any:
    first, second, third = y
    return first * second * third


def test_a_function_of_longer_states_than_the_region_is_refused():
    flow = fl.Flow(three_numbers)
    sentence = (
        "Argument `flow` must have states that are vectors with as many components as `region` has "
        f"ranges, but {flow!r} takes no vectors of length 2."
    )
    assert_refused(critical.critical_points, sentence, flow, [(-2, 2), (-2, 2)])


def test_a_metric_that_is_no_number_at_a_start_is_not_called_asymmetric():
    flow = fl.Flow(squares, metric=lambda y, p: jnp.where(y[0] > 0, jnp.nan, 1.0) * p)
    sentence = (
        "Argument `start` must be finite, with a finite flow at this state, but is [1.0, 1.0]."
    )
    assert_refused(fl.flow_line, sentence, flow, np.ones(2), until=fl.until.time(1.0))


def test_states_without_a_component_are_refused():
    flow, until = fl.Flow(squares), fl.until.time(1.0)
    wanted = "Argument `{}` must have at least one component, but has shape {}."
    assert_refused(fl.sweep, wanted.format("starts", (3, 0)), flow, np.zeros((3, 0)), until=until)
    assert_refused(fl.flow_line, wanted.format("start", (0,)), flow, np.zeros(0), until=until)


class Weighed(eqx.Module):
    weights: np.ndarray

    def __call__(self, y: Any) -> Any:
        return jnp.sum(self.weights * y**2)


def test_a_sweep_over_an_array_is_refused():
    sentence = (
        "Argument `over` must name single numbers, but `weights` is an array of shape (2,); sweep "
        "a factor that multiplies it, or call `sweep` for each array."
    )
    flow, until = fl.Flow(Weighed(np.ones(2))), fl.until.time(1.0)
    assert_refused(
        fl.sweep, sentence, flow, np.ones((3, 2)), until=until, over={"weights": [1.0, 2.0]}
    )


def test_a_metric_that_is_no_function_is_refused():
    with pytest.raises(ValueError, match="Argument `metric` must be a function"):
        fl.Flow(lambda y: (y**2).sum(), metric=np.eye(2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (losses.AOT(), "must be a loss of one pair, but the value of AOT depends on the other"),
        (losses.WeightedSum((losses.SFT(), losses.AOT())), "but the value of WeightedSum depends"),
        (fl.DPO(np.array([0.1, 0.2])), "must have one value for one pair, but has an array of"),
    ],
)
def test_a_loss_of_several_pairs_has_no_flow_on_a_plane_of_one(loss, words):
    with pytest.raises(ValueError, match=words):
        fl.preference_flow(loss, fl.LogRatioPlane())
