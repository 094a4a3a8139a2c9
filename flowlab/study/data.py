"""The runs that the study is made of: many geometries, several β, many starts."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
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
    "Dip",
    "Geometry",
    "ResponseLine",
    "Settings",
    "StudyData",
    "alike",
    "collect",
    "line_measures",
    "ratios_at",
    "speeds",
]

LEVEL = 0.1  # the loss at which a start counts as having learnt its pair
SLOW_SHARE = 0.5  # slow: below this part of the median speed over the starts


_MOMENTS = 240  # points of the feature model's flow line
_HORIZON = 2.0  # where that line ends, in median arrivals of the other starts


@dataclass(frozen=True, eq=False)
class Geometry:
    """One way to give a state a meaning, and its names in the report.

    Attributes:
        name: Key in `claims.json`.
        title: Words for people.
        short: The same for the head of a narrow column.
        policy: The policy; where it has several pairs, the claims are about the first.
        placed: The policy whose way back from log-ratios gives the starts; None for the same.
    """

    name: str
    title: str
    short: str
    policy: AbstractPolicy
    placed: AbstractPolicy | None = None

    @property
    def in_ratios(self) -> bool:
        """Whether a state is (x1, x2)."""
        return isinstance(self.policy, RatioPlane)

    def flow(self, beta: float) -> PreferenceFlow:
        """The flow of DPO at a β."""
        return preference_flow(DPO(beta), self.policy)

    def states(self, ratios: Float[np.ndarray, "n 2"]) -> PyTree[Float[np.ndarray, "n ..."]]:
        """States whose first pair has the given probability ratios, in float64.

        NaN where the two responses leave no probability to the others.
        """
        with jax.enable_x64(True):
            found = self._way_back(jnp.log(jnp.asarray(ratios, float)))
            return jax.tree.map(np.asarray, found)

    @cached_property
    def _way_back(self) -> Callable[[Float[Array, "n 2"]], PyTree[Array]]:
        # The policy is closed over, since ways back may look at the numbers that it holds.
        return jax.jit(jax.vmap((self.placed or self.policy).state_at))

    def ratios(self, states: PyTree[Float[np.ndarray, "n ..."]]) -> Float[np.ndarray, "n 2"]:
        """Probability ratios (x1, x2) of the first pair at states, in float64."""
        with jax.enable_x64(True):
            return np.asarray(_ratios(self.policy, _wide(states)))

    def coordinates(self, states: PyTree[Float[np.ndarray, "n ..."]]) -> Float[np.ndarray, "n d"]:
        """All components of states side by side."""
        leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(states)]
        return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)

    def admits(self, ratios: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Which ratios lie inside the walls and leave probability to the other responses."""
        with jax.enable_x64(True):
            return np.asarray(_inside(self.policy, _wide(self.states(ratios))))


def ratios_at(policy: AbstractPolicy, state: PyTree[Array]) -> Float[Array, "*p 2"]:
    """Probability ratios (x1, x2) of every pair at one state, to be traced."""
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


def _wide(states: PyTree[np.ndarray]) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), states)


def _coupled(ratio: float) -> Geometry:
    """A constant kernel as an array, so that all of them share one compiled program."""
    with jax.enable_x64(True):
        kernel = np.asarray(CoupledKernel(ratio)(jnp.zeros(2)))
    name, title = f"coupled_{ratio:g}", f"coupled kernel {ratio:g}"
    return Geometry(name, title, f"kernel {ratio:g}", LogRatioPlane(kernel))


_RESPONSES = [0.1, 0.05, 0.8, 0.05]
_ONE_PAIR = TabularSoftmax(_RESPONSES)

GEOMETRIES: tuple[Geometry, ...] = (
    Geometry("ratio_plane", "free ratio plane", "ratio", RatioPlane(Quadrant())),
    Geometry("box", "ratio plane in the box", "box", RatioPlane(Box(1, 1), wall="slide")),
    Geometry(
        "simplex", "ratio plane in the simplex", "simplex", RatioPlane(Simplex(), wall="slide")
    ),
    Geometry("log_ratio_plane", "log-ratio plane", "log-ratio", LogRatioPlane()),
    Geometry("tabular_softmax", "softmax with one pair", "softmax", _ONE_PAIR),
    Geometry(
        "tabular_softmax_pairs",
        "softmax with three pairs",
        "softmax, 3 pairs",
        TabularSoftmax(_RESPONSES, [(0, 1), (2, 3), (2, 1)]),
        _ONE_PAIR,
    ),
    *(_coupled(ratio) for ratio in (0.0, 0.5, 0.9, 1.1)),
    Geometry(
        "feature_model",
        "feature model",
        "features",
        FeatureModel([[1, 0.5], [1, -0.5], [0, 3]], [0.3, 0]),
    ),
)

_FREE, _FEATURES = GEOMETRIES[0], GEOMETRIES[-1]


@dataclass(frozen=True)
class Settings:
    """What the study runs.

    Attributes:
        betas: Values of β.
        map_cells: Cells of the maps per side, on the free ratio plane.
        claim_cells: Cells per side for the claims, in every geometry.
        rtol: Relative tolerance.
        dtype: float64 or float32.
        quick: Whether this is the short version.
    """

    betas: tuple[float, ...] = (0.1, 0.3, 0.5)
    map_cells: int = 512
    claim_cells: int = 96
    rtol: float = 1e-6
    dtype: Any = np.float64
    quick: bool = False


class Dip(NamedTuple):
    """How far the chosen response falls below where a line begins.

    Attributes:
        depth: Deepest fall of its log-probability, nats; 0 where it does not fall.
        time: Flow time of that; NaN where it does not fall.
        recovery: Flow time at which it is back; NaN where it is not.
        third: Highest probability of the third response.
        third_time: Flow time of that.
    """

    depth: float
    time: float
    recovery: float
    third: float
    third_time: float


@dataclass(frozen=True)
class ResponseLine:
    """A flow line of the feature model, from its reference state.

    Attributes:
        beta: β.
        times: Flow times, from 0, shape (k,).
        probabilities: Of chosen, rejected and third response, shape (k, 3).
        dip: How far the chosen response falls.
    """

    beta: float
    times: Float[np.ndarray, " k"]
    probabilities: Float[np.ndarray, "k 3"]
    dip: Dip


@dataclass(frozen=True)
class StudyData:
    """Everything that was run; figures, claims and report read it.

    Attributes:
        settings: What was asked for.
        maps: By β: runs to `LEVEL` from all cells of (0, 1)² on the free ratio plane.
        map_starts: Their starts, shape (cells², 2); reshape to (cells, cells, 2), 'ij'.
        to_level: By (geometry name, β): runs to `LEVEL` from the claim grid.
        at_time: By (geometry name, β): runs to a common flow time from the same starts.
        common_time: By (geometry name, β): that time, the median arrival at `LEVEL`.
        slow: By (geometry name, β): the speed below which a point counts as slow.
        instruments: By (geometry name, β): what the instruments say.
        line: A flow line of the feature model, at the first β.
        log: A training log, if there is one.
    """

    settings: Settings
    maps: dict[float, Runs]
    map_starts: Float[np.ndarray, "n 2"]
    to_level: dict[tuple[str, float], Runs]
    at_time: dict[tuple[str, float], Runs]
    common_time: dict[tuple[str, float], float]
    slow: dict[tuple[str, float], float]
    instruments: dict[tuple[str, float], Instruments]
    line: ResponseLine
    log: TrainingLog | None


def alike(geometries: tuple[Geometry, ...] = GEOMETRIES) -> list[list[Geometry]]:
    """The geometries, those together whose programs are the same and so are compiled once."""

    def structure(geometry: Geometry) -> Any:
        return jax.tree.structure((geometry.policy, geometry.placed))

    first = {structure(geometry): place for place, geometry in reversed([*enumerate(geometries)])}
    ordered = sorted(geometries, key=lambda geometry: first[structure(geometry)])
    return [list(group) for _, group in groupby(ordered, key=structure)]


def collect(settings: Settings, log: TrainingLog | None, progress: bool | None) -> StudyData:
    """Run everything the study needs.

    Two geometries are worked on at a time: while one compiles, the other runs.
    """
    cells = starts.grid(settings.map_cells).astype(settings.dtype)

    beside: dict[str, Any] = {}  # what belongs to one geometry alone

    def work(group: list[Geometry]) -> list[tuple[dict[Any, Any], ...]]:
        parts = [_claim_runs(geometry, settings) for geometry in group]
        if group[0] is _FREE:
            beside["maps"] = _maps(settings, cells, progress)
        if group[0] is _FEATURES:
            arrival = parts[0][2][_FEATURES.name, settings.betas[0]]
            beside["line"] = _response_line(settings, arrival)
        return parts

    with ThreadPoolExecutor(2) as pool:
        parts = [part for group in pool.map(work, alike()) for part in group]
    merged = [{k: v for part in parts for k, v in part[i].items()} for i in range(5)]
    to_level, at_time, common, slow, seen = merged
    return StudyData(
        settings=settings,
        maps=beside["maps"],
        map_starts=cells,
        to_level=to_level,
        at_time=at_time,
        common_time=common,
        slow=slow,
        instruments=seen,
        line=beside["line"],
        log=log,
    )


def speeds(
    flow: AbstractFlow, states: PyTree[Float[np.ndarray, "n ..."]]
) -> Float[np.ndarray, " n"]:
    """Free speed at states, Euclidean in their coordinates, in float64."""
    with jax.enable_x64(True):
        return np.asarray(_speeds(flow, _wide(states)))


def line_measures(geometry: Geometry, slow: float) -> tuple[measures.Measure, ...]:
    """What is measured along every line of a geometry, slow being a speed.

    What only figures show is measured on the ratio planes alone.
    """
    always = (measures.dwell(slow), measures.slowest(), measures.rate_ratio("x"))
    if not geometry.in_ratios:
        return always
    return (*always, measures.path_length(), measures.change("x"), measures.change("u"))


def _maps(settings: Settings, cells: np.ndarray, progress: bool | None) -> dict[float, Runs]:
    found = {}
    for beta in settings.betas:
        flow = _FREE.flow(beta)
        slow = SLOW_SHARE * float(np.median(speeds(flow, cells)))
        found[beta] = sweep(
            flow,
            cells,
            until=until.loss_below(LEVEL),
            measures=line_measures(_FREE, slow),
            rtol=settings.rtol,
            optimise=not settings.quick,
            audit=0 if settings.quick else 0.001,
            progress=progress,
        )
    return found


def _claim_runs(geometry: Geometry, settings: Settings) -> tuple[dict[Any, Any], ...]:
    ratios = starts.grid(settings.claim_cells)
    states = jax.tree.map(
        lambda leaf: leaf.astype(settings.dtype), geometry.states(ratios[geometry.admits(ratios)])
    )
    to_level, at_time, common, slow, seen = {}, {}, {}, {}, {}
    for beta in settings.betas:
        key, flow = (geometry.name, beta), geometry.flow(beta)
        slow[key] = SLOW_SHARE * float(np.median(speeds(flow, states)))
        to_level[key] = sweep(
            flow,
            states,
            until=until.loss_below(LEVEL),
            measures=line_measures(geometry, slow[key]),
            rtol=settings.rtol,
            optimise=not settings.quick,
            progress=False,
        )
        common[key] = float(np.nanmedian(to_level[key].time))
        at_time[key] = sweep(
            flow,
            states,
            until=until.time(common[key]),
            rtol=settings.rtol,
            optimise=not settings.quick,
            progress=False,
        )
        seen[key] = instruments(flow, states, slow=slow[key], level=LEVEL, paper=geometry is _FREE)
    return to_level, at_time, common, slow, seen


def _response_line(settings: Settings, arrival: float) -> ResponseLine:
    """The feature model from its reference state, for some times the median arrival."""
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
