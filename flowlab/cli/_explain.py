"""The explanation that the options of `flowlab explain` describe."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flowlab import displacement
from flowlab._options import refuse_unless
from flowlab.cli._replay import loss_of, pairs_of, policy_of
from flowlab.data import Pairs
from flowlab.displacement import Explanation
from flowlab.flow import preference_flow

__all__ = ["explained", "text", "to_json"]

_AT_ONCE = 64  # sequences, unless told otherwise
_LISTED = 10  # pairs

Explained = tuple[Explanation, Pairs]


def explained(asked: Mapping[str, Any]) -> Explained:
    """The explanation that the options describe, and its pairs."""
    rate, size = asked["learning_rate"], asked["batch_size"]
    refuse_unless(
        size is None or rate is not None, "batch_size", "has no effect without {learning_rate}"
    )
    refuse_unless(
        rate is None or size is not None, "learning_rate", "has no effect without {batch_size}"
    )
    loss, pairs = loss_of(asked), pairs_of(asked)
    policy = policy_of(asked, pairs, block=_AT_ONCE)
    flow = preference_flow(loss, policy)
    found = displacement.explain(
        flow, policy.start, learning_rate=rate, batch_size=size, progress=None
    )
    return found, pairs


def text(found: Explained, asked: Mapping[str, Any]) -> str:
    """The explanation as text, with the pairs that lower the chosen responses most."""
    explanation, pairs = found
    k_ww, k_wl, k_ll = explanation.mean_kernel[[0, 0, 1], [0, 1, 1]]
    falls = np.mean(explanation.falls)
    moves = "lowers" if np.mean(explanation.rate[:, 0]) < 0 else "raises"
    parts = [
        f"{len(pairs)} pairs. Plain gradient descent from this checkpoint lowers the chosen "
        f"log-probability of {falls:.0%} of them at first, and {moves} their mean. AdamW, clipped "
        "gradients and minibatches change that: `flowlab replay` carries them out.",
        explanation.table(),
        f"Kernel of the mean log-ratios, at this state alone: k_ww {k_ww:.4g}, k_wl {k_wl:.4g}, "
        f"k_ll {k_ll:.4g}; k_wl/k_ww {k_wl / k_ww:.3g}. The mean chosen log-probability falls "
        "under a loss of the margin where this is above 1; it moves along a run.",
    ]
    if explanation.step is not None:
        parts.append(explanation.step.text())
    listed = list(_listed(found, asked))
    if listed:
        head = (
            "Pairs that lower the mean chosen log-probability most here, nats per unit of flow "
            "time. Read them; under AdamW, to leave them out has not been seen to help:"
        )
        parts.append("\n".join([head, *listed]))
    return "\n\n".join(parts)


def to_json(found: Explained) -> dict[str, Any]:
    """The explanation as JSON, with the rows of its pairs in the data."""
    explanation, pairs = found
    return {"rows": pairs.rows.tolist(), **explanation.to_json()}


def _listed(found: Explained, asked: Mapping[str, Any]) -> Iterator[str]:
    explanation, pairs = found
    caused = explanation.influence[:, :, 0].sum(axis=1)
    for index in explanation.lowering(asked["pairs"] or _LISTED):
        yield f"row {pairs.rows[index]}: {caused[index]:+.3g}"
        yield pairs.excerpt(int(index))
