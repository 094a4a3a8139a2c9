"""Preference data against the tokens of TRL; and what is no such data."""

import dataclasses
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import assert_refused

from flowlab import data
from flowlab.descent import hf_order

DATA = Path(__file__).parent / "data"
REVERSAL = DATA / "reversal"
GOLDEN = json.loads((DATA / "pairs.json").read_text("utf-8"))["cases"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


NAMES = ("prompts", "cut", "implied prompts", "conversations", "implied prompts of conversations")


@pytest.mark.parametrize("case", GOLDEN, ids=NAMES)
def test_tokens_are_those_of_trl(case: dict[str, Any], file: Path) -> None:
    folder = shutil.copytree(REVERSAL, file.parent / "model")
    if "chat_template" in case:
        (folder / "chat_template.jinja").write_text(case["chat_template"], "utf-8")
    pairs = data.preferences(written(file, case["rows"]), folder, max_length=case["max_length"])
    # TRL has all chosen responses first, then all rejected ones.
    np.testing.assert_array_equal(np.concatenate(pairs.tokens.swapaxes(0, 1)), case["input_ids"])
    mask = np.concatenate(pairs.mask.swapaxes(0, 1))
    np.testing.assert_array_equal(mask, case["completion_mask"])
    np.testing.assert_array_equal(pairs.lengths, pairs.mask.sum(-1))


def test_the_texts_of_a_pair_are_those_of_its_row() -> None:
    pairs = data.preferences(REVERSAL / "pairs.jsonl", REVERSAL)
    lines = (REVERSAL / "pairs.jsonl").read_text("utf-8").splitlines()
    row = json.loads(lines[int(pairs.rows[7])])
    told = pairs.texts(7)
    assert {side: text.strip() for side, text in told.items()} == {
        side: row[side].removesuffix("<eos>").strip() for side in ("prompt", "chosen", "rejected")
    }
    wanted = [f"    {side + ':':9} {text.strip()}" for side, text in told.items()]
    assert pairs.excerpt(7).splitlines() == wanted
    with pytest.raises(ValueError, match="These pairs have no tokenizer"):
        dataclasses.replace(pairs, tokenizer=None).texts(7)


def test_rows_whose_prompt_fills_the_length_are_left_out(file: Path) -> None:
    rows = GOLDEN[1]["rows"]
    pairs = data.preferences(written(file, rows), REVERSAL, max_length=14)
    assert pairs.rows.tolist() == [0, 1, 2, 3] and len(rows) == 5
    assert repr(pairs) == "Pairs(4 pairs, up to 14 tokens)"


def test_all_pairs_are_as_many_tokens_as_the_trainer_counted() -> None:
    pairs = data.preferences(REVERSAL / "pairs.jsonl", REVERSAL)
    log = json.loads((DATA / "dpo_beta0.1_similar_sft300_sgd_lr0.001.json").read_text("utf-8"))
    counted = [row["num_tokens"] for row in log["log_history"] if "num_tokens" in row]
    ends = np.max(np.where(pairs.mask, np.arange(pairs.mask.shape[-1]) + 1, 0), axis=-1)
    steps = hf_order(len(pairs), 12, 16)
    assert np.cumsum([ends[step].sum() for step in steps]).tolist() == counted


def test_parquet_is_read_as_lines_are(file: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    rows = GOLDEN[0]["rows"]
    table = file.with_suffix(".parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), table)
    found = data.preferences(table, REVERSAL)
    wanted = data.preferences(written(file, rows), REVERSAL)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    table.write_bytes(b"no table")
    with pytest.raises(ValueError, match="`path` must be a file of parquet, but .* cannot be read"):
        data.preferences(table, REVERSAL)


WANTED = "have a text or a conversation as `{}` in each row"
SAID = [{"role": "assistant", "content": "one"}]
GOOD = {"prompt": "sort the list ", "chosen": "one", "rejected": "two"}


@pytest.mark.parametrize(
    ("row", "wanted", "found"),
    [
        ({"chosen": "one"}, WANTED.format("rejected"), "has none in row 1"),
        (GOOD | {"prompt": 3}, WANTED.format("prompt"), "has none in row 1"),
        ("text", WANTED.format("prompt"), "has none in row 1"),
        (GOOD | {"chosen": [{"role": "user"}]}, WANTED.format("chosen"), "has none in row 1"),
        (GOOD | {"chosen": SAID}, "have texts or conversations in a row", "has both in row 1"),
        (GOOD | {"tools": [{}]}, "have no tools in its conversations", "has tools in row 1"),
        (
            GOOD | {"chosen": ""},
            "have responses with tokens",
            "has an empty chosen response in row 1",
        ),
        (GOOD | {"prompt": " "}, "have prompts with tokens", "has none in row 1"),
    ],
)
def test_rows_that_are_no_preferences_are_refused(
    row: Any, wanted: str, found: str, file: Path
) -> None:
    assert_refused(
        data.preferences,
        f"Argument `path` must {wanted}, but {file} {found}.",
        written(file, [GOOD, row]),
        REVERSAL,
    )


def test_files_that_are_no_preferences_are_refused(file: Path) -> None:
    assert_sentence = partial(assert_refused, data.preferences)
    assert_sentence(
        f"Argument `path` must be a file of preferences, but {file} is not one.", file, REVERSAL
    )
    cut = "have a pair whose responses are not cut off"
    assert_sentence(
        f"Argument `path` must {cut}, but {file} is empty.", written(file, []), REVERSAL
    )
    assert_sentence(
        f"Argument `path` must {cut}, but {file} has prompts of 3 tokens or more alone.",
        *(written(file, [GOOD]), REVERSAL),
        max_length=3,
    )
    assert_sentence(
        "Argument `max_length` must be an int of at least 2, but is 1.",
        file,
        REVERSAL,
        max_length=1,
    )
    file.write_text(json.dumps(GOOD) + "\n{", "utf-8")
    with pytest.raises(ValueError, match="must hold JSON lines, but .* has none in line 2: "):
        data.preferences(file, REVERSAL)
    file.write_bytes(b"\xff\xfe\xff")
    assert_sentence(
        f"Argument `path` must be a file of JSON lines, but {file} is not valid UTF-8.",
        file,
        REVERSAL,
    )


def test_folders_without_a_tokenizer_are_refused(tmp_path: Path, file: Path) -> None:
    assert_sentence = partial(assert_refused, data.preferences, path=written(file, [GOOD]))
    assert_sentence(
        "Argument `tokenizer` must be the folder of a checkpoint with a tokenizer.json, but "
        f"{tmp_path} has none.",
        tokenizer=tmp_path,
    )
    shutil.copy(REVERSAL / "tokenizer.json", tmp_path)
    wanted = "name a token of its vocabulary as `eos_token` in tokenizer_config.json"
    described = tmp_path / "tokenizer_config.json"
    assert_sentence(
        f"Argument `tokenizer` must {wanted}, but the one in {tmp_path} names None.",
        tokenizer=tmp_path,
    )
    described.write_text('{"eos_token": "<other>"}', "utf-8")
    assert_sentence(
        f"Argument `tokenizer` must {wanted}, but the one in {tmp_path} names '<other>'.",
        tokenizer=tmp_path,
    )
    described.write_text("{", "utf-8")
    with pytest.raises(ValueError, match=r"must hold a tokenizer_config\.json in JSON, but"):
        data.preferences(file, tmp_path)
    described.write_text('{"eos_token": {"content": "<eos>"}}', "utf-8")
    assert data.preferences(file, tmp_path).tokens[0, 0, -1] == 1
    (tmp_path / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(ValueError, match="must hold a tokenizer, but the one in .* cannot be read"):
        data.preferences(file, tmp_path)


def test_templates_are_rendered_in_a_sandbox_and_refused_where_they_fail(file: Path) -> None:
    folder = shutil.copytree(REVERSAL, file.parent / "model")
    rows = [{"prompt": SAID, "chosen": SAID, "rejected": SAID}]
    read = partial(data.preferences, written(file, rows), folder)
    assert_refused(
        read,
        "Argument `tokenizer` must have a chat template, for data with conversations, but there is "
        "neither a chat_template.jinja nor an entry in tokenizer_config.json.",
    )
    described = folder / "tokenizer_config.json"
    for source, reason in (
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ raise_exception('no users') }}", "no users"),
    ):
        several = [{"name": "tools", "template": ""}, {"name": "default", "template": source}]
        for held in (source, several):
            described.write_text(json.dumps({"eos_token": "<eos>", "chat_template": held}), "utf-8")
            with pytest.raises(ValueError, match=f"that takes the conversations, .*{reason}"):
                read()
    described.write_text(json.dumps({"eos_token": "<eos>", "chat_template": "{% if"}), "utf-8")
    with pytest.raises(
        ValueError, match="must have a chat template in jinja2, but the one in .* is"
    ):
        read()


def test_what_is_not_installed_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        data.preferences(REVERSAL / "pairs.jsonl", REVERSAL)
    assert str(caught.value) == (
        "Preference data is read with tokenizers, which is not installed: "
        "pip install 'flowlab-jax[models]'."
    )
