"""Preference pairs as tokens, read from JSON lines or parquet as TRL reads them.

Letters in shapes: n pairs, t tokens of the longest sequence.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from flowlab import _checks as checks
from flowlab.data.tokenizer import Tokenizer, imported

__all__ = ["Pairs", "preferences"]

_SIDES = ("chosen", "rejected")
_EXCERPT = 200  # characters of a text that identify it
_TRL_LENGTH = 1024  # `max_length` of TRL's trainers unless told otherwise


@dataclass(frozen=True, eq=False, repr=False)
class Pairs:
    """Preference pairs as tokens: prompts with two responses each; use `preferences` to make them.

    Attributes:
        tokens: Ids of the tokens of prompt and response, padded at the right, shape (n, 2, t);
            index 0 of the second axis is the chosen response, index 1 the rejected one.
        mask: True where a token belongs to the response, shape (n, 2, t).
        lengths: Number of tokens in each response, shape (n, 2).
        rows: The row of each pair in the file, counted from 0, shape (n,).
        tokenizer: The tokenizer that made the tokens; None if it is not known.
    """

    tokens: Int[np.ndarray, "n 2 t"]
    mask: Bool[np.ndarray, "n 2 t"]
    lengths: Float[np.ndarray, "n 2"]
    rows: Int[np.ndarray, " n"]
    tokenizer: Tokenizer | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        """The number of pairs and the longest sequence, on one line."""
        return f"Pairs({len(self)} pairs, up to {self.tokens.shape[-1]} tokens)"

    def texts(self, index: int) -> dict[str, str]:
        """The texts `prompt`, `chosen` and `rejected` of a pair, decoded from its tokens.

        Raises:
            ValueError: If the pairs have no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("These pairs have no tokenizer, so that their texts are not known.")
        tokens, mask = self.tokens[index], self.mask[index]
        found = {"prompt": self.tokenizer.text(tokens[0, : int(np.argmax(mask[0]))])}
        for side, ids, own in zip(_SIDES, tokens, mask, strict=True):
            found[side] = self.tokenizer.text(ids[own])
        return found

    def excerpt(self, index: int) -> str:
        """The texts of a pair on a line each, cut to 200 characters; empty without a tokenizer."""
        if self.tokenizer is None:
            return ""
        lines = []
        for side, told in self.texts(index).items():
            line = " ".join(told.split())
            short = line if len(line) <= _EXCERPT else f"{line[: _EXCERPT - 1]}…"
            lines.append(f"    {side + ':':9} {short}")
        return "\n".join(lines)


def preferences(
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    *,
    max_length: int | None = _TRL_LENGTH,
) -> Pairs:
    """The preference pairs in a file, tokenised like the DPO trainer of TRL does.

    A row has the texts `prompt`, `chosen` and `rejected`. If `prompt` is missing, it is the common
    beginning of the two responses. The end token is appended to responses that do not end with it.
    All three entries can also be conversations, which are lists of messages with a `role` and a
    `content`. The chat template of the checkpoint turns them into texts, in a sandbox.

    Prompt and response are tokenised as one text. The response begins at the first token that
    differs from the tokens of the prompt alone. Sequences that are too long are cut at the end, and
    rows whose prompt alone is too long are left out.

    Args:
        path: A file in JSON lines, or in parquet, as its suffix says.
        tokenizer: The folder of a checkpoint, with `tokenizer.json` and `tokenizer_config.json`.
        max_length: Maximal number of tokens in a sequence; None for no limit.

    Raises:
        ValueError: If the file is missing, empty or of another format; if a row lacks a text or
            conversation, mixes both, or has tools; if a prompt or response has no tokens; if no
            tokens of any response remain after the cut; or if the tokenizer or the chat template
            cannot be read or used.
        ModuleNotFoundError: If tokenizers is not installed, or pyarrow for parquet.

    Source: `DPOTrainer` and `DataCollatorForPreference` of TRL 1.16.
    """
    if max_length is not None:
        checks.integer("max_length", max_length, 2)
    path, reader = Path(path), Tokenizer.read(Path(tokenizer))
    encoded = [_encoded(row, index, path, reader) for index, row in enumerate(_rows(path))]
    kept = [
        (index, *one)
        for index, one in enumerate(encoded)
        if max_length is None or len(one[0]) < max_length
    ]
    if not kept:
        found = f"has prompts of {max_length} tokens or more alone" if encoded else "is empty"
        raise _refused("have a pair whose responses are not cut off", path, found)
    return _padded(kept, max_length, reader)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file."""
    if not path.is_file():
        raise _refused("be a file of preferences", path, "is not one")
    if path.suffix == ".parquet":
        parquet = imported("pyarrow.parquet")
        try:
            yield from parquet.read_table(path).to_pylist()
        except imported("pyarrow").ArrowException as error:
            raise _refused("be a file of parquet", path, f"cannot be read: {error}") from None
        return
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise _refused("be a file of JSON lines", path, "is not valid UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise _refused(
                    "hold JSON lines", path, f"has none in line {number}: {error}"
                ) from None
            yield row


def _encoded(
    row: Any, index: int, path: Path, reader: Tokenizer
) -> tuple[list[int], list[int], list[int]]:
    """The tokens of the prompt, of the chosen and of the rejected response in a row."""
    prompt, *responses = _parts(row, index, path)
    if isinstance(prompt, str):
        responses = [one if one.endswith(reader.end) else one + reader.end for one in responses]
        alone = reader.tokens(prompt)
        whole = [reader.tokens(prompt + response) for response in responses]
    else:
        alone = reader.conversation(prompt, prompts=True)
        whole = [reader.conversation(prompt + one, prompts=False) for one in responses]
    begin = min(_common(alone, tokens) for tokens in whole)
    if not begin:
        raise _refused("have prompts with tokens", path, f"has none in row {index}")
    for side, tokens in zip(_SIDES, whole, strict=True):
        if len(tokens) == begin:
            raise _refused(
                "have responses with tokens", path, f"has an empty {side} response in row {index}"
            )
    return whole[0][:begin], whole[0][begin:], whole[1][begin:]


def _parts(row: Any, index: int, path: Path) -> tuple[Any, Any, Any]:
    """The prompt, chosen and rejected response in a row; an implicit prompt is split off."""
    held = row if isinstance(row, dict) else {}
    keys = _SIDES if held and "prompt" not in held else ("prompt", *_SIDES)
    for key in keys:
        if not isinstance(held.get(key), str) and not _is_conversation(held.get(key)):
            raise _refused(
                f"have a text or a conversation as `{key}` in each row",
                path,
                f"has none in row {index}",
            )
    if len({isinstance(held[key], str) for key in keys}) > 1:
        raise _refused("have texts or conversations in a row", path, f"has both in row {index}")
    if held.get("tools") or held.get("chat_template_kwargs"):
        raise _refused("have no tools in its conversations", path, f"has tools in row {index}")
    chosen, rejected = held["chosen"], held["rejected"]
    for side in _SIDES:
        if not held[side]:
            raise _refused(
                "have responses with tokens", path, f"has an empty {side} response in row {index}"
            )
    if "prompt" in held:
        return held["prompt"], chosen, rejected
    # As TRL: something is left to each response, its last character or message at least, and a
    # space before it goes with it.
    begin = min(_common(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    differs = begin == _common(chosen, rejected)
    if differs and begin and chosen[begin - 1] == " ":
        begin -= 1
    return chosen[:begin], chosen[begin:], rejected[begin:]


def _is_conversation(value: Any) -> bool:
    """True for a list of messages, each with a role and a content."""
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and "content" in one
        for one in value
    )


def _common(one: Any, other: Any) -> int:
    """The length of the common beginning of two sequences."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _padded(kept: list[Any], max_length: int | None, reader: Tokenizer) -> Pairs:
    """Pairs of token ids as arrays, with sequences cut or padded at the right to one length."""
    whole = [[(prompt + one)[:max_length] for one in responses] for _, prompt, *responses in kept]
    begins = np.array([len(prompt) for _, prompt, *_ in kept])[:, None]
    ends = np.array([[len(tokens) for tokens in two] for two in whole])
    tokens = np.full((*ends.shape, ends.max()), reader.padding, np.int32)
    lines = tokens.reshape(-1, tokens.shape[-1])  # a view
    for index, one in enumerate(one for two in whole for one in two):
        lines[index, : len(one)] = one
    positions = np.arange(tokens.shape[-1])
    return Pairs(
        tokens=tokens,
        mask=(positions >= begins[..., None]) & (positions < ends[..., None]),
        lengths=(ends - begins).astype(float),
        rows=np.array([index for index, *_ in kept]),
        tokenizer=reader,
    )


def _refused(wanted: str, path: Path, found: str) -> ValueError:
    return ValueError(f"Argument `path` must {wanted}, but {path} {found}.")
