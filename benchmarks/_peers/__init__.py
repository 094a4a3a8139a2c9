"""Other ways to find the times that `ensemble.py` asks for, one module per library.

A peer's library is imported when its ways are made, so that none of them has to be installed. A
module's `peers` takes a problem and the number of cores, and returns its peers by name: none where
the problem is not for it. It raises `MissingError` where the library or the compiler is not there.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np

__all__ = ["MissingError", "Peer", "Solved", "Way", "library"]


class MissingError(Exception):
    """A peer cannot be had on this machine; the text says what is missing."""


class Solved(NamedTuple):
    """Times to the level, one per start, and the mean number of steps, where it is known."""

    times: np.ndarray
    steps: float | None = None


Way = Callable[[np.ndarray, float], Solved]
"""Times to the level, from starts of shape (n, d) and a relative tolerance."""


class Peer(NamedTuple):
    """The methods of a peer, of which the fastest counts, and how many starts it is given."""

    methods: dict[str, Way]
    starts: int


def library(name: str) -> ModuleType:
    """A library by its name.

    Raises:
        MissingError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(f"{name} is not installed") from error
