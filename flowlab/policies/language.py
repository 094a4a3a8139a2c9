"""The policy of a language model on preference data, computed in chunks of sequences.

Letters in shapes: n pairs, t tokens in the longest sequence, s sequences, v tokens in the
vocabulary.
"""

from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from flowlab import _checks as checks
from flowlab._arrays import like
from flowlab.domains import AbstractDomain, WholeSpace
from flowlab.losses import Pair
from flowlab.policies.base import AbstractPolicy, WallRule

__all__ = ["Apply", "LanguageModel", "TokenPairs", "response_log_probs"]

Apply = Callable[[Any, Array], Array]
_SIDES = ("chosen", "rejected")


class TokenPairs(Protocol):
    """Preference data as tokens, such as the result of `data.preferences`."""

    @property
    def tokens(self) -> Int[np.ndarray, "n 2 t"]:
        """Tokens of prompt and response, padded at the right; 0 is the chosen one, 1 the other."""
        ...

    @property
    def mask(self) -> Bool[np.ndarray, "n 2 t"]:
        """True where a token belongs to the response."""
        ...

    @property
    def lengths(self) -> Float[np.ndarray, "n 2"]:
        """Number of tokens in each response."""
        ...


class LanguageModel(AbstractPolicy):
    """A language model on preference data; make it with `Policy.from_model`.

    The state consists of the trained parameters. It is a PyTree with the structure of the
    parameters, in which frozen parameters are None. `subset` is a policy that computes only the
    pairs of a minibatch.

    Attributes:
        apply: Function from parameters and tokens, shape (s, t), to logits, shape (s, t, v).
        start: The state before training.
        frozen: The parameters that are not trained; trained parameters are None.
        tokens: Prompts and responses.
        mask: True where a token belongs to the response.
        lengths: Number of tokens in each response.
        ref_log_probs: Summed log-probabilities of the responses under the reference, nats.
        at_reference: The state at which the policy equals the reference; None if no such state is
            known.
        chunk: Number of sequences that are computed at a time; None for all.
    """

    apply: Apply = eqx.field(metadata={"argument": None})
    start: PyTree[ArrayLike] = eqx.field(metadata={"argument": None})
    frozen: PyTree[ArrayLike] = eqx.field(metadata={"argument": None})
    tokens: Int[ArrayLike, "n 2 t"] = eqx.field(metadata={"argument": None})
    mask: Bool[ArrayLike, "n 2 t"] = eqx.field(metadata={"argument": None})
    lengths: Float[ArrayLike, "n 2"] = eqx.field(metadata={"argument": None})
    ref_log_probs: Float[ArrayLike, "n 2"] = eqx.field(metadata={"argument": None})
    at_reference: PyTree[ArrayLike] | None = eqx.field(metadata={"argument": None})
    chunk: int | None = eqx.field(static=True)
    domain: AbstractDomain = WholeSpace()
    wall: WallRule = eqx.field(static=True, default="stop")

    @property
    def reference_state(self) -> PyTree[ArrayLike] | None:
        return self.at_reference

    @property
    def example_state(self) -> PyTree[ArrayLike]:
        return self.start

    def parameters(self, state: PyTree[Array]) -> PyTree[Array]:
        """The parameters of the model at a state, the frozen ones included."""
        return eqx.combine(state, self.frozen)

    def log_probs(self, state: PyTree[Array]) -> Float[Array, "n 2"]:
        """Summed log-probabilities of the chosen and the rejected responses at a state, nats."""
        parameters = self.parameters(state)
        tokens, mask = jnp.asarray(self.tokens), jnp.asarray(self.mask)
        return response_log_probs(self.apply, parameters, tokens, mask, chunk=self.chunk)

    def pairs(self, state: PyTree[Array]) -> Pair:
        logs = self.log_probs(state)
        references, lengths = like(self.ref_log_probs, logs), like(self.lengths, logs)
        return Pair(*logs.T, *references.T, *lengths.T)

    def subset(self, indices: Int[ArrayLike, " b"]) -> "LanguageModel":
        def of_pairs(policy: LanguageModel) -> tuple[ArrayLike, ...]:
            return policy.tokens, policy.mask, policy.lengths, policy.ref_log_probs

        taken = tuple(jnp.asarray(held)[jnp.asarray(indices)] for held in of_pairs(self))
        return eqx.tree_at(of_pairs, self, taken)


def language_model(
    apply: Apply,
    parameters: PyTree[ArrayLike],
    pairs: TokenPairs,
    chunk: int | None,
    trainable: Any,
    reference: PyTree[ArrayLike] | None,
) -> LanguageModel:
    """The policy of a language model; `Policy.from_model` describes the arguments."""
    if not callable(apply):
        raise ValueError(f"Argument `apply` must be a function, but is {apply!r}.")
    chunk = None if chunk is None else checks.integer("chunk", chunk)
    start, frozen = _parted(parameters, trainable)
    _check_pairs(pairs)
    of_reference = parameters if reference is None else _like_parameters(reference, parameters)
    found = _checked_log_probs(apply, of_reference, pairs, chunk)
    trained, fixed = eqx.partition(of_reference, _is_there(start), is_leaf=_is_none)
    known = reference is None or _are_equal(fixed, frozen)
    return LanguageModel(
        apply=apply,
        start=start,
        frozen=frozen,
        tokens=np.asarray(pairs.tokens),
        mask=np.asarray(pairs.mask),
        lengths=np.asarray(pairs.lengths, float),
        ref_log_probs=found,
        at_reference=trained if known else None,
        chunk=chunk,
    )


def response_log_probs(
    apply: Apply,
    parameters: PyTree[Array],
    tokens: Int[ArrayLike, "*b t"],
    mask: Bool[ArrayLike, "*b t"],
    *,
    chunk: int | None = None,
) -> Float[Array, "*b"]:
    """Summed log-probabilities of responses under a language model, nats.

    Args:
        apply: Function from parameters and tokens, shape (s, t), to logits, shape (s, t, v), such
            as `Model.apply`.
        parameters: The parameters of the model.
        tokens: Prompts and responses, such as `Pairs.tokens` or some rows of it.
        mask: True where a token belongs to the response.
        chunk: Number of sequences that are computed at a time, to limit the memory of logits and
            activations. Gradients then recompute each chunk. None to compute all sequences at once.
    """
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    lines = (tokens.reshape(-1, tokens.shape[-1]), mask.reshape(-1, mask.shape[-1]))

    def summed(lines: tuple[Array, Array]) -> Float[Array, " s"]:
        some, response = lines
        logs = jax.nn.log_softmax(apply(parameters, some)[:, :-1])
        taken = jnp.take_along_axis(logs, some[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(response[:, 1:], taken, 0), axis=1)

    count = len(lines[0])
    if chunk is None or checks.integer("chunk", chunk) >= count:
        return summed(lines).reshape(tokens.shape[:-1])
    whole, kept = count - count % chunk, jax.checkpoint(summed)
    blocks = tuple(line[:whole].reshape(-1, chunk, line.shape[-1]) for line in lines)
    found = lax.map(kept, blocks).reshape(-1)
    if whole < count:
        found = jnp.concatenate([found, kept((lines[0][whole:], lines[1][whole:]))])
    return found.reshape(tokens.shape[:-1])


def _parted(parameters: PyTree[Any], trainable: Any) -> tuple[PyTree[Any], PyTree[Any]]:
    """Two PyTrees: the trained parameters and the frozen ones, with None for all others."""
    if not jax.tree.leaves(parameters):
        raise ValueError(
            f"Argument `parameters` must be a PyTree of arrays, but is {parameters!r}."
        )
    real = jax.tree.map(_is_real, parameters)
    if trainable is None:
        chosen = real
    elif callable(trainable):
        chosen = jax.tree_util.tree_map_with_path(
            lambda path, _: bool(trainable(_named(path))), parameters
        )
    else:
        try:
            chosen = jax.tree.map(
                lambda one, below: jax.tree.map(lambda _: bool(one), below), trainable, parameters
            )
        except (ValueError, TypeError):
            raise ValueError(
                "Argument `trainable` must be a function of the path of a leaf, or have the "
                f"structure of `parameters`, but is {trainable!r}."
            ) from None
    if not any(jax.tree.leaves(chosen)):
        raise ValueError("Argument `trainable` must choose some of `parameters`, but chooses none.")
    wrong = [
        _named(path)
        for (path, one), of in zip(
            jax.tree_util.tree_leaves_with_path(chosen), jax.tree.leaves(real), strict=True
        )
        if one and not of
    ]
    if wrong:
        raise ValueError(
            f"Argument `trainable` must choose arrays of floats, but chooses `{wrong[0]}`, which "
            "is not one."
        )
    return eqx.partition(parameters, chosen)


def _is_real(leaf: Any) -> bool:
    return eqx.is_array(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _named(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _is_there(state: PyTree[Any]) -> PyTree[bool]:
    return jax.tree.map(lambda leaf: leaf is not None, state, is_leaf=_is_none)


def _are_equal(one: PyTree[Any], other: PyTree[Any]) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a is b or np.array_equal(a, b) for a, b in leaves)


def _like_parameters(reference: PyTree[Any], parameters: PyTree[Any]) -> PyTree[Any]:
    shapes = [jax.tree.map(np.shape, tree) for tree in (reference, parameters)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Argument `reference` must hold parameters like `parameters`, but they differ in "
            "structure or shapes."
        )
    return reference


def _check_pairs(pairs: TokenPairs) -> None:
    """Refuse pairs without tokens, or with an empty prompt or response."""
    tokens, mask = np.asarray(pairs.tokens), np.asarray(pairs.mask)
    right = tokens.ndim == 3 and tokens.shape[1] == 2 and tokens.size
    if not right or mask.shape != tokens.shape or tokens.dtype.kind not in "iu":
        raise ValueError(
            "Argument `pairs` must hold ids of tokens of shape (n, 2, t) and a mask like them, but "
            f"has shapes {tokens.shape} and {mask.shape} and ids of dtype {tokens.dtype}."
        )
    for wrong, what in ((~mask.any(axis=-1), "a response"), (mask[..., 0], "a prompt")):
        if wrong.any():
            row, side = np.argwhere(wrong)[0]
            raise ValueError(
                f"Argument `pairs` must have {what} with tokens in each sequence, but pair {row} "
                f"has none in its {_SIDES[side]} sequence."
            )


def _checked_log_probs(
    apply: Apply, parameters: PyTree[Any], pairs: TokenPairs, chunk: int | None
) -> Float[np.ndarray, "n 2"]:
    """Log-probabilities of all responses under the reference; an error if they are not finite."""
    floats = [leaf.dtype for leaf in jax.tree.leaves(parameters) if _is_real(leaf)]
    wide = any(np.dtype(kind) == np.float64 for kind in floats)
    # Accelerators round the factors of a product in float32 unless told otherwise.
    with jax.enable_x64(wide), jax.default_matmul_precision("highest"):
        logits: Any = jax.eval_shape(apply, parameters, jnp.asarray(pairs.tokens[:1, 0]))
        wanted = (1, pairs.tokens.shape[-1])
        if len(getattr(logits, "shape", ())) != 3 or logits.shape[:2] != wanted:
            raise ValueError(
                "Argument `apply` must give logits of shape (s, t, v) for tokens of shape (s, t), "
                f"but gives {logits} for tokens of shape {wanted}."
            )
        found = np.asarray(
            _log_probs_of(
                apply, parameters, np.asarray(pairs.tokens), np.asarray(pairs.mask), chunk
            )
        )
    wrong = np.flatnonzero(~np.all(np.isfinite(found), axis=1))
    if wrong.size:
        raise ValueError(
            "Argument `pairs` must have finite log-probabilities under the model, but those of "
            f"pair {wrong[0]} are {checks.shown(found[wrong[0]])}: make its tokens with the "
            "tokenizer of the model."
        )
    return found


@eqx.filter_jit
def _log_probs_of(
    apply: Apply, parameters: PyTree[Any], tokens: Any, mask: Any, chunk: int | None
) -> Float[Array, "n 2"]:
    return response_log_probs(apply, parameters, tokens, mask, chunk=chunk)
