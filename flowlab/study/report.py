"""The study from end to end, and the page that shows it."""

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from flowlab import _tables, exact, store
from flowlab._files import check_folder, write_json
from flowlab.logs import TrainingLog
from flowlab.study import figures, page, words
from flowlab.study.claims import (
    HOLDS_FROM,
    Claim,
    Verdict,
    evaluate,
    likeness,
    table,
    to_json,
)
from flowlab.study.data import GEOMETRIES, LEVEL, Settings, StudyData, collect

if TYPE_CHECKING:
    import xarray

__all__ = ["Study", "run"]

_QUICK = {"map_cells": 128, "claim_cells": 32, "quick": True}
_FLOAT32_RTOL = 1e-4
_STAGES = ("running the sweeps", "weighing the claims", "drawing", "writing the store", "writing")

_WORDS = {
    "holds": "holds",
    "holds_in_part": "in part",
    "fails": "fails",
    "not_applicable": "—",
}


@dataclass(frozen=True)
class Study:
    """What the study found, and where it stands.

    Attributes:
        folder: Where `report.html`, `claims.json`, `figures` and `sweep.zarr` lie.
        data: The runs.
        claims: The claims with their verdicts.
        likeness: Numbers of tokens in which two sequences differ, and their k_wl/k_ww.
        accuracy: By β: median and largest error of the times against the closed form, relative.
        seconds: How long everything took.
    """

    folder: Path
    data: StudyData
    claims: list[Claim]
    likeness: list[tuple[int, float]]
    accuracy: dict[float, tuple[float, float]]
    seconds: float

    def summary(self) -> str:
        """The two tables of the study as plain text: the maps by β, and the claims."""
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

    Writes `report.html` (self-contained), `claims.json`, `figures/*.png` and `*.svg`, and
    `sweep.zarr`. A folder that exists is written into; what the study wrote there before is
    replaced.

    Args:
        out: The folder.
        betas: Values of β, positive; None for 0.1, 0.3 and 0.5.
        quick: Coarser maps and fewer starts, in half the time.
        log: A training log to draw over the flow from its own first point.
        dtype: float64, or float32 (at rtol 1e-4 in place of 1e-6).
        progress: Whether to show progress bars; None where there is a terminal.

    Raises:
        ValueError: If `out` is a file or a folder with something else in it, or a β is not
            positive, finite and named once.
        OSError: If the folder cannot be written.
    """
    begun = time.perf_counter()
    folder = Path(out)
    check_folder("Argument `out`", folder, page.REPORT)
    settings = _settings(betas, quick, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(_STAGES), disable=page.disabled(progress), leave=False) as bar:

        def stage(name: str) -> None:
            bar.update(int(bar.n < _STAGES.index(name)))
            bar.set_description(name)

        stage(_STAGES[0])
        data = collect(settings, log, progress)
        stage(_STAGES[1])
        claims = evaluate(data)
        accuracy = {beta: _accuracy(data, beta) for beta in settings.betas}
        stage(_STAGES[2])
        drawn = figures.draw(data, folder / "figures", bar.set_postfix_str)
        stage(_STAGES[3])
        store.write(
            _dataset(data), folder / "sweep.zarr", description=_description(data), overwrite=True
        )
        stage(_STAGES[4])
        seconds = time.perf_counter() - begun
        study = Study(folder, data, claims, likeness(), accuracy, seconds)
        write_json(to_json(claims), folder / "claims.json")
        (folder / page.REPORT).write_text(_page(study, drawn), encoding="utf-8")
    return study


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
    """Error of the times of the maps, relative to max(T, 1e-3·r²/β), against the closed form."""
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
        flat = runs.to_xarray().drop_vars("starts")
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
    """What was run, in the words of the command `flowlab sweep`."""
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
    parts = [
        _introduction(study),
        "<h2>How long it takes</h2>",
        _map_table(study),
        "<h2>What the paper says, and what was measured</h2>",
        _claim_table(study.claims),
        *words.conclusions(study.claims, study.data.line, study.likeness),
        "<h2>Figures</h2>",
        *(page.figure(figure) for figure in drawn),
        "<h2>The claims one by one</h2>",
        "<p>A statement is cut into parts, each true of a share of the starts. It holds where "
        f"every share that decides is at least {HOLDS_FROM:g}, fails where every one is at most "
        f"{1 - HOLDS_FROM:.2g}, and holds in part otherwise.</p>",
        *(_claim_details(claim) for claim in study.claims),
        "<h2>Likeness of two texts</h2>",
        *_likeness_table(study.likeness),
        _colophon(study),
    ]
    return page.document("The gradient field of DPO, measured", parts)


def _introduction(study: Study) -> str:
    settings = study.data.settings
    names = ", ".join(geometry.title for geometry in GEOMETRIES)
    return (
        "<h1>The gradient field of DPO, measured</h1>"
        "<p>“Towards Analyzing and Understanding the Limitations of DPO: A Theoretical "
        "Perspective” (arXiv 2404.04626) drew the gradient field of the DPO loss over two "
        "probability ratios, x₁ = π(y_w)/π_ref(y_w) of the chosen and x₂ = π(y_l)/π_ref(y_l) of "
        "the rejected response, and argued from the picture. Here the negative gradient is an "
        f"ODE, and {settings.map_cells}² starts per β are followed to the loss {LEVEL:g}. Flow "
        "time is learning rate × steps of plain gradient descent, in the limit of small steps. "
        f"Every claim is measured in {len(GEOMETRIES)} geometries: {html.escape(names)}. In the "
        "box and the simplex a flow line slides along the wall and leaves it where the flow turns "
        "inward. In the tables of softmax and the feature model other responses of the prompt take "
        "part; a coupled kernel is named by k_wl/k_ww, and has k_ll/k_ww = 1.5. Where there are "
        "several pairs, the claims are about the first. Starts are the same ratios "
        "in every geometry that has them. The simplex has only those inside it, and a median over "
        "the starts is one over these: what differs there in C5, C8, C11, C12 and C14 comes in "
        "part from the starts.</p>"
    )


def _map_table(study: Study) -> str:
    header, rows = _map_rows(study)
    notes = (
        "Free ratio plane. “99 % by”: the flow time by which 99 % of the starts have arrived. "
        "“Slow share”: mean share of the time at less than half of the median speed of all "
        "starts. “Largest error”: of all times against the closed form (incomplete beta "
        "function), relative to max(T, 10⁻³ r²/β). Starts that are not reached had passed the "
        "target before the first step."
    )
    return page.table(header, rows) + f"<p>{notes}</p>" + _audit(study)


def _audit(study: Study) -> str:
    audits = [runs.audit for runs in study.data.maps.values() if runs.audit is not None]
    if not audits:
        return ""
    count = sum(audit.count for audit in audits)
    worst = max(audit.time_largest for audit in audits)
    return (
        f"<p>{count:,} random runs were solved again at a tolerance of {audits[0].rtol:.0e}: the "
        f"largest relative deviation of a time is {worst:.1e}.</p>"
    )


def _claim_table(claims: list[Claim]) -> str:
    falling = words.falling(claims)
    head = "".join(
        f"<th class='upright' title='{html.escape(geometry.title)}'>"
        f"<span>{html.escape(geometry.short)}</span></th>"
        for geometry in GEOMETRIES
    )
    rows = []
    for claim in claims:
        trivial = falling if claim.id in words.RISES else []
        cells = "".join(
            _verdict_cell(claim.verdicts[g.name], g.title, " †" * (g.name in trivial))
            for g in GEOMETRIES
        )
        rows.append(
            f"<tr><td><a href='#{claim.id}'>{claim.id}</a></td>"
            f"<td>{html.escape(claim.statement)}</td>{cells}</tr>"
        )
    rows.append(_falls_row(claims))
    return (
        f"<div class='scroll'><table class='verdicts'><tr><th></th><th>statement</th>{head}</tr>"
        f"{''.join(rows)}</table></div><p>Below each verdict: the shares of the starts that "
        "decide (of C16: of the values of β), one for each part of the statement; point at a cell "
        "to see which. “—”: no start lies where the statement speaks of, or the geometry knows "
        "nothing of what it speaks of. “≈”: a share lies so near to where the verdict on its "
        "part turns that another grid of starts could turn it. “†”: the chosen response falls at "
        "more than half of the starts there, so that what is said of how slowly it rises is "
        "trivially true of these.</p>"
    )


def _falls_row(claims: list[Claim]) -> str:
    """A last line that is no claim: where the chosen response becomes less probable."""
    told = {name: v.evidence for claim in claims for name, v in claim.verdicts.items()}
    found = {
        name: v.evidence[words.FALLS]
        for claim in claims
        for name, v in claim.verdicts.items()
        if words.FALLS in v.evidence
    }
    shown = [words.number(found[name]) if name in found else "—" for name in told]
    cells = "".join(f"<td class='verdict'>{html.escape(text)}</td>" for text in shown)
    return (
        "<tr><td></td><td>Not a claim of the paper: the log-probability of the chosen response "
        f"falls at the start (share of the starts).</td>{cells}</tr>"
    )


def _verdict_cell(verdict: Verdict, title: str = "", mark: str = "") -> str:
    parts = [f"{name.replace('_', ' ')}: {_number(x)}" for name, x in verdict.deciding.items()]
    told = html.escape("\n".join([title, *parts]), quote=True)
    return (
        f"<td class='verdict {verdict.verdict}' title='{told}'>{_WORDS[verdict.verdict]}"
        f"{' ≈' * verdict.close}{mark}<small>{html.escape(words.shares(verdict))}</small></td>"
    )


def _claim_details(claim: Claim) -> str:
    titles: dict[str, str] = {geometry.name: geometry.title for geometry in GEOMETRIES}
    rows = []
    for name, verdict in claim.verdicts.items():
        numbers = "<br>".join(
            f"{html.escape(key.replace('_', ' '))}: {_number(value)}"
            for key, value in verdict.evidence.items()
        )
        rows.append(
            f"<tr><td>{html.escape(titles.get(name, name))}</td>{_verdict_cell(verdict)}"
            f"<td>{numbers}</td><td>{_threshold(verdict)}</td></tr>"
        )
    return (
        f"<details id='{claim.id}'><summary><b>{claim.id}</b> "
        f"{html.escape(claim.statement)} <i>({html.escape(claim.where)})</i></summary>"
        f"<p>{html.escape(claim.measured)}</p><div class='scroll'><table><tr><th>geometry</th>"
        "<th>verdict</th><th>measured</th><th>what decides</th></tr>"
        f"{''.join(rows)}</table></div></details>"
    )


def _likeness_table(likeness: list[tuple[int, float]]) -> list[str]:
    header = ["tokens that differ", "k_wl/k_ww", "speed left to the chosen"]
    rows = [[str(n), f"{ratio:.3f}", f"{1 - ratio:.3f}"] for n, ratio in likeness]
    return [
        "<p>Beside C10: two sequences of twelve tokens that differ in their last ones, under a "
        "table of logits with a row for each prefix, at its uniform reference. What they share is "
        "the rows of their common prefix.</p>",
        page.table(header, rows),
    ]


def _threshold(verdict: Verdict) -> str:
    """The names of the numbers that decide; the rule is told once, above."""
    quantity = verdict.threshold.get("quantity") if verdict.evidence else None
    if not quantity:
        return ""
    listed = [quantity] if isinstance(quantity, str) else quantity
    return "<br>".join(html.escape(name.replace("_", " ")) for name in listed)


def _number(value: float | None) -> str:
    return "not finite" if value is None or not np.isfinite(value) else f"{value:.4g}"


def _colophon(study: Study) -> str:
    kind = np.dtype(study.data.settings.dtype).name
    return (
        f"<h2>How this was made</h2><p>{page.versions()}; {kind}, rtol "
        f"{study.data.settings.rtol:g}; {study.seconds:.0f} s. The runs of the maps "
        "lie in <code>sweep.zarr</code> (open with <code>xarray.open_zarr</code>), the verdicts "
        "with their numbers in <code>claims.json</code>.</p>"
    )
