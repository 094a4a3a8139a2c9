"""The execution of plans into stores, block by block, here or on a cluster, and their progress."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from flowlab import ensemble, store
from flowlab.plans.estimate import planned_layout, tried
from flowlab.plans.identity import identity_of
from flowlab.plans.matching import RECIPE, attributes_of, held_by, matched
from flowlab.plans.plan import BLOCK, Plan
from flowlab.solve.progress import bar_options
from flowlab.store.blocks import FINISHED, Block, BlockStore, Damage
from flowlab.store.metadata import is_address
from flowlab.store.replacement import bring_back, lost
from flowlab.until import Outcome, counted

if TYPE_CHECKING:
    import xarray

__all__ = [
    "DoesNotFitError",
    "Interrupted",
    "Status",
    "resume_hint",
    "read_recipe",
    "run",
    "status",
]

_RECENT = 32  # blocks from whose times the speed is told
_RETRIES = 5  # of a task whose worker died, each on another


class Interrupted(KeyboardInterrupt):
    """The error that Ctrl-C or SIGTERM raises in a run; finished blocks remain in the store."""


class DoesNotFitError(RuntimeError):
    """The error that is raised if a plan needs more memory or disk space than is free."""


@dataclass(frozen=True)
class Status:
    """The progress of a store.

    Attributes:
        blocks: The number of all blocks of the store.
        done: The number of blocks that are marked as done and intact.
        damaged: The number of blocks that are marked as done but damaged; `resume` solves them
            again.
        runs: The number of all runs: starts times cases.
        runs_done: The number of runs in the blocks that are done.
        outcomes: The number of these runs with each outcome, by name.
        rate: Runs per second in the last blocks; NaN if fewer than two are done.
        remaining: Seconds that the remaining runs will take at this rate.
        being_written: True if a process on this machine is writing to the store.
    """

    blocks: int
    done: int
    damaged: tuple[Damage, ...]
    runs: int
    runs_done: int
    outcomes: dict[str, int]
    rate: float
    remaining: float
    being_written: bool


def run(
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    client: Any = None,
    devices: Sequence[Any] | None = None,
    force: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    tell: Callable[[str], Any] = lambda sentence: None,
) -> "xarray.Dataset":
    """Carry out a plan into a store, or resume a plan that was interrupted.

    Blocks that are done and intact are kept. Damaged blocks, whose checksum does not agree with
    their data, are solved again. The store of a smaller plan (with fewer starts, losses, policies,
    targets or values of hyper-parameters) is enlarged: only the missing runs are solved, and the
    last block if it was not full. With the same versions on the same kind of machine, the result
    has the same bits as the result of an undisturbed run.

    Args:
        plan: What to solve.
        path: A folder, or an address that fsspec knows (`s3://bucket/sweep`).
        client: A client of Dask distributed whose workers can reach `path`; None to work in this
            process. The plan is sent with every task, so that starts should be drawn rather than
            given as an array.
        devices: JAX devices to use; None for all local ones.
        force: True to start even if memory or disk space do not suffice by the estimate, and to
            resume even if the store was begun with other versions.
        overwrite: True to replace a store at `path`, after the check that this plan fits.
        progress: Whether to show a progress bar; None to show it for long runs in a terminal.
        tell: Function that is called with sentences on the progress, such as the estimate and
            damaged blocks.

    Returns:
        The store as a Dataset, whose values are read when they are needed.

    Raises:
        ValueError: If the store at `path` belongs to another plan, or if `path` holds anything but
            a store.
        BlockingIOError: If another process is writing to the store.
        DoesNotFitError: If the plan needs more memory or disk space than is free.
        Interrupted: On Ctrl-C or SIGTERM. The current block is lost.
        OSError: If a block cannot be written, as on a full disk. Blocks that are done remain
            intact.
    """
    if not is_address(path):
        store.check_free(path, overwrite=True)
    with _alone(path), _stoppable():
        try:
            if not is_address(path):
                bring_back(path)
            if overwrite:
                work = _begun(plan, path, force, tell, overwrite=True)
            else:
                plan, work = _for_this_run(path, plan, force, tell)
            _fill(plan, path, work, client, devices, progress)
            if plan.audit:
                _audit(plan, work)
        except KeyboardInterrupt as stop:
            raise Interrupted(f"interrupted: {resume_hint(path)}") from stop
    return store.read(path)


def status(path: str | os.PathLike[str]) -> Status:
    """The progress of a store that is filled block by block.

    Blocks that are marked as done are read and verified by their checksums.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If the path holds anything but such a store.
    """
    store = BlockStore.open(path, write=False)
    damaged = tuple(damage for damage in store.damaged() if damage is not None)
    done, layout = store.done(), store.layout
    for block, _ in damaged:
        done[(*block.case, block.number)] = False
    counts: Counter[str] = Counter()
    for block in layout.blocks():
        if done[(*block.case, block.number)]:
            counts.update(counted(store.values("outcome", block)))
    runs_done = counts.total()
    runs = layout.count * int(np.prod(layout.shape, dtype=np.int64))
    rate = _rate(store, layout.length)
    left = runs - runs_done
    return Status(
        blocks=done.size,
        done=int(done.sum()),
        damaged=damaged,
        runs=runs,
        runs_done=runs_done,
        outcomes={each.name: counts[each.name] for each in Outcome if counts[each.name]},
        rate=rate,
        remaining=left / rate if left else 0.0,
        being_written=_is_locked(path),
    )


def read_recipe(path: str | os.PathLike[str]) -> str | None:
    """The recipe of the plan in a store, as JSON; None if the plan had no recipe.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If the path holds anything but a store that is filled block by block.
        BlockingIOError: If another process is replacing the store at this moment.
    """
    if not is_address(path) and lost(path):
        with _alone(path):
            bring_back(path)
    found = BlockStore.open(path, write=False).attributes.get(RECIPE)
    return None if found is None else str(found)


def _for_this_run(
    path: str | os.PathLike[str], plan: Plan, force: bool, tell: Callable[[str], Any]
) -> tuple[Plan, BlockStore]:
    """A plan with the blocks and programs of its store, and the store.

    The store is new, or the present one, enlarged if necessary.
    """
    try:
        store = BlockStore.open(path)
    except FileNotFoundError:
        return plan, _begun(plan, path, force, tell)
    plan, work = matched(store, plan, path, force)
    if work is not store:
        tell(f"{path} grows to {plan.runs:,} runs; what it holds stays")
    damaged = [damage for damage in work.damaged() if damage is not None]
    for damage in damaged:
        work.forget(damage.block)
    if damaged:
        first = damaged[0]
        tell(
            f"{len(damaged)} of {work.done().size} blocks {'is' if len(damaged) == 1 else 'are'} "
            f"damaged and will be done again (block {first.block.number}: {first.reason})"
        )
    return plan, work


def _begun(
    plan: Plan,
    path: str | os.PathLike[str],
    force: bool,
    tell: Callable[[str], Any],
    *,
    overwrite: bool = False,
) -> BlockStore:
    """A new store, after the check that the plan fits."""
    first, solved = Block((0,) * len(plan.shape), 0), None
    if plan.runs <= BLOCK and "target" not in plan.axes:
        solved = _solved(plan, first, (0, plan.block))
        layout = planned_layout(plan, solved[0])
    else:
        tell("estimating time, memory and disk on some of the starts ...")
        expected, layout = tried(plan, path)
        tell(str(expected))
        lacking = expected.lacking()
        if lacking and not force:
            raise DoesNotFitError(" ".join([*lacking, "Ask for less, or force it."]))
    attributes = attributes_of(plan, identity_of(plan))
    if overwrite:
        store.remove(path)
    made = BlockStore.create(path, layout, attributes)
    if solved is not None:
        made.write(first, *solved)
    return made


def _fill(
    plan: Plan,
    path: Any,
    work: BlockStore,
    client: Any,
    devices: Sequence[Any] | None,
    progress: bool | None,
) -> None:
    missing = work.missing()
    total = plan.runs
    done = total - sum(work.layout.starts_of(block.number) for block in missing)
    solving = (
        _here(plan, work, missing, devices)
        if client is None
        else _on(client, plan, path, work, missing)
    )
    options = bar_options(progress)
    bar = tqdm(total=total, initial=done, unit="run", unit_scale=True, **options)
    with bar, closing(solving):  # what is being written, is written to its end
        for block in solving:
            bar.update(work.layout.starts_of(block.number))


def _here(
    plan: Plan, work: BlockStore, missing: list[Block], devices: Sequence[Any] | None
) -> Generator[Block, None, None]:
    """Solve blocks one after the other in this process, and write each while the next is solved."""
    with ThreadPoolExecutor(1) as writer:
        writing: Future[Block] | None = None
        for block in missing:
            solved = _solved(plan, block, work.layout.part(block.number), devices)
            if writing is not None:
                yield writing.result()
            writing = writer.submit(_written, work, block, *solved)
        if writing is not None:
            yield writing.result()


def _solved(
    plan: Plan, block: Block, part: tuple[int, int], devices: Sequence[Any] | None = None
) -> tuple["xarray.Dataset", float]:
    """The runs of a block, and the seconds that they took."""
    began = time.perf_counter()
    runs = plan.solve(block.case, *part, devices).to_xarray(grid=False)
    return runs, time.perf_counter() - began


def _written(work: BlockStore, block: Block, runs: "xarray.Dataset", seconds: float) -> Block:
    work.write(block, runs, seconds)
    return block


def _on(
    client: Any, plan: Plan, path: Any, work: BlockStore, missing: list[Block]
) -> Generator[Block, None, None]:
    """Solve each block as a task of a Dask cluster; if a worker dies, another solves its block."""
    from distributed import as_completed

    # The plan is sent with each task: scattered data are lost if their worker dies.
    futures = client.map(
        partial(_task, plan, path, held_by(work)),
        missing,
        [work.layout.part(block.number) for block in missing],
        pure=False,
        retries=_RETRIES,
        key="flowlab-block",
    )
    try:
        for future in as_completed(futures):
            yield Block(*future.result())
    finally:
        client.cancel(futures)


def _task(plan: Plan, path: Any, held: str, block: Block, part: tuple[int, int]) -> Block:
    """Solve a block on a worker and write it; doing this twice does no harm.

    The store is opened and checked after the block is solved. A worker that was given up must not
    write to a store that now holds another plan.

    Raises:
        OSError: If the store has been replaced.
    """
    solved = _solved(plan, block, part)
    work = BlockStore.open(path)
    if held_by(work) != held:
        raise OSError(
            f"{path} holds another plan since its block {block.number} was begun, perhaps because "
            "it grew; run that plan again."
        )
    return _written(work, block, *solved)


def _audit(plan: Plan, work: BlockStore) -> None:
    """Solve some runs again at tighter tolerances, and write the deviations to the attributes."""
    if "audit_count" in work.attributes:
        return
    chosen = ensemble.chosen_for_audit(plan.starts.count, plan.audit)
    parts = []
    for case in plan.cases():
        points: list[np.ndarray] = []
        rows: dict[str, list[np.ndarray]] = {"outcome": [], "time": [], "end": []}
        for block in range(work.layout.blocks_of_a_case):
            first, last = work.layout.part(block)
            inside = chosen[(chosen >= first) & (chosen < last)] - first
            if len(inside):
                points.append(plan.starts.part(first, last)[inside])
                for name, found in rows.items():
                    found.append(work.values(name, Block(case, block))[inside])
        mine = {name: np.concatenate(found) for name, found in rows.items()}
        parts.append(plan.audited(case, np.concatenate(points), mine))
    audit = ensemble.joined(parts)
    work.update({f"audit_{name}": value for name, value in vars(audit).items()})


def _rate(store: BlockStore, length: int) -> float:
    """Runs per second in the last blocks, from the times between their ends.

    The median of these times is taken, since one of them may contain a pause between two runs of
    the command.
    """
    ends = store.about(FINISHED)
    ends = np.sort(ends[np.isfinite(ends)])[-_RECENT:]
    if len(ends) < 2:
        return float("nan")
    between = float(np.median(np.diff(ends)))
    return length / between if between > 0 else float("nan")


def resume_hint(path: str | os.PathLike[str]) -> str:
    """A sentence on the progress of an interrupted store, and the command that resumes it."""
    try:
        store = BlockStore.open(path, write=False)
    except (FileNotFoundError, ValueError):
        return "nothing was written; start again"
    done = store.done()
    return f"{int(done.sum())} of {done.size} blocks are done; resume with `flowlab resume {path}`"


def _lock_of(path: Any) -> Any:
    """The file lock of a store, which the system releases at the end of its process."""
    from filelock import FileLock

    folder = Path(path).absolute()
    return FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)


@contextmanager
def _alone(path: str | os.PathLike[str]) -> Iterator[None]:
    """A context that locks a store against other processes of this machine (not in object stores).

    The lock file is removed while the lock is held. A process that obtains the lock of a removed
    file tries again, so that two processes never hold two locks.
    """
    from filelock import Timeout

    if is_address(path):
        yield
        return
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(path)
    folder = Path(lock.lock_file)
    while True:
        try:
            lock.acquire()
        except Timeout:
            raise BlockingIOError(
                f"another process is writing to {path}; wait for it, or stop it first"
            ) from None
        if folder.exists():
            break
        lock.release()
    try:
        yield
    finally:
        with suppress(OSError):  # some systems do not remove what is open
            folder.unlink()
        lock.release()


def _is_locked(path: Any) -> bool:
    from filelock import Timeout

    if is_address(path):
        return False
    lock = _lock_of(path)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock:
            return False
    except Timeout:
        return True


@contextmanager
def _stoppable() -> Iterator[None]:
    """A context in which SIGTERM acts like Ctrl-C, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
