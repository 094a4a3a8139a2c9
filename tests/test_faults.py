"""What a sweep survives: kill -9, a full disk, lost workers, two processes on one store."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from grids import thinned

from flowlab import plans, store
from flowlab.store import BlockStore
from flowlab.store.blocks import FINISHED

COUNT, BLOCK = 800, 25
RECIPE: dict[str, Any] = {
    "loss": "dpo",
    "beta": [0.1, 0.3],
    "policy": "ratio",
    "starts": "sobol",
    "count": COUNT,
    "lower": [0.05, 0.05],
    "upper": [1.0, 1.0],
    "until": "loss_below=0.1",
    "block": BLOCK,
}
WORDS = (
    "sweep --loss dpo --beta 0.1 --beta 0.3 --policy ratio --starts sobol --until loss_below=0.1 "
    f"--count {COUNT} --lower 0.05 0.05 --upper 1 1 --store-block {BLOCK} --quiet --out"
).split()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of processes that share what they compile."""
    return {
        **os.environ,
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="module")
def processes(environment: dict[str, str]) -> Iterator[Any]:
    """Makes children of a process that has imported all and computed nothing."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["flowlab.plans.running", "flowlab.plans.recipes"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> xarray.Dataset:
    """What comes out where nothing happens."""
    return carried_out(tmp_path_factory.mktemp("undisturbed") / "s")


def carried_out(path: Path, **options: Any) -> xarray.Dataset:
    return plans.run(plans.from_recipe(RECIPE), path, progress=False, **options)


def told(path: Path, answers: Any) -> None:
    """Carry out the plan and tell what went wrong."""
    try:
        carried_out(path)
        answers.put("")
    except Exception as error:
        answers.put(str(error) or repr(error))


def command(
    out: Path, environment: dict[str, str], program: tuple[str, ...] = ("-m", "flowlab")
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program, *WORDS, str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a process said on stderr once it had ended as it should."""
    _, errors = process.communicate()
    assert process.returncode == code, errors
    return errors


def assert_same_bits(found: xarray.Dataset, wanted: xarray.Dataset) -> None:
    names = [str(n) for n in wanted.variables if "block" not in wanted[n].dims]
    assert len(names) > 9
    for name in names:
        a, b = found[name].values, wanted[name].values
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype.kind not in "fiu" or a.tobytes() == b.tobytes(), name


def blocks_done(path: Path) -> int:
    try:
        return int(BlockStore.open(path, write=False).done().sum())
    except (FileNotFoundError, ValueError, KeyError):
        return 0


def marks(path: Path) -> int:
    """Blocks that are marked as done, without opening the store, which takes long."""
    return sum(len(names) for _, _, names in os.walk(path / FINISHED / "c"))


@pytest.mark.parametrize("kills", thinned([3, 6, 20], {3}))
def test_what_is_killed_at_many_moments_ends_with_the_same_bits(
    kills, undisturbed, processes, tmp_path
):
    moments = random.Random(0)
    seen = [0]
    for _ in range(kills):
        process = processes.Process(target=carried_out, args=(tmp_path / "s",))
        process.start()
        new = moments.randrange(3)
        while marks(tmp_path / "s") < seen[-1] + new and process.is_alive():
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.1) if new else moments.uniform(0.0, 1.0))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        seen.append(blocks_done(tmp_path / "s"))
        assert seen[-1] >= seen[-2], "a block that was done is lost"
    assert len(set(seen)) > kills // 3, f"the kills did not fall into the work: {seen}"
    assert_same_bits(carried_out(tmp_path / "s"), undisturbed)


def test_a_termination_says_how_to_resume(undisturbed, environment, tmp_path):
    process = command(tmp_path / "s", environment)
    while marks(tmp_path / "s") < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    lines = finished(process, 130).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("flowlab: interrupted: ")
    assert lines[0].endswith(
        f"of 64 blocks are done; resume with `flowlab resume {tmp_path / 's'}`"
    )
    assert_same_bits(carried_out(tmp_path / "s"), undisturbed)


@pytest.mark.exhaustive
def test_two_processes_on_one_store_do_not_disturb_each_other(undisturbed, processes, tmp_path):
    answers = processes.SimpleQueue()
    first, second = (
        processes.Process(target=told, args=(tmp_path / "s", answers)) for _ in range(2)
    )
    first.start()
    while not marks(tmp_path / "s"):
        time.sleep(0.05)
    second.start()
    errors = sorted(answers.get() for _ in range(2))
    first.join()
    second.join()
    assert errors[0] == ""
    if errors[1]:  # the second came while the first was at work
        assert "another process is writing to" in errors[1]
    assert_same_bits(store.read(tmp_path / "s"), undisturbed)
    assert blocks_done(tmp_path / "s") == 64


def test_a_full_disk_is_told_and_what_is_done_stays(undisturbed, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    plan = plans.from_recipe(RECIPE)
    solve, soft = plan.solve, resource.getrlimit(resource.RLIMIT_FSIZE)
    solved: list[Any] = []

    def then_full(*arguments: Any, **options: Any) -> Any:
        found = solve(*arguments, **options)
        solved.append(arguments)
        if len(solved) > 12:  # no file may grow beyond a few bytes from now on
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, soft[1]))
        return found

    plan.solve = then_full  # type: ignore[method-assign]
    try:
        with pytest.raises(OSError, match="File too large"):
            plans.run(plan, tmp_path / "s", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    done = blocks_done(tmp_path / "s")
    assert 10 <= done <= 13
    assert not list((tmp_path / "s").rglob("*.partial"))
    assert all(damage is None for damage in BlockStore.open(tmp_path / "s").damaged())
    assert_same_bits(carried_out(tmp_path / "s"), undisturbed)


@pytest.mark.exhaustive
def test_the_command_says_in_a_sentence_that_the_disk_is_full(undisturbed, environment, tmp_path):
    resource = pytest.importorskip("resource")

    limited = (
        f"import resource; resource.setrlimit({resource.RLIMIT_FSIZE}, (400, 400)); "
        "from flowlab.cli import main; main()"
    )
    errors = finished(command(tmp_path / "s", environment, ("-c", limited)), 1)
    assert len(errors.splitlines()) == 1, errors
    assert "File too large" in errors


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (
        distributed.LocalCluster(
            n_workers=request.param, threads_per_worker=1, processes=True, dashboard_address=None
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.mark.parametrize("cluster", thinned([1, 2], ()), indirect=True)
def test_workers_that_are_killed_cost_nothing_but_time(undisturbed, cluster, tmp_path):
    pids = list(cluster.run(os.getpid).values())
    killed: list[int] = []

    def kill() -> None:
        for pid, moment in zip(pids, (5, 20), strict=False):
            while marks(tmp_path / "s") < moment:
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = carried_out(tmp_path / "s", client=cluster)
    killer.join(timeout=1)
    assert killed == pids
    assert_same_bits(found, undisturbed)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Lets processes hear Ctrl-C: those that a shell puts in the background are deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_a_command_that_compiles(tmp_path):
    command = ["study", "--quick", "--no-cache", "--out", str(tmp_path / "made")]
    process = subprocess.Popen(
        [sys.executable, "-m", "flowlab", *command],
        env={**os.environ, "JAX_LOG_COMPILES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:  # up to the first program of a sweep; the whole takes a minute
        if "Compiling jit(flat)" in line:
            break
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    assert finished(process, 130).strip().endswith("flowlab: interrupted")
    assert time.monotonic() - sent < 20  # and not once all is compiled
