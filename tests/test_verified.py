"""What is read from a store is verified: damage is told, and never taken for data."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray
from command import flowlab_command, made_up

from flowlab import plans, starts, store
from flowlab.store import BlockStore
from flowlab.store.blocks import Block

COUNT, LENGTH = 10, 4
POINTS = starts.uniform(COUNT, (0, 0), (1, 1), seed=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full store of two cases, of three blocks each."""
    path = tmp_path_factory.mktemp("whole") / "s"
    layout = store.layout_of(made_up(POINTS[:1]).to_xarray(), {"beta": [0.1, 0.3]}, COUNT, LENGTH)
    made = BlockStore.create(path, layout, {})
    for block in layout.blocks():
        first, last = layout.part(block.number)
        made.write(block, made_up(POINTS[first:last], 1.0 + block.case[0]).to_xarray(), 0.5)
    return path


def lost(chunk: Path) -> None:
    chunk.unlink()


def torn(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[:5])


def flipped(chunk: Path) -> None:
    content = bytearray(chunk.read_bytes())
    content[3] ^= 0x10
    chunk.write_bytes(content)


DAMAGES = pytest.mark.parametrize("damage", [lost, torn, flipped])
Damage = Callable[[Path], None]


@DAMAGES
def test_a_damaged_block_is_named_when_it_is_read_and_the_others_are_read(damage, whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "s")
    damage(path / "time" / "c" / "1" / "1")
    found = store.read(path)
    told = (
        rf"1 of 6 blocks of {path} is damaged \(block 1 of case \(1,\): .*`flowlab resume {path}`"
    )
    for part in (dict(beta=1), dict(start=5), dict(start=[0, 5]), dict(start=slice(2, 6))):
        with pytest.raises(OSError, match=told):
            found["time"].isel(part).load()
    with pytest.raises(OSError, match=told):  # its outcomes are whole, but are those of that block?
        store.counts(found["outcome"])
    with pytest.raises(OSError, match=told):
        store.quantiles(found["time"], [0.5])
    np.testing.assert_array_equal(found["time"][0], np.ones(COUNT))
    np.testing.assert_array_equal(found["time"][1, :4], np.full(4, 2.0))
    np.testing.assert_array_equal(found["starts"], POINTS)


@DAMAGES
def test_the_status_does_not_count_a_damaged_block_as_done(damage, whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "s")
    damage(path / "starts" / "c" / "2" / "0")
    found = plans.status(path)
    assert (found.done, found.blocks, found.runs_done) == (5, 6, 2 * COUNT - 2)
    assert [each.block for each in found.damaged] == [Block((0,), 2)]
    with pytest.raises(OSError, match="block 2 of case"):
        store.read(path)["starts"].load()


def test_the_command_says_which_blocks_are_damaged(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "s")
    (path / "end" / "c" / "0" / "0" / "0").unlink()
    said = f"1 of 6 blocks of {path} is damaged (block 0 of case (0,): its checksum differs)"
    assert said in flowlab_command("status", str(path)).stdout
    shown = flowlab_command("show", str(path))
    assert shown.exit_code == 1
    assert said in shown.stderr


@DAMAGES
def test_a_store_that_was_written_as_a_whole_is_verified_too(damage, tmp_path):
    store.write(made_up(POINTS), tmp_path / "s")
    [chunk] = (path for path in (tmp_path / "s" / "time" / "c").rglob("*") if path.is_file())
    damage(chunk)
    found = store.read(tmp_path / "s")
    with pytest.raises((OSError, ValueError, RuntimeError)) as error:
        found["time"].load()
    assert damage is not lost or "`time` in" in str(error.value)
    np.testing.assert_array_equal(found["end"], POINTS)


def test_what_is_read_again_from_a_part_of_a_store_is_not_taken_for_damage(whole, tmp_path):
    part = store.read(whole).isel(start=slice(1, 3))
    store.write(part, tmp_path / "part")
    found = store.read(tmp_path / "part")
    np.testing.assert_array_equal(found["time"], [[1.0, 1.0], [2.0, 2.0]])
    with pytest.raises(ValueError, match="filled block by block"):
        BlockStore.open(tmp_path / "part")


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"zarr_format": 3}'])
def test_metadata_that_cannot_be_read_is_told_in_a_sentence(content, whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "s")
    (path / "zarr.json").write_text(content)
    for attempt in (store.read, plans.status, plans.read_recipe):
        with pytest.raises(ValueError, match=r"^Argument `path` must name a store .*\.$"):
            attempt(path)


def test_a_dataset_stays_what_xarray_reads(whole):
    found, plain = store.read(whole), xarray.open_zarr(whole, chunks=None)
    assert found.identical(plain)
    assert {name: found[name].dtype for name in found} == {n: plain[n].dtype for n in plain}
