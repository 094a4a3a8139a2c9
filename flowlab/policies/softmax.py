"""Softmax policies: a table of logits, and logits that are linear in features.

Letters in shapes: m prompts, n responses to a prompt, r responses to all prompts, d features, p
preferences. A single preference has no axis p.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, ArrayLike, Float, Int

from flowlab import _checks as checks
from flowlab._arrays import floats, like
from flowlab.policies.responses import AbstractResponses, rest_in_proportion

__all__ = ["LogLinear", "TabularSoftmax"]

_SUM_IS_ONE = 1e-5  # what the sum of some thousand float32 probabilities may miss it by


class TabularSoftmax(AbstractResponses):
    """A softmax with one logit θ_i for each response: the state is the table of logits.

    For each prompt, log π_i = θ_i − log Σ_j e^{θ_j}. The kernel of two responses i and j to a
    prompt is K_ij = δ_ij − π_i − π_j + Σ_y π_y² with the Euclidean metric, and K_ij = δ_ij/π_i − 1
    with the Fisher metric (natural gradient).

    With the Fisher metric, DPO drives the probability of a rejected response to 0, and its logit to
    −∞, in finite time. Choose a margin or a loss as target. A flow line that has not reached
    its target by then ends with the outcome `step_limit`.

    Args:
        reference: Probabilities of the responses under the reference, shape (n,) for one prompt or
            (m, n) for several. The probabilities of each prompt sum to 1. States have the same
            shape.
        preferences: (chosen, rejected), two indices of responses counted from 0, or a list of such
            pairs. With several prompts, triples (prompt, chosen, rejected).
        fisher: True for the pseudo-inverse of the Fisher information of the logits as metric, false
            for the identity.
        lengths: Number of tokens in the responses: one number for all, or one for each, prompt by
            prompt.
        offset: Required margin, for losses that use one (ODPO): one number, or one for each pair;
            None for none.

    Raises:
        ValueError: If the probabilities are not positive or do not sum to 1, a preference names a
            response that does not exist or the same response twice, or a length or an offset is out
            of range.
    """

    reference: Float[ArrayLike, "*m n"]
    fisher: bool = eqx.field(static=True)

    def __init__(
        self,
        reference: npt.ArrayLike,
        preferences: Any = (0, 1),
        *,
        fisher: bool = False,
        lengths: npt.ArrayLike = 20.0,
        offset: npt.ArrayLike | None = None,
    ) -> None:
        self.reference = table = _probabilities(reference)
        self.fisher = bool(fisher)
        prompts = len(table) if table.ndim == 2 else None
        logs = np.log(table).ravel()
        super().__init__(logs, preferences, lengths, offset, prompts=prompts)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return np.shape(self.reference)

    @property
    def reference_state(self) -> Float[ArrayLike, "*m n"]:
        return np.reshape(self.ref_log_probs, self.state_shape)

    @property
    def indices(self) -> Int[np.ndarray, "*p 2"]:
        named = np.asarray(self.preferences)
        if len(self.state_shape) == 1:
            return named
        return named[..., 1:] + named[..., :1] * self.state_shape[1]

    def log_probs(self, state: Float[Array, "*m n"]) -> Float[Array, " r"]:
        return jax.nn.log_softmax(floats(state), axis=-1).ravel()

    def metric(
        self, state: Float[Array, "*m n"], covector: Float[Array, "*m n"]
    ) -> Float[Array, "*m n"]:
        if not self.fisher:
            return covector
        # The Fisher information F = diag(π) − π πᵀ loses constants. With P the projection that
        # takes out the mean, its pseudo-inverse is P diag(1/π) P.
        probabilities = jax.nn.softmax(floats(state), axis=-1)
        return _centred(_centred(floats(covector)) / probabilities)

    def state_at(self, log_ratios: Float[ArrayLike, " 2"]) -> Float[Array, " n"]:
        """The logits with given log-ratios of a single pair.

        The other responses share the remaining probability in the proportions of the reference; the
        logits are NaN if no probability remains.

        Raises:
            ValueError: If there are several prompts or pairs, or no third response.
        """
        return rest_in_proportion(self, log_ratios)


class LogLinear(AbstractResponses):
    """Logits that are linear in features of the responses: the state is the vector of weights.

    With weights θ and the features φ_i of response i, log π_i = φ_i·θ − log Σ_j e^{φ_j·θ}. Let
    φ̄ = Σ_y π_y φ_y. The kernel of the responses i and j is (φ_i − φ̄)·(φ_j − φ̄). The kernel of the
    margin, k_ww + k_ll − 2 k_wl = ‖φ_w − φ_l‖², is constant.

    Args:
        features: φ, one row for each response, shape (n, d).
        preferences: (chosen, rejected), two indices of responses counted from 0, or a list of such
            pairs.
        reference: Weights θ of the reference, shape (d,); None for 0, where all responses are
            equally probable.
        lengths: Number of tokens in the responses: one number for all, or one for each.
        offset: Required margin, for losses that use one (ODPO): one number, or one for each pair;
            None for none.

    Raises:
        ValueError: If features or weights have the wrong shape or are not finite, a preference
            names a response that does not exist or the same response twice, or a length or an
            offset is out of range.

    Source: the log-linear policy class of Agarwal, Kakade, Lee and Mahajan (arXiv 1908.00261).
    """

    features: Float[ArrayLike, "n d"]
    reference: Float[ArrayLike, " d"]

    def __init__(
        self,
        features: npt.ArrayLike,
        preferences: Any = (0, 1),
        *,
        reference: npt.ArrayLike | None = None,
        lengths: npt.ArrayLike = 20.0,
        offset: npt.ArrayLike | None = None,
    ) -> None:
        self.features = checks.array("features", features, ("n", "d"))
        width = self.features.shape[1]
        weights = np.zeros(width) if reference is None else reference
        self.reference = checks.array("reference", weights, (width,))
        super().__init__(self._log_probs_at(self.reference), preferences, lengths, offset)

    @classmethod
    def with_similarity(
        cls, similarity: float, *, responses: int = 3, lengths: npt.ArrayLike = 20.0
    ) -> "LogLinear":
        """A policy whose chosen and rejected response have features with a given cosine similarity.

        Each response has a feature vector of length 1. The vectors of the chosen response (0) and
        of the rejected response (1) have the inner product `similarity`. Every other vector is
        orthogonal to all vectors but itself.

        Args:
            similarity: The cosine similarity, from −1 to 1.
            responses: Number of responses, at least 2.
            lengths: Number of tokens in the responses: one number for all, or one for each.

        Raises:
            ValueError: If a number is out of its range.
        """
        checks.between("similarity", similarity, -1, 1)
        features = np.eye(checks.integer("responses", responses, 2))
        features[1, :2] = similarity, np.sqrt(1 - similarity**2)
        return cls(features, lengths=lengths)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return np.shape(self.reference)

    @property
    def reference_state(self) -> Float[ArrayLike, " d"]:
        return self.reference

    def log_probs(self, state: Float[Array, " d"]) -> Float[Array, " r"]:
        weights = floats(state)
        return jax.nn.log_softmax(like(self.features, weights) @ weights)


def _centred(values: Float[Array, "*m n"]) -> Float[Array, "*m n"]:
    return values - jnp.mean(values, axis=-1, keepdims=True)


def _probabilities(reference: npt.ArrayLike) -> Float[np.ndarray, "*m n"]:
    table = checks.array("reference", reference, ("n",), ("m", "n"))
    sums = table.sum(axis=-1, keepdims=True)
    if np.any(table <= 0) or np.any(np.abs(sums - 1) > _SUM_IS_ONE):
        raise ValueError(
            "Argument `reference` must hold positive probabilities that sum to 1 for each prompt, "
            f"but holds {checks.shown(table)}."
        )
    return table / sums
