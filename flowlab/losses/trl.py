"""Losses by the names that TRL gives to its trainers, loss types and fields."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

from flowlab.losses import batches, divergences, margin, reference_free, responses
from flowlab.losses._trl_fields import OF_TRAINING, TRL
from flowlab.losses.base import AbstractLoss
from flowlab.losses.divergences import AbstractDivergence
from flowlab.losses.sums import WeightedSum

__all__ = ["from_trl", "loss_type_of"]


def from_trl(
    trainer: str | None = None,
    loss_type: str | Sequence[str] | None = None,
    *,
    beta: Float[ArrayLike, "*p"] | None = None,
    label_smoothing: float | None = None,
    f_divergence_type: str | None = None,
    f_alpha_divergence_coef: float | None = None,
    discopop_tau: float | None = None,
    loss_weights: Sequence[float] | None = None,
    simpo_gamma: float | None = None,
    alpha: float | None = None,
    cpo_alpha: float | None = None,
    desirable_weight: float | None = None,
    undesirable_weight: float | None = None,
    ld_alpha: float | None = None,
    use_weighting: bool | None = None,
    sync_ref_model: bool | None = None,
    **of_training: Any,
) -> AbstractLoss:
    """The loss that a trainer of TRL minimises, named as in TRL's configuration.

    The `mean` of the result over a batch is the value that TRL computes. The arguments have the
    names of the fields of `DPOConfig`, `CPOConfig`, `KTOConfig` and `ORPOConfig`, and None means
    the default of TRL:

    - "dpo": `loss_type` "sigmoid", `beta` 0.1, `label_smoothing` 0, `f_divergence_type`
      "reverse_kl", `f_alpha_divergence_coef` 0.5, `discopop_tau` 0.05, `loss_weights` 1 each;
    - "cpo": `loss_type` "sigmoid", `beta` 0.1, `label_smoothing` 0, `simpo_gamma` 0.5, `alpha` 0,
      `cpo_alpha` 1, so that SimPO too has a likelihood term; "alphapo" is "simpo" with `cpo_alpha`
      0, which TRL sets by itself;
    - "kto": `loss_type` "kto", `beta` 0.1, `desirable_weight` 1, `undesirable_weight` 1;
    - "orpo": `beta` 0.1 and no `loss_type`. The name "odds_ratio_term", for ORPO without its
      likelihood term, does not occur in TRL.

    KTO in TRL averages over examples, and a pair consists of two examples. The result is therefore
    half the loss of `KTO`, `WeightedSum((KTO(...),), (0.5,))`, which is TRL's value for a batch
    with as many chosen as rejected examples. The reference point of KTO is no field of TRL, which
    estimates it from the batch without a gradient. Here it is 0; `KTO(reference_point=...)` sets
    another one. "apo_zero_unpaired" is the same loss, with the reference point 0 in TRL as well.

    ORPO in TRL includes the tokens of the prompt in its likelihood term. A `Pair` has no prompt, so
    the result is TRL's value for an empty prompt.

    A whole configuration of TRL 1.16 can be passed as `from_trl(**vars(config))`; fields that
    concern no loss, such as `learning_rate`, are ignored.

    Args:
        trainer: "dpo", "cpo", "kto" or "orpo". None for the trainer of the whole configuration that
            is passed, or "dpo" if only fields of a loss are passed.
        loss_type: A name, or for "dpo" a list of names, which gives their weighted sum.
        beta: β of all losses, positive; an array sets one per pair, but not for "aot" and
            "aot_unpaired". It has no effect on "sft".
        label_smoothing: ε of "exo_pair", "robust", "aot", "aot_unpaired" and, in "cpo", of
            "sigmoid", "simpo" and "alphapo". For the smoothed sigmoid loss of older releases of
            TRL, see `ConservativeDPO`.
        f_divergence_type: "reverse_kl", "forward_kl", "js_divergence" or "alpha_divergence".
        f_alpha_divergence_coef: α of "alpha_divergence".
        discopop_tau: τ of "discopop", positive.
        loss_weights: One weight per loss type.
        simpo_gamma: γ of "simpo" and "alphapo".
        alpha: α of AlphaPO's reward, for all losses of "cpo"; with 0 the reward is the
            log-probability.
        cpo_alpha: Weight of the likelihood term of the chosen response, for all losses of "cpo"
            except "alphapo"; with "alphapo", 0 and TRL's default are accepted and have no effect.
        desirable_weight: Weight of the chosen responses in "kto".
        undesirable_weight: Weight of the rejected responses in "kto".
        ld_alpha: Weight of the tokens of the longer response beyond the length of the shorter one.
            It must be None or 1, because a `Pair` has no log-probabilities of single tokens.
        use_weighting: Weights of pairs by the probabilities of their responses, without a gradient
            (WPO). It must be None or False, because the weighted flow is not the gradient flow of
            any loss.
        sync_ref_model: Moves the reference during training (TR-DPO). It must be None or False,
            because the reference of a flow is constant.
        of_training: Fields of a configuration that concern no loss; they are ignored.

    Returns:
        A loss of one class of this package, or a `WeightedSum` of several.

    Raises:
        ValueError: If the trainer, a loss type, the divergence or a field is unknown; if the
            trainer does not have a field that is given; if a field without effect differs from its
            default; if TRL refuses the combination (a divergence with a loss that does not depend
            on a difference of scores, "exo_pair" without label smoothing, a number of weights that
            is not the number of loss types); or if the loss refuses a value.

    Source: TRL 1.16, `trainer/dpo_trainer.py`, `trainer/kto_trainer.py`, `experimental/cpo`,
        `experimental/orpo`.
    Accuracy: value and gradients agree with TRL to 1e-10 (relative) in double precision, and to
        1e-5 for the α-divergence and ORPO, which TRL computes in single precision.
    """
    _check_refused(ld_alpha=ld_alpha, use_weighting=use_weighting, sync_ref_model=sync_ref_model)
    _check_of_training(of_training)
    given = {
        "beta": beta,
        "label_smoothing": label_smoothing,
        "f_divergence_type": f_divergence_type,
        "f_alpha_divergence_coef": f_alpha_divergence_coef,
        "discopop_tau": discopop_tau,
        "loss_weights": loss_weights,
        "simpo_gamma": simpo_gamma,
        "alpha": alpha,
        "cpo_alpha": cpo_alpha,
        "desirable_weight": desirable_weight,
        "undesirable_weight": undesirable_weight,
    }
    given = {field: value for field, value in given.items() if value is not None}
    trainer = _trainer(of_training, given) if trainer is None else trainer
    return _minimised(trainer, loss_type, loss_weights, given)


def _minimised(
    trainer: str,
    loss_type: str | Sequence[str] | None,
    loss_weights: Sequence[float] | None,
    given: Mapping[str, Any],
) -> AbstractLoss:
    """The loss that a trainer minimises with the given fields; an error if TRL refuses them."""
    kind = _kind(trainer)
    names = _loss_types(trainer, kind, loss_type)
    _check_known(trainer, kind, given)
    values = {**kind.defaults, **given}
    _check_divergence(kind, names, values)
    _check_effects(kind, names, values)
    _check_smoothing(names, values)
    return _weighted([_loss(kind.losses[name], values) for name in names], loss_weights)


def loss_type_of(loss: AbstractLoss) -> str | None:
    """The `loss_type` of the class of a loss in TRL, as text; None if TRL has no such type.

    The text also has the trainer unless that is the trainer for DPO, and `f_divergence_type` unless
    that is TRL's default. A loss that TRL makes from another loss by a field has no `loss_type`.

    Args:
        loss: A loss; its other hyper-parameters do not matter.
    """
    for trainer, kind in _TRAINERS.items():
        for name, recipe in kind.losses.items():
            if recipe.make is type(loss) and name is not None:
                other = _divergence_of(loss)
                where = "" if trainer == "dpo" else f" of {trainer.upper()}"
                return name + where + ("" if other is None else f" with {other}")
    return None


def _divergence_of(loss: AbstractLoss) -> str | None:
    """The `f_divergence_type` of a loss; None for the default or if there is none."""
    kind = type(getattr(loss, "divergence", divergences.ReverseKL()))
    names = [name for name, one in _DIVERGENCES.items() if one is kind]
    return names[0] if names and kind is not divergences.ReverseKL else None


class _Recipe(NamedTuple):
    """The function that makes a loss, the fields that affect it, and fields that TRL sets."""

    make: Callable[..., AbstractLoss]
    fields: tuple[str, ...]
    sets: Mapping[str, Any] = MappingProxyType({})


class _Trainer(NamedTuple):
    """The loss types of a trainer, the default one first, and the defaults of its fields."""

    losses: Mapping[str | None, _Recipe]
    defaults: Mapping[str, Any]


def _simpo(alpha: float, **arguments: Any) -> AbstractLoss:
    if np.array_equal(alpha, 0):
        return reference_free.SimPO(**arguments)
    return reference_free.AlphaPO(alpha=alpha, **arguments)


def _over_examples(**arguments: Any) -> AbstractLoss:
    return WeightedSum((responses.KTO(**arguments),), np.asarray([0.5]))


_SCORES = ("beta", "f_divergence_type")
_SMOOTHED_SCORES = (*_SCORES, "label_smoothing")
_SMOOTHED = ("beta", "label_smoothing")
_REWARD = ("beta", "alpha")
_EXAMPLES = ("beta", "desirable_weight", "undesirable_weight")

_TRAINERS = {
    "dpo": _Trainer(
        {
            "sigmoid": _Recipe(margin.DPO, _SCORES),
            "hinge": _Recipe(margin.Hinge, _SCORES),
            "ipo": _Recipe(margin.IPO, _SCORES),
            "exo_pair": _Recipe(margin.EXO, _SMOOTHED_SCORES),
            "nca_pair": _Recipe(responses.NCA, ("beta",)),
            "robust": _Recipe(margin.RobustDPO, _SMOOTHED_SCORES),
            "bco_pair": _Recipe(responses.BCO, ("beta",)),
            "sppo_hard": _Recipe(responses.SPPO, ("beta",)),
            "aot": _Recipe(batches.AOT, _SMOOTHED),
            "aot_unpaired": _Recipe(batches.AOTUnpaired, _SMOOTHED),
            "apo_zero": _Recipe(responses.APOZero, ("beta",)),
            "apo_down": _Recipe(responses.APODown, ("beta",)),
            "discopop": _Recipe(margin.DiscoPOP, (*_SCORES, "discopop_tau")),
            "sft": _Recipe(responses.SFT, ()),
            "sigmoid_norm": _Recipe(margin.LengthNormalisedDPO, _SCORES),
        },
        {
            "beta": 0.1,
            "label_smoothing": 0.0,
            "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5,
            "discopop_tau": 0.05,
            "loss_weights": None,
        },
    ),
    "cpo": _Trainer(
        {
            "sigmoid": _Recipe(reference_free.CPO, (*_REWARD, "cpo_alpha", "label_smoothing")),
            "hinge": _Recipe(reference_free.CPOHinge, (*_REWARD, "cpo_alpha")),
            "ipo": _Recipe(reference_free.CPOIPO, (*_REWARD, "cpo_alpha")),
            "simpo": _Recipe(_simpo, (*_REWARD, "simpo_gamma", "cpo_alpha", "label_smoothing")),
            "alphapo": _Recipe(
                _simpo, (*_REWARD, "simpo_gamma", "label_smoothing"), {"cpo_alpha": 0.0}
            ),
        },
        {
            "beta": 0.1,
            "label_smoothing": 0.0,
            "simpo_gamma": 0.5,
            "alpha": 0.0,
            "cpo_alpha": 1.0,
        },
    ),
    "kto": _Trainer(
        {
            "kto": _Recipe(_over_examples, _EXAMPLES),
            "apo_zero_unpaired": _Recipe(_over_examples, _EXAMPLES),
        },
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    ),
    "orpo": _Trainer(
        {
            None: _Recipe(reference_free.ORPO, ("beta",)),
            "odds_ratio_term": _Recipe(reference_free.OddsRatio, ("beta",)),
        },
        {"beta": 0.1},
    ),
}

_DIVERGENCES: Mapping[str, Callable[..., AbstractDivergence]] = {
    "reverse_kl": divergences.ReverseKL,
    "forward_kl": divergences.ForwardKL,
    "js_divergence": divergences.JensenShannon,
    "alpha_divergence": divergences.AlphaDivergence,
}

# Fields of TRL for which our classes have another name.
_ARGUMENTS = {
    "f_divergence_type": "divergence",
    "discopop_tau": "tau",
    "simpo_gamma": "gamma",
    "cpo_alpha": "nll_weight",
}


# Fields of which `from_trl` takes only the values without effect, with those values and the reason.
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = MappingProxyType(
    {
        "ld_alpha": (
            (None, 1),
            "it weights the tokens of the longer response beyond the length of the shorter one, "
            "and a pair holds the log-probabilities of whole responses",
        ),
        "use_weighting": (
            (None, False),
            "it weights pairs by the probabilities of their responses, without a gradient, so that "
            "training does not follow the gradient of a loss",
        ),
        "sync_ref_model": (
            (None, False),
            "it moves the reference during training, and the reference of a flow is constant",
        ),
    }
)
# A field that only one configuration has shows its trainer; ORPO's has no such field of a loss.
_TELLING = {"discopop_tau": "dpo", "cpo_alpha": "cpo", "desirable_weight": "kto"}
_ONLY_ORPO = "padding_value"


def _check_refused(**given: Any) -> None:
    for field, value in given.items():
        idle, reason = _REFUSED[field]
        if value not in idle:
            raise ValueError(
                f"Argument `{field}` must be {' or '.join(map(repr, idle))}, but is {value!r}; "
                f"{reason}."
            )


def _check_of_training(given: Iterable[str]) -> None:
    for field in given:
        # transformers keeps devices that it has looked up among the fields.
        if field not in OF_TRAINING and not field.startswith("__cached__"):
            raise ValueError(
                f"Argument `{field}` must be left out, but is given; TRL {TRL} has no field of "
                "that name."
            )


def _trainer(of_training: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The trainer of a whole configuration; "dpo" if only fields of a loss are given."""
    otherwise = "orpo" if _ONLY_ORPO in of_training else "dpo"
    telling = (trainer for field, trainer in _TELLING.items() if field in given)
    return next(telling, otherwise) if of_training else "dpo"


def _kind(trainer: str) -> _Trainer:
    if trainer not in list(_TRAINERS):
        raise ValueError(
            f"Argument `trainer` must be one of {_listed(_TRAINERS)}, but is {trainer!r}."
        )
    return _TRAINERS[trainer]


def _loss_types(
    trainer: str, kind: _Trainer, loss_type: str | Sequence[str] | None
) -> Sequence[str | None]:
    """The names of the losses, after a check that the trainer has them."""
    known = list(kind.losses)
    if isinstance(loss_type, Sequence) and not isinstance(loss_type, str):
        _check_list(trainer, loss_type)
        names: list[str | None] = [*loss_type]
    else:
        names = [known[0] if loss_type is None else loss_type]
    for name in names:
        if name not in known:
            raise ValueError(
                f"Argument `loss_type` must be one of {_listed(known)} for the trainer "
                f"{trainer!r}, but is {name!r}."
            )
    return names


def _check_list(trainer: str, loss_types: Sequence[str]) -> None:
    if trainer != "dpo":
        raise ValueError(
            f"Argument `loss_type` must be a single name for the trainer {trainer!r}, "
            f"but is {loss_types!r}."
        )
    if not loss_types:
        raise ValueError("Argument `loss_type` must name a loss, but is empty.")


def _check_known(trainer: str, kind: _Trainer, given: Mapping[str, Any]) -> None:
    for field, value in given.items():
        if field not in kind.defaults:
            raise ValueError(
                f"Argument `{field}` must be left out for the trainer {trainer!r}, which has no "
                f"such field, but is {value!r}; its fields are {_quoted(kind.defaults)}."
            )


def _check_divergence(
    kind: _Trainer, names: Sequence[str | None], values: Mapping[str, Any]
) -> None:
    """Refuse a divergence, as `DPOTrainer` does, unless every loss has a difference of scores."""
    divergence = values.get("f_divergence_type", "reverse_kl")
    if divergence not in list(_DIVERGENCES):
        raise ValueError(
            f"Argument `f_divergence_type` must be one of {_listed(_DIVERGENCES)}, "
            f"but is {divergence!r}."
        )
    able = {name for name, loss in kind.losses.items() if "f_divergence_type" in loss.fields}
    unable = [name for name in names if name not in able | {"sft"}]
    if divergence != "reverse_kl" and unable:
        raise ValueError(
            f"Argument `f_divergence_type` must be 'reverse_kl' with the loss {_listed(unable)}, "
            f"but is {divergence!r}, which TRL has only for {_listed(sorted(able, key=str))}."
        )


def _check_effects(kind: _Trainer, names: Sequence[str | None], values: Mapping[str, Any]) -> None:
    able = {field for name in names for field in kind.losses[name].fields} | {"loss_weights"}
    if "f_divergence_type" in able and values["f_divergence_type"] == "alpha_divergence":
        able.add("f_alpha_divergence_coef")
    sets = [kind.losses[name].sets for name in names]
    for field, default in kind.defaults.items():
        usual = [default, *(value[field] for value in sets if field in value)]
        if field not in able and not any(np.array_equal(values[field], value) for value in usual):
            where = "without 'alpha_divergence'" if field == "f_alpha_divergence_coef" else ""
            raise ValueError(
                f"Argument `{field}` must keep its default {' or be '.join(map(repr, usual))}"
                f" {where or f'with the loss {_listed(names)}'}, where it has no effect, but is "
                f"{values[field]!r}; the fields with an effect are "
                f"{_quoted(field for field in kind.defaults if field in able)}"
                f"{_instead(field, names)}."
            )


def _instead(field: str, names: Sequence[str | None]) -> str:
    if field != "label_smoothing" or "sigmoid" not in names:
        return ""
    return "; the smoothed sigmoid loss is `losses.ConservativeDPO`"


def _check_smoothing(names: Sequence[str | None], values: Mapping[str, Any]) -> None:
    if "exo_pair" in names and np.array_equal(values["label_smoothing"], 0):
        raise ValueError(
            "Argument `label_smoothing` must be positive with the loss 'exo_pair', but is "
            f"{values['label_smoothing']!r}; its paper recommends 1e-3."
        )


def _loss(recipe: _Recipe, values: Mapping[str, Any]) -> AbstractLoss:
    built = {**values, "f_divergence_type": _divergence(values)}
    return recipe.make(**{_ARGUMENTS.get(field, field): built[field] for field in recipe.fields})


def _divergence(values: Mapping[str, Any]) -> AbstractDivergence:
    name = values.get("f_divergence_type", "reverse_kl")
    if name == "alpha_divergence":
        return divergences.AlphaDivergence(values["f_alpha_divergence_coef"])
    return _DIVERGENCES[name]()


def _weighted(losses: Sequence[AbstractLoss], weights: Sequence[float] | None) -> AbstractLoss:
    """The weighted sum of losses; a single loss without a weight is returned unchanged."""
    if weights is None:
        return losses[0] if len(losses) == 1 else WeightedSum(losses)
    if np.shape(weights) != (len(losses),):
        raise ValueError(
            f"Argument `loss_weights` must have shape ({len(losses)},), one weight per loss type, "
            f"but has shape {np.shape(weights)}."
        )
    return WeightedSum(losses, np.asarray(weights))


def _listed(names: Iterable[str | None]) -> str:
    return ", ".join(map(repr, names))


def _quoted(fields: Iterable[str]) -> str:
    return ", ".join(f"`{field}`" for field in fields)
