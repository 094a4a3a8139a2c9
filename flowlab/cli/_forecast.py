"""The forecasts that the options of `flowlab forecast` describe."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowlab import replay
from flowlab._options import as_option_named, refuse_twice, refuse_unless
from flowlab.cli._replay import pairs_of, policy_of
from flowlab.cli._request import loss_parameters, names, trained
from flowlab.descent import hf_order
from flowlab.losses import AbstractLoss
from flowlab.losses.from_options import has_beta, parameters_of_each
from flowlab.replay import Forecast

__all__ = ["forecast_of", "text", "to_json"]

_ORDERS = 4  # of the pairs, unless told otherwise
_SEED = 42  # of the first order, unless told otherwise: the Trainer's own
_OF_OPTIMISER = (
    *("optimiser", "schedule", "warmup_steps", "weight_decay", "max_grad_norm", "adam_betas"),
)
_OF_ORDER = ("accumulation", "processes")


class Found:
    """Forecasts by the name of their loss, with the numbers of pairs and steps of the run."""

    def __init__(self, forecasts: dict[str, Forecast], pairs: int, steps: int) -> None:
        self.forecasts, self.pairs, self.steps = forecasts, pairs, steps


def forecast_of(asked: Mapping[str, Any]) -> Found:
    """The forecasts that the options describe, after all runs that they need."""
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
    """The forecasts as text: a table, and a sentence on the runs behind each forecast."""
    parts = [
        f"{found.pairs} pairs, {found.steps} steps. Means over all pairs at the end of the run, "
        "nats; in brackets, or alone where the run is a draw, the band in which it is expected to "
        "end:",
        replay.forecasts_table(found.forecasts),
        "\n".join(f"{name}: {one.text()}" for name, one in found.forecasts.items()),
    ]
    return "\n\n".join(parts)


def to_json(found: Found) -> dict[str, Any]:
    """The forecasts as JSON-ready data."""
    told = {name: one.to_json() for name, one in found.forecasts.items()}
    return {"pairs": found.pairs, "steps": found.steps, "forecasts": told}


def _losses(asked: Mapping[str, Any]) -> dict[str, AbstractLoss]:
    """The losses that the options name, each with every β if it has a β, by title."""
    named, betas = names([asked["loss"] or "dpo"]), asked["beta"]
    refuse_twice("loss", named)
    refuse_twice("beta", betas)
    for beta in betas:
        right = 0 < beta < float("inf")
        refuse_unless(right, "beta", "must be positive and finite, but is {:g}", beta)
    each = parameters_of_each(named, loss_parameters(asked["parameters"]))
    found: dict[str, AbstractLoss] = {}
    for name in named:
        made = [trained(name, beta, each[name], of_batch=True) for beta in betas]
        if has_beta(made[0]):
            found |= {f"{name}, β = {b:g}": one for b, one in zip(betas, made, strict=True)}
        else:
            found[name] = made[0]
    return found


def _orders(asked: Mapping[str, Any], count: int) -> list[list[np.ndarray]]:
    """Orders of the run, as the Trainer draws them with the given seed and with further seeds."""
    options = {name: asked[name] for name in _OF_ORDER if asked[name] is not None}
    seed = _SEED if asked["seed"] is None else asked["seed"]
    many, epochs = asked["orders"] or _ORDERS, asked["epochs"]
    try:
        return [
            # The order of an epoch depends on the seed + its number; no epoch is shared.
            hf_order(count, epochs, asked["batch_size"], seed + epochs * place, **options)
            for place in range(many)
        ]
    except ValueError as error:
        raise ValueError(as_option_named(str(error), {"n": "data"})) from None
