"""What objects show of themselves: one short line, a table in notebooks, one obvious picture."""

import re
from typing import Any
from xml.etree import ElementTree

import matplotlib.axes
import numpy as np
import pytest
from command import LOG, made_up_card

import flowlab as fl
from flowlab import (
    _pages,
    _tables,
    cards,
    critical,
    logs,
    losses,
    policies,
    potentials,
    starts,
    until,
)
from flowlab.critical import Basins, CriticalPoint, CriticalPoints
from flowlab.ensemble import Runs
from flowlab.solve import Line

PAPER = fl.preference_flow(fl.DPO(beta=0.3), fl.RatioPlane())
RATES = np.array([1.0, 2.0])
MINIMUM = CriticalPoint(np.array([3.0, 2.0]), "minimum", 0, 0.5, 1e-12, RATES, RATES)
REGION = np.array([[-5.0, 5.0], [-5.0, 5.0]])
POINTS = CriticalPoints((MINIMUM,), REGION, 0.25, np.array([1.0, 1.0]), 256)
LABELS = np.array([0, 0, 0, -1])
BASINS = Basins(np.ones((4, 2)), LABELS, (MINIMUM,), np.ones((4, 2)))


@pytest.fixture(scope="module")
def line() -> Line:
    # On the log-ratio plane h' = 2β σ(−β h), so that h + e^{βh}/β grows by 2β per unit of time.
    flow = fl.preference_flow(fl.DPO(beta=0.3), fl.LogRatioPlane())
    return fl.flow_line(flow, np.zeros(2), until=until.margin_above(1))


@pytest.fixture(scope="module")
def runs() -> Runs:
    """Those of a grid of four by three starts, which no transposition leaves as it is."""
    cells = starts.grid((4, 3), (0.1, 0.2), (0.9, 0.5))
    return fl.sweep(PAPER, cells, until=until.time(0.1), over={"beta": [0.1, 0.3]})


SHORT: dict[str, Any] = {
    "PreferenceFlow(loss=DPO(beta=0.3), policy=RatioPlane())": PAPER,
    "Flow(potential=Himmelblau())": fl.Flow(potentials.Himmelblau()),
    "RatioPlane(domain=Box(chosen=2.0, rejected=1.0), wall='slide')": fl.RatioPlane(
        fl.domains.Box(2), wall="slide"
    ),
    "LogRatioPlane(kernel=[[2.0, 0.5], [0.5, 1.0]])": fl.LogRatioPlane([[2, 0.5], [0.5, 1]]),  # type: ignore[arg-type]
    "RatioPlane(offset=1)": fl.RatioPlane(offset=1),
    "TabularSoftmax(reference=[0.2, 0.3, 0.5], preferences=((0, 1),))": fl.TabularSoftmax(
        [0.2, 0.3, 0.5], [(0, 1)]
    ),
    "FeatureModel(readout=array of shape (5, 2), features=[0.3, 0.0])": policies.FeatureModel(
        np.ones((5, 2)), [0.3, 0]
    ),
    "Basins(4 starts: minimum at (3, 2) 75.0%, runaway 25.0%)": BASINS,
    "CriticalPoints(1 × minimum, in [-5, 5] × [-5, 5])": POINTS,
    "Card(DPO(beta=0.1), on LogRatioPlane(), within 30 nats)": made_up_card(
        losses.DPO(), reach=30.0
    ),
}


@pytest.mark.parametrize("text", SHORT)
def test_an_object_says_on_one_line_what_it_is(text):
    assert repr(SHORT[text]) == text


def test_a_line_of_many_numbers_is_told_in_a_few_words():
    wide = fl.TabularSoftmax(np.full(400, 1 / 400), [(0, 1)])
    flow = fl.preference_flow(fl.DPO(), wide)
    told = repr(fl.flow_line(flow, wide.reference_state, until=until.time(0.1)))
    assert "arrays of shape (400,)" in told
    assert len(told) < 200


def cells(html: str) -> list[list[str]]:
    """The rows of a table, read by a parser that refuses what is not well-formed."""
    found = ElementTree.fromstring(html)
    return [["".join(cell.itertext()) for cell in row] for row in found.iter("tr")]


def test_a_table_is_well_formed_html_whose_text_is_escaped():
    html = _tables.html("a < b", [("<i>", "&"), ("c", "1")], "lr")
    assert cells(html) == [["<i>", "&"], ["c", "1"]]
    assert ElementTree.fromstring(html).find("caption").text == "a < b"  # type: ignore[union-attr]
    assert 'align:right">1<' in html


def test_objects_show_themselves_as_tables(line, runs):
    assert ["reached", "24", "100.0%"] in cells(runs._repr_html_())
    shown = dict(row for row in cells(line._repr_html_()) if len(row) == 2)
    assert shown["outcome"] == "reached"
    # From h = 0 to 1: t = ((e^{β} − 1)/β + 1) / (2β) with β = 0.3.
    expected = ((np.exp(0.3) - 1) / 0.3 + 1) / 0.6
    assert float(shown["flow time to the target"]) == pytest.approx(expected, rel=1e-5)
    assert ["minimum at (3, 2)", "0.750", "± 0.217"] in cells(BASINS._repr_html_())
    assert cells(POINTS._repr_html_())[1][:3] == ["minimum", "(3, 2)", "0.5"]
    card = made_up_card(losses.DPO(), reach=30.0)
    assert ["conserved", "u_w + u_l"] in cells(card._repr_html_())
    assert cards.description(card).splitlines()[0].split() == cells(card._repr_html_())[0]
    log = logs.read(LOG, beta=0.1)
    rows = {row[0]: row[1:] for row in cells(log._repr_html_())}
    assert rows["loss"] == [f"{log.loss[0]:.4g}", f"{log.loss[-1]:.4g}"]


def test_a_grid_has_its_two_dimensions_with_names_and_units(runs):
    found = runs.to_xarray()
    assert found.time.dims == ("beta", "x_rejected", "x_chosen")
    assert found.end.dims == ("beta", "x_rejected", "x_chosen", "component")
    np.testing.assert_allclose(found.x_chosen, [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(found.x_rejected, [0.25, 0.35, 0.45])
    # Every start stands where it is labelled.
    at = found.sel(x_chosen=0.6, x_rejected=0.25, method="nearest")
    np.testing.assert_allclose(at.starts, [0.6, 0.25])
    (index,) = np.flatnonzero(np.all(np.isclose(runs.starts, [0.6, 0.25]), axis=1))
    np.testing.assert_array_equal(at.end, runs.end[:, index])
    assert found.x_chosen.attrs["long_name"] == "probability ratio of the chosen response"
    assert found.time.attrs["units"] == "learning rate × steps"
    drawn = found.end_time.isel(beta=0).plot()
    assert drawn.axes.get_xlabel().split("\n")[0] == "probability ratio of the"
    assert runs.to_xarray(grid=False).time.dims == ("beta", "start")


@pytest.mark.parametrize(
    "points",
    [
        np.array([[0.1, 0.1], [0.1, 0.2], [0.2, 0.1], [0.2, 0.3]]),
        np.array([[0.1, 0.1], [0.1, 0.1], [0.2, 0.1], [0.2, 0.1]]),
        np.array([[0.1, 0.1], [0.2, 0.1], [0.3, 0.1]]),
        np.array([[0.1, 0.1], [0.1, 0.2], [0.2, 0.1]]),
    ],
    ids=["bent", "twice", "a row", "a corner lacking"],
)
def test_starts_that_are_no_grid_stay_in_one_row(points, runs):
    few = fl.sweep(PAPER, points, until=until.time(0.1))
    assert few.to_xarray().time.dims == ("start",)


def test_runs_of_trees_have_a_variable_for_each_leaf():
    model = policies.FeatureModel([[1, 0.5], [1, -0.5]], [0.3, 0])
    state: Any = {n: np.stack([leaf, leaf]) for n, leaf in model.reference_state.items()}
    runs = fl.sweep(fl.preference_flow(fl.DPO(), model), state, until=until.time(0.1))
    found = runs.to_xarray()
    assert found.end_readout.dims == ("start", "readout_1", "readout_2")
    np.testing.assert_array_equal(found.end_features, runs.end["features"])


def test_what_has_one_obvious_picture_draws_it(line):
    for one in (line, POINTS, made_up_card(losses.DPO(), reach=30.0)):
        assert isinstance(one.plot(), matplotlib.axes.Axes)
    assert line.plot().get_xlabel().startswith(r"$u_\mathrm{chosen}")
    gridded = Basins(starts.grid(2), LABELS, (MINIMUM,), np.ones((4, 2)), (2, 2))
    ax = gridded.plot()
    assert gridded.plot(ax=ax) is ax
    assert critical.RUNAWAY == -1


def test_a_page_begins_with_links_to_its_sections():
    page = "{% extends 'base.html' %}{% block title %}T{% endblock %}{% block body %}"
    page += "<h2>First & last</h2><h2 id='own'>Second</h2>{% endblock %}"
    found = _pages._environment().from_string(page).render()
    links = re.findall(r"<a href='#([^']*)'>(.*?)</a>", found)
    assert links == [("section-1", "First & last"), ("own", "Second")]
    assert all(f"<h2 id='{place}'>{title}</h2>" in found for place, title in links)
    assert found.index("<h1>T</h1>") < found.index("<nav") < found.index("<h2")
    with_own = page.replace("<h2>First", "<nav>mine</nav><h2>First")
    assert _pages._environment().from_string(with_own).render().count("<nav") == 1
