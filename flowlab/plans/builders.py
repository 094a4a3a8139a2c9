"""The library's objects, built from what options and recipes say."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowlab import domains, measures, policies, until
from flowlab._options import OptionError, refuse_unless
from flowlab.measures import Measure
from flowlab.plans.plan import DrawnStarts
from flowlab.policies import AbstractPolicy
from flowlab.until import AbstractTarget

__all__ = ["drawn_starts", "measure", "policy", "target"]


def policy(asked: Mapping[str, Any]) -> AbstractPolicy:
    """The plane that was asked for, with its domain or kernel."""
    make = policies.PLANES[asked["policy"]]
    taken = inspect.signature(make).parameters
    given = {
        "domain": _domain(asked),
        "wall": asked["wall"],
        "kernel": _kernel(asked["kernel"]),
        "offset": asked["offset"],
    }
    return make(**{name: given[name] for name in taken if given.get(name) is not None})


def _domain(asked: Mapping[str, Any]) -> domains.AbstractDomain | None:
    if asked["domain"] in (None, "quadrant"):
        return None
    make, options = {
        "box": (domains.Box, ("box_chosen", "box_rejected")),
        "simplex": (domains.Simplex, ("ref_prob_chosen", "ref_prob_rejected")),
    }[asked["domain"]]
    return make(*(1.0 if asked[name] is None else asked[name] for name in options))


def _kernel(text: str | None) -> np.ndarray | None:
    if text is None:
        return None
    numbers = _numbers("kernel", text)
    right = len(numbers) == 3
    refuse_unless(right, "kernel", "must be three numbers KWW,KWL,KLL, but is {!r}", text)
    chosen, cross, rejected = numbers
    return np.array([[chosen, cross], [cross, rejected]])


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(
            option, "must hold numbers with commas between, but holds {!r}", text
        ) from None


def drawn_starts(asked: Mapping[str, Any]) -> DrawnStarts:
    """The starts that were asked for."""
    size = asked["shape"] if asked["starts"] == "grid" else asked["count"]
    corners = asked["lower"], asked["upper"]
    return DrawnStarts(asked["starts"], size, *corners, asked["seed"] or 0, asked["dtype"])


def target(text: str, time_limit: float | None) -> AbstractTarget:
    """The target with a name and levels such as `loss_below=0.1`."""
    name, equals, value = text.partition("=")
    if name == "boundary" and not equals:
        return until.boundary(time_limit=time_limit)
    refuse_unless(
        name in ("loss_below", "margin_above", "speed_below", "time") and bool(value),
        "until",
        "must be loss_below=L, margin_above=H, speed_below=V, time=T or boundary, but is {!r}",
        text,
    )
    levels = _numbers("until", value)
    right = name == "loss_below" or len(levels) == 1
    refuse_unless(right, "until", "must have one number after {}=, but is {!r}", name, text)
    if name == "time":
        return until.time(levels[0])
    return getattr(until, name)(*levels, time_limit=time_limit)


def measure(text: str) -> Measure:
    """The measure with a name, speed and space such as `dwell=0.1:u`."""
    parts = re.fullmatch(r"(\w+)(?:=([^:]*))?(?::(\w+))?", text)
    name, value, space = parts.groups() if parts else ("", None, None)
    spaceless = ("margin_zero", "margin_at", "dip")
    known = ("path_length", "dwell", "slowest", *spaceless, "change", "rate_ratio")
    refuse_unless(
        name in known, "measure", "must be one of {}, but is {!r}", ", ".join(known), text
    )
    refuse_unless(
        (value is not None) == (name in ("dwell", "margin_at")),
        "measure",
        "must have a speed after dwell=, a margin after margin_at=, and no number after another "
        "name, but is {!r}",
        text,
    )
    right = space is None or name not in spaceless
    refuse_unless(right, "measure", "must have no space for {}, but is {!r}", name, text)
    levels = [] if value is None else _numbers("measure", value)
    return getattr(measures, name)(*levels, **({} if space is None else {"of": space}))
