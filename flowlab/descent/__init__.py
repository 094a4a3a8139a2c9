"""Discrete training on the loss and policy of a flow: any optimiser of optax, step by step.

A flow is what plain gradient descent does in the limit of small steps. Here are the steps
themselves, with momentum, adaptive step sizes or the noise of minibatches, and how far they go
from the flow line; and the order, the optimisers and the schedules of Hugging Face's Trainer.
"""

from flowlab.descent.distance import distance
from flowlab.descent.optimiser import hf_optimiser, hf_rates
from flowlab.descent.order import hf_order
from flowlab.descent.training import Descent, descend

__all__ = ["Descent", "descend", "distance", "hf_optimiser", "hf_order", "hf_rates"]
