"""An interactive portrait: a self-contained HTML page with a slider and clickable flow lines."""

import html as markup
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowlab import _checks as checks
from flowlab._pages import rendered
from flowlab.ensemble.driver import checked_over
from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.measures import Measure
from flowlab.plots.canvas import Span, check_plane
from flowlab.plots.phase import SHAPES, title_of
from flowlab.plots.views import FollowedLine, View, views
from flowlab.policies import CoupledKernel, LogRatioPlane
from flowlab.until import AbstractTarget

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["InteractivePortrait", "interactive_portrait"]

_SIDE = 8  # starts per side of the grid: lines that can be distinguished on a phone
_MOST_LINES = 24  # starts per side: more make the page slow
_MOST_VALUES = 21  # values of the slider: each adds about a quarter of a megabyte
_DIGITS = 6  # of numbers on the page
_TRACES = 3  # of a view: its field, its lines, its critical points
_BULK = (0.01, 0.99)  # quantiles of the speeds between which colours differ
_LEAST = 0.01  # of a decade: the smallest range of the colours
_NAMES = {
    "x_chosen": "x<sub>1</sub>, chosen ratio π/π<sub>ref</sub>",
    "x_rejected": "x<sub>2</sub>, rejected ratio π/π<sub>ref</sub>",
    "u_chosen": "u<sub>chosen</sub> (nats)",
    "u_rejected": "u<sub>rejected</sub> (nats)",
    "probability_chosen": "π(y<sub>w</sub>), chosen probability",
    "probability_rejected": "π(y<sub>l</sub>), rejected probability",
}
_SHAPES = {"minimum": "circle", "saddle": "x", "maximum": "circle-open", "degenerate": "square"}
_LINE_COLOR, _CLICKED_COLOR, _POINT_COLOR = "rgba(40,40,40,0.55)", "#0072b2", "#d55e00"
# From pale to dark, so that lines are visible on all colours.
_SPEEDS = [[0.0, "#fff7d6"], [0.35, "#fdd49e"], [0.7, "#e78a8a"], [1.0, "#9b6fb0"]]


@dataclass(frozen=True)
class InteractivePortrait:
    """An interactive portrait, displayed by notebooks.

    Attributes:
        title: The title: the loss and its kernel, or the potential.
        over: The hyper-parameter of the slider, by name, with its values; empty without a slider.
        views: For each value, the field on a grid, critical points and flow lines.
    """

    title: str
    over: Mapping[str, Sequence[float]]
    views: tuple[View, ...]

    def __repr__(self) -> str:
        """A summary on one line: the title, the slider and the number of flow lines."""
        lines = sum(len(view.lines) for view in self.views)
        slider = "".join(f", {name} at {len(held)} values" for name, held in self.over.items())
        return f"InteractivePortrait({self.title}{slider}, {lines} flow lines)"

    @cached_property
    def figure(self) -> "Figure":
        """The plotly Figure, with hover texts and slider; clicks work only on the page."""
        return _library().Figure(_figure(self))

    def html(self) -> str:
        """The HTML text of the self-contained page, about five megabytes."""
        from plotly.offline import get_plotlyjs

        return rendered(
            "interactive.html",
            title=_title(self.views[0].flow),
            figure=_as_script(str(self.figure.to_json())),
            library=get_plotlyjs(),
            lines=len(self.views[0].lines),
            traces=_TRACES,
        )

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, and return its path.

        Args:
            path: The path of the file, which ends in .html.

        Raises:
            ValueError: If the path does not end in .html.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"Argument `path` must end in .html, but is {path}.")
        path.write_text(self.html(), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        """The page in a frame of its own, isolated from the notebook's scripts and styles."""
        page = markup.escape(self.html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:760px;border:0"></iframe>'


def interactive_portrait(
    flow: AbstractFlow,
    *,
    x: Span = (0.0, 1.0),
    y: Span = (0.0, 1.0),
    over: Mapping[str, Sequence[float]] | None = None,
    until: AbstractTarget | None = None,
    measures: Sequence[Measure] = (),
    side: int = _SIDE,
) -> InteractivePortrait:
    """Make an interactive portrait of a flow, as a self-contained HTML page.

    The colour shows the speed; the pointer shows loss, speed and velocity. Flow lines from a grid
    of starts are computed beforehand, for each value of the slider. A click shows the nearest of
    them with its times, losses and measures. `.save("portrait.html")` writes the page, and
    notebooks display the result. Needs plotly, from the extra `interactive`.

    Args:
        flow: A flow on a plane.
        x: Range of the first component.
        y: Range of the second component.
        over: One hyper-parameter of the flow with the values of the slider, such as
            `{"beta": [0.1, 0.3, 1]}`, or `{"ratio": [0, 0.5, 0.9, 1.1]}` for k_wl/k_ww of
            `LogRatioPlane(CoupledKernel())`; None for no slider.
        until: The target at which flow lines end, from `flowlab.until`; None to end them at the
            sides of the axes or at a critical point.
        measures: Further measures of the lines. The path length is always measured and, for a flow
            with pairs, so are the changes of both log-probabilities and the deepest fall of the
            chosen one.
        side: Number of starts per side of the grid.

    Raises:
        ValueError: If the flow is not on a plane, a range is not (lower, upper), `over` does not
            name one hyper-parameter of the flow with valid values, or there are too many starts or
            values.
        ModuleNotFoundError: If plotly is not installed.

    Accuracy: the field is evaluated on a grid of 60 × 60 points. Lines have a relative tolerance of
        3e-8, and are drawn through the ends of their steps. Numbers on the page have six digits,
        numbers of a line four.
    """
    _library()
    check_plane(flow)
    spans = checks.span("x", x), checks.span("y", y)
    checks.integer("side", side, 1, most=_MOST_LINES)
    values = {name: [*map(float, held)] for name, held in checked_over(over, flow).items()}
    if len(values) > 1:
        raise ValueError(
            "Argument `over` must name one hyper-parameter for the slider, but names "
            f"{', '.join(values)}."
        )
    for name, held in values.items():
        if len(held) > _MOST_VALUES:
            raise ValueError(
                f"Argument `over` must give at most {_MOST_VALUES} values for `{name}`, but gives "
                f"{len(held)}."
            )
    found = views(flow, spans, values, side=side, target=until, measured=measures)
    return InteractivePortrait(_title(flow), values, found)


def _title(flow: AbstractFlow) -> str:
    """The title of a portrait of a flow, on one line."""
    return ", ".join(title_of(flow).splitlines()) or "A flow"


def _library() -> Any:
    """The module `plotly.graph_objects`.

    Raises:
        ModuleNotFoundError: If plotly is not installed.
    """
    try:
        import plotly.graph_objects as library
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Interactive portraits are drawn by plotly, which is not installed: "
            "pip install 'flowlab-jax[interactive]'.",
            name=error.name,
        ) from None
    return library


def _figure(portrait: InteractivePortrait) -> dict[str, Any]:
    """The figure as plotly's data: traces of all views, one of them visible, and a clicked line."""
    seen = portrait.views
    names = [_name(seen[0].flow, axis) for axis in (0, 1)]
    speeds = [_log_speed(view) for view in seen]
    known = np.concatenate([one[np.isfinite(one)] for one in speeds])
    # A speed may tend to infinity at an edge; the colours are for most of its values.
    low, high = np.quantile(known, _BULK) if known.size else (0.0, 1.0)
    limits = float(low), float(max(high, low + _LEAST))
    data: list[dict[str, Any]] = []
    for index, (view, speed) in enumerate(zip(seen, speeds, strict=True)):
        traces = _field(view, speed, names, limits), _lines(view.lines), _points(view)
        data += [{**trace, "visible": index == 0} for trace in traces]
    clicked = {"color": _CLICKED_COLOR, "width": 4}
    hover = "flow time %{customdata:.4g}<br>(%{x:.4g}, %{y:.4g})<extra>the line clicked</extra>"
    data.append(
        {"type": "scatter", "mode": "lines+markers", "x": [], "y": [], "line": clicked}
        | {"marker": {"size": 5, "color": _CLICKED_COLOR, "line": {"width": 0}}}
        | {"hovertemplate": hover}
        | {"showlegend": False, "name": "clicked"}
    )
    return {"data": data, "layout": _layout(portrait, names)}


def _field(
    view: View, speed: np.ndarray, names: Sequence[str], limits: tuple[float, float]
) -> dict[str, Any]:
    """The trace of the field: the speed as colour, and the texts for the pointer."""
    grid = view.grid
    told = np.stack([grid.loss, grid.speed, *np.moveaxis(grid.velocity, -1, 0)], axis=-1)
    of = "loss" if isinstance(view.flow, PreferenceFlow) else "potential"
    first, second = (name.split(",")[0].split(" (")[0] for name in names)
    ticks = np.arange(np.ceil(limits[0]), np.floor(limits[1]) + 1)
    ticks = ticks if len(ticks) > 1 else np.linspace(*limits, 3)
    ticks = ticks[:: -(-len(ticks) // 7)]
    bar = {"orientation": "h", "thickness": 12, "x": 0.5, "y": 1.0, "yanchor": "bottom"}
    bar |= {"title": {"text": "speed, per unit of flow time", "side": "top"}, "len": 1.0}
    bar |= {
        "tickvals": ticks.tolist(),
        "ticktext": [f"{float(f'{10.0**tick:.2g}'):g}" for tick in ticks],
    }
    return {
        "type": "heatmap",
        "x": _rounded(grid.axes[0]),
        "y": _rounded(grid.axes[1]),
        "z": _rounded(speed.T),
        "customdata": _rounded(np.swapaxes(told, 0, 1)),
        "zmin": limits[0],
        "zmax": limits[1],
        "colorscale": _SPEEDS,
        "colorbar": bar,
        "hovertemplate": f"{first} = %{{x:.4g}}<br>{second} = %{{y:.4g}}<br>{of} %{{customdata[0]"
        ":.4g}<br>speed %{customdata[1]:.4g}<br>velocity (%{customdata[2]:.4g}, "
        "%{customdata[3]:.4g})<extra></extra>",
    }


def _log_speed(view: View) -> np.ndarray:
    """Decimal logarithms of the speed; NaN where the speed is zero or undefined."""
    speed = view.grid.speed
    return np.log10(np.where(np.isfinite(speed) & (speed > 0), speed, np.nan))


def _lines(lines: Sequence[FollowedLine]) -> dict[str, Any]:
    """The trace of all lines, separated by gaps, each with an arrowhead halfway along it."""
    path, sizes, times = [], list[int](), []
    for line in lines:
        path += [*_rounded(line.path), [None, None]]
        times += [*_rounded(line.times), None]
        lengths = np.hypot(*np.diff(line.path, axis=0).T)
        half = int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2)) + 1
        sizes += [9 if index == half else 0 for index in range(len(line.times) + 1)]
    x, y = zip(*path, strict=True) if path else ((), ())
    marker = {"symbol": "arrow", "angleref": "previous", "size": sizes, "color": _LINE_COLOR}
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [*x],
        "y": [*y],
        "customdata": times,
        "meta": [[list(fact) for fact in line.facts] for line in lines],
        "line": {"color": _LINE_COLOR, "width": 1},
        "marker": marker | {"line": {"width": 0}, "opacity": 1},
        "hoverinfo": "skip",
        "showlegend": False,
        "name": "flow lines",
    }


def _points(view: View) -> dict[str, Any]:
    """The trace of critical points, marked by kind, and of critical lines."""
    x, y, words = list[Any](), list[Any](), list[str]()
    shapes, sizes = list[str](), list[int]()
    for point in view.points:
        path = np.atleast_2d(point.position if point.path is None else point.path)
        x += [*_rounded(path[:, 0]), None]
        y += [*_rounded(path[:, 1]), None]
        words += [point.name] * (len(path) + 1)
        shapes += [_SHAPES[point.kind]] * (len(path) + 1)
        sizes += [12 if point.path is None else 0] * (len(path) + 1)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "text": words,
        "line": {"color": _POINT_COLOR, "width": 5},
        "marker": {"symbol": shapes, "size": sizes, "color": _POINT_COLOR, "opacity": 1}
        | {"line": {"color": "white", "width": 2}},
        "hovertemplate": "%{text}<br>(%{x:.4g}, %{y:.4g})<extra></extra>",
        "showlegend": False,
        "name": "critical points",
    }


def _layout(portrait: InteractivePortrait, names: Sequence[str]) -> dict[str, Any]:
    view = portrait.views[0]
    ranges = view.points.region
    width, height = np.diff(ranges, axis=1).ravel()
    equal = SHAPES[0] <= height / width <= SHAPES[1]
    shape = {"scaleanchor": "x", "constrain": "domain"} if equal else {}
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": names[0]}, "range": ranges[0].tolist(), "zeroline": False}
        | ({"constrain": "domain"} if equal else {}),
        "yaxis": {"title": {"text": names[1]}, "range": ranges[1].tolist(), "zeroline": False}
        | shape,
        "hovermode": "closest",
        "dragmode": False,  # a page on a phone must scroll
        "margin": {"l": 60, "r": 15, "t": 70, "b": 60},
        "plot_bgcolor": "#e8e8e8",
        "autosize": True,
        "meta": {"titles": [_title(view.flow) for view in portrait.views]},
    }
    for name, values in portrait.over.items():
        label = _slider_name(view.flow, name)
        steps = []
        for index, value in enumerate(values):
            shown = [each == index for each in range(len(values)) for _ in range(_TRACES)]
            steps.append(
                {"label": f"{value:g}", "method": "restyle"}
                | {"args": [{"visible": shown}, list(range(len(shown)))]}
            )
        current = {"prefix": f"{label} = ", "font": {"size": 16}}
        layout["sliders"] = [{"steps": steps, "currentvalue": current, "pad": {"t": 55}}]
        layout["margin"]["b"] = 130
    return layout


def _slider_name(flow: AbstractFlow, name: str) -> str:
    """The name of a hyper-parameter for display, such as "β"."""
    plane = flow.policy if isinstance(flow, PreferenceFlow) else None
    coupled = isinstance(plane, LogRatioPlane) and isinstance(plane.matrix, CoupledKernel)
    if coupled and name == "ratio":
        return "k<sub>wl</sub>/k<sub>ww</sub>"
    return {"beta": "β", "tau": "τ", "gamma": "γ"}.get(name, name)


def _name(flow: AbstractFlow, axis: int) -> str:
    components = flow.components
    name = f"y<sub>{axis + 1}</sub>" if components is None else components[axis]
    return _NAMES.get(name, name)


def _rounded(values: np.ndarray) -> Any:
    """Numbers rounded to six digits, as lists, with None for those that are not finite."""
    if np.ndim(values) > 1:
        return [_rounded(part) for part in values]
    return [float(f"{v:.{_DIGITS}g}") if np.isfinite(v) else None for v in np.asarray(values)]


def _as_script(json: str) -> str:
    """JSON that is safe inside a `<script>` element, since it contains no closing tag."""
    return json.replace("</", "<\\/").replace("<!--", "<\\!--")
