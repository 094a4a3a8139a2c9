"""What the reference takes from the library: its signatures, commands, outcomes and losses.

The directive `commands` writes Markdown from the table that the library itself uses. Tables of
losses, outcomes and commands stand in their pages, so that they are read where no site is built
too; `python notebooks/_reference.py` writes them anew, and a test says when that is due. Sphinx is
imported by `setup` alone, so that the tests can do without it.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

ARRAYS = {"Float", "Int", "Bool"}  # types of jaxtyping, whose shapes stand in the docstrings


def setup(app: Any) -> dict[str, bool]:
    """Tells Sphinx of the directive, and how signatures and docstrings are written."""
    app.add_directive("commands", _directive(commands))
    app.connect("autodoc-process-signature", _signature)
    # What Sphinx calls variables of a class, Python and the docstrings call its attributes.
    from sphinx.domains.python import PythonDomain

    for field in PythonDomain.directives["class"].doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    # Before napoleon, which takes the sections of a docstring apart.
    app.connect("autodoc-process-docstring", _escape, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _directive(lines: Callable[[], Iterable[str]]) -> type:
    from sphinx.util.docutils import SphinxDirective

    class Written(SphinxDirective):
        def run(self) -> list[Any]:
            return self.parse_text_to_nodes("\n".join(lines()), allow_section_headings=True)

    return Written


def with_tables(page: str) -> str:
    """A page with its tables as they should be."""

    def table(found: re.Match[str]) -> str:
        lines = "\n".join(_TABLES[found[1]]()).strip()
        return f"<!-- table: {found[1]} -->\n\n{lines}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def summary() -> Iterator[str]:
    """The commands by their names, with the first sentence of their help."""
    import typer.main

    from flowlab import cli

    group: Any = typer.main.get_command(cli.app)
    rows = [
        (f"`flowlab {name}`", _plain((command.help or "").strip().splitlines()[0]))
        for name, command in group.commands.items()
    ]
    yield from _table(("command", "what it does"), rows)


def commands() -> Iterator[str]:
    """The commands and their options, in the words of their help."""
    import typer.main

    from flowlab import cli

    group: Any = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        yield from (f"## flowlab {name}", "", _plain(command.help), "")
        context = command.make_context(name, [], resilient_parsing=True)
        for one in command.get_params(context):
            record = one.get_help_record(context)
            if record is not None and one.name != "help":
                yield from (f"`{record[0]}`", f": {_plain(record[1])}{_beside(one.name)}", "")


def _beside(name: str) -> str:
    """The options with which an option has an effect."""
    from flowlab._options import OPTIONS, as_flag

    option = OPTIONS.get(name)
    if option is None or not option.only:
        return ""
    other, *words = option.only
    return f" For `{as_flag(other)}` {' or '.join(words)}."


def outcomes() -> Iterator[str]:
    """The outcomes of a start by their codes, in the words of the docstring."""
    from flowlab.until import Outcome

    told = " ".join((Outcome.__doc__ or "").split())
    said = dict(re.findall(r"`(\w+)`: (.*?\.)(?= `\w+`: |$)", told))
    rows = [(f"`{one.name}`", str(one.value), said.get(one.name, "")) for one in Outcome]
    yield from _table(("outcome", "code", "what became of the start"), rows[1:])


def losses() -> Iterator[str]:
    """The losses by their names, with those of TRL, and the hyper-parameters by default."""
    from flowlab.losses import CATALOGUE
    from flowlab.losses.trl import loss_type_of

    rows = []
    for name, loss in CATALOGUE.items():
        first = (type(loss).__doc__ or "").strip().splitlines()[0]
        held = repr(loss).partition("(")[2].removesuffix(")")
        shown = f" `{held}`" if held else ""
        rows.append((f"`{name}`", loss_type_of(loss) or "", _plain(first) + shown))
    yield from _table(("name", "in TRL", "what it is, and its defaults"), rows)


_TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "summary": summary,
    "outcomes": outcomes,
    "losses": losses,
}


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    heads = list(heads)
    yield from ("", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}")
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _plain(text: str | None) -> str:
    """A text of the command as Markdown has it: an asterisk is one, and options are code."""
    escaped = re.sub(r"([*_<])", r"\\\1", " ".join((text or "").split()))
    return re.sub(r"(?<![`\w])(--[a-z][\w-]*)(?!\w*`)", r"`\1`", escaped)


def _signature(
    app: Any, what: str, name: str, obj: Any, options: Any, found: str | None, result: str | None
) -> tuple[str, str | None] | None:
    """A signature as its source has it, arrays without their shapes."""
    if what == "class":
        return _of_class(obj)
    if what not in ("function", "method"):
        return None
    try:
        definition = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if not isinstance(definition, ast.FunctionDef):
        return None
    return _written(definition, bound=what == "method", full=_shared_names(obj.__module__))


def _of_class(obj: type) -> tuple[str, None] | None:
    own = obj.__dict__.get("__init__")
    if dataclasses.is_dataclass(obj) and not _is_written(own):
        fields = [each for each in dataclasses.fields(obj) if each.init]
        return f"({', '.join(map(_field, fields))})", None
    if own is None or not _is_written(own):
        return None
    definition = ast.parse(textwrap.dedent(inspect.getsource(own))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    return _written(definition, bound=True, full=_shared_names(obj.__module__))[0], None


def _is_written(function: Any) -> bool:
    """True for a function whose source there is; dataclasses make others."""
    try:
        return inspect.getsource(function).lstrip().startswith("def ")
    except (OSError, TypeError):
        return False


def _field(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        default = repr(field.default)
        return f"{field.name}={default if len(default) < 40 else '...'}"
    made = field.default_factory is not dataclasses.MISSING
    return f"{field.name}=..." if made else field.name


@cache
def _shared_names(module: str) -> dict[str, str]:
    """The full names of what a module takes from one package and another one has by that name."""
    pages = (Path(__file__).parent / "reference" / "api").glob("*.md")
    packages = [f"flowlab.{page.stem}" for page in pages if page.stem != "index"]
    count = Counter(name for package in packages for name in import_module(package).__all__)
    taken = ast.walk(ast.parse(inspect.getsource(import_module(module))))
    found: dict[str, str] = {}
    for node in taken:
        package = ".".join((getattr(node, "module", None) or "").split(".")[:2])
        if isinstance(node, ast.ImportFrom) and package in packages:
            names = (alias.name for alias in node.names)
            found |= {name: f"{package}.{name}" for name in names if count[name] > 1}
    return found


def _written(
    definition: ast.FunctionDef, *, bound: bool, full: dict[str, str]
) -> tuple[str, str | None]:
    definition = _Short(full).visit(definition)
    static = any(ast.unparse(one) == "staticmethod" for one in definition.decorator_list)
    if bound and not static and definition.args.args:
        definition.args.args.pop(0)
    returned = None if definition.returns is None else ast.unparse(definition.returns)
    return f"({ast.unparse(definition.args)})", returned


class _Short(ast.NodeTransformer):
    """Annotations without shapes, quotes and modules, but where a name has several meanings."""

    def __init__(self, full: dict[str, str]) -> None:
        self.full = full

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.full.get(node.id, node.id))

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        name = ast.unparse(node.value).rpartition(".")[2]
        if name in ARRAYS and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[0])
        if name == "PyTree":
            return ast.Name("PyTree")
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Name(node.attr) if ast.unparse(node).startswith(("np.", "npt.")) else node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        if isinstance(node.annotation, ast.Constant) and isinstance(node.annotation.value, str):
            node.annotation = ast.parse(node.annotation.value, mode="eval").body
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if isinstance(node.returns, ast.Constant) and isinstance(node.returns.value, str):
            node.returns = ast.parse(node.returns.value, mode="eval").body
        node.args = self.visit(node.args)
        node.returns = None if node.returns is None else self.visit(node.returns)
        return node


def _escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keeps what docstrings write as it is from being taken for reStructuredText's own marks."""
    for place, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"([*|\\]|_\b)", r"\\\1", part) for part in parts[::2]]
        lines[place] = "".join(parts)


if __name__ == "__main__":
    for path in (Path(__file__).parent / "reference").glob("*.md"):
        path.write_text(with_tables(path.read_text("utf-8")), encoding="utf-8")
