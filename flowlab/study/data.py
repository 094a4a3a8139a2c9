"""The runs that the study is made of: four geometries, several β, many starts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from flowlab import measures, starts, until
from flowlab.domains import Box, Quadrant, Simplex
from flowlab.ensemble import Runs, sweep
from flowlab.flow import PreferenceFlow, preference_flow
from flowlab.logs import TrainingLog
from flowlab.losses import DPO
from flowlab.policies import AbstractPolicy, LogRatioPlane, RatioPlane

__all__ = [
    "GEOMETRIES",
    "LEVEL",
    "SLOW_SHARE",
    "Geometry",
    "Settings",
    "StudyData",
    "collect",
    "line_measures",
    "speeds",
]

LEVEL = 0.1  # the loss at which a start counts as having learnt its pair
SLOW_SHARE = 0.5  # slow: below this part of the median speed over the starts


@dataclass(frozen=True)
class Geometry:
    """One way to give a state a meaning, and its name in the report.

    Attributes:
        name: Key in `claims.json`.
        title: Words for people.
        policy: The policy.
        in_ratios: Whether a state is (x1, x2); else it is (u_chosen, u_rejected).
    """

    name: str
    title: str
    policy: AbstractPolicy
    in_ratios: bool

    def flow(self, beta: float) -> PreferenceFlow:
        """The flow of DPO at a β."""
        return preference_flow(DPO(beta), self.policy)

    def states(self, ratios: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """States with the given probability ratios."""
        return ratios if self.in_ratios else np.log(ratios)

    def ratios(self, states: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "... 2"]:
        """Probability ratios (x1, x2) of states."""
        return states if self.in_ratios else np.exp(states)

    def admits(self, ratios: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Which ratios lie in the domain."""
        normals, offsets = self.policy.domain.walls()
        if len(offsets) == 0:
            return np.ones(len(ratios), bool)
        return np.all(ratios @ normals.T <= offsets, axis=1)


GEOMETRIES: tuple[Geometry, ...] = (
    Geometry("ratio_plane", "ratio plane, free", RatioPlane(Quadrant()), True),
    Geometry("box", "ratio plane, in the box", RatioPlane(Box(1, 1), wall="slide"), True),
    Geometry("simplex", "ratio plane, in the simplex", RatioPlane(Simplex(), wall="slide"), True),
    Geometry("log_ratio_plane", "log-ratio plane", LogRatioPlane(), False),
)


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
        log: A training log, if there is one.
    """

    settings: Settings
    maps: dict[float, Runs]
    map_starts: Float[np.ndarray, "n 2"]
    to_level: dict[tuple[str, float], Runs]
    at_time: dict[tuple[str, float], Runs]
    common_time: dict[tuple[str, float], float]
    slow: dict[tuple[str, float], float]
    log: TrainingLog | None


def collect(settings: Settings, log: TrainingLog | None, progress: bool | None) -> StudyData:
    """Run everything the study needs.

    Two geometries are worked on at a time: while one compiles, the other runs.
    """
    cells = starts.grid(settings.map_cells).astype(settings.dtype)

    def one(geometry: Geometry) -> tuple[tuple[dict[Any, Any], ...], dict[float, Runs]]:
        claims = _claim_runs(geometry, settings)
        first = geometry is GEOMETRIES[0]
        return claims, _maps(settings, cells, progress) if first else {}

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(one, GEOMETRIES))
    merged = [{k: v for claims, _ in parts for k, v in claims[i].items()} for i in range(4)]
    to_level, at_time, common, slow = merged
    return StudyData(settings, parts[0][1], cells, to_level, at_time, common, slow, log)


def speeds(
    geometry: Geometry, beta: float, states: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, " n"]:
    """Free speed at states, in the coordinates of the geometry."""
    ratios = geometry.ratios(np.asarray(states, float))
    weight = beta / (1 + (ratios[:, 0] / ratios[:, 1]) ** beta)
    if geometry.in_ratios:
        return weight * np.hypot(1 / ratios[:, 0], 1 / ratios[:, 1])
    return weight * np.sqrt(2)


def line_measures(slow: float) -> tuple[measures.AbstractMeasure, ...]:
    """What is measured along every line of the study, slow being a speed."""
    return (
        measures.path_length(),
        measures.dwell(slow),
        measures.slowest(),
        measures.change("x"),
        measures.change("u"),
        measures.rate_ratio("x"),
    )


def _maps(settings: Settings, cells: np.ndarray, progress: bool | None) -> dict[float, Runs]:
    geometry = GEOMETRIES[0]
    found = {}
    for beta in settings.betas:
        slow = SLOW_SHARE * float(np.median(speeds(geometry, beta, cells)))
        found[beta] = sweep(
            geometry.flow(beta),
            cells,
            until=until.loss_below(LEVEL),
            measures=line_measures(slow),
            rtol=settings.rtol,
            optimise=not settings.quick,
            audit=0 if settings.quick else 0.001,
            progress=progress,
        )
    return found


def _claim_runs(geometry: Geometry, settings: Settings) -> tuple[dict[Any, Any], ...]:
    ratios = starts.grid(settings.claim_cells)
    states = geometry.states(ratios[geometry.admits(ratios)]).astype(settings.dtype)
    to_level, at_time, common, slow = {}, {}, {}, {}
    for beta in settings.betas:
        key = (geometry.name, beta)
        slow[key] = SLOW_SHARE * float(np.median(speeds(geometry, beta, states)))
        to_level[key] = sweep(
            geometry.flow(beta),
            states,
            until=until.loss_below(LEVEL),
            measures=line_measures(slow[key]),
            rtol=settings.rtol,
            optimise=not settings.quick,
            progress=False,
        )
        common[key] = float(np.nanmedian(to_level[key].time))
        at_time[key] = sweep(
            geometry.flow(beta),
            states,
            until=until.time(common[key]),
            rtol=settings.rtol,
            optimise=not settings.quick,
            progress=False,
        )
    return to_level, at_time, common, slow
