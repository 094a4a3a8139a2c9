"""Progress bars, and how often long work lets them, Ctrl-C and checkpoints through."""

from typing import Any

__all__ = ["CALL", "SAVED_EVERY", "bar_options"]

CALL = 0.5  # seconds of a call of a compiled loop, between which they get through
SAVED_EVERY = 30.0  # seconds between checkpoints: what a kill can cost


def bar_options(progress: bool | None) -> dict[str, Any]:
    """Options of a progress bar; None for one that shows where it takes long, on a terminal."""
    if progress is None:
        return {"disable": None, "delay": 2.0, "leave": False}
    return {"disable": not progress}
