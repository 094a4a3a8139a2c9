"""Refusals of the command: entries of plans and places, named as they were written."""

from typing import Any

from command import GRID, RATIO, flowlab_command, refusal, swept


def test_an_entry_of_a_plan_is_named_as_it_is_written(tmp_path):
    plan = tmp_path / "plan.toml"
    begun = 'loss = "dpo"\npolicy = "ratio"\nstarts = "sobol"\ncount = 9\n'
    begun += "lower = [0.1, 0.1]\nupper = [1, 1]\n"
    for written, sentence in {
        'until = "loss_below=0.1"\nblock = 0': "entry `block` must be a positive int, but is 0.",
        "until = {near = 0.1}": 'entry `until` must hold texts such as near = "loss_below=0.1", '
        "but holds near = 0.1.",
    }.items():
        plan.write_text(begun + written)
        result = flowlab_command("sweep", "--plan", plan, "--out", tmp_path / "s")
        assert refusal(result) == f"The plan {plan}: {sentence}"


def test_a_place_that_cannot_be_written_is_a_failure_that_names_the_option(tmp_path, monkeypatch):
    def cannot(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", cannot)
    for result, option, name in (
        (swept(tmp_path / "new" / "s", RATIO, GRID), "--out", "new/s"),
        (flowlab_command("study", "--out", tmp_path / "s"), "--out", "s"),
        (flowlab_command("losses", "dpo", "--json", tmp_path / "s"), "--json", "s"),
    ):
        said = refusal(result, code=1)
        assert said.startswith(("Option", "Argument"))
        assert said.endswith(
            f" must be in a folder that can be written, but is {tmp_path / name}, and {tmp_path} "
            "cannot be written: Permission denied."
        ), said
        assert option in said
