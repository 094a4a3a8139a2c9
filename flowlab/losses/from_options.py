"""Losses from the options of a command or a recipe: name, hyper-parameters, β and offset."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from flowlab._options import OptionError, refuse_unless
from flowlab.losses import CATALOGUE, ODPO, AbstractLoss, named, nearest

__all__ = ["has_beta", "loss", "loss_from_options"]


def loss(name: str, parameters: Mapping[str, float], option: str = "loss") -> AbstractLoss:
    """The loss with a given name and hyper-parameters; errors in the name concern `option`."""
    # `parameters` could hold a key `name`, which no loss has.
    refuse_unless(
        "name" not in parameters, "parameters", "must name hyper-parameters, but names 'name'"
    )
    try:
        plain = named(name)
    except ValueError:
        known, near = ", ".join(CATALOGUE), nearest(name)
        raise OptionError(option, "must be one of {}, but is {!r}{}", known, name, near) from None
    for key in parameters:
        number = not dataclasses.is_dataclass(getattr(plain, key, None))
        refuse_unless(number, "parameters", "must set numbers, but {} is not a number", key)
    try:
        return named(name, **parameters)
    except ValueError as error:
        said = re.match(r"Argument `(\w+)` (.*?)\.?$", str(error), re.DOTALL)
        if said is None or said[1] not in ("parameters", *parameters):
            raise
        named_so = "" if said[1] == "parameters" else f"{said[1]} "
        asked = "beta" if said[1] == "beta" else "parameters"  # which has an option of its own
        raise OptionError(asked, "{}", said[2] if asked == "beta" else named_so + said[2]) from None


def has_beta(loss: AbstractLoss) -> bool:
    """True if a loss has a hyper-parameter beta."""
    return hasattr(loss, "beta")


def loss_from_options(asked: Mapping[str, Any], parameters: Mapping[str, float]) -> AbstractLoss:
    """The loss that the options describe; of several values of β it has the first."""
    name, beta, offset = asked["loss"], asked["beta"], asked["offset"]
    refuse_unless("beta" not in parameters, "parameters", "must not name beta, which is {beta}")
    found = loss(name, parameters)
    if beta:
        refuse_unless(has_beta(found), "beta", "has no effect with {loss} {}, which has none", name)
        first = beta[0] if isinstance(beta, list) else beta
        found = loss(name, {**parameters, "beta": first})
    wanted = isinstance(found, ODPO)
    refuse_unless(wanted or offset is None, "offset", "has no effect with {loss} {}", name)
    refuse_unless(not wanted or offset is not None, "offset", "must be given with {loss} {}", name)
    return found
