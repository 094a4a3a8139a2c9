"""Sets up every test process: strict JAX, eight CPU devices, examples without deadlines."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# JAX and matplotlib read these when they are imported, so they are set before; who wants the tests
# on another device says so in the environment.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ["MPLBACKEND"] = "Agg"
# Where in Python each instruction of a program comes from is for profiles: programs are smaller
# without, and a tenth of the time is saved.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# To trace and to compile takes memory in very many pieces: large pages spare a twentieth of the
# time. Processes that are started from here read this, those of xdist among them.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
# Programs of tests run briefly. Compiled as the library compiles what runs briefly, all of them
# take a third of the time; `as_elsewhere` and the full grids have XLA's defaults. XLA ends a
# process that names an option it does not know, so other releases go without until they are tried.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1"
    if version("jaxlib").startswith("0.10.") and "--exhaustive" not in sys.argv
    else "",
)

import hypothesis
import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# What goes to several devices is tested on any machine.
jax.config.update("jax_num_cpu_devices", 8)

# Both processes keep what they compile in one folder, which the first of them makes and removes.
COMPILED = "FLOWLAB_TESTS_COMPILED"
if COMPILED not in os.environ:
    os.environ[COMPILED] = tempfile.mkdtemp(prefix="flowlab-compiled-")
    atexit.register(shutil.rmtree, os.environ[COMPILED], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Tracing makes very many objects that live on: to look through all of them for cycles as often as
# Python does takes a fifteenth of the time.
gc.set_threshold(100_000, 20, 20)

# The first example pays for a compilation, so a deadline would measure the machine; the same
# examples in every run make a failure reproducible.
hypothesis.settings.register_profile(
    "flowlab",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("flowlab")


# Files that share what they compute, and go to one process together.
TOGETHER = {"test_claims": "the study", "test_study": "the study"}
MOST_MEMORY = 6 * 2**30  # bytes, of each process
# What takes longest comes first, so that no process is left alone with it at the end.
FIRST = (
    *("the study", "test_faults", "test_accuracy", "test_ensemble", "test_noise"),
    # These are dear where everything runs.
    *("test_cards", "test_cards_made", "test_walls", "test_second_derivatives"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--exhaustive`."""
    parser.addoption("--exhaustive", action="store_true", help="run the full grids, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what belongs to a full grid alone, unless it is asked for; the dearest first."""
    if not config.getoption("--exhaustive"):
        asked: list[pytest.Item] = []
        left_out: list[pytest.Item] = []
        for item in items:
            (left_out if item.get_closest_marker("exhaustive") else asked).append(item)
        config.hook.pytest_deselected(items=left_out)
        items[:] = asked
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(group(item.path.stem), len(order)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spares every later search for cycles all modules and tests, which stay to the end."""
    gc.freeze()


def group(stem: str) -> str:
    """The name of the group that the tests of a file are kept together in."""
    return TOGETHER.get(stem, stem)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file in one process, where what they compile is compiled once.

    The groups of xdist 3.8 by marks are none under pytest 9.2, and nothing says so.
    """
    from xdist.scheduler import LoadScopeScheduling

    class InGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(Path(nodeid.split("::", 1)[0]).stem)

    return InGroups(config, log)


@pytest.fixture(scope="session", autouse=True)
def sweeps_on_one_device() -> Iterator[None]:
    """Spares most tests half of their time: each device compiles every program for itself.

    What is to run on several is given `jax.devices()`, or asks for `sweeps_on_two_devices`.
    """
    found = jax.local_devices
    with pytest.MonkeyPatch.context() as patch:
        # Pallas asks for the devices of a backend of its own.
        patch.setattr(jax, "local_devices", lambda **of: found(**of) if of else jax.devices()[:1])
        yield


@pytest.fixture(scope="module")
def as_elsewhere() -> Iterator[None]:
    """Has the sweeps of a file that are worth optimising compiled with XLA's defaults."""
    from flowlab.solve import compilation

    defaults = {
        "xla_cpu_use_fusion_emitters": True,
        "xla_backend_optimization_level": 3,
        "xla_cpu_parallel_codegen_split_count": 32,
    }

    def forget() -> None:
        compilation._known_options.cache_clear()
        compilation._bound.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "_SOUNDLY", compilation._SOUNDLY | defaults)
        forget()
        yield
    forget()


@pytest.fixture
def sweeps_on_two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets sweeps find two devices by themselves, as they do elsewhere."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Drops what the files before have compiled once it takes up much memory."""
    yield
    if resident_bytes() > MOST_MEMORY:
        jax.clear_caches()


@pytest.fixture
def solved_with(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of every call of `ensemble.sweep`, which then solves nothing."""
    from command import made_up

    from flowlab import ensemble

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(*args: Any, **kwargs: Any) -> ensemble.Runs:
        calls.append((args, kwargs))
        return made_up(args[1])

    monkeypatch.setattr(ensemble, "sweep", note)
    return calls


def resident_bytes() -> float:
    """The memory of this process, where the system tells; else infinite."""
    told = Path("/proc/self/statm")
    if not told.exists():
        return float("inf")
    return int(told.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how far each loss is from TRL's numbers, if tests that compare them ran.

    What those tests record as `trl_parity` is [loss, error of the value, error of the gradients].
    """
    rows = defaultdict(list)
    for loss, *errors in recorded(terminalreporter, "trl_parity"):
        rows[loss].append(errors)
    if not rows:
        return
    width = max(map(len, rows))
    terminalreporter.section("losses against TRL, worst relative errors")
    terminalreporter.line(f"{'loss':{width}}  rows    value  gradients")
    for loss, errors in sorted(rows.items()):
        of_value, of_gradients = (max(column) for column in zip(*errors, strict=True))
        terminalreporter.line(
            f"{loss:{width}}  {len(errors):4}  {of_value:7.1e}  {of_gradients:9.1e}"
        )


def recorded(terminalreporter: pytest.TerminalReporter, name: str) -> list:
    """The records of tests under a name; reports bring them home from the processes of xdist."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    called = [report for report in reports if getattr(report, "when", None) == "call"]
    return [value for report in called for key, value in report.user_properties if key == name]
