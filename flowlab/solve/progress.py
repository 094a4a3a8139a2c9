"""Progress bars, and the pauses of long computations for bars, Ctrl-C and checkpoints."""

from typing import Any

__all__ = ["CALL", "SAVED_EVERY", "bar_options"]

CALL = 0.5  # seconds of a call of a compiled loop; they are handled between calls
SAVED_EVERY = 30.0  # seconds between checkpoints: the most that is lost


def bar_options(progress: bool | None) -> dict[str, Any]:
    """Options of a tqdm progress bar; None shows a bar on a terminal if the work takes long."""
    if progress is None:
        return {"disable": None, "delay": 2.0, "leave": False}
    return {"disable": not progress}
