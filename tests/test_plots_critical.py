"""Figures of critical points, basins, branches and phase portraits: what is drawn is what holds."""

import dataclasses
import re
from typing import Any, get_args

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import flowlab as fl
from flowlab import critical, plots, potentials, starts
from flowlab.critical import (
    Basins,
    Branch,
    Continuation,
    CriticalPoint,
    CriticalPoints,
    Event,
    Separatrix,
)
from flowlab.critical.branch_walk import What
from flowlab.domains import Simplex
from flowlab.losses import SFT, Hinge

HIMMELBLAU = fl.Flow(potentials.Himmelblau())
SQUARE: dict[str, Any] = dict(x=(-5.0, 5.0), y=(-5.0, 5.0))
UNIT: dict[str, Any] = dict(x=(-1.0, 1.0), y=(-1.0, 1.0))


def point(position: Any, kind: Any = "minimum", **more: Any) -> CriticalPoint:
    index = {"saddle": 1, "maximum": 2}.get(kind, 0)
    numbers = np.zeros(len(position))
    return CriticalPoint(
        np.asarray(position, float), kind, index, 0.0, 0.0, numbers, numbers, **more
    )


def points(*found: CriticalPoint, components: tuple[str, ...] | None = None) -> CriticalPoints:
    region = np.array([[0.0, 1.0], [0.0, 1.0]])
    return CriticalPoints(found, region, 0.1, np.zeros(2), 256, components)


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def looks_of_entries(ax: Axes) -> list[tuple[str, str | None]]:
    """Colours and patterns of the patches in the legend."""
    legend = ax.get_legend()
    assert legend is not None
    handles: list[Any] = list(legend.legend_handles)
    return [(to_hex(patch.get_facecolor()), patch.get_hatch()) for patch in handles]


def data(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_xydata())


def drawn(ax: Axes, label: str) -> list[Line2D]:
    """The lines that hold data and are named so, in the legend or as one more of the same."""
    names = (label, f"_{label}")
    return [line for line in ax.lines if line.get_label() in names and len(data(line))]


def vertices(ax: Axes) -> list[np.ndarray]:
    """The points of each set of contours."""
    sets = [paths.get_paths() for paths in ax.collections if paths.get_zorder() == 2.6]
    return [np.concatenate([np.asarray(path.vertices) for path in paths]) for paths in sets]


def test_nullclines_are_where_each_component_turns():
    ax = plots.nullclines(HIMMELBLAU, **SQUARE)
    first, second = vertices(ax)
    x, y = first.T
    assert np.max(np.abs(4 * x * (x**2 + y - 11) + 2 * (x + y**2 - 7))) < 0.2  # 250 at the corners
    x, y = second.T
    assert np.max(np.abs(2 * (x**2 + y - 11) + 4 * y * (x + y**2 - 7))) < 0.2
    for position in HIMMELBLAU.function.critical_points:  # type: ignore[attr-defined]
        for nullcline in (first, second):
            assert np.min(np.linalg.norm(nullcline - position.position, axis=1)) < 0.05
    assert labels(ax) == [r"nullcline $\dot{y}_1 = 0$", r"nullcline $\dot{y}_2 = 0$"]
    assert (ax.get_xlim(), ax.get_ylim()) == (SQUARE["x"], SQUARE["y"])


def test_a_component_that_never_turns_has_no_line_and_no_entry():
    ax = plots.nullclines(fl.preference_flow(fl.DPO(0.1), fl.RatioPlane()))
    assert not vertices(ax)
    assert labels(ax) == []
    assert ax.get_xlabel() == plots.RATIOS[0]


def test_a_component_that_rests_throughout_is_shaded_there():
    ax = plots.nullclines(fl.preference_flow(Hinge(1.0), fl.LogRatioPlane()), x=(-4, 4), y=(-4, 4))
    assert labels(ax) == [
        rf"$\dot{{u}}_\mathrm{{{name}}} = 0$ throughout" for name in ("chosen", "rejected")
    ]
    for shade in ax.collections:
        u = np.asarray(shade.get_paths()[0].vertices)
        assert np.min(u[:, 0] - u[:, 1]) == pytest.approx(1, abs=0.04)
    ax = plots.nullclines(fl.preference_flow(SFT(), fl.LogRatioPlane()))
    assert labels(ax) == [r"$\dot{u}_\mathrm{rejected} = 0$ throughout"]


def test_nullclines_end_at_the_walls_of_the_domain():
    flow = fl.Flow(lambda y: (y[0] - 0.3) ** 2 + (y[1] - 0.4) ** 2, domain=Simplex())
    first, second = vertices(plots.nullclines(flow))
    assert np.all(first[:, 0] == pytest.approx(0.3))
    assert first[:, 1].max() == pytest.approx(0.7, abs=0.005)
    assert np.all(second[:, 1] == pytest.approx(0.4))
    assert second[:, 0].max() == pytest.approx(0.6, abs=0.005)


def test_critical_points_are_marked_by_kind_and_named_once():
    found = points(
        point((0.2, 0.3)),
        point((0.4, 0.5)),
        point((0.6, 0.1), "saddle"),
        point((0.7, 0.7), "maximum"),
        point((0.9, 0.2), "degenerate"),
        point((1.0, 0.5), on=("x_chosen = 1",)),
        components=("x_chosen", "x_rejected"),
    )
    ax = plots.critical_points(found)
    held = "minimum on x_chosen = 1"
    kinds = ["minimum", "saddle of index 1", "maximum", "degenerate point", held]
    assert labels(ax) == kinds
    assert [len(drawn(ax, kind)) for kind in kinds] == [2, 1, 1, 1, 1]
    assert [data(mark)[0].tolist() for mark in drawn(ax, "minimum")] == [
        [0.2, 0.3],
        [0.4, 0.5],
    ]
    looks = [
        (line.get_marker(), line.get_markerfacecolor(), line.get_markeredgecolor())
        for (line, *_) in (drawn(ax, kind) for kind in kinds)
    ]
    assert len(set(looks)) == len(kinds)
    assert (ax.get_xlabel(), ax.get_ylabel()) == plots.RATIOS


def test_a_line_of_critical_points_is_drawn_along_its_path():
    path = np.stack([np.linspace(0, 1, 5), np.zeros(5)], axis=1)
    ax = plots.critical_points(points(point((0.5, 0), dimension=1, path=path, on=("edge",))))
    (line,) = drawn(ax, "line of minima on edge")
    assert np.array_equal(data(line), path)


def test_that_there_is_no_critical_point_is_said():
    assert labels(plots.critical_points(points())) == ["no critical point in the region"]


def test_separatrices_are_drawn_as_given_and_named_once():
    paths = [np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 1.5]]), np.array([[2.0, 0.0], [3.0, 1.0]])]
    ax = plots.separatrices([Separatrix(point((0, 0)), path) for path in paths], names=("a", "b"))
    lines = drawn(ax, "separatrix (ends at a saddle)")
    assert [data(line).tolist() for line in lines] == [path.tolist() for path in paths]
    assert labels(ax) == ["separatrix (ends at a saddle)"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")


LABELS = np.array([0, 0, 1, -1, -2, -4])
MINIMA = (point((-1.0, 0.5)), point((1.0, 0.0)), point((7.0, 7.0)))
SECOND = Basins(np.zeros((1, 2)), LABELS[:1], MINIMA, np.zeros((1, 2))).name(1)


def test_basins_of_a_grid_are_filled_cell_by_cell_with_a_share_for_each():
    grid = starts.grid((3, 2), (0, 0), (3, 2))
    ax = plots.basins(Basins(grid, LABELS, MINIMA, grid, (3, 2)))
    assert labels(ax) == [
        "basin of (-1, 0.5): 33.3 %",
        "basin of (1, 0): 16.7 %",
        "runs away: 16.7 %",
        "ends on the boundary: 16.7 %",
        "unresolved: 16.7 %",
    ]
    assert (*ax.get_xlim(), *ax.get_ylim()) == pytest.approx((0, 3, 0, 2), abs=1e-8)
    (mesh,) = (artist for artist in ax.collections if isinstance(artist, QuadMesh))
    corners = np.asarray(mesh.get_coordinates())
    colors = mesh.to_rgba(np.asarray(mesh.get_array())).reshape(2, 3, 4)
    named = [color for color, _ in looks_of_entries(ax)]
    order = [0, 0, 1, 2, 3, 4]
    for position, (start, expected) in enumerate(zip(grid, order, strict=True)):
        i, j = divmod(position, 2)
        assert np.all(corners[j, i] < start) and np.all(start < corners[j + 1, i + 1])
        assert to_hex(colors[j, i]) == named[expected]
    assert len(set(named)) == 5


def test_basins_of_scattered_starts_are_dots():
    scattered = np.arange(12.0).reshape(6, 2)
    ax = plots.basins(Basins(scattered, LABELS, MINIMA, scattered))
    assert not ax.collections
    (first,) = drawn(ax, "basin of (-1, 0.5): 33.3 ± 19.2 %")
    assert np.array_equal(data(first), scattered[:2])
    assert len({line.get_color() for line in ax.lines}) == 5


def test_more_basins_than_colours_are_told_apart_by_a_pattern():
    many = np.arange(12)
    minima = tuple(point((number, 0)) for number in many)
    grid = starts.grid((12, 1), (0, 0), (12, 1))
    ax = plots.basins(Basins(grid, many, minima, grid, (12, 1)))
    assert len({*looks_of_entries(ax)}) == 12


@pytest.mark.parametrize(
    ("colors", "drawn_in"),
    [
        (["red", "#00ff00", (0, 0, 1)], ["#ff0000", "#00ff00"]),
        (
            {SECOND: "tab:blue", "runaway": "white"},
            ["#77aadd", "#1f77b4", "#ffffff"],
        ),
    ],
)
def test_basins_have_the_colours_of_the_user(colors, drawn_in):
    grid = starts.grid((3, 2), (0, 0), (3, 2))
    for ax in (
        plots.basins(Basins(grid, LABELS, MINIMA, grid, (3, 2)), colors=colors),
        Basins(grid, LABELS, MINIMA, grid, (3, 2)).plot(colors=colors),
    ):
        assert [color for color, _ in looks_of_entries(ax)][: len(drawn_in)] == drawn_in
    dots = plots.basins(Basins(grid, LABELS, MINIMA, grid), colors=colors)
    (second,) = drawn(dots, "basin of (1, 0): 16.7 ± 15.2 %")
    assert to_hex(second.get_color()) == drawn_in[1]


COLORS: dict[str, Any] = {
    "must have one colour for each of the 3 minima, but has 2.": ["red", "blue"],
    "must have one colour for each of the 3 minima, but is 'red'.": "red",
    "must have colours of matplotlib such as 'tab:blue' or '#77aadd', but has 'blu'.": (
        *("red", "blu", "green"),
    ),
    "but names 'runway'; did you mean runaway?": {"runway": "red"},
}


@pytest.mark.parametrize("sentence", COLORS)
def test_colours_that_cannot_be_are_refused(sentence):
    grid = starts.grid((3, 2), (0, 0), (3, 2))
    with pytest.raises(ValueError, match=f"^Argument `colors` .*{re.escape(sentence)}$"):
        plots.basins(Basins(grid, LABELS, MINIMA, grid, (3, 2)), colors=COLORS[sentence])


def bowl_and_valley(y: Any) -> Any:
    return 0.5 * y[0] ** 2 + 0.0 * y[1]


def test_slow_regions_are_where_the_speed_is_below_the_level():
    ax = plots.slow_regions(fl.Flow(bowl_and_valley), **UNIT, below=0.25)
    assert labels(ax) == ["speed below 0.25"]
    (region,) = ax.collections
    outline = np.asarray(region.get_paths()[0].vertices)
    assert np.abs(outline[:, 0]).max() == pytest.approx(0.25, abs=1e-3)
    assert np.abs(outline[:, 1]).max() == 1
    fast = plots.slow_regions(fl.Flow(lambda y: 3 * y[0]), **UNIT, below=0.25)
    assert not fast.collections
    assert labels(fast) == []
    for below in (0.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="`below` must be positive and finite"):
            plots.slow_regions(HIMMELBLAU, below=below)


def pitchfork() -> Continuation:
    """One minimum up to 0.1, from there on a saddle, and another minimum from 0.2."""
    values = np.linspace(-1, 1, 9)
    stays = [point((0, 0), "minimum" if value < 0.1 else "saddle") for value in values]
    above = [point((np.sqrt(value), 1)) for value in values[5:]]
    branches = Branch(values, tuple(stays)), Branch(values[5:], tuple(above))
    events = (
        Event(0.1, "changes index", np.zeros(2), 0, "minimum", "saddle of index 1"),
        Event(0.2, "appears", np.array([0.4, 1.0]), 1, "", "minimum"),
    )
    return Continuation("beta", values, branches, events, ("u_chosen", "u_rejected"))


def test_branches_are_full_where_stable_and_broken_elsewhere_with_their_events():
    ax = plots.branches(pitchfork())
    assert labels(ax) == ["minimum (stable)", "saddle (unstable)", "changes index", "appears"]
    stable, other = drawn(ax, "minimum (stable)")
    (unstable,) = drawn(ax, "saddle (unstable)")
    assert stable.get_linestyle() == other.get_linestyle() == "-"
    assert unstable.get_linestyle() == "--"
    # Stretches end at the events between them.
    assert data(stable)[-1].tolist() == data(unstable)[0].tolist() == [0.1, 0]
    assert data(other)[0].tolist() == [0.2, 0.4]
    assert np.allclose(data(other)[1:, 1], np.sqrt([0.25, 0.5, 0.75, 1]))
    marks = [data(line)[0].tolist() for line in drawn(ax, "appears")]
    assert marks == [[0.2, 0.4]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("parameter beta", plots.LOG_RATIOS[0])
    second = plots.branches(pitchfork(), component=1)
    assert data(drawn(second, "appears")[0])[0].tolist() == [0.2, 1.0]
    with pytest.raises(ValueError, match="`component` must be from 0 to 1, but is 2"):
        plots.branches(pitchfork(), component=2)


def test_every_event_of_a_continuation_has_a_mark_of_its_own():
    found = pitchfork()
    (event,) = (event for event in found.events if event.what == "appears")
    events = get_args(What)
    every = tuple(dataclasses.replace(event, what=what) for what in events)
    ax = plots.branches(dataclasses.replace(found, events=every))
    marks = {what: drawn(ax, what)[0].get_marker() for what in events}
    assert len(set(marks.values())) == len(events) == 4


def test_a_parameter_without_critical_points_has_a_figure():
    ax = plots.branches(Continuation("beta", np.array([1.0, 2.0]), (), ()))
    assert labels(ax) == ["no critical point at any value"]
    assert ax.get_xlim() == (1, 2)


WELL = fl.Flow(potentials.DoubleWell(dimension=2))
WELL_SQUARE: dict[str, Any] = dict(x=(-2.0, 2.0), y=(-2.0, 2.0))


@pytest.mark.exhaustive
def test_a_phase_portrait_gathers_its_layers_and_composes_with_others():
    before = dict(matplotlib.rcParams)
    ax = plots.phase_portrait(WELL, **WELL_SQUARE, layers=("basins", *plots.LAYERS), cells=6)
    expected = (
        *("basin of (-1, 0): ", "basin of (1, 0): ", "speed below ", "flow lines"),
        *("nullcline", "nullcline", "separatrix", "minimum", "saddle of index 1"),
    )
    for label, begin in zip(sorted(labels(ax)), sorted(expected), strict=True):
        assert label.startswith(begin)
    assert sorted(data(mark)[0].round(9).tolist() for mark in drawn(ax, "minimum")) == [
        [-1, 0],
        [1, 0],
    ]
    for curve in drawn(ax, "separatrix (ends at a saddle)"):
        assert np.allclose(data(curve)[:, 0], 0, atol=1e-6)
    assert ax.get_aspect() == 1
    assert ax.get_title().startswith("DoubleWell(")
    assert plots.lines([np.array([[0.1, 1.0], [0.9, 0.0]])], ax=ax) is ax
    assert isinstance(ax.figure, Figure)
    ax.figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before


def test_points_that_are_given_are_not_searched_again(monkeypatch):
    def search(*arguments: Any) -> None:
        raise AssertionError(f"Searched for {arguments}.")

    monkeypatch.setattr(critical, "critical_points", search)
    held = points(point((0.0, 0.5)), point((0.5, 0.999)))
    flow = fl.preference_flow(fl.DPO(0.1), fl.RatioPlane(Simplex(), wall="slide"))
    ax = plots.phase_portrait(flow, layers=("critical_points", "nullclines"), points=held)
    assert len(drawn(ax, "minimum")) == 2
    assert "wall (ticks: closed side)" in labels(ax)
    # There is room for marks on the sides, and none where there are none.
    assert ax.get_xlim() == (-0.04, 1)
    assert ax.get_ylim() == (0, 1.04)
    assert ax.get_xlabel() == plots.RATIOS[0]
    assert ax.get_title() == "DPO(beta=0.1)"


def test_axes_that_would_be_very_narrow_have_two_scales():
    for x, aspect in (((-5, 5), 1), ((-50, 50), "auto")):
        layers = ("nullclines",)
        ax = plots.phase_portrait(HIMMELBLAU, x=x, y=(-5, 5), layers=layers, legend=False)
        assert ax.get_aspect() == aspect
        assert not labels(ax)


MISUSED: dict[str, dict[str, Any]] = {
    "`layers` must name some of basins, field, slow_regions, ": dict(layers=("arrows",)),
    "`layers` must name some of": dict(layers=()),
    "`layers` must name some of .* but is 'field'": dict(layers="field"),
    "`below` must come with a layer .* .slow_regions": dict(layers=("field",), below=0.1),
    "`cells` must come with a layer .* .basins": dict(cells=9),
    "`colors` must come with a layer .* .basins": dict(colors=["red"]),
    "`points` must come with a layer": dict(layers=("field",), points=points()),
    "`x` must be .lower, upper.": dict(x=(1, 0)),
}


@pytest.mark.parametrize("sentence", MISUSED)
def test_a_portrait_refuses_what_it_cannot_draw(sentence):
    with pytest.raises(ValueError, match=sentence):
        plots.phase_portrait(HIMMELBLAU, **MISUSED[sentence])


def test_what_does_not_lie_on_a_plane_is_refused():
    three = np.zeros((4, 3))
    with pytest.raises(ValueError, match="`points` must hold states on a plane"):
        plots.critical_points(points(point((0, 0, 0))))
    with pytest.raises(ValueError, match="`separatrices` must hold states on a plane"):
        plots.separatrices([Separatrix(point((0, 0, 0)), three)])
    with pytest.raises(ValueError, match="`basins` must hold states on a plane"):
        plots.basins(Basins(three, np.zeros(4, int), (point((0, 0, 0)),), three))
    softmax = fl.preference_flow(fl.DPO(0.1), fl.TabularSoftmax([0.2, 0.3, 0.5], [(0, 1)]))
    for draw in (plots.nullclines, plots.phase_portrait):
        with pytest.raises(ValueError, match="`flow` must be on a plane"):
            draw(softmax)
