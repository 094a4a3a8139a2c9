"""A softmax over a read-out of features, of which both are trained.

n, r: responses; p: preferences, none for a single one; d: features.
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
    """A read-out W of features h, both trained: log π = log softmax(W h), state (W, h).

    The unconstrained-features setting: h stands for a network's features of the prompt, and is
    trained freely. The state is a dict, `{"readout": W, "features": h}`. With W_i the rows of W and
    W̄ = Σ_y π_y W_y, the kernel of two responses is

        K_ij = ‖h‖² (δ_ij − π_i − π_j + Σ_y π_y²) + (W_i − W̄)·(W_j − W̄).

    The second term, which comes from the features, can make k_wl larger than k_ww, so that the
    chosen log-probability falls; as W and h grow, it can recover.

    Args:
        readout: W of the reference, shape (n, d).
        features: h of the reference, shape (d,).
        preferences: (chosen, rejected), or a list of such couples, counted from 0.
        lengths: Tokens of the responses: one number, or one for each.
        offset: Required margin, for losses that use one (ODPO): one number, or one for each pair;
            None for none.

    Raises:
        ValueError: If read-out or features have the wrong shape or are not finite, a preference
            names no response or the same one twice, or a length or an offset is out of range.

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
        """The state with given log-ratios of a single pair that is nearest in its read-out.

        The features stay those of the reference. The other responses share the remaining
        probability in the proportions of the reference; NaN if none remains.

        Raises:
            ValueError: If there are several pairs, no third response, or all features are 0.
        """
        if not np.any(np.asarray(self.features)):
            raise ValueError("FeatureModel has no way back from log-ratios if all features are 0.")
        logs = rest_in_proportion(self, log_ratios)
        readout, features = like(self.readout, logs), like(self.features, logs)
        # Logits are free up to a constant; the nearest read-out is that of the smallest change.
        change = logs - readout @ features
        change = change - jnp.mean(change)
        moved = readout + jnp.outer(change, features) / jnp.vdot(features, features)
        return {"readout": moved, "features": features}
