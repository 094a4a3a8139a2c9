"""Preference losses: from pairs of log-probabilities to numbers.

Each loss is a class. The catalogue lists the published losses by name, with the default
hyper-parameters of their papers or of TRL.
"""

import dataclasses
from types import MappingProxyType
from typing import Any

from flowlab._arrays import floats, like
from flowlab._names import did_you_mean, key
from flowlab._parameters import arguments, parameter, parameter_names, positive, replaced
from flowlab.losses.base import AbstractLoss, LowerBound, Pair
from flowlab.losses.batches import AOT, AbstractBatchLoss, AOTUnpaired
from flowlab.losses.divergences import (
    AbstractDivergence,
    AlphaDivergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
)
from flowlab.losses.functions import negative_log_sigmoid, sigmoid
from flowlab.losses.margin import (
    DPO,
    DPOP,
    EXO,
    IPO,
    ODPO,
    ConservativeDPO,
    DiscoPOP,
    DPOPOutside,
    DPOShift,
    Hinge,
    LengthNormalisedDPO,
    RobustDPO,
    SummedIPO,
)
from flowlab.losses.reference_free import CPO, CPOIPO, ORPO, AlphaPO, CPOHinge, OddsRatio, SimPO
from flowlab.losses.responses import BCO, KTO, NCA, SFT, SPPO, APODown, APOZero, CalDPO
from flowlab.losses.sums import WeightedSum
from flowlab.losses.trl import from_trl

__all__ = [
    "AOT",
    "BCO",
    "CATALOGUE",
    "CPO",
    "CPOIPO",
    "DPO",
    "DPOP",
    "EXO",
    "IPO",
    "KTO",
    "NCA",
    "ODPO",
    "ORPO",
    "SFT",
    "SPPO",
    "AOTUnpaired",
    "APODown",
    "APOZero",
    "AbstractBatchLoss",
    "AbstractDivergence",
    "AbstractLoss",
    "AlphaDivergence",
    "AlphaPO",
    "CPOHinge",
    "CalDPO",
    "ConservativeDPO",
    "DPOPOutside",
    "DPOShift",
    "DiscoPOP",
    "ForwardKL",
    "Hinge",
    "JensenShannon",
    "LengthNormalisedDPO",
    "LowerBound",
    "OddsRatio",
    "Pair",
    "ReverseKL",
    "RobustDPO",
    "SimPO",
    "SummedIPO",
    "WeightedSum",
    "floats",
    "from_trl",
    "like",
    "named",
    "negative_log_sigmoid",
    "parameter",
    "positive",
    "sigmoid",
]

CATALOGUE = MappingProxyType[str, AbstractLoss](
    {
        "dpo": DPO(),
        "dpo_forward_kl": DPO(divergence=ForwardKL()),
        "dpo_jensen_shannon": DPO(divergence=JensenShannon()),
        "dpo_alpha": DPO(divergence=AlphaDivergence()),
        "conservative_dpo": ConservativeDPO(),
        "robust_dpo": RobustDPO(),
        "ipo": IPO(),
        "summed_ipo": SummedIPO(),
        "hinge": Hinge(),
        "exo": EXO(),
        "discopop": DiscoPOP(),
        "length_normalised_dpo": LengthNormalisedDPO(),
        "dpo_shift": DPOShift(),
        "odpo": ODPO(),
        "dpop": DPOP(),
        "dpop_outside": DPOPOutside(),
        "sppo": SPPO(),
        "nca": NCA(),
        "bco": BCO(),
        "apo_zero": APOZero(),
        "apo_down": APODown(),
        "kto": KTO(),
        "sft": SFT(),
        "cal_dpo": CalDPO(),
        "cpo": CPO(),
        "cpo_hinge": CPOHinge(),
        "cpo_ipo": CPOIPO(),
        "simpo": SimPO(),
        "alphapo": AlphaPO(),
        "orpo": ORPO(),
        "aot": AOT(),
        "aot_unpaired": AOTUnpaired(),
    }
)
"""Every published loss by its name, with its defaults."""

_OTHER_NAMES = {
    "sigmoid": "dpo",
    "cdpo": "conservative_dpo",
    "robust": "robust_dpo",
    "exo_pair": "exo",
    "sigmoid_norm": "length_normalised_dpo",
    "smaug": "dpop",
    "sppo_hard": "sppo",
    "nca_pair": "nca",
    "bco_pair": "bco",
    "aot_pair": "aot",
    "dpo_positive": "dpop",
    "length_normalized_dpo": "length_normalised_dpo",
}


def named(name: str, **parameters: Any) -> AbstractLoss:
    """The loss with a given name, or a weighted sum of losses, such as "dpo + 0.5*sft".

    Args:
        name: A name from the catalogue, the name of a class, or a `loss_type` of TRL's DPO trainer;
            case, hyphens and underscores do not matter. For a sum: several names, joined by "+",
            each with an optional weight and "*" in front.
        **parameters: Hyper-parameters in place of the defaults. In a sum, they apply to each loss
            that has a hyper-parameter of this name.

    Raises:
        ValueError: If no loss has this name, the loss lacks a hyper-parameter that is given, or a
            value is out of its range; the message lists the names that exist.
    """
    terms = [_term(text) for text in str(name).split("+")]
    (weight, single), *others = terms
    loss: AbstractLoss = single
    if others or weight is not None:
        weights = [1.0 if weight is None else weight for weight, _ in terms]
        loss = WeightedSum([part for _, part in terms], weights)
    return _with(loss, parameters) if parameters else loss


def _term(text: str) -> tuple[float | None, AbstractLoss]:
    """The weight (None if there is none) and the loss of a term such as "0.5*sft"."""
    before, times, name = text.rpartition("*")
    keys = _keys()
    if key(name.strip()) not in keys:
        listed, near = ", ".join(CATALOGUE), nearest(name.strip())
        end = near or "."
        raise ValueError(f"Argument `name` must be one of {listed}, but is {name.strip()!r}{end}")
    try:
        weight = float(before) if times else None
    except ValueError:
        raise ValueError(
            f"Argument `name` must have a number before each `*`, but has {before.strip()!r}."
        ) from None
    return weight, CATALOGUE[keys[key(name.strip())]]


def nearest(name: str) -> str:
    """The end of a message, which asks whether a loss with a similar name was meant; may be ""."""
    return did_you_mean(name, [*CATALOGUE, *_OTHER_NAMES])


def _keys() -> dict[str, str]:
    """The name in the catalogue for each spelling and synonym of a loss."""
    keys = {key(known): known for known in CATALOGUE}
    keys |= {key(other): known for other, known in _OTHER_NAMES.items()}
    for known, loss in CATALOGUE.items():
        keys.setdefault(key(type(loss).__name__), known)
    return keys


def _with(loss: AbstractLoss, values: dict[str, Any]) -> AbstractLoss:
    own, known = arguments(loss), list(dict.fromkeys([*arguments(loss), *parameter_names(loss)]))
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"Argument `parameters` must name hyper-parameters of {type(loss).__name__} "
                f"({', '.join(known) or 'it has none'}), but names {name!r}"
                f"{did_you_mean(name, known) or '.'}"
            )
        if name in own:
            loss = dataclasses.replace(loss, **{name: value})
        else:
            loss = replaced(loss, name, value)
    return loss
