"""Policies: what a state means.

A policy maps a state to pairs of log-probabilities and owns the metric, the domain and what
happens at its walls. The planes have one pair and nothing else; the other policies give
log-probabilities of a list of responses, of which any number of pairs is made.
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
