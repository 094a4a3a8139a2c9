"""Bounds as text or as numbers, rounded so that they remain bounds."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

__all__ = ["down", "down_to", "up", "up_to"]


def up(value: float, digits: int = 2) -> str:
    """A number rounded towards +∞ to a number of decimals, as text; for an upper bound.

    Args:
        value: The number, finite.
        digits: Number of decimals.
    """
    return _written(value, digits, ROUND_CEILING)


def down(value: float, digits: int = 2) -> str:
    """A number rounded towards −∞ to a number of decimals, as text; for a lower bound.

    Args:
        value: The number, finite.
        digits: Number of decimals.
    """
    return _written(value, digits, ROUND_FLOOR)


def up_to(value: float, significant: int = 2) -> str:
    """A number rounded towards +∞ to a number of significant digits.

    Args:
        value: The number, finite.
        significant: Number of significant digits.
    """
    return up(value, _decimals(value, significant))


def down_to(value: float, significant: int = 2) -> str:
    """A number rounded towards −∞ to a number of significant digits.

    Args:
        value: The number, finite.
        significant: Number of significant digits.
    """
    return down(value, _decimals(value, significant))


def _decimals(value: float, significant: int) -> int:
    return significant - 1 - math.floor(math.log10(abs(value))) if value else 0


def _written(value: float, digits: int, rounding: str) -> str:
    # A decimal number holds a float exactly, so that what is printed is never on the wrong side.
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-digits), rounding=rounding)
    return f"{abs(rounded) if rounded == 0 else rounded:f}".replace("-", "−")
