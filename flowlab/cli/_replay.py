"""The replay that the options of `flowlab replay` describe."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import typer

from flowlab import data, models
from flowlab._options import as_flag, as_option_named, refuse_unless
from flowlab.cli._request import loss_parameters, trained
from flowlab.descent import hf_optimiser, hf_order, hf_rates
from flowlab.logs import TrainingLog
from flowlab.logs.series import read_named
from flowlab.losses import AbstractLoss
from flowlab.policies import LanguageModel
from flowlab.replay import Comparison, compare, doubts, replayed
from flowlab.replay.fit import check_log

_LOOKS = 20  # at all pairs, unless told otherwise
_RATES = ("schedule", "warmup_steps")  # what goes with a learning rate alone
_OF_OPTIMISER = ("optimiser", "weight_decay", "max_grad_norm", "adam_betas")
_OF_ORDER = ("seed", "accumulation", "processes")


def compared(asked: dict[str, Any]) -> Comparison:
    """The run that the options describe, carried out and compared with its log."""
    loss = loss_of(asked)
    log = read_named(asked["log"], beta=asked["beta"], what=f"Option {as_flag('log')}")
    check_log(log)
    steps = int(log.step[-1])
    rates = _rates(asked, log, steps)
    optimiser = hf_optimiser(rates, steps, **_given(asked, _OF_OPTIMISER))
    pairs = pairs_of(asked)
    order, size = _order(asked, log, len(pairs), steps)
    policy = policy_of(asked, pairs, block=2 * max(map(len, order)))
    told = doubts(log, policy, order, rates, per_device=size)
    for sentence in told:
        typer.echo(f"flowlab: {sentence}", err=True)
    every = asked["keep_every"] or max(1, steps // _LOOKS)
    run = replayed(
        policy,
        loss,
        optimiser,
        order,
        keep_every=every,
        progress=None,
        checkpoint=asked["checkpoint"],
    )
    return compare(log, run, told, pairs=pairs)


def loss_of(asked: Mapping[str, Any]) -> AbstractLoss:
    """The loss that the options describe, of one pair or of a batch."""
    beta = asked["beta"]
    refuse_unless(0 < beta < float("inf"), "beta", "must be positive and finite, but is {:g}", beta)
    name, parameters = asked["loss"], loss_parameters(asked["parameters"])
    refuse_unless(name is not None or not parameters, "parameters", "has no effect without {loss}")
    return trained("dpo" if name is None else name, beta, parameters, of_batch=True)


def _given(asked: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: asked[name] for name in names if asked[name] is not None}


def _rates(asked: Mapping[str, Any], log: TrainingLog, steps: int) -> np.ndarray:
    """The learning rate of each step, from the options or from the log."""
    if asked["learning_rate"] is not None:
        return hf_rates(asked["learning_rate"], steps, **_given(asked, _RATES))
    for name in _RATES:
        refuse_unless(asked[name] is None, name, "has no effect without {learning_rate}")
    told = log.step_rates
    if told is None:
        refuse_unless(
            False, "learning_rate", "must be given, since the log does not have all rates"
        )
    assert told is not None
    return told


def _order(
    asked: Mapping[str, Any], log: TrainingLog, count: int, steps: int
) -> tuple[list[np.ndarray], int]:
    """The indices of the pairs of each step, and the batch size of one process."""
    size = asked["batch_size"] or int(log.settings.get("train_batch_size", 0))
    refuse_unless(size > 0, "batch_size", "must be given, since the log does not have it")
    options = {**_given(asked, _OF_ORDER), "drop_last": asked["drop_last"]}
    with _named(n="data"):
        an_epoch = len(hf_order(count, 1, size, **options))
        return hf_order(count, -(-steps // an_epoch), size, **options)[:steps], size


def pairs_of(asked: Mapping[str, Any]) -> data.Pairs:
    """The pairs of the data set that the options name."""
    with _named(path="data", tokenizer="model"):
        return data.preferences(asked["data"], asked["model"], **_given(asked, ("max_length",)))


def policy_of(asked: Mapping[str, Any], pairs: data.Pairs, *, block: int) -> LanguageModel:
    """The model with its data, in the precision that the options name."""
    with _named(folder="model"):
        model = models.load(asked["model"])
    other = None
    if asked["reference"] is not None:
        with _named(folder="reference"):
            other = models.load(asked["reference"]).parameters
    if asked["float64"]:
        model = replace(model, parameters=_wide(model.parameters))
        other = None if other is None else _wide(other)
    with _named(pairs="data", tokens="max_length"):
        return model.policy(pairs, chunk=asked["chunk"] or block, reference=other)


def _wide(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return jax.tree.map(lambda leaf: leaf.astype(np.float64), parameters)


@contextmanager
def _named(**options: str) -> Iterator[None]:
    """A context in which errors about arguments name the corresponding options."""
    try:
        yield
    except ValueError as error:
        raise ValueError(as_option_named(str(error), options)) from None
