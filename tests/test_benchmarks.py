"""The benchmarks: each is listed, can be run by itself, and names the device of its results."""

import ast
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flowlab.until import Outcome

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("[!_]*.py"))
RESULTS = sorted((FOLDER / "results").glob("*.json"))
# What a machine with an accelerator need not have: for stores, plots, the cluster and the command.
NOT_FOR_SWEEPS = ("xarray", "zarr", "matplotlib", "dask", "distributed", "filelock", "typer")


def readme() -> str:
    return (FOLDER / "README.md").read_text("utf-8")


def test_the_table_lists_the_scripts_and_nothing_else():
    assert SCRIPTS
    assert sorted(re.findall(r"^\| `(\w+\.py)` \|", readme(), re.MULTILINE)) == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_its_main_and_only_when_it_is_the_program(script):
    tree = ast.parse((FOLDER / script).read_text("utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    guards = [ast.unparse(node) for node in tree.body if isinstance(node, ast.If)]
    assert "main" in functions
    assert guards == ["if __name__ == '__main__':\n    main()"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_can_be_tried_on_a_small_problem(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert not ended.value.code
    told = capsys.readouterr().out
    assert "--smoke" in told
    assert "--out" in told


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_its_script_and_its_device_and_is_spoken_of(path):
    result = json.loads(path.read_text("utf-8"))
    assert f"{result['benchmark']}.py" in SCRIPTS
    assert result["machine"]["device"]
    assert f"`results/{path.name}`" in readme()


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("accelerator")


@pytest.mark.exhaustive
def test_accelerator_without_what_is_for_stores_and_plots_and_without_time(tmp_path):
    out = tmp_path / "result.json"
    options = ["accelerator.py", "--smoke", "--budget", "0", "--out", str(out)]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({NOT_FOR_SWEEPS!r}))\n"
        "import accelerator; assert accelerator.same_bits('float32', 64).passed\n"
        f"sys.argv = {options!r}; accelerator.main()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(FOLDER)])}
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 1, answer.stderr  # for nothing was checked
    result = json.loads(out.read_text("utf-8"))
    assert set(result["checks_wanted"]) < set(result["left_out"])
    assert answer.stdout.splitlines()[-1].endswith("NO check was carried out.")


def test_accelerator_exits_with_1_where_a_check_fails(accelerator, monkeypatch, capsys):
    def wrong():
        raise RuntimeError("not on this device")

    def plan(log, size, *, smoke):
        yield accelerator._check(log, "refused", "float64", wrong)
        yield accelerator.Task("a speed", "speed", wrong)

    monkeypatch.setattr(accelerator, "plan", plan)
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--smoke", "--budget", "1e6"])
    with pytest.raises(SystemExit) as stopped:
        accelerator.main()
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "- a speed: failed with RuntimeError: not on this device" in printed
    assert printed.endswith("1 of 1 checks FAILED: refused (float64).\n")


@pytest.mark.parametrize(
    ("speed", "free", "words"),
    [(1.0, None, "it would take about"), (1e12, 10**9, "it needs 11.2 GiB of memory, and 0.9 GiB")],
)
def test_a_sweep_without_room_is_left_out_and_says_why(
    accelerator, monkeypatch, speed, free, words
):
    monkeypatch.setattr(accelerator, "free_memory", lambda: free)
    log = accelerator.Log(time.perf_counter() + 1000)
    row = {"way": accelerator.SWEEP, "problem": "ratio", "dtype": "float64", "rtol": 1e-6}
    log.speeds.append({**row, "starts_per_s": speed, "compile_s": 0.0})
    task = accelerator._sweep_of_very_many(log, accelerator.ON_CPU, "float64", 1e-6)
    accelerator.carry_out([task], log)
    assert not log.checks
    assert log.left_out[task.name].startswith(words)


def test_accelerator_gives_up_on_what_outlasts_its_budget(accelerator):
    released = threading.Event()
    tasks = [
        accelerator.Task("endless", "speed", lambda: released.wait(60)),
        accelerator.Task("next", "speed", lambda: None),
    ]
    log = accelerator.Log(time.perf_counter() + 0.2)
    assert not accelerator.within_budget(tasks, log)
    assert log.left_out == {"endless": accelerator.CUT, "next": accelerator.NO_TIME}
    released.set()


@pytest.mark.parametrize("name", ["median_error", "largest_error"])
@pytest.mark.parametrize(("error", "passed"), [(0.9, True), (1.1, False), (float("inf"), False)])
def test_errors_are_judged_by_the_tolerance(accelerator, name, error, passed):
    limits = {"median_error": 1e-5, "largest_error": 1e-4}
    errors = dict.fromkeys(limits, 0.0) | {name: error * limits[name]}
    assert accelerator.judged_errors(errors, 1e-6).passed is passed


def test_the_record_of_a_cpu_says_how_it_is_made_and_holds_many_outcomes():
    record = json.loads((FOLDER / "_accelerator_cpu.json").read_text("utf-8"))
    assert "accelerator.py --write-cpu-outcomes" in record["about"]
    assert record["machine"]["device"].startswith("CPU")
    ended = {row[1] for rows in record["cases"].values() for row in rows}
    assert ended == {o.name for o in Outcome} - {"running", "step_limit", "left_domain"}
