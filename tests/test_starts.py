"""Starts: relations that define each set, hand-computed cases, and every refusal."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from flowlab import logs, starts

LOWER, UPPER = (-1.0, 2.0, 0.0), (1.0, 5.0, 1e-3)


class Log(NamedTuple):
    points: np.ndarray


LOG = Path(__file__).parent / "data" / "dpo_beta0.1_distinct_sft30.json"

DRAWN = {
    "sobol": lambda count, seed, **kw: starts.sobol(count, LOWER, UPPER, seed=seed, **kw),
    "latin": lambda count, seed, **kw: starts.latin(count, LOWER, UPPER, seed=seed, **kw),
    "uniform": lambda count, seed, **kw: starts.uniform(count, LOWER, UPPER, seed=seed, **kw),
}
ON_A_BOX = {
    "grid": lambda lower, upper: starts.grid(2, lower, upper),
    "sobol": lambda lower, upper: starts.sobol(2, lower, upper, seed=0),
    "latin": lambda lower, upper: starts.latin(2, lower, upper, seed=0),
    "uniform": lambda lower, upper: starts.uniform(2, lower, upper, seed=0),
}
ANY_DTYPE = {
    "grid": lambda **kw: starts.grid(3, **kw),
    "sobol": lambda **kw: DRAWN["sobol"](4, 0, **kw),
    "latin": lambda **kw: DRAWN["latin"](4, 0, **kw),
    "uniform": lambda **kw: DRAWN["uniform"](4, 0, **kw),
    "ring": lambda **kw: starts.ring((0.0, 0.0), 1.0, 4, **kw),
    "from_log": lambda **kw: starts.from_log(Log(np.zeros((3, 2))), **kw),
    "from_array": lambda **kw: starts.from_array([[1, 2]], **kw),
}


def in_strata(points: np.ndarray) -> np.ndarray:
    """Index of the interval, of as many equal ones as there are points, that each lies in."""
    return np.floor((points - LOWER) / np.subtract(UPPER, LOWER) * len(points)).astype(int)


def test_importing_starts_loads_neither_scipy_nor_jax():
    program = "import sys, flowlab.starts; print([m for m in ('scipy', 'jax') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]", loaded.stderr


def test_a_grid_is_the_cell_centres_with_the_last_component_fastest():
    points = starts.grid((2, 3), (0.0, 10.0), (4.0, 16.0))
    assert points.tolist() == [[1, 11], [1, 13], [1, 15], [3, 11], [3, 13], [3, 15]]


def test_the_sides_of_a_grid_are_found_in_its_starts_and_nowhere_else():
    sides = starts.grid_sides(starts.grid((2, 3), (0.0, 10.0), (4.0, 16.0)))
    assert sides is not None
    first, last = sides
    np.testing.assert_array_equal(first, [1, 3])
    np.testing.assert_array_equal(last, [11, 13, 15])
    assert starts.grid_sides(starts.uniform(6, LOWER[:2], UPPER[:2], seed=0)) is None
    assert starts.grid_sides(starts.grid((2, 3))[:5]) is None
    assert starts.grid_sides(starts.grid((2, 2, 2), LOWER, UPPER)) is None


def test_a_reshaped_grid_is_indexed_by_component():
    x = [0.125, 0.375, 0.625, 0.875]
    points = starts.grid((4, 2)).reshape(4, 2, 2)
    np.testing.assert_array_equal(points[:, 1, 0], x)
    np.testing.assert_array_equal(points[3, :, 1], [0.25, 0.75])


@pytest.mark.parametrize("shape", [2, np.int64(2), [2, 2, 2]], ids=repr)
def test_an_int_shape_is_the_same_number_of_cells_in_each_component(shape):
    np.testing.assert_array_equal(
        starts.grid(shape, LOWER, UPPER), starts.grid((2, 2, 2), LOWER, UPPER)
    )


@pytest.mark.parametrize("shape", [0, -3, 2.0, True, "2", None, (2, 0), (2, 1.5)], ids=repr)
def test_a_shape_without_positive_ints_is_refused(shape):
    with pytest.raises(ValueError, match="Argument `shape` must be a positive int, but is"):
        starts.grid(shape)


def test_a_shape_of_another_dimension_than_the_box_is_refused():
    with pytest.raises(ValueError, match=r"`shape` must have one entry per .* \(2\), but has 3"):
        starts.grid((2, 2, 2))


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
@pytest.mark.parametrize("count", [1, 5, 64])
def test_drawn_sets_have_the_count_and_lie_in_the_box(draw, count):
    points = draw(count, 3)
    assert points.shape == (count, 3)
    assert np.all((points >= LOWER) & (points <= UPPER))


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_the_same_seed_gives_the_same_set_and_another_another(draw):
    np.testing.assert_array_equal(draw(20, 7), draw(20, 7))
    np.testing.assert_array_equal(draw(20, 7), draw(20, np.random.SeedSequence(7)))
    assert np.all(draw(20, 7) != draw(20, 8))


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_children_of_a_seed_sequence_give_different_sets(draw):
    first, second = np.random.SeedSequence(0).spawn(2)
    assert np.all(draw(8, first) != draw(8, second))


@pytest.mark.parametrize("name", ["sobol", "uniform"])
def test_a_smaller_set_is_the_beginning_of_a_larger(name):
    np.testing.assert_array_equal(DRAWN[name](37, 1), DRAWN[name](100, 1)[:37])


PARTS = {
    **{name: functools.partial(draw, 100, 1) for name, draw in DRAWN.items()},
    "grid": lambda **kw: starts.grid((4, 5, 5), LOWER, UPPER, **kw),
}


@pytest.mark.parametrize("draw", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("part", [(0, 1), (0, 100), (3, 7), (33, 97), (99, 100)])
def test_a_part_of_a_set_has_the_bits_of_the_whole(draw, part):
    np.testing.assert_array_equal(draw(part=part), draw()[slice(*part)])


@pytest.mark.parametrize("draw", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("part", [(0, 101), (5, 5), (-1, 3), (0.5, 3), (1, 2, 3), 4])
def test_a_part_that_is_none_is_refused(draw, part):
    with pytest.raises(ValueError, match=r"^Argument `part` must be \(first, last\)"):
        draw(part=part)


@pytest.mark.exhaustive
def test_a_part_far_from_the_beginning_comes_without_what_lies_before_it():
    far = (10**9, 10**9 + 3)
    for draw in (DRAWN["sobol"], DRAWN["uniform"]):
        assert draw(2 * 10**9, 1, part=far).shape == (3, 3)


@given(exponent=st.integers(0, 9), seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_power_of_two_of_sobol_points_has_one_in_each_interval(exponent, seed):
    strata = in_strata(DRAWN["sobol"](2**exponent, seed))
    assert np.all(np.sort(strata, axis=0) == np.arange(2**exponent)[:, None])


@given(count=st.integers(1, 300), seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_latin_hypercube_has_one_start_in_each_interval(count, seed):
    strata = in_strata(DRAWN["latin"](count, seed))
    assert np.all(np.sort(strata, axis=0) == np.arange(count)[:, None])


def test_uniform_starts_have_the_moments_of_the_uniform_distribution():
    unit = starts.uniform(40_000, (0.0, 0.0), (1.0, 1.0), seed=5)
    five_sigma = 5 / np.sqrt(12 * 40_000)
    assert np.all(np.abs(unit.mean(axis=0) - 0.5) < five_sigma)
    assert np.all(np.abs(unit.var(axis=0) - 1 / 12) < five_sigma)
    assert abs(np.corrcoef(unit.T)[0, 1]) < 5 / np.sqrt(40_000)


def test_uniform_starts_are_those_of_philox_with_the_seed():
    expected = np.random.Generator(np.random.Philox(11)).random((6, 3))
    np.testing.assert_array_equal(starts.uniform(6, (0, 0, 0), (1, 1, 1), seed=11), expected)


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
@pytest.mark.parametrize("count", [0, -1, 2.0, True, "4", None], ids=repr)
def test_a_count_that_is_no_positive_int_is_refused(draw, count):
    with pytest.raises(ValueError, match="Argument `count` must be a positive int, but is"):
        draw(count, 0)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize(
    "seed",
    [None, -1, 0.5, True, "0", np.random.default_rng(0)],
    ids=["None", "negative", "fraction", "bool", "text", "generator"],
)
def test_a_seed_that_does_not_fix_the_set_is_refused(name, seed):
    with pytest.raises(ValueError, match="Argument `seed` must be a non-negative int or"):
        DRAWN[name](4, seed)


@pytest.mark.parametrize("make", ON_A_BOX.values(), ids=ON_A_BOX)
@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (0.0, 1.0, r"`lower` must have shape \(d,\), but has shape \(\)"),
        ([], [], r"`lower` must have shape \(d,\), but has shape \(0,\)"),
        ((0.0, 0.0), (1.0,), r"`upper` must have shape \(2,\), but has shape \(1,\)"),
        ((0.0, 1.0), (1.0, 1.0), r"`upper` must be above `lower` in every component, but is"),
        ((0.0, np.nan), (1.0, 1.0), r"`lower` must be finite, but is"),
        ((0.0, 0.0), (1.0, np.inf), r"`upper` must be finite, but is"),
        (("a", "b"), (1.0, 1.0), r"`lower` must hold real numbers, but is \('a', 'b'\)"),
        ((0.0, 0.0), (1.0, [1.0]), r"`upper` must hold real numbers, but is \(1.0, \[1.0\]\)"),
    ],
)
def test_a_box_without_extent_is_refused(make, lower, upper, message):
    with pytest.raises(ValueError, match=f"Argument {message}"):
        make(lower, upper)


def test_four_starts_of_a_ring_are_the_points_of_the_compass():
    points = starts.ring((1.0, 2.0), 0.5, 4)
    np.testing.assert_allclose(points, [[1.5, 2], [1, 2.5], [0.5, 2], [1, 1.5]], atol=1e-15)


def test_starts_of_a_ring_lie_at_its_radius_and_at_equal_distances():
    points = starts.ring((3.0, -4.0), 1e-3, 7)
    assert points.shape == (7, 2)
    np.testing.assert_allclose(np.hypot(*(points - (3.0, -4.0)).T), 1e-3, rtol=1e-11)
    chords = np.hypot(*(points - np.roll(points, 1, axis=0)).T)
    np.testing.assert_allclose(chords, 2e-3 * np.sin(np.pi / 7), rtol=1e-11)


@pytest.mark.parametrize(
    ("centre", "radius", "count", "message"),
    [
        ((0.0, 0.0, 0.0), 1.0, 4, r"`centre` must have shape \(2,\), but has shape \(3,\)"),
        ((0.0, np.nan), 1.0, 4, r"`centre` must be finite, but is"),
        ((0.0, 0.0), 0.0, 4, r"`radius` must be positive and finite, but is 0.0"),
        ((0.0, 0.0), -1, 4, r"`radius` must be positive and finite, but is -1"),
        ((0.0, 0.0), [1.0], 4, r"`radius` must be positive and finite, but is \[1.0\]"),
        ((0.0, 0.0), np.inf, 4, r"`radius` must be positive and finite, but is inf"),
        ((0.0, 0.0), 1.0, 0, r"`count` must be a positive int, but is 0"),
    ],
)
def test_a_ring_that_is_none_is_refused(centre, radius, count, message):
    with pytest.raises(ValueError, match=f"Argument {message}"):
        starts.ring(centre, radius, count)


def test_starts_from_a_log_are_its_points_or_their_exponentials():
    log = logs.read(LOG, beta=0.1)
    np.testing.assert_array_equal(starts.from_log(log), log.points)
    ratio = starts.from_log(log, coordinates="ratio")
    np.testing.assert_array_equal(ratio[0], [1.0, 1.0])
    np.testing.assert_allclose(np.log(ratio), log.points, rtol=1e-14, atol=1e-15)


def test_starts_from_a_log_do_not_share_memory_with_it():
    log = Log(np.zeros((2, 2)))
    starts.from_log(log)[0, 0] = 5.0
    assert log.points[0, 0] == 0.0


@pytest.mark.parametrize(("dtype", "u"), [(np.float64, 800.0), (np.float32, 110.0)])
def test_ratios_beyond_the_range_of_the_dtype_are_zero_or_infinite(dtype, u):
    log = Log(np.array([[u, -u]]))
    points = starts.from_log(log, coordinates="ratio", dtype=dtype)
    np.testing.assert_array_equal(points, [[np.inf, 0.0]])


@pytest.mark.parametrize("log", ["trainer_state.json"])
def test_something_else_than_a_log_is_refused(log):
    with pytest.raises(ValueError, match="Argument `log` must be a training log, but is of type s"):
        starts.from_log(log)


def test_a_log_with_points_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`points` of shape \(n, 2\), but they have \(4, 3\)"):
        starts.from_log(Log(np.zeros((4, 3))))


@pytest.mark.parametrize("coordinates", ["probability"])
def test_unknown_coordinates_are_refused(coordinates):
    log = Log(np.zeros((1, 2)))
    with pytest.raises(ValueError, match='must be "log_ratio" or "ratio", but is \'probability\''):
        starts.from_log(log, coordinates=coordinates)


@pytest.mark.parametrize(
    "wrap",
    [
        np.array,
        np.ndarray.tolist,
        jnp.asarray,
        pandas.DataFrame,
        xarray.DataArray,
        lambda values: np.asfortranarray(values.astype(">f8")),
    ],
    ids=["numpy", "list", "jax", "pandas", "xarray", "big-endian Fortran"],
)
def test_starts_are_taken_from_any_array_like(wrap):
    values = np.array([[0.5, 0.25], [1.0, 2.0], [3.0, 4.0]])
    points = starts.from_array(wrap(values))
    assert type(points) is np.ndarray
    assert points.dtype.isnative and points.flags.c_contiguous and points.flags.writeable
    np.testing.assert_array_equal(points, values)


def test_starts_from_an_array_do_not_share_memory_with_it():
    array = np.zeros((2, 2))
    starts.from_array(array)[0, 0] = 5.0
    assert array[0, 0] == 0.0


@pytest.mark.parametrize(
    ("given_dtype", "kept"),
    [("f8", "f8"), ("f4", "f4"), (">f4", "f4"), ("f2", "f8"), ("i8", "f8"), ("u1", "f8")],
)
def test_the_dtype_of_an_array_is_kept_where_work_can_be_done_in_it(given_dtype, kept):
    points = starts.from_array(np.ones((2, 3), given_dtype))
    assert points.dtype == np.dtype(kept) and points.dtype.isnative


def test_rows_that_are_not_finite_pass_for_the_sweep_to_report():
    array = [[np.nan, 1.0], [np.inf, 1.0], [0.5, 0.5]]
    np.testing.assert_array_equal(starts.from_array(array), array)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 2, 2)], ids=repr)
def test_an_array_that_is_not_one_start_per_row_is_refused(shape):
    with pytest.raises(ValueError) as caught:
        starts.from_array(np.zeros(shape))
    assert f"Argument `array` must have shape (n, d), but has shape {shape};" in str(caught.value)


@pytest.mark.parametrize(
    "array",
    [
        [["a", "b"]],
        [[1j, 2.0]],
        [[True, False]],
        [[None, 1.0]],
        np.array([["2020-01-01"]], "M8[D]"),
    ],
    ids=["text", "complex", "bool", "object", "date"],
)
def test_an_array_that_holds_no_real_numbers_is_refused(array):
    with pytest.raises(ValueError, match="Argument `array` must hold real numbers, but"):
        starts.from_array(array)


def test_a_ragged_list_is_refused():
    with pytest.raises(ValueError, match="Argument `array` must hold real numbers, but"):
        starts.from_array([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize("make", ANY_DTYPE.values(), ids=ANY_DTYPE)
def test_starts_are_float64_unless_dtype_says_float32(make):
    double, single = make(), make(dtype=np.float32)
    assert (double.dtype, single.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(single, double, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(ANY_DTYPE.keys() - {"from_array"}))
def test_a_dtype_of_none_is_refused_where_there_is_none_to_keep(name):
    with pytest.raises(ValueError, match="must be float64 or float32, but is None"):
        ANY_DTYPE[name](dtype=None)


@pytest.mark.parametrize("make", ANY_DTYPE.values(), ids=ANY_DTYPE)
@pytest.mark.parametrize("dtype", [int, np.float16, ">f2", "no dtype"], ids=str)
def test_another_dtype_is_refused(make, dtype):
    with pytest.raises(ValueError, match="Argument `dtype` must be float64 or float32, but is"):
        make(dtype=dtype)
