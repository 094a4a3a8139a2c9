"""The command: it writes what the library gives, and what it refuses it refuses in one line."""

import os
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import (
    CORNERS,
    GRID,
    LOG,
    LOG_RATIO,
    RATIO,
    ROOT,
    UNIFORM,
    assert_same,
    flowlab_command,
    made_up,
    refusal,
    swept,
)
from typer.testing import Result

import flowlab
from flowlab import domains, ensemble, exact, logs, measures, plots, policies, store, until
from flowlab.plans import running


def table(result: Result) -> list[list[str]]:
    """The words of each line on stdout."""
    return [line.split() for line in result.stdout.splitlines()]


def test_a_sweep_writes_what_the_closed_form_gives(tmp_path):
    both = {"--beta": ["0.1", "0.3"], "--measure": ["path_length:u", "slowest"], "--audit": "0.5"}
    result = swept(tmp_path / "sweep", RATIO, GRID, both)
    assert result.exit_code == 0, result.stderr
    runs = store.read(tmp_path / "sweep")
    np.testing.assert_array_equal(runs["beta"], [0.1, 0.3])
    for beta in (0.1, 0.3):
        true = exact.ratio_plane_time(runs["starts"].values, beta, level=0.1)
        np.testing.assert_allclose(runs["time"].sel(beta=beta), true, rtol=1e-4)
    assert runs["starts"].dtype == runs["time"].dtype == np.float64
    rows = table(result)
    assert ["reached", "beta", "0.1", "12", "100.0%"] in rows
    assert ["quantiles", "starts", "min", "5", "%", "median", "95", "%", "max"] in rows
    for first in (["path_length_u", "beta", "0.3", "12"], ["slowest_speed", "beta", "0.1", "12"]):
        assert [row for row in rows if row[:4] == first]
    assert [row for row in rows if row[:5] == "slowest_state beta 0.1, component 2".split()]
    assert "audit: 12 runs at rtol 1.0e-08" in result.stdout
    assert result.stdout.rstrip().endswith(f"store: {tmp_path / 'sweep'}")


@pytest.mark.exhaustive
def test_a_sweep_says_what_the_boundary_absorbed_and_what_domain_starts_lie_outside_of(tmp_path):
    late = {"--until": "time=100", "--domain": "box", "--upper": ("1.2", "1.2")}
    result = swept(tmp_path / "sweep", RATIO, GRID, late)
    assert result.exit_code == 0, result.stderr
    runs = store.read(tmp_path / "sweep")
    absorbed = (runs["outcome"].values == until.Outcome.at_wall) & (runs["end"].values[:, 1] == 0)
    assert np.any(absorbed)
    told = f"at_wall: {np.sum(absorbed)} absorbed by the boundary (x_rejected = 0) at times "
    assert told in result.stdout and "until.boundary()" in result.stdout
    assert "\noutside_domain: the domain is the box (0, 1] × (0, 1]\n" in result.stdout


def test_a_store_tells_how_its_sweep_was_asked_for(tmp_path, solved_with):
    options = {"--domain": "box", "--rtol": "1e-7", "--measure": ["change:u"]}
    assert swept(tmp_path / "sweep", RATIO, UNIFORM, options).exit_code == 0
    assert store.description(store.read(tmp_path / "sweep")) == {
        "loss": "dpo",
        "beta": [0.3],
        "policy": "ratio",
        "domain": "box",
        "wall": "stop",
        "starts": "uniform",
        "count": 5,
        "seed": 0,
        "lower": [0.0, 0.0],
        "upper": [1.0, 1.0],
        "until": "loss_below=0.1",
        "clock": "margin",
        "rtol": 1e-7,
        "measure": ["change:u"],
        "audit": 0.0,
        "dtype": "float64",
        "block": 5,  # of its starts, by which it can grow
    }


def test_show_prints_the_description_the_outcomes_and_the_quantiles(tmp_path, solved_with):
    assert swept(tmp_path / "sweep", LOG_RATIO, UNIFORM).exit_code == 0
    shown = flowlab_command("show", tmp_path / "sweep")
    assert shown.exit_code == 0, shown.stderr
    for line in (
        f"flowlab {flowlab.__version__}",
        "policy: log_ratio",
        "clock: margin",
        "lower: [-2.0, -1.0]",
        "reached 5 100.0%",
        "time 5 1.5 1.5 1.5 1.5 1.5",
    ):
        assert line.split() in table(shown), shown.stdout


def test_starts_without_a_value_are_left_out_of_the_quantiles(tmp_path):
    runs = made_up(np.ones((4, 2))).to_xarray()
    runs["time"][:] = [np.nan, 1.0, 2.0, 3.0]
    store.write(runs, tmp_path / "sweep")
    shown = table(flowlab_command("show", tmp_path / "sweep"))
    assert ["time", "3", "1", "1.1", "2", "2.9", "3"] in shown
    runs["time"][:] = np.nan
    store.write(runs, tmp_path / "sweep", overwrite=True)
    assert ["time", "0"] in table(flowlab_command("show", tmp_path / "sweep"))


@pytest.mark.parametrize("policy", [RATIO, LOG_RATIO], ids=["ratio", "log_ratio"])
def test_show_draws_a_map_of_a_grid(policy, tmp_path, solved_with):
    assert swept(tmp_path / "sweep", policy, GRID).exit_code == 0
    shown = flowlab_command("show", tmp_path / "sweep", "--figure", tmp_path / "map.png")
    assert shown.exit_code == 0, shown.stderr
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert f"figure: {tmp_path / 'map.png'}" in shown.stdout


@pytest.mark.parametrize(
    ("policy", "axes"), [("ratio", plots.RATIOS), ("log_ratio", plots.LOG_RATIOS)]
)
def test_a_map_has_the_starts_where_they_lie(policy, axes, tmp_path, monkeypatch):
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "map_of", lambda values, **names: drawn.append((values, names)))
    runs = made_up(flowlab.starts.grid((2, 3), (0, 1), (4, 7))).to_xarray(grid=False)
    runs["time"] = 10 * runs["starts"][:, 0] + runs["starts"][:, 1]
    shape = {"shape": [2, 3], "lower": [0, 1], "upper": [4, 7], "policy": policy}
    store.write(runs, tmp_path / "sweep", description={"starts": "grid", **shape})
    shown = flowlab_command("show", tmp_path / "sweep", "--figure", tmp_path / "map.png")
    assert shown.exit_code == 0, shown.stderr
    ((values, names),) = drawn
    np.testing.assert_array_equal(values, [[12, 14, 16], [32, 34, 36]])
    assert (names["x"], names["y"], names["names"]) == ((0, 4), (1, 7), axes)


def test_a_map_of_what_is_no_grid_or_has_no_time_is_refused(tmp_path, solved_with):
    assert swept(tmp_path / "sweep", RATIO, UNIFORM).exit_code == 0
    shown = flowlab_command("show", tmp_path / "sweep", "--figure", tmp_path / "map.png")
    assert refusal(shown) == "Option --figure has no effect unless the starts lie in a plane."
    runs = made_up(np.ones((4, 2)), time=np.nan)
    described = {"starts": "grid", "shape": [2, 2], "lower": [0, 0], "upper": [1, 1]}
    store.write(runs, tmp_path / "sweep", description=described, overwrite=True)
    shown = flowlab_command("show", tmp_path / "sweep", "--figure", tmp_path / "map.png")
    assert refusal(shown) == "Option --figure has no effect where no start reached the target."
    assert not (tmp_path / "map.png").exists()


def test_show_refuses_what_is_no_store_of_a_sweep(tmp_path):
    (tmp_path / "file").write_text("")
    assert "does not exist" in refusal(flowlab_command("show", tmp_path / "nothing"))
    assert "is a file" in refusal(flowlab_command("show", tmp_path / "file"))
    assert "is another folder" in refusal(flowlab_command("show", tmp_path))
    store.write(made_up(np.ones((4, 2))).to_xarray().drop_vars("time"), tmp_path / "store")
    assert "lacks `time`" in refusal(flowlab_command("show", tmp_path / "store"))


TARGETS = {
    "loss_below=0.1": until.loss_below(0.1),
    "loss_below=0.5,0.1": until.loss_below(0.5, 0.1),
    "margin_above=-2": until.margin_above(-2),
    "speed_below=0.01": until.speed_below(0.01),
    "time=1.5": until.time(1.5),
    "boundary": until.boundary(),
}


@pytest.mark.parametrize("text", TARGETS)
def test_a_target_is_the_one_named(text, tmp_path, solved_with):
    assert swept(tmp_path / "sweep", RATIO, GRID, {"--until": text}).exit_code == 0
    ((_, options),) = solved_with
    assert_same(options["until"], TARGETS[text])


def test_a_time_limit_is_that_of_the_target(tmp_path, solved_with):
    for number, text in enumerate(["boundary", "loss_below=0.1", "speed_below=0.1"]):
        limited = {"--until": text, "--time-limit": "3"}
        assert swept(tmp_path / str(number), RATIO, GRID, limited).exit_code == 0
        assert solved_with[-1][1]["until"].time_limit == 3


MEASURES = {
    "path_length": measures.path_length(),
    "path_length:u": measures.path_length("u"),
    "dwell=0.1": measures.dwell(0.1),
    "dwell=0.1:x": measures.dwell(0.1, of="x"),
    "slowest:u": measures.slowest("u"),
    "margin_zero": measures.margin_zero(),
    "change": measures.change(),
    "rate_ratio:u": measures.rate_ratio("u"),
}


def test_measures_are_those_named(tmp_path, solved_with):
    named = {"--measure": list(MEASURES)}
    assert swept(tmp_path / "sweep", RATIO, GRID, named).exit_code == 0
    ((_, options),) = solved_with
    for mine, expected in zip(options["measures"], MEASURES.values(), strict=True):
        assert_same(mine, expected)


POLICIES = {
    "quadrant": ({}, policies.RatioPlane()),
    "box": ({"--domain": "box"}, policies.RatioPlane(domains.Box())),
    "wide box": (
        {"--domain": "box", "--box-chosen": "2", "--box-rejected": "3", "--wall": "slide"},
        policies.RatioPlane(domains.Box(2, 3), wall="slide"),
    ),
    "simplex": (
        {"--domain": "simplex", "--ref-prob-chosen": "0.2", "--ref-prob-rejected": "0.3"},
        policies.RatioPlane(domains.Simplex(0.2, 0.3)),
    ),
    "log-ratio plane": ({"--policy": "log_ratio", **CORNERS}, policies.LogRatioPlane()),
    "kernel": (
        {"--policy": "log_ratio", "--kernel": "2,-0.5,1", **CORNERS},
        policies.LogRatioPlane([[2, -0.5], [-0.5, 1]]),  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_the_one_described(name, tmp_path, solved_with):
    options, expected = POLICIES[name]
    assert swept(tmp_path / "sweep", RATIO, GRID, options).exit_code == 0
    (((flow, _), _),) = solved_with
    assert_same(flow.policy, expected)
    assert_same(flow.loss, flowlab.DPO(0.3))


def test_starts_are_those_of_the_library(tmp_path, solved_with):
    low, high = (-2.0, -1.0), (0.0, 1.0)
    expected = {
        "grid": flowlab.starts.grid((3, 4), low, high),
        "sobol": flowlab.starts.sobol(5, low, high, seed=7),
        "uniform": flowlab.starts.uniform(5, low, high, seed=7),
        "latin": flowlab.starts.latin(5, low, high, seed=7),
    }
    for name, points in expected.items():
        given = GRID if name == "grid" else {"--starts": name, "--count": "5", "--seed": "7"}
        assert swept(tmp_path / name, LOG_RATIO, given).exit_code == 0
        found = solved_with[-1][0][1]
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, points)


def test_further_options_reach_the_sweep(tmp_path, solved_with, monkeypatch):
    options = {"--rtol": "1e-4", "--atol": "1e-9", "--clock": "arc_length", "--block-size": "64"}
    monkeypatch.setattr(running, "_audit", lambda plan, work: None)
    result = swept(tmp_path / "a", RATIO, GRID, options, {"--audit": "0.2"}, flags=("--float32",))
    assert result.exit_code == 0
    (((_, starts), found),) = solved_with
    assert starts.dtype == np.float32
    assert {name: found[name] for name in ("rtol", "atol", "clock", "block_size")} == {
        "rtol": 1e-4,
        "atol": 1e-9,
        "clock": "arc_length",
        "block_size": 64,
    }
    described = store.description(store.read(tmp_path / "a"))
    assert (described["dtype"], described["domain"]) == ("float32", "quadrant")
    assert described["audit"] == 0.2


def test_a_quiet_sweep_says_nothing(tmp_path, solved_with):
    result = swept(tmp_path / "sweep", RATIO, GRID, flags=("--quiet",))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert solved_with[0][1]["progress"] is False
    assert store.read(tmp_path / "sweep").sizes["start"] == 12


def test_a_store_is_replaced_only_where_that_is_asked_for(tmp_path, solved_with):
    assert swept(tmp_path / "sweep", RATIO, GRID).exit_code == 0
    said = refusal(swept(tmp_path / "sweep", RATIO, UNIFORM))
    assert said.startswith("Option --out must be free or hold this plan, but ")
    assert said.endswith("; give another path, or replace the store by --overwrite.")
    assert len(solved_with) == 1, "what cannot be written was solved"
    assert swept(tmp_path / "sweep", RATIO, UNIFORM, flags=("--overwrite",)).exit_code == 0
    assert store.read(tmp_path / "sweep").sizes["start"] == 5


IDLE = {
    "--kernel has no effect with --policy ratio": {"--kernel": "1,0,1"},
    "--domain has no effect with --policy log_ratio": {**LOG_RATIO, "--domain": "box"},
    "--wall has no effect without --domain box or simplex": {"--wall": "stop"},
    "--box-chosen has no effect without --domain box": {"--box-chosen": "1"},
    "--box-rejected has no effect without --domain box": {"--box-rejected": "1"},
    "--ref-prob-chosen has no effect without --domain simplex": {"--ref-prob-chosen": "1"},
    "--ref-prob-rejected has no effect with --domain box": {
        "--domain": "box",
        "--ref-prob-rejected": "1",
    },
    "--count has no effect with --starts grid": {"--count": "3"},
    "--seed has no effect with --starts grid": {"--seed": "3"},
    "--shape has no effect with --starts latin": {"--starts": "latin"},
    "--time-limit has no effect with --until time": {"--until": "time=1", "--time-limit": "2"},
    "--beta must name each once, but is [0.3, 0.3]": {"--beta": ["0.3", "0.3"]},
    "--beta has no effect with --loss sft, which has none": {"--loss": "sft"},
    "--set must not name beta, which is --beta": {"--set": "beta=1"},
    "--offset has no effect with --loss dpo": {"--offset": "1"},
    "--offset must be given with --loss odpo": {"--loss": "odpo"},
}


@pytest.mark.parametrize("sentence", IDLE)
def test_an_option_without_effect_and_one_that_is_missing_are_refused(
    sentence, tmp_path, solved_with
):
    result = swept(tmp_path / "sweep", RATIO, GRID, IDLE[sentence])
    assert refusal(result) == f"Option {sentence}."
    assert not solved_with


WRONG = {
    "No such option: --bogus": {"--bogus": "1"},
    "Option --loss must be given, or --plan instead": {"--loss": None},
    "Option --loss must be one of dpo, dpo_forward_kl, ": {"--loss": "mse"},
    "Option --set must name hyper-parameters of IPO (beta, ": {"--loss": "ipo", "--set": "tau=1"},
    "Option --set must be NAME=NUMBER, but is 'tau'.": {"--loss": "discopop", "--set": "tau"},
    "Option --set must set numbers, but divergence is not a number.": {"--set": "divergence=1"},
    "Option --set must name hyper-parameters, but names 'name'.": {"--set": "name=1"},
    "Option --set must not name tau twice.": {"--loss": "discopop", "--set": ["tau=1", "tau=2"]},
    "Option --set label_smoothing must lie in [0, ": {
        "--loss": "cdpo",
        "--set": "label_smoothing=2",
    },
    "Option --beta must be a number, but is 'much'.": {"--beta": "much"},
    "Option --until must be loss_below=L, ": {"--until": "tomorrow"},
    "Option --until must be loss_below=L": {"--until": "loss_below"},
    "Option --until must be": {"--until": "boundary=1"},
    "Option --until must be loss_below=L, margin_above=H, speed_below=V, time=T or boundary, but "
    "is '{policy}'.": {"--until": "{policy}"},
    "Option --until must hold comma-separated numbers, but holds 'low'.": {
        "--until": "loss_below=low"
    },
    "Option --until must have one number after time=, but is 'time=1,2'.": {"--until": "time=1,2"},
    "Option --kernel must be three numbers KWW,KWL,KLL, but is '1,2'.": {
        **LOG_RATIO,
        "--kernel": "1,2",
    },
    "Option --kernel must hold comma-separated numbers": {**LOG_RATIO, "--kernel": "a,b,c"},
    "Option --measure must be one of path_length, ": {"--measure": "beauty"},
    "Option --measure must be one of": {"--measure": ":u"},
    "Option --measure must have a speed after dwell=, ": {"--measure": "dwell"},
    "Option --measure must have a speed after dwell=": {"--measure": "change=3"},
    "Option --measure must have no space for margin_zero": {"--measure": "margin_zero:u"},
    "Option --measure must hold comma-separated numbers": {"--measure": "dwell=slow"},
    "Option --measure must be": {"--measure": "path_length:y"},
    "Option --beta must be positive": {"--beta": "-1"},
    "Option --beta must be positive and finite, but is -1": {"--beta": ["0.3", "-1"]},
    "Option --until must be strictly decreasing": {"--until": "loss_below=0.1,0.5"},
    "Option --kernel must be positive semidefinite": {**LOG_RATIO, "--kernel": "1,2,1"},
    "Option --box-chosen must be positive and finite": {"--domain": "box", "--box-chosen": "-1"},
    "Option --upper must be above --lower": {"--lower": ("0", "2")},
    "Option --rtol must lie between": {"--rtol": "2"},
    "Option --audit must lie between 0 and 1": {"--audit": "2"},
    "Option --block-size must be a positive int": {"--block-size": "0"},
    "Option --clock must be one of": {"--until": "boundary", "--clock": "loss"},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_wrong_value_is_refused_in_one_line(sentence, tmp_path):
    assert refusal(swept(tmp_path / "sweep", RATIO, GRID, WRONG[sentence])).startswith(sentence)
    assert os.listdir(tmp_path) == []


def test_a_wrong_command_or_option_is_refused_in_one_line():
    assert refusal(flowlab_command("swep")).startswith("No such command 'swep'")
    assert refusal(flowlab_command("--bogus")).startswith("No such option: --bogus")


def test_what_fails_while_it_runs_is_one_line_and_another_exit_code(
    tmp_path, monkeypatch, solved_with
):
    def cannot(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission\ndenied")

    monkeypatch.setattr(store.BlockStore, "write", cannot)
    result = swept(tmp_path / "sweep", RATIO, GRID)
    assert refusal(result, code=1) == (
        "OSError: [Errno 13] Permission denied; 0 of 1 blocks are done; "
        f"resume with `flowlab resume {tmp_path / 'sweep'}`"
    )


def test_an_interrupted_sweep_says_so(tmp_path, monkeypatch):
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ensemble, "sweep", interrupted)
    stopped = refusal(swept(tmp_path / "sweep", RATIO, GRID), code=130)
    assert stopped == "interrupted: nothing was written; start again"
    assert os.listdir(tmp_path) == []


@pytest.fixture
def studied_with(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def run(**options: Any) -> Any:
        calls.append(options)
        return types.SimpleNamespace(summary=lambda: "C1 holds", folder=options["out"])

    monkeypatch.setattr("flowlab.study.run", run, raising=False)
    return calls


def test_a_study_runs_with_what_was_asked_for_and_prints_its_summary(tmp_path, studied_with):
    asked = ("--quick", "--float32", "--beta", "0.1", "--beta", "0.3", "--out", tmp_path)
    result = flowlab_command("study", *asked, "--log", LOG, "--log-beta", "0.1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["C1 holds", f"study: {tmp_path}"]
    (options,) = studied_with
    log = options.pop("log")
    assert isinstance(log, logs.TrainingLog)
    assert (log.path, log.beta) == (LOG, 0.1)
    assert options == {
        "out": tmp_path,
        "betas": (0.1, 0.3),
        "quick": True,
        "dtype": np.float32,
        "progress": None,
    }


def test_a_study_has_defaults(studied_with):
    assert flowlab_command("study").exit_code == 0
    assert studied_with == [
        {
            "out": Path("study"),
            "betas": None,
            "quick": False,
            "log": None,
            "dtype": np.float64,
            "progress": None,
        }
    ]


def test_a_log_and_its_beta_come_together(studied_with, tmp_path):
    alone = flowlab_command("study", "--log", LOG)
    assert refusal(alone) == "Option --log must come with --log-beta."
    alone = flowlab_command("study", "--log-beta", "0.1")
    assert refusal(alone) == "Option --log-beta must come with --log."
    missing = flowlab_command("study", "--log", tmp_path / "log.json", "--log-beta", "0.1")
    assert "does not exist" in refusal(missing)
    folder = flowlab_command("study", "--log", tmp_path, "--log-beta", "0.1")
    assert "is a directory" in refusal(folder)
    assert not studied_with


def test_the_version_names_what_results_depend_on():
    result = flowlab_command("--version")
    assert result.exit_code == 0
    names = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    assert set(names) == {"flowlab", "python", "jax", "diffrax", "devices"}
    assert names["flowlab"] == flowlab.__version__
    assert names["diffrax"] == metadata.version("diffrax")
    assert names["devices"].startswith("cpu:0")


@pytest.mark.parametrize("command", [(), ("sweep",), ("show",), ("losses",), ("study",)])
def test_help_tells_the_exit_codes(command):
    result = flowlab_command(*command, "--help")
    assert result.exit_code == 0
    told = " ".join(result.stdout.split())
    for words in ("0 done", "1 a failure", "2 a wrong option", "130 interrupted"):
        assert words in told


def test_help_loads_no_library_that_computes_or_draws():
    answer = run(
        "import sys, flowlab.cli\n"
        "try: flowlab.cli.app(['sweep', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    loaded = {name.split(".")[0] for name in answer.stderr.split()}
    assert {"flowlab", "typer"} <= loaded
    heavy = {"jax", "numpy", "scipy", "xarray", "zarr", "matplotlib", "diffrax", "equinox", "tqdm"}
    assert not loaded & heavy
    assert "--until" in answer.stdout


def test_a_process_ends_with_the_exit_code(tmp_path):
    command = [sys.executable, "-m", "flowlab", "show", str(tmp_path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("flowlab: Argument `STORE` must name a store")
    assert answer.stderr.count("\n") == 1


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
