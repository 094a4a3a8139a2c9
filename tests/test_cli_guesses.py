"""What people type by guess, and by mistake: understood, or answered with what was meant."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from command import LOG, ROOT, assert_same, flowlab_command, made_up, refusal
from grids import thinned

import flowlab
from flowlab import cli, ensemble, losses, measures, policies, store, until
from flowlab._names import did_you_mean, meant
from flowlab._options import OPTIONS
from flowlab.ensemble import Runs, kernel

PLAIN = {"loss": flowlab.DPO(), "policy": flowlab.RatioPlane(), "until": until.margin_above(2)}
LOG_RATIOS = {"policy": flowlab.LogRatioPlane(), "low": (-10, -10), "high": (10, 10)}
COUPLED: Any = [[1, 0.5], [0.5, 1]]


@pytest.fixture
def solved_with(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of every call of `ensemble.sweep`, which then solves nothing."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(*args: Any, **kwargs: Any) -> Runs:
        calls.append((args, kwargs))
        return made_up(args[1])

    monkeypatch.setattr(ensemble, "sweep", note)
    return calls


# What is typed behind `flowlab sweep dpo`, and how what is solved differs from that without it.
GUESSES: dict[str, dict[str, Any]] = {
    "": {},
    "--beta 0.3": {"loss": flowlab.DPO(0.3)},
    "--policy log-ratio": LOG_RATIOS,
    "--policy LogRatio": LOG_RATIOS,
    "--Policy log_ratio": LOG_RATIOS,
    "--kernel 1,0.5,1": {**LOG_RATIOS, "policy": policies.LogRatioPlane(COUPLED)},
    "--starts 10000": {"count": 10000},
    "--count 1e4": {"count": 10000},
    "--n 1e4": {"count": 10000},
    "--grid 32x16": {"shape": (32, 16)},
    "--count=10_000": {"count": 10000},
    "--starts 32x16": {"shape": (32, 16)},
    "--starts Grid": {"shape": (64, 64)},
    "--shape 32": {"shape": (32, 32)},
    "--shape 32,16": {"shape": (32, 16)},
    "--until loss<0.1": {"until": until.loss_below(0.1)},
    "--until loss=0.5,0.1": {"until": until.loss_below(0.5, 0.1)},
    "--until margin>3": {"until": until.margin_above(3)},
    "--until speed<=0.01 --time_limit 5": {"until": until.speed_below(0.01, time_limit=5)},
    "--until Time=3": {"until": until.time(3)},
    "--lower 0,0.5 --upper=0.5,1": {"low": (0, 0.5), "high": (0.5, 1)},
    "-beta 0.3": {"loss": flowlab.DPO(0.3)},
    "--domain Box --box_chosen 2": {"policy": flowlab.RatioPlane(flowlab.domains.Box(2))},
    "--measure path-length,dip": {"measures": (measures.path_length(), measures.dip())},
}


@pytest.mark.parametrize("words", GUESSES)
def test_a_guess_is_understood(words, tmp_path, monkeypatch, solved_with):
    monkeypatch.chdir(tmp_path)
    expected = {**PLAIN, "low": (0, 0), "high": (1, 1), "measures": (), **GUESSES[words]}
    result = flowlab_command("sweep", "dpo", *words.split())
    assert result.exit_code == 0, result.stderr
    (((flow, starts), options),) = solved_with
    assert_same(flow.loss, expected["loss"])
    assert_same(flow.policy, expected["policy"])
    assert_same(options["until"], expected["until"])
    for mine, wanted in zip(options["measures"], expected["measures"], strict=True):
        assert_same(mine, wanted)
    corners = expected["low"], expected["high"]
    if "shape" in expected:
        wanted = flowlab.starts.grid(expected["shape"], *corners)
    else:
        wanted = flowlab.starts.sobol(expected.get("count", 4096), *corners, seed=0)
    np.testing.assert_array_equal(starts, wanted)
    assert os.listdir(tmp_path) == ["dpo.zarr"]


@pytest.mark.parametrize("words", [("dpo,sft",), ("dpo", "SFT"), ("--loss", "dpo,sft")])
def test_several_losses_are_swept(words, tmp_path, monkeypatch, solved_with):
    monkeypatch.chdir(tmp_path)
    assert flowlab_command("sweep", *words, "--starts", "9").exit_code == 0
    losses_solved = {repr(flow.loss): len(starts) for (flow, starts), _ in solved_with}
    assert losses_solved == {"DPO(beta=0.1)": 9, "SFT()": 9}
    (written,) = os.listdir(tmp_path)
    assert written.lower() == "dpo-sft.zarr"


@pytest.mark.parametrize("betas", [("0.1,0.3",), ("0.1", "0.3"), ("0.1", "--beta", "0.3")])
def test_several_betas_are_swept(betas, tmp_path, solved_with):
    asked = ("sweep", "dpo", "--starts", "9", "--out", tmp_path / "it", "--beta", *betas)
    assert flowlab_command(*asked).exit_code == 0
    np.testing.assert_array_equal(store.read(tmp_path / "it")["beta"], [0.1, 0.3])


TYPOS = {
    "sweep simpoo": "Argument `LOSS` must be one of dpo, ; did you mean simpo?",
    "sweep --loss ip0": "Option --loss must be one of dpo, ; did you mean ipo?",
    "sweep dpo --bta 0.1": "No such option: --bta; did you mean --beta?",
    "sweep dpo beta=0.3": "No argument can be beta=0.3; did you mean --beta 0.3?",
    "sweep discopop --tau 1": "No such option: --tau; did you mean --set tau=...?",
    "sweep discopop --set tua=1": "Option --set must name ; did you mean tau?",
    "sweep dpo --policy rato": "Option --policy must be one of ; did you mean ratio?",
    "sweep dpo --starts sobl": "Option --starts must be one of ; did you mean sobol?",
    "sweep dpo --until los_below=1": "Option --until must be ; did you mean loss_below?",
    "sweep dpo --until margin<2": "Option --until must be ; did you mean margin_above?",
    "sweep dpo --measure slowst": "Option --measure must be one of ; did you mean slowest?",
    "sweep dpo --count 10.5": "Option --count must be a whole number, but is '10.5'.",
    "sweep dpo --lower 0": "Option --lower must be X Y, but is 0.",
    "sweep dpo --beta": "Option --beta must have a value, but has none.",
    "sweep dpo --beta --quiet": "Option --beta must have a value, but has none.",
    "sweep dpo --loss ipo": "Argument `LOSS` has no effect beside --loss.",
    "sweep dpo --out a.csv": (
        "Option --out must be a folder, but a.csv is the name of a file; leave out its ending, "
        ".csv."
    ),
    "swep dpo": "No such command 'swep'; did you mean sweep?",
    "help": "No such command 'help'; did you mean --help?",
    "policies": "No such command 'policies'; there are sweep, resume, ",
    "losses dpo,ipo": (
        "Argument `NAME` must be one loss, but names 2; compare them by flowlab study --losses "
        "dpo,ipo."
    ),
    "losses all": (
        "Argument `NAME` must be one loss, but is all; leave it out for the table of all losses."
    ),
    "portrait himelblau": (
        "Argument `LOSS` must be a loss or a classical potential, but is 'himelblau'; did you mean "
        "himmelblau?"
    ),
    "sweep dpo -o mine": "No such option: -o; did you mean --offset or --out or --overwrite?",
    "resume --store a": "No such option: --store; give the STORE without it.",
    "log --log a": (
        "No such option: --log; did you mean the file alone, as in flowlab log trainer_state.json?"
    ),
    "--verson": "No such option: --verson; did you mean --version?",
    "portrait aot": "Argument `LOSS` must be a loss of one pair",
    "portrait dpo ipo": "Argument `LOSS` must name one loss, but names dpo, ipo.",
    "portrait --potential bowll": "Option --potential must be one of ; did you mean bowl?",
    "portrait dpo --x 1": "Option --x must be LOW HIGH, but is 1.",
    "portrait dpo --beta 0.1,0.3": "Option --beta must be a number, but is '0.1,0.3'.",
    "losses sft --beta 0.1": "Option --beta has no effect with `NAME` sft, which has none.",
    "losses --beta 0.1": "Option --beta has no effect without the name of a loss.",
    "losses dpo --set beta=1 --beta 1": "Option --set must not name beta, which is --beta.",
    "losses simp": "Argument `NAME` must be one of dpo, ; did you mean simpo?",
    "displacement": "Option --loss must be given.",
    "displacement kt0": "Argument `LOSS` must be one of dpo, ; did you mean kto?",
    "study --out a.html": "Option --out must be a folder, but a.html is the name of a file",
    "show": "Argument `STORE` must be given.",
    "losses dpo IPO": (
        "Command losses takes no further argument, but is given IPO; did you mean flowlab study "
        "--losses dpo,IPO?"
    ),
    "study dpo": (
        "Command study takes no further argument, but is given dpo; did you mean flowlab study "
        "--losses dpo?"
    ),
    "doctor dpo": "Command doctor takes no further argument, but is given dpo.",
    "losses --loss dpo": (
        "No such option: --loss; did you mean the name alone, as in flowlab losses dpo?"
    ),
    "sweep dpo --x 0 1": "No such option: --x; did you mean --lower and --upper?",
    "portrait dpo --lower 0 0": "No such option: --lower; did you mean --x and --y?",
    "portrait dpo --until time=1": "No such option: --until, which is one of flowlab sweep.",
}


@pytest.mark.parametrize("words", TYPOS)
def test_a_mistake_is_answered_with_what_was_meant(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal(flowlab_command(*words.split()))
    begins, _, ends = TYPOS[words].partition(" ; ")
    assert said.startswith(begins)
    assert not ends or said.endswith(f"; {ends}")
    assert os.listdir(tmp_path) == []


def test_a_potential_is_a_portrait_by_its_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn: list[Any] = []
    monkeypatch.setattr(
        cli.report, "print_portrait", lambda flow, *_, picture, **__: drawn.append((flow, picture))
    )
    assert flowlab_command("portrait", "Mueller-Brown").exit_code == 0
    ((flow, picture),) = drawn
    assert (repr(flow.function), str(picture)) == ("MuellerBrown()", "Mueller-Brown.png")
    with_both = flowlab_command("portrait", "dpo", "--potential", "bowl")
    assert refusal(with_both) == "Argument `LOSS` has no effect with --potential."


def test_results_in_a_folder_are_replaced_only_where_that_is_asked_for(tmp_path):
    asked = ("log", LOG, "--beta", "0.1", "--out", tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("old")
    said = refusal(flowlab_command(*asked))
    assert said == (
        f"Option --out must be a new folder, but {tmp_path / 'mine'} holds earlier results; give "
        "another path, or replace it with --overwrite."
    )
    assert flowlab_command(*asked, "--overwrite").exit_code == 0
    assert (tmp_path / "mine" / "report.html").read_text("utf-8") != "old"


COMPLETED = {
    "sw": {"sweep"},
    "sweep dp": {name for name in losses.CATALOGUE if name.startswith("dp")},
    "sweep --policy ": set(OPTIONS["policy"].choices),
    "portrait --bas": {"--basins"},
}


@pytest.mark.parametrize("begun", thinned(COMPLETED, {"sweep dp", "portrait --bas"}))
def test_a_shell_completes_what_is_begun(begun):
    environment = {
        "_FLOWLAB_COMPLETE": "complete_bash",
        "COMP_WORDS": f"flowlab {begun}",
        "COMP_CWORD": str(len(f"flowlab {begun}".split(" ")) - 1),
    }
    answer = subprocess.run(
        [sys.executable, "-m", "flowlab"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert set(answer.stdout.split()) == COMPLETED[begun], answer.stderr


@pytest.mark.exhaustive
def test_a_sweep_becomes_a_kernel_for_every_chip():
    rows = flowlab_command("doctor").stdout.splitlines()
    for chip, precision in (("GPU", "float64"), ("TPU", "float32")):
        (row,) = (row for row in rows if row.startswith(f"on a {chip}"))
        assert f"one kernel, in {precision}" in row


def test_the_doctor_tells_what_there_is_and_what_a_chip_would_run(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = {"cuda": None, "tpu": "cholesky"}
    monkeypatch.setattr(kernel, "refusal", lambda *given: said[given[-1].platform])
    result = flowlab_command("doctor")
    assert result.exit_code == 0, result.stderr
    told = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    told = {name: text.strip() for name, text in told.items()}
    assert told["flowlab"] == flowlab.__version__
    assert told["devices"].startswith("cpu:0")
    assert "0 programs" in told["cache"] and str(tmp_path) in told["cache"]
    assert told["sweeps"].startswith("in blocks")
    assert told["on a GPU"].startswith("one kernel, in float64")
    assert told["on a TPU"].startswith("in blocks, because of cholesky, in float32")
    monkeypatch.setenv("FLOWLAB_NO_CACHE", "1")
    assert "none, by FLOWLAB_NO_CACHE" in flowlab_command("doctor").stdout


NEAR = {
    "DPOShift": "flowlab.losses.DPOShift",
    "dpo": "DPO",
    "SimPo": "flowlab.losses.SimPO",
    "RatioPlan": "RatioPlane or LogRatioPlane",
    "loss_below": "flowlab.until.loss_below",
}


@pytest.mark.parametrize("name", NEAR)
def test_a_name_that_is_elsewhere_is_pointed_to(name):
    with pytest.raises(AttributeError, match=f"{name!r}; did you mean {NEAR[name]}\\?$"):
        getattr(flowlab, name)


def test_a_name_that_is_nowhere_near_is_only_refused():
    for name in ("zzz", "_repr_html_"):
        with pytest.raises(AttributeError, match=f"has no attribute {name!r}$"):
            getattr(flowlab, name)


def test_a_name_is_meant_however_it_is_written_and_asked_about_where_it_is_near():
    assert meant("Log Ratio", ["ratio", "log_ratio"]) == "log_ratio"
    assert meant("log", ["ratio", "log_ratio"]) is None
    assert did_you_mean("rato", ["ratio", "log_ratio"]) == "; did you mean ratio?"
    assert did_you_mean("halton", ["grid", "sobol", "uniform", "latin"]) == ""
