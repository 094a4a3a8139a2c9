"""Sets up every test process: strict JAX, eight CPU devices, examples without deadlines."""

import os
from collections import defaultdict
from collections.abc import Iterator

# JAX and matplotlib read these when they are imported, so they are set before; who wants the tests
# on another device says so in the environment.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# What goes to several devices is tested on any machine.
jax.config.update("jax_num_cpu_devices", 8)

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
# What takes longest comes first, so that no process is left alone with it at the end.
FIRST = ("test_cards", "test_cards_made", "the study", "test_faults", "test_accuracy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of a file in one process, where what they compile is compiled once."""

    def group(item: pytest.Item) -> str:
        return TOGETHER.get(item.path.stem, item.path.stem)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: FIRST.index(group(item)) if group(item) in FIRST else len(FIRST))


@pytest.fixture(scope="session", autouse=True)
def sweeps_on_one_device() -> Iterator[None]:
    """Spares most tests half of their time: each device compiles every program for itself.

    What is to run on several is given `jax.devices()`, or asks for `sweeps_on_two_devices`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        yield


@pytest.fixture
def sweeps_on_two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets sweeps find two devices by themselves, as they do elsewhere."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])


@pytest.fixture(scope="module", autouse=True)
def free_compiled_functions() -> Iterator[None]:
    """Bounds the memory of a run: what one file compiled is dropped before the next."""
    yield
    jax.clear_caches()


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
    """What the tests recorded under a name; reports bring it home from the processes of xdist."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    called = [report for report in reports if getattr(report, "when", None) == "call"]
    return [value for report in called for key, value in report.user_properties if key == name]
