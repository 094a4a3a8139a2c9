"""The command `flowlab`: sweeps, stores, losses, portraits, displacement, logs, models, the study.

Only the standard library and typer are imported before a command runs.
"""

import gc
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from flowlab import __version__
from flowlab._files import NotWritableError
from flowlab._names import did_you_mean, key, meant
from flowlab._options import (
    OF_POLICY,
    OF_SWEEP,
    OptionError,
    as_flag,
    as_option_named,
    refuse_unless,
)
from flowlab.cli import _cache as cache
from flowlab.cli import _destinations as destinations
from flowlab.cli import _report as report
from flowlab.cli._interrupt import INTERRUPTED, end_soon
from flowlab.cli._model_commands import explain, forecast, replay
from flowlab.cli._options import option, with_options
from flowlab.cli._spelling import surplus, understood

if TYPE_CHECKING:
    from flowlab.study import Study

__all__ = ["app", "main"]

FAILED, MISUSED = 1, 2
_RARELY = 100_000, 20, 20  # new objects before Python looks for cycles among the young, and so on
# Options that portraits share with sweeps, and options of a sweep that exist outside of files too.
_DRAWN = ("parameters", "offset", *OF_POLICY)
_SWEPT = tuple(name for name in OF_SWEEP if name not in ("loss", "policies", "dtype"))
EXIT_CODES = (
    "Exit codes: 0 done; 1 a failure while running, such as a folder that cannot be written; "
    "2 a wrong option or value; 130 interrupted. An error is one line on stderr."
)


class _Group(TyperGroup):
    """A group of commands; an error is one line on stderr, and has a documented exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or ctx.resilient_parsing:  # as for the shell, which completes what is begun
            return super().parse_args(ctx, args)
        with _errors_in_one_line():
            first = next((i for i, word in enumerate(args) if not word.startswith("-")), len(args))
            own = understood(args[:first], self.get_params(ctx))
            return super().parse_args(ctx, [*own, *args[first:]])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command with a given name in any accepted spelling."""
        known = self.list_commands(ctx)
        name = meant(args[0], known)
        if name is None and not ctx.resilient_parsing:
            help_ = "; did you mean --help?" if key(args[0]) == "help" else ""
            near = help_ or did_you_mean(args[0], known) or f"; there are {', '.join(known)}."
            raise ValueError(f"No such command '{args[0]}'{near}")
        return super().resolve_command(ctx, [name or args[0], *args[1:]])

    def invoke(self, ctx: Any) -> Any:
        with _errors_in_one_line():
            return super().invoke(ctx)


class _Command(TyperCommand):
    """A command that accepts several spellings of its options and values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        name, root = str(self.name), ctx.find_root()
        others = getattr(root.command, "commands", {})
        taken = {other: one.get_params(root) for other, one in others.items()}
        args = understood(args, self.get_params(ctx), name, taken)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            more = _SURPLUS.match(getattr(error, "message", ""))
            if more is None:
                raise
            first = [each for each in ctx.params.values() if isinstance(each, str)]
            raise ValueError(surplus(name, first[:1], more[1].split())) from None


class _Computing(_Command):
    """A command that compiles programs, and caches them for later processes unless told not to."""

    def invoke(self, ctx: Any) -> Any:
        without = any(context.params.get("no_cache") for context in (ctx, ctx.find_root()))
        if ctx.obj is not None and not without:
            ctx.obj()
        return super().invoke(ctx)


_TO_INSTALL = "pip install 'flowlab-jax["  # in sentences on extras
_SURPLUS = re.compile(r"Got unexpected extra argument\S* \((.*)\)")

app = typer.Typer(
    cls=_Group,
    name="flowlab",
    help="Gradient flows of preference losses, from very many starts.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command with the arguments of the process."""
    # Tracing makes very many objects that are never freed. The garbage collector would search all
    # of them for cycles so often that it would take a tenth of the time.
    gc.set_threshold(*_RARELY)
    end_soon()
    try:
        app(prog_name="flowlab", obj=cache.keep_programs)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # Threads may still execute compiled code, which the interpreter frees when it ends. All
            # output is written, so end the process without the interpreter's cleanup.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


def _print_version(asked: bool) -> None:
    if not asked:
        return
    import jax

    typer.echo(f"flowlab {__version__}")
    typer.echo(f"python {platform.python_version()}")
    for name in ("jax", "diffrax"):
        typer.echo(f"{name} {metadata.version(name)}")
    devices = [f"{device.platform}:{device.id} ({device.device_kind})" for device in jax.devices()]
    typer.echo(f"devices {', '.join(devices)}")
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Show the versions of flowlab, Python, jax and diffrax, and the devices.",
        ),
    ] = False,
    no_cache: Annotated[bool, option("no_cache")] = False,
) -> None:
    del version, no_cache  # the one has done its work, the other is for the commands


@app.command(cls=_Computing, epilog=EXIT_CODES)
@with_options(*_SWEPT, named=True)
def sweep(
    loss: list[str] | None = None,
    out: str | None = None,
    plan: Path | None = None,
    float32: bool = False,
    dry_run: bool = False,
    force: bool = False,
    scheduler: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    no_cache: bool = False,
    **asked: Any,
) -> None:
    """Follow flow lines from many starts.

    Each flow line is followed until it reaches the target. Outcomes, times and measures are written
    block by block to a store, a Zarr group. The same command resumes a store that was interrupted.
    The name of a loss suffices: `flowlab sweep dpo`. With --plan, a product of losses, policies,
    hyper-parameters and targets is swept.
    """
    from flowlab import plans
    from flowlab.cli import _request as request

    names = request.names(loss)
    given = request.plan({**asked, "loss": names}, plan, float32=float32)
    out = destinations.store(out, "-".join(names) if plan is None else plan.stem)
    if dry_run:
        typer.echo("estimating on some of the starts ...", err=True)
        expected = plans.estimate(given, out)
        typer.echo(str(expected))
        if expected.lacking() and not force:
            raise ValueError(" ".join(expected.lacking()))
        return
    report.carry_out(given, out, scheduler, force=force, overwrite=overwrite, quiet=quiet)


@app.command(cls=_Computing, epilog=EXIT_CODES)
@with_options()
def resume(
    path: str,
    force: bool = False,
    scheduler: str | None = None,
    quiet: bool = False,
    no_cache: bool = False,
) -> None:
    """Resume a sweep that was interrupted.

    Only missing and damaged blocks are solved, by the plan that is in the store.
    """
    from flowlab import plans

    recipe = plans.read_recipe(path)
    if recipe is None:
        raise OptionError(
            "path",
            "must hold a plan, but the plan of {} was made in Python; resume it there by "
            "`flowlab.plans.run`",
            path,
        )
    report.carry_out(plans.from_json(recipe), path, scheduler, force=force, quiet=quiet)


@app.command(cls=_Command, epilog=EXIT_CODES)
@with_options()
def status(path: str) -> None:
    """Print the progress of a sweep: blocks done, outcomes, runs per second, time left."""
    from flowlab import plans

    typer.echo(report.progress(plans.status(path), path))


@app.command(cls=_Command, epilog=EXIT_CODES)
@with_options()
def show(path: str, figure: Path | None = None, overwrite: bool = False) -> None:
    """Print the contents of a store, finished or not, and draw its maps.

    The contents are the description, the outcomes, and quantiles of the times and the measures.
    """
    from flowlab import store

    if figure is not None:
        destinations.file("figure", figure, suffixes=destinations.PICTURES, overwrite=overwrite)
    runs = store.read(path)
    for name in ("flowlab", "jax", "diffrax"):
        typer.echo(f"{name} {runs.attrs[f'{name}_version']}")
    described = store.description(runs)
    for name, value in described.items():
        typer.echo(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    typer.echo(f"\n{report.summary(runs)}")
    if figure is not None:
        report.draw(runs, described, figure)
        typer.echo(f"\nfigure: {figure}")


@app.command(cls=_Computing, epilog=EXIT_CODES)
@with_options()
def losses(
    name: str | None = None,
    beta: float | None = None,
    parameters: list[str] | None = None,
    reach: float | None = None,
    figure: Path | None = None,
    json: Path | None = None,
    overwrite: bool = False,
    no_cache: bool = False,
) -> None:
    """Describe the flows of losses on the plane of the two log-ratios of one pair.

    Without a name, print the table of all losses, which takes a minute or two. With a name, print
    the card of this loss as text, and draw its phase portrait.
    """
    from flowlab.cli import _request as request

    for each, given in (("beta", beta), ("parameters", parameters), ("figure", figure)):
        idle = name is None and given is not None
        refuse_unless(not idle, each, "has no effect without the name of a loss")
    from flowlab import cards

    square = cards.REACH if reach is None else reach
    if json is not None:
        destinations.file("json", json, overwrite=overwrite)
    if name is None:
        found = report.print_losses(square)
    else:
        loss = request.described(name, beta, parameters)
        picture = destinations.file(
            "figure", figure, f"{name}.png", destinations.PICTURES, overwrite=overwrite
        )
        found = {name: cards.card(loss, reach=square)}
        report.print_loss(found[name], picture)
    if json is not None:
        report.write_json(found, json)


@app.command(cls=_Computing, epilog=EXIT_CODES)
@with_options(*_DRAWN, named=True)
def portrait(
    loss: list[str] | None = None,
    beta: float | None = None,
    potential: str | None = None,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    basins: bool = False,
    cells: int | None = None,
    figure: Path | None = None,
    interactive: bool = False,
    over: str | None = None,
    overwrite: bool = False,
    no_cache: bool = False,
    **asked: Any,
) -> None:
    """Draw the phase portrait of a flow on a plane, and print its critical points.

    The portrait shows flow lines, critical points by kind, nullclines, separatrices and slow
    regions, and with --basins the basins of attraction. The flow is that of a loss or of a
    classical potential; a name suffices, as in `flowlab portrait dpo`. With --interactive, write a
    page with a slider, on which a click shows the nearest flow line and its measures.
    """
    from flowlab.cli import _request as request

    refuse_unless(basins or cells is None, "cells", "has no effect without {basins}")
    page = interactive or (figure is not None and figure.suffix.lower() in destinations.PAGES)
    refuse_unless(page or over is None, "over", "has no effect without {interactive}")
    refuse_unless(not (page and basins), "basins", "has no effect with {interactive}")
    flow, usual = request.drawn({"loss": request.names(loss), **asked, "beta": beta}, potential)
    ending = destinations.PAGES if interactive else (*destinations.PICTURES, *destinations.PAGES)
    name = f"{potential or request.names(loss)[0]}{'.html' if page else '.png'}"
    picture = destinations.file("figure", figure, name, ending, overwrite=overwrite)
    ranges = request.checked_range("x", x, usual[0]), request.checked_range("y", y, usual[1])
    if page:
        report.print_page(*request.slider(flow, over), ranges, picture)
        return
    sides = (64 if cells is None else cells) if basins else None
    report.print_portrait(flow, ranges, cells=sides, picture=picture)


@app.command(cls=_Computing, epilog=EXIT_CODES)
@with_options(named=True)
def displacement(
    loss: list[str] | None = None,
    out: Path | None = None,
    beta: float | None = None,
    parameters: list[str] | None = None,
    rejected_kernel: float | None = None,
    time: float | None = None,
    margins: tuple[float, float] | None = None,
    cells: int | None = None,
    overwrite: bool = False,
    no_cache: bool = False,
) -> None:
    """Map where the chosen log-probability of a pair falls, how far, and for how long.

    The axes are the margin of the start and k_wl/k_ww, the strength with which the rejected
    response moves the chosen one. Write displacement.png and .svg, table.txt and displacement.json
    to a folder.
    """
    from flowlab.cli import _request as request

    losses = request.losses_of_displacement(request.names(loss), beta, parameters)
    folder = destinations.folder(out, "displacement", report.DISPLACEMENT, overwrite=overwrite)
    given = {n: request.grid(one, rejected_kernel, margins, cells) for n, one in losses.items()}
    from flowlab import displacement as mapped

    found: dict[str, mapped.Displacement] = {}
    try:
        for name, one in losses.items():
            found[name] = mapped.displacement(one, time=time, progress=None, **given[name])
            report.keep_displacements(found, folder)
    finally:
        if found:
            report.write_displacements(found, folder)


@app.command(cls=_Computing, epilog=EXIT_CODES)
@with_options()
def log(
    files: list[Path],
    beta: list[float],
    loss: str | None = None,
    parameters: list[str] | None = None,
    out: Path | None = None,
    as_json: bool = False,
    overwrite: bool = False,
    no_cache: bool = False,
) -> None:
    """Diagnose training runs from their logs: do the chosen responses fall, why, and what helps?

    Print the diagnosis as text or as JSON; with --out, also write a page with pictures. Nothing is
    trained.
    """
    from flowlab._pages import REPORT
    from flowlab.cli import _request as request
    from flowlab.logs import report as said

    if out is not None:
        destinations.folder(out, "", REPORT, overwrite=overwrite)
    found = request.diagnoses(files, beta, loss, parameters)
    if as_json:
        records = [said.to_json(one) for one in found]
        told = records[0] if len(records) == 1 else records
        typer.echo(json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        typer.echo("\n\n\n".join(map(said.text, found)))
    if out is not None:
        said.write(found, out)
        typer.echo(f"\nreport: {out / REPORT}", err=as_json)


for of_models in (replay, explain, forecast):
    app.command(cls=_Computing, epilog=EXIT_CODES)(of_models)


@app.command(cls=_Computing, epilog=EXIT_CODES)
@with_options()
def study(
    out: Path | None = None,
    quick: bool = False,
    beta: list[float] | None = None,
    log: Path | None = None,
    log_beta: float | None = None,
    float32: bool = False,
    losses: str | None = None,
    overwrite: bool = False,
    no_cache: bool = False,
) -> None:
    """Repeat the study of arXiv 2404.04626, or compare losses.

    The statements of the paper are measured, with a verdict on each. With --losses, compare these
    losses instead, each with every beta, by portraits, flow lines and cards.
    """
    from flowlab._pages import REPORT
    from flowlab.cli import _request as request

    if losses is not None:
        given = {"quick": quick, "log": log, "log_beta": log_beta, "float32": float32}
        for each, value in given.items():
            idle = value is not None and value is not False
            refuse_unless(not idle, each, "has no effect with {losses}")
        from flowlab import study as compared

        folder = destinations.folder(out, "study", REPORT, overwrite=overwrite)
        result = compared.compare_losses(folder, request.losses(losses, beta))
    else:
        refuse_unless(log is None or log_beta is not None, "log", "must come with {log_beta}")
        refuse_unless(log is not None or log_beta is None, "log_beta", "must come with {log}")
        folder = destinations.folder(out, "study", REPORT, overwrite=overwrite)
        result = _repeated(folder, quick, beta, log, log_beta, float32)
    typer.echo(result.summary())
    typer.echo(f"study: {result.folder}")


@app.command(cls=_Computing, epilog=EXIT_CODES)
@with_options()
def doctor(no_cache: bool = False) -> None:
    """Print versions, devices, the cache of programs, and what an accelerator would run."""
    from flowlab.cli import _doctor

    typer.echo(_doctor.report())


def _repeated(
    out: Path,
    quick: bool,
    betas: list[float] | None,
    log: Path | None,
    log_beta: float | None,
    float32: bool,
) -> "Study":
    """The study of the paper, with a training log if one is given."""
    import numpy as np

    from flowlab import study as paper
    from flowlab.logs import series as logs

    training = None
    if log is not None and log_beta is not None:
        training = logs.read_named(log, beta=log_beta, what=f"Option {as_flag('log')}")
    return paper.run(
        out=out,
        betas=tuple(betas) if betas else None,
        quick=quick,
        log=training,
        dtype=np.float32 if float32 else np.float64,
        progress=None,
    )


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt as stop:
        typer.echo(f"flowlab: {str(stop) or 'interrupted'}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        message, code = _message_and_code(error)
        typer.echo(f"flowlab: {' '.join(message.split())}", err=True)
        raise typer.Exit(code) from None


def _message_and_code(error: Exception) -> tuple[str, int]:
    # Usage errors belong to typer or to click, depending on the release of typer.
    if type(error).__name__ == "MissingParameter":
        name = error.param.name  # type: ignore[attr-defined]
        return OptionError(name, "must be given").of_command(), MISUSED
    if hasattr(error, "format_message"):
        # Some releases of typer have their values checked by pydantic, which says that it did.
        said = error.format_message()  # type: ignore[attr-defined]
        return said.replace("Value error, ", ""), MISUSED
    if isinstance(error, OptionError):
        return error.of_command(), MISUSED
    if isinstance(error, NotWritableError):
        return as_option_named(str(error)), FAILED
    if isinstance(error, ValueError | FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return as_option_named(str(error)), MISUSED
    if isinstance(error, ModuleNotFoundError) and _TO_INSTALL in str(error):
        return str(error), FAILED
    return f"{type(error).__name__}: {error}", FAILED
