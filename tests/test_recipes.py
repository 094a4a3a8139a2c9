"""Plans from files and from the command line, and what the command says of a store."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import GRID, LOG_RATIO, RATIO, UNIFORM, flowlab_command, refusal, swept

from flowlab import domains, losses, plans, policies, store
from flowlab.plans import running
from flowlab.store import BlockStore
from flowlab.store.blocks import Block

PLAN = """
loss = ["dpo", "ipo"]
beta = [0.1, 0.3]
until = ["loss_below=0.2", "time=0.5"]
measure = ["path_length:u"]
rtol = 1e-5
starts = "sobol"
count = 20
lower = [0.1, 0.1]
upper = [0.4, 0.4]
seed = 5

[policies.free]
policy = "ratio"

[policies.held]
policy = "ratio"
domain = "simplex"
wall = "slide"
"""


def written(tmp_path: Path, text: str = PLAN) -> Path:
    file = tmp_path / "plan.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_becomes_the_product_of_what_it_lists(tmp_path):
    plan = plans.from_toml(written(tmp_path))
    assert plan.axes == {
        "loss": ["dpo", "ipo"],
        "policy": ["free", "held"],
        "beta": [0.1, 0.3],
        "target": ["loss_below=0.2", "time=0.5"],
    }
    assert plan.starts == plans.DrawnStarts("sobol", 20, (0.1, 0.1), (0.4, 0.4), 5)
    flow: Any = plan.flow((1, 1, 1, 0))
    assert isinstance(flow.loss, losses.IPO)
    assert isinstance(flow.policy, policies.RatioPlane)
    assert isinstance(flow.policy.domain, domains.Simplex)
    assert flow.loss.beta == 0.3


def test_a_recipe_that_was_stored_makes_the_same_plan():
    plan = plans.from_recipe(
        {"loss": "dpo", "policy": "ratio", "starts": "grid", "shape": [3, 4], "until": "time=1"}
    )
    assert plan.recipe is not None
    again = plans.from_recipe(plan.recipe)
    assert again.described() == plan.described()
    assert again.recipe == plan.recipe
    assert plan.recipe["clock"] == "arc_length"


def test_a_loss_alone_is_a_recipe_and_corners_are_those_of_its_plane(tmp_path):
    plan = plans.from_recipe({"loss": "dpo"})
    assert plan.starts == plans.DrawnStarts("sobol", 4096, (0.0, 0.0), (1.0, 1.0), 0)
    assert plan.recipe is not None and plan.recipe["until"] == "margin_above=2"
    on_logarithms = plans.from_recipe({"loss": "dpo", "kernel": "2,1,2", "shape": [3, 4]})
    assert on_logarithms.starts == plans.DrawnStarts("grid", (3, 4), (-10.0,) * 2, (10.0,) * 2)
    of_tables = {"policies": {"a": {"policy": "Log-Ratio"}, "b": {"kernel": "2,1,2"}}}
    assert plans.from_recipe({"loss": "dpo", **of_tables}).starts == plans.DrawnStarts(
        "sobol", 4096, (-10.0,) * 2, (10.0,) * 2
    )


def test_targets_can_have_names_and_parameters_be_listed(tmp_path):
    text = (
        'loss = "conservative_dpo"\npolicy = "ratio"\nstarts = "grid"\nshape = [2, 2]\n'
        '[until]\nnear = "loss_below=0.6"\nfar = "loss_below=0.55"\n'
        "[parameters]\nlabel_smoothing = [0.1, 0.2]\n"
    )
    plan = plans.from_toml(written(tmp_path, text))
    assert plan.axes == {"label_smoothing": [0.1, 0.2], "target": ["near", "far"]}


WRONG: dict[str, tuple[str, str]] = {
    "no TOML": ("loss = ", "is not TOML"),
    "an unknown entry": (
        "loss = 'dpo'\nbetta = 1",
        "entry `betta` is unknown; there are loss, beta, ",
    ),
    "no loss": ("beta = 0.1", "entry `loss` must be given"),
    "an unknown loss": (PLAN.replace('"ipo"', '"ippo"'), "entry `loss`.*ippo"),
    "a loss twice": (PLAN.replace('"ipo"', '"dpo"'), "entry `loss` must name each once"),
    "an entry that is idle": (
        PLAN.replace('domain = "simplex"\n', ""),
        "entry `wall` has no effect without `domain` box or simplex",
    ),
    "an unknown domain": (PLAN.replace('"simplex"', '"sphere"'), "`domain` must be one of"),
    "a policy beside policies": (f'policy = "ratio"\n{PLAN}', "`policy` has no effect beside"),
    "an unknown target": (PLAN.replace("time=0.5", "soon"), "entry `until` must be loss_below"),
    "a beta that is a word": (
        PLAN.replace("0.1, 0.3]\nuntil", '"a"]\nuntil'),
        "entry `beta` must be numbers, but is",
    ),
    "a starts that is none": (PLAN.replace('"sobol"', '"halton"'), "`starts` must be one of"),
    "an entry that is nearly known": (
        "loss = 'dpo'\nlowr = [0, 0]",
        "entry `lowr` is unknown; .*; did you mean lower",
    ),
    "corners of different planes": (
        PLAN.replace("lower = [0.1, 0.1]\n", "") + "[policies.logarithms]\npolicy = 'log_ratio'\n",
        "entry `lower` must be given if `policies` names policies of different planes",
    ),
    "a number that is a word": (
        PLAN.replace("rtol = 1e-5", "rtol = 'a'"),
        "`rtol` must be a number",
    ),
    "a list that is a word": (
        PLAN.replace('["path_length:u"]', '"dip"'),
        "`measure` must be a list of texts, but is 'dip'",
    ),
    "a corner of one number": (
        PLAN.replace("lower = [0.1, 0.1]", "lower = [0.1]"),
        "`lower` must be two numbers",
    ),
    "a count that is no whole number": (
        PLAN.replace("count = 20", "count = 2.5"),
        "`count` must be a whole number, but is 2.5",
    ),
    "parameters without values": (
        f"{PLAN}[parameters]\nlabel_smoothing = []\n",
        "`parameters` must be a table of numbers, or of lists of them",
    ),
    "a beta out of range": (PLAN.replace("0.1, 0.3]\nuntil", "-1.0]\nuntil"), "`beta` must be pos"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_wrong_is_refused_in_its_own_words(name, tmp_path):
    text, sentence = WRONG[name]
    with pytest.raises(ValueError, match=sentence) as caught:
        plans.from_toml(written(tmp_path, text))
    assert "--" not in str(caught.value)
    assert str(caught.value).startswith("The plan ")


def test_a_recipe_that_is_wrong_is_refused_in_the_words_of_recipes():
    recipe = {"loss": "dpo", "policy": "ratio", "starts": "grid", "shape": [2, 2]}
    with pytest.raises(ValueError, match="Entry `loss` must be given."):
        plans.from_recipe({**recipe, "loss": None})
    idle = {**recipe, "until": "time=1", "box_chosen": 2.0}
    with pytest.raises(ValueError, match="Entry `box_chosen` has no effect without `domain` box."):
        plans.from_recipe(idle)


def test_there_must_be_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="The plan .* does not exist"):
        plans.from_toml(tmp_path / "plan.toml")


def planned(*more: Any, plan: Path, out: Path) -> Any:
    return flowlab_command("sweep", "--plan", plan, "--out", out, *more)


def test_a_planned_sweep_is_solved_told_and_drawn(tmp_path):
    few = PLAN.replace('["dpo", "ipo"]', '["dpo"]').replace(', "time=0.5"', "")
    few = few.partition("[policies.held]")[0]
    done = planned(plan=written(tmp_path, few), out=tmp_path / "s")
    assert done.exit_code == 0, done.output
    assert "40 runs: about" in done.stderr
    found = store.read(tmp_path / "s")
    assert found["time"].dims == ("loss", "policy", "beta", "target", "start")
    line = "reached  loss dpo, policy free, beta 0.1, target loss_below=0.2"
    assert line.split() in [row.split()[:-2] for row in done.stdout.splitlines()]
    told = flowlab_command("status", tmp_path / "s")
    assert told.stdout.splitlines()[:2] == ["blocks: 2 of 2 done", "runs: 40 of 40"]
    shown = flowlab_command("show", tmp_path / "s", "--figure", tmp_path / "map.png")
    assert shown.exit_code == 0, shown.stderr
    assert (tmp_path / "map.png").stat().st_size > 10_000
    work = BlockStore.open(tmp_path / "s")
    work.forget(Block((0, 0, 1, 0), 0))
    before = found["time"].values.tobytes()
    again = flowlab_command("resume", tmp_path / "s", "--quiet")
    assert again.exit_code == 0, again.output
    assert work.missing() == []
    assert store.read(tmp_path / "s")["time"].values.tobytes() == before


def test_an_unfinished_store_is_shown_as_far_as_it_is(tmp_path):
    assert swept(tmp_path / "s", RATIO, GRID, {"--store-block": "6"}).exit_code == 0
    runs = store.read(tmp_path / "s")
    layout = store.layout_of(runs.drop_vars([n for n in runs if "block_" in str(n)]), {}, 12, 6)
    half = BlockStore.create(tmp_path / "half", layout, dict(runs.attrs))
    half.write(Block((), 0), runs.isel(start=slice(6)), 0.1)
    shown = flowlab_command("show", tmp_path / "half")
    assert shown.exit_code == 0, shown.output
    rows = [row.split() for row in shown.stdout.splitlines()]
    assert "(not yet solved) 6 50.0%".split() in rows
    assert "reached 6 50.0%".split() in rows
    told = flowlab_command("status", tmp_path / "half").stdout.splitlines()
    assert told[:3] == ["blocks: 1 of 2 done", "runs: 6 of 12", "reached: 6"]


def test_a_dry_run_tells_what_it_will_take_and_writes_nothing(tmp_path):
    told = swept(tmp_path / "s", RATIO, GRID, flags=("--dry-run",))
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("12 runs: about ")
    assert not (tmp_path / "s").exists()


def test_a_dry_run_of_what_does_not_fit_ends_with_that_sentence(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    told = swept(tmp_path / "s", RATIO, GRID, flags=("--dry-run",))
    assert told.exit_code == 2
    assert told.stderr.splitlines()[-1].endswith("of disk, but 100 bytes are free.")
    assert swept(tmp_path / "s", RATIO, GRID, flags=("--dry-run", "--force")).exit_code == 0


def test_options_beside_a_plan_or_without_one_are_refused(tmp_path):
    plan = written(tmp_path)
    beside = planned("--beta", "0.3", plan=plan, out=tmp_path / "s")
    assert refusal(beside) == "Option --beta has no effect with --plan; put it into that file."
    nothing = flowlab_command("sweep", "--out", tmp_path / "s")
    assert refusal(nothing) == "Option --loss must be given, or --plan instead."


def test_a_sweep_that_is_asked_for_again_is_resumed_and_another_is_refused(tmp_path):
    assert swept(tmp_path / "s", RATIO, GRID).exit_code == 0
    first = store.read(tmp_path / "s")["time"].values
    assert swept(tmp_path / "s", RATIO, GRID).exit_code == 0
    np.testing.assert_array_equal(store.read(tmp_path / "s")["time"], first)
    other = refusal(swept(tmp_path / "s", RATIO, GRID, {"--rtol": "1e-8"}))
    assert "--rtol is missing in the store and 1e-08 here" in other
    assert (
        swept(tmp_path / "s", RATIO, GRID, {"--rtol": "1e-8"}, flags=("--overwrite",)).exit_code
        == 0
    )


def test_a_sweep_whose_store_is_being_written_is_refused(tmp_path):
    with running._alone(tmp_path / "s"):
        assert "another process is writing" in refusal(swept(tmp_path / "s", RATIO, GRID), code=1)


@pytest.mark.exhaustive
def test_a_store_without_a_recipe_cannot_be_resumed_by_the_command(tmp_path):
    plan = plans.Plan(
        np.full((3, 2), 0.5),
        loss=losses.DPO(0.1),
        policy=policies.RatioPlane(),
        until=plans.from_recipe(
            {"loss": "dpo", "policy": "ratio", "starts": "grid", "shape": [1, 1], "until": "time=1"}
        ).target(()),
    )
    plans.run(plan, tmp_path / "s", progress=False)
    assert "was made in Python" in refusal(flowlab_command("resume", tmp_path / "s"))
    for command in ("resume", "status"):
        assert "must name a store" in refusal(flowlab_command(command, tmp_path / "nothing"))


@pytest.mark.exhaustive
def test_the_means_over_cells_are_drawn_for_starts_that_are_no_grid(tmp_path):
    for plane, starts in ((RATIO, UNIFORM), (LOG_RATIO, {**UNIFORM, "--count": "40"})):
        out = tmp_path / f"{plane['--policy']}"
        assert swept(out, plane, starts).exit_code == 0
        picture = tmp_path / f"{out.name}.png"
        shown = flowlab_command("show", out, "--figure", picture)
        assert shown.exit_code == 0, shown.output
        assert picture.stat().st_size > 10_000
