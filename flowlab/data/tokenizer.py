"""The tokenizer of a Hugging Face checkpoint, with its chat template."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowlab.data.template import Render, chat_template

__all__ = ["Tokenizer", "imported"]


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with its special tokens.

    Attributes:
        encoder: The tokenizer as an object of the library tokenizers.
        end: The text of the token that ends a response.
        padding: Id of the padding token of the checkpoint, or of the end token if it has none.
        render: The chat template; None if there is none.
    """

    encoder: Any
    end: str
    padding: int
    render: Render | None

    @classmethod
    def read(cls, folder: Path) -> "Tokenizer":
        """The tokenizer in the folder of a checkpoint.

        Raises:
            ValueError: If there is no tokenizer, if it has no end token, or if its chat template is
                invalid.
        """
        library = imported("tokenizers")
        if not (folder / "tokenizer.json").is_file():
            raise _refused(
                "be the folder of a checkpoint with a tokenizer.json", f"{folder} has none"
            )
        try:
            encoder = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing more special
            raise _refused(
                "hold a tokenizer", f"the one in {folder} cannot be read: {error}"
            ) from None
        encoder.no_padding()
        encoder.no_truncation()
        described = _described(folder)
        end = _text(described.get("eos_token"))
        if end is None or encoder.token_to_id(end) is None:
            raise _refused(
                "name a token of its vocabulary as `eos_token` in tokenizer_config.json",
                f"the one in {folder} names {described.get('eos_token')!r}",
            )
        padding = encoder.token_to_id(_text(described.get("pad_token")) or end)
        try:
            render = chat_template(folder, described)
        except Exception as error:  # templates are programs, and fail in any way
            raise _refused(
                "have a chat template in jinja2", f"the one in {folder} is invalid: {error}"
            ) from None
        padding = encoder.token_to_id(end) if padding is None else padding
        return cls(encoder, end, padding, render)

    def tokens(self, text: str) -> list[int]:
        """The ids of the tokens of a text, including special tokens that the tokenizer adds."""
        return self.encoder.encode(text).ids

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special tokens."""
        return self.encoder.decode(list(map(int, tokens)))

    def conversation(self, messages: list[dict[str, Any]], *, prompts: bool) -> list[int]:
        """The ids of the tokens of a conversation.

        Args:
            messages: The messages, each with a role and a content.
            prompts: True to append the beginning of an answer.

        Raises:
            ValueError: If the checkpoint has no chat template, or if the template refuses the
                conversation.
        """
        if self.render is None:
            raise _refused(
                "have a chat template, for data with conversations",
                "there is neither a chat_template.jinja nor an entry in tokenizer_config.json",
            )
        try:
            text = self.render(messages, prompts)
        except Exception as error:  # templates are programs, and fail in any way
            raise _refused(
                "have a chat template that takes the conversations", f"it fails: {error}"
            ) from None
        return self.encoder.encode(text, add_special_tokens=False).ids


def imported(library: str) -> Any:
    """Import a library of the extra `models`.

    Raises:
        ModuleNotFoundError: If the library is not installed; the message says how to install it.
    """
    import importlib

    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Preference data is read with {library}, which is not installed: "
            "pip install 'flowlab-jax[models]'.",
            name=error.name,
        ) from None


def _described(folder: Path) -> dict[str, Any]:
    """The entries of `tokenizer_config.json`; empty if there is no such file."""
    path = folder / "tokenizer_config.json"
    try:
        held = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise _refused(
            "hold a tokenizer_config.json in JSON", f"{path} is invalid: {error}"
        ) from None
    return held if isinstance(held, dict) else {}


def _text(token: Any) -> str | None:
    """The text of a special token, which may be given as an object."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _refused(wanted: str, found: str) -> ValueError:
    return ValueError(f"Argument `tokenizer` must {wanted}, but {found}.")
