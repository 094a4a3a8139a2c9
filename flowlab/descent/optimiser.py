"""The optimisers of Hugging Face's Trainer, composed of parts of optax.

Letters in shapes: k steps.
"""

from math import cos, pi
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, PyTree

from flowlab import _checks as checks
from flowlab.flow import norm

if TYPE_CHECKING:
    import optax

__all__ = ["hf_optimiser", "hf_rates"]

Name = Literal["adamw", "sgd"]
Schedule = Literal["linear", "cosine", "constant"]
_OPTIMISERS = "adamw", "sgd"
_SCHEDULES = "linear", "cosine", "constant"
_NEARLY_NONE = 1e-6  # what torch adds to the norm it clips by, lest it divide by 0


def hf_optimiser(
    learning_rate: npt.ArrayLike,
    steps: int,
    *,
    optimiser: Name = "adamw",
    schedule: Schedule | None = None,
    warmup_steps: int | None = None,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
) -> "optax.GradientTransformation":
    """The optimiser of the Trainer of transformers, with its clipping and its schedule.

    The default is AdamW. Gradients are clipped to the norm `max_grad_norm`. Weight decay is
    decoupled. As in the Trainer, it applies only to arrays with at least two axes, and so not to
    biases and norms.

    Args:
        learning_rate: The peak learning rate. Or the rates of all steps, shape (k,), for example
            from a log; they replace the schedule.
        steps: Number of steps of the run; the schedule ends with the last one.
        optimiser: `"adamw"`, or `"sgd"` without momentum.
        schedule: `lr_scheduler_type` of the Trainer: `"linear"` (default) decreases to 0,
            `"cosine"` decreases to 0 in half a period, `"constant"` does not change.
        warmup_steps: Number of steps in which the rate rises from 0. `"constant"` with a warm-up is
            the Trainer's `"constant_with_warmup"`.
        adam_betas: `adam_beta1` and `adam_beta2` of the Trainer.
        epsilon: `adam_epsilon` of the Trainer.
        weight_decay: `weight_decay` of the Trainer.
        max_grad_norm: `max_grad_norm` of the Trainer; 0 for no clipping.

    Raises:
        ValueError: If a number is out of its range, if a word is unknown, if the number of rates is
            not the number of steps, or if rates are given with a schedule.

    Source: `Trainer` of transformers 5.24; `AdamW`, `SGD` and `clip_grad_norm_` of PyTorch 2.13.

    Accuracy: optax computes the powers of `adam_betas` for Adam's bias correction in 32 bits, and
        PyTorch in 64. The first steps therefore differ by a relative 1e-5, which is less than the
        effect of float32 gradients.
    """
    import optax

    checks.choice("optimiser", optimiser, *_OPTIMISERS)
    rates = hf_rates(learning_rate, steps, schedule=schedule, warmup_steps=warmup_steps)
    decay = checks.within("weight_decay", weight_decay, "[0, inf)")
    clip = checks.within("max_grad_norm", max_grad_norm, "[0, inf)")
    small, betas = checks.positive("epsilon", epsilon), None
    if optimiser == "adamw":
        first, second = (checks.within("adam_betas", one, "[0, 1)") for one in adam_betas)
        betas = np.array([first, second])
    made = _Trainer(rates, betas, float(small), float(decay), float(clip))
    return optax.GradientTransformationExtraArgs(made.init, made.update)


class _Trainer(eqx.Module):
    """An optimiser with rates and averages as arrays, so that all values of them share a program.

    Attributes:
        rates: The learning rate of each step.
        adam_betas: The decay rates of Adam's averages; None for plain gradient descent.
        epsilon: The number added to the square root of Adam's second moment.
        weight_decay: Weight decay; 0 for none.
        max_grad_norm: The norm to which gradients are clipped; 0 for no clipping.
    """

    rates: Float[np.ndarray, " k"]
    adam_betas: Float[np.ndarray, "2"] | None
    epsilon: float = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)
    max_grad_norm: float = eqx.field(static=True)

    def init(self, params: Any) -> Any:
        return self._chain().init(params)

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        return self._chain().update(updates, state, params, **extra_args)

    def _chain(self) -> "optax.GradientTransformationExtraArgs":
        import optax

        parts = [_clipped(self.max_grad_norm)] if self.max_grad_norm else []
        if self.adam_betas is not None:
            first, second = jnp.asarray(self.adam_betas)
            parts.append(optax.scale_by_adam(first, second, self.epsilon))  # type: ignore[arg-type]
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay, mask=_has_axes))
        parts.append(optax.scale_by_schedule(lambda count: -jnp.asarray(self.rates)[count]))
        return optax.chain(*parts)


def hf_rates(
    learning_rate: npt.ArrayLike,
    steps: int,
    *,
    schedule: Schedule | None = None,
    warmup_steps: int | None = None,
) -> Float[np.ndarray, " k"]:
    """The learning rate of each step, with the arguments of `hf_optimiser`.

    Raises:
        ValueError: For the reasons that `hf_optimiser` gives.
    """
    steps = checks.integer("steps", steps)
    rates = checks.within("learning_rate", learning_rate, "[0, inf)")
    if rates.ndim:
        if rates.shape != (steps,):
            raise ValueError(
                f"Argument `learning_rate` must be one number, or one for each of {steps} steps, "
                f"but has shape {rates.shape}."
            )
        for argument, given in (("schedule", schedule), ("warmup_steps", warmup_steps)):
            if given is not None:
                raise ValueError(
                    f"Argument `{argument}` must be None if `learning_rate` has a rate for each "
                    f"step, but is {given!r}."
                )
        return rates
    kind = checks.choice("schedule", "linear" if schedule is None else schedule, *_SCHEDULES)
    warmup = checks.integer("warmup_steps", 0 if warmup_steps is None else warmup_steps, 0)
    return float(rates) * np.array([_factor(kind, step, warmup, steps) for step in range(steps)])


def _factor(schedule: str, step: int, warmup: int, steps: int) -> float:
    """The factor of the learning rate at a step of the schedule, counted from 0."""
    if step < warmup:
        return step / warmup
    past = (step - warmup) / max(1, steps - warmup)
    return {"linear": 1 - past, "cosine": (1 + cos(pi * past)) / 2, "constant": 1.0}[schedule]


def _has_axes(parameters: PyTree[Array]) -> PyTree[bool]:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, parameters)


def _clipped(most: float) -> "optax.GradientTransformation":
    """A transformation that scales gradients down if their norm is larger than a given number."""
    import optax

    def update(gradient: PyTree[Array], _: Any = None) -> PyTree[Array]:
        factor = jnp.minimum(1.0, most / (norm(gradient) + _NEARLY_NONE))
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), gradient)

    return optax.stateless(update)
