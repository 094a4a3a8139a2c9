"""Portraits: what the card says is drawn where it says, and shades lie where they belong."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import flowlab as fl
from flowlab import cards, losses, plots
from flowlab.cards import Card, Comparison, CriticalSet

CENTRE, RADIUS = np.array([2.0, -1.0]), 5.0
SQUARE = ((-10.0, 10.0), (-10.0, 10.0))


class Well(fl.losses.AbstractLoss):
    """Lowest at one point."""

    def __call__(self, pairs):
        return (pairs.u_chosen - 3) ** 2 + 2 * (pairs.u_rejected + 4) ** 2


class Ring(fl.losses.AbstractLoss):
    """Lowest on a circle about CENTRE, on which (0, 0) does not lie."""

    def __call__(self, pairs):
        apart = (pairs.u_chosen - CENTRE[0]) ** 2 + (pairs.u_rejected - CENTRE[1]) ** 2
        return (apart - RADIUS**2) ** 2 / 100


@pytest.fixture(scope="module")
def well() -> Card:
    return cards.card(Well(), reach=20.0)


@pytest.fixture(scope="module")
def ring(well: Card) -> Card:
    nearest = CENTRE - RADIUS * CENTRE / np.linalg.norm(CENTRE)
    middle = rest("point", (CENTRE[0], CENTRE[1]), "unstable")
    turn = np.linspace(0, 2 * np.pi, 41)
    path = CENTRE + RADIUS * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    path[-1] = path[0]
    around = rest("line", (nearest[0], nearest[1]), "stable", straight=False, path=path)
    return card_of(Ring(), replace(well, reach=20.0), middle, around)


def card_of(loss: losses.AbstractLoss, ring: Card, *critical_sets: CriticalSet) -> Card:
    """What a portrait reads of the card of a loss, with critical points made up."""
    plane = fl.LogRatioPlane()
    speed = float(fl.preference_flow(loss, plane).speed(np.zeros(2)))
    return replace(ring, loss=loss, plane=plane, speed=speed, critical_sets=critical_sets)


def level(margin: float) -> np.ndarray:
    """A line of one margin, from side to side of what a card looks at."""
    return np.array([[-100.0, -100.0 - margin], [100.0, 100.0 - margin]])


def rest(kind: Any, position: tuple[float, float], stability: Any, **more: Any) -> CriticalSet:
    return CriticalSet(kind, position, stability, (0.0, 1.0), more.pop("margin", None), **more)


def labelled(ax: Axes, label: str) -> list[Line2D]:
    return [line for line in ax.lines if line.get_label() == label]


def points(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_xydata())


def told(ax: Axes) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def written(ax: Axes) -> list[str]:
    """What is written in the Axes; arrowheads are texts without words."""
    return [text.get_text() for text in ax.texts if text.get_text()]


def shaded(ax: Axes, label: str, position: tuple[float, float]) -> bool:
    """Whether a place is within the shade that has this entry in the legend."""
    (entry,) = [patch for patch in ax.patches if patch.get_label() == label]
    fills = [
        one
        for one in ax.collections
        if isinstance(one, ContourSet)
        and one.hatches == [entry.get_hatch()]
        and np.array_equal(one.get_facecolor()[0], entry.get_facecolor())
    ]
    return any(path.contains_point(position) for one in fills for path in one.get_paths())


@pytest.mark.exhaustive
def test_the_portrait_of_a_loss_of_ones_own_shows_where_its_card_says_it_rests(well):
    ax = plots.portrait(well, lines=0)
    (mark,) = labelled(ax, "stable critical point")
    assert points(mark)[0] == pytest.approx([3, -4], abs=1e-6)
    assert ax.get_title() == "Well()"
    assert (ax.get_xlabel(), ax.get_ylabel()) == plots.LOG_RATIOS
    assert (ax.get_xlim(), ax.get_ylim()) == ((-20, 20), (-20, 20))


@pytest.mark.exhaustive
def test_a_curved_line_of_critical_points_is_drawn_all_around(ring):
    ax = plots.portrait(ring, x=SQUARE[0], y=SQUARE[1], lines=6)
    (circle,) = labelled(ax, "stable line of critical points")
    assert np.linalg.norm(points(circle) - CENTRE, axis=1) == pytest.approx(RADIUS, rel=1e-5)
    around = np.unwrap(np.arctan2(*(points(circle) - CENTRE).T[::-1]))
    assert abs(around[-1] - around[0]) == pytest.approx(2 * np.pi, rel=1e-2)
    assert (ax.get_xlim(), ax.get_ylim()) == SQUARE


def test_flow_lines_start_on_a_ring_and_at_the_reference_point_and_end_at_rest(ring):
    ax = plots.portrait(ring, x=SQUARE[0], y=SQUARE[1], lines=6)
    thin = [
        points(line)
        for line in ax.lines
        if line.get_linewidth() == 0.9 and line.get_color() == "0.15"
    ]
    paths = [path for path in thin if len(path) > 1]
    assert len(paths) == 6
    for path in paths:
        assert np.max(np.abs(path[0])) == pytest.approx(9)
    (main,) = [
        line
        for line in ax.lines
        if line.get_linewidth() == 2.4 and len(points(line)) > 3 and line.get_color() == "#0072b2"
    ]
    assert np.array_equal(points(main)[0], [0, 0])
    for path in [*paths, points(main)]:
        assert np.linalg.norm(path[-1] - CENTRE) == pytest.approx(RADIUS, rel=1e-3)
    (reference,) = labelled(ax, "reference point (0, 0)")
    assert np.array_equal(points(reference), [[0, 0]])


MARKS = {
    "stable critical point": (rest("point", (3.0, -4.0), "stable"), "o", "#d55e00"),
    "unstable critical point": (rest("point", (3.0, -4.0), "unstable"), "o", "white"),
    "saddle": (rest("point", (3.0, -4.0), "saddle"), "X", "#d55e00"),
    "neutral critical point": (rest("point", (3.0, -4.0), "neutral"), "s", "white"),
}


@pytest.mark.parametrize("label", MARKS)
def test_a_point_is_marked_by_its_stability_where_the_card_says(label, ring):
    found, marker, face = MARKS[label]
    ax = plots.portrait(card_of(Ring(), ring, found), lines=0)
    (mark,) = labelled(ax, label)
    assert np.array_equal(points(mark), [[3, -4]])
    assert (mark.get_marker(), mark.get_markerfacecolor()) == (marker, face)


def test_straight_lines_are_drawn_along_the_path_that_the_card_gives(ring):
    sloping = rest("line", (2.0, -2.0), "unstable", margin=4.0, path=level(4.0))
    upright = rest("line", (5.0, 0.0), "stable", path=np.array([[5.0, -100.0], [5.0, 100.0]]))
    ax = plots.portrait(card_of(Upright(), ring, sloping, upright), lines=0)
    (unstable,) = labelled(ax, "unstable line of critical points")
    assert points(unstable) @ [1, -1] == pytest.approx(4)
    (stable,) = labelled(ax, "stable line of critical points")
    assert points(stable)[:, 0] == pytest.approx(5)
    for line, path in ((unstable, sloping.path), (stable, upright.path)):
        assert points(line)[[0, -1]] == pytest.approx(path)
    assert (unstable.is_dashed(), stable.is_dashed()) == (True, False)


class Upright(fl.losses.AbstractLoss):
    """Lowest where the chosen log-ratio is 5."""

    def __call__(self, pairs):
        return (pairs.u_chosen - 5) ** 2


def test_what_rests_outside_of_the_axes_is_told_in_words(ring):
    far = rest("line", (50.0, -50.0), "stable", margin=100.0, path=level(100.0))
    point = rest("point", (0.0, 30.0), "saddle")
    more = rest("point", (0.0, 40.0), "stable")
    ax = plots.portrait(card_of(Ring(), ring, far, point, more), lines=0)
    (text,) = written(ax)
    words = "outside: stable line at margin 100; saddle point (0, 30); 1 more"
    assert text.replace("\n", " ") == words
    assert not [label for label in told(ax) if "critical point" in label or label == "saddle"]


def test_the_chosen_log_ratio_falls_where_it_is_shaded(ring):
    label = "chosen log-ratio falls"
    ax = plots.portrait(card_of(Upright(), ring), lines=0)
    for position, expected in (((5.5, 0), True), ((19, -19), True), ((4.5, 0), False)):
        assert shaded(ax, label, position) == expected
    assert label not in told(plots.portrait(card_of(fl.DPO(0.1), ring), lines=0))


@pytest.mark.exhaustive
def test_plateaus_are_shaded_on_the_wrong_side_alone(ring):
    label = "wrong side, and speed below\n1 % of that at (0, 0)"
    ax = plots.portrait(card_of(losses.named("dpo_forward_kl"), ring), lines=0)
    for position, expected in (
        ((10, 15), True),
        ((-10, 15), False),
        ((10, 5), False),
        ((3, 2), False),
    ):
        assert shaded(ax, label, position) == expected


class Shelf(fl.losses.AbstractLoss):
    """Flat where the margin is below −10."""

    def __call__(self, pairs):
        return jnp.maximum(pairs.margin + 10, 0.0)


@pytest.mark.exhaustive
def test_what_is_slow_because_it_rests_is_no_plateau(ring):
    label = "wrong side, and speed below\n1 % of that at (0, 0)"
    rests = rest("line", (-2.0, 2.0), "stable", margin=-4.0, path=level(-4.0))
    below = Wrong()
    assert label in told(plots.portrait(card_of(below, ring), lines=0))
    assert label not in told(plots.portrait(card_of(below, ring, rests), lines=0))
    region = rest("region", (-5.0, 5.0), "stable")
    assert label in told(plots.portrait(card_of(Shelf(), ring), lines=0))
    assert label not in told(plots.portrait(card_of(Shelf(), ring, region), lines=0))


class Wrong(fl.losses.AbstractLoss):
    """Lowest at a margin of −4."""

    def __call__(self, pairs):
        return (pairs.margin + 4) ** 2


@pytest.mark.exhaustive
def test_a_region_of_critical_points_and_what_is_not_defined_are_shaded(ring):
    region = rest("region", (5.0, -5.0), "stable")
    ax = plots.portrait(card_of(losses.Hinge(0.1), ring, region), lines=0)
    for position, expected in (((15, 0), True), ((9, 0), False)):
        assert shaded(ax, "stable region of critical points", position) == expected
    assert not written(ax)
    ax = plots.portrait(card_of(losses.ORPO(), ring), x=(0, 40), lines=4)
    for position, expected in (((30, 0), True), ((10, 0), False)):
        assert shaded(ax, "loss not defined", position) == expected
    starts = [
        points(line)[0]
        for line in ax.lines
        if line.get_linewidth() == 0.9 and len(points(line)) > 1
    ]
    assert starts
    assert all(start[0] < 20 for start in starts)
    assert "loss not defined" not in told(plots.portrait(card_of(losses.ORPO(), ring), lines=0))


def test_a_portrait_has_a_legend_with_every_entry_once_unless_none_is_wanted(ring):
    ax = plots.portrait(ring, lines=2)
    legend = ax.get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    assert len(set(words)) == len(words)
    assert set(words) == set(told(ax))
    assert plots.portrait(ring, lines=2, legend=False).get_legend() is None


@pytest.mark.exhaustive
def test_a_sheet_has_one_legend_and_the_same_axes_for_all(ring):
    dpo = card_of(fl.DPO(0.1), ring)
    figure, axes = plots.portraits(
        {"ring": ring, "dpo": dpo, "again": dpo}, x=(-8, 8), y=(-9, 9), columns=2
    )
    assert isinstance(figure, Figure)
    assert figure.axes == axes
    assert [ax.get_title().splitlines()[0] for ax in axes] == ["ring", "dpo", "again"]
    for ax in axes:
        assert ax.get_legend() is None
        assert (ax.get_xlim(), ax.get_ylim()) == ((-8, 8), (-9, 9))
        assert axes[0].get_shared_x_axes().joined(axes[0], ax)
        assert axes[0].get_shared_y_axes().joined(axes[0], ax)
    assert [bool(ax.get_xlabel()) for ax in axes] == [False, True, True]
    assert [bool(ax.get_ylabel()) for ax in axes] == [True, False, True]
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words.count("margin 0") == 1
    assert "stable line of critical points" in words


@pytest.mark.exhaustive
def test_lines_compared_are_the_numbers_of_the_comparison():
    both = {"dpo": fl.DPO(0.1), "hinge": losses.Hinge(0.1)}
    found = cards.compare(both, times=np.geomspace(0.1, 40, 9).tolist(), margins=[1.0, 5.0])
    axes = plots.comparison(found)
    chosen = found.states[..., 0]
    margin = chosen - found.states[..., 1]
    for position, name in enumerate(both):
        expected = [(found.times, margin[position]), (found.times, chosen[position])]
        for ax, (x, y) in zip(axes, [*expected, (margin[position], chosen[position])], strict=True):
            (line,) = labelled(ax, name)
            np.testing.assert_array_equal(points(line), np.stack([x, y], axis=1))
    styles = [(line.get_color(), line.is_dashed()) for ax in axes[:1] for line in ax.lines[:2]]
    assert len({color for color, _ in styles}) == len({dashed for _, dashed in styles}) == 2
    dots = [points(line) for line in axes[2].lines if line.get_marker() == "o"]
    for position, drawn in enumerate(dots):
        wanted = np.stack([found.margins, found.margin_states[position, :, 0]], axis=1)
        np.testing.assert_array_equal(drawn, wanted)
    assert axes[0].get_xscale() == "log"


def test_a_line_that_ends_early_has_a_cross_at_its_end():
    states = np.array([[[1.0, -1.0], [2.0, -2.0], [np.nan, np.nan]], np.zeros((3, 2))])
    times, nothing = np.array([1.0, 2.0, 3.0]), np.full((2, 1), np.nan)
    found = Comparison(
        ("a", "b"), times, states, np.array([9.0]), nothing, np.full((2, 1, 2), np.nan)
    )
    axes = plots.comparison(found, axes=plots.panels(1, 3)[1])
    crosses = [line for line in axes[0].lines if line.get_marker() == "x" and len(points(line))]
    assert [points(line).tolist() for line in crosses] == [[[2.0, 4.0]]]
    assert "line ends (at rest, or not defined beyond)" in told(axes[0])


def test_what_cannot_be_drawn_is_refused(ring):
    with pytest.raises(ValueError, match=r"`x` must be \(lower, upper\)"):
        plots.portrait(ring, x=(1, 0))
    with pytest.raises(ValueError, match="`lines` must be a non-negative int, but is -1"):
        plots.portrait(ring, lines=-1)
    with pytest.raises(ValueError, match="`cards` must hold at least one card"):
        plots.portraits({})
    with pytest.raises(ValueError, match="`columns` must be a positive int, but is 0"):
        plots.portraits({"ring": ring}, columns=0)
    empty: Any = None
    with pytest.raises(ValueError, match="`axes` must hold three Axes, but holds 1"):
        plots.comparison(empty, axes=plots.panels()[1])
