"""The command keeps its compiled programs: taken again, the same bits, no harm whatever happens."""

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import pytest
import xarray
from command import GRID, RATIO, ROOT, flowlab_command, made_up, swept
from jax._src import compilation_cache as entries  # no public way to what is in an entry
from typer.testing import CliRunner

from flowlab import cli, ensemble, store
from flowlab.cli import _cache as cache

SWEEP = (
    "sweep --loss dpo --beta 0.3 --policy ratio --until loss_below=0.1 --starts grid --shape 3 4 "
    "--quiet --out"
).split()
COUNTED = """
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
def tell():
    print(*(events.count(f"/jax/compilation_cache/cache_{name}") for name in ("misses", "hits")))
"""
COMMAND = f"import atexit, jax\n{COUNTED}\natexit.register(tell)\nimport flowlab.cli as c\nc.main()"
ONE_PROGRAM = (
    f"from flowlab.cli._cache import keep_programs\nkeep_programs()\nimport jax\n{COUNTED}\n"
    "assert float(jax.jit(lambda x: 2 * x + 1)(3.0)) == 7\ntell()"
)
FULL = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (16, -1))\n"
KEPT, TAKEN = "1 0\n", "0 1\n"


def started(caches: Path, *words: str | Path, **others: str) -> subprocess.Popen[str]:
    """An interpreter whose user has this folder of caches, and keeps every program there."""
    variables = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    variables |= {
        "XDG_CACHE_HOME": str(caches),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **others,
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", *words],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """What a process said on stdout, once it had ended well and said nothing on stderr."""
    answer, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    return answer


def kept_in(caches: Path) -> list[Path]:
    return sorted(caches.rglob("*-cache"))


def counts(process: subprocess.Popen[str]) -> tuple[int, ...]:
    """How many programs a process compiled and how many it took from the cache."""
    return tuple(map(int, said(process).split()))


@pytest.fixture(scope="module")
def swept_twice(tmp_path_factory) -> types.SimpleNamespace:
    """One sweep with an empty cache and again with a full one: stores and counts."""
    here = tmp_path_factory.mktemp("swept")
    empty = counts(started(here / "caches", COMMAND, *SWEEP, here / "empty"))
    full = counts(started(here / "caches", COMMAND, *SWEEP, here / "full"))
    return types.SimpleNamespace(folder=here, empty=empty, full=full)


@pytest.fixture(scope="module")
def swept_without(swept_twice) -> tuple[int, ...]:
    """The counts of that sweep without the cache."""
    here = swept_twice.folder
    return counts(started(here / "other", COMMAND, *SWEEP, here / "without", "--no-cache"))


def bits(runs: xarray.Dataset) -> dict[str, Any]:
    held = {str(n): runs[n] for n in runs.variables if "block" not in runs[n].dims}
    return {n: (v.dtype, v.shape, v.values.tobytes()) for n, v in held.items()}


def test_a_second_sweep_compiles_nothing(swept_twice):
    kept, _ = swept_twice.empty
    assert kept > 1
    assert kept == len(kept_in(swept_twice.folder / "caches"))
    again, taken = swept_twice.full
    assert again == 0
    assert taken >= kept


def test_results_have_the_same_bits_whether_programs_are_taken_or_compiled(swept_twice):
    empty, full = (bits(store.read(swept_twice.folder / name)) for name in ("empty", "full"))
    assert {"time", "end", "outcome"} <= set(empty)
    assert empty == full


@pytest.mark.exhaustive
def test_without_the_cache_nothing_is_kept_or_taken(swept_twice, swept_without):
    assert swept_without == (0, 0)
    assert not (swept_twice.folder / "other").exists()


@pytest.mark.exhaustive
def test_results_have_the_same_bits_with_the_cache_and_without(swept_twice, swept_without):
    without, full = (bits(store.read(swept_twice.folder / name)) for name in ("without", "full"))
    assert full == without


@pytest.fixture(scope="module")
def one_kept(tmp_path_factory) -> Path:
    """A folder of caches with one program."""
    caches = tmp_path_factory.mktemp("one") / "caches"
    assert said(started(caches, ONE_PROGRAM)) == KEPT
    return caches


@pytest.mark.exhaustive
def test_two_processes_keep_the_same_programs_at_once(tmp_path):
    both = [started(tmp_path / "caches", ONE_PROGRAM) for _ in range(2)]
    assert {said(process) for process in both} <= {KEPT, TAKEN}
    assert len(kept_in(tmp_path)) == 1
    assert said(started(tmp_path / "caches", ONE_PROGRAM)) == TAKEN


def test_a_file_in_the_way_of_the_folder_does_no_harm(tmp_path):
    (tmp_path / "caches").write_text("")
    assert said(started(tmp_path / "caches", ONE_PROGRAM)) == "0 0\n"


def test_garbage_in_the_folder_does_no_harm(one_kept, tmp_path):
    caches = shutil.copytree(one_kept, tmp_path / "caches")
    (entry,) = kept_in(caches)
    entry.write_bytes(b"garbage" * 100)
    assert said(started(caches, ONE_PROGRAM)) == KEPT


@pytest.mark.exhaustive
def test_a_full_disk_does_no_harm_and_leaves_nothing_that_lasts(tmp_path):
    pytest.importorskip("resource")
    assert said(started(tmp_path, FULL + ONE_PROGRAM)) == KEPT  # so it believes
    (torn,) = kept_in(tmp_path)
    assert torn.stat().st_size == 16
    other = torn.with_name("other-cache")  # of a program that is not asked for again
    torn.rename(other)
    assert said(started(tmp_path, ONE_PROGRAM)) == KEPT
    assert kept_in(tmp_path) == [torn]
    assert torn.stat().st_size > 1000


@pytest.mark.exhaustive
def test_a_cache_without_bounds_is_kept(tmp_path):
    unbounded = {"JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}
    assert said(started(tmp_path, ONE_PROGRAM, **unbounded)) == KEPT
    assert said(started(tmp_path, ONE_PROGRAM, **unbounded)) == TAKEN


def test_what_xla_says_of_a_program_that_it_takes_is_not_passed_on(one_kept, tmp_path):
    caches = shutil.copytree(one_kept, tmp_path / "caches")
    (entry,) = kept_in(caches)
    program = entries.decompress_executable(entry.read_bytes())
    if b",-" not in program:
        pytest.skip("this jax keeps no features of the processor, and so compares none")
    # A feature that this processor does not have, and that the program does not use.
    entry.write_bytes(entries.compress_executable(program.replace(b",-", b",+", 1)))
    assert said(started(caches, ONE_PROGRAM)) == TAKEN


@pytest.fixture
def studied(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**options: Any) -> Any:
        return types.SimpleNamespace(summary=lambda: "", folder=options["out"])

    monkeypatch.setattr("flowlab.study.run", run, raising=False)


@pytest.mark.parametrize(
    ("words", "variable", "kept"),
    [
        (("study",), None, 1),
        (("study",), "", 1),
        (("study",), "0", 1),
        (("study",), "1", 0),
        (("study", "--no-cache"), None, 0),
        (("--no-cache", "study"), None, 0),
    ],
)
def test_programs_are_kept_unless_that_is_declined(words, variable, kept, studied, monkeypatch):
    monkeypatch.delenv("FLOWLAB_NO_CACHE", raising=False)
    if variable is not None:
        monkeypatch.setenv("FLOWLAB_NO_CACHE", variable)
    calls: list[int] = []
    answer = CliRunner().invoke(cli.app, words, obj=lambda: calls.append(1))
    assert answer.exit_code == 0, answer.stderr
    assert len(calls) == kept


@pytest.mark.parametrize(
    "command", ["sweep", "resume", "losses", "portrait", "displacement", "study"]
)
def test_every_command_that_compiles_can_do_without(command):
    told = " ".join(flowlab_command(command, "--help").stdout.split())
    assert "--no-cache" in told
    assert "[env var: FLOWLAB_NO_CACHE]" in told


def test_the_command_in_the_process_of_another_leaves_its_settings_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(ensemble, "sweep", lambda flow, starts, **_: made_up(starts))
    before = dict(jax.config.values)
    assert swept(tmp_path / "sweep", RATIO, GRID).exit_code == 0
    assert dict(jax.config.values) == before


def test_the_library_makes_no_setting_of_the_whole_process():
    (home,) = (
        path.name
        for path in (ROOT / "flowlab").rglob("*.py")
        if "config.update" in path.read_text("utf-8")
    )
    assert home == "_cache.py"


@pytest.fixture
def updated(tmp_path, monkeypatch) -> dict[str, Any]:
    """What is set in JAX, instead of being set."""
    for name in [name for name in os.environ if "CACHE" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    made: dict[str, Any] = {}
    monkeypatch.setattr(jax.config, "update", made.__setitem__)
    return made


def test_the_folder_is_bounded_and_holds_what_took_long_to_compile(updated):
    cache.keep_programs()
    assert updated["jax_compilation_cache_dir"] == str(cache.folder())
    assert updated["jax_compilation_cache_max_size"] == 2**26
    assert updated["jax_persistent_cache_min_compile_time_secs"] == 0.05


def test_what_the_user_set_is_left_as_it_is(updated, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "1000")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    cache.keep_programs()
    assert "jax_compilation_cache_dir" in updated
    assert not {"jax_compilation_cache_max_size", "jax_enable_compilation_cache"} & set(updated)
    updated.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    cache.keep_programs()
    assert not updated


def test_who_has_no_home_keeps_nothing(updated, monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", no_home)
    assert cache.folder() is None
    cache.keep_programs()
    assert not updated


@pytest.mark.parametrize(
    ("platform", "variable", "value", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "/somewhere", "/somewhere"),
        ("linux", "XDG_CACHE_HOME", "relative", "/home/me/.cache"),
        ("linux", "XDG_CACHE_HOME", "", "/home/me/.cache"),
        ("darwin", "XDG_CACHE_HOME", "/somewhere", "/home/me/Library/Caches"),
        ("win32", "LOCALAPPDATA", "/somewhere", "/somewhere"),
        ("win32", "LOCALAPPDATA", "", "/home/me/AppData/Local"),
    ],
)
def test_the_folder_lies_where_the_system_has_caches(
    platform, variable, value, expected, monkeypatch
):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setenv(variable, value)
    found = cache.folder()
    assert found is not None
    assert found.parent == Path(expected) / "flowlab" / "compiled"


LINUX = "processor: 0\nvendor_id: Maker\nmodel name: Seven\ncpu MHz: 2000.1\nflags: sse avx\n"


def test_another_processor_has_another_folder(tmp_path, monkeypatch):
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(cache, "_CPUINFO", told)

    def folder(text: str) -> Path | None:
        told.write_text(text)
        return cache.folder()

    mine = folder(LINUX)
    assert folder(LINUX.replace("2000.1", "3411.7")) == folder(2 * LINUX) == mine
    others = {folder(LINUX.replace(*change)) for change in (("avx", "avx2"), ("Seven", "Eight"))}
    told.unlink()
    others |= {cache.folder()}
    monkeypatch.setattr(cache, "_cores", lambda: 1000)
    others |= {cache.folder(), folder(LINUX)}
    assert len(others | {mine}) == 6
