"""Stores that grow without solving again what they hold, and what they are known by."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from grids import thinned

import flowlab as fl
from flowlab import losses, plans, policies, store, until
from flowlab.plans import identity, matching, running
from flowlab.plans.description import described
from flowlab.store import BlockStore
from flowlab.store.blocks import Block

BLOCK = 8
RESULTS = ("outcome", "time", "end_time", "end", "level_times", "steps", "starts")
SCALE = 1.0


def made(count: int = 16, **changed: Any) -> plans.Plan:
    arguments: dict[str, Any] = dict(
        until=until.loss_below(0.1),
        loss=losses.DPO(0.1),
        policy=policies.RatioPlane(),
        over={"beta": [0.1, 0.3]},
        block=BLOCK,
    )
    drawn = plans.DrawnStarts("sobol", count, (0.05, 0.05), (1.0, 1.0), seed=3)
    arguments |= changed
    return plans.Plan(arguments.pop("starts", drawn), **arguments)


def run(plan: plans.Plan, path: Path) -> tuple[xarray.Dataset, int]:
    """The store of a plan, and how many blocks were solved for it."""
    solved: list[Any] = []
    solve = plan.solve
    plan.solve = lambda *a, **k: (solved.append(a), solve(*a, **k))[1]  # type: ignore[method-assign]
    return plans.run(plan, path, progress=False), len(solved)


def assert_same_bits(found: xarray.Dataset, wanted: xarray.Dataset) -> None:
    assert dict(found.sizes) == dict(wanted.sizes)
    for name in [*RESULTS, *wanted.indexes]:
        assert found[name].dims == wanted[name].dims
        assert found[name].values.tobytes() == wanted[name].values.tobytes(), name
    np.testing.assert_array_equal(found["block_checksum"], wanted["block_checksum"])
    assert found.attrs["flowlab_plan"] == wanted.attrs["flowlab_plan"]


TWO = {"dpo": losses.DPO(0.1), "hinge": losses.Hinge(0.1)}

GROWTHS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "more starts": ({"count": 16}, {"count": 24}, 2),
    "one more value of beta": ({}, {"over": {"beta": [0.1, 0.2, 0.3]}}, 2),
    "one more loss": ({"loss": {"dpo": TWO["dpo"]}}, {"loss": dict(reversed(TWO.items()))}, 4),
    "a first axis, and more starts": (
        {"over": None, "loss": losses.DPO(0.3)}, {"count": 24}, 4
    ),
    "a last block that is not full": ({"count": 11, "block": 6}, {"count": 16, "block": 6}, 4),
}  # fmt: skip


@pytest.mark.parametrize("way", thinned(GROWTHS, {"more starts"}))
def test_a_store_that_grows_has_the_bits_of_one_made_at_once(way, tmp_path):
    small, large, lacking = GROWTHS[way]
    run(made(**small), tmp_path / "s")
    found, solved = run(made(**large), tmp_path / "s")
    assert solved == lacking
    wanted, _ = run(made(**large), tmp_path / "at_once")
    assert_same_bits(found, wanted)
    assert run(made(**large), tmp_path / "s")[1] == 0
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_is_damaged_in_a_store_that_grows_is_solved_again(tmp_path):
    run(made(), tmp_path / "s")
    (tmp_path / "s" / "time" / "c" / "1" / "0").unlink()
    found, solved = run(made(24), tmp_path / "s")
    assert solved == 2 + 1
    assert np.isfinite(found["time"].values).all()


def test_a_kill_while_a_store_is_replaced_costs_nothing(tmp_path, monkeypatch):
    one, beside = tmp_path / "s", tmp_path / ".s.zarr.0123456789abcdef0123456789abcdef.replaced"
    run(made(8), one)
    shutil.copytree(one, beside)  # of another store, in whose name this one's begins
    rename, calls = os.rename, []

    def killed(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > 1:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "rename", killed)
        run(made(16), one)
    (left,) = set(tmp_path.glob(".s.*.replaced")) - {beside}
    assert not one.exists()
    assert plans.read_recipe(one) is None and plans.status(one).done == 2
    one.rename(left)
    half = left.with_suffix(".partial")
    half.mkdir()
    found, solved = run(made(16), one)
    assert (solved, np.isfinite(found["block_finished"].values).all()) == (2, True)
    assert beside.is_dir() and not left.exists() and not half.exists()
    shutil.copytree(one, left)  # killed after the swap: what stands in place stays
    assert run(made(16), one)[1] == 0 and not left.exists()


def test_a_worker_that_is_late_does_not_write_to_the_store_of_another_plan(tmp_path):
    small = made(8, over={"beta": [0.1]})
    run(small, tmp_path / "s")
    begun = matching.held_by(BlockStore.open(tmp_path / "s"))
    block = Block((0,), 0)
    assert running._task(small, tmp_path / "s", begun, block, (0, 8)) == block
    with run(made(8, over={"beta": [0.3, 0.1]}), tmp_path / "s")[0] as before:
        wanted = before["time"].load()
    with pytest.raises(OSError, match=r"holds another plan since its block 0 was begun"):
        running._task(small, tmp_path / "s", begun, block, (0, 8))
    np.testing.assert_array_equal(store.read(tmp_path / "s")["time"], wanted)


def test_a_store_that_cannot_grow_leaves_nothing_beside_it(tmp_path, monkeypatch):
    run(made(8), tmp_path / "s")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(BlockStore, "copy", full_disk)
        run(made(16), tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert run(made(8), tmp_path / "s")[1] == 0


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", ["grid", "latin"])
def test_a_store_does_not_grow_by_starts_that_are_others(kind, tmp_path):
    def drawn(count: int) -> plans.DrawnStarts:
        size = (4, count // 4) if kind == "grid" else count
        return plans.DrawnStarts(kind, size, (0.1, 0.1), (1.0, 1.0))

    run(made(starts=drawn(16)), tmp_path / "s")
    with pytest.raises(ValueError, match=r"holds another plan: `starts.size` is .*16|\[4, 4\]"):
        run(made(starts=drawn(24)), tmp_path / "s")


def test_one_start_among_many_that_is_another_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_SLICES", 2)
    monkeypatch.setattr(identity, "_SLICE", 2)  # where there are 65,536, made small
    points = made().starts.part(0, 16)
    run(made(starts=points), tmp_path / "s")
    moved = points.copy()
    moved[11] = 0.5
    with pytest.raises(ValueError, match=r"holds another plan: `starts.points"):
        run(made(starts=moved), tmp_path / "s")
    assert run(made(starts=points), tmp_path / "s")[1] == 0


def test_a_store_does_not_grow_by_another_tolerance(tmp_path):
    run(made(), tmp_path / "s")
    with pytest.raises(ValueError, match=r"`rtol` is missing in the store and 1e-08 here"):
        run(made(24, rtol=1e-8), tmp_path / "s")


def bowl(y: Any) -> Any:
    return 0.5 * SCALE * jnp.sum(y**2)


def of_a_function() -> plans.Plan:
    return made(loss=None, policy=None, over=None, flow=fl.Flow(bowl), until=until.time(0.5))


def changed_identity(path: Path, **changes: Any) -> None:
    """Change what a store says that it computes."""
    found = BlockStore.open(path)
    told = json.loads(str(found.attributes["flowlab_identity"]))
    found.update({"flowlab_identity": json.dumps({**told, **changes})})


def test_a_store_whose_function_has_changed_since_is_refused(tmp_path, monkeypatch):
    run(of_a_function(), tmp_path / "s")
    assert run(of_a_function(), tmp_path / "s")[1] == 0
    monkeypatch.setattr("test_growth.SCALE", 2.0)
    with pytest.raises(ValueError, match="a function computes something else here than in the"):
        run(of_a_function(), tmp_path / "s")


def test_where_jax_writes_other_operations_values_are_compared(tmp_path):
    run(of_a_function(), tmp_path / "s")
    told = identity.identity_of(of_a_function())
    (description, _), values = told.cases[0], next(iter(told.values.values()))
    other = {"cases": [[description, "other operations"]]}
    changed_identity(tmp_path / "s", **other, values={"other operations": values})
    with pytest.raises(ValueError, match="computes something else"):
        run(of_a_function(), tmp_path / "s")
    BlockStore.open(tmp_path / "s").update({"jax_version": "0.0.1"})
    with pytest.raises(ValueError, match="`jax_version` is '0.0.1' in the store"):
        run(of_a_function(), tmp_path / "s")
    plans.run(of_a_function(), tmp_path / "s", progress=False, force=True)
    apart = [2 * value for value in values]  # type: ignore[operator]
    changed_identity(tmp_path / "s", **other, values={"other operations": apart})
    with pytest.raises(ValueError, match="computes something else"):
        plans.run(of_a_function(), tmp_path / "s", progress=False, force=True)


def test_what_has_the_same_operations_and_other_values_is_another(tmp_path):
    run(of_a_function(), tmp_path / "s")
    ((operations, values),) = identity.identity_of(of_a_function()).values.items()
    apart = [2 * value for value in values]  # type: ignore[operator]
    changed_identity(tmp_path / "s", values={operations: apart})
    with pytest.raises(ValueError, match="computes something else"):
        run(of_a_function(), tmp_path / "s")


class Steeper(losses.AbstractLoss):
    beta: Any

    def __call__(self, pair: losses.Pair) -> Any:
        return jnp.exp(-SCALE * self.beta * pair.margin)


@pytest.mark.exhaustive
def test_values_of_other_hyper_parameters_are_not_compared():
    few, more = (
        identity.identity_of(made(loss=Steeper(jnp.asarray(0.1)), over={"beta": betas}))
        for betas in ([0.1], [0.3, 0.1])
    )
    (operations,) = few.values
    assert list(more.values) == [operations] and few.values != more.values
    assert more.holds(few, 0, same_jax=True) == 1


def test_values_at_some_starts_are_those_of_the_function():
    (values,) = identity.identity_of(of_a_function()).values.values()
    points = made().starts.part(0, 4)
    sizes = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(np.array(values, float), [*(0.5 * sizes**2), *sizes], rtol=1e-12)


def test_starts_that_are_drawn_otherwise_now_are_refused(tmp_path):
    run(made(), tmp_path / "s")
    versions = {"numpy": "9.9", "scipy": "9.8"}
    changed_identity(tmp_path / "s", versions=versions)
    assert run(made(), tmp_path / "s")[1] == 0, "another release that draws the same is refused"
    changed_identity(tmp_path / "s", starts=1, versions=versions)
    with pytest.raises(ValueError, match=r"`starts` were drawn by numpy 9.9 and scipy 9.8 and are"):
        run(made(), tmp_path / "s")


def test_an_object_is_described_by_what_it_holds_and_not_by_its_place_in_memory():
    class Bowl:
        def __init__(self, scale: float) -> None:
            self.scale = scale

    assert described(Bowl(1.0)) == described(Bowl(1.0)) != described(Bowl(2.0))
    assert "0x" not in json.dumps(described(Bowl(1.0)))


OLD = Path(__file__).parent / "data" / "store_of_65cd319.zip"


def test_a_store_of_an_earlier_release_is_read_resumed_and_grows(tmp_path):
    shutil.unpack_archive(OLD, tmp_path)
    path = tmp_path / "s.zarr"
    recipe = json.loads(str(plans.read_recipe(path)))
    with store.read(path) as found:
        assert found.sizes["start"] == 16
        assert int((found["outcome"].values == until.Outcome.reached).sum()) == 8
        assert plans.status(path).done == 1
    plan = plans.from_recipe(recipe)
    again = plans.run(plan, path, progress=False, force=True)
    assert bool((again["outcome"] == int(until.Outcome.reached)).all())
    times = again["time"].values
    larger = plans.from_recipe({**recipe, "count": 24, "beta": [0.1, 0.3]})
    grown = plans.run(larger, path, progress=False, force=True)
    assert dict(grown.sizes)["beta"] == 2
    assert grown["time"].values[0, :16].tobytes() == times.tobytes()
    with pytest.raises(
        OSError, match="has been replaced since it was read, perhaps by a larger store"
    ):
        again["time"].values.sum()
    assert bool((grown["outcome"] == int(until.Outcome.reached)).all())
