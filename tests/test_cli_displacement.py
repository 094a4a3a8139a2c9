"""The command that maps where the chosen log-probability falls."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import LOG_RATIO, UNIFORM, flowlab_command, made_up, refusal, swept

from flowlab import displacement, ensemble, losses, plots

FILES = {"displacement.json", "displacement.png", "displacement.svg", "table.txt"}


@pytest.fixture
def mapped_with(monkeypatch: pytest.MonkeyPatch) -> list[tuple[losses.AbstractLoss, dict]]:
    """What `displacement.displacement` was asked for, which then solves nothing."""
    calls: list[tuple[losses.AbstractLoss, dict]] = []

    def note(loss: losses.AbstractLoss, **options: Any) -> displacement.Displacement:
        calls.append((loss, options))
        return made_up_map(loss, options)

    monkeypatch.setattr(displacement, "displacement", note)
    monkeypatch.setattr(plots, "displacements", lambda found: plots.panels())
    return calls


def made_up_map(loss: losses.AbstractLoss, options: dict) -> displacement.Displacement:
    margins, ratios = np.asarray(options["margins"]), np.asarray(options["ratios"])
    zeros = np.zeros((len(ratios), len(margins)))
    return displacement.Displacement(
        loss=loss,
        starts=np.stack([margins / 2, -margins / 2], axis=1),
        ratios=ratios,
        rejected=options["rejected"],
        time=options["time"] or 7.0,
        boundary=np.ones(len(margins)),
        rate=zeros,
        dip_depth=zeros + np.linspace(0, 1, len(margins)),
        dip_time=zeros + 2,
        recovery_time=zeros + np.nan,
        change_chosen=zeros,
        change_margin=zeros,
        end_time=zeros + 7,
        outcome=zeros.astype(np.int32) + 1,
    )


def asked(*words: Any, out: Path) -> Any:
    return flowlab_command("displacement", *words, "--out", out)


def test_a_map_a_table_and_the_numbers_are_written(tmp_path):
    folder = tmp_path / "new" / "folder"
    words = ("--loss", "dpo", "--beta", "0.5", "--cells", "5", "--margins", "-4", "4")
    result = asked(*words, "--time", "30", out=folder)
    assert result.exit_code == 0, result.stderr
    assert set(os.listdir(folder)) == FILES
    assert (folder / "displacement.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "displacement.svg").read_bytes().startswith(b"<?xml")
    text = (folder / "table.txt").read_text("utf-8")
    assert result.stdout == f"{text}\ndisplacement: {folder}\n"
    (record,) = json.loads((folder / "displacement.json").read_text("utf-8"))
    wanted = displacement.displacement(
        losses.DPO(0.5),
        margins=np.linspace(-4, 4, 5),
        ratios=displacement.default_ratios(count=5),
        time=30.0,
    )
    np.testing.assert_array_equal(record["dip_depth"], wanted.dip_depth)
    assert text == displacement.table({"dpo": wanted}) + "\n"


def test_losses_hyper_parameters_and_the_grid_are_those_asked_for(mapped_with, tmp_path):
    words = ("--loss", "dpo,ipo", "--beta", "0.2", "--rejected-kernel", "0.5", "--cells", "4")
    assert asked(*words, out=tmp_path).exit_code == 0
    assert [repr(loss) for loss, _ in mapped_with] == [repr(losses.DPO(0.2)), repr(losses.IPO(0.2))]
    for _, options in mapped_with:
        np.testing.assert_array_equal(options["margins"], np.linspace(-20, 20, 4))
        edges = np.linspace(-0.4, np.sqrt(0.5), 5)
        np.testing.assert_allclose(options["ratios"], (edges[1:] + edges[:-1]) / 2)
        assert (options["rejected"], options["time"]) == (0.5, None)
    # What the command wrote it replaces where that is asked for.
    one = ("--loss", "conservative_dpo", "--set", "label_smoothing=0.2")
    assert "holds earlier results" in refusal(asked(*one, out=tmp_path))
    one = (*one, "--overwrite")
    assert asked(*one, out=tmp_path).exit_code == 0
    assert repr(mapped_with[-1][0]) == repr(losses.ConservativeDPO(label_smoothing=0.2))
    counts = [len(mapped_with[-1][1][name]) for name in ("margins", "ratios")]
    assert counts == [61, 32]
    (record,) = json.loads((tmp_path / "displacement.json").read_text("utf-8"))
    assert record["name"] == "conservative_dpo"


def test_what_was_there_when_the_maps_are_interrupted_is_kept(monkeypatch, tmp_path):
    def note(loss: losses.AbstractLoss, **options: Any) -> displacement.Displacement:
        if isinstance(loss, losses.IPO):
            raise KeyboardInterrupt
        return made_up_map(loss, options)

    monkeypatch.setattr(displacement, "displacement", note)
    result = asked("--loss", "dpo", "--loss", "ipo", out=tmp_path)
    assert refusal(result, code=130) == "interrupted"
    (record,) = json.loads((tmp_path / "displacement.json").read_text("utf-8"))
    assert record["name"] == "dpo"


NOT_MAPPED = {
    "Option --loss must be one of dpo, ": ("--loss", "mse"),
    "Option --loss must name losses of one pair, but aot is of a batch": ("--loss", "aot"),
    "Option --loss must name each once": ("--loss", "dpo", "--loss", "dpo"),
    "Option --set must name hyper-parameters of dpo, ipo, but names tau": (
        *("--loss", "dpo", "--loss", "ipo", "--set", "tau=0.1"),
    ),
    "Option --set must not name beta": ("--loss", "dpo", "--set", "beta=1"),
    "Option --set must name hyper-parameters of DPO": ("--loss", "dpo", "--set", "tau=1"),
    "Option --beta has no effect with --loss sft": ("--loss", "sft", "--beta", "0.1"),
    "Option --rejected-kernel must be positive": ("--loss", "dpo", "--rejected-kernel", "0"),
    "Option --margins must be LOW HIGH": ("--loss", "dpo", "--margins", "2", "1"),
    "Option --time must be positive": ("--loss", "dpo", "--time", "-1"),
    "Option --beta must be positive": ("--loss", "dpo", "--beta", "-1"),
    "Option --loss must be given": (),
    "Option --cells must be at least 2": ("--loss", "dpo", "--cells", "1"),
}


@pytest.mark.parametrize("sentence", NOT_MAPPED)
def test_what_cannot_be_mapped_is_refused_in_one_line(sentence, tmp_path):
    said = refusal(asked(*NOT_MAPPED[sentence], out=tmp_path))
    assert said.startswith(sentence)
    assert os.listdir(tmp_path) == []


def test_nothing_but_an_earlier_map_is_overwritten(mapped_with, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    said = refusal(asked("--loss", "dpo", out=tmp_path))
    assert said.startswith("Option --out must be a new folder, an empty one or one with earlier")
    assert refusal(asked("--loss", "dpo", out=tmp_path / "thesis.tex")).endswith("is a file.")
    assert os.listdir(tmp_path) == ["thesis.tex"]
    assert not mapped_with


def test_a_sweep_can_measure_dips(tmp_path, monkeypatch):
    measured = []

    def note(flow: Any, points: Any, **options: Any) -> Any:
        measured.extend(name for one in options["measures"] for name in one.names)
        return made_up(points)

    monkeypatch.setattr(ensemble, "sweep", note)
    options = {"--kernel": "1,1.1,1.5", "--measure": ["dip"]}
    assert swept(tmp_path / "sweep", LOG_RATIO, UNIFORM, options).exit_code == 0
    assert measured == ["dip_depth", "dip_time", "recovery_time"]
    said = refusal(swept(tmp_path / "other", LOG_RATIO, UNIFORM, {"--measure": ["dip:u"]}))
    assert said.startswith("Option --measure must have no space for dip")
