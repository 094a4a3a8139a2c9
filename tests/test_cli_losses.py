"""The command and losses: sweeps of any of them, their table and portraits, and a comparison."""

import json
import os
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import GRID, LOG, LOG_RATIO, RATIO, flowlab_command, made_up_card, refusal, swept
from grids import thinned

import flowlab
from flowlab import cards, losses, store

LOSSES: dict[str, tuple[dict[str, Any], losses.AbstractLoss]] = {
    "ipo": ({}, losses.IPO(0.3)),
    "of its own beta": ({"--loss": "simpo", "--beta": None}, losses.SimPO()),
    "without beta": ({"--loss": "sft", "--beta": None}, losses.SFT()),
    "of another name": ({"--loss": "Exo-Pair"}, losses.EXO(0.3)),
    "set": (
        {
            "--loss": "conservative_dpo",
            "--set": ["label_smoothing=0.2"],
            "--until": "loss_below=0.6",
        },
        losses.ConservativeDPO(0.3, label_smoothing=0.2),
    ),
    "set within": (
        {"--loss": "dpo_alpha", "--set": ["alpha=0.25"]},
        losses.DPO(0.3, losses.AlphaDivergence(0.25)),
    ),
    "first beta": ({"--loss": "ipo", "--beta": ["0.2", "0.4"]}, losses.IPO(0.2)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_one_named(name, tmp_path, solved_with):
    options, expected = LOSSES[name]
    assert swept(tmp_path / "sweep", RATIO, GRID, {"--loss": "ipo"}, options).exit_code == 0
    (flow, _), _ = solved_with[0]
    assert type(flow.loss) is type(expected)
    assert repr(flow.loss) == repr(expected)


@pytest.mark.parametrize("plane", [RATIO, LOG_RATIO], ids=["ratio", "log_ratio"])
def test_an_offset_is_that_of_the_plane(plane, tmp_path, solved_with):
    offset = {"--loss": "odpo", "--offset": "1.5"}
    assert swept(tmp_path / "sweep", plane, GRID, offset).exit_code == 0
    (((flow, _), _),) = solved_with
    assert float(flow.policy.offset) == 1.5


def test_a_store_tells_the_hyper_parameters_that_stood_in(tmp_path, solved_with):
    options = {"--loss": "conservative_dpo", "--beta": None, "--set": "label_smoothing=0.2"}
    options |= {"--until": "loss_below=0.6"}
    assert swept(tmp_path / "sweep", RATIO, GRID, options).exit_code == 0
    described = store.description(store.read(tmp_path / "sweep"))
    assert (described["loss"], described["beta"]) == ("conservative_dpo", [0.1])
    assert described["parameters"] == {"label_smoothing": 0.2}
    sft = {"--loss": "sft", "--beta": None}
    assert swept(tmp_path / "sft", RATIO, GRID, sft).exit_code == 0
    assert "beta" not in store.description(store.read(tmp_path / "sft"))


def test_a_sweep_of_another_loss_goes_where_its_closed_form_says(tmp_path):
    summed = {"--loss": "summed_ipo", "--beta": "0.1", "--until": "time=1"}
    assert swept(tmp_path / "sweep", LOG_RATIO, GRID, summed).exit_code == 0
    runs = store.read(tmp_path / "sweep")
    starts, ends = runs["starts"].values, runs["end"].values
    margin = starts[:, 0] - starts[:, 1]
    # L = (h − 1/(2β))², so that h' = −4(h − 5).
    expected = 5 + (margin - 5) * np.exp(-4)
    np.testing.assert_allclose(ends[:, 0] - ends[:, 1], expected, rtol=1e-5)


@pytest.fixture
def carded_with(monkeypatch: pytest.MonkeyPatch) -> list[tuple[losses.AbstractLoss, float]]:
    """What `cards.card` was asked for, which then computes nothing."""
    asked: list[tuple[losses.AbstractLoss, float]] = []

    def note(loss: losses.AbstractLoss, *, reach: float) -> cards.Card:
        asked.append((loss, reach))
        return made_up_card(loss, reach=reach)

    monkeypatch.setattr(cards, "card", note)
    return asked


def test_the_table_has_a_row_for_every_loss_of_the_catalogue(carded_with):
    result = flowlab_command("losses")
    assert result.exit_code == 0, result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.split("  ")[0] == "loss"
    assert {row.split()[0] for row in rows} == set(losses.CATALOGUE)
    assert len(rows) == len(losses.CATALOGUE)
    for row in rows:
        batch = row.startswith("aot")
        column = header.index("L(0)")
        assert row[column:].startswith("a loss of a batch" if batch else "0.25 ")
        assert row[column - 2 : column] == "  "
    assert {reach for _, reach in carded_with} == {cards.REACH}


def test_cards_are_written_as_json_too(carded_with, tmp_path):
    result = flowlab_command("losses", "--json", tmp_path / "cards.json", "--reach", "50")
    assert result.exit_code == 0, result.stderr
    written = json.loads((tmp_path / "cards.json").read_text("utf-8"))
    singles = [
        n for n, x in losses.CATALOGUE.items() if not isinstance(x, losses.AbstractBatchLoss)
    ]
    assert [card["name"] for card in written] == singles
    assert {card["reach"] for card in written} == {50.0}
    assert result.stdout.endswith(f"json: {tmp_path / 'cards.json'}\n")


def test_what_was_there_when_the_table_is_interrupted_is_printed(monkeypatch):
    def note(loss: losses.AbstractLoss, *, reach: float) -> cards.Card:
        if isinstance(loss, losses.IPO):
            raise KeyboardInterrupt
        return made_up_card(loss, reach=reach)

    monkeypatch.setattr(cards, "card", note)
    result = flowlab_command("losses")
    assert refusal(result, code=130) == "interrupted"
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names[1:3] == ["dpo", "dpo_forward_kl"]
    assert "ipo" not in names


@pytest.mark.parametrize("suffix", thinned(["png", "svg", "pdf"], {"svg"}))
def test_one_loss_is_described_and_drawn(suffix, carded_with, tmp_path):
    picture = tmp_path / f"ipo.{suffix}"
    asked = ("losses", "IPO", "--set", "beta=0.2", "--reach", "30", "--figure", picture)
    result = flowlab_command(*asked)
    assert result.exit_code == 0, result.stderr
    ((loss, reach),) = carded_with
    assert (repr(loss), reach) == (repr(losses.IPO(0.2)), 30.0)
    expected = cards.description(made_up_card(losses.IPO(0.2), reach=30.0))
    assert result.stdout == f"{expected}\n\nfigure: {picture}\n"
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert picture.read_bytes().startswith(begins[suffix])


def test_a_portrait_has_the_name_of_its_loss_unless_told(carded_with, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flowlab_command("losses", "ipo").stdout.endswith("figure: ipo.png\n")
    assert os.listdir(tmp_path) == ["ipo.png"]


NO_CARD = {
    "Option --set has no effect without the name of a loss.": ("--set", "beta=1"),
    "Option --figure has no effect without the name of a loss.": ("--figure", "x.png"),
    "Argument `NAME` must be one of dpo, ": ("mse",),
    "Option --set must name hyper-parameters of IPO": ("ipo", "--set", "tau=1"),
    "Option --set must be NAME=NUMBER, but is 'beta=much'.": ("ipo", "--set", "beta=much"),
    "Option --figure must end in .png, .svg, .pdf, but is x.gif.": ("ipo", "--figure", "x.gif"),
    "Option --figure must be a file in a folder that exists, but is a/x.png.": (
        "ipo",
        "--figure",
        "a/x.png",
    ),
    "Option --json must be a file, but . is a folder.": ("--json", "."),
    "Option --reach must be positive": ("ipo", "--reach", "-1"),
    "Option --reach must be positive and": ("--reach", "nan"),
    "Argument `NAME` must name losses of one pair, but aot": ("aot",),
}


@pytest.mark.parametrize("sentence", NO_CARD)
def test_what_has_no_card_is_refused_in_one_line(sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = flowlab_command("losses", *NO_CARD[sentence])
    assert refusal(result).startswith(sentence)
    assert result.stdout == ""
    assert os.listdir(tmp_path) == []


@pytest.fixture
def compared_with(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, dict[str, str]]]:
    calls: list[tuple[Path, dict[str, str]]] = []

    def compare(out: Path, named: dict[str, losses.AbstractLoss]) -> Any:
        calls.append((out, {name: repr(loss) for name, loss in named.items()}))
        return types.SimpleNamespace(summary=lambda: "dpo 10", folder=out)

    def unwanted(**options: Any) -> None:
        raise AssertionError(f"The study of the paper ran with {options}.")

    monkeypatch.setattr("flowlab.study.compare_losses", compare)
    monkeypatch.setattr("flowlab.study.run", unwanted)
    return calls


def test_a_study_compares_losses_with_every_beta_instead(tmp_path, compared_with):
    betas = ("--beta", "0.1", "--beta", "0.2")
    result = flowlab_command("study", "--losses", "dpo,sft", *betas, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["dpo 10", f"study: {tmp_path}"]
    named = {
        "dpo, β = 0.1": flowlab.DPO(0.1),
        "dpo, β = 0.2": flowlab.DPO(0.2),
        "sft": losses.SFT(),
    }
    assert compared_with == [(tmp_path, {name: repr(loss) for name, loss in named.items()})]


def test_all_losses_are_those_of_one_pair_with_their_own_betas(compared_with):
    assert flowlab_command("study", "--losses", "all").exit_code == 0
    ((_, named),) = compared_with
    assert set(losses.CATALOGUE) - set(named) == {"aot", "aot_unpaired"}
    assert named["simpo"] == repr(losses.SimPO())


NOT_COMPARED = {
    "--quick has no effect with --losses": ("dpo", "--quick"),
    "--float32 has no effect with --losses": ("dpo", "--float32"),
    "--log has no effect with --losses": ("dpo", "--log", LOG),
    "--log-beta has no effect with --losses": ("dpo", "--log-beta", "0.1"),
    "--losses must name losses of one pair, but aot is of a batch": ("dpo,aot",),
    "--losses must name each once, but is ['dpo', 'dpo']": ("dpo,dpo",),
    "--beta has no effect with --losses sft, which have no beta": ("sft", "--beta", "0.1"),
    "--beta must name each once, but is [0.1, 0.1]": (*("dpo", "--beta", "0.1", "--beta", "0.1"),),
    "--losses must be one of dpo, ": ("dpo,mse",),
}


@pytest.mark.parametrize("sentence", NOT_COMPARED)
def test_losses_that_cannot_be_compared_are_refused(sentence, compared_with):
    said = refusal(flowlab_command("study", "--losses", *NOT_COMPARED[sentence]))
    assert said.startswith(f"Option {sentence}")
    assert not compared_with
