"""Interactive portraits: the page holds the flow and its lines, and nothing from outside."""

import html
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from command import flowlab_command, refusal

import flowlab as fl
from flowlab import critical, plots, starts, until
from flowlab.critical import CriticalPoints
from flowlab.plots import InteractivePortrait
from flowlab.plots.views import told
from flowlab.policies import CoupledKernel

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("plotly") is None, reason="plotly is not installed"
)
BETAS = (0.3, 1.0)
FLOW = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
TRACES = 3


def nothing_found(flow: Any, region: Any) -> CriticalPoints:
    return CriticalPoints((), np.asarray(region, float), 1.0, np.zeros(2), 0, flow.components)


@pytest.fixture(scope="module")
def portrait() -> InteractivePortrait:
    with pytest.MonkeyPatch.context() as patch:  # what that finds has tests of its own
        patch.setattr(critical, "critical_points", nothing_found)
        return plots.interactive_portrait(FLOW, over={"beta": BETAS}, side=2)


@pytest.fixture(scope="module")
def traces(portrait: InteractivePortrait) -> list[dict[str, Any]]:
    return json.loads(str(portrait.figure.to_json()))["data"]


def cut(trace: dict[str, Any], name: str) -> list[np.ndarray]:
    """The numbers of each line of a trace that has gaps between lines."""
    found: list[list[float]] = [[]]
    for value in trace[name]:
        found[-1].append(value) if value is not None else found.append([])
    return [np.array(each) for each in found[:-1]]


@pytest.mark.parametrize("view", range(len(BETAS)))
def test_what_stands_under_the_pointer_is_the_field_of_its_beta(view, traces):
    beta, field = BETAS[view], traces[TRACES * view]
    x1, x2 = np.meshgrid(field["x"], field["y"])
    loss, speed, first, second = np.moveaxis(np.array(field["customdata"]), -1, 0)
    slope = beta / (1 + (x1 / x2) ** beta)  # of log(1 + (x2/x1)^β), by the margin
    np.testing.assert_allclose(loss, np.log1p((x2 / x1) ** beta), rtol=1e-4)
    np.testing.assert_allclose(first, slope / x1, rtol=1e-4)
    np.testing.assert_allclose(second, -slope / x2, rtol=1e-4)
    np.testing.assert_allclose(speed, np.hypot(slope / x1, slope / x2), rtol=1e-4)
    np.testing.assert_allclose(field["z"], np.log10(speed), atol=1e-4)
    assert x1.shape == (60, 60)


def drawn(trace: dict[str, Any]) -> Iterator[tuple[np.ndarray, ...]]:
    """Start, x, y and flow times of each line."""
    lines = zip(*(cut(trace, name) for name in ("x", "y", "customdata")), strict=True)
    yield from ((start, *line) for start, line in zip(starts.grid(2), lines, strict=True))


@pytest.mark.parametrize("view", range(len(BETAS)))
def test_the_lines_begin_at_a_grid_of_starts_and_keep_to_circles(view, traces):
    for start, x, y, times in drawn(traces[TRACES * view + 1]):
        np.testing.assert_allclose((x[0], y[0], times[0]), (*start, 0), rtol=1e-5)
        np.testing.assert_allclose(x**2 - start[0] ** 2, start[1] ** 2 - y**2, atol=2e-5)
        assert len(times) > 5 and np.all(np.diff(times) >= 0)
        assert y[-1] == pytest.approx(0, abs=1e-6) or x[-1] > 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("view", range(len(BETAS)))
def test_the_lines_are_those_of_flow_line(view, traces):
    flow = FLOW.with_parameter("beta", BETAS[view])
    for start, x, y, times in drawn(traces[TRACES * view + 1]):
        middle = len(times) // 2
        line = fl.flow_line(flow, start, until=until.time(float(times[middle])), rtol=3e-8)
        np.testing.assert_allclose((x[middle], y[middle]), line.end, rtol=1e-4)


def test_a_line_is_told_with_its_measures(traces):
    facts = dict(traces[1]["meta"][0])
    assert facts["start"] == "(0.25, 0.25)"
    assert facts["loss at the start"] == told(np.log(2))
    # A quarter of a half circle, of radius √(1/8), to the axis x2 = 0.
    assert facts["path length"] == told(np.sqrt(1 / 8) * np.pi / 4)
    assert facts["chosen log-probability, change (nats)"] == told(np.log(np.sqrt(2)))
    assert facts["rejected log-probability, change (nats)"] == "−∞"
    assert facts["the line"] == "ends on the boundary, where a ratio is 0"
    assert "flow time at which it is back" not in facts  # for it never falls


def test_a_line_that_rests_says_where():
    bowl = fl.Flow(lambda y: 0.5 * y[0] ** 2 + y[1] ** 2)
    found = plots.interactive_portrait(bowl, x=(-1, 2), y=(-1, 1), side=2)
    (view,) = found.views
    assert [point.kind for point in view.points] == ["minimum"]
    assert "minimum" in found.html()
    for line in view.lines:
        facts = dict(line.facts)
        assert facts["the line"] == "has come to the minimum"
        x, y = line.path[0]
        assert facts["potential at the start"] == told(0.5 * x**2 + y**2)
        np.testing.assert_allclose(line.path[-1], 0, atol=1e-4)
        # y/y₀ = (x/x₀)², for y falls twice as fast.
        np.testing.assert_allclose(line.path[:, 1] / y, (line.path[:, 0] / x) ** 2, atol=1e-6)


def test_the_slider_shows_one_view_at_a_time(portrait, traces):
    (slider,) = portrait.figure.to_dict()["layout"]["sliders"]
    assert [step["label"] for step in slider["steps"]] == ["0.3", "1"]
    assert slider["currentvalue"]["prefix"] == "β = "
    for index, step in enumerate(slider["steps"]):
        changed, which = step["args"]
        assert which == [*range(len(traces) - 1)]  # all but the line that was clicked
        seen = [trace for trace, shown in zip(which, changed["visible"], strict=True) if shown]
        assert seen == [*range(TRACES * index, TRACES * (index + 1))]
    assert [trace.get("visible") for trace in traces] == [True] * 3 + [False] * 3 + [None]


def test_the_page_needs_nothing_from_outside_and_a_notebook_shows_it(portrait, tmp_path):
    page = portrait.save(tmp_path / "it.html").read_text("utf-8")
    assert re.findall(r"<(?:script|link|img|iframe)[^>]* (?:src|href)=[^>]*>", page) == []
    assert page.count("<script") == 3 and "plotly.js v" in page
    frame = portrait._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert html.unescape(frame.split('srcdoc="', 1)[1].rsplit('" style', 1)[0]) == page
    told = "InteractivePortrait(DPO(beta=0.3), beta at 2 values, 8 flow lines)"
    assert repr(portrait) == told
    with pytest.raises(ValueError, match="Argument `path` must end in .html, but is"):
        portrait.save(tmp_path / "it.png")


def test_without_plotly_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flowlab-jax\[interactive\]'\.$"):
        plots.interactive_portrait(FLOW)
    said = refusal(flowlab_command("portrait", "dpo", "--out", tmp_path / "it.html"), code=1)
    assert said.startswith("Interactive portraits are drawn by plotly, which is not installed: ")
    assert list(tmp_path.iterdir()) == []


REFUSED: dict[str, dict[str, Any]] = {
    "Argument `over` must name one hyper-parameter for the slider, but names": {
        "over": {"beta": [1], "offset": [1]}
    },
    "Argument `over` must give at most 21 values for `beta`, but gives 22.": {
        "over": {"beta": np.arange(1, 23)}
    },
    "Argument `side` must be an int from 1 to 24, but is 25.": {"side": 25},
    "Argument `x` must be (lower, upper), but is (1, 0)": {"x": (1, 0)},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_on_a_page_is_refused(sentence):
    from flowlab.losses import ODPO

    flow = fl.preference_flow(ODPO(), fl.RatioPlane(offset=1.0))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        plots.interactive_portrait(flow, **REFUSED[sentence])


ASKED: dict[str, tuple[str, dict[str, list[float]]]] = {
    "dpo --interactive": ("dpo.html", {"beta": [0.025, 0.05, 0.1, 0.2, 0.4]}),
    "dpo --out it.html": ("it.html", {"beta": [0.025, 0.05, 0.1, 0.2, 0.4]}),
    "dpo --interactive --over beta=0.1,0.3": ("dpo.html", {"beta": [0.1, 0.3]}),
    "dpo --interactive --over Beta=1": ("dpo.html", {"beta": [1.0]}),
    "sft --interactive": ("sft.html", {}),
    "himmelblau --interactive": ("himmelblau.html", {}),
    "dpo --policy log-ratio --interactive --over k_wl/k_ww=0,0.5": (
        "dpo.html",
        {"ratio": [0.0, 0.5]},
    ),
}


@pytest.fixture
def made_with(monkeypatch) -> list[tuple[Any, dict[str, Any]]]:
    """The calls of `plots.interactive_portrait`, which then computes nothing."""
    calls: list[tuple[Any, dict[str, Any]]] = []

    def note(flow: Any, **options: Any) -> InteractivePortrait:
        calls.append((flow, options))
        return InteractivePortrait("it", options["over"], ())

    monkeypatch.setattr(plots, "interactive_portrait", note, raising=False)
    monkeypatch.setattr(InteractivePortrait, "html", lambda self: "the page")
    return calls


@pytest.mark.parametrize("words", ASKED)
def test_the_command_writes_a_page_with_the_slider_asked_for(
    words, tmp_path, monkeypatch, made_with
):
    monkeypatch.chdir(tmp_path)
    name, over = ASKED[words]
    result = flowlab_command("portrait", *words.split())
    assert result.exit_code == 0, result.stderr
    ((flow, options),) = made_with
    assert options["over"] == over
    assert (tmp_path / name).read_text() == "the page"
    assert result.stdout.endswith(f"page: {name}\n")
    if "ratio" in over:
        np.testing.assert_array_equal(flow.policy.kernel(np.zeros(2)), np.eye(2))
        assert isinstance(flow.policy.matrix, CoupledKernel)


NOT_MADE = {
    "dpo --over beta=1": "Option --over has no effect without --interactive.",
    "dpo --interactive --basins": "Option --basins has no effect with --interactive.",
    "dpo --interactive --out it.png": "Option --figure must end in .html, but is it.png.",
    "dpo --interactive --over beta": "Option --over must be NAME=VALUE,VALUE,..., but is 'beta'.",
    "dpo --interactive --over beat=1": (
        "Option --over must name one of beta, k_wl/k_ww, but names 'beat'; did you mean beta?"
    ),
    "dpo --interactive --over k_wl/k_ww=0": (
        "Option --over has no effect on k_wl/k_ww without --policy log_ratio."
    ),
    "dpo --kernel 1,0,1 --interactive --over k_wl/k_ww=2": (
        "Option --over must have k_wl/k_ww of at most 1 in size, the root of k_ll/k_ww, but is 2."
    ),
}


@pytest.mark.parametrize("words", NOT_MADE)
def test_a_page_that_cannot_be_is_refused_in_one_line(words, tmp_path, monkeypatch, made_with):
    monkeypatch.chdir(tmp_path)
    assert refusal(flowlab_command("portrait", *words.split())) == NOT_MADE[words]
    assert made_with == []
    assert list(tmp_path.iterdir()) == []
