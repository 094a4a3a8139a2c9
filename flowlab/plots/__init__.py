"""Figures of flows, on matplotlib Axes.

Most functions draw on one Axes and return it, so that several can draw on the same Axes. They do
not use pyplot or change matplotlib's global style. Without an Axes, a function makes a new Figure,
available as `ax.figure`. Axes are labelled unless they have labels already, and the legend above an
Axes contains the entries of everything drawn on it. `interactive_portrait` makes an HTML page with
plotly instead.
"""

from typing import TYPE_CHECKING

from flowlab._lazy import on_demand

if TYPE_CHECKING:
    from flowlab.plots.canvas import LOG_RATIOS, RATIOS, panels, save, shared_legend
    from flowlab.plots.card_comparison import comparison
    from flowlab.plots.card_portraits import portrait, portraits
    from flowlab.plots.critical import basins, branches, critical_points, separatrices
    from flowlab.plots.displacement_maps import displacement, displacements
    from flowlab.plots.fields import field, loss_surface
    from flowlab.plots.interactive import InteractivePortrait, interactive_portrait
    from flowlab.plots.maps import changes, map_of
    from flowlab.plots.paths import lines, log_path, walls
    from flowlab.plots.phase import LAYERS, nullclines, phase_portrait, slow_regions
    from flowlab.plots.replays import (
        replay,
        replay_deviation,
        replay_pairs,
        replay_spread,
        replay_steps,
    )
    from flowlab.plots.spaced_lines import flow_lines
    from flowlab.plots.training import training_run, training_steps

__all__ = [
    "LAYERS",
    "LOG_RATIOS",
    "RATIOS",
    "InteractivePortrait",
    "basins",
    "branches",
    "changes",
    "comparison",
    "critical_points",
    "displacement",
    "displacements",
    "field",
    "flow_lines",
    "interactive_portrait",
    "lines",
    "log_path",
    "loss_surface",
    "map_of",
    "nullclines",
    "panels",
    "phase_portrait",
    "portrait",
    "portraits",
    "replay",
    "replay_deviation",
    "replay_pairs",
    "replay_spread",
    "replay_steps",
    "save",
    "separatrices",
    "shared_legend",
    "slow_regions",
    "training_run",
    "training_steps",
    "walls",
]

__getattr__, __dir__ = on_demand(
    __name__,
    {
        "canvas": ("LOG_RATIOS", "RATIOS", "panels", "save", "shared_legend"),
        "card_comparison": ("comparison",),
        "critical": ("basins", "branches", "critical_points", "separatrices"),
        "displacement_maps": ("displacement", "displacements"),
        "fields": ("field", "loss_surface"),
        "interactive": ("InteractivePortrait", "interactive_portrait"),
        "maps": ("changes", "map_of"),
        "paths": ("lines", "log_path", "walls"),
        "phase": ("LAYERS", "nullclines", "phase_portrait", "slow_regions"),
        "card_portraits": ("portrait", "portraits"),
        "replays": (
            *("replay", "replay_deviation", "replay_pairs", "replay_spread", "replay_steps"),
        ),
        "spaced_lines": ("flow_lines",),
        "training": ("training_run", "training_steps"),
    },
)
