"""The runs of the study: many geometries, several values of β, many starts."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from flowlab import measures, starts, until
from flowlab.domains import Box, Quadrant, Simplex
from flowlab.ensemble import Runs, sweep
from flowlab.flow import AbstractFlow, PreferenceFlow, preference_flow
from flowlab.logs import TrainingLog
from flowlab.losses import DPO
from flowlab.policies import (
    AbstractPolicy,
    CoupledKernel,
    FeatureModel,
    LogRatioPlane,
    RatioPlane,
    TabularSoftmax,
)
from flowlab.solve import compiled
from flowlab.study.instruments import Instruments, instruments

__all__ = [
    "GEOMETRIES",
    "LEVEL",
    "SLOW_SHARE",
    "ClaimRuns",
    "Dip",
    "Geometry",
    "ResponseLine",
    "Settings",
    "StudyData",
    "alike",
    "collect",
    "ratios_at",
    "run_to_level",
    "wide",
]

LEVEL = 0.1  # the loss at which a start counts as having learnt its pair
SLOW_SHARE = 0.5  # slow: below this part of the median speed over the starts
_MOMENTS = 240  # points of the feature model's flow line
_HORIZON = 2.0  # where that line ends, in median arrivals of the other starts


@dataclass(frozen=True, eq=False)
class Geometry:
    """A geometry of the study: a policy, with its names in the report.

    Attributes:
        name: Key in `claims.json`.
        title: The name in the text of the report.
        short: A short name for narrow columns.
        policy: The policy; if it has several pairs, the claims are about the first pair.
        way_back: Compiled function from log-ratios of the first pair, shape (n, 2), to states.
    """

    name: str
    title: str
    short: str
    policy: AbstractPolicy
    way_back: Callable[[Float[Array, "n 2"]], PyTree[Array]]

    @property
    def in_ratios(self) -> bool:
        """True if a state is (x1, x2)."""
        return isinstance(self.policy, RatioPlane)

    def flow(self, beta: float) -> PreferenceFlow:
        """The flow of DPO with a given β."""
        return preference_flow(DPO(beta), self.policy)

    def states(self, ratios: Float[np.ndarray, "n 2"]) -> PyTree[Float[np.ndarray, "n ..."]]:
        """States with given probability ratios of the first pair, in float64.

        A state is NaN if the two responses leave no probability for the others.
        """
        with jax.enable_x64(True):
            found = self.way_back(jnp.log(jnp.asarray(ratios, float)))
            return jax.tree.map(np.asarray, found)

    def ratios(self, states: PyTree[Float[np.ndarray, "n ..."]]) -> Float[np.ndarray, "n 2"]:
        """Probability ratios (x1, x2) of the first pair at states, in float64."""
        with jax.enable_x64(True):
            return np.asarray(_ratios(self.policy, wide(states)))

    def coordinates(self, states: PyTree[Float[np.ndarray, "n ..."]]) -> Float[np.ndarray, "n d"]:
        """The components of each state as one vector."""
        leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(states)]
        return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)

    def starts(self, ratios: Float[np.ndarray, "n 2"]) -> PyTree[Float[np.ndarray, "m ..."]]:
        """The states with given ratios, without those outside the domain."""
        states = self.states(ratios)
        with jax.enable_x64(True):
            inside = np.asarray(_inside(self.policy, wide(states)))
        return jax.tree.map(lambda leaf: leaf[inside], states)


def ratios_at(policy: AbstractPolicy, state: PyTree[Array]) -> Float[Array, "*p 2"]:
    """Probability ratios (x1, x2) of every pair at one state; for use in traced code."""
    pairs = policy.pairs(state)
    return jnp.exp(jnp.stack([pairs.u_chosen, pairs.u_rejected], axis=-1))


@partial(compiled, optimise=False)
def _ratios(policy: AbstractPolicy, states: PyTree[Array]) -> Float[Array, "n 2"]:
    return jax.vmap(lambda state: ratios_at(policy, state).reshape(-1, 2)[0])(states)


@partial(compiled, optimise=False)
def _inside(policy: AbstractPolicy, states: PyTree[Array]) -> Bool[Array, " n"]:
    return jax.vmap(policy.domain.contains)(states)


@partial(compiled, optimise=False)
def _speeds(flow: AbstractFlow, states: PyTree[Array]) -> Float[Array, " n"]:
    return jax.vmap(flow.speed)(states)


def wide(states: PyTree[np.ndarray]) -> PyTree[Array]:
    """States as float64 arrays; call it with 64-bit types enabled."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), states)


def _way_back(policy: AbstractPolicy) -> Callable[[Float[Array, "n 2"]], PyTree[Array]]:
    # The policy is closed over, since `state_at` may depend on the values of its numbers.
    return jax.jit(jax.vmap(policy.state_at))


_RESPONSES = [0.1, 0.05, 0.8, 0.05]
_ONE_PAIR = TabularSoftmax(_RESPONSES)
_FEATURE_MODEL = FeatureModel([[1, 0.5], [1, -0.5], [0, 3]], [0.3, 0])
# Geometries with states of the same kind share this function, which is compiled once.
_TO_RATIOS, _TO_LOG_RATIOS, _TO_LOGITS, _TO_FEATURES = map(
    _way_back, (RatioPlane(), LogRatioPlane(), _ONE_PAIR, _FEATURE_MODEL)
)


def _coupled(ratio: float) -> Geometry:
    """A geometry with a constant kernel as an array, so that all of them share one program."""
    with jax.enable_x64(True):
        kernel = np.asarray(CoupledKernel(ratio)(jnp.zeros(2)))
    name, title = f"coupled_{ratio:g}", f"coupled kernel {ratio:g}"
    return Geometry(name, title, f"kernel {ratio:g}", LogRatioPlane(kernel), _TO_LOG_RATIOS)


GEOMETRIES: tuple[Geometry, ...] = (
    Geometry("ratio_plane", "free ratio plane", "ratio", RatioPlane(Quadrant()), _TO_RATIOS),
    Geometry(
        "box", "ratio plane in the box", "box", RatioPlane(Box(1, 1), wall="slide"), _TO_RATIOS
    ),
    Geometry(
        "simplex",
        "ratio plane in the simplex",
        "simplex",
        RatioPlane(Simplex(), wall="slide"),
        _TO_RATIOS,
    ),
    Geometry("log_ratio_plane", "log-ratio plane", "log-ratio", LogRatioPlane(), _TO_LOG_RATIOS),
    Geometry("tabular_softmax", "softmax with one pair", "softmax", _ONE_PAIR, _TO_LOGITS),
    Geometry(
        "tabular_softmax_pairs",
        "softmax with three pairs",
        "softmax, 3 pairs",
        TabularSoftmax(_RESPONSES, [(0, 1), (2, 3), (2, 1)]),
        _TO_LOGITS,
    ),
    *(_coupled(ratio) for ratio in (0.0, 0.5, 0.9, 1.1)),
    Geometry("feature_model", "feature model", "features", _FEATURE_MODEL, _TO_FEATURES),
)

_FREE, _FEATURES = GEOMETRIES[0], GEOMETRIES[-1]


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Attributes:
        betas: Values of β.
        map_cells: Number of cells per side of the maps, on the free ratio plane.
        claim_cells: Number of cells per side of the grid for the claims, in every geometry.
        rtol: Relative tolerance.
        dtype: float64 or float32.
        quick: True for the quick version of the study.
    """

    betas: tuple[float, ...] = (0.1, 0.3, 0.5)
    map_cells: int = 512
    claim_cells: int = 96
    rtol: float = 1e-6
    dtype: Any = np.float64
    quick: bool = False


class Dip(NamedTuple):
    """The fall of the chosen response along a flow line, and its recovery.

    Attributes:
        depth: Largest fall of the chosen log-probability, nats; 0 if it does not fall.
        time: Flow time of the largest fall; NaN if it does not fall.
        recovery: Flow time at which the initial value is reached again; NaN if it is not.
        third: Highest probability of the third response.
        third_time: Flow time of this highest probability.
    """

    depth: float
    time: float
    recovery: float
    third: float
    third_time: float


@dataclass(frozen=True)
class ResponseLine:
    """A flow line of the feature model that starts at its reference state.

    Attributes:
        beta: β.
        times: Flow times, from 0, shape (k,).
        probabilities: Probabilities of chosen, rejected and third response, shape (k, 3).
        dip: The fall of the chosen response.
    """

    beta: float
    times: Float[np.ndarray, " k"]
    probabilities: Float[np.ndarray, "k 3"]
    dip: Dip


@dataclass(frozen=True)
class ClaimRuns:
    """Runs for the claims in one geometry at one β.

    Attributes:
        slow: The speed below which a state counts as slow.
        to_level: Runs from the grid of the claims to the loss `LEVEL`.
        common_time: The median arrival time at `LEVEL`.
        at_time: Runs from the same starts to the flow time `common_time`.
        instruments: The results of the instruments.
    """

    slow: float
    to_level: Runs
    common_time: float
    at_time: Runs
    instruments: Instruments


@dataclass(frozen=True)
class StudyData:
    """All runs of the study, from which its figures, claims and report are computed.

    Attributes:
        settings: The settings.
        maps: For each β, the runs to `LEVEL` from all cells of (0, 1)² on the free ratio plane.
        map_starts: The starts of the maps, shape (cells², 2); reshape to (cells, cells, 2), 'ij'.
        runs: The runs for the claims, by (geometry name, β).
        line: A flow line of the feature model at the first β.
        log: A training log; None if none was given.
    """

    settings: Settings
    maps: dict[float, Runs]
    map_starts: Float[np.ndarray, "n 2"]
    runs: dict[tuple[str, float], ClaimRuns]
    line: ResponseLine
    log: TrainingLog | None


def alike(geometries: tuple[Geometry, ...] = GEOMETRIES) -> list[list[Geometry]]:
    """The geometries in groups; the geometries of a group share compiled programs."""

    def structure(geometry: Geometry) -> Any:
        return jax.tree.structure(geometry.policy)

    first = {structure(geometry): place for place, geometry in reversed([*enumerate(geometries)])}
    ordered = sorted(geometries, key=lambda geometry: first[structure(geometry)])
    return [list(group) for _, group in groupby(ordered, key=structure)]


def collect(
    settings: Settings,
    log: TrainingLog | None,
    progress: bool | None,
    tell: Callable[[str], object] = lambda name: None,
) -> StudyData:
    """Run everything that the study needs.

    Two groups of geometries are processed at a time: while one compiles, the other runs.

    Args:
        settings: The settings of the study.
        log: A training log to draw over the flow.
        progress: Whether to show progress bars; None to show them in a terminal.
        tell: A function that is called with the name of each finished geometry.
    """
    cells = starts.grid(settings.map_cells).astype(settings.dtype)
    runs: dict[tuple[str, float], ClaimRuns] = {}
    beside: dict[str, Any] = {}  # what belongs to one geometry alone

    def work(group: list[Geometry]) -> None:
        for geometry in group:
            runs.update(_claim_runs(geometry, settings))
            tell(geometry.name)
        if group[0] is _FREE:
            beside["maps"] = _maps(settings, cells, progress)
        if group[0] is _FEATURES:
            arrival = runs[_FEATURES.name, settings.betas[0]].common_time
            beside["line"] = _response_line(settings, arrival)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, alike()))  # raises what one of them raised
    return StudyData(settings, map_starts=cells, runs=runs, log=log, **beside)


def run_to_level(
    settings: Settings,
    geometry: Geometry,
    beta: float,
    states: PyTree[Float[np.ndarray, "n ..."]],
    *,
    slow: float,
    level: float = LEVEL,
    audit: float = 0.0,
    progress: bool | None = False,
) -> Runs:
    """Runs of a geometry to a level of the loss, with all measures.

    One compiled program serves all values of β, `slow` and `level`. Measures for figures are taken
    only on the ratio planes.

    Args:
        settings: The settings of the study.
        geometry: The geometry.
        beta: β.
        states: The starts.
        slow: The speed below which a state counts as slow.
        level: The loss at which a flow line ends.
        audit: Fraction of the starts to solve again at tighter tolerances.
        progress: Whether to show a progress bar; None to show it in a terminal.
    """
    measured = [measures.dwell(slow), measures.slowest(), measures.rate_ratio("x")]
    if geometry.in_ratios:
        measured += [measures.path_length(), measures.change("x"), measures.change("u")]
    return sweep(
        geometry.flow(beta),
        states,
        until=until.loss_below(level),
        measures=measured,
        rtol=settings.rtol,
        optimise=not settings.quick,
        audit=audit,
        progress=progress,
    )


def _slow(geometry: Geometry, beta: float, states: PyTree[np.ndarray]) -> float:
    """The speed below which a state counts as slow, computed from the free field at the starts."""
    with jax.enable_x64(True):
        return SLOW_SHARE * float(np.median(_speeds(geometry.flow(beta), wide(states))))


def _maps(settings: Settings, cells: np.ndarray, progress: bool | None) -> dict[float, Runs]:
    audit = 0.0 if settings.quick else 0.001
    return {
        beta: run_to_level(
            settings,
            _FREE,
            beta,
            cells,
            slow=_slow(_FREE, beta, cells),
            audit=audit,
            progress=progress,
        )
        for beta in settings.betas
    }


def _claim_runs(geometry: Geometry, settings: Settings) -> dict[tuple[str, float], ClaimRuns]:
    states = jax.tree.map(
        lambda leaf: leaf.astype(settings.dtype),
        geometry.starts(starts.grid(settings.claim_cells)),
    )
    found = {}
    for beta in settings.betas:
        flow, slow = geometry.flow(beta), _slow(geometry, beta, states)
        to_level = run_to_level(settings, geometry, beta, states, slow=slow)
        common_time = float(np.nanmedian(to_level.time))
        at_time = sweep(
            flow,
            states,
            until=until.time(common_time),
            rtol=settings.rtol,
            optimise=not settings.quick,
            progress=False,
        )
        seen = instruments(flow, states, slow=slow, level=LEVEL, paper=geometry is _FREE)
        found[geometry.name, beta] = ClaimRuns(slow, to_level, common_time, at_time, seen)
    return found


def _response_line(settings: Settings, arrival: float) -> ResponseLine:
    """The flow line of the feature model from its reference state."""
    policy, beta = _FEATURES.policy, settings.betas[0]
    assert isinstance(policy, FeatureModel)
    moments = np.linspace(0, _HORIZON * arrival, _MOMENTS + 1)
    states = {"readout": policy.readout, "features": policy.features}
    runs = sweep(
        _FEATURES.flow(beta),
        jax.tree.map(lambda leaf: np.asarray(leaf, float)[None], states),
        until=until.time(moments[-1]),
        save_at=moments[1:],
        measures=[measures.dip(), measures.mass()],
        optimise=False,
        progress=False,
    )
    dip = Dip(
        depth=float(runs.measures["dip_depth"][0]),
        time=float(runs.measures["dip_time"][0]),
        recovery=float(runs.measures["recovery_time"][0]),
        third=float(runs.measures["mass_peak"][0, 2]),
        third_time=float(runs.measures["mass_peak_time"][0, 2]),
    )
    saved = jax.tree.map(lambda a, b: np.concatenate([b, a[0]]), runs.saved, runs.starts)
    with jax.enable_x64(True):
        logs = jax.jit(jax.vmap(policy.log_probs))(saved)
    return ResponseLine(beta, moments, np.exp(np.asarray(logs)), dip)
