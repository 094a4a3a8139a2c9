"""Discrete training on the loss and policy of a flow: any optimiser of optax, step by step.

A flow is the limit of plain gradient descent for small steps. This package takes the steps
themselves, with momentum, adaptive step sizes or the noise of minibatches, and measures their
distance from the flow line. It has the order of samples, the optimisers and the schedules of
Hugging Face's Trainer.
"""

from flowlab.descent.distance import distance
from flowlab.descent.optimiser import hf_optimiser, hf_rates
from flowlab.descent.order import hf_order
from flowlab.descent.training import Descent, descend

__all__ = ["Descent", "descend", "distance", "hf_optimiser", "hf_order", "hf_rates"]
