"""Plans: their cases, what they compute, how they are resumed, and what they refuse."""

import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import xarray
from grids import thinned

import flowlab
from flowlab import ensemble, exact, losses, measures, plans, policies, store, until
from flowlab.plans import running
from flowlab.plans.description import described, differences
from flowlab.store import BlockStore
from flowlab.store.blocks import Block

COUNT, BLOCK = 500, 128
STARTS = plans.DrawnStarts("sobol", COUNT, (0.05, 0.05), (1.0, 1.0), seed=3)
TARGET = until.loss_below(0.1)
BETAS = [0.1, 0.3]


def made(**changed: Any) -> plans.Plan:
    arguments: dict[str, Any] = dict(
        until=TARGET,
        loss=losses.DPO(0.1),
        policy=policies.RatioPlane(),
        over={"beta": BETAS},
        block=BLOCK,
    )
    arguments |= changed
    return plans.Plan(arguments.pop("starts", STARTS), **arguments)


RESULTS = ("outcome", "time", "end_time", "end", "level_times", "steps", "starts", "x_chosen")


def assert_same_bits(found: xarray.Dataset, wanted: xarray.Dataset) -> None:
    for name in RESULTS:
        assert found[name].values.tobytes() == wanted[name].values.tobytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> xarray.Dataset:
    """What an undisturbed run gives."""
    return plans.run(made(), tmp_path_factory.mktemp("whole") / "s", progress=False)


def test_a_plan_gives_what_the_closed_form_says(whole):
    assert dict(whole.sizes) == {"beta": 2, "start": COUNT, "component": 2, "level": 1, "block": 4}
    for beta in BETAS:
        true = exact.ratio_plane_time(whole["starts"].values, beta, level=0.1)
        np.testing.assert_allclose(whole["time"].sel(beta=beta), true, rtol=1e-4)


def test_a_plan_gives_what_a_sweep_gives(whole):
    flow = flowlab.preference_flow(losses.DPO(0.1), policies.RatioPlane())
    points = STARTS.part(0, COUNT)
    runs = flowlab.sweep(flow, points, until=TARGET, over={"beta": BETAS}, progress=False)
    np.testing.assert_array_equal(whole["outcome"], runs.outcome)
    np.testing.assert_allclose(whole["time"], runs.time, rtol=1e-5)


def test_a_block_has_the_bits_of_a_sweep_from_its_starts(whole):
    flow = flowlab.preference_flow(losses.DPO(0.3), policies.RatioPlane())
    block = made().block
    points = STARTS.part(block, 2 * block)
    runs = flowlab.sweep(flow, points, until=TARGET, progress=False, optimise=False)
    np.testing.assert_array_equal(whole["time"][1, block : 2 * block], runs.time)


class Stops(plans.Plan):
    """A plan that is told to stop when so many blocks have been solved."""

    after = 0

    def solve(self, *arguments: Any, **options: Any) -> ensemble.Runs:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return super().solve(*arguments, **options)


@pytest.mark.parametrize("after", thinned([1, 3, 6], {3}))
def test_what_was_interrupted_goes_on_to_the_same_bits(after, whole, tmp_path):
    plan = made()
    plan.__class__ = Stops
    vars(plan)["after"] = after
    with pytest.raises(plans.Interrupted, match=rf"{after} of 8 blocks are done; resume with"):
        plans.run(plan, tmp_path / "s", progress=False)
    solved: list[Any] = []
    again = made()
    solve = again.solve
    again.solve = lambda *a, **k: (solved.append(a), solve(*a, **k))[1]  # type: ignore[method-assign]
    assert_same_bits(plans.run(again, tmp_path / "s", progress=False), whole)
    assert len(solved) == 8 - after
    assert_same_bits(plans.run(again, tmp_path / "s", progress=False), whole)
    assert len(solved) == 8 - after, "a store that is full was solved again"


def test_a_termination_is_taken_for_an_interruption(tmp_path):
    plan = made()
    solve = plan.solve

    def killed(*arguments: Any, **options: Any) -> ensemble.Runs:
        os.kill(os.getpid(), signal.SIGTERM)
        return solve(*arguments, **options)

    plan.solve = killed  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(plans.Interrupted, match="nothing was written"):
        plans.run(plan, tmp_path / "s", progress=False)
    assert signal.getsignal(signal.SIGTERM) is before
    assert os.listdir(tmp_path) == []


def test_a_damaged_block_is_found_and_done_again(whole, tmp_path):
    plans.run(made(), tmp_path / "s", progress=False)
    chunk = tmp_path / "s" / "time" / "c" / "1" / "2"
    torn = bytearray(chunk.read_bytes())
    torn[len(torn) // 2] ^= 1
    chunk.write_bytes(torn)
    told: list[str] = []
    found = plans.run(made(), tmp_path / "s", progress=False, tell=told.append)
    assert_same_bits(found, whole)
    assert told[0].startswith("1 of 8 blocks is damaged and will be done again (block 2: ")


@pytest.mark.exhaustive
def test_results_have_the_same_bits_on_one_and_on_eight_devices(tmp_path, monkeypatch):
    used = set()
    put = jax.device_put

    def noted(x, device=None):
        if device is not None:
            used.add(device)
        return put(x, device)

    monkeypatch.setattr(jax, "device_put", noted)
    plan = made(block_size=16)  # eight of these to a block of the store
    one = plans.run(plan, tmp_path / "one", devices=jax.devices()[:1], progress=False)
    assert used == {jax.devices()[0]}
    eight = plans.run(plan, tmp_path / "eight", devices=jax.devices(), progress=False)
    assert used == set(jax.devices()) and len(used) == 8
    assert_same_bits(eight, one)


def test_a_hopeless_start_has_an_outcome_and_changes_no_other(whole, tmp_path):
    points = STARTS.part(0, COUNT)
    points[200] = np.nan
    found = plans.run(made(starts=points), tmp_path / "s", progress=False)
    others = np.arange(COUNT) != 200
    assert (found["outcome"][:, 200] == until.Outcome.non_finite).all()
    np.testing.assert_array_equal(found["outcome"][:, others], whole["outcome"][:, others])
    np.testing.assert_allclose(found["time"][:, others], whole["time"][:, others], rtol=1e-5)


@pytest.mark.exhaustive
def test_an_audit_compares_with_tighter_tolerances_once_all_is_done(tmp_path):
    found = plans.run(made(audit=0.1), tmp_path / "s", progress=False)
    assert found.attrs["audit_count"] == 2 * COUNT // 10
    assert found.attrs["audit_rtol"] == pytest.approx(1e-8)
    assert 0 < found.attrs["audit_time_largest"] < 1e-4
    assert found.attrs["audit_outcomes_differ"] == 0


def test_what_is_given_by_name_becomes_an_axis():
    plan = made(
        loss={"dpo": losses.DPO(0.1), "ipo": losses.IPO(0.1)},
        policy={"free": policies.RatioPlane(), "other": policies.RatioPlane(offset=1.0)},
        until={"near": TARGET, "far": until.loss_below(0.05)},
    )
    assert plan.axes == {
        "loss": ["dpo", "ipo"],
        "policy": ["free", "other"],
        "beta": BETAS,
        "target": ["near", "far"],
    }
    assert plan.shape == (2, 2, 2, 2)
    assert plan.runs == 16 * COUNT
    flow = plan.flow((1, 1, 1, 0))
    assert isinstance(flow.loss, losses.IPO)  # type: ignore[attr-defined]
    assert float(flow.loss.beta) == 0.3  # type: ignore[attr-defined]
    assert float(flow.policy.offset) == 1.0  # type: ignore[attr-defined]
    assert plan.target((0, 0, 0, 1)) is not TARGET


@pytest.mark.exhaustive
def test_targets_with_other_numbers_of_levels_share_a_store(tmp_path):
    targets = {"once": TARGET, "twice": until.loss_below(0.3, 0.1)}
    plan = made(until=targets, over=None, starts=STARTS.part(0, 20), block=20)
    found = plans.run(plan, tmp_path / "s", progress=False)
    assert found["level_times"].shape == (2, 20, 2)
    assert np.isnan(found["level_times"].sel(target="once")[:, 1]).all()
    np.testing.assert_allclose(*(found["time"].sel(target=name) for name in targets), rtol=1e-5)


def test_any_flow_and_measure_can_be_planned(tmp_path):
    flow = flowlab.Flow(lambda y: ((y - 1) ** 2).sum())
    points = np.random.default_rng(0).normal(size=(30, 3))
    plan = plans.Plan(
        points, flow={"bowl": flow}, until=until.time(0.5), measures=[measures.path_length()]
    )
    found = plans.run(plan, tmp_path / "s", progress=False)
    np.testing.assert_allclose(found["end"][0], 1 + (points - 1) * math.exp(-1), rtol=1e-4)
    assert (found["path_length"] > 0).all()
    assert plans.read_recipe(tmp_path / "s") is None


WRONG: dict[str, dict[str, Any]] = {
    "Arguments `loss` and `policy` must both be given": {"policy": None},
    "Arguments `loss` and `policy` must both be given, or": {
        "flow": flowlab.Flow(lambda y: y.sum())
    },
    "Argument `audit` must lie between 0 and 1": {"audit": 2.0},
    "Argument `block` must be a positive int": {"block": 0},
    "Argument `starts` must be DrawnStarts or an array": {"starts": [1, 2, 3]},
    "Argument `starts` must hold a start": {"starts": np.zeros((0, 2))},
    "Argument `until` must hold something": {"until": {}},
    "Argument `over` must give a list of values": {"over": {"beta": 0.1}},
    r"Argument `measures` must be a list of .*, but is a single one, of path_length\.": {
        "measures": measures.path_length()
    },
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_plan_that_makes_no_sense_is_refused(sentence):
    with pytest.raises(ValueError, match=sentence):
        made(**WRONG[sentence])


def test_measures_whose_results_differ_in_shape_between_policies_are_refused_at_once():
    corners = np.array([[1.0, 0], [0, 1], [1, 1], [0, 0.5]])
    several: dict[str, Any] = {
        "three": policies.LogLinear(corners[:3], [(0, 1)]),
        "four": policies.LogLinear(corners, [(0, 1), (2, 3)]),
    }
    options: dict[str, Any] = dict(loss=losses.DPO(0.1), policy=several, until=until.time(1.0))
    begin = plans.DrawnStarts("sobol", 100, (-1, -1), (1, 1))
    plans.Plan(begin, measures=[measures.path_length()], **options)
    sentence = (
        "^Argument `measures` must have results of one shape with every policy, but `dip_depth` "
        r"has shape \(1,\) with 'three' and \(2,\) with 'four'; make one plan for each policy\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        plans.Plan(begin, measures=[measures.dip()], **options)


def test_a_hyper_parameter_that_a_loss_lacks_is_refused_with_its_case():
    both = {"dpo": losses.DPO(0.1), "sft": losses.SFT()}
    with pytest.raises(ValueError, match=r"beta.*Case: {'loss': 'sft'"):
        made(loss=both)


def test_another_plan_on_the_same_store_is_refused_and_the_difference_named(tmp_path):
    small: dict[str, Any] = {"starts": STARTS.part(0, 8), "block": 8, "over": None}
    plans.run(made(**small), tmp_path / "s", progress=False)
    changes: dict[str, dict[str, Any]] = {
        r"`rtol` is missing in the store and 1e-08 here": {"rtol": 1e-8},
        r"`loss.beta` is 0.1 in the store and 0.2 here": {"loss": losses.DPO(0.2)},
        r"`loss.type` is 'flowlab.losses.+DPO' in the store and .*IPO": {"loss": losses.IPO(0.1)},
        r"`until.levels` is \[0.1\] in the store and \[0.2\] here": {
            "until": until.loss_below(0.2)
        },
        r"`starts.points": {"starts": STARTS.part(1, 9)},
        r"`measures` is \[\] in the store": {"measures": [measures.path_length()]},
        r"`block` is 8 in the store and 4 here": {"block": 4},
    }
    for sentence, change in changes.items():
        with pytest.raises(ValueError, match=f"holds another plan: .*{sentence}"):
            plans.run(made(**{**small, **change}), tmp_path / "s", progress=False)


def test_other_versions_are_refused_unless_insisted_on(tmp_path):
    small: dict[str, Any] = {"starts": STARTS.part(0, 8), "block": 8, "over": None}
    plans.run(made(**small), tmp_path / "s", progress=False)
    BlockStore.open(tmp_path / "s").update({"jax_version": "0.0.1"})
    with pytest.raises(ValueError, match=r"`jax_version` is '0.0.1' in the store"):
        plans.run(made(**small), tmp_path / "s", progress=False)
    plans.run(made(**small), tmp_path / "s", progress=False, force=True)


def test_what_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="exists and is not a store of flowlab"):
        plans.run(made(), tmp_path / "s", progress=False)
    assert (tmp_path / "s" / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("path", ["file", "file/s"])
def test_a_file_in_the_way_is_refused_in_a_sentence(path, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="^Argument `path` must "):
        plans.run(made(), tmp_path / path, progress=False)
    assert (tmp_path / "file").read_text() == "x"
    assert os.listdir(tmp_path) == ["file"]


def test_a_second_process_is_refused(tmp_path):
    with running._alone(tmp_path / "s"):
        with pytest.raises(BlockingIOError, match="another process is writing"):
            plans.run(made(), tmp_path / "s", progress=False)


def test_a_plan_that_does_not_fit_the_disk_is_refused_unless_insisted_on(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "BLOCK", 100)
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    small = made(starts=STARTS.part(0, 64), block=32)
    with pytest.raises(plans.DoesNotFitError, match=r"needs .* KiB of disk, but 1e\+03 bytes are"):
        plans.run(small, tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()
    assert plans.run(small, tmp_path / "s", progress=False, force=True).sizes["start"] == 64


def test_a_store_is_replaced_only_once_the_new_plan_fits(tmp_path, monkeypatch):
    other = made(starts=STARTS.part(0, 8), block=8, over=None)
    plans.run(other, tmp_path / "s", progress=False)
    small = made(starts=STARTS.part(0, 64), block=32)
    with monkeypatch.context() as patch:
        patch.setattr(running, "BLOCK", 100)
        full = shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(plans.DoesNotFitError):
            plans.run(small, tmp_path / "s", progress=False, overwrite=True)
    with running._alone(tmp_path / "s"), pytest.raises(BlockingIOError):
        plans.run(small, tmp_path / "s", progress=False, overwrite=True)
    assert store.read(tmp_path / "s").sizes["start"] == 8
    assert plans.run(small, tmp_path / "s", progress=False, overwrite=True).sizes["start"] == 64


def test_an_estimate_counts_the_bytes_of_the_arrays(tmp_path, monkeypatch):
    found = plans.estimate(made(), tmp_path)
    written = plans.run(made(), tmp_path / "s", progress=False)
    arrays = [written[n] for n in written.variables if "start" in written[n].dims]
    assert found.disk == sum(array.nbytes for array in arrays)
    assert found.runs == 2 * COUNT
    assert 0 < found.seconds < 600
    assert found.lacking() == []


@pytest.mark.exhaustive
def test_an_estimate_counts_what_other_kinds_of_cases_cost(tmp_path, monkeypatch):
    policies_ = {"cheap": policies.RatioPlane(), "dear": policies.LogRatioPlane()}
    plan = made(policy=policies_, starts=STARTS.part(0, 64))
    moment = [0.0]
    solve = plan.solve

    def timed(case, first, last, *arguments, **options):
        moment[0] += (last - first) * (3 if plan.labels(case)["policy"] == "dear" else 1)
        return solve(case, first, last, *arguments, **options)

    monkeypatch.setattr(plan, "solve", timed)
    monkeypatch.setattr(time, "perf_counter", lambda: moment[0])
    # 64 starts, two values of β, two policies, of which one takes a second a start and one three.
    assert plans.estimate(plan, tmp_path).seconds == 64 * 2 * (1 + 3)


def test_the_status_tells_blocks_outcomes_and_the_rate(tmp_path):
    plans.run(made(), tmp_path / "s", progress=False)
    work = BlockStore.open(tmp_path / "s")
    ends = 1000.0 + 2.0 * np.arange(8)
    ends[4:] += 3600  # a pause
    for (case, number), end in zip(work.layout.blocks(), ends, strict=True):
        work._array("block_finished")[(*case, number)] = end
    work.forget(Block((1,), 3))
    found = plans.status(tmp_path / "s")
    left = COUNT - 3 * made().block
    assert (found.blocks, found.done) == (8, 7)
    assert (found.runs, found.runs_done) == (2 * COUNT, 2 * COUNT - left)
    assert found.outcomes == {"reached": 2 * COUNT - left}
    assert found.rate == pytest.approx(made().block / 2)
    assert found.remaining == pytest.approx(left / found.rate)
    assert not found.being_written


def test_descriptions_tell_apart_what_computes_something_else():
    def one(y: float) -> float:
        return y + 1

    def two(y: float) -> float:
        return y + 2

    def power(exponent: float) -> Any:
        return lambda y: y**exponent

    large = np.arange(100.0)
    pairs = [
        (one, two),
        (power(2.0), power(3.0)),
        (losses.DPO(0.1), losses.DPO(0.2)),
        (until.time(1.0), until.time(2.0)),
        (large, large + 1),
        (measures.path_length(), measures.path_length(of="u")),
    ]
    for a, b in pairs:
        assert described(a) == described(a)
        assert described(a) != described(b), (a, b)
    assert described(power(2.0)) == described(power(2.0))
    assert "code" not in str(described(measures.dwell(0.1)))  # which no two Pythons share


def test_differences_are_named_by_their_place():
    a, b = {"x": {"y": 1, "z": 2}, "w": 3}, {"x": {"y": 1, "z": 4}}
    assert list(differences(a, b)) == [
        "`x.z` is 2 in the store and 4 here",
        "`w` is 3 in the store and missing here",
    ]


def test_a_store_holds_what_made_it(whole: xarray.Dataset) -> None:
    told = store.description(whole)
    assert told["starts"]["seed"] == 3
    assert told["loss"]["type"].endswith("DPO")
    assert told["over"] == {"beta": BETAS}
    assert whole.attrs["flowlab_version"] == flowlab.__version__
    assert Path(whole.encoding["source"]).exists()
