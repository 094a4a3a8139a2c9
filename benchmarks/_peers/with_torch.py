"""torchode and torchdiffeq, one batch each, on the threads that PyTorch takes for the cores.

torchode has a step per start, and torchdiffeq one for the batch. `torch.compile` of torchode's loop
takes minutes, TorchScript no longer takes it, and compiling the field alone changes nothing.
"""

import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from . import Peer, Solved, Way, library
from .problems import Clock, Problem

__all__ = ["torchdiffeq_peers", "torchode_peers"]

STARTS = 32768
# torchode has one absolute tolerance for all components: in this unit it does not matter for the
# time. torchdiffeq has one for each.
UNIT_OF_TIME = 1e-3


def torchode_peers(problem: Problem, cores: int) -> dict[str, Peer]:
    """The margin clock, by torchode.

    Raises:
        MissingError: If it is not installed.
    """
    return _peers("torchode", _torchode_way, ("Tsit5", "Dopri5"), problem, cores)


def torchdiffeq_peers(problem: Problem, cores: int) -> dict[str, Peer]:
    """The margin clock, by torchdiffeq.

    Raises:
        MissingError: If it is not installed.
    """
    return _peers("torchdiffeq", _torchdiffeq_way, ("dopri5", "dopri8"), problem, cores)


def _peers(
    name: str, way: Callable[..., Way], methods: Sequence[str], problem: Problem, cores: int
) -> dict[str, Peer]:
    if problem.clock is None or problem.wall is not None:
        return {}
    torch, asked = _libraries(name, cores)
    ways = {method: way(torch, asked, problem.clock, method) for method in methods}
    return {f"{name}, margin clock": Peer(ways, STARTS)}


def _libraries(name: str, cores: int) -> tuple[ModuleType, ModuleType]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what they import themselves
        torch, asked = library("torch"), library(name)
    torch.set_num_threads(cores)
    return torch, asked


def _torchode_way(torch: Any, torchode: Any, clock: Clock, name: str) -> Way:
    def field(s: Any, state: Any, span: Any) -> Any:
        del s
        chosen, rejected, time = clock.rates(state[:, 0], state[:, 1], torch.exp)
        return torch.stack((chosen * span, rejected * span, time * (span / UNIT_OF_TIME)), dim=1)

    term = torchode.ODETerm(field, with_args=True)

    def solve(points: np.ndarray, rtol: float) -> Solved:
        log_ratios = clock.enter(points)
        state = torch.zeros((len(points), 3), dtype=torch.float64)
        state[:, :2] = torch.from_numpy(log_ratios)
        controller = torchode.IntegralController(atol=rtol, rtol=rtol, term=term)
        solver = torchode.AutoDiffAdjoint(getattr(torchode, name)(term=term), controller)
        begin, end = torch.zeros_like(state[:, 0]), torch.ones_like(state[:, 0])
        problem = torchode.InitialValueProblem(y0=state, t_start=begin, t_end=end)
        with torch.no_grad():
            solution = solver.solve(problem, args=torch.from_numpy(clock.span(log_ratios)))
        times = solution.ys[:, -1, 2].numpy() * UNIT_OF_TIME
        return Solved(times, float(solution.stats["n_steps"].double().mean()))

    return solve


def _torchdiffeq_way(torch: Any, torchdiffeq: Any, clock: Clock, name: str) -> Way:
    def column(*values: float) -> Any:
        return torch.tensor(values, dtype=torch.float64)[:, None]

    def solve(points: np.ndarray, rtol: float) -> Solved:
        log_ratios = clock.enter(points)
        state = torch.zeros((3, len(points)), dtype=torch.float64)
        state[:2] = torch.from_numpy(log_ratios.T)
        span, calls = torch.from_numpy(clock.span(log_ratios)), 0

        def field(s: Any, state: Any) -> Any:
            nonlocal calls
            calls += 1
            chosen, rejected, time = clock.rates(state[0], state[1], torch.exp)
            return torch.stack((chosen * span, rejected * span, time * span))

        # Without a step that ends there, it goes beyond the end and interpolates.
        end = torch.ones(1, dtype=torch.float64)
        tolerances = {"rtol": column(0, 0, rtol), "atol": column(rtol, rtol, 1e-3 * rtol)}
        options = {"step_t": end, "dtype": torch.float64}
        interval = torch.tensor([0.0, 1.0], dtype=torch.float64)
        with torch.no_grad():
            states = torchdiffeq.odeint(
                field, state, interval, method=name, options=options, **tolerances
            )
        return Solved(states[-1][2].numpy(), calls / {"dopri5": 6, "dopri8": 13}[name])

    return solve
