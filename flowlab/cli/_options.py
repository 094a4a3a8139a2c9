"""The options of the commands, one annotation each, and the names they can take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Policy(StrEnum):
    """Policies by name."""

    ratio = "ratio"
    log_ratio = "log_ratio"


class Domain(StrEnum):
    """Domains of the ratio plane by name."""

    quadrant = "quadrant"
    box = "box"
    simplex = "simplex"


class Wall(StrEnum):
    """What a flow line does at a wall."""

    stop = "stop"
    slide = "slide"


class Starts(StrEnum):
    """Sets of starts by name."""

    grid = "grid"
    sobol = "sobol"
    uniform = "uniform"
    latin = "latin"


class Clock(StrEnum):
    """Independent variables of an integration by name."""

    time = "time"
    arc_length = "arc_length"
    loss = "loss"
    margin = "margin"


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, **more)


BetaOption = Annotated[
    list[float] | None,
    _option(
        "Beta of the loss, its own if not given; given several times, each is swept.",
        metavar="BETA",
    ),
]
SetOption = Annotated[
    list[str] | None,
    _option(
        "Hyper-parameter of the loss, any number of times, such as tau=0.1 for discopop.",
        "--set",
        metavar="NAME=VALUE",
    ),
]
OffsetOption = Annotated[
    float | None, _option("Required margin of the pair, for a loss that uses one (odpo).")
]
LossArgument = Annotated[
    str | None, typer.Argument(metavar="NAME", help="Loss to describe and draw; all if none.")
]
ReachOption = Annotated[
    float | None,
    _option("Half the side of the square that is searched, nats; 100 if not given."),
]
PortraitOption = Annotated[
    Path | None,
    _option(
        "File to draw the portrait to, .png, .svg or .pdf; NAME.png if not given.", metavar="FILE"
    ),
]
LossOption = Annotated[
    str | None,
    _option("Preference loss by name; `flowlab losses` lists them.", "--loss", metavar="NAME"),
]
PolicyOption = Annotated[Policy | None, _option("Plane that the states lie in.", "--policy")]
PotentialOption = Annotated[
    str | None,
    _option(
        "Classical potential on the plane, instead of a loss and policy: bowl, saddle, himmelblau, "
        "mueller_brown, rosenbrock, monkey_saddle or double_well.",
        metavar="NAME",
    ),
]
RangeOption = Annotated[
    tuple[float, float] | None,
    _option(
        "Range of this component; 0 1 on the ratio plane, -10 10 on the log-ratio plane, the usual "
        "one of a potential if not given.",
        metavar="LOW HIGH",
    ),
]
BasinsOption = Annotated[
    bool, _option("Fill in where each start ends, which takes longer.", "--basins")
]
BasinCellsOption = Annotated[
    int | None,
    _option("Starts on each side of the map of basins; 64 if not given.", min=2, metavar="N"),
]
FigureOption = Annotated[Path, _option("File to draw to, .png, .svg or .pdf.", metavar="FILE")]
JsonOption = Annotated[
    Path | None, _option("File to write the cards to as JSON.", "--json", metavar="FILE")
]
LossesOption = Annotated[
    str | None,
    _option("Compare losses instead: names with commas between, or all.", metavar="NAME,NAME,..."),
]
NamedLossesOption = Annotated[
    list[str],
    _option(
        "Preference loss by name, any number of times; `flowlab losses` lists them.",
        "--loss",
        metavar="NAME",
    ),
]
OneBetaOption = Annotated[
    float | None, _option("Beta of the losses, their own if not given.", metavar="BETA")
]
RejectedOption = Annotated[
    float | None,
    _option("Ratio k_ll/k_ww, 1.5 if not given; k_wl/k_ww goes up to its root.", metavar="S"),
]
HorizonOption = Annotated[
    float | None,
    _option("Flow time to follow the lines for; chosen by the slopes of the loss if not given."),
]
MarginsOption = Annotated[
    tuple[float, float] | None,
    _option("Margins of the starts, nats; -20 20 if not given.", metavar="LOW HIGH"),
]
CellsOption = Annotated[
    int | None,
    _option("Margins and values of k_wl/k_ww, each; 61 and 32 if not given.", min=2, metavar="N"),
]
FolderOption = Annotated[Path, _option("Folder to write.", metavar="DIR")]
DomainOption = Annotated[
    Domain | None, _option("Domain of the ratio plane; quadrant if not given.")
]
BoxOption = Annotated[float | None, _option("Upper end of the box; 1 if not given.")]
RefOption = Annotated[
    float | None,
    _option("Reference probability that shapes the simplex; 1 if not given."),
]
WallOption = Annotated[
    Wall | None, _option("What happens at a wall of a box or simplex; stop if not given.")
]
KernelOption = Annotated[
    str | None,
    _option("Kernel of the log-ratio plane; 1,0,1 if not given.", metavar="KWW,KWL,KLL"),
]
StartsOption = Annotated[Starts | None, _option("Set of starts.")]
CountOption = Annotated[int | None, _option("Number of starts, for sobol, uniform and latin.")]
ShapeOption = Annotated[tuple[int, int] | None, _option("Cells of a grid.", metavar="NX NY")]
LowerOption = Annotated[
    tuple[float, float] | None,
    _option("Lower corner of the starts; 0 0 on the ratio plane.", metavar="X Y"),
]
UpperOption = Annotated[
    tuple[float, float] | None,
    _option("Upper corner of the starts; 1 1 on the ratio plane.", metavar="X Y"),
]
SeedOption = Annotated[int | None, _option("Seed of sobol, uniform and latin; 0 if not given.")]
UntilOption = Annotated[
    str | None,
    _option(
        "Target: loss_below=L (or L1,L2,..., falling), margin_above=H, speed_below=V, time=T or "
        "boundary.",
        metavar="TARGET",
    ),
]
TimeLimitOption = Annotated[float | None, _option("Flow time at which to give up.")]
RtolOption = Annotated[
    float | None, _option("Relative tolerance; 1e-6 if not given, or 1e-4 in 32 bits.")
]
AtolOption = Annotated[
    float | None, _option("Absolute tolerance of the state; chosen if not given.")
]
ClockOption = Annotated[
    Clock | None, _option("Independent variable; that of the target if not given.")
]
MeasureOption = Annotated[
    list[str] | None,
    _option(
        "Measure, any number of times: path_length, dwell=SPEED, slowest, margin_zero, "
        "margin_at=MARGIN, dip, change or rate_ratio, with the space after a colon "
        "(path_length:u).",
        metavar="NAME",
    ),
]
AuditOption = Annotated[
    float | None, _option("Part of the starts to solve again at tighter tolerances.")
]
Float32Option = Annotated[bool, _option("Work in 32 bits instead of 64.", "--float32")]
BlockSizeOption = Annotated[int | None, _option("Starts that share a step.")]
BlockOption = Annotated[
    int | None,
    _option(
        "Starts of a block, which is solved, written and marked as done at once; 262144 if not "
        "given.",
        min=1,
    ),
]
PlanOption = Annotated[
    Path | None,
    _option("TOML file with the plan of a sweep, instead of the options above.", metavar="FILE"),
]
DryRunOption = Annotated[
    bool, _option("Tell the time, memory and disk that it will take, and stop.", "--dry-run")
]
ForceOption = Annotated[
    bool,
    _option("Start although memory or disk do not suffice, or other versions began it.", "--force"),
]
SchedulerOption = Annotated[
    str | None,
    _option(
        "Address of a Dask scheduler whose workers shall do it (extra `cluster`).",
        metavar="ADDRESS",
    ),
]
OutOption = Annotated[
    str, _option("Store to write: a folder, or an address such as s3://...", metavar="STORE")
]
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="Store that a sweep wrote.")]
OverwriteOption = Annotated[bool, _option("Replace a store that exists at --out.", "--overwrite")]
QuietOption = Annotated[bool, _option("No progress bar and no summary.", "--quiet")]
NoCacheOption = Annotated[
    bool,
    _option(
        "Compile everything anew, and keep no programs in the user's folder of caches.",
        "--no-cache",
        envvar="FLOWLAB_NO_CACHE",
    ),
]
