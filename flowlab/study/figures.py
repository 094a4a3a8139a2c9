"""The figures of the study, each with a caption whose numbers come from the runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from flowlab import plots, until
from flowlab.ensemble import Runs, sweep
from flowlab.study.data import GEOMETRIES, LEVEL, SLOW_SHARE, Geometry, StudyData
from flowlab.study.data import line_measures as study_measures
from flowlab.until import Outcome

__all__ = ["Drawn", "Sheet", "draw", "save"]

_ALONG = 37  # points along a flow line
_ALONG_QUICK = 17
_STRAIGHT = 5  # points along a flow line of the log-ratio plane
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

Sheet = tuple[Any, str, str]  # a figure, its title, its caption


@dataclass(frozen=True)
class Drawn:
    """One figure of the study.

    Attributes:
        name: Stem of its files.
        title: A few words.
        caption: What is seen, in plain words.
        png: The figure at 150 dots per inch.
        svg: The figure with its dense parts as pixels.
    """

    name: str
    title: str
    caption: str
    png: Path
    svg: Path


def draw(data: StudyData, folder: Path, progress: Callable[[str], None]) -> list[Drawn]:
    """Draw all figures of the study into a folder.

    Args:
        data: The runs.
        folder: Where the files go; made if there is none.
        progress: Told the name of each figure before it is drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, make in _sheets(data):
        progress(name)
        drawn.append(save(folder, name, make(data)))
    return drawn


def save(folder: Path, name: str, sheet: Sheet) -> Drawn:
    """Write one figure to a folder, as PNG and as SVG."""
    figure, title, caption = sheet
    return Drawn(name, title, caption, *plots.save(figure, folder / name))


def _sheets(data: StudyData) -> Iterator[tuple[str, Callable[[StudyData], Sheet]]]:
    yield "loss_surface", _loss_surface
    yield "gradient_field", _gradient_field
    yield "flow_lines", _flow_lines
    yield "time_to_target", _time_to_target
    yield "slowdown", _slowdown
    yield "rate_ratio", _rate_ratio
    yield "total_changes", _total_changes
    yield "walls", _walls
    yield "feature_model", _feature_model
    if data.log is not None:
        yield "training_run", _training_run


def _loss_surface(data: StudyData) -> Sheet:
    betas = sorted({min(data.settings.betas), max(data.settings.betas)})
    figure, axes = plots.panels(1, len(betas), size=(5.0, 4.3), projection="3d")
    edge = 1 / data.settings.map_cells
    corners = []
    for ax, beta in zip(axes, betas, strict=True):
        plots.loss_surface(_FREE.flow(beta), ax=ax)
        ax.set_title(_beta(beta), y=0.95)
        low, high = (_potential(beta, point) for point in ((1, edge), (edge, 1)))
        corners.append(f"from {low:.2g} to {high:.2g} at {_beta(beta)}")
    caption = (
        "The loss over the two probability ratios, as in figure 1(a) of the paper. It depends on "
        f"x2/x1 alone: along the diagonal x1 = x2 it is log 2 = {np.log(2):.3f} for every β, and "
        f"from ({1:g}, {edge:.2g}) to ({edge:.2g}, {1:g}), nearer to the axes than is drawn, "
        "it rises "
        f"{' and '.join(corners)}. The smaller β, the flatter the surface away from the axes."
    )
    return figure, "The loss over the plane of ratios", caption


def _gradient_field(data: StudyData) -> Sheet:
    beta = data.settings.betas[0]
    figure, (ax,) = plots.panels(size=(6.4, 5.6))
    plots.field(_FREE.flow(beta), ax=ax)
    speed = np.hypot(*_velocities(beta, data.map_starts).T)
    upper_right = speed[np.all(data.map_starts > 0.5, axis=1)]
    plots.shared_legend([ax], columns=2)
    caption = (
        f"Which way gradient descent moves the two ratios ({_beta(beta)}), and how fast. Arrows "
        "point down the loss, at right angles to its level lines; colour and length give the speed "
        f"on a logarithmic scale. Over all cells of the map, closer to the axes than any arrow, it "
        f"runs from {speed.min():.2g} to {speed.max():.2g} per unit of flow time, "
        f"with a median of {np.median(speed):.2g}; in the "
        f"upper right quarter (both ratios above ½) the median is {np.median(upper_right):.2g}. "
        "Nowhere on the map does it vanish, and it is highest beside the axes."
    )
    return figure, "The negative gradient from above", caption


def _flow_lines(data: StudyData) -> Sheet:
    beta = data.settings.betas[0]
    paths = _ratio_paths(data, _FREE, beta, _LINE_STARTS)
    figure, (ax,) = plots.panels(size=(7.0, 5.6))
    plots.field(_FREE.flow(beta), color="0.78", x=(0, 1.5), y=(0, 1), ax=ax)
    ax.set_aspect("equal")
    plots.lines(paths, ax=ax)
    plots.shared_legend([ax], columns=3)
    drift = max(float(np.ptp(np.hypot(*path.T)) / np.hypot(*path[0])) for path in paths)
    furthest = max(float(path[-1, 0]) for path in paths)
    left = max(float(path[-1, 1]) for path in paths)
    caption = (
        f"{len(paths)} flow lines from their starts (dots) to a loss of {LEVEL:g}, at "
        f"{_beta(beta)}. Each keeps its distance from the origin, to {drift:.0e} of itself: they "
        "are arcs of circles. All end beside the horizontal axis, with a rejected ratio of "
        f"{left:.1e} at most and a chosen one near the radius of the circle. Nothing keeps the "
        "free flow inside the unit square: the line that goes furthest ends at "
        f"x1 = {furthest:.2f}."
    )
    return figure, "Flow lines of the free ratio plane", caption


def _time_to_target(data: StudyData) -> Sheet:
    betas, runs = data.settings.betas, data.maps
    times = np.concatenate([runs[beta].time for beta in betas])
    low, high = np.nanquantile(times, (0.01, 1.0))
    label = f"flow time (learning rate × steps) to loss {LEVEL:g}"
    ticks = [t for t in (1e-3, 1e-2, 0.03, 0.1, 0.3, 1, 3, 10, 30) if low < t < high]
    figure = _maps(data, lambda r: r.time, label, scale="log", limits=(low, high), levels=ticks)
    medians = ", ".join(f"{np.nanmedian(runs[b].time):.3g} at {_beta(b)}" for b in betas)
    first = runs[betas[0]]
    spread = [
        [np.nanmedian(first.time[part]) for part in (ratio > 0.75, ratio < 0.25)]
        for ratio in data.map_starts.T
    ]
    caption = (
        f"How long each of {len(first.time):,} starts takes to bring the loss down to {LEVEL:g}, "
        f"all panels in one logarithmic scale. The median is {medians}. The two ratios do not "
        f"count alike: at {_beta(betas[0])} the median is {spread[1][0]:.2g} over the starts with "
        f"x2 above ¾ and {spread[1][1]:.2g} over those with x2 below ¼, but {spread[0][0]:.2g} and "
        f"{spread[0][1]:.2g} where x1 is above ¾ and below ¼.{_not_reached(data)}"
    )
    return figure, f"Time to a loss of {LEVEL:g}", caption


def _slowdown(data: StudyData) -> Sheet:
    betas, runs = data.settings.betas, data.maps
    label = "share of the flow time spent slowly"
    highest = max(float(np.nanmax(_dwell_share(runs[b]))) for b in betas)
    limits = (0.0, max(np.ceil(10 * highest) / 10, 0.1))
    figure = _maps(data, _dwell_share, label, limits=limits, levels=(0.2, 0.4, 0.6))
    shares = ", ".join(
        f"{np.mean(runs[b].measures['dwell'] > 0):.0%} at {_beta(b)}"
        f" (at most {np.nanmax(_dwell_share(runs[b])):.0%} of the way)"
        for b in betas
    )
    slow = ", ".join(f"{data.slow[_FREE.name, b]:.2g} at {_beta(b)}" for b in betas)
    ever = runs[betas[0]].measures["dwell"] > 0
    above = np.mean(np.all(data.map_starts[ever] > 0.5, axis=1)) if ever.any() else np.nan
    caption = (
        "Where starts are held up: the share of the time to the target that a line spends slowly, "
        f"that is below {SLOW_SHARE:g} of the median speed over the starts (about {slow}). Starts "
        f"that are slow at some time: {shares}. At {_beta(betas[0])}, {above:.0%} of them lie in "
        "the upper right quarter, where both ratios are above ½."
    )
    return figure, "Where the flow is slow", caption


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
    deviation = float(np.nanmax(np.abs(start / expected - 1)))
    caption = (
        "How far the chosen ratio moves for each unit that the rejected one moves, at "
        f"{_beta(beta)}. Left, at the first instant: the ratio is x2/x1 (within {deviation:.0e} "
        f"here), so the chosen moves faster from {_share(start > 1)} of the starts, those above "
        f"the line. Right, over the whole way to a loss of {LEVEL:g}: the chosen has moved "
        f"further from {_share(total[np.isfinite(total)] > 1)} of the starts; the median is "
        f"{np.nanmedian(total):.2f}."
    )
    return figure, "Which of the two moves more", caption


def _total_changes(data: StudyData) -> Sheet:
    betas = data.settings.betas
    figure, axes = _one_panel_each(betas)
    worst, more, count = 0.0, 0, 0
    for ax, beta in zip(axes, betas, strict=True):
        runs = data.to_level[_FREE.name, beta]
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
    caption = (
        f"Every dot is a start that was followed to a loss of {LEVEL:g}: how much its chosen ratio "
        "rose against how much its rejected ratio fell, coloured by the angle of the start "
        "(tan θ0 = x2/x1). Dots of one angle lie on a ray, whose slope is tan(θ0/2) for lines that "
        f"are followed until the rejected ratio is 0; here they differ by {worst:.1e} at most, "
        f"since a loss of {LEVEL:g} comes before that. The chosen rose by more than the rejected "
        f"fell in {more:,} of {count:,} runs."
    )
    return figure, "Total change of chosen and rejected", caption


def _walls(data: StudyData) -> Sheet:
    beta = data.settings.betas[0]
    figure, axes = plots.panels(1, 2, size=(4.2, 4.9))
    counts = []
    for ax, name, from_ in zip(
        axes, ("box", "simplex"), (_BOX_STARTS, _SIMPLEX_STARTS), strict=True
    ):
        geometry = _BY_NAME[name]
        domain = geometry.policy.domain
        paths = _ratio_paths(data, geometry, beta, from_)
        plots.field(geometry.flow(beta), color="0.65", levels=0, arrows=13, legend=False, ax=ax)
        plots.walls(domain, ax=ax)
        plots.lines(paths, domain=domain, ax=ax)
        ax.set_title(
            "box: each ratio at most 1" if name == "box" else "simplex: $x_1 + x_2$ at most 1"
        )
        normals, offsets = domain.walls()
        on = [np.any(np.isclose(p @ normals.T, offsets, rtol=1e-5), axis=1) for p in paths]
        meet = sum(bool(mask.any()) for mask in on)
        counts.append((meet, sum(bool(mask.any() and not mask[-1]) for mask in on)))
    _frame(axes)
    plots.shared_legend(axes, columns=3)
    caption = (
        f"Flow lines that meet a wall slide along it (orange), at {_beta(beta)}; grey arrows show "
        "the free flow, longer where it is faster (logarithmically). In the paper's box "
        f"{counts[0][0]} of the {len(_BOX_STARTS)} lines meet the wall x1 = 1, and {counts[0][1]} "
        "leave it again. Two responses of one prompt share at most all the probability, which cuts "
        f"the box down to a simplex: there {counts[1][0]} of {len(_SIMPLEX_STARTS)} lines meet the "
        f"wall, and {counts[1][1]} leave it again, where x1 = x2 and the free flow turns inward."
    )
    return figure, "Walls: the box and the simplex", caption


def _feature_model(data: StudyData) -> Sheet:
    line, dip = data.line, data.line.dip
    figure, (ax,) = plots.panels(size=(7.0, 4.6))
    styles = (("chosen", "#0072b2", "-"), ("rejected", "#d55e00", "--"), ("third", "#666666", ":"))
    for values, (name, color, style) in zip(line.probabilities.T, styles, strict=True):
        ax.plot(line.times, values, color=color, linestyle=style, linewidth=2, label=name)
    ax.axhline(line.probabilities[0, 0], color="0.8", linewidth=0.8, zorder=0)
    ax.set(xlim=(0, line.times[-1]), ylim=(0, 1))
    ax.set_xlabel("flow time (learning rate × steps)")
    ax.set_ylabel("probability")
    plots.shared_legend([ax], columns=3)
    first, last = line.probabilities[[0, -1]]
    caption = (
        "The three responses of the feature model along its flow line from the reference state, at "
        f"{_beta(line.beta)}: the first is preferred to the second, and no preference speaks of "
        "the third. "
    )
    if dip.depth > 0:
        caption += (
            f"The probability of the chosen response falls from {first[0]:.2f} to "
            f"{first[0] * np.exp(-dip.depth):.2f}, by {dip.depth:.2f} nats, until t = "
            f"{dip.time:.1f}, and the third response has {dip.third:.2f} at t = "
            f"{dip.third_time:.1f}; "
        )
        caption += (
            "the chosen one does not come back in the time shown. "
            if np.isnan(dip.recovery)
            else f"at t = {dip.recovery:.1f} the chosen one is back where it was (grey line). "
        )
    caption += (
        f"At the end, t = {line.times[-1]:.0f}, the three have "
        f"{last[0]:.2g}, {last[1]:.2g} and {last[2]:.2g}."
    )
    return figure, "A chosen response that falls and recovers", caption


def _training_run(data: StudyData) -> Sheet:
    log = data.log
    assert log is not None
    geometry = _BY_NAME["log_ratio_plane"]
    first, last = log.points[0], log.points[-1]
    margins = np.linspace(log.margin[0], log.margin[-1], _STRAIGHT)[1:]
    both = np.concatenate([log.points, first + 0.5 * np.outer([0, margins[-1]], [1, -1])])
    low, high = both.min(axis=0), both.max(axis=0)
    middle, half = (low + high) / 2, 0.55 * max(float(np.max(high - low)), 1e-3)
    spans = [(float(m - half), float(m + half)) for m in middle]
    figure, (ax,) = plots.panels(size=(6.4, 5.6))
    plots.field(geometry.flow(log.beta), x=spans[0], y=spans[1], color="0.7", arrows=15, ax=ax)
    plots.log_path(log, ax=ax)
    caption = (
        f"The run of {log.path.name} ({log.step[-1]:g} steps, β = {log.beta:g}) on the plane of "
        "log-ratios, over the gradient flow of that plane. In this run the chosen response went "
        f"from u = {first[0]:.2f} to {last[0]:.2f} nats, the rejected one from {first[1]:.2f} to "
        f"{last[1]:.2f}"
    )
    if log.margin[-1] > log.margin[0]:
        levels = np.logaddexp(0, -log.beta * margins)
        path = _followed(data, geometry, log.beta, first[None], levels)[0]
        plots.lines([path], color="#d55e00", label="flow line from its first point", ax=ax)
        caption += (
            f"; the flow line from its first point reaches the same margin at "
            f"({path[-1, 0]:.2f}, {path[-1, 1]:.2f}), since that flow raises one by as much as it "
            "lowers the other"
        )
    plots.shared_legend([ax], columns=2)
    caption += (
        ". A training log does not name its optimiser: unless that was plain gradient descent, "
        "only the path can be compared with a flow line, not the time. Points are means over "
        "batches, so some of their scatter is noise."
    )
    return figure, "A real training run", caption


def _maps(data: StudyData, values: Callable[[Runs], np.ndarray], label: str, **options: Any) -> Any:
    """One map for each β in one colour scale."""
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
    """Flow lines on the ratio plane, at angles evenly spaced down to `LEVEL`."""
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
    """Flow lines as the states at falling levels of the loss.

    The starts are repeated to fill a block of the study's own runs, and measured as those are: then
    the programs compiled for those serve again, and a line costs milliseconds.
    """
    like = next(runs for (name, _), runs in data.to_level.items() if name == geometry.name)
    many = np.resize(from_, (min(len(like.starts), 1024), 2)).astype(like.starts.dtype)
    speed = next(slow for (name, _), slow in data.slow.items() if name == geometry.name)
    options: dict[str, Any] = dict(
        measures=study_measures(geometry, speed),
        rtol=like.rtol,
        optimise=not data.settings.quick,
        progress=False,
    )
    flow = geometry.flow(beta)

    def end(level: float) -> np.ndarray:
        return sweep(flow, many, until=until.loss_below(level), **options).end[: len(from_)]

    with ThreadPoolExecutor(2) as pool:
        ends = [end(levels[0]), *pool.map(end, levels[1:])]
    states = np.stack([from_, *ends], axis=1).astype(float)
    moved = np.any(np.diff(states, axis=1) != 0, axis=-1)
    return [path[np.append(True, move)] for path, move in zip(states, moved, strict=True)]


def _frame(axes: list[Any]) -> None:
    for ax in axes:
        ax.set(xlim=(0, 1.06), ylim=(0, 1.06), xlabel=plots.RATIOS[0], ylabel=plots.RATIOS[1])


def _potential(beta: float, ratios: tuple[float, float]) -> float:
    with jax.enable_x64(True):
        return float(_FREE.flow(beta).potential(np.asarray(ratios, float)))


def _velocities(beta: float, states: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    with jax.enable_x64(True):
        flow = _FREE.flow(beta)
        return np.asarray(jax.vmap(flow.velocity)(np.asarray(states, float)))


def _dwell_share(runs: Runs) -> np.ndarray:
    return np.where(runs.outcome == Outcome.reached, runs.measures["dwell_share"], np.nan)


def _missing(data: StudyData) -> str:
    outcomes = {name for runs in data.maps.values() for name in runs.counts()} - {"reached"}
    past = outcomes <= {"started_past_target"}
    return "past the target at the start" if past else "target not reached"


def _not_reached(data: StudyData) -> str:
    without = {b: int(np.isnan(data.maps[b].time).sum()) for b in data.settings.betas}
    listed = ", ".join(f"{n:,} at {_beta(b)}" for b, n in without.items() if n)
    return f" Starts without a time (grey; {_missing(data)}): {listed}." if listed else ""


def _share(mask: np.ndarray) -> str:
    return f"{np.mean(mask):.1%}"


def _beta(beta: float) -> str:
    return f"β = {beta:g}"
