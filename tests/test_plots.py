"""Figures: what is drawn is what was given, and nothing outside of the Axes is touched."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

import flowlab as fl
from flowlab import logs, plots, starts, until
from flowlab.domains import Box, Quadrant, Simplex
from flowlab.plots.canvas import names_for

LOG = Path(__file__).parent / "data" / "dpo_beta0.1_similar_sft300.json"
FLOW = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
ON_LOG_RATIOS = fl.preference_flow(fl.DPO(0.3), fl.LogRatioPlane())
ARC = np.stack([np.sin(np.linspace(0.1, 1.5, 30)), np.cos(np.linspace(0.1, 1.5, 30))], axis=1)
VALUES = np.arange(1.0, 7.0).reshape(2, 3)


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def quiver(ax: Axes) -> Quiver:
    return next(artist for artist in ax.collections if isinstance(artist, Quiver))


def drawn_lines(ax: Axes, points: int) -> list[np.ndarray]:
    found = [np.asarray(line.get_xydata()) for line in ax.lines]
    return [line for line in found if len(line) == points]


def test_every_figure_composes_on_one_axes_and_touches_no_global_state():
    before = dict(matplotlib.rcParams)
    ax = plots.map_of(VALUES, label="time", of=FLOW)
    for again in (
        plots.field(FLOW, color="0.5", ax=ax),
        plots.walls(Box(), ax=ax),
        plots.lines([ARC], ax=ax),
        plots.log_path(logs.read(LOG, beta=0.1), ax=ax),
    ):
        assert again is ax
    figure = ax.figure
    assert isinstance(figure, Figure)
    assert ax.get_xlabel() == plots.RATIOS[0]  # the first to draw names the axes
    assert {"wall (ticks: closed side)", "flow line (dot: start)", "training run"} <= {*labels(ax)}
    figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before


def test_drawing_does_not_load_pyplot():
    code = (
        "import sys, numpy as np; from flowlab import plots; plots.map_of(np.eye(2), label='x');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_axes_are_named_for_the_policy():
    assert names_for(FLOW) == plots.RATIOS
    assert names_for(ON_LOG_RATIOS) == plots.LOG_RATIOS
    ax = plots.field(ON_LOG_RATIOS, x=(-1, 1), y=(-1, 1))
    assert (ax.get_xlabel(), ax.get_ylabel()) == plots.LOG_RATIOS
    plain = plots.field(fl.Flow(lambda y: y @ y), x=(-1, 1), y=(-1, 1))
    assert plain.get_xlabel() == "$y_{1}$"


def test_a_surface_stands_at_the_values_of_the_loss():
    ax = plots.loss_surface(FLOW, x=(0.5, 1.5), y=(0.5, 1.5))
    low, high = ax.get_zlim()  # type: ignore[attr-defined]
    assert low < np.log1p((1 / 3) ** 0.3) * 1.03 < high
    assert low < np.log(2) < high < np.log1p(3**0.3) * 1.05
    assert ax.get_zlabel() == "loss $L$ (nats)"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match='projection="3d"'):
        plots.loss_surface(FLOW, ax=plots.panels()[1][0])


def test_arrows_point_along_the_velocity_and_grow_with_its_logarithm():
    ax = plots.field(FLOW, arrows=7)
    arrows = quiver(ax)
    places = np.asarray(arrows.XY)
    lengths = np.hypot(arrows.U, arrows.V)
    ratio = places[:, 1] / places[:, 0]
    assert np.allclose(
        np.asarray(np.divide(arrows.U, -np.asarray(arrows.V))), ratio
    )  # Corollary 1 of arXiv 2404.04626
    speed = 0.3 / (1 + ratio**-0.3) * np.hypot(*(1 / places).T)
    assert np.allclose(np.asarray(arrows.get_array()), speed)
    slope, offset = np.polyfit(np.log(speed), lengths, 1)
    assert np.allclose(lengths, slope * np.log(speed) + offset)
    assert lengths.min() == pytest.approx(0.4)
    assert lengths.max() == pytest.approx(1.0)


def test_the_legend_gives_the_slowest_and_the_fastest_arrow():
    speeds = np.asarray(quiver(plots.field(FLOW, arrows=7)).get_array())
    ax = plots.field(FLOW, arrows=7, color="0.5")
    found = [label for label in labels(ax) if label.startswith("speed")]
    assert found[0] == f"speed {speeds.min():.2g}"
    assert found[-1] == f"speed {speeds.max():.2g} (length: log)"
    assert not labels(plots.field(FLOW, levels=0, legend=False))


@pytest.mark.parametrize("before", [True, False])
def test_a_title_stands_above_the_legend_whenever_it_is_set(before):
    figure, (ax,) = plots.panels(size=(5, 4.5))
    if before:
        ax.set_title("two\nlines")
    plots.lines([ARC], names=("a", "b"), ax=ax)
    plots.lines([ARC], color="red", label="another", ax=ax)
    if not before:
        ax.set_title("two\nlines")
    FigureCanvasAgg(figure).draw()
    legend = ax.get_legend()
    assert legend is not None and legend.get_window_extent().height > 10
    assert ax.title.get_window_extent().ymin >= legend.get_window_extent().ymax
    assert ax.title.get_window_extent().ymax <= figure.bbox.ymax  # and is not clipped
    assert len(ax.child_axes) == 1


def test_a_field_has_no_arrows_outside_of_the_domain():
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Simplex(), wall="slide"))
    places = np.asarray(quiver(plots.field(flow)).XY)
    assert len(places) > 100
    assert np.all(places.sum(axis=1) <= 1)


def test_a_field_that_is_still_has_no_arrows():
    ax = plots.field(fl.Flow(lambda y: 0 * y[0]))
    assert not any(isinstance(artist, Quiver) for artist in ax.collections)


def test_lines_of_given_states_are_drawn_as_given_with_their_direction():
    ax = plots.lines([ARC, ARC * 0.5], names=("a", "b"))
    first, second = drawn_lines(ax, len(ARC))
    assert np.array_equal(first, ARC)
    assert np.array_equal(second, ARC * 0.5)
    assert len(ax.texts) == 2  # an annotation holds the arrowhead
    assert ax.get_xlabel() == "a"
    tip = np.array(ax.texts[0].xy)  # type: ignore[attr-defined]
    tail = np.array(ax.texts[0].get_position())
    assert tip[0] > tail[0] and tip[1] < tail[1]


def test_lines_from_starts_follow_the_flow():
    starts = np.array([[0.1, 0.9], [0.5, 0.5]])
    ax = plots.lines(starts, flow=FLOW, until=until.loss_below(0.1))
    paths = [np.asarray(line.get_xydata()) for line in ax.lines]
    paths = [path for path in paths if len(path) > 2]
    assert len(paths) == 2
    for path, start in zip(paths, starts, strict=True):
        assert np.array_equal(path[0], start)
        assert np.hypot(*path.T) == pytest.approx(np.hypot(*start), rel=1e-6)
        assert np.log1p((path[-1, 1] / path[-1, 0]) ** 0.3) == pytest.approx(0.1)
    assert ax.get_xlabel() == plots.RATIOS[0]


def test_lines_of_line_objects_pass_through_their_steps():
    line = fl.flow_line(FLOW, np.array([0.1, 0.9]), until=until.loss_below(0.1))
    (drawn,) = drawn_lines(plots.lines([line]), len(line.times))
    assert np.array_equal(drawn, line.states)


def test_the_part_on_a_wall_is_marked():
    path = np.array([[0.6, 0.9], [0.9, 0.6], [1.0, 0.5], [1.0, 0.3], [1.0, 0.0]])
    ax = plots.lines([path], domain=Box())
    assert any(np.array_equal(np.asarray(line.get_xydata()), path[2:]) for line in ax.lines)
    assert "slides along the wall" in labels(ax)
    assert "slides along the wall" not in labels(plots.lines([path]))


@pytest.mark.parametrize(
    ("domain", "ends"),
    [
        (Box(0.5, 0.8), [{(0.5, 0.0), (0.5, 0.8)}, {(0.0, 0.8), (0.5, 0.8)}]),
        (Simplex(1.0, 2.0), [{(0.0, 0.5), (1.0, 0.0)}]),
        (Box(3.0, 0.5), [{(0.0, 0.5), (1.0, 0.5)}]),
    ],
)
def test_walls_are_drawn_where_they_bound_the_domain(domain: Box | Simplex, ends: list):
    found = [
        {tuple(map(float, end)) for end in line} for line in drawn_lines(plots.walls(domain), 2)
    ]
    assert found == ends


def test_walls_of_a_domain_without_any_are_refused():
    with pytest.raises(ValueError, match=r"must have walls in a plane.*but is Quadrant\(\)"):
        plots.walls(Quadrant())


def test_a_map_shows_the_values_where_their_starts_are():
    ax = plots.map_of(VALUES, label="time", x=(0.0, 2.0), y=(0.0, 3.0))
    (image,) = ax.images
    assert np.array_equal(np.asarray(image.get_array()), VALUES.T)
    assert image.origin == "lower"
    assert tuple(image.get_extent()) == (0.0, 2.0, 0.0, 3.0)
    assert ax.figure.axes[1].get_ylabel() == "time"
    assert labels(ax) == []


def test_a_map_names_its_axes_as_the_runs_or_the_flow_it_is_of():
    cells = starts.grid(VALUES.shape, (-10.0, 0.0), (10.0, 3.0))
    runs = fl.sweep(ON_LOG_RATIOS, cells, until=until.margin_above(1.0), optimise=False)
    for of, names in (
        (FLOW, plots.RATIOS),
        (runs, plots.LOG_RATIOS),
        (None, ("$y_{1}$", "$y_{2}$")),
    ):
        ax = plots.map_of(VALUES, label="time", of=of)
        assert (ax.get_xlabel(), ax.get_ylabel()) == names
    assert plots.map_of(VALUES, label="time", of=FLOW, names=("a", "b")).get_xlabel() == "a"
    (image,) = plots.map_of(VALUES, label="time", of=runs).images
    assert image.get_extent() == pytest.approx((-10.0, 10.0, 0.0, 3.0))
    with pytest.raises(ValueError, match=r"starts on a regular grid of shape \(3, 2\)"):
        plots.map_of(VALUES.T, label="time", of=runs)


def test_nan_has_a_colour_of_its_own_and_an_entry_in_the_legend():
    values = VALUES.copy()
    values[0, 1] = np.nan
    ax = plots.map_of(values, label="time", missing="not reached")
    assert labels(ax) == ["not reached"]
    image = ax.images[0]
    bad = tuple(image.get_cmap().get_bad())
    assert tuple(np.ravel(image.to_rgba(np.ma.masked_invalid([[np.nan]])))) == bad
    assert bad not in {tuple(image.get_cmap()(i / 255)) for i in range(256)}
    (entry,) = [patch for patch in ax.patches if patch.get_label() == "not reached"]
    assert entry.get_facecolor() == bad


def test_a_centred_map_reaches_as_far_on_both_sides():
    norm = plots.map_of(VALUES, label="ratio", scale="log", center=2.0).images[0].norm
    assert (norm.vmin, norm.vmax) == (pytest.approx(2 / 3), pytest.approx(6))
    norm = plots.map_of(VALUES, label="change", center=2.0).images[0].norm
    assert (norm.vmin, norm.vmax) == (-2, 6)


def test_the_colour_bar_shows_where_values_lie_beyond_it():
    for limits, extend in (((2, 4), "both"), ((1, 4), "max"), ((2, 9), "min"), (None, "neither")):
        image = plots.map_of(VALUES, label="time", limits=limits).images[0]
        assert image.colorbar is not None
        assert image.colorbar.extend == extend


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (np.ones(3), {}, r"`values` must have shape \(m, k\), but has shape \(3,\)"),
        (np.full((2, 2), np.nan), {}, "must hold a finite value"),
        (np.array([[0.0, 1.0]]), {"scale": "log"}, "must be positive on a logarithmic scale"),
        (VALUES, {"scale": "cubic"}, '`scale` must be "linear" or "log"'),
        (VALUES, {"limits": (2, 1)}, r"`limits` must be \(lower, upper\)"),
        (VALUES, {"x": (1, 1)}, r"`x` must be \(lower, upper\)"),
    ],
)
def test_a_map_of_something_else_is_refused(values: np.ndarray, options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        plots.map_of(values, label="time", **options)


def test_changes_are_drawn_as_falls_and_rises_under_the_line_of_equal_change():
    rise, fall, angle = np.array([0.1, 0.2]), np.array([-0.4, -0.3]), np.array([20.0, 70.0])
    ax = plots.changes(rise, fall, angle=angle)
    dots = next(c for c in ax.collections if isinstance(c, PathCollection))
    assert np.array_equal(np.asarray(dots.get_offsets()), np.stack([-fall, rise], axis=1))
    assert np.array_equal(np.asarray(dots.get_array()), angle)
    equal = next(line for line in ax.lines if line.get_label() == "equal change")
    assert np.array_equal(equal.get_xdata(), equal.get_ydata())
    with pytest.raises(ValueError, match=r"one shape \(n,\), but have shapes \(2,\), \(1,\)"):
        plots.changes(rise, fall[:1], angle=angle)


def test_a_log_is_drawn_at_its_log_ratios_in_the_colour_of_its_steps():
    log = logs.read(LOG, beta=0.1)
    ax = plots.log_path(log)
    dots = next(c for c in ax.collections if isinstance(c, PathCollection))
    assert np.array_equal(np.asarray(dots.get_offsets()), log.points)
    assert np.array_equal(np.asarray(dots.get_array()), log.step)
    assert (ax.get_xlabel(), ax.get_ylabel()) == plots.LOG_RATIOS
    assert ax.figure.axes[1].get_ylabel() == "optimiser step"


def test_a_shared_legend_names_everything_once():
    figure, axes = plots.panels(1, 2)
    for ax in axes:
        plots.lines([ARC], ax=ax)
    plots.shared_legend(axes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["flow line (dot: start)"]
    assert all(ax.get_legend() is None for ax in axes)


def test_lines_that_are_no_lines_are_refused():
    with pytest.raises(ValueError, match=r"`of` must have shape \(n, 2\), but has shape \(2,\)"):
        plots.lines([np.zeros(2)])
    with pytest.raises(ValueError, match=r"`of` must have shape \(n, 2\), but has shape \(3, 3\)"):
        plots.lines(np.zeros((3, 3)), flow=FLOW, until=until.loss_below(0.1))
    with pytest.raises(ValueError, match="`flow` and `until` must both be given"):
        plots.lines(np.ones((3, 2)), flow=FLOW)


def test_a_field_of_something_else_is_refused():
    with pytest.raises(ValueError, match="`arrows` must be an int from 2 to 39, but is 1"):
        plots.field(FLOW, arrows=1)
    with pytest.raises(ValueError, match=r"`x` must be \(lower, upper\)"):
        plots.field(FLOW, x=(1, 0))
