"""`flowlab forecast`: what it hands the library, what it prints, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import flowlab_command, refusal

from flowlab import losses, replay
from flowlab.descent import hf_order

REVERSAL = Path(__file__).parent / "data" / "reversal"
COUNT = 8


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = (REVERSAL / "pairs.jsonl").read_text("utf-8").splitlines()[:COUNT]
    path = tmp_path_factory.mktemp("foretold") / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture
def asked_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of every call of `replay.forecast`, which then carries nothing out."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(*args: Any, **options: Any) -> replay.Forecast:
        calls.append((args, options))
        orders = np.array([[-4.0, -7.0, 3.0], [1.0, -1.0, 2.0]]) * len(calls)
        return replay.Forecast(np.full((2, 3), np.nan), orders, np.array([0.75, 0.25]), 48, 24, 6)

    monkeypatch.setattr(replay, "forecast", note)
    return calls


def foretell(some: Path, *words: Any) -> Any:
    given = ("--model", REVERSAL, "--data", some, "--batch-size", 4, "--epochs", 3)
    return flowlab_command("forecast", *given, "--learning-rate", 0.1, *words)


def test_losses_and_betas_are_foretold_side_by_side(some: Path, asked_of: list[Any]) -> None:
    words = ("--loss", "dpo,sft", "--beta", 0.1, "--beta", 0.5, "--orders", 2, "--seed", 7)
    told = foretell(
        some, *words, "--optimiser", "sgd", "--max-grad-norm", 0, "--json", "--checkpoint", "ends"
    )
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    assert (record["pairs"], record["steps"]) == (COUNT, 6)
    assert list(record["forecasts"]) == ["dpo, β = 0.1", "dpo, β = 0.5", "sft"]
    assert record["forecasts"]["dpo, β = 0.5"]["margin"]["median"] == 5
    assert record["forecasts"]["sft"]["is_draw"] is True
    kinds = [args[1] for args, _ in asked_of]
    assert [type(loss) for loss in kinds] == [losses.DPO, losses.DPO, losses.SFT]
    assert [float(loss.beta) for loss in kinds[:2]] == [0.1, 0.5]
    (policy, _, rate, orders), options = asked_of[0]
    assert len(policy.tokens) == COUNT and rate == 0.1
    wanted = {"optimiser": "sgd", "max_grad_norm": 0, "progress": None, "checkpoint": Path("ends")}
    assert options == wanted
    for seed, order in zip((7, 10), orders, strict=True):  # epochs of one order are 7, 8 and 9
        for taken, wanted in zip(order, hf_order(COUNT, 3, 4, seed), strict=True):
            np.testing.assert_array_equal(taken, wanted)


def test_a_forecast_is_told_in_a_table_and_in_words(some: Path, asked_of: list[Any]) -> None:
    text = foretell(some, "--beta", 0.1).stdout
    assert len(asked_of[0][0][3]) == 4  # orders
    lines = text.splitlines()
    assert lines[0].startswith("8 pairs, 6 steps.")
    row = next(line for line in lines if line.startswith("dpo, β = 0.1  "))
    assert "falls in 1 of 2" in row and "50%" in row and row.endswith("2.00 runs")
    assert "dpo, β = 0.1: 6 steps are too few for shorter runs to agree. The run is a draw" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--beta", -1], "Option --beta must be positive and finite, but is -1."),
        (["--beta", 0.1, "--beta", 0.1], "Option --beta must name each once"),
        (["--beta", 0.1, "--loss", "dpo,dpo"], "Option --loss must name each once"),
        (["--beta", 0.1, "--loss", "dp"], "Option --loss must be one of "),
        (["--beta", 0.1, "--set", "tau=1"], "Option --set must name hyper-parameters of DPO"),
        (
            ["--beta", 0.1, "--loss", "dpo,ipo", "--set", "tau=1"],
            "Option --set must name hyper-parameters of dpo, ipo, but names tau.",
        ),
        (["--beta", 0.1, "--batch-size", 9, "--processes", 0], "--processes"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_in_one_line(
    words: list[Any], sentence: str, some: Path, asked_of: list[Any]
) -> None:
    assert sentence in refusal(foretell(some, *words))
    assert not asked_of
