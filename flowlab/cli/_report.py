"""The texts and figures that the command prints and writes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flowlab import _files
from flowlab._options import OptionError, as_option_named
from flowlab._tables import table
from flowlab.cli._interrupt import say

if TYPE_CHECKING:
    import numpy as np
    import xarray

    from flowlab.cards import Card
    from flowlab.cli._request import Ranges
    from flowlab.displacement import Displacement
    from flowlab.flow import AbstractFlow
    from flowlab.plans import Plan, Status

# Names of dimensions of starts, in sweeps and in grids.
_STARTS = {"start", "x_chosen", "x_rejected", "u_chosen", "u_rejected", "y_1", "y_2"}
_QUANTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}
DISPLACEMENT = "displacement.json"  # by which a folder is known as one of this command's
_OF_A_BATCH = "a loss of a batch: one pair alone has no flow of its own"
_NOT_YET = "(not yet solved)"
_MAP_CELLS, _STARTS_OF_A_CELL = 128, 16  # cells of a map of random starts, along each side
_PIECE = 1 << 18  # starts that are read at a time
# Variables that every sweep has; all others are measures.
_ALWAYS = {
    "starts",
    "outcome",
    "time",
    "end_time",
    "end",
    "level_times",
    "saved",
    "steps",
    "solved_by",
}


def carry_out(
    plan: "Plan",
    out: str,
    scheduler: str | None,
    *,
    force: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Carry out a plan into a store, here or on a cluster, and print a summary."""
    from flowlab import plans, store
    from flowlab.until import Outcome

    def tell(sentence: str) -> None:
        if not quiet:
            typer.echo(sentence, err=True)

    with _client(scheduler) as client:
        shown = False if quiet else None
        say(lambda: plans.resume_hint(out))
        with _failures_told(out):
            runs = plans.run(
                plan,
                out,
                client=client,
                force=force,
                overwrite=overwrite,
                progress=shown,
                tell=tell,
            )
    if not quiet:
        typer.echo(summary(runs))
        if int(Outcome.outside_domain) in store.counts(runs["outcome"]):
            domains = {plan.flow(case).domain.described for case in plan.cases()}
            typer.echo(f"\noutside_domain: the domain is {' or '.join(sorted(domains))}")
        typer.echo(f"\nstore: {out}")


@contextmanager
def _failures_told(out: str) -> Iterator[None]:
    """A context in which failures of a plan become error messages, or say how to resume."""
    from flowlab import plans

    try:
        yield
    except plans.DoesNotFitError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        raise ValueError(as_option_named(str(error), {"path": "out"})) from None
    except OSError as error:
        if isinstance(error, BlockingIOError | FileNotFoundError | NotADirectoryError):
            raise
        raise OSError(f"{error}; {plans.resume_hint(out)}") from error


def progress(found: "Status", path: str) -> str:
    """The progress of a store as several lines of text."""
    from flowlab import plans
    from flowlab.store.blocks import damage_told

    lines = [
        f"blocks: {found.done} of {found.blocks} done",
        *([damage_told(found.damaged, found.blocks, path)] if found.damaged else []),
        f"runs: {found.runs_done:,} of {found.runs:,}",
        *(f"{name}: {count:,}" for name, count in found.outcomes.items()),
    ]
    if found.rate == found.rate:
        lines.append(f"rate: {found.rate:,.0f} runs per second in the last blocks")
    if found.done < found.blocks and found.rate == found.rate:
        lines.append(f"remaining: {plans.duration(found.remaining)} at that rate")
    lines.append(f"being written: {'yes' if found.being_written else 'no'}")
    return "\n".join(lines)


@contextmanager
def _client(scheduler: str | None) -> Iterator[Any]:
    if scheduler is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise OptionError(
            "scheduler", "needs Dask distributed: pip install 'flowlab-jax[cluster]'"
        ) from None
    with Client(scheduler, timeout="20s") as client:
        yield client


def summary(runs: "xarray.Dataset") -> str:
    """Outcomes with their counts, quantiles of times and measures, and the audit, as text."""
    missing = sorted({"outcome", "time"} - set(runs))
    if missing:
        raise ValueError(f"Argument `runs` must hold runs of a sweep, but lacks `{missing[0]}`.")
    blocks = [table(rows, "llr") for rows in (_outcome_rows(runs), _quantile_rows(runs))]
    return "\n\n".join([*blocks, *_absorbed(runs), *_audit(runs)])


def draw(runs: "xarray.Dataset", described: dict[str, Any], out: Path) -> None:
    """Draw the time to the target over the starts, with one map for each case.

    For a grid of starts, a map has a cell for each start. For other starts on a plane, it has the
    mean in each of 128 × 128 cells, or of fewer cells if there are few starts. All maps share one
    colour scale.

    Raises:
        ValueError: If the starts do not lie in a plane, or if none of them reached the target.
    """
    import numpy as np

    from flowlab import plots

    if "starts" not in described:
        raise OptionError("figure", "has no effect unless the starts lie in a plane")
    maps = list(_maps(runs, described))
    known = [times[np.isfinite(times)] for _, times in maps if np.isfinite(times).any()]
    if not known:
        raise OptionError("figure", "has no effect where no start reached the target")
    limits = min(map(np.min, known)), max(map(np.max, known))
    columns = min(3, len(maps))
    figure, axes = plots.panels(-(-len(maps) // columns), columns, size=(4.5, 4.2))
    gridded = described["starts"] == "grid"
    words = "flow time to the target" if gridded else "mean flow time to the target"
    for ax, (label, values) in zip(axes, maps, strict=False):
        ax.set_title(label.replace(", ", "\n"), fontsize="small")
        if not np.isfinite(values).any():
            ax.text(
                0.5, 0.5, "none reached, or not yet solved", ha="center", transform=ax.transAxes
            )
            ax.set_axis_off()
            continue
        plots.map_of(
            values,
            label=words,
            x=(described["lower"][0], described["upper"][0]),
            y=(described["lower"][1], described["upper"][1]),
            scale="log" if limits[0] > 0 else "linear",
            limits=limits if limits[0] < limits[1] else None,
            missing="not reached" if gridded else "none reached",
            names=plots.LOG_RATIOS if described.get("policy") == "log_ratio" else plots.RATIOS,
            color_bar=len(maps) == 1,
            ax=ax,
        )
    if len(maps) > 1:
        _share_colors(figure, axes, len(maps), words)
    figure.savefig(out, dpi=200)


def _share_colors(figure: Any, axes: Sequence[Any], count: int, label: str) -> None:
    """Add a colour bar that all maps share."""
    for ax in axes[count:]:
        ax.remove()
    image = next(image for ax in axes[:count] for image in ax.images)
    figure.colorbar(image, ax=list(axes[:count]), label=label, shrink=0.85)


def _maps(runs: "xarray.Dataset", described: dict[str, Any]) -> "Iterator[tuple[str, np.ndarray]]":
    """The arrival times of each case over the plane, each with its label."""
    import numpy as np

    from flowlab import store

    names = [str(n) for n, c in runs.coords.items() if c.dims == ("start",)]
    if len(names) != 2 and described["starts"] != "grid":
        raise OptionError("figure", "has no effect unless the starts lie in a plane")
    count = runs.sizes.get("start", 0)  # maps of the study have their starts along two dimensions
    cells = min(_MAP_CELLS, max(1, int((count / _STARTS_OF_A_CELL) ** 0.5)))
    for label, chosen in _places(runs["time"]):
        if described["starts"] == "grid":
            times = runs["time"].isel(chosen)
            across_first = times.transpose(*sorted(map(str, times.dims)))
            yield label, across_first.values.reshape(described["shape"])
            continue
        edges = [
            np.linspace(low, high, cells + 1)
            for low, high in zip(described["lower"], described["upper"], strict=True)
        ]
        case = runs.isel({name: index for name, index in chosen.items() if name in runs.dims})
        yield (
            label,
            store.cell_means(
                case, "time", x=names[0], y=names[1], x_edges=edges[0], y_edges=edges[1]
            )[0],
        )


def print_losses(reach: float) -> "dict[str, Card]":
    """Print the table of all losses of the catalogue; if interrupted, its finished rows."""
    from flowlab import losses, study

    batches = [n for n, x in losses.CATALOGUE.items() if x.of_batch]
    single = {name: x for name, x in losses.CATALOGUE.items() if name not in batches}
    found: dict[str, Card] = {}
    try:
        for name, card in study.computed(single, reach=reach):
            found[name] = card
    finally:
        if found:
            typer.echo(_losses(found, batches))
    return found


def print_loss(card: "Card", picture: Path) -> None:
    """Print a card as text, and draw its portrait."""
    from flowlab import cards, plots

    typer.echo(cards.description(card))
    _save(plots.portrait(card), picture)


def print_portrait(
    flow: "AbstractFlow", ranges: "Ranges", *, cells: int | None, picture: Path
) -> None:
    """Print the critical points of a flow, and draw its phase portrait, with basins on request."""
    from flowlab import critical, plots

    points = critical.critical_points(flow, ranges)
    typer.echo(str(points))
    layers = plots.LAYERS if cells is None else ("basins", *plots.LAYERS)
    x, y = ranges
    ax = plots.phase_portrait(flow, x=x, y=y, layers=layers, points=points, cells=cells)
    _save(ax, picture)


def print_page(
    flow: "AbstractFlow", over: dict[str, list[float]], ranges: "Ranges", page: Path
) -> None:
    """Print the critical points of a flow, and write its interactive portrait."""
    from flowlab import plots

    made = plots.interactive_portrait(flow, x=ranges[0], y=ranges[1], over=over)
    for view in made.views:
        typer.echo("".join(f"{name} = {view.value:g}: " for name in over) + str(view.points))
    typer.echo(f"\npage: {made.save(page)}")


def _save(ax: Any, picture: Path) -> None:
    ax.get_figure(root=True).savefig(picture, dpi=200)
    typer.echo(f"\nfigure: {picture}")


def write_json(found: "dict[str, Card]", path: Path) -> None:
    """Write cards to a file as JSON."""
    from flowlab import cards

    _files.write_json(cards.to_json(found), path)
    typer.echo(f"\njson: {path}")


def write_displacements(found: "dict[str, Displacement]", folder: Path) -> None:
    """Print the table of displacements, and write it to a folder with the maps and all numbers."""
    from flowlab import displacement, plots

    typer.echo(displacement.table(found))
    keep_displacements(found, folder)
    figure, _ = plots.displacements(found)
    plots.save(figure, folder / "displacement", dpi=200)
    typer.echo(f"\ndisplacement: {folder}")


def keep_displacements(found: "dict[str, Displacement]", folder: Path) -> None:
    """Write the table of displacements and all numbers to a folder."""
    from flowlab import displacement

    folder.mkdir(parents=True, exist_ok=True)
    _files.write_json(displacement.to_json(found), folder / DISPLACEMENT, indent=None)
    (folder / "table.txt").write_text(displacement.table(found) + "\n", encoding="utf-8")


def _losses(found: "dict[str, Card]", batches: Sequence[str]) -> str:
    """The table of cards, in which losses without a card have a row that spans all columns."""
    from flowlab import cards

    width = max(map(len, (*found, *batches)))
    without = [f"{name:{width}}  {_OF_A_BATCH}" for name in batches]
    return "\n".join([cards.table({f"{n:{width}}": card for n, card in found.items()}), *without])


def _outcome_rows(runs: "xarray.Dataset") -> Iterator[Sequence[str]]:
    from flowlab import store

    yield "outcome", "", "starts", "share"
    codes = runs["outcome"].attrs
    names = dict(zip(codes["flag_values"], codes["flag_meanings"].split(), strict=True))
    for label, chosen in _places(runs["outcome"]):
        case = runs["outcome"].isel(chosen)
        for code, count in store.counts(case).items():
            yield names.get(code, _NOT_YET), label, str(count), f"{count / case.size:.1%}"


def _quantile_rows(runs: "xarray.Dataset") -> Iterator[Sequence[str]]:
    from flowlab import store

    yield "quantiles", "", "starts", *_QUANTILES
    for name in ["time", *sorted(str(n) for n in runs if _is_measured(str(n)))]:
        for label, chosen in _places(runs[name]):
            values, known = store.quantiles(runs[name].isel(chosen), list(_QUANTILES.values()))
            shown = values if known else []
            yield name, label, str(known), *(f"{value:.5g}" for value in shown)


def _is_measured(name: str) -> bool:
    return name not in _ALWAYS and not name.startswith("block_")


def _places(values: "xarray.DataArray") -> Iterator[tuple[str, dict[str, int]]]:
    """The label and the indices of each case and component."""
    import numpy as np

    others = [str(name) for name in values.dims if name not in _STARTS]
    for place in np.ndindex(*(values.sizes[name] for name in others)):
        chosen = dict(zip(others, place, strict=True))
        yield ", ".join(_label(values, name, index) for name, index in chosen.items()), chosen


def _label(values: "xarray.DataArray", name: str, index: int) -> str:
    if name in values.coords:
        label = values.coords[name].values[index]
        return f"{name} {label}" if isinstance(label, str) else f"{name} {label:g}"
    return f"{name} {index + 1}"


def _absorbed(runs: "xarray.Dataset") -> list[str]:
    """A sentence on flow lines of the ratio plane that went extinct, from data read piecewise."""
    import numpy as np

    from flowlab.until import RATIOS, Outcome, absorption

    if "end" not in runs or "start" not in runs.dims or not set(RATIOS) <= set(runs.coords):
        return []
    found, times = [], []
    for first in range(0, runs.sizes["start"], _PIECE):
        piece = runs[["outcome", "end", "end_time"]].isel(start=slice(first, first + _PIECE))
        stopped = piece["outcome"].values.ravel() == Outcome.at_wall
        ends = piece["end"].transpose(*piece["outcome"].dims, "component").values
        found.append(ends.reshape(stopped.size, -1)[stopped] == 0)
        times.append(piece["end_time"].values.ravel()[stopped])
    said = absorption(np.concatenate(found), np.concatenate(times), RATIOS)
    return [f"at_wall: {said}"] if said else []


def _audit(runs: "xarray.Dataset") -> list[str]:
    found: dict[str, Any] = {
        str(name).removeprefix("audit_"): value
        for name, value in runs.attrs.items()
        if str(name).startswith("audit_")
    }
    if not found:
        return []
    return [
        "audit: {count} runs at rtol {rtol:.1e}; relative deviation of the time {time_median:.1e} "
        "in the median, {time_largest:.1e} at most; of the end {end_median:.1e}, "
        "{end_largest:.1e}; {outcomes_differ} outcomes differ".format(**found)
    ]
