"""Flow lines all over a plane: they follow closed forms, keep their distance, and leave no gaps."""

from typing import Any

import numpy as np
import pytest
from scipy.spatial import KDTree

import flowlab as fl
from flowlab import plots, potentials
from flowlab.plots.phase import title_of

APART = 1 / 8
SPANS: dict[str, Any] = dict(x=(0.0, 1.0), y=(0.0, 2.0))


@pytest.fixture(scope="module")
def drawn() -> list[np.ndarray]:
    """The flow lines of DPO on free ratios, as they are drawn."""
    flow = fl.preference_flow(fl.DPO(beta=0.3), fl.RatioPlane())
    ax = plots.flow_lines(flow, spacing=APART, **SPANS)
    assert [text for text in ax.get_legend_handles_labels()[1]] == ["flow lines"]
    assert ax.get_xlabel() == plots.RATIOS[0]
    paths = [np.asarray(line.get_xydata()) for line in ax.lines]
    return [path for path in paths if path.size]


def test_each_line_is_one_of_the_circles_that_are_known(drawn):
    # On the free ratio plane x1 dx1 + x2 dx2 = 0 along every flow line, whatever β.
    assert len(drawn) > 4
    for path in drawn:
        radius = np.hypot(*path.T)
        np.testing.assert_allclose(radius, radius[0], rtol=1e-5)


def test_lines_run_forwards_and_stay_within_the_axes(drawn):
    for path in drawn:
        assert np.all(np.diff(path[:, 0]) >= 0) and np.all(np.diff(path[:, 1]) <= 0)
        assert np.all(path > -0.03) and np.all(path[:, 0] < 1.03) and np.all(path[:, 1] < 2.06)


def test_lines_keep_their_distance_and_leave_no_gap(drawn):
    scaled = [path / (1.0, 2.0) for path in drawn]
    for index, path in enumerate(scaled):
        others = np.concatenate(scaled[:index] + scaled[index + 1 :])
        # Half the spacing where lines end beside others, less the chord between two points.
        assert np.min(KDTree(others).query(path)[0]) > 0.45 * APART
    places = np.stack(np.meshgrid(*[np.linspace(0.05, 0.95, 19)] * 2), axis=-1).reshape(-1, 2)
    widest = np.max(KDTree(np.concatenate(scaled)).query(places)[0])
    assert widest < 1.5 * APART


def test_a_spacing_is_a_part_of_the_axes():
    for wrong in (0.0, 0.6, np.nan):
        with pytest.raises(ValueError, match="Argument `spacing` must lie between 0.01 and 0.5"):
            plots.flow_lines(fl.Flow(potentials.Bowl()), spacing=wrong)


def test_a_kernel_stands_in_the_title_where_it_couples():
    loss = fl.DPO(0.1)
    coupled: Any = [[1, 0.5], [0.5, 2]]
    titles = (
        (fl.LogRatioPlane(), "DPO(beta=0.1)"),
        (fl.RatioPlane(), "DPO(beta=0.1)"),
        (fl.LogRatioPlane(coupled), "DPO(beta=0.1)\nkernel k_ww = 1, k_wl = 0.5, k_ll = 2"),
    )
    for policy, title in titles:
        assert title_of(fl.preference_flow(loss, policy)) == title
