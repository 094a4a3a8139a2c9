"""Preference losses: from pairs of log-probabilities to numbers."""

from flowlab.losses.base import AbstractLoss, LowerBound, Pair, floats, like, positive_parameter
from flowlab.losses.batches import AOT, AbstractBatchLoss, AOTUnpaired
from flowlab.losses.catalogue import CATALOGUE, named
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
    "positive_parameter",
    "sigmoid",
]
