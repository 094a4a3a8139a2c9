"""Objects of the library, built from the entries of options and recipes."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowlab import domains, measures, policies, until
from flowlab._names import did_you_mean
from flowlab._options import OPTIONS, OptionError, refuse_unless
from flowlab.measures import Measure
from flowlab.policies import AbstractPolicy
from flowlab.starts import DrawnStarts
from flowlab.until import AbstractTarget

__all__ = ["drawn_starts", "measure", "policy", "target"]


def policy(asked: Mapping[str, Any]) -> AbstractPolicy:
    """The plane that the options describe, with its domain or its kernel."""
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
            option, "must hold comma-separated numbers, but holds {!r}", text
        ) from None


def drawn_starts(asked: Mapping[str, Any]) -> DrawnStarts:
    """The starts that the options describe."""
    size = asked["shape"] if asked["starts"] == "grid" else asked["count"]
    corners = asked["lower"], asked["upper"]
    return DrawnStarts(asked["starts"], size, *corners, asked["seed"] or 0, asked["dtype"])


def target(text: str, time_limit: float | None) -> AbstractTarget:
    """The target with a name and a level, from a text such as `loss_below=0.1`."""
    name, equals, value = text.partition("=")
    known = OPTIONS["until"]
    right = name in known.takes and bool(equals) == bool(value) == bool(known.takes[name])
    near = "" if name in known.takes else did_you_mean(re.split("[<>=]", text)[0], known.takes)
    refuse_unless(right, "until", "must be {}, but is {!r}{}", known.listed, text, near)
    levels = _numbers("until", value) if value else []
    make = getattr(until, name)
    taken = inspect.signature(make).parameters
    several = any(one.kind is one.VAR_POSITIONAL for one in taken.values())
    right = several or len(levels) <= 1
    refuse_unless(right, "until", "must have one number after {}=, but is {!r}", name, text)
    return make(*levels, **({"time_limit": time_limit} if "time_limit" in taken else {}))


def measure(text: str) -> Measure:
    """The measure with a name, a speed and a space, from a text such as `dwell=0.1:u`."""
    parts = re.fullmatch(r"(\w+)(?:=([^:]*))?(?::(\w+))?", text)
    name, value, space = parts.groups() if parts else ("", None, None)
    takes = OPTIONS["measure"].takes
    known = ", ".join(takes)
    near = did_you_mean(re.split("[<>=:]", text)[0], takes)
    refuse_unless(name in takes, "measure", "must be one of {}, but is {!r}{}", known, text, near)
    numbered = (f"a {what.lower()} after {one}=" for one, what in takes.items() if what)
    refuse_unless(
        (value is not None) == bool(takes[name]),
        "measure",
        "must have {}, and no number after another name, but is {!r}",
        ", ".join(numbered),
        text,
    )
    make = getattr(measures, name)
    right = space is None or "of" in inspect.signature(make).parameters
    refuse_unless(right, "measure", "must have no space for {}, but is {!r}", name, text)
    levels = [] if value is None else _numbers("measure", value)
    return make(*levels, **({} if space is None else {"of": space}))
