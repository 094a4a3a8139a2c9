"""Policies: maps from states to the log-probabilities of preference pairs.

A policy also has a metric, a domain, and a rule for the walls of the domain. The planes have a
single pair. The other policies have a list of responses, from which any number of pairs is formed.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from flowlab.policies.autoregressive import Autoregressive
from flowlab.policies.base import AbstractPolicy, AbstractStates, WallRule, check_wall
from flowlab.policies.features import FeatureModel
from flowlab.policies.function import Policy
from flowlab.policies.language import LanguageModel, response_log_probs
from flowlab.policies.planes import CoupledKernel, LogRatioPlane, ProbabilityPlane, RatioPlane
from flowlab.policies.responses import AbstractResponses
from flowlab.policies.softmax import LogLinear, TabularSoftmax

__all__ = [
    "PLANES",
    "AbstractPolicy",
    "AbstractResponses",
    "AbstractStates",
    "Autoregressive",
    "CoupledKernel",
    "FeatureModel",
    "LanguageModel",
    "LogLinear",
    "LogRatioPlane",
    "Policy",
    "ProbabilityPlane",
    "RatioPlane",
    "TabularSoftmax",
    "WallRule",
    "check_wall",
    "response_log_probs",
]

PLANES: Mapping[str, Callable[..., AbstractPolicy]] = MappingProxyType(
    {"ratio": RatioPlane, "log_ratio": LogRatioPlane}
)
"""The planes that commands and recipes offer, by name.

What may be asked of one is what its constructor takes: `domain` and `wall`, `kernel`, `offset`.
"""
