"""The benchmarks: each is listed, can be run by itself, and names the device of its results."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("[!_]*.py"))
RESULTS = sorted((FOLDER / "results").glob("*.json"))


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
def test_a_script_can_be_tried_on_a_small_problem(script):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(FOLDER / script), "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    assert "--smoke" in answer.stdout
    assert "--out" in answer.stdout


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_its_script_and_its_device_and_is_spoken_of(path):
    result = json.loads(path.read_text("utf-8"))
    assert f"{result['benchmark']}.py" in SCRIPTS
    assert result["machine"]["device"]
    assert f"`results/{path.name}`" in readme()
