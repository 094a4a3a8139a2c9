"""What is read off stores block by block is what NumPy and SciPy say of the whole."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import xarray

from flowlab import store
from flowlab.store import reductions

Q = (0.0, 0.05, 0.25, 0.5, 0.77, 0.95, 1.0)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces, so that what is put together from them is tested."""
    monkeypatch.setattr(reductions, "_PIECE", 37)


def sets_of_numbers() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    normal = random.normal(size=1000)
    holed = np.where(random.random(501) < 0.3, np.nan, random.exponential(size=501))
    return {
        "of both signs": normal,
        "over many decades": 10.0 ** random.uniform(-300, 300, 777),
        "equal": np.full(50, 0.1),
        "with holes": holed,
        "with infinities": np.r_[normal[:100], np.inf, -np.inf],
        "in 32 bits": normal[:333].astype(np.float32),
        "zeros of both signs": np.array([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324]),
        "one": np.array([3.0]),
        "whole": random.integers(-5, 5, 200),
    }


@pytest.mark.parametrize("name", sets_of_numbers())
def test_quantiles_are_those_of_numpy(name):
    numbers = sets_of_numbers()[name]
    known = numbers[np.isfinite(numbers)].astype(np.float64)
    found, number = store.quantiles(xarray.DataArray(numbers, dims="start"), Q)
    assert number == len(known)
    np.testing.assert_allclose(found, np.quantile(known, Q), rtol=1e-15, atol=0)


def test_quantiles_of_several_axes_are_those_of_all_values():
    numbers = np.random.default_rng(1).normal(size=(3, 211, 2))
    found, number = store.quantiles(xarray.DataArray(numbers, dims=("beta", "start", "x")), Q)
    assert number == numbers.size
    np.testing.assert_allclose(found, np.quantile(numbers, Q), rtol=1e-15)


def test_there_is_no_quantile_of_nothing():
    found, number = store.quantiles(xarray.DataArray([np.nan, np.inf], dims="start"), [0.5])
    assert number == 0
    assert np.isnan(found).all()


@pytest.mark.parametrize("q", [[1.5], [-0.1], [np.nan], 0.5])
def test_a_quantile_outside_of_zero_to_one_is_refused(q):
    with pytest.raises(ValueError, match=r"^Argument `q` must hold numbers between 0 and 1"):
        store.quantiles(xarray.DataArray([1.0], dims="start"), q)


def test_counts_are_those_of_all_pieces():
    codes = np.random.default_rng(2).integers(1, 6, 500)
    expected = dict(zip(*(x.tolist() for x in np.unique(codes, return_counts=True)), strict=True))
    assert store.counts(xarray.DataArray(codes, dims="start")) == expected


def test_a_histogram_is_that_of_numpy():
    numbers = np.r_[np.random.default_rng(3).normal(size=400), np.nan, np.inf]
    edges = [-1.0, -0.2, 0.0, 2.0]
    found = store.histogram(xarray.DataArray(numbers, dims="start"), edges)
    np.testing.assert_array_equal(found, np.histogram(numbers[:400], edges)[0])


def test_means_of_cells_are_those_of_scipy():
    random = np.random.default_rng(4)
    x, y, values = random.random((3, 300))
    values[random.random(300) < 0.2] = np.nan
    runs = xarray.Dataset({"time": ("start", values)}, {"u": ("start", x), "v": ("start", y)})
    edges = (np.linspace(0, 1, 4), np.linspace(0, 0.9, 6))
    means, numbers = store.cell_means(
        runs, "time", x="u", y="v", x_edges=edges[0], y_edges=edges[1]
    )
    known = np.isfinite(values)
    points = (x[known], y[known], values[known])
    bins: Any = edges
    expected = scipy.stats.binned_statistic_2d(*points, "mean", bins)
    many = scipy.stats.binned_statistic_2d(*points, "count", bins)
    np.testing.assert_allclose(means, expected.statistic, rtol=1e-14)
    np.testing.assert_array_equal(numbers, many.statistic)


def test_a_map_of_several_cases_at_once_is_refused():
    runs = xarray.Dataset(
        {"time": (("beta", "start"), np.zeros((2, 3)))},
        {"u": ("start", np.zeros(3)), "v": ("start", np.zeros(3))},
    )
    with pytest.raises(ValueError, match="choose a case first"):
        store.cell_means(runs, "time", x="u", y="v", x_edges=[0, 1], y_edges=[0, 1])


@pytest.mark.parametrize("edges", [[1.0], [1.0, 1.0], [2.0, 1.0], [[0.0, 1.0]]])
def test_edges_that_do_not_increase_are_refused(edges):
    with pytest.raises(ValueError, match=r"^Argument `edges` must hold at least two increasing"):
        store.histogram(xarray.DataArray([1.0], dims="start"), edges)
