"""Kernels: the same numbers as blocks of one start, what no lane does to another, and the choice.

Without a GPU or a TPU a kernel is carried out operation by operation, which Pallas calls to
interpret it, and lowered for a device that is not here.
"""

import importlib
import logging
import re
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned

import flowlab as fl
from flowlab import exact, measures, until
from flowlab.domains import Box, Simplex
from flowlab.ensemble import blocks, kernel
from flowlab.solve import make_method, make_problem, one_of
from flowlab.until import Outcome

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
LEVEL = until.loss_below(0.1)
RTOL = 1e-6
SQUARE = fl.starts.uniform(32, (0.05, 0.05), (0.95, 0.95), seed=7)
INSIDE = SQUARE / 2
LOGITS = np.random.default_rng(0).normal(size=(32, 4))


def plane(*domain, wall="stop"):
    return fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(*domain, wall=wall))


def saddle(y):
    return y[0] ** 3 / 3 - y[0] + y[1] ** 2


KERNEL = fl.LogRatioPlane(np.array([[1.0, 0.5], [0.5, 1.5]]))
SOFTMAX = fl.TabularSoftmax([0.1, 0.2, 0.3, 0.4], [(0, 1), (2, 1)])
CASES = {
    "free": (plane(), SQUARE, LEVEL, {}),
    "box that is slid along": (
        plane(Box(1, 1), wall="slide"),
        SQUARE,
        LEVEL,
        {"measures": [measures.path_length(), measures.dip()]},
    ),
    "box that stops": (plane(Box(1, 1)), SQUARE, LEVEL, {"measures": [measures.path_length()]}),
    "simplex that stops": (plane(Simplex()), INSIDE, LEVEL, {}),
    "simplex that is slid along": (plane(Simplex(), wall="slide"), INSIDE, LEVEL, {}),
    "extinction": (plane(), SQUARE, until.boundary(), {}),
    "constant kernel": (fl.preference_flow(fl.DPO(0.3), KERNEL), SQUARE, LEVEL, {}),
    "responses of several pairs": (
        fl.preference_flow(fl.DPO(0.3), SOFTMAX),
        LOGITS,
        until.loss_below(0.6, 0.5),
        {"measures": [measures.mass()]},
    ),
    "times to save at": (plane(), SQUARE, until.time(1.0), {"save_at": [0.1, 0.5, 1.0]}),
    "a critical point": (fl.Flow(saddle), SQUARE, until.speed_below(0.1), {}),
    "time near a point": (
        plane(),
        SQUARE,
        until.speed_below(0.5),
        {"measures": [measures.near((0.6, 0.2), 0.2, label="it"), measures.dwell(1.0)]},
    ),
}
KEPT = "box that stops"


def problem_of(name):
    flow, starts, target, options = CASES[name]
    state = one_of(starts)
    return make_problem(flow, until=target, dtype=np.float64, state=state, rtol=RTOL, **options)


def interpreted(name, starts, max_steps=4096):
    """The results of a kernel that is carried out operation by operation."""
    return kernel.solved(
        problem_of(name),
        make_method(rtol=RTOL),
        starts,
        devices=jax.devices()[:1],
        max_steps=max_steps,
        elsewhere=blocks.worker(len(starts), 1, jax.devices()[:1], 1, max_steps, False),
        interpret=True,
    )


@pytest.mark.parametrize("name", thinned(CASES, {KEPT}))
def test_a_kernel_equals_blocks_of_one_start(name):
    starts = CASES[name][1]
    found = interpreted(name, starts)
    alone = blocks.worker(len(starts), 1, jax.devices()[:1], 1, 4096, False)
    wanted = alone(problem_of(name), make_method(rtol=RTOL), starts)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    np.testing.assert_array_equal(found["outcome"], wanted["outcome"])
    np.testing.assert_array_equal(found["steps"], wanted["steps"])
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)


def test_a_kernel_gives_the_times_of_the_closed_form():
    found = interpreted(KEPT, SQUARE)
    free = exact.ratio_plane_time(SQUARE, 0.3, level=0.1)
    stopped = found["outcome"] == Outcome.at_wall
    assert set(found["outcome"]) == {Outcome.reached, Outcome.at_wall}
    errors = np.abs(found["time"] / free - 1)[~stopped]
    assert np.median(errors) < 10 * RTOL
    assert np.max(errors) < 100 * RTOL
    x, y = SQUARE[stopped].T
    assert np.all(found["end_time"][stopped] < free[stopped])
    np.testing.assert_allclose(found["end"][stopped, 0], 1.0, rtol=1e-12)
    np.testing.assert_allclose((found["end"][stopped] ** 2).sum(axis=1), x**2 + y**2, rtol=1e-5)


def test_a_lane_has_the_same_bits_whatever_lies_beside_it():
    whole = interpreted(KEPT, SQUARE)
    order = np.random.default_rng(0).permutation(len(SQUARE))
    others = SQUARE[order].copy()
    bad = {3: [np.nan, 0.5], 9: [np.inf, 0.5], 17: [-0.1, 0.5], 20: [1.5, 0.5], 31: [1, 1e-9]}
    others[list(bad)] = list(bad.values())
    found = interpreted(KEPT, others)
    good = np.setdiff1d(np.arange(len(SQUARE)), list(bad))
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        assert mine[good].tobytes() == theirs[order][good].tobytes()
    assert [Outcome(found["outcome"][index]).name for index in bad] == [
        "non_finite",
        "non_finite",
        "outside_domain",
        "outside_domain",
        "started_past_target",
    ]


def test_lanes_that_run_out_of_steps_change_no_other():
    whole, few = interpreted(KEPT, SQUARE), 20
    found = interpreted(KEPT, SQUARE, max_steps=few)
    spent = found["outcome"] == Outcome.step_limit
    assert 0 < np.sum(spent) < len(SQUARE)
    assert not np.any(whole["outcome"] == Outcome.step_limit)
    assert np.all(np.isnan(found["time"][spent]))
    assert found["end"][~spent].tobytes() == whole["end"][~spent].tobytes()


@pytest.mark.parametrize("devices", thinned([1, 2], {1}))
def test_chunks_are_put_together_in_the_order_of_the_starts(devices, monkeypatch):
    monkeypatch.setattr(kernel, "_CHUNK", len(SQUARE))
    starts = np.concatenate([SQUARE, SQUARE[::-1], SQUARE[5:12], SQUARE[:20]])
    seen, alone = [], interpreted(KEPT, SQUARE)
    found = kernel.solved(
        problem_of(KEPT),
        make_method(rtol=RTOL),
        starts,
        devices=jax.devices()[:devices],
        max_steps=4096,
        progress=seen.append,
        elsewhere=blocks.worker(len(starts), 1, jax.devices()[:1], 1, 4096, False),
        interpret=True,
    )
    assert seen == [32, 32, 27]
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        wanted = np.concatenate([theirs, theirs[::-1], theirs[5:12], theirs[:20]])
        assert mine.tobytes() == wanted.tobytes()


def two_wells(y):
    return (y[0] ** 2 - 1) ** 2 + 0.2 * y[0] + 2 + 0.5 * y[1] ** 2


@pytest.mark.exhaustive
def test_lanes_that_their_clock_leads_nowhere_begin_again_and_change_no_other():
    """The well on the right ends above the level."""
    flow, target = fl.Flow(two_wells), until.loss_below(1.9)
    points = np.array([[x, y] for y in np.linspace(0.5, 1.5, 16) for x in (-0.5, 0.5)])
    alone = np.where(points[:, :1] > 0, np.nan, points)
    state: dict = dict(dtype=np.float64, state=one_of(points))
    problem = make_problem(flow, until=target, clock="loss", rtol=RTOL, **state)
    given = problem, make_method(rtol=RTOL)
    options: dict = dict(devices=jax.devices()[:1], max_steps=4096, interpret=True)
    seen = []

    def elsewhere(*some, progress):
        raise AssertionError("both problems can be made kernels")

    found = kernel.solved(*given, points, elsewhere=elsewhere, progress=seen.append, **options)
    others = kernel.solved(*given, alone, elsewhere=elsewhere, **options)
    assert len(seen) == 2
    assert sum(seen) == len(points)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(others), strict=True):
        assert mine[::2].tobytes() == theirs[::2].tobytes()
    assert set(found["outcome"][1::2]) == {Outcome.at_critical_point}
    runs = fl.sweep(flow, points, until=target, rtol=RTOL, clock="arc_length")
    np.testing.assert_array_equal(found["outcome"], runs.outcome)
    np.testing.assert_allclose(found["time"], runs.time, rtol=1e-5)


UNLIKELY = fl.Flow(lambda y: 1 + y @ jnp.linalg.solve(jnp.eye(2) + jnp.outer(y, y), y))


@pytest.fixture
def on_a_chip(monkeypatch):
    """Lets sweeps take the CPU for a device that has kernels, which it carries out in Python."""
    monkeypatch.setitem(kernel.CHIPS, "cpu", kernel.CHIPS["gpu"])
    monkeypatch.setattr(kernel, "solved", partial(kernel.solved, interpret=True))


@pytest.mark.usefixtures("on_a_chip")
def test_a_sweep_says_which_backend_solved_it():
    flow, starts, target, options = CASES[KEPT]
    runs = fl.sweep(flow, starts, until=target, rtol=RTOL, over={"beta": [0.3, 0.5]}, **options)
    assert runs.backend == "kernel"
    assert runs.to_xarray().attrs["backend"] == "kernel"
    assert runs.time[0].tobytes() == interpreted(KEPT, SQUARE)["time"].tobytes()
    blocked = fl.sweep(flow, starts, until=target, rtol=RTOL, block_size=32, **options)
    assert blocked.backend == "blocks"
    reached = runs.outcome[0] == Outcome.reached
    np.testing.assert_allclose(runs.time[0][reached], blocked.time[reached], rtol=1e-5)


@pytest.mark.usefixtures("on_a_chip")
def test_starts_are_drawn_where_they_are_solved(monkeypatch):
    monkeypatch.setattr(kernel, "_CHUNK", len(SQUARE))
    flow, _, target, options = CASES[KEPT]
    options = {"until": target, "rtol": RTOL, **options}
    drawn = fl.starts.DrawnStarts("uniform", 70, (0.05, 0.05), (0.95, 0.95), seed=7)
    points, asked, part = drawn.part(0, 70), [], fl.starts.DrawnStarts.part
    with monkeypatch.context() as patch:
        patch.setattr(fl.starts.DrawnStarts, "part", lambda s, *p: asked.append(p) or part(s, *p))
        runs = fl.sweep(flow, drawn, **options)
    assert set(asked) == {(0, 1)}  # for its shape: the host draws no other
    assert runs.backend == "kernel"
    assert "starts" not in vars(runs)
    assert runs.starts.tobytes() == points.tobytes()
    assert runs.time.tobytes() == fl.sweep(flow, points, **options).time.tobytes()
    few = fl.starts.DrawnStarts("uniform", 32, (0.05, 0.05), (0.95, 0.95), seed=7)
    blocked = [fl.sweep(flow, some, block_size=32, **options) for some in (few, SQUARE)]
    assert blocked[0].time.tobytes() == blocked[1].time.tobytes()
    assert blocked[0].to_xarray().equals(blocked[1].to_xarray())


@pytest.mark.usefixtures("on_a_chip")
@pytest.mark.parametrize("backend", [None, "kernel"])
def test_what_cannot_be_a_kernel_is_solved_in_blocks_and_the_log_says_why(backend, caplog):
    with caplog.at_level(logging.DEBUG, logger="flowlab"):
        runs = fl.sweep(UNLIKELY, SQUARE, until=until.time(0.1), backend=backend)
    assert runs.backend == "blocks"
    assert runs.counts() == {"reached": len(SQUARE)}
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert re.search(r"blocks solve what no kernel can: (lu|\w*solve)", caplog.text)


def test_a_kernel_that_a_device_refuses_is_solved_in_blocks(monkeypatch):
    monkeypatch.setitem(kernel.CHIPS, "cpu", kernel.CHIPS["gpu"])  # which does not lower for it
    runs = fl.sweep(plane(), SQUARE, until=LEVEL, backend="kernel")
    assert runs.backend == "blocks"
    assert runs.counts() == {"reached": len(SQUARE)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"backend": "kernel"},
            'Argument `backend` must be "blocks" where starts are solved on a CPU, but is '
            "'kernel', which is for GPUs and TPUs.",
        ),
        (
            {"backend": "warp"},
            'Argument `backend` must be "blocks" or "kernel", but is \'warp\'.',
        ),
    ],
)
def test_a_backend_that_is_not_to_be_had_is_refused(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        fl.sweep(plane(), SQUARE, until=LEVEL, **options)


@pytest.mark.usefixtures("on_a_chip")
@pytest.mark.parametrize(("name", "value"), [("block_size", 32), ("optimise", True)])
def test_an_option_without_effect_on_a_kernel_is_refused(name, value):
    with pytest.raises(ValueError, match=f"Argument `{name}` must be None with backend 'kernel'"):
        fl.sweep(plane(), SQUARE, until=LEVEL, backend="kernel", **{name: value})


@pytest.fixture
def lowering(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("_lowering")


sys.path.append(str(BENCHMARKS))
ROWS = [
    (name, chip)
    for name in importlib.import_module("_lowering").candidates()
    for chip in ("cuda", "tpu")
]
sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("name", "platform"), thinned(ROWS, {("problem own_loss", "cuda"), ("problem ratio", "tpu")})
)
def test_a_problem_lowers_where_it_is_expected_to(lowering, name, platform):
    row = lowering.Row(name, {platform: lowering.lowered(lowering.candidates()[name], platform)})
    assert not lowering.unexpected(row), row
