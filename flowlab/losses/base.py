"""Pairs, what a loss is, and how its hyper-parameters are checked.

p: pairs, any shape, a scalar for one pair.
"""

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from flowlab._checks import numbers
from flowlab.losses.functions import weighted

__all__ = [
    "AbstractLoss",
    "LowerBound",
    "Pair",
    "floats",
    "label_entropy",
    "like",
    "negative_log_likelihood",
    "parameter",
    "parameter_in",
    "positive",
    "positive_parameter",
    "weighted_mean",
]


class Pair(eqx.Module):
    """Summed log-probabilities of a chosen and a rejected response; a batch is a Pair of arrays.

    Attributes:
        chosen: Log-probability of the chosen response under the policy, in nats.
        rejected: Log-probability of the rejected response under the policy, in nats.
        ref_chosen: Log-probability of the chosen response under the reference, in nats.
        ref_rejected: Log-probability of the rejected response under the reference, in nats.
        chosen_length: Tokens of the chosen response.
        rejected_length: Tokens of the rejected response.
        offset: A required margin of the pair, for losses that use one; else None.
    """

    chosen: Float[Array, "*p"]
    rejected: Float[Array, "*p"]
    ref_chosen: Float[Array, "*p"]
    ref_rejected: Float[Array, "*p"]
    chosen_length: Float[Array, "*p"]
    rejected_length: Float[Array, "*p"]
    offset: Float[Array, "*p"] | None = None

    @property
    def u_chosen(self) -> Float[Array, "*p"]:
        """Log-ratio of the chosen response: log-probability less that of the reference."""
        return self.chosen - self.ref_chosen

    @property
    def u_rejected(self) -> Float[Array, "*p"]:
        """Log-ratio of the rejected response: log-probability less that of the reference."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> Float[Array, "*p"]:
        """Log-ratio of the chosen less that of the rejected response (without β)."""
        return self.u_chosen - self.u_rejected


class LowerBound(NamedTuple):
    """A number that a loss never falls below.

    Attributes:
        value: The number.
        reached: Whether a flow line can come down to it in finite time.
    """

    value: float
    reached: bool = False


class AbstractLoss(eqx.Module):
    """A preference loss: one value per pair, and a mean over pairs.

    A loss of your own is a subclass with `__call__`; flows, sweeps, cards and figures need no more.
    Hyper-parameters are array leaves, so that sweeping one does not compile again; each is a single
    number, unless its description allows one per pair.
    """

    least: ClassVar[LowerBound | None] = None
    """The lower bound of all losses of the class, where it does not depend on hyper-parameters."""

    @abstractmethod
    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        """The loss of each pair."""

    def margin_at(self, level: Float[ArrayLike, " k"]) -> Float[Array, " k"] | None:
        """The margins u_w − u_l at which one pair loses `level`, or None.

        For losses that fall strictly as the margin rises, and depend on nothing else: a flow to a
        level of such a loss can be integrated over the margin, which costs less than over the loss.

        Args:
            level: Positive values of the loss.
        """
        del level

    def lower_bound(self) -> LowerBound | None:
        """The number that no pair can lose less than, nor a mean; None where none is known."""
        return self.least

    @property
    def of_batch(self) -> bool:
        """Whether what a pair loses depends on the other pairs of its batch."""
        return False

    def mean(self, pairs: Pair, weights: Float[ArrayLike, "*p"] | None = None) -> Float[Array, ""]:
        """The (weighted) mean of the loss over all pairs.

        Args:
            pairs: The pairs.
            weights: One non-negative weight per pair; their sum need not be 1. A pair of weight 0
                does not count, even where its loss is infinite; but where its slope is infinite
                too, reverse mode makes NaN of the gradient by its log-probabilities.
        """
        return weighted_mean(self(pairs), weights)

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)
        held = [(f.name, getattr(self, f.name)) for f in fields if not _as_made(self, f)]
        return f"{type(self).__name__}({', '.join(f'{n}={_shown(v)}' for n, v in held)})"


def weighted_mean(
    values: Float[Array, "*p"], weights: Float[ArrayLike, "*p"] | None
) -> Float[Array, ""]:
    """The mean of values, weighted if there are weights; their sum need not be 1.

    A value of weight 0 does not count, even where it is infinite. Its derivative is 0; where it
    comes from an infinite slope, reverse mode makes NaN of 0·∞ there, and forward mode 0.
    """
    if weights is None:
        return jnp.mean(values)
    weights = like(weights, values)
    return jnp.sum(weighted(weights, values)) / jnp.sum(weights)


def negative_log_likelihood(
    pairs: Pair, weights: Float[ArrayLike, "*p"] | None
) -> Float[Array, ""]:
    """Of the chosen responses, averaged over all their tokens together.

    −Σ w l / Σ w N: in a batch a long response weighs more, as in the cross-entropy of TRL. A
    response of weight 0 does not count, even where its log-probability is −∞.
    """
    chosen = floats(pairs.chosen)
    tokens = like(pairs.chosen_length, chosen)
    weights = jnp.ones_like(chosen) if weights is None else like(weights, chosen)
    return -jnp.sum(weighted(weights, chosen)) / jnp.sum(weighted(weights, tokens))


def label_entropy(smoothing: ArrayLike) -> LowerBound | None:
    """The lower bound −(1−ε) log(1−ε) − ε log ε of a logistic loss of labels smoothed by ε ≤ ½."""
    if isinstance(smoothing, Tracer):
        return None
    wrong = float(np.asarray(smoothing))
    return LowerBound(float(-np.log1p(-wrong) * (1 - wrong) - wrong * np.log(wrong or 1.0)))


def floats(values: ArrayLike) -> Array:
    """An array of floats, of the precision given; what is cast to its type is not cut to integers.

    Args:
        values: Numbers of any shape; integers become floats of the default precision.
    """
    if isinstance(values, np.ndarray):
        # JAX 0.10 may give a NumPy array the type it had in a trace, even where 64-bit types have
        # been turned off since; a copy in the type of now has no such past.
        values = values.astype(jax.dtypes.canonicalize_dtype(values.dtype), copy=False)
    array = jnp.asarray(values)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def like(value: ArrayLike, model: Array) -> Array:
    """A value in the floating-point type of another array."""
    return jnp.asarray(value, model.dtype)


def parameter(default: Any, convert: Callable[[str, Any], Any], name: str) -> Any:
    """A field for a hyper-parameter: its default, and the check that turns it into an array."""
    return eqx.field(default=default, converter=functools.partial(convert, name))


def positive(default: float, name: str = "beta", *, single: bool = False) -> Any:
    """A field for a hyper-parameter that must be positive and finite, one per pair or a single."""
    convert = functools.partial(_single, positive_parameter) if single else positive_parameter
    return parameter(default, convert, name)


def parameter_in(
    default: float, name: str, low: float, high: float, *, ends: str = "both", single: bool = True
) -> Any:
    """A field for a hyper-parameter that lies between two numbers.

    Args:
        default: Its default.
        name: Its name.
        low: The lower end; −inf for none.
        high: The upper end; inf for none.
        ends: Which of the ends are allowed themselves: "both", "low", "high" or "none"; an
            infinite end never is.
        single: Whether it must be a single number, without axes.
    """
    convert = functools.partial(_checked_between, low, high, ends)
    return parameter(default, functools.partial(_single, convert) if single else convert, name)


def positive_parameter(name: str, value: ArrayLike) -> Any:
    """A hyper-parameter as an array leaf, checked to be positive and finite where it is known.

    Raises:
        ValueError: If a value is not a positive finite number.
    """
    return _checked(name, value, lambda a: a > 0, "be positive and finite")


def _single(convert: Callable[[str, Any], Any], name: str, value: ArrayLike) -> Any:
    held = convert(name, value)
    if not isinstance(held, Tracer) and np.ndim(held) > 0:
        raise ValueError(
            f"Argument `{name}` must be a single number, but has shape {np.shape(held)}."
        )
    return held


def _checked_between(low: float, high: float, ends: str, name: str, value: ArrayLike) -> Any:
    def inside(array: np.ndarray) -> np.ndarray:
        above = array >= low if ends in ("both", "low") else array > low
        return above & (array <= high if ends in ("both", "high") else array < high)

    return _checked(name, value, inside, _range(low, high, ends))


def _range(low: float, high: float, ends: str) -> str:
    if np.isinf(low) and np.isinf(high):
        return "be finite"
    if np.isinf(high):
        return f"be finite and {'at least' if ends in ('both', 'low') else 'above'} {low:g}"
    opening = "[" if ends in ("both", "low") else "("
    closing = "]" if ends in ("both", "high") else ")"
    return f"lie in {opening}{low:g}, {high:g}{closing}"


def _checked(
    name: str, value: ArrayLike, inside: Callable[[np.ndarray], np.ndarray], wanted: str
) -> Any:
    if isinstance(value, Tracer):
        return value
    if isinstance(value, jax.Array):
        value = np.asarray(value)
    array = numbers(value)
    if not np.all(np.isfinite(array) & inside(array)):
        raise ValueError(f"Argument `{name}` must {wanted}, but is {value!r}.")
    return array


def _as_made(module: eqx.Module, field: dataclasses.Field) -> bool:
    """Whether a field holds the part that it is made with by default, which has no parameters."""
    value, made = getattr(module, field.name), field.default_factory
    return isinstance(made, type) and type(value) is made and not dataclasses.fields(value)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return f"{float(value):g}"
    if isinstance(value, np.ndarray):
        return str(value.tolist())
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
