"""The pages of the manual and the README as their tests read them: code, what it prints, links.

A page is Markdown with fenced blocks. Blocks of `python` run one after the other, in one namespace
and an empty folder. A block without a language after the word "prints" is what the last of them
prints. Of a block of `console`, lines that begin with `$ flowlab` are commands, and what follows
them is their answer, in which `...` stands for anything. `<!-- not run: REASON -->` before a block
leaves it out.
"""

import contextlib
import doctest
import hashlib
import io
import json
import re
import shlex
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
from command import ROOT, flowlab_command

from flowlab import cli

MANUAL = ROOT / "notebooks"
README = ROOT / "README.md"
PAGES = sorted(MANUAL.rglob("*.md"))
NOTEBOOKS = sorted(MANUAL.glob("*.ipynb"))

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\]\(([^()\s]*)\)")
_LIKE = doctest.OutputChecker()


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: What stands behind the fence; `printed` for what the block before prints.
        text: The lines within.
        line: The number of its first line on the page.
        left_out: The reason why it is not run; empty if it is.
    """

    language: str
    text: str
    line: int
    left_out: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text, past = page.read_text(encoding="utf-8"), 0
    for fence in _FENCE.finditer(text):
        before = text[past : fence.start()].rstrip()
        reason = re.search(r"<!-- not run: (.+?) -->$", before, re.S)
        printed = before.endswith(("prints", "prints:")) and not fence[1]
        yield Block(
            "printed" if printed else fence[1],
            fence[2],
            text[: fence.start()].count("\n") + 2,
            reason[1] if reason else "",
        )
        past = fence.end()


def run(page: Path) -> list[str]:
    """Run the code and the commands of a page in the folder at hand; where it says what is not so.

    Errors in the code are raised, with the line of the page.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    output, wrong = "", []
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.left_out:
            continue
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as told:
                exec(code, names)
            output = told.getvalue()
        elif block.language == "printed" and output != block.text:
            wrong.append(f"{where}: prints\n{output}")
        elif block.language == "console":
            wrong += [f"{where}: {said}" for said in _unlike(block.text)]
    return wrong


def _unlike(text: str) -> Iterator[str]:
    """What the commands in a block of a console answer, where it is another thing than it says."""
    for command, answer in _asked(text):
        result = flowlab_command(*shlex.split(command)[1:])
        like = _LIKE.check_output(answer, result.stdout, doctest.ELLIPSIS)
        if result.exit_code or (answer and not like):
            yield f"answers\n{result.output}"


def commands(page: Path) -> Iterator[str]:
    """Every line of a block that begins with the command, lines that end in a backslash joined."""
    for block in blocks(page):
        text = block.text.replace("\\\n", " ")
        for line in text.splitlines() if block.language != "printed" else ():
            said = line.removeprefix("$ ").partition("   #")[0].strip()
            if said.startswith("flowlab "):
                yield said


def refusal(line: str) -> str:
    """Why the command does not take a line, which is not carried out; empty if it does."""
    name, *rest = shlex.split(line)[1:]
    group: Any = typer.main.get_command(cli.app)
    try:
        group.get_command(None, name).make_context(name, rest)
    except Exception as error:
        return f"{line}: {getattr(error, 'message', error)}"
    return ""


def _asked(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a block of a console, each with its answer."""
    for part in re.split(r"^\$ ", text.replace("\\\n", " "), flags=re.M)[1:]:
        command, _, answer = part.partition("\n")
        yield command, answer


def links(text: str) -> list[str]:
    """What the links and pictures of a Markdown text lead to, without those in code."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
    return _LINK.findall(prose)


def anchors(text: str) -> set[str]:
    """The names by which GitHub and Sphinx know the headings of a text."""
    heads = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    return {_anchor(head) for head in heads}


def _anchor(head: str) -> str:
    kept = "".join(c for c in head.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
    return kept.strip().replace(" ", "-")


def markdown(page: Path) -> str:
    """The Markdown of a page, or of the cells of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def fingerprint(notebook: Mapping[str, Any]) -> str:
    """A checksum of the code of a notebook, whatever its text and its outputs are."""
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]
