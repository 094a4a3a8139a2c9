"""`flowlab log`: in words, as JSON, as a page; what it refuses it refuses in one line."""

import json
from pathlib import Path

import pytest
from command import LOG, flowlab_command, refusal

DATA = Path(__file__).parent / "data"
ORPO = DATA / "log_orpo.json"


def told(*asked):
    result = flowlab_command("log", *asked)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_log_is_told_in_words_of_at_most_88_columns():
    said = told(LOG, "--beta", "0.1")
    assert "In short: the chosen responses became less likely" in said
    assert "ρ = −0.52, between −0.59 and −0.44" in " ".join(said.split())
    assert "{" not in said and "  \n" not in said
    assert max(map(len, said.splitlines())) <= 88


def test_json_is_one_object_for_one_log_and_a_list_for_several():
    one = json.loads(told(LOG, "--beta", "0.1", "--json"))
    assert one["loss"] == "dpo" and one["displacement"]["falls"] is True
    two = json.loads(told(LOG, DATA / "log_stuck.json", "--beta", "0.1", "--json"))
    assert [each["moved"] for each in two] == [True, False]


def test_a_loss_is_named_with_its_hyper_parameters():
    asked = ("--loss", "conservative_dpo", "--set", "label_smoothing=0.2", "--json")
    found = json.loads(told(LOG, "--beta", "0.1", *asked))
    assert found["loss"] == "conservative_dpo"
    assert found["rest"] == pytest.approx(13.8629, rel=1e-5)  # log(0.8/0.2)/0.1
    assert found["loss_assumed"] is False


def test_a_page_is_written_to_a_folder_and_named(tmp_path):
    said = told(LOG, "--beta", "0.1", "--out", tmp_path / "out")
    assert said.endswith(f"report: {tmp_path / 'out' / 'report.html'}\n")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"training_{view}.{end}" for view in ("plane", "steps") for end in ("png", "svg")}
    assert names == {"report.html", "diagnosis.json", *pictures}


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ((DATA / "none.json",), "Argument `FILE...` must name a training log, but "),
        ((DATA / "log_llamafactory.jsonl",), "give the trainer_state.json of a preference run"),
        ((LOG, "--set", "tau=1"), "Option --set has no effect without --loss."),
        ((LOG, "--loss", "nonsense"), "Option --loss must be one of dpo, "),
        ((LOG, "--loss", "aot"), "Option --loss must name losses of one pair, but aot is"),
        ((LOG, "--loss", "dpo", "--set", "beta=1"), "must not name beta, which is --beta."),
        ((ORPO, "--loss", "dpo"), "Option --loss must be a loss without a reference, such as"),
        (
            (LOG, "--loss", "simpo"),
            "Option --loss must be a loss with a reference, such as DPO, but",
        ),
        ((LOG, "--beta", "0.2"), "Option --beta must be given once, but is [0.2, 0.1]."),
        ((LOG, "--out", LOG), "Option --out must be a folder, but "),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_in_one_line(asked, sentence):
    assert sentence in refusal(flowlab_command("log", *asked, "--beta", "0.1"))


@pytest.mark.parametrize("beta", ["0", "-1", "nan", "inf"])
def test_a_beta_that_is_not_positive_is_refused(beta):
    message = refusal(flowlab_command("log", LOG, "--beta", beta))
    assert message == f"Option --beta must be positive and finite, but is {beta}."
