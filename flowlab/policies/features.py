"""A softmax over a linear read-out of features, in which read-out and features are trained.

Letters in shapes: n or r responses, d features, p preferences. A single preference has no axis p.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, ArrayLike, Float

from flowlab import _checks as checks
from flowlab._arrays import floats, like
from flowlab.policies.responses import AbstractResponses, rest_in_proportion

__all__ = ["FeatureModel"]


class FeatureModel(AbstractResponses):
    """The unconstrained-features model: log π = log softmax(W h), where W and h are trained.

    h represents the features that a network computes from the prompt, and is trained as a free
    parameter. W is the read-out. The state is a dict, `{"readout": W, "features": h}`. Let W_i be
    the rows of W and W̄ = Σ_y π_y W_y. The kernel of the responses i and j is

        K_ij = ‖h‖² (δ_ij − π_i − π_j + Σ_y π_y²) + (W_i − W̄)·(W_j − W̄).

    The second term, from the training of h, can make k_wl larger than k_ww. The chosen
    log-probability then falls; it can rise again later, as W and h grow.

    Args:
        readout: W of the reference, shape (n, d).
        features: h of the reference, shape (d,).
        preferences: (chosen, rejected), two indices of responses counted from 0, or a list of such
            pairs.
        lengths: Number of tokens in the responses: one number for all, or one for each.
        offset: Required margin, for losses that use one (ODPO): one number, or one for each pair;
            None for none.

    Raises:
        ValueError: If read-out or features have the wrong shape or are not finite, a preference
            names a response that does not exist or the same response twice, or a length or an
            offset is out of range.

    Source: unconstrained features, Mixon, Parshall and Pi (arXiv 2011.11619); for preference
        losses, Razin et al. (arXiv 2410.08847).
    """

    readout: Float[ArrayLike, "n d"]
    features: Float[ArrayLike, " d"]

    def __init__(
        self,
        readout: npt.ArrayLike,
        features: npt.ArrayLike,
        preferences: Any = (0, 1),
        *,
        lengths: npt.ArrayLike = 20.0,
        offset: npt.ArrayLike | None = None,
    ) -> None:
        self.readout = checks.array("readout", readout, ("n", "d"))
        self.features = checks.array("features", features, self.readout.shape[1:])
        logs = self._log_probs_at(self.reference_state)
        super().__init__(logs, preferences, lengths, offset)

    @property
    def reference_state(self) -> dict[str, ArrayLike]:
        return {"readout": self.readout, "features": self.features}

    def log_probs(self, state: dict[str, Array]) -> Float[Array, " r"]:
        return jax.nn.log_softmax(floats(state["readout"]) @ floats(state["features"]))

    def state_at(self, log_ratios: Float[ArrayLike, " 2"]) -> dict[str, Array]:
        """The state with given log-ratios of a single pair whose read-out changes least.

        The state has the features of the reference. The other responses share the remaining
        probability in the proportions of the reference; the state is NaN if no probability remains.

        Raises:
            ValueError: If there are several pairs, no third response, or all features are 0.
        """
        if not np.any(np.asarray(self.features)):
            raise ValueError(
                "FeatureModel defines no state for given log-ratios if all features are 0."
            )
        logs = rest_in_proportion(self, log_ratios)
        readout, features = like(self.readout, logs), like(self.features, logs)
        # Logits are free up to a constant; the nearest read-out is that of the smallest change.
        change = logs - readout @ features
        change = change - jnp.mean(change)
        moved = readout + jnp.outer(change, features) / jnp.vdot(features, features)
        return {"readout": moved, "features": features}
