"""A policy from any function that gives log-probabilities.

Letters in shapes: r responses, p preferences. A single preference has no axis p.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, ArrayLike, Float, PyTree

from flowlab._checks import shown
from flowlab.domains import AbstractDomain
from flowlab.policies.base import WallRule
from flowlab.policies.language import Apply, LanguageModel, TokenPairs, language_model
from flowlab.policies.responses import AbstractResponses

__all__ = ["Policy"]

LogProbs = Callable[[PyTree[Array]], Float[Array, " r"]]
Metric = Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]]


class Policy(AbstractResponses):
    """A policy from a JAX function of any PyTree; make it with `Policy.from_function`.

    `Policy.from_model` makes the policy of a language model.
    """

    function: LogProbs = eqx.field(metadata={"argument": "log_probs"})
    operator: Metric | None = eqx.field(metadata={"argument": "metric"})
    reference: PyTree[ArrayLike]

    def __init__(
        self,
        log_probs: LogProbs,
        reference: PyTree[ArrayLike],
        preferences: Any,
        metric: Metric | None,
        domain: AbstractDomain | None,
        wall: WallRule,
        lengths: npt.ArrayLike,
        offset: npt.ArrayLike | None,
    ) -> None:
        if not callable(log_probs):
            raise ValueError(f"Argument `log_probs` must be a function, but is {log_probs!r}.")
        if metric is not None and not callable(metric):
            raise ValueError(f"Argument `metric` must be a function or None, but is {metric!r}.")
        if not (domain is None or isinstance(domain, AbstractDomain)):
            raise ValueError(
                f"Argument `domain` must be a domain such as Quadrant(), but is {domain!r}."
            )
        if not jax.tree.leaves(reference):
            raise ValueError(
                f"Argument `reference` must be a state of the policy, but is {reference!r}."
            )
        self.function, self.operator = log_probs, metric
        self.reference = jax.tree.map(np.asarray, reference)
        logs = self._log_probs_at(self.reference)
        if logs.ndim != 1 or logs.size < 2 or not np.all(np.isfinite(logs)):
            raise ValueError(
                "Argument `log_probs` must give the log-probabilities of at least two responses, "
                f"shape (r,), finite, but gives {shown(logs)} of shape "
                f"{logs.shape} at the reference."
            )
        super().__init__(logs, preferences, lengths, offset, domain=domain, wall=wall)

    @classmethod
    def from_function(
        cls,
        log_probs: LogProbs,
        *,
        reference: PyTree[ArrayLike],
        preferences: Any = (0, 1),
        metric: Metric | None = None,
        domain: AbstractDomain | None = None,
        wall: WallRule = "stop",
        lengths: npt.ArrayLike = 20.0,
        offset: npt.ArrayLike | None = None,
    ) -> "Policy":
        """The policy that a function from states to log-probabilities defines.

        Args:
            log_probs: Function from a state, any PyTree of arrays, to the summed log-probabilities
                of a list of different responses, nats, shape (r,).
            reference: The state of the reference policy, such as the parameters before training.
                Give float64 numbers if flow lines that start there are to be solved in float64.
            preferences: (chosen, rejected), two indices of responses counted from 0, or a list of
                such pairs.
            metric: The metric as an operator, `metric(state, covector) -> M(state) @ covector`,
                symmetric positive semidefinite; None for the identity.
            domain: The set of states; None for the whole space.
            wall: The rule for a flow line at a wall of the domain: `"stop"`, or `"slide"` along the
                wall.
            lengths: Number of tokens in the responses: one number for all, or one for each.
            offset: Required margin, for losses that use one (ODPO): one number, or one for each
                pair; None for none.

        Raises:
            ValueError: If `log_probs` or `metric` cannot be called, the log-probabilities of the
                reference are not a finite vector, a preference names a response that does not exist
                or the same response twice, or another argument is out of its range.
        """
        return cls(log_probs, reference, preferences, metric, domain, wall, lengths, offset)

    @classmethod
    def from_model(
        cls,
        apply: Apply,
        parameters: PyTree[ArrayLike],
        pairs: TokenPairs,
        *,
        chunk: int | None = None,
        trainable: Callable[[str], bool] | PyTree[bool] | None = None,
        reference: PyTree[ArrayLike] | None = None,
    ) -> LanguageModel:
        """The policy of a language model on preference data, with one pair for each row.

        The state consists of the parameters that are trained; `start` is the state before training.
        `flow_line(preference_flow(DPO(0.1), policy), policy.start, ...)` integrates the gradient
        flow of all these parameters, and `descent.descend` trains them in steps. For a checkpoint,
        `models.load(folder).policy(pairs)` gives the same policy.

        Args:
            apply: Function from parameters and tokens, shape (s, t), to logits, shape (s, t, v). It
                may come from `models.load`, or from a model in equinox, NNX or flax, without
                dropout.
            parameters: The parameters before training, any PyTree of arrays; NumPy's or JAX's. All
                computations have their dtype.
            pairs: The data, such as `data.preferences` reads: tokens and mask, (n, 2, t), and
                lengths, (n, 2).
            chunk: Number of sequences that are computed at a time, to limit the memory. Gradients
                then recompute the activations of each chunk. None to compute all sequences at once.
            trainable: A rule for the parameters that are trained. It is a function of the path of a
                leaf in the PyTree (its keys, joined by slashes), such as `lambda path: "lora" in
                path`, or a PyTree of bools with the structure of the parameters. None for all
                arrays of floats.
            reference: The parameters of the reference policy, with the structure and shapes of
                `parameters`; None if the reference is the policy before training.

        Raises:
            ValueError: If `apply` is not a function or gives no logits; if no parameter is trained,
                or a trained parameter is not an array of floats; if a pair has no prompt or an
                empty response; if a log-probability under the reference is not finite (the
                tokenizer may belong to another model, or a weight may be NaN); or if `reference`
                does not have the structure and shapes of `parameters`.

        Accuracy: that of the precision of the parameters, also for the reference.
        """
        return language_model(apply, parameters, pairs, chunk, trainable, reference)

    @property
    def state_shape(self) -> tuple[int, ...] | None:
        return np.shape(self.reference) if eqx.is_array_like(self.reference) else None

    @property
    def reference_state(self) -> PyTree[ArrayLike]:
        return self.reference

    def log_probs(self, state: PyTree[Array]) -> Float[Array, " r"]:
        return jnp.asarray(self.function(state))

    def metric(self, state: PyTree[Array], covector: PyTree[Array]) -> PyTree[Array]:
        return covector if self.operator is None else self.operator(state, covector)
