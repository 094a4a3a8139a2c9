"""The house rules that a machine can check: one-way and lazy imports, sizes, tests that test."""

import ast
import functools
import graphlib
import importlib
import importlib.metadata
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flowlab"

# A module imports only from those above it. A module that grew into a folder keeps its place.
LAYOUT = (
    "_lazy",
    "_names",
    "_checks",
    "_files",
    "_arrays",
    "_options",
    "_tables",
    "_pages",
    "domains",
    "_parameters",
    "_tracing",
    "losses",
    "policies",
    "potentials",
    "flow",
    "exact",
    "until",
    "measures",
    "starts",
    "solve",
    "ensemble",
    "store",
    "plans",
    "critical",
    "cards",
    "models",
    "data",
    "displacement",
    "descent",
    "plots",
    "logs",
    "replay",
    "study",
    "cli",
)
# The package gathers what its modules offer, and running it starts the command: both may import
# everything.
ENTRANCES = ("flowlab", "flowlab.__main__")
LONGEST_FUNCTION = 40
LONGEST_OF_TESTS = 60  # a case that is told in one piece
LONGEST_MODULE = 550
QUESTIONS = {"What", "How", "Whether", "Where", "Which"}  # instead of a noun or an imperative
BENCHMARKS = tuple((ROOT / "benchmarks").glob("**/*.py"))
DRAWING = "from flowlab import plots"
# What jaxtyping can give a shape to, whatever the Python and the NumPy. Aliases of others may be
# strange to it: from NumPy 2.5 on, `numpy.typing.ArrayLike` is an object with which imports fail.
SHAPED = {"jax.Array", "jaxtyping.Array", "jaxtyping.ArrayLike", "numpy.ndarray"}

# What is computed for one lane, and the modules a backend solves with: a second backend uses the
# first of these and replaces the others.
ROWS = ("rows", "row_indices", "row_control")
SEEN = ("signals", "events", "stationarity", "lane_lifecycle")
LANES = ("problem", "clocks", *ROWS, "walls", "field", *SEEN)
STEPS = ("runge_kutta", "stabilised", "chebyshev", "rock", "rosenbrock")
BACKEND = ("method", *STEPS, "crossings", "errors", "engine")

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def test_every_module_has_a_place_in_the_layout() -> None:
    strangers = {name for name in modules() if name not in ENTRANCES and layer(name) not in LAYOUT}
    assert not strangers, f"These modules have no place in LAYOUT: {sorted(strangers)}."


def test_a_module_imports_only_from_those_above_it() -> None:
    against = [
        f"{name} imports {target}"
        for name in modules()
        if name not in ENTRANCES
        for target in sorted(own_imports(name))
        if not stands_above(target, name)
    ]
    assert not against, against


def test_no_import_runs_in_a_circle() -> None:
    graph = {name: own_imports(name) for name in modules() if name not in ENTRANCES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"These modules import each other: {error.args[1]}.")


@pytest.mark.parametrize(("library", "home"), [("diffrax", "solve"), ("matplotlib", "plots")])
def test_a_confined_library_is_imported_by_its_home_alone(library: str, home: str) -> None:
    others = [
        name
        for name in modules()
        if (name in ENTRANCES or layer(name) != home)
        and any(target.split(".")[0] == library for target in imports(name))
    ]
    assert not others, f"Only flowlab.{home} may import {library}, but so do {others}."


def test_what_is_computed_for_a_lane_knows_no_backend() -> None:
    backends = {f"flowlab.solve.{name}" for name in BACKEND}
    against = [
        f"{name} imports {target}"
        for name in (f"flowlab.solve.{lane}" for lane in LANES)
        for target in sorted(own_imports(name) | imports(name))
        if target in backends or target.split(".")[0] == "diffrax"
    ]
    assert not against, against


def test_every_public_module_says_what_it_offers() -> None:
    silent = [
        name
        for name, path in modules().items()
        if not name.rsplit(".", 1)[-1].startswith("_") and "__all__" not in assigned_names(path)
    ]
    assert not silent, f"These modules have no __all__: {silent}."


def test_a_docstring_begins_with_what_one_gets() -> None:
    questions = [
        f"{place(path, node.body[0])} {text.splitlines()[0]}"
        for path in (*modules().values(), *BENCHMARKS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Module | ast.ClassDef | FUNCTION)
        and (text := ast.get_docstring(node)) is not None
        and text.split()[0] in QUESTIONS
    ]
    assert not questions, questions


def test_no_file_imports_a_star() -> None:
    stars = [
        place(path, node)
        for path in source_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert not stars, stars


def test_no_module_is_called_utils() -> None:
    vague = {"util", "utils", "_util", "_utils"}
    named = [relative(path) for path in source_files() if {path.stem, path.parent.name} & vague]
    assert not named, named


def test_jaxtyping_gives_shapes_to_what_it_knows_alone() -> None:
    strangers = [
        f"{relative(path)}:{node.lineno} {ast.unparse(node)}"
        for path in source_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Subscript) and not (shaped_by(path, node) <= SHAPED)
    ]
    assert not strangers, strangers


def test_no_threshold_of_critical_points_and_cards_is_defined_twice() -> None:
    homes: dict[str, list[str]] = {}
    for name, path in modules().items():
        if name not in ENTRANCES and layer(name) in {"critical", "cards"}:
            for constant in filter(str.isupper, assigned_names(path)):
                homes.setdefault(constant, []).append(name)
    twice = {constant: names for constant, names in homes.items() if len(names) > 1}
    assert not twice, twice


def test_no_function_is_too_long() -> None:
    long = {
        f"{relative(path)} {node.name}": length_without_docstring(node)
        for path in source_files()
        for node in ast.walk(tree(path))
        if isinstance(node, FUNCTION) and length_without_docstring(node) > longest_in(path)
    }
    assert not long


def test_no_file_is_too_long() -> None:
    texts = {relative(path): path.read_text("utf-8") for path in source_files()}
    lengths = {path: len(text.splitlines()) for path, text in texts.items()}
    long = {path: lines for path, lines in lengths.items() if lines > LONGEST_MODULE}
    assert not long, f"Split these files, which have more than {LONGEST_MODULE} lines: {long}."


def test_no_test_hides_a_namesake() -> None:
    hidden = [
        f"{path.name}: {name}"
        for path in files_with_tests()
        for scope in ast.walk(tree(path))
        if isinstance(scope, ast.Module | ast.ClassDef)
        for name, count in Counter(names_of_tests(scope)).items()
        if count > 1
    ]
    assert not hidden, f"These names are given to more than one test of a file: {hidden}."


def test_every_test_can_fail() -> None:
    idle = [
        f"{place(path, test)} {test.name}"
        for path in files_with_tests()
        for test in collected_tests(path)
        if test.name not in checking_functions(path)
    ]
    assert not idle, f"These tests neither assert nor expect an exception: {idle}."


def test_no_test_returns_instead_of_skipping() -> None:
    returning = [
        f"{place(path, test)} {test.name}"
        for path in files_with_tests()
        for test in collected_tests(path)
        if any(isinstance(node, ast.Return) for node in walk_own_scope(test))
    ]
    assert not returning, returning


def test_importing_flowlab_loads_no_heavy_library() -> None:
    loaded = run("-X", "importtime", "-c", "import flowlab").stderr
    assert not heavy_imports(loaded) & {"matplotlib.pyplot", "xarray", "diffrax"}


def test_a_log_is_read_without_the_solver_and_drawn_without_critical_points() -> None:
    loaded = run("-X", "importtime", "-c", "import flowlab\nimport flowlab.cli._request").stderr
    assert "flowlab.logs.diagnosis" in loaded
    assert heavy_imports(loaded) <= {"jax", "scipy"}
    loaded = run("-X", "importtime", "-c", "import flowlab\nimport flowlab.plots.training").stderr
    assert "matplotlib.axes" in loaded and "flowlab.critical" not in loaded
    assert heavy_imports(loaded) <= {"jax", "scipy"}


@pytest.mark.parametrize("package", ["flowlab", "flowlab.plots", "flowlab.solve"])
def test_a_package_that_imports_on_demand_has_all_that_it_offers(package: str) -> None:
    offered = importlib.import_module(package)
    assert set(offered.__all__) <= {*dir(offered), "__version__"}
    for name in dir(offered):
        assert getattr(offered, name) is not None
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        assert offered.nothing


def test_a_name_means_the_same_once_all_modules_are_imported() -> None:
    # Python binds an imported submodule to its name in the package, over what may be offered there.
    names = [part for part in LAYOUT if f"flowlab.{part}" in modules()]
    everything = [name for name in modules() if name not in ENTRANCES]
    load = f"import importlib\nfor name in {everything}: importlib.import_module(name)\n"
    look = (
        f"import flowlab\nfor name in {names}:\n"
        "    if name in flowlab.__all__: print(name, type(getattr(flowlab, name)))"
    )
    assert run("-c", load + look).stdout == run("-c", look).stdout


def test_the_package_answers_help_without_loading_a_heavy_library() -> None:
    if "flowlab.cli" not in modules():
        pytest.skip("flowlab.cli does not exist yet")
    answer = run("-X", "importtime", "-m", "flowlab", "--help")
    assert "Usage" in answer.stdout
    # jax alone takes longer to load than the half second within which help is promised.
    assert not heavy_imports(answer.stderr)


def test_the_installed_command_answers_help() -> None:
    try:
        importlib.metadata.distribution("flowlab-jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("flowlab-jax is not installed here, so there is no command")
    command = Path(sysconfig.get_path("scripts")) / "flowlab"
    answer = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "Usage" in answer.stdout


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a fresh interpreter, started at the root of the repository, did with `arguments`."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def heavy_imports(importtime: str) -> set[str]:
    """The heavy modules among those that `python -X importtime` wrote of."""
    imported = {line.rsplit("|", 1)[-1].strip() for line in importtime.splitlines()}
    assert "flowlab" in imported
    return imported & {"jax", "diffrax", "matplotlib.pyplot", "scipy", "xarray", "zarr"}


@functools.cache
def modules() -> dict[str, Path]:
    """The modules of flowlab by their dotted names."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def source_files() -> list[Path]:
    """The Python files of the repository that people write."""
    folders = (PACKAGE, ROOT / "tests", ROOT / "benchmarks")
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def files_with_tests() -> list[Path]:
    """The files in which pytest looks for tests."""
    return sorted((ROOT / "tests").rglob("test_*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of the file at `path`."""
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def place(path: Path, node: ast.stmt) -> str:
    """Where `node` stands, as editors read it."""
    return f"{relative(path)}:{node.lineno}"


def relative(path: Path) -> str:
    """The path from the root of the repository."""
    return str(path.relative_to(ROOT))


def layer(name: str) -> str:
    """The part of a module's dotted name that has a place in the layout."""
    return name.split(".")[1]


def stands_above(target: str, name: str) -> bool:
    """Whether the module `name` may import `target`; inside a folder only circles are barred."""
    if target in ENTRANCES:
        return False
    return layer(target) == layer(name) or rank(target) < rank(name)


def rank(name: str) -> int:
    """The place of a module in the layout, counted from above."""
    return LAYOUT.index(layer(name)) if layer(name) in LAYOUT else len(LAYOUT)


def own_imports(name: str) -> set[str]:
    """The modules of flowlab that the module `name` imports, wherever in its text it does.

    The version is left out: the package sets it before it imports anything.
    """
    own = {target for target in imports(name) if target.split(".")[0] == "flowlab"}
    return {nearest_module(target) for target in own - {"flowlab.__version__"}}


def nearest_module(target: str) -> str:
    """The module that has to be imported for the dotted name `target`."""
    known = {*modules(), *(f"flowlab.{part}" for part in LAYOUT)}
    while target not in known:
        target = target.rpartition(".")[0]
    return target


@functools.cache
def imports(name: str) -> frozenset[str]:
    """The absolute dotted names that the module `name` imports, in functions too.

    All but what draws: what shows itself by a method `plot` imports `flowlab.plots` when that is
    called, and the plots know what they draw.
    """
    path = modules()[name]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    nodes = set(ast.walk(tree(path))) - set(drawing(path))
    return frozenset(target for node in nodes for target in imported_by(node, package))


def drawing(path: Path) -> Iterator[ast.AST]:
    """The imports of `flowlab.plots` by methods `plot`."""
    for kind in ast.walk(tree(path)):
        for method in kind.body if isinstance(kind, ast.ClassDef) else ():
            for node in ast.walk(method) if getattr(method, "name", "") == "plot" else ():
                if isinstance(node, ast.ImportFrom) and ast.unparse(node) == DRAWING:
                    yield node


def imported_by(node: ast.AST, package: str) -> Iterator[str]:
    """The absolute dotted names that one node of a syntax tree imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = resolve_name("." * node.level + (node.module or ""), package)
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and called_name(node) in {"import_module", "__import__"}:
        if node.args and isinstance(node.args[0], ast.Constant):
            yield resolve_name(str(node.args[0].value), package)


def shaped_by(path: Path, node: ast.Subscript) -> set[str]:
    """What an annotation of jaxtyping, such as `Float[Array, "n d"]`, gives a shape to.

    Nothing, where the subscript is another one: the second of a PyTree is no shape.
    """
    annotation = meant(path, node.value)
    if not annotation.startswith("jaxtyping.") or annotation == "jaxtyping.PyTree":
        return set()
    first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
    return {meant(path, member) for member in members(first)}


def members(annotation: ast.expr) -> Iterator[ast.expr]:
    """The annotations that a union joins by bars."""
    if isinstance(annotation, ast.BinOp):
        yield from members(annotation.left)
        yield from members(annotation.right)
    else:
        yield annotation


def meant(path: Path, node: ast.expr) -> str:
    """The dotted name that an expression of a file means by its imports; else how it is written."""
    first, _, rest = ast.unparse(node).partition(".")
    return ".".join(filter(None, (imported_names(path).get(first, first), rest)))


@functools.cache
def imported_names(path: Path) -> dict[str, str]:
    """What a file imports absolutely, as dotted names, by the names it gives them."""
    found: dict[str, str] = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def called_name(node: ast.Call) -> str:
    """The last part of the name of what is called."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def assigned_names(path: Path) -> set[str]:
    """The names that a file assigns at its top level."""
    body = tree(path).body
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def longest_in(path: Path) -> int:
    """How long a function of a file may be."""
    return LONGEST_FUNCTION if path.is_relative_to(PACKAGE) else LONGEST_OF_TESTS


def length_without_docstring(function: FUNCTION) -> int:
    """The number of lines from `def` to the end, less those of the docstring."""
    lines = line_count(function)
    return lines if ast.get_docstring(function) is None else lines - line_count(function.body[0])


def line_count(node: ast.stmt) -> int:
    """The number of lines from the first of `node`, without its decorators, to the last."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def names_of_tests(scope: ast.Module | ast.ClassDef) -> list[str]:
    """The names of the tests and classes of tests directly in `scope`."""
    named = [node for node in scope.body if isinstance(node, FUNCTION | ast.ClassDef)]
    return [node.name for node in named if node.name.lower().startswith("test")]


def collected_tests(path: Path) -> list[FUNCTION]:
    """The test functions and methods of a file."""
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, FUNCTION)]
    return [function for function in functions if function.name.startswith("test")]


@functools.cache
def checking_functions(path: Path) -> frozenset[str]:
    """The functions of a file that check something, themselves or through one of that file."""
    calls: dict[str, set[str]] = {}
    checking: set[str] = set()
    for function in ast.walk(tree(path)):
        if isinstance(function, FUNCTION):
            inside = list(ast.walk(function))
            calls[function.name] = {called_name(n) for n in inside if isinstance(n, ast.Call)}
            if any(isinstance(n, ast.Assert) for n in inside) or any(
                map(is_check, calls[function.name])
            ):
                checking.add(function.name)
    while through := {name for name in calls if name not in checking and calls[name] & checking}:
        checking |= through
    return frozenset(checking)


def is_check(called: str) -> bool:
    """Whether a call of this name fails when an expectation is not met."""
    return called in {"raises", "warns", "fail"} or called.startswith("assert_")


def walk_own_scope(function: FUNCTION) -> Iterator[ast.AST]:
    """The nodes of a function, without those of the functions and classes inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, FUNCTION | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
