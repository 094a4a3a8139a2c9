"""Stores that are filled block by block: whole at any time, and honest about damage."""

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from command import made_up
from grids import thinned

from flowlab import starts, store
from flowlab.store import BlockStore
from flowlab.store.blocks import Block

COUNT, LENGTH = 10, 4
BETAS = [0.1, 0.3]
POINTS = starts.uniform(COUNT, (0, 0), (1, 1), seed=0)


def runs(first: int, last: int, time: float) -> xarray.Dataset:
    """Made-up runs, each of a time of its own."""
    made = dataclasses.replace(
        made_up(POINTS[first:last]),
        time=time + np.arange(first, last),
        components=("x_chosen", "x_rejected"),
    )
    return made.to_xarray()


def times(beta: int, first: int = 0, last: int = COUNT) -> np.ndarray:
    return 100.0 * beta + np.arange(first, last)


@pytest.fixture
def made(tmp_path: Path) -> BlockStore:
    layout = store.layout_of(runs(0, 1, 0.0), {"beta": BETAS, "loss": ["dpo"]}, COUNT, LENGTH)
    return BlockStore.create(tmp_path / "s", layout, {"flowlab_description": '{"a": 1}'})


def fill(made: BlockStore, *blocks: tuple[int, int]) -> None:
    for beta, number in blocks:
        first, last = made.layout.part(number)
        made.write(Block((beta, 0), number), runs(first, last, 100.0 * beta), 0.5)


EVERY = [(beta, number) for beta in range(2) for number in range(3)]


def test_a_store_opens_while_it_is_filled_and_says_what_is_missing(made, tmp_path):
    fill(made, (0, 1), (1, 2))
    with store.read(tmp_path / "s") as found:
        assert found.sizes == {
            "beta": 2, "loss": 1, "start": COUNT, "component": 2, "level": 1, "block": 3
        }  # fmt: skip
        np.testing.assert_array_equal(found["beta"], BETAS)
        assert found["loss"].values.tolist() == ["dpo"]
        expected = np.full((2, COUNT), np.nan)
        expected[0, 4:8], expected[1, 8:] = times(0, 4, 8), times(1, 8)
        np.testing.assert_array_equal(found["time"][:, 0], expected)
        assert (found["outcome"].values[np.isnan(expected)[:, None]] == 0).all()
        assert store.description(found) == {"a": 1}
    assert made.missing() == [Block((b, 0), n) for b, n in [(0, 0), (0, 2), (1, 0), (1, 1)]]


def test_a_full_store_holds_what_was_written_whatever_the_order(made, tmp_path):
    fill(made, *reversed(EVERY))
    with store.read(tmp_path / "s") as found:
        np.testing.assert_array_equal(found["time"][:, 0], [times(0), times(1)])
        np.testing.assert_array_equal(found["starts"], POINTS)
        np.testing.assert_array_equal(found["x_rejected"], POINTS[:, 1])
        assert set(found.coords) == {"beta", "loss", "x_chosen", "x_rejected"}
        assert "reached" in found["outcome"].attrs["flag_meanings"]
    assert made.missing() == []
    assert list(made.damaged()) == [None] * 6


def test_xarray_opens_a_store_without_flowlab(made, tmp_path):
    fill(made, *EVERY)
    with xarray.open_zarr(tmp_path / "s", chunks=None) as found:
        np.testing.assert_array_equal(found["time"][1, 0], times(1))


def test_a_store_is_opened_again_with_its_layout(made, tmp_path):
    again = BlockStore.open(tmp_path / "s").layout
    wanted = made.layout
    assert (again.axes, again.count, again.length) == (wanted.axes, COUNT, LENGTH)
    assert again.variables.keys() == wanted.variables.keys()
    for name, variable in wanted.variables.items():
        assert dataclasses.replace(again.variables[name], attributes={}) == dataclasses.replace(
            variable, attributes={}
        )


def chunks(folder: Path) -> list[Path]:
    """The files of results; what a mark says of a block is no result."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json")
    return [
        path
        for path in sorted(files)
        if not path.relative_to(folder).parts[0].startswith("block_")
        and path.relative_to(folder).parts[0] not in ("beta", "loss")
    ]


@pytest.mark.parametrize("every", thinned([4, 1], {4}))
def test_a_flipped_byte_in_any_chunk_is_found(every, made, tmp_path):
    fill(made, *EVERY)
    files = chunks(tmp_path / "s")
    assert len(files) == 6 * 6 + 3 * 3  # six variables of each block, three of all cases
    for path in files[::every]:
        whole = path.read_bytes()
        full = path.name != "2" and path.parent.name != "2"  # the last block fills half a chunk
        for place in (0, len(whole) // 2, len(whole) - 1) if full else (0,):
            torn = bytearray(whole)
            torn[place] ^= 0x10
            path.write_bytes(torn)
            damage = [each for each in made.damaged() if each is not None]
            assert damage, f"byte {place} of {path}"
        path.write_bytes(whole)
    assert list(made.damaged()) == [None] * 6


def test_a_cut_or_missing_chunk_is_found(made, tmp_path):
    fill(made, *EVERY)
    path = next(path for path in chunks(tmp_path / "s") if "time" in path.parts)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert [d.block for d in made.damaged() if d is not None] == [Block((0, 0), 0)]
    path.unlink()
    assert [d.block for d in made.damaged() if d is not None] == [Block((0, 0), 0)]


def test_a_forgotten_block_is_missing(made):
    fill(made, *EVERY)
    made.forget(Block((1, 0), 2))
    assert made.missing() == [Block((1, 0), 2)]


def test_a_torn_mark_counts_as_none(made, tmp_path):
    fill(made, *EVERY)
    mark = tmp_path / "s" / "block_finished" / "c" / "1" / "0" / "2"
    mark.write_bytes(mark.read_bytes()[:3])
    assert made.missing() == [Block((1, 0), 2)]


@pytest.mark.parametrize("beside", ["made", "opened"])
def test_stores_in_two_threads_let_no_warning_of_zarr_through(beside, made, tmp_path, monkeypatch):
    waiting = threading.Event()

    def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that gives the other thread the time to begin, and then waits for its end."""

        def slow(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is other:
                waiting.set()
                time.sleep(0.3)
            else:
                other.join()
            return function(*args, **kwargs)

        return slow

    def another() -> None:
        if beside == "made":
            BlockStore.create(tmp_path / "b", made.layout, {})
        else:
            BlockStore.open(tmp_path / "s")

    other = threading.Thread(target=another)
    slow = "consolidate_metadata" if beside == "made" else "open_group"
    monkeypatch.setattr(zarr, slow, slowly(getattr(zarr, slow)))
    other.start()
    assert waiting.wait(60)
    BlockStore.create(tmp_path / "a", made.layout, {})
    other.join()
    assert made.layout == BlockStore.open(tmp_path / "a").layout


def test_targets_with_fewer_levels_leave_the_others_empty(tmp_path):
    two = runs(0, 3, 0.0)
    two = two.isel(level=[0, 0])
    layout = store.layout_of(two, {"target": ["a", "b"]}, 3, 3)
    made = BlockStore.create(tmp_path / "s", layout, {})
    made.write(Block((0,), 0), two, 0.1)
    made.write(Block((1,), 0), runs(0, 3, 0.0), 0.1)
    with store.read(tmp_path / "s") as found:
        assert np.isfinite(found["level_times"][0]).all()
        assert np.isfinite(found["level_times"][1, :, 0]).all()
        assert np.isnan(found["level_times"][1, :, 1]).all()


def test_runs_of_other_starts_than_those_of_the_block_are_refused(made):
    with pytest.raises(ValueError, match="must have the 4 starts of the block, but has 10"):
        made.write(Block((0, 0), 0), runs(0, COUNT, 0.0), 0.1)
    assert len(made.missing()) == 6


def test_what_was_opened_does_not_write_to_the_store_that_replaced_it(made, tmp_path):
    BlockStore.create(tmp_path / "other", made.layout, {})
    os.rename(tmp_path / "s", tmp_path / "before")
    with pytest.raises(OSError, match=r"/s has been replaced since it was opened, .*\.$"):
        fill(made, (0, 1))
    os.rename(tmp_path / "other", tmp_path / "s")
    with pytest.raises(OSError, match=r"/s has been replaced since it was opened"):
        fill(made, (0, 1))
    assert len(BlockStore.open(tmp_path / "s").missing()) == 6


def test_what_is_no_such_store_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^Argument `path` must name a store of flowlab"):
        BlockStore.open(tmp_path / "nothing")
    store.write(runs(0, 3, 0.0), tmp_path / "whole")
    with pytest.raises(ValueError, match=r"must name a store that is filled block by block"):
        BlockStore.open(tmp_path / "whole")
    with pytest.raises(FileExistsError, match=r"^Argument `path` must be free"):
        BlockStore.create(tmp_path / "whole", store.layout_of(runs(0, 3, 0.0), {}, 3, 3), {})


def test_a_store_in_an_object_store_is_one_like_any_other():
    address = "memory://flowlab-test"
    layout = store.layout_of(runs(0, 1, 0.0), {"beta": BETAS, "loss": ["dpo"]}, COUNT, LENGTH)
    made = BlockStore.create(address, layout, {})
    fill(made, *EVERY)
    assert BlockStore.open(address).missing() == []
    np.testing.assert_array_equal(store.read(address)["time"][1, 0], times(1))
