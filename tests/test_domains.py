"""Domains: membership, coordinates, tolerances, walls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import assert_refused

from flowlab.domains import AbstractDomain, Box, Enclosure, Quadrant, Simplex, WholeSpace

DOMAINS = [WholeSpace(), Quadrant(), Box(2.0, 3.0), Simplex(0.3, 0.2)]
ORTHANTS = DOMAINS[1:]
STATES = np.exp(np.random.default_rng(0).uniform(-9, 0, (20, 2)))


def named(domain: AbstractDomain) -> str:
    return type(domain).__name__


def membership(domain: AbstractDomain, states) -> list[bool]:
    return jax.vmap(domain.contains)(jnp.asarray(states)).tolist()


@pytest.mark.parametrize("domain", DOMAINS, ids=named)
def test_no_domain_holds_a_state_that_is_not_finite(domain):
    states = [[np.nan, 0.5], [0.5, np.nan], [np.inf, 0.5], [0.5, -np.inf], [0.5, 0.5]]
    assert membership(domain, states) == [False, False, False, False, True]


@pytest.mark.parametrize("domain", ORTHANTS, ids=named)
def test_the_axes_do_not_belong_to_an_orthant_and_all_next_to_them_does(domain):
    states = [[0.0, 0.5], [0.5, 0.0], [-0.0, 0.5], [-1e-300, 0.5], [0.5, -1.0], [1e-300, 0.5]]
    assert membership(domain, states) == [False] * 5 + [True]


def test_the_whole_space_holds_every_finite_state_of_any_structure():
    assert membership(WholeSpace(), [[0.0, -1e300], [-0.0, 5e-324]]) == [True, True]
    tree = {"a": jnp.ones((3, 2)), "b": (jnp.asarray(-2.0),)}
    assert WholeSpace().contains(tree)
    assert not WholeSpace().contains(tree | {"b": (jnp.asarray(jnp.nan),)})


@pytest.mark.parametrize(
    ("domain", "on_wall"),
    [
        (Box(2.0, 3.0), [2.0, 1.0]),
        (Box(2.0, 3.0), [1.0, 3.0]),
        (Box(0.1, 0.7), [0.1, 0.7]),
        (Simplex(), [0.1, 0.9]),
        (Simplex(0.3, 0.2), [2.0, 2.0]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_wall_belongs_to_its_domain_and_so_does_what_rounding_puts_past_it(
    domain, on_wall, dtype
):
    state, eps = np.asarray(on_wall, dtype), np.finfo(dtype).eps
    scales = np.asarray([1 - 100 * eps, 1.0, 1 + 3 * eps, 1 + 100 * eps, 1.5], dtype)
    assert membership(domain, scales[:, None] * state) == [True, True, True, False, False]


@pytest.mark.parametrize("domain", DOMAINS, ids=named)
def test_coordinates_and_states_invert_each_other(domain):
    np.testing.assert_allclose(domain.state(domain.coordinates(STATES)), STATES, rtol=1e-14)


@pytest.mark.parametrize("domain", DOMAINS, ids=named)
def test_a_push_is_the_derivative_of_the_coordinates(domain):
    velocities = np.random.default_rng(1).normal(size=STATES.shape)
    _, wanted = jax.jvp(domain.coordinates, (jnp.asarray(STATES),), (jnp.asarray(velocities),))
    np.testing.assert_allclose(domain.pushforward(STATES, velocities), wanted, rtol=1e-14)


@pytest.mark.parametrize("domain", DOMAINS, ids=named)
def test_the_error_allowed_in_a_coordinate_is_the_one_allowed_in_the_state(domain):
    rtol, atol = jnp.asarray(1e-5), jnp.asarray(1e-3)
    coordinates = domain.coordinates(jnp.asarray(STATES))
    allowed = domain.error_scale(coordinates, rtol, atol)
    _, in_the_state = jax.jvp(domain.state, (coordinates,), (allowed,))
    np.testing.assert_allclose(in_the_state, 1e-3 + 1e-5 * STATES, rtol=1e-12)


def test_errors_of_negative_components_are_allowed_by_their_size():
    state = {"a": jnp.asarray([-3.0, 0.0]), "b": jnp.asarray(2.0)}
    allowed = WholeSpace().error_scale(state, jnp.asarray(0.1), jnp.asarray(0.01))
    np.testing.assert_allclose(allowed["a"], [0.31, 0.01], rtol=1e-14)
    np.testing.assert_allclose(allowed["b"], 0.21, rtol=1e-14)


@pytest.mark.parametrize(
    ("state", "smallest"),
    [([3.0, -2e-9, 0.0], 2e-9), ([0.0, 0.0], 1.0), ({"a": [5.0], "b": -0.5}, 0.5)],
)
def test_the_absolute_tolerance_lies_a_thousandfold_below_the_smallest_component(state, smallest):
    arrays = jax.tree.map(jnp.asarray, state, is_leaf=lambda leaf: isinstance(leaf, list))
    atol = WholeSpace().default_atol(arrays, jnp.asarray(1e-6))
    np.testing.assert_allclose(atol, 1e-9 * smallest, rtol=1e-14)


@pytest.mark.parametrize("domain", ORTHANTS, ids=named)
def test_an_orthant_has_no_absolute_tolerance(domain):
    assert domain.default_atol(jnp.asarray(STATES[0]), jnp.asarray(1e-6, jnp.float32)) is None
    coordinates = domain.coordinates(jnp.asarray(STATES[0]))
    allowed = domain.error_scale(coordinates, jnp.asarray(1e-6), None)
    np.testing.assert_array_equal(allowed, np.full(2, 1e-6))


def test_orthants_absorb_and_the_whole_space_does_not():
    assert [domain.absorbing for domain in DOMAINS] == [False, True, True, True]


def test_walls_are_those_of_the_set():
    for domain in (WholeSpace(), Quadrant()):
        normals, offsets = domain.walls()
        assert normals.size == offsets.size == 0
    normals, offsets = Box(2.0, 3.0).walls()
    np.testing.assert_array_equal(normals, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(offsets, [2, 3])
    normals, offsets = Simplex(0.3, 0.2).walls()
    np.testing.assert_array_equal(normals, [[0.3, 0.2]])
    np.testing.assert_array_equal(offsets, [1])


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, None, [1.0, 2.0]])
@pytest.mark.parametrize(
    ("domain", "argument"),
    [
        (Box, "chosen"),
        (Box, "rejected"),
        (Simplex, "ref_prob_chosen"),
        (Simplex, "ref_prob_rejected"),
    ],
)
def test_ends_and_references_that_are_not_positive_numbers_are_refused(domain, argument, value):
    wanted = f"Argument `{argument}` must be positive and finite, but is {value!r}."
    assert_refused(domain, wanted, **{argument: value})


def test_a_domain_says_in_a_few_words_which_states_it_holds():
    half = Simplex(0.5, 0.25)
    assert Quadrant().described == "positive components"
    assert Box(1.0, 2.5).described == "the box (0, 1] × (0, 2.5]"
    assert half.described.startswith("the simplex x1·p_chosen + x2·p_rejected ≤ 1")
    assert half.described.endswith("with p = (0.5, 0.25)")
    enclosed = Enclosure(WholeSpace(), [-np.inf, 0.0], [1.0, 2.0])
    assert enclosed.described == "all finite numbers, between [-inf, 0.0] and [1.0, 2.0]"
