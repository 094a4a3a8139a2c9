"""Discrete training on the loss and policy of a flow: any optimiser of optax, step by step.

A flow is what plain gradient descent does in the limit of small steps. Here are the steps
themselves, with momentum, adaptive step sizes or the noise of minibatches, and how far they go
from the flow line; and the order in which trainers take their samples.
"""

from flowlab.descent.order import hf_order
from flowlab.descent.training import Descent, descend, distance

__all__ = ["Descent", "descend", "distance", "hf_order"]
