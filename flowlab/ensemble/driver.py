"""The verb `sweep`: checks of its arguments, and sweeps over hyper-parameters.

n: starts; k: levels of the target; s: times to save at; v: values of a swept hyper-parameter.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import ArrayLike, Float, PyTree
from tqdm import tqdm

from flowlab._checks import between
from flowlab.ensemble.audit import audit_of
from flowlab.ensemble.backends import Device, worker
from flowlab.ensemble.drawing import count_of, first_of
from flowlab.ensemble.runs import Runs
from flowlab.ensemble.stiff import solved_by_choice
from flowlab.flow import AbstractFlow
from flowlab.measures import Measure
from flowlab.solve import (
    Method,
    Problem,
    check_counts,
    check_states,
    default_rtol,
    make_method,
    one_call,
    one_of,
    problem_for,
)
from flowlab.solve.progress import bar_options
from flowlab.starts import DrawnStarts
from flowlab.until import AbstractTarget, Clock

__all__ = ["checked_over", "sweep"]


def sweep(
    flow: AbstractFlow,
    starts: PyTree[Float[ArrayLike, "n ..."]] | DrawnStarts,
    *,
    until: AbstractTarget,
    over: Mapping[str, Sequence[float]] | None = None,
    measures: Sequence[Measure] = (),
    save_at: npt.ArrayLike | None = None,
    clock: Clock | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: Any = None,
    block_size: int | None = None,
    devices: Sequence[Device] | None = None,
    backend: str | None = None,
    max_steps: int = 4096,
    optimise: bool | None = None,
    audit: float = 0.0,
    progress: bool | None = None,
) -> Runs:
    """Flow lines from many starts, until a target.

    The starts are sorted by their potential and solved in blocks that share a step, so that the
    lanes of a block are alike; on a GPU or a TPU each is solved by itself in a kernel. A start that
    fails gets an outcome, and affects no other.

    Args:
        flow: What to follow.
        starts: Shape (n, d), or a PyTree with a leading axis n. Its dtype, float32 or float64, is
            the dtype of the work. Or `starts.DrawnStarts`, which a kernel draws on the device chunk
            by chunk, so that they are never held all at once.
        until: When to stop, from `flowlab.until`.
        over: Hyper-parameters of the flow to sweep, by name: each becomes a labelled leading axis.
            All values share one compiled program.
        measures: What to measure, from `flowlab.measures`.
        save_at: Flow times at which to keep the states, positive and increasing.
        clock: The independent variable; None for the target's own. Results do not depend on it:
            lanes that alone need small steps under it, or that it leads astray, go on under arc
            length, and stiff starts are solved again under time, or under arc length on a domain
            whose boundary absorbs.
        rtol: Relative tolerance, of the state and of the flow time; None for 1e-6, or 1e-4 where
            the dtype is float32.
        atol: Absolute tolerance of the state; None for rtol × 1e-3 × its smallest component, or for
            no absolute tolerance on a domain of positive components.
        solver: Any explicit Runge–Kutta solver of diffrax with an error estimate, or
            `solve.ROCK4()` or `solve.RKC2()` for stiff flows with a constant metric, by default
            under the clock of time, or `solve.Rodas5P()` for small states. None for Tsit5, or
            Dopri8 where rtol < 3e-8; starts whose steps only stability kept so short that they ran
            out are solved again by one of these, and `Runs.solved_by` says which was by which.
        block_size: Starts that share a step; None for 992 on a CPU and 65,536 elsewhere.
        devices: JAX devices to use; None for all local ones. On CPUs, blocks run on one thread for
            each core, without any flag.
        backend: "blocks", on any device, or "kernel", on GPUs and TPUs: a single program that takes
            all steps. Where the kernel cannot be compiled, blocks are used; `Runs.backend` says
            which, and a debug message why. None for the kernel on GPUs and TPUs, and for blocks
            elsewhere or if `block_size` is given.
        max_steps: Steps that a block tries. The count begins again when a lane that held up the
            block has left it. Lanes that are still running then go on in small blocks, of 8 on a
            CPU and 512 elsewhere, for as many steps again, as long as one in eight of them
            arrives so; the outcome of others is `step_limit`.
        optimise: Whether the compiler optimises its code. It then takes two or three times as long,
            and the run is several times as fast. None for yes from 4,000 runs on. A kernel is
            always optimised.
        audit: Fraction of the starts, chosen at random, to solve again at tolerances a hundred
            times tighter.
        progress: Whether to show a progress bar; None where it takes long, on a terminal.

    Raises:
        ValueError: If the starts have the wrong shape, a hyper-parameter is unknown or out of its
            range, a tolerance is below what the dtype can hold, or an option is out of range.

    Accuracy: `rtol` per step, relative to state and time. Compared with closed forms on the ratio
        plane, the errors of times are below 10·rtol in the median and 100·rtol at worst. Results
        agree to the tolerance whatever the blocks, their order, their neighbours and the devices;
        identical blocks give identical bits.
    """
    check_counts(block_size, max_steps)
    between("audit", audit, 0, 1)
    checked, dtype = check_states("starts", first_of(starts), flow, batched=True)
    given = starts if isinstance(starts, DrawnStarts) else checked
    rtol = default_rtol(dtype) if rtol is None else rtol
    values = checked_over(over, flow)
    flows = [_with_parameters(flow, values, case) for case in itertools.product(*values.values())]
    count = count_of(given)
    common: dict[str, Any] = dict(until=until, clock=clock, atol=atol, rtol=rtol, save_at=save_at)
    blocks: dict[str, Any] = dict(block_size=block_size, devices=devices, max_steps=max_steps)
    blocks["backend"] = backend
    solve = worker(count, count * len(flows), **blocks, optimise=optimise)
    method = make_method(solver, rtol=rtol)
    problems = _problems(flows, checked, dtype, measures, common, solver)
    solve_all = solve if solver is not None else partial(solved_by_choice, solve)
    results = _solutions(problems, method, given, solve_all, progress)
    runs = _gathered(flow, given, values, results, measures, common)
    common |= blocks | {"solver": solver}
    audited = audit_of(audit, flows, runs.starts, results, common) if audit > 0 else None
    return replace(runs, audit=audited, solver=method.name, backend=solve.backend)


def _problems(
    flows: Sequence[AbstractFlow],
    starts: PyTree[np.ndarray],
    dtype: Any,
    measures: Sequence[Measure],
    common: Mapping[str, Any],
    solver: Any,
) -> list[Problem]:
    """The problems of all flows, made and checked before any is solved.

    Functions are checked once for all values of the hyper-parameters.
    """
    state = one_of(starts)
    with jax.enable_x64(dtype == np.float64), one_call():
        return [
            problem_for(solver, flow, dtype, state, measures=measures, **common) for flow in flows
        ]


def _solutions(
    problems: Sequence[Problem],
    method: Method,
    starts: PyTree[np.ndarray] | DrawnStarts,
    solve: Callable[..., dict[str, Any]],
    progress: bool | None,
) -> list[dict[str, Any]]:
    """The results of all problems, solved one after the other under a common progress bar."""
    total = len(problems) * count_of(starts)
    results = []
    with tqdm(total=total, unit="start", unit_scale=True, **bar_options(progress)) as bar:
        for problem in problems:
            with jax.enable_x64(problem.rtol.dtype == np.float64):
                results.append(solve(problem, method, starts, progress=bar.update))
    return results


def _gathered(
    flow: AbstractFlow,
    starts: PyTree[np.ndarray] | DrawnStarts,
    values: Mapping[str, list[float]],
    results: list[dict[str, Any]],
    measures: Sequence[Measure],
    common: Mapping[str, Any],
) -> Runs:
    """The runs of all cases, with the names of their axes."""
    save_at = common["save_at"]
    return Runs(
        starts,
        **_stacked(results, list(values.values())),
        over={name: np.asarray(listed, dtype=float) for name, listed in values.items()},
        save_at=np.asarray([] if save_at is None else save_at, dtype=float),
        rtol=common["rtol"],
        components=flow.components,
        measure_axes={name: m.axis for m in measures if m.axis for name in m.names},
        domain=flow.domain,
    )


def _with_parameters(
    flow: AbstractFlow, names: Iterable[str], values: Iterable[float]
) -> AbstractFlow:
    for name, value in zip(names, values, strict=True):
        flow = flow.with_parameter(name, value)
    return flow


def _stacked(results: list[dict[str, Any]], values: list[list[float]]) -> dict[str, Any]:
    """The results of all cases, with hyper-parameters as leading axes."""
    lead = tuple(len(v) for v in values)
    if not lead:
        return results[0]
    return jax.tree.map(lambda *x: np.stack(x).reshape(lead + x[0].shape), *results)


def checked_over(
    over: Mapping[str, Sequence[float]] | None, flow: AbstractFlow
) -> dict[str, list[float]]:
    """The values of swept hyper-parameters as lists of numbers, each checked against the flow.

    Raises:
        ValueError: If they are not lists of numbers, or the flow refuses a value.
    """
    values: dict[str, list[float]] = {}
    if over is not None and not isinstance(over, Mapping):
        raise ValueError(
            f"Argument `over` must map names to values, as {{'beta': [0.1]}} does, but is {over!r}."
        )
    for name, sequence in (over or {}).items():
        try:
            listed = np.asarray(sequence, dtype=float)
        except (TypeError, ValueError):
            listed = np.zeros((0, 0))
        if listed.ndim != 1 or listed.size == 0:
            raise ValueError(
                f"Argument `over` must give a list of values for `{name}`, but gives {sequence!r}."
            )
        for value in listed:
            _check_single(name, flow, flow.with_parameter(name, float(value)))
        values[name] = [float(value) for value in listed]
    return values


def _check_single(name: str, flow: AbstractFlow, changed: AbstractFlow) -> None:
    """Refuse to sweep a hyper-parameter that is an array."""
    held = zip(jax.tree.leaves(flow), jax.tree.leaves(changed), strict=False)
    for before, after in held:
        if np.ndim(before) > np.ndim(after):
            raise ValueError(
                f"Argument `over` must name single numbers, but `{name}` is an array of shape "
                f"{np.shape(before)}; sweep a factor of it, or one flow for each array."
            )
