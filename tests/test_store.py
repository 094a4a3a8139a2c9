"""Stores: what is written comes back, and nothing that is no store is ever touched."""

import json
import os
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import xarray

import flowlab
from flowlab import DPO, RatioPlane, preference_flow, store, sweep, until
from flowlab.ensemble import Runs

DESCRIPTION = {"loss": "dpo", "beta": [0.1, 0.3], "clock": None, "starts": {"count": 3}}


@pytest.fixture(scope="module")
def runs() -> Runs:
    starts = np.array([[0.1, 0.9], [0.5, 0.5], [-1.0, 0.5]])
    flow = preference_flow(DPO(0.3), RatioPlane())
    return sweep(flow, starts, until=until.loss_below(0.1), over={"beta": [0.1, 0.3]})


@pytest.fixture
def small() -> xarray.Dataset:
    return xarray.Dataset({"time": ("start", np.array([1.0, np.nan, np.inf]))})


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_runs_come_back_as_the_dataset_they_are(runs, tmp_path):
    store.write(runs, tmp_path / "sweep", description=DESCRIPTION)
    found, expected = store.read(tmp_path / "sweep"), runs.to_xarray()
    assert found.assign_attrs(expected.attrs).equals(expected)
    assert found["outcome"].attrs["flag_meanings"] == expected["outcome"].attrs["flag_meanings"]
    assert np.isnan(found["time"].values).any()
    assert {name: found[name].dtype for name in found} == {
        name: expected[name].dtype for name in expected
    }


def test_xarray_opens_a_store_of_zarr_version_3_without_a_warning(small, tmp_path):
    store.write(small, tmp_path / "sweep")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = xarray.open_zarr(tmp_path / "sweep")
    np.testing.assert_array_equal(opened["time"].values, small["time"].values)
    assert json.loads((tmp_path / "sweep" / "zarr.json").read_text())["zarr_format"] == 3


def test_a_store_tells_the_versions_and_what_it_holds(small, tmp_path):
    store.write(small, tmp_path / "sweep", description=DESCRIPTION)
    found = store.read(tmp_path / "sweep")
    assert found.attrs["flowlab_version"] == flowlab.__version__
    for name in ("jax", "diffrax"):
        assert found.attrs[f"{name}_version"] == metadata.version(name)
    assert store.description(found) == DESCRIPTION


def test_a_dataset_without_a_description_has_an_empty_one(small):
    assert store.description(small) == {}


def test_missing_folders_on_the_way_are_made(small, tmp_path):
    store.write(small, tmp_path / "a" / "b" / "sweep")
    assert store.read(tmp_path / "a" / "b" / "sweep").equals(small)


def test_a_store_stays_unless_it_is_to_be_overwritten(small, tmp_path):
    store.write(small, tmp_path / "sweep")
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match=r"Argument `path` must be free, .* or `overwrite=True` to replace it\.$"
    ):
        store.write(small + 1, tmp_path / "sweep")
    assert contents(tmp_path) == before
    store.write(small + 1, tmp_path / "sweep", overwrite=True)
    assert store.read(tmp_path / "sweep").equals(small + 1)
    assert os.listdir(tmp_path) == ["sweep"]


def test_what_was_read_from_a_store_can_be_written_over_it_with_its_description(small, tmp_path):
    store.write(small, tmp_path / "sweep", description=DESCRIPTION)
    found = store.read(tmp_path / "sweep")
    store.write(found, tmp_path / "sweep", overwrite=True)
    assert store.read(tmp_path / "sweep").equals(small)
    assert store.description(store.read(tmp_path / "sweep")) == DESCRIPTION


def test_a_link_to_a_store_stays_a_link_when_the_store_is_overwritten(small, tmp_path):
    store.write(small, tmp_path / "sweep")
    (tmp_path / "link").symlink_to(tmp_path / "sweep")
    store.write(small + 1, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert store.read(tmp_path / "sweep").equals(small + 1)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def make_foreign_group(path: Path) -> None:
    xarray.Dataset({"a": ("x", [1.0])}).to_zarr(path, zarr_format=3, consolidated=False)


def make_broken_group(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{")


def make_file(path: Path) -> None:
    path.write_text("not a folder")


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


FOLDERS = [make_folder, make_foreign_group, make_broken_group]
OTHERS = [*FOLDERS, make_file, make_dangling_link]


@pytest.mark.parametrize("make", OTHERS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_store_is_never_replaced(make, overwrite, small, tmp_path):
    make(tmp_path / "taken")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"^Argument `path` must be free, but .* is not a store"):
        store.write(small, tmp_path / "taken", overwrite=overwrite)
    assert contents(tmp_path) == before
    assert os.path.lexists(tmp_path / "taken")


@pytest.mark.parametrize("make", FOLDERS)
def test_a_folder_that_is_no_store_is_not_read(make, tmp_path):
    make(tmp_path / "folder")
    told = r"^Argument `path` must .*( is another folder\.| is damaged \(.*make it again\.)$"
    with pytest.raises(ValueError, match=told):
        store.read(tmp_path / "folder")


def test_neither_nothing_nor_a_file_is_read(tmp_path):
    make_file(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match=r"^Argument `path` must .* is a file\.$"):
        store.read(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"^Argument `path` must .* does not exist\.$"):
        store.read(tmp_path / "nothing")


def test_a_file_on_the_way_is_refused(small, tmp_path):
    make_file(tmp_path / "file")
    with pytest.raises(
        ValueError, match=r"^Argument `path` must lie in a folder, but .* is a file"
    ):
        store.write(small, tmp_path / "file" / "deep" / "sweep")


def test_a_write_that_fails_leaves_nothing(small, tmp_path):
    unwritable = small.assign_attrs(thing=object())
    with pytest.raises(TypeError):
        store.write(unwritable, tmp_path / "sweep")
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_the_store_that_was_there(small, tmp_path):
    store.write(small, tmp_path / "sweep")
    before = contents(tmp_path)
    with pytest.raises(TypeError):
        store.write(small.assign_attrs(thing=object()), tmp_path / "sweep", overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_store_that_was_there(failing, small, tmp_path, monkeypatch):
    store.write(small, tmp_path / "sweep")
    before, rename, calls = contents(tmp_path), os.rename, []

    def fails_once(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise PermissionError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(PermissionError):
        store.write(small + 1, tmp_path / "sweep", overwrite=True)
    assert contents(tmp_path) == before


def test_other_data_than_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^Argument `runs` must be Runs or a Dataset, .* dict\.$"):
        store.write({"time": 1}, tmp_path / "sweep")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [object(), float("nan"), np.float32(1)], ids=["object", "nan", "f4"]
)
def test_a_description_that_json_cannot_hold_is_refused(value, small, tmp_path):
    with pytest.raises(ValueError, match=r"^Argument `description` must consist of dicts"):
        store.write(small, tmp_path / "sweep", description={"value": value})
    assert os.listdir(tmp_path) == []
