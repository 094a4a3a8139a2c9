"""The figures of the study, each with the numbers of its caption."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from flowlab import plots
from flowlab.ensemble import Runs
from flowlab.logs import diagnose
from flowlab.study.data import GEOMETRIES, LEVEL, SLOW_SHARE, Geometry, StudyData, run_to_level
from flowlab.until import Outcome

__all__ = ["Drawn", "Sheet", "draw", "save"]

_ALONG = 37  # points along a flow line
_ALONG_QUICK = 17
_BY_NAME = {geometry.name: geometry for geometry in GEOMETRIES}
_FREE = _BY_NAME["ratio_plane"]
_LINE_STARTS = np.array(
    [(0.03, y) for y in (0.2, 0.4, 0.6, 0.8, 0.97)]
    + [(x, 0.97) for x in (0.25, 0.45, 0.65, 0.85)]
    + [(0.3, 0.1), (0.8, 0.3)]
)
_BOX_STARTS = np.array([(0.05, 0.5), (0.05, 0.85), (0.3, 0.9), (0.6, 0.9), (0.9, 0.8), (0.7, 0.3)])
_SIMPLEX_STARTS = np.array(
    [(0.03, 0.3), (0.03, 0.55), (0.05, 0.8), (0.03, 0.95), (0.3, 0.65), (0.55, 0.4), (0.75, 0.2)]
)

Sheet = tuple[Any, dict[str, Any]]  # a figure, and the values of its caption by name


@dataclass(frozen=True)
class Drawn:
    """One figure of the study.

    Attributes:
        name: Stem of the file names, and name of the caption in `captions.html`.
        png: The figure at 150 dots per inch.
        svg: The figure with its dense parts as pixels.
        values: The variables of the caption, by name.
    """

    name: str
    png: Path
    svg: Path
    values: dict[str, Any] = field(default_factory=dict)


def draw(data: StudyData, folder: Path, progress: Callable[[str], None]) -> list[Drawn]:
    """Draw all figures of the study into a folder.

    Args:
        data: The runs.
        folder: The folder of the files, created if it does not exist.
        progress: Function that is called with the name of each figure before it is drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for make in _makers(data):
        name = make.__name__.removeprefix("_")
        progress(name)
        drawn.append(save(folder, name, *make(data)))
    return drawn


def save(folder: Path, name: str, figure: Any, values: dict[str, Any] | None = None) -> Drawn:
    """Write one figure to a folder, as PNG and as SVG."""
    return Drawn(name, *plots.save(figure, folder / name), values or {})


def _makers(data: StudyData) -> list[Callable[[StudyData], Sheet]]:
    """The functions that draw the figures; the name of a function is the name of its figure."""
    makers = [
        _loss_surface,
        _gradient_field,
        _flow_lines,
        _time_to_target,
        _slowdown,
        _rate_ratio,
        _total_changes,
        _walls,
        _feature_model,
    ]
    if data.log is None or not (found := diagnose(data.log)).moved:
        return makers
    return [*makers, *([_training_run] if found.drawable else []), _training_steps]


def _loss_surface(data: StudyData) -> Sheet:
    betas = sorted({min(data.settings.betas), max(data.settings.betas)})
    figure, axes = plots.panels(1, len(betas), size=(5.0, 4.3), projection="3d")
    for ax, beta in zip(axes, betas, strict=True):
        plots.loss_surface(_FREE.flow(beta), ax=ax)
        ax.set_title(_beta(beta), y=0.95)
    edge = 1 / data.settings.map_cells
    ends = {b: [_potential(b, corner) for corner in ((1, edge), (edge, 1))] for b in betas}
    return figure, {"edge": edge, "ends": ends}


def _gradient_field(data: StudyData) -> Sheet:
    beta = data.settings.betas[0]
    figure, (ax,) = plots.panels(size=(6.4, 5.6))
    plots.field(_FREE.flow(beta), ax=ax)
    plots.shared_legend([ax], columns=2)
    speed = np.hypot(*_velocities(beta, data.map_starts).T)
    return figure, {
        "beta": beta,
        "slowest": speed.min(),
        "fastest": speed.max(),
        "median": np.median(speed),
        "upper_right": np.median(speed[_upper_right(data.map_starts)]),
        "fastest_cell": data.map_starts[speed.argmax()],
    }


def _flow_lines(data: StudyData) -> Sheet:
    beta = data.settings.betas[0]
    paths = _ratio_paths(data, _FREE, beta, _LINE_STARTS)
    figure, (ax,) = plots.panels(size=(7.0, 5.6))
    plots.field(_FREE.flow(beta), color="0.78", x=(0, 1.5), y=(0, 1), ax=ax)
    ax.set_aspect("equal")
    plots.lines(paths, ax=ax)
    plots.shared_legend([ax], columns=3)
    return figure, {
        "beta": beta,
        "level": LEVEL,
        "count": len(paths),
        "drift": max(np.ptp(np.hypot(*path.T)) / np.hypot(*path[0]) for path in paths),
        "furthest": max(path[-1, 0] for path in paths),
        "left": max(path[-1, 1] for path in paths),
    }


def _time_to_target(data: StudyData) -> Sheet:
    betas, runs = data.settings.betas, data.maps
    times = np.concatenate([runs[beta].time for beta in betas])
    low, high = np.nanquantile(times, (0.01, 1.0))
    label = f"flow time (learning rate × steps) to loss {LEVEL:g}"
    ticks = [t for t in (1e-3, 1e-2, 0.03, 0.1, 0.3, 1, 3, 10, 30) if low < t < high]
    figure = _maps(data, lambda r: r.time, label, scale="log", limits=(low, high), levels=ticks)
    first = runs[betas[0]].time
    parts = [
        [np.nanmedian(first[part]) for part in (ratio > 0.75, ratio < 0.25)]
        for ratio in data.map_starts.T
    ]
    without = {beta: int(np.isnan(runs[beta].time).sum()) for beta in betas}
    return figure, {
        "level": LEVEL,
        "count": len(first),
        "medians": {beta: np.nanmedian(runs[beta].time) for beta in betas},
        "first": {"beta": betas[0], "chosen": parts[0], "rejected": parts[1]},
        "without": {beta: count for beta, count in without.items() if count},
        "missing": _missing(data),
    }


def _slowdown(data: StudyData) -> Sheet:
    betas, runs = data.settings.betas, data.maps
    label = "share of the flow time spent slowly"
    longest = {beta: np.nanmax(_dwell_share(runs[beta])) for beta in betas}
    limits = (0.0, max(np.ceil(10 * max(longest.values())) / 10, 0.1))
    figure = _maps(data, _dwell_share, label, limits=limits, levels=(0.2, 0.4, 0.6))
    ever = {beta: runs[beta].measures["dwell"] > 0 for beta in betas}
    slow_starts = data.map_starts[ever[betas[0]]]
    return figure, {
        "part": SLOW_SHARE,
        "thresholds": {beta: data.runs[_FREE.name, beta].slow for beta in betas},
        "ever": {beta: np.mean(slow) for beta, slow in ever.items()},
        "longest": longest,
        "first": betas[0],
        "upper_right": np.mean(_upper_right(slow_starts)) if len(slow_starts) else None,
    }


def _rate_ratio(data: StudyData) -> Sheet:
    beta = data.settings.betas[0]
    runs, cells = data.maps[beta], data.settings.map_cells
    figure, axes = plots.panels(1, 2, size=(4.0, 4.3), share=True)
    keys = ("rate_ratio_x_start", "rate_ratio_x_total")
    for ax, key, title in zip(axes, keys, ("at the start", "over the whole way"), strict=True):
        values = runs.measures[key].reshape(cells, cells)
        options: dict[str, Any] = dict(scale="log", center=1.0, limits=(0.01, 100.0))
        options |= dict(of=runs, missing=_missing(data), color_bar=False)
        plots.map_of(values, label="", ax=ax, **options)
        ax.plot([0, 1], [0, 1], color="black", linewidth=1.0, label="$x_1 = x_2$")
        ax.set_title(title)
        ax.label_outer()
    label = "chosen moves / rejected moves"
    figure.colorbar(axes[0].images[0], ax=axes, label=label, shrink=0.8, extend="both")
    plots.shared_legend(axes)
    start, total = (runs.measures[key] for key in keys)
    expected = data.map_starts[:, 1] / data.map_starts[:, 0]
    return figure, {
        "beta": beta,
        "level": LEVEL,
        "deviation": np.nanmax(np.abs(start / expected - 1)),
        "faster": np.mean(start > 1),
        "further": np.mean(total[np.isfinite(total)] > 1),
        "median": np.nanmedian(total),
    }


def _total_changes(data: StudyData) -> Sheet:
    betas = data.settings.betas
    figure, axes = _one_panel_each(betas)
    worst, more, count = 0.0, 0, 0
    for ax, beta in zip(axes, betas, strict=True):
        runs = data.runs[_FREE.name, beta].to_level
        reached = runs.outcome == Outcome.reached
        rise, fall = (runs.measures[f"change_{k}_x"][reached] for k in ("chosen", "rejected"))
        angle = np.arctan2(*runs.starts[reached].T[::-1])
        plots.changes(rise, fall, angle=np.degrees(angle), color_bar=False, ax=ax)
        ax.set_title(_beta(beta))
        ax.label_outer()
        worst = max(worst, float(np.max(np.abs(rise + fall * np.tan(angle / 2)))))
        more, count = more + int(np.sum(rise > -fall)), count + len(rise)
    label = r"angle $\theta_0$ of the start (degrees)"
    figure.colorbar(axes[0].collections[0], ax=axes, label=label, shrink=0.8)
    plots.shared_legend(axes)
    return figure, {"level": LEVEL, "deviation": worst, "more": more, "count": count}


def _walls(data: StudyData) -> Sheet:
    beta = data.settings.betas[0]
    figure, axes = plots.panels(1, 2, size=(4.2, 4.9))
    counts = {}
    titles = {"box": "box: each ratio at most 1", "simplex": "simplex: $x_1 + x_2$ at most 1"}
    for ax, name, from_ in zip(axes, titles, (_BOX_STARTS, _SIMPLEX_STARTS), strict=True):
        geometry = _BY_NAME[name]
        domain = geometry.policy.domain
        paths = _ratio_paths(data, geometry, beta, from_)
        plots.field(geometry.flow(beta), color="0.65", levels=0, arrows=13, legend=False, ax=ax)
        plots.walls(domain, ax=ax)
        plots.lines(paths, domain=domain, ax=ax)
        ax.set(title=titles[name], xlim=(0, 1.06), ylim=(0, 1.06))
        ax.set(xlabel=plots.RATIOS[0], ylabel=plots.RATIOS[1])
        normals, offsets = domain.walls()
        on = [np.any(np.isclose(p @ normals.T, offsets, rtol=1e-5), axis=1) for p in paths]
        meet = [mask for mask in on if mask.any()]
        leave = sum(not mask[-1] for mask in meet)
        counts[name] = {"lines": len(paths), "meet": len(meet), "leave": leave}
    plots.shared_legend(axes, columns=3)
    return figure, {"beta": beta, **counts}


def _feature_model(data: StudyData) -> Sheet:
    line = data.line
    figure, (ax,) = plots.panels(size=(7.0, 4.6))
    styles = (("chosen", "#0072b2", "-"), ("rejected", "#d55e00", "--"), ("third", "#666666", ":"))
    for values, (name, color, style) in zip(line.probabilities.T, styles, strict=True):
        ax.plot(line.times, values, color=color, linestyle=style, linewidth=2, label=name)
    ax.axhline(line.probabilities[0, 0], color="0.8", linewidth=0.8, zorder=0)
    ax.set(xlim=(0, line.times[-1]), ylim=(0, 1))
    ax.set_xlabel("flow time (learning rate × steps)")
    ax.set_ylabel("probability")
    plots.shared_legend([ax], columns=3)
    return figure, {"line": line, "low": line.probabilities[0, 0] * np.exp(-line.dip.depth)}


def _training_run(data: StudyData) -> Sheet:
    return _of_log(data, plots.training_run)


def _training_steps(data: StudyData) -> Sheet:
    return _of_log(data, plots.training_steps)


def _of_log(data: StudyData, draw: Callable[..., Any]) -> Sheet:
    assert data.log is not None
    found = diagnose(data.log)
    return draw(found).get_figure(root=True), {"title": found.title}


def _maps(data: StudyData, values: Callable[[Runs], np.ndarray], label: str, **options: Any) -> Any:
    """One map for each β, all with one colour scale."""
    betas, cells = data.settings.betas, data.settings.map_cells
    figure, axes = _one_panel_each(betas)
    for ax, beta in zip(axes, betas, strict=True):
        runs = data.maps[beta]
        options |= dict(of=runs, missing=_missing(data), color_bar=False)
        plots.map_of(values(runs).reshape(cells, cells), label=label, ax=ax, **options)
        ax.set_title(_beta(beta))
        ax.label_outer()
    extend = "min" if options.get("scale") == "log" else "neither"
    figure.colorbar(axes[0].images[0], ax=axes, label=label, shrink=0.8, extend=extend)
    plots.shared_legend(axes)
    return figure


def _one_panel_each(betas: tuple[float, ...]) -> tuple[Any, list[Any]]:
    columns = 2 if len(betas) in (2, 4) else min(len(betas), 3)
    rows = -(-len(betas) // columns)
    size = (5.2, 4.6) if len(betas) == 1 else (3.6, 3.9)
    figure, axes = plots.panels(rows, columns, size=size, share=True)
    for ax in axes[len(betas) :]:
        ax.remove()
    return figure, axes[: len(betas)]


def _ratio_paths(
    data: StudyData, geometry: Geometry, beta: float, from_: Float[np.ndarray, "n 2"]
) -> list[Float[np.ndarray, "k 2"]]:
    """Flow lines on the ratio plane as states at evenly spaced angles; the last is on `LEVEL`."""
    steepest = np.arctan2(*from_.T[::-1]).max()
    flattest = np.arctan(np.expm1(LEVEL) ** (1 / beta))
    points = _ALONG_QUICK if data.settings.quick else _ALONG
    angles = np.linspace(steepest, flattest, points)[1:]
    return _followed(data, geometry, beta, from_, np.log1p(np.tan(angles) ** beta))


def _followed(
    data: StudyData,
    geometry: Geometry,
    beta: float,
    from_: Float[np.ndarray, "n 2"],
    levels: Float[np.ndarray, " k"],
) -> list[Float[np.ndarray, "k 2"]]:
    """Flow lines as sequences of states at decreasing levels of the loss.

    The starts are repeated to fill a block as large as those of the study, so that its compiled
    programs serve again and a flow line takes milliseconds.
    """
    like = data.runs[geometry.name, data.settings.betas[0]]
    known = like.to_level.starts
    many = np.resize(from_, (min(len(known), 1024), 2)).astype(known.dtype)

    def end(level: float) -> np.ndarray:
        runs = run_to_level(data.settings, geometry, beta, many, slow=like.slow, level=level)
        return runs.end[: len(from_)]

    with ThreadPoolExecutor(2) as pool:
        ends = [end(levels[0]), *pool.map(end, levels[1:])]
    states = np.stack([from_, *ends], axis=1).astype(float)
    moved = np.any(np.diff(states, axis=1) != 0, axis=-1)
    return [path[np.append(True, move)] for path, move in zip(states, moved, strict=True)]


def _potential(beta: float, ratios: tuple[float, float]) -> float:
    with jax.enable_x64(True):
        return float(_FREE.flow(beta).potential(np.asarray(ratios, float)))


def _velocities(beta: float, states: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    with jax.enable_x64(True):
        flow = _FREE.flow(beta)
        return np.asarray(jax.vmap(flow.velocity)(np.asarray(states, float)))


def _upper_right(ratios: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    return np.all(ratios > 0.5, axis=1)


def _dwell_share(runs: Runs) -> np.ndarray:
    return np.where(runs.outcome == Outcome.reached, runs.measures["dwell_share"], np.nan)


def _missing(data: StudyData) -> str:
    outcomes = {name for runs in data.maps.values() for name in runs.counts()} - {"reached"}
    past = outcomes <= {"started_past_target"}
    return "past the target at the start" if past else "target not reached"


def _beta(beta: float) -> str:
    return f"β = {beta:g}"
