"""The study from the runs to the page with its report."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from flowlab import _pages, _tables, exact, store
from flowlab._files import check_folder, write_json
from flowlab.ensemble import Audit
from flowlab.logs import TrainingLog, diagnose
from flowlab.logs import report as said
from flowlab.study import figures
from flowlab.study.claims import HOLDS_FROM, Claim, evaluate, likeness, table, to_json
from flowlab.study.conclusions import conclusions
from flowlab.study.data import GEOMETRIES, LEVEL, SLOW_SHARE, Settings, StudyData, collect

if TYPE_CHECKING:
    import xarray

__all__ = ["Study", "run"]

_QUICK = {"map_cells": 128, "claim_cells": 32, "quick": True}
_FLOAT32_RTOL = 1e-4
_STAGES = ("running the sweeps", "weighing the claims", "drawing", "writing the store", "writing")


@dataclass(frozen=True)
class Study:
    """The results of the study.

    Attributes:
        folder: The folder of `report.html`, `claims.json`, `figures` and `sweep.zarr`.
        data: The runs.
        claims: The claims with their verdicts.
        likeness: Numbers of tokens in which two sequences differ, each with the ratio k_wl/k_ww.
        accuracy: For each β, the median and the largest relative error of the times, compared with
            the closed form.
        seconds: The duration of the study, seconds.
    """

    folder: Path
    data: StudyData
    claims: list[Claim]
    likeness: list[tuple[int, float]]
    accuracy: dict[float, tuple[float, float]]
    seconds: float

    def summary(self) -> str:
        """Two tables as plain text: the maps for each β, and the claims."""
        header, rows = _map_rows(self)
        return f"{_tables.table((header, *rows), 'r')}\n\n{table(self.claims)}"


def run(
    out: Path | str,
    *,
    betas: Sequence[float] | None = None,
    quick: bool = False,
    log: TrainingLog | None = None,
    dtype: Any = np.float64,
    progress: bool | None = None,
) -> Study:
    """Run the study of arXiv 2404.04626 and write it to a folder.

    The results are `report.html` (self-contained), `claims.json`, `figures/*.png` and `*.svg`, and
    `sweep.zarr`. The folder may exist; the results of an earlier study in it are replaced.

    Args:
        out: The folder.
        betas: Values of β, positive; None for 0.1, 0.3 and 0.5.
        quick: True for coarser maps and fewer starts, in half the time.
        log: A training log; the report then includes the diagnosis that `flowlab log` prints.
        dtype: float64, or float32 (with rtol 1e-4 instead of 1e-6).
        progress: Whether to show progress bars; None where there is a terminal.

    Raises:
        ValueError: If `out` is a file or a folder with other contents, or if `betas` are not
            different positive finite numbers.
        OSError: If the folder cannot be written.
    """
    begun = time.perf_counter()
    folder = Path(out)
    check_folder("Argument `out`", folder, _pages.REPORT)
    settings = _settings(betas, quick, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with _Bar(disable=_pages.disabled(progress), leave=False) as bar:
        bar.begin(_STAGES[0])
        data = collect(settings, log, progress, bar.geometry_done)
        bar.set_postfix_str("")
        bar.begin(_STAGES[1])
        claims = evaluate(data)
        accuracy = {beta: _accuracy(data, beta) for beta in settings.betas}
        bar.begin(_STAGES[2])
        drawn = figures.draw(data, folder / "figures", bar.set_postfix_str)
        bar.begin(_STAGES[3])
        store.write(
            _dataset(data), folder / "sweep.zarr", description=_description(data), overwrite=True
        )
        bar.begin(_STAGES[4])
        seconds = time.perf_counter() - begun
        study = Study(folder, data, claims, likeness(), accuracy, seconds)
        write_json(to_json(claims), folder / "claims.json")
        (folder / _pages.REPORT).write_text(_page(study, drawn), encoding="utf-8")
    return study


class _Bar(tqdm):
    """A progress bar with one step for each geometry and one for each later stage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(total=len(GEOMETRIES) + len(_STAGES) - 1, **options)

    def begin(self, stage: str) -> None:
        """Show a new stage; all earlier stages are finished."""
        done = len(GEOMETRIES) + _STAGES.index(stage) - 1
        self.update(done - self.n if stage != _STAGES[0] else 0)
        self.set_description(stage)

    def geometry_done(self, name: str) -> None:
        """Show a geometry that is finished."""
        self.update()
        self.set_postfix_str(name)


def _settings(betas: Sequence[float] | None, quick: bool, dtype: Any) -> Settings:
    options: dict[str, Any] = dict(_QUICK) if quick else {}
    if betas is not None:
        listed = tuple(float(beta) for beta in betas)
        good = listed and all(np.isfinite(b) and b > 0 for b in listed)
        if not good or len(set(listed)) != len(listed):
            raise ValueError(
                f"Argument `betas` must hold different positive numbers, but is {listed}."
            )
        options["betas"] = listed
    if np.dtype(dtype) == np.float32:
        options |= {"dtype": np.float32, "rtol": _FLOAT32_RTOL}
    return Settings(**options)


def _accuracy(data: StudyData, beta: float) -> tuple[float, float]:
    """The median and the largest error of the times of the maps, compared with the closed form.

    The error of a time T is relative to max(T, 1e-3·r²/β), with r the distance of the start from 0.
    """
    points = data.map_starts.astype(float)
    wanted = np.concatenate(
        [exact.ratio_plane_time(part, beta, level=LEVEL) for part in np.array_split(points, 16)]
    )
    scale = np.maximum(wanted, 1e-3 * np.sum(points**2, axis=1) / beta)
    errors = np.abs(data.maps[beta].time - wanted) / scale
    return float(np.nanmedian(errors)), float(np.nanmax(errors))


def _dataset(data: StudyData) -> "xarray.Dataset":
    """The maps as one Dataset over β and the two ratios of the start."""
    import xarray

    cells = data.settings.map_cells
    axes = (data.map_starts[:, 0].reshape(cells, cells)[:, 0], data.map_starts[:cells, 1])
    parts = []
    for beta, runs in data.maps.items():
        flat = runs.to_xarray(grid=False).drop_vars("starts")
        variables = {
            name: (
                ("x_chosen", "x_rejected", *variable.dims[1:]),
                variable.values.reshape(cells, cells, *variable.shape[1:]),
                variable.attrs,
            )
            for name, variable in flat.data_vars.items()
        }
        coordinates = {"x_chosen": axes[0], "x_rejected": axes[1], "level": [LEVEL]}
        part = xarray.Dataset(variables, coordinates)
        parts.append(part.expand_dims(beta=[beta]))
    joined: xarray.Dataset = xarray.concat(parts, dim="beta")  # type: ignore[assignment]
    joined["x_chosen"].attrs["long_name"] = "chosen ratio at the start"
    joined["x_rejected"].attrs["long_name"] = "rejected ratio at the start"
    return joined


def _description(data: StudyData) -> dict[str, Any]:
    """Options of `flowlab sweep` that compute the same maps, as the description of the store."""
    settings = data.settings
    return {
        "loss": "dpo",
        "beta": list(settings.betas),
        "policy": "ratio",
        "domain": "quadrant",
        "starts": "grid",
        "shape": [settings.map_cells, settings.map_cells],
        "lower": [0.0, 0.0],
        "upper": [1.0, 1.0],
        "until": f"loss_below={LEVEL}",
        "rtol": settings.rtol,
        "dtype": np.dtype(settings.dtype).name,
    }


def _map_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    header = ["beta", "starts", "reached", "median time", "99 % by", "slow share", "largest error"]
    rows = []
    for beta, runs in study.data.maps.items():
        median, late = np.nanquantile(runs.time, [0.5, 0.99])
        rows.append(
            [
                f"{beta:g}",
                f"{runs.time.size:,}",
                f"{int(np.sum(np.isfinite(runs.time))):,}",
                f"{median:.4g}",
                f"{late:.4g}",
                f"{np.nanmean(runs.measures['dwell_share']):.1%}",
                f"{study.accuracy[beta][1]:.1e}",
            ]
        )
    return header, rows


def _page(study: Study, drawn: list[figures.Drawn]) -> str:
    data = study.data
    runs = data.maps.values()
    return _pages.rendered(
        "paper.html",
        **conclusions(study.claims, data.line, study.likeness),
        settings=data.settings,
        dtype=np.dtype(data.settings.dtype).name,
        level=LEVEL,
        slow_share=SLOW_SHARE,
        holds_from=HOLDS_FROM,
        map_table=_map_rows(study),
        missed=sorted({name for one in runs for name in one.counts()} - {"reached"}),
        audit=_audit([one.audit for one in runs if one.audit is not None]),
        likeness_rows=[(str(n), f"{k:.3f}", f"{1 - k:.3f}") for n, k in study.likeness],
        training=_training(data.log),
        figures=drawn,
        seconds=study.seconds,
    )


def _training(log: TrainingLog | None) -> dict[str, Any] | None:
    """The section of the report on a training log; None without a log."""
    if log is None:
        return None
    found = diagnose(log)
    return {"blocks": said.blocks(found), "moves": said.moves(found)}


def _audit(audits: list[Audit]) -> dict[str, float]:
    """A summary of the audits of the maps; empty without audits."""
    if not audits:
        return {}
    worst = max(audit.time_largest for audit in audits)
    return {"count": sum(a.count for a in audits), "rtol": audits[0].rtol, "worst": worst}
