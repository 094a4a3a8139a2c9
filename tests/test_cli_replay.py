"""`flowlab replay`: a run beside its log; settings that do not fit; what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import flowlab_command, refusal

DATA = Path(__file__).parent / "data"
REVERSAL = DATA / "reversal"
SGD = DATA / "dpo_beta0.1_similar_sft300_sgd_lr0.001.json"
ROWS = 12
ASKED = {"--model": REVERSAL, "--data": REVERSAL / "pairs.jsonl", "--log": SGD, "--beta": 0.1}
PLAIN = {"--optimiser": "sgd", "--max-grad-norm": 0}


def asked(**options: Any) -> list[Any]:
    named = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return ["replay", *(word for pair in {**ASKED, **named}.items() for word in pair)]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the log of SGD, in a file."""
    held = json.loads(SGD.read_text("utf-8"))
    held["log_history"] = held["log_history"][:ROWS]
    path = tmp_path_factory.mktemp("log") / "trainer_state.json"
    path.write_text(json.dumps(held))
    return path


def run_of(short: Path, *words: Any, **options: Any) -> Any:
    plain = [word for pair in PLAIN.items() for word in pair]
    return flowlab_command(*asked(log=short, **options), *plain, *words)


def test_a_run_is_carried_out_again_and_compared_step_by_step(short: Path, tmp_path: Path) -> None:
    result = run_of(short, "--json", "--out", tmp_path / "out", keep_every=6)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["is_replay"] is True and told["doubts"] == []
    assert told["largest_deviation"] < 1e-5
    assert told["series"]["step"] == list(range(1, ROWS + 1))
    assert [row["step"] for row in told["pairs"]] == [0, 6, 12]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"replay.json", "replay.txt", "pairs.npz", "replay.png", "replay.svg"}
    said = (tmp_path / "out" / "replay.txt").read_text("utf-8")
    assert "This is the run of the log again" in said
    assert max(map(len, said.splitlines())) <= 100
    lines = [line.split() for line in said.splitlines()]
    assert [words[0] for words in lines if words and words[0].isdigit()] == ["6", "12"]
    assert said.count("    chosen:   the answer is ") == 5


@pytest.mark.exhaustive
def test_a_run_with_other_settings_is_called_another(short: Path) -> None:
    result = run_of(short, seed=43, keep_every=6)
    assert result.exit_code == 0, result.stderr
    assert "The batch of step 1 has 480 tokens in the log" in result.stderr
    assert "This is not the run of the log again, but another" in result.stdout
    assert "The batch of step 1 has 480 tokens" in " ".join(result.stdout.split())


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A checkpoint with a small vocabulary, and the tokenizer of another."""
    folder = tmp_path / "strange"
    shutil.copytree(DATA / "models" / "llama", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REVERSAL / name, folder)
    return folder


def test_a_tokenizer_that_does_not_fit_is_refused(strange: Path) -> None:
    said = refusal(flowlab_command(*asked(model=strange)))
    assert said == (
        "Option --data must have tokens from 0 to 12, the vocabulary of the model, but has 0 to "
        "41: make them with the tokenizer of the model."
    )


def test_a_checkpoint_of_another_family_is_refused(strange: Path) -> None:
    (strange / "config.json").write_text('{"model_type": "bert"}')
    said = refusal(flowlab_command(*asked(model=strange)))
    assert said.startswith('Option --model must have a config.json with "gpt2" or "llama"')


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(model="nowhere"), "Option --model must be the folder of a checkpoint with a"),
        (dict(reference="nowhere"), "Option --reference must be the folder of a checkpoint, but"),
        (dict(data="none.jsonl"), "Option --data must be a file of preferences, but none.jsonl"),
        (dict(max_length=3), "Option --data must have a pair whose responses are not cut off"),
        (dict(log=DATA / "log_orpo.json"), "Option --log must have steps and log-ratios, but "),
        (dict(log="none.json"), "Option --log must name a training log, but none.json does not"),
        (dict(schedule="linear"), "Option --schedule has no effect without --learning-rate."),
        (dict(set="tau=1"), "Option --set has no effect without --loss."),
        (dict(learning_rate=-1), "Option --learning-rate must be finite and at least 0, but is"),
        (dict(adam_betas=(0.9, 2)), "Option --adam-betas must lie in [0, 1), but is 2.0."),
        (dict(out=SGD), "Option --out must be a folder, but "),
        (dict(beta=-1), "Option --beta must be positive and finite, but is -1."),
        (dict(checkpoint="nowhere/run.npz"), "Option --checkpoint must be a file in a folder"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_in_one_line(options: dict[str, Any], sentence: str) -> None:
    words = [
        part for word in asked(**options) for part in (word if isinstance(word, tuple) else (word,))
    ]
    assert sentence in refusal(flowlab_command(*words))


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ("", "Option --data must have responses with tokens, but "),
        (None, "Option --data must have a text or a conversation as `chosen` in each row, but "),
    ],
)
def test_rows_without_a_response_are_refused(
    chosen: str | None, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "six ", "chosen": chosen, "rejected": "four"}))
    assert refusal(flowlab_command(*asked(data=path))).startswith(sentence)
