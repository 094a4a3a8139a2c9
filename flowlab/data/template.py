"""Chat templates, which turn conversations into texts, rendered in a sandbox."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["Render", "chat_template"]

Messages = list[dict[str, Any]]
Render = Callable[[Messages, bool], str]
"""From messages, and whether the prompt of an answer follows, to a text."""


class _Generation(Extension):
    """The block `{% generation %}`, by which templates mark text that the model generated."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def chat_template(folder: Path, described: Mapping[str, Any]) -> Render | None:
    """The chat template of a checkpoint as a function; None if the checkpoint has none.

    The template is rendered in the sandbox of jinja2. It has no access to Python and cannot change
    its arguments.

    Args:
        folder: The folder of the checkpoint.
        described: The entries of its `tokenizer_config.json`.

    Raises:
        jinja2.TemplateError: If the template is invalid.
    """
    file, source = folder / "chat_template.jinja", described.get("chat_template")
    if file.is_file():
        source = file.read_text("utf-8")
    elif isinstance(source, list):  # several, by name
        source = {one.get("name"): one.get("template") for one in source}.get("default")
    if not isinstance(source, str):
        return None
    template = _environment().from_string(source)
    special = {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in described.items()
        if key.endswith("_token")
    }

    def render(messages: Messages, prompts: bool) -> str:
        given = {"messages": messages, "add_generation_prompt": prompts}
        return template.render(tools=None, documents=None, **special, **given)

    return render


def _environment() -> ImmutableSandboxedEnvironment:
    """The jinja2 environment in which transformers renders templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    """A JSON filter that, unlike the filter of jinja2, does not escape HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
