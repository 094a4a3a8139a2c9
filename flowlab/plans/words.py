"""The words in which sweeps are asked for, on the command line and in files, and what they mean.

Options are named as on the command line; who reads them from a file says their names otherwise.
"""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowlab import domains, measures, policies, until
from flowlab.losses import ODPO, AbstractLoss, named
from flowlab.measures import Measure
from flowlab.plans.plan import DrawnStarts
from flowlab.policies import AbstractPolicy
from flowlab.until import AbstractTarget

__all__ = [
    "corners",
    "drawn_starts",
    "flag",
    "has_beta",
    "loss",
    "loss_asked",
    "loss_parameters",
    "measure",
    "of_plane",
    "policy",
    "refuse_beta_set",
    "refuse_idle",
    "refuse_twice",
    "refuse_unless",
    "refuse_without_effect",
    "target",
]


def refuse_unless(condition: bool, message: str) -> None:
    """Raise a ValueError about an option unless a condition holds."""
    if not condition:
        raise ValueError(f"Option {message}.")


def refuse_twice(betas: Sequence[float] | None) -> None:
    """Refuse a beta that was given twice."""
    twice = len(set(betas or ())) < len(betas or ())
    refuse_unless(not twice, f"--beta must not be given one value twice, but is {betas}")


def loss(name: str, parameters: dict[str, float], called: str = "Option --loss") -> AbstractLoss:
    """The loss with a name and hyper-parameters."""
    # `parameters` could hold a key `name`, which no loss has.
    refuse_unless("name" not in parameters, "--set must name hyper-parameters, but names 'name'")
    try:
        plain = named(name)
        for key in parameters:
            number = not dataclasses.is_dataclass(getattr(plain, key, None))
            refuse_unless(number, f"--set must name numbers, but {key} is none")
        return named(name, **parameters)
    except ValueError as error:
        told = str(error).replace("Argument `name`", called)
        raise ValueError(told.replace("Argument `parameters`", "Option --set")) from None


def loss_parameters(texts: Sequence[str] | None) -> dict[str, float]:
    """Hyper-parameters from texts such as `tau=0.1`."""
    found: dict[str, float] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        refuse_unless(name not in found, f"--set must not name {name} twice")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"Option --set must be NAME=NUMBER, but is {text!r}.") from None
    return found


def has_beta(found: AbstractLoss) -> bool:
    """Whether a loss has a hyper-parameter beta."""
    return hasattr(found, "beta")


def loss_asked(asked: dict[str, Any], parameters: dict[str, float]) -> AbstractLoss:
    """The loss that was asked for, at the first beta."""
    found = loss(asked["loss"], parameters)
    if asked["beta"]:
        refuse_unless(
            has_beta(found), f"--beta has no effect with --loss {asked['loss']}, which has none"
        )
        found = loss(asked["loss"], {**parameters, "beta": asked["beta"][0]})
    offset, wanted = asked["offset"] is not None, isinstance(found, ODPO)
    refuse_unless(wanted or not offset, f"--offset has no effect with --loss {asked['loss']}")
    refuse_unless(offset or not wanted, f"--offset must be given with --loss {asked['loss']}")
    return found


def policy(asked: dict[str, Any]) -> AbstractPolicy:
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


def _domain(asked: dict[str, Any]) -> domains.AbstractDomain | None:
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
    numbers = _numbers("--kernel", text)
    refuse_unless(len(numbers) == 3, f"--kernel must be three numbers KWW,KWL,KLL, but is {text!r}")
    chosen, cross, rejected = numbers
    return np.array([[chosen, cross], [cross, rejected]])


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"Option {option} must hold numbers with commas between, but holds {text!r}."
        ) from None


def drawn_starts(asked: dict[str, Any]) -> DrawnStarts:
    """The starts that were asked for."""
    lower, upper = corners(asked)
    gridded = asked["starts"] == "grid"
    dtype = asked["dtype"] or "float64"
    size = asked["shape"] if gridded else asked["count"]
    return DrawnStarts(str(asked["starts"]), size, lower, upper, asked["seed"] or 0, dtype)  # type: ignore[arg-type]


def corners(asked: dict[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The corners of the box that the starts lie in."""
    return asked["lower"] or (0.0, 0.0), asked["upper"] or (1.0, 1.0)


def target(text: str, time_limit: float | None) -> AbstractTarget:
    """The target with a name and levels such as `loss_below=0.1`."""
    name, equals, value = text.partition("=")
    if name == "boundary" and not equals:
        return until.boundary(time_limit=time_limit)
    known = ("loss_below", "margin_above", "speed_below", "time")
    refuse_unless(
        name in known and bool(value),
        "--until must be loss_below=L, margin_above=H, speed_below=V, time=T or boundary, "
        f"but is {text!r}",
    )
    levels = _numbers("--until", value)
    refuse_unless(
        name == "loss_below" or len(levels) == 1,
        f"--until must have one number after {name}=, but is {text!r}",
    )
    if name == "time":
        return until.time(levels[0])
    return getattr(until, name)(*levels, time_limit=time_limit)


def measure(text: str) -> Measure:
    """The measure with a name, speed and space such as `dwell=0.1:u`."""
    parts = re.fullmatch(r"(\w+)(?:=([^:]*))?(?::(\w+))?", text)
    name, value, space = parts.groups() if parts else (None, None, None)
    spaceless = ("margin_zero", "margin_at", "dip")
    known = ("path_length", "dwell", "slowest", *spaceless, "change", "rate_ratio")
    refuse_unless(name in known, f"--measure must be one of {', '.join(known)}, but is {text!r}")
    assert name is not None
    refuse_unless(
        (value is not None) == (name in ("dwell", "margin_at")),
        "--measure must have a speed after dwell=, a margin after margin_at=, and no number after "
        f"another name, but is {text!r}",
    )
    refuse_unless(
        space is None or name not in spaceless,
        f"--measure must have no space for {name}, but is {text!r}",
    )
    levels = [] if value is None else _numbers("--measure", value)
    return getattr(measures, name)(*levels, **({} if space is None else {"of": space}))


def refuse_idle(asked: dict[str, Any]) -> None:
    """Refuse options that would have no effect, and ask for those that are missing."""
    on_ratio_plane = asked["policy"] == "ratio"
    gridded = asked["starts"] == "grid"
    timed = asked["until"].startswith("time")
    effective = {
        "count": (not gridded, "--starts grid"),
        "seed": (not gridded, "--starts grid"),
        "shape": (gridded, f"--starts {asked['starts']}"),
        "time_limit": (not timed, "--until time"),
    }
    refuse_without_effect(asked, {**of_plane(asked), **effective})
    needed = ["shape" if gridded else "count", *([] if on_ratio_plane else ["lower", "upper"])]
    for name in needed:
        context = (
            f"--starts {asked['starts']}" if name in ("shape", "count") else "--policy log_ratio"
        )
        refuse_unless(asked[name] is not None, f"{flag(name)} must be given with {context}")
    refuse_twice(asked["beta"])


def of_plane(asked: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """Which options of the policy would have an effect, and with what they would have none."""
    on_ratio_plane = asked["policy"] == "ratio"
    domain = (asked["domain"] or "quadrant") if on_ratio_plane else None
    return {
        "domain": (on_ratio_plane, "--policy log_ratio"),
        "box_chosen": (domain == "box", "anything but --domain box"),
        "box_rejected": (domain == "box", "anything but --domain box"),
        "ref_prob_chosen": (domain == "simplex", "anything but --domain simplex"),
        "ref_prob_rejected": (domain == "simplex", "anything but --domain simplex"),
        "wall": (domain in ("box", "simplex"), "a domain without walls"),
        "kernel": (not on_ratio_plane, "--policy ratio"),
    }


def refuse_without_effect(asked: dict[str, Any], effective: dict[str, tuple[bool, str]]) -> None:
    """Refuse options that were given and have no effect."""
    for name, (has_effect, context) in effective.items():
        idle = asked[name] is not None and not has_effect
        refuse_unless(not idle, f"{flag(name)} has no effect with {context}")


def refuse_beta_set(texts: Sequence[str] | None) -> None:
    """Refuse a beta among the hyper-parameters of other names."""
    for text in texts or ():
        named_beta = text.partition("=")[0] == "beta"
        refuse_unless(not named_beta, f"--set must not name beta, which is --beta, but is {text!r}")


def flag(name: str) -> str:
    """The option with the name of an argument."""
    return f"--{name.replace('_', '-')}"
