"""From the options of `flowlab forecast` to where training runs will end."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowlab import replay
from flowlab._options import as_option_named, refuse_twice, refuse_unless
from flowlab.cli._replay import pairs_of, policy_of
from flowlab.cli._request import loss_parameters, names, trained
from flowlab.descent import hf_order
from flowlab.losses import AbstractLoss
from flowlab.losses.from_options import has_beta
from flowlab.replay import Forecast

__all__ = ["forecast_of", "text", "to_json"]

_ORDERS = 4  # of the pairs, unless told otherwise
_SEED = 42  # of the first order, unless told otherwise: the Trainer's own
_OF_OPTIMISER = (
    *("optimiser", "schedule", "warmup_steps", "weight_decay", "max_grad_norm", "adam_betas"),
)
_OF_ORDER = ("accumulation", "processes")


class Found:
    """The forecasts that are asked for, by the names of their losses, and what they are of."""

    def __init__(self, forecasts: dict[str, Forecast], pairs: int, steps: int) -> None:
        self.forecasts, self.pairs, self.steps = forecasts, pairs, steps


def forecast_of(asked: Mapping[str, Any]) -> Found:
    """Carry out what is asked for."""
    losses, pairs = _losses(asked), pairs_of(asked)
    orders = _orders(asked, len(pairs))
    policy = policy_of(asked, pairs, block=2 * max(map(len, orders[0])))
    given = {name: asked[name] for name in _OF_OPTIMISER if asked[name] is not None}
    given |= {"progress": None, "checkpoint": asked["checkpoint"]}
    found = {
        name: replay.forecast(policy, loss, asked["learning_rate"], orders, **given)
        for name, loss in losses.items()
    }
    return Found(found, len(pairs), len(orders[0]))


def text(found: Found) -> str:
    """The forecasts in words: a table, and what it rests on."""
    parts = [
        f"{found.pairs} pairs, {found.steps} steps. Means over all pairs at the end of the run, "
        "nats; in brackets, or alone where the run is a draw, the band in which it is expected to "
        "end:",
        replay.forecasts_table(found.forecasts),
        "\n".join(f"{name}: {one.text()}" for name, one in found.forecasts.items()),
    ]
    return "\n\n".join(parts)


def to_json(found: Found) -> dict[str, Any]:
    """The forecasts as JSON."""
    told = {name: one.to_json() for name, one in found.forecasts.items()}
    return {"pairs": found.pairs, "steps": found.steps, "forecasts": told}


def _losses(asked: Mapping[str, Any]) -> dict[str, AbstractLoss]:
    """The losses that are asked for, each with every beta if it has one, by the names to show."""
    named, betas = names([asked["loss"] or "dpo"]), asked["beta"]
    refuse_twice("loss", named)
    refuse_twice("beta", betas)
    for beta in betas:
        right = 0 < beta < float("inf")
        refuse_unless(right, "beta", "must be positive and finite, but is {:g}", beta)
    parameters = loss_parameters(asked["parameters"])
    alone = asked["loss"] is not None and len(named) == 1
    refuse_unless(alone or not parameters, "parameters", "must come with one {loss} alone")
    found: dict[str, AbstractLoss] = {}
    for name in named:
        made = [trained(name, beta, parameters, of_batch=True) for beta in betas]
        if has_beta(made[0]):
            found |= {f"{name}, β = {b:g}": one for b, one in zip(betas, made, strict=True)}
        else:
            found[name] = made[0]
    return found


def _orders(asked: Mapping[str, Any], count: int) -> list[list[np.ndarray]]:
    """Orders of the run: that of the seed, and those of the Trainer with other seeds."""
    options = {name: asked[name] for name in _OF_ORDER if asked[name] is not None}
    seed = _SEED if asked["seed"] is None else asked["seed"]
    many, epochs = asked["orders"] or _ORDERS, asked["epochs"]
    try:
        return [
            # The order of an epoch is that of the seed + its number: none of these is shared.
            hf_order(count, epochs, asked["batch_size"], seed + epochs * place, **options)
            for place in range(many)
        ]
    except ValueError as error:
        raise ValueError(as_option_named(str(error), {"n": "data"})) from None
