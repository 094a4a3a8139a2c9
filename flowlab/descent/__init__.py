"""Training in discrete steps on the loss and the policy of a flow, with any optimiser of optax.

A flow is the limit of plain gradient descent for small steps. This package computes the steps
themselves, with momentum, adaptive step sizes or the noise of minibatches, and their distance from
the flow line. It reproduces the order of samples, the optimisers and the schedules of Hugging
Face's Trainer.
"""

from flowlab.descent.distance import distance
from flowlab.descent.optimiser import hf_optimiser, hf_rates
from flowlab.descent.order import hf_order
from flowlab.descent.training import Descent, descend

__all__ = ["Descent", "descend", "distance", "hf_optimiser", "hf_order", "hf_rates"]
