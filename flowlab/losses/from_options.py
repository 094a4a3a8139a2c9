"""Losses from the options of a command or a recipe: name, hyper-parameters, β and offset."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flowlab._options import OptionError, refuse_unless
from flowlab._parameters import parameter_names, parameters_of
from flowlab.losses import ODPO, AbstractLoss, named

__all__ = ["beta_of", "has_beta", "loss", "loss_from_options", "parameters_of_each"]


def loss(name: str, parameters: Mapping[str, float], option: str = "loss") -> AbstractLoss:
    """The loss with a given name and hyper-parameters; errors in the name concern `option`."""
    # `parameters` could hold a key `name`, which no loss has.
    refuse_unless(
        "name" not in parameters, "parameters", "must name hyper-parameters, but names 'name'"
    )
    try:
        plain = named(name)
    except ValueError as error:
        raise OptionError(option, "{}", _said(error)[2]) from None
    for key in parameters:
        number = not dataclasses.is_dataclass(getattr(plain, key, None))
        refuse_unless(number, "parameters", "must set numbers, but {} is not a number", key)
    try:
        return named(name, **parameters)
    except ValueError as error:
        said = _said(error)
        if said[1] not in ("parameters", *parameters):
            raise
        named_so = "" if said[1] == "parameters" else f"{said[1]} "
        asked = "beta" if said[1] == "beta" else "parameters"  # which has an option of its own
        raise OptionError(asked, "{}", said[2] if asked == "beta" else named_so + said[2]) from None


def _said(error: ValueError) -> re.Match[str]:
    """The argument that a message names, and the rest of the message without its full stop."""
    said = re.match(r"Argument `(\w+)` (.*?)\.?$", str(error), re.DOTALL)
    if said is None:
        raise error
    return said


def has_beta(loss: AbstractLoss) -> bool:
    """True if a loss, or one of a sum of losses, has a hyper-parameter beta."""
    return "beta" in parameter_names(loss)


def beta_of(loss: AbstractLoss) -> float:
    """The β of a loss that has one; for a sum, the β of its first loss that has one."""
    return float(next(value for name, value in parameters_of(loss) if name == "beta"))


def parameters_of_each(
    names: Sequence[str], parameters: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """The hyper-parameters of each of several losses, selected from those given for all losses.

    A single loss receives all hyper-parameters, whether it has them or not.

    Raises:
        OptionError: If a hyper-parameter belongs to none of several losses.
    """
    if len(names) == 1:
        return {names[0]: dict(parameters)}
    own, listed = {n: parameter_names(loss(n, {})) for n in names}, ", ".join(names)
    for one in parameters:
        known = any(one in held for held in own.values())
        refuse_unless(
            known, "parameters", "must name hyper-parameters of {}, but names {}", listed, one
        )
    return {n: {k: v for k, v in parameters.items() if k in held} for n, held in own.items()}


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
