"""The commands that take a language model: `flowlab replay`, `explain` and `forecast`.

Only the standard library and typer are imported before a command runs.
"""

import json
from pathlib import Path
from typing import Any

import typer

from flowlab.cli import _destinations as destinations
from flowlab.cli._options import with_options

__all__ = ["explain", "forecast", "replay"]

_REPLAYED = (
    *("loss", "parameters", "reference", "optimiser", "learning_rate", "schedule", "warmup_steps"),
    *("weight_decay", "max_grad_norm", "adam_betas", "batch_size", "accumulation", "processes"),
    *("seed", "max_length", "chunk", "keep_every", "checkpoint"),
)
_EXPLAINED = (
    *("loss", "parameters", "reference", "learning_rate", "batch_size", "max_length", "chunk"),
    "pairs",
)
_FORETOLD = (
    *("loss", "parameters", "reference", "optimiser", "schedule", "warmup_steps", "weight_decay"),
    *("max_grad_norm", "adam_betas", "accumulation", "processes", "seed", "max_length", "chunk"),
    *("orders", "checkpoint"),
)


@with_options(*_REPLAYED)
def replay(
    model: Path,
    data: Path,
    log: Path,
    beta: float,
    drop_last: bool = False,
    float64: bool = False,
    out: Path | None = None,
    as_json: bool = False,
    overwrite: bool = False,
    no_cache: bool = False,
    **asked: Any,
) -> None:
    """Carry out a logged training run again, and compare it with its log step by step.

    The run is repeated from the checkpoint before it, its data and its log. The result includes the
    changes of every pair, which the log does not show. Settings that contradict the log are
    reported before the run.
    """
    from flowlab.cli import _replay as again
    from flowlab.replay import report as said

    if out is not None:
        destinations.folder(out, "", said.REPLAY, overwrite=overwrite)
    given = {**asked, "model": model, "data": data, "log": log, "beta": beta}
    found = again.compared({**given, "drop_last": drop_last, "float64": float64})
    if as_json:
        typer.echo(json.dumps(said.to_json(found), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        typer.echo(said.text(found))
    if out is not None:
        said.write(found, out)
        typer.echo(f"\nreplay: {out}", err=as_json)


@with_options(*_EXPLAINED)
def explain(
    model: Path,
    data: Path,
    beta: float,
    float64: bool = False,
    as_json: bool = False,
    no_cache: bool = False,
    **asked: Any,
) -> None:
    """Explain why the chosen log-probabilities of a model rise or fall, and because of which pairs.

    At one checkpoint, print how much a pair's own responses move it and how much those of other
    pairs, the kernel of the mean log-ratios, and the pairs that lower the chosen responses most.
    """
    from flowlab.cli import _explain as why

    given = {**asked, "model": model, "data": data, "beta": beta, "float64": float64}
    found = why.explained(given)
    if as_json:
        typer.echo(json.dumps(why.to_json(found), indent=1, allow_nan=False))
    else:
        typer.echo(why.text(found, given))


@with_options(*_FORETOLD)
def forecast(
    model: Path,
    data: Path,
    beta: list[float],
    learning_rate: float,
    batch_size: int,
    epochs: int,
    float64: bool = False,
    as_json: bool = False,
    no_cache: bool = False,
    **asked: Any,
) -> None:
    """Forecast where training runs will end, for losses and betas side by side.

    The forecast comes from short runs with an eighth and a sixteenth of the steps, at rates 8 and
    16 times as large. If these do not agree, the run itself is carried out in several orders of the
    pairs. The result is then a band, with a statement whether the order of the pairs decides the
    end.
    """
    from flowlab.cli import _forecast as ahead

    own = {"model": model, "data": data, "beta": beta, "float64": float64, "epochs": epochs}
    found = ahead.forecast_of(
        {**asked, **own, "learning_rate": learning_rate, "batch_size": batch_size}
    )
    if as_json:
        typer.echo(json.dumps(ahead.to_json(found), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        typer.echo(ahead.text(found))
