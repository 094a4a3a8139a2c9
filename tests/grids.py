"""Grids of which the tests take a part by default, and all under `pytest --exhaustive`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["thinned"]


def thinned(values: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """All values, those that are not kept marked as exhaustive; a tuple is one of several names."""

    def exhaustive(value: Any) -> Any:
        parts = value if isinstance(value, tuple) else (value,)
        return pytest.param(*parts, marks=pytest.mark.exhaustive)

    return [value if value in kept else exhaustive(value) for value in values]
