"""The figures' common parts: colours, panels with a question each, and the file they go to."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")
"""Blue, vermilion, green, purple and black of Okabe and Ito's colours for the colour-blind."""
MARKERS = ("o", "s", "^", "D", "v")
_DOTS_PER_INCH = 150


def panels(rows: int, columns: int, heading: str, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of panels, row by row, under a heading that says what was measured."""
    figure = Figure(figsize=(5.2 * columns, 4.2 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)  # type: ignore[union-attr]
    figure.suptitle(heading, fontsize=11)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def label(ax: Axes, question: str, across: str, up: str) -> None:
    """Name a panel by its question and its axes with their units; add a quiet grid."""
    ax.set_title(question, fontsize=11, loc="left")
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, in the format that its name ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DOTS_PER_INCH)
