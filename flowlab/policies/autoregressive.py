"""A softmax over tokens: responses are sequences, and each prefix has its own row of logits.

Letters in shapes: c contexts, v tokens in the vocabulary, r responses, t tokens in a response, p
preferences. A single preference has no axis p.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, ArrayLike, Float

from flowlab import _checks as checks
from flowlab._arrays import floats
from flowlab.policies.responses import AbstractResponses

__all__ = ["Autoregressive"]

Tokens = tuple[int, ...]


class Autoregressive(AbstractResponses):
    """Sequences of tokens, each drawn from a softmax that depends on the tokens before it.

    The log-probability of a response y is log π(y) = Σ_t log softmax(θ_{c(y, t)})[y_t]. The state θ
    is a table of logits, with one row for each context c and one column for each token. The context
    of a token is the prefix of the response before it, or only the last tokens of this prefix.
    Responses that share a context share a row, which couples them.

    Args:
        responses: Sequences of at least one token each; a token is an integer from 0 on.
        vocabulary: Number of tokens, at least 2.
        preferences: (chosen, rejected), two indices of responses counted from 0, or a list of such
            pairs.
        context: Number of tokens in a context; None for the whole prefix. With 0 all positions
            share one row of logits.
        reference: Logits of the reference, shape (c, v), in the order of `contexts`; None for 0,
            where every token is equally probable.
        offset: Required margin, for losses that use one (ODPO): one number, or one for each pair;
            None for none.

    Attributes:
        contexts: The contexts in the order of the rows, which is the order of their first
            occurrence.

    Raises:
        ValueError: If a response is empty or has a token outside of the vocabulary, the reference
            has the wrong shape or is not finite, a preference names a response that does not exist
            or the same response twice, or a number is out of its range.
    """

    responses: tuple[Tokens, ...] = eqx.field(static=True)
    vocabulary: int = eqx.field(static=True)
    context: int | None = eqx.field(static=True)
    reference: Float[ArrayLike, "c v"]
    contexts: tuple[Tokens, ...] = eqx.field(static=True)
    lengths: Float[ArrayLike, " r"] = eqx.field(metadata={"argument": None})

    def __init__(
        self,
        responses: Sequence[Sequence[int]],
        vocabulary: int,
        preferences: Any = (0, 1),
        *,
        context: int | None = None,
        reference: npt.ArrayLike | None = None,
        offset: npt.ArrayLike | None = None,
    ) -> None:
        self.vocabulary = checks.integer("vocabulary", vocabulary, 2)
        self.context = None if context is None else checks.integer("context", context, 0)
        self.responses = _sequences(responses, vocabulary)
        seen = [
            _context(tokens, t, context) for tokens in self.responses for t in range(len(tokens))
        ]
        self.contexts = tuple(dict.fromkeys(seen))
        shape = (len(self.contexts), vocabulary)
        logits = np.zeros(shape) if reference is None else reference
        self.reference = checks.array("reference", logits, shape)
        lengths = [len(tokens) for tokens in self.responses]
        super().__init__(self._log_probs_at(self.reference), preferences, lengths, offset)

    @classmethod
    def with_edits(
        cls, edits: int, *, length: int = 12, vocabulary: int = 8, context: int | None = None
    ) -> "Autoregressive":
        """A policy with a pair of responses of equal length that differ only in their last tokens.

        The chosen response has the tokens 0, 1, 2, ..., which start again at 0 after the last token
        of the vocabulary. In the rejected response each of the last `edits` tokens is replaced by
        its successor. The edit distance is `edits`, and the common prefix has `length − edits`
        tokens.

        Args:
            edits: Number of tokens that differ, from 1 to `length`.
            length: Number of tokens in each response.
            vocabulary: Number of tokens, at least 2.
            context: Number of tokens in a context; None for the whole prefix.

        Raises:
            ValueError: If a number is out of its range.
        """
        checks.integer("edits", edits, most=length)
        chosen = [t % vocabulary for t in range(length)]
        rejected = chosen[: length - edits] + [(t + 1) % vocabulary for t in chosen[-edits:]]
        return cls([chosen, rejected], vocabulary, context=context)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return np.shape(self.reference)

    @property
    def reference_state(self) -> Float[ArrayLike, "c v"]:
        return self.reference

    def log_probs(self, state: Float[Array, "c v"]) -> Float[Array, " r"]:
        tables = jax.nn.log_softmax(floats(state), axis=-1)
        rows = {context: row for row, context in enumerate(self.contexts)}
        entries = [
            (response, rows[_context(tokens, t, self.context)], token)
            for response, tokens in enumerate(self.responses)
            for t, token in enumerate(tokens)
        ]
        owner, row, token = np.transpose(entries)
        return jax.ops.segment_sum(tables[row, token], owner, len(self.responses))


def _context(tokens: Tokens, position: int, length: int | None) -> Tokens:
    first = 0 if length is None else max(0, position - length)
    return tokens[first:position]


def _sequences(responses: Any, vocabulary: int) -> tuple[Tokens, ...]:
    listed = []
    for tokens in responses:
        array = np.asarray(tokens)
        fits = array.ndim == 1 and array.size > 0 and array.dtype.kind in "iu"
        if not fits or array.min() < 0 or array.max() >= vocabulary:
            raise ValueError(
                "Argument `responses` must hold sequences of tokens between 0 and "
                f"{vocabulary - 1}, but holds {tokens!r}."
            )
        listed.append(tuple(array.tolist()))
    if len(listed) < 2:
        raise ValueError(
            f"Argument `responses` must hold at least two responses, but holds {len(listed)}."
        )
    return tuple(listed)
