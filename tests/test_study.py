"""The study from end to end, on a coarse grid, and its bad input."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray
from typer.testing import CliRunner

from flowlab import exact, logs, study
from flowlab.cli import app
from flowlab.study import report

LOG = Path(__file__).parent / "data" / "dpo_beta0.1_similar_sft300.json"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_QUICK", {"map_cells": 32, "claim_cells": 16, "quick": True})
        return study.run(
            folder / "out", betas=[0.3], quick=True, log=logs.read(LOG, beta=0.1), progress=False
        )


@pytest.mark.slow
def test_the_folder_holds_what_was_promised(result):
    names = {path.name for path in result.folder.iterdir()}
    assert names == {"report.html", "claims.json", "figures", "sweep.zarr"}
    figures = sorted(path.name for path in (result.folder / "figures").iterdir())
    assert {Path(name).suffix for name in figures} == {".png", ".svg"}
    assert len(figures) == 18
    assert "training_run.png" in figures


@pytest.mark.slow
def test_the_report_needs_nothing_but_itself(result):
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"(?:src|href)='([^']*)'", page)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert page.count("<figure") == 9
    for claim in result.claims:
        assert f"id='{claim.id}'" in page
    assert "only the path can be compared" in page


@pytest.mark.slow
def test_the_claims_file_has_the_promised_shape(result):
    claims = json.loads((result.folder / "claims.json").read_text(encoding="utf-8"))
    assert [claim["id"] for claim in claims] == [f"C{i}" for i in range(1, 18)]
    allowed = {"holds", "holds_in_part", "fails", "not_applicable", "not_yet"}
    for claim in claims:
        assert {"statement", "where", "verdicts"} <= set(claim)
        for verdict in claim["verdicts"].values():
            assert set(verdict) == {"verdict", "evidence", "threshold"}
            assert verdict["verdict"] in allowed


@pytest.mark.slow
def test_the_store_opens_with_xarray_and_holds_the_right_times(result):
    dataset = xarray.open_zarr(result.folder / "sweep.zarr")
    assert dict(dataset["time"].sizes) == {"beta": 1, "x_chosen": 32, "x_rejected": 32}
    place = dict(beta=0, x_chosen=3, x_rejected=20)
    start = np.array([float(dataset["x_chosen"][3]), float(dataset["x_rejected"][20])])
    wanted = exact.ratio_plane_time(start, 0.3, level=0.1)
    assert float(dataset["time"].isel(place)) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.slow
def test_the_command_shows_and_draws_the_store(result, tmp_path):
    picture = tmp_path / "times.png"
    arguments = ["show", str(result.folder / "sweep.zarr"), "--out", str(picture)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    assert "1024" in shown.output
    assert len(shown.output.splitlines()) < 60
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_the_summary_shows_every_beta_and_every_claim(result):
    text = result.summary()
    assert "0.3" in text
    assert all(f"C{i} " in text for i in range(1, 18))
    assert result.accuracy[0.3][1] < 1e-5


def test_bad_betas_and_folders_are_refused(tmp_path):
    for betas in ([], [0.1, -1], [np.nan], [0.1, 0.1]):
        with pytest.raises(ValueError, match="Argument `betas`"):
            study.run(tmp_path / "x", betas=betas)
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(ValueError, match="Argument `out`"):
        study.run(taken)
    with pytest.raises(ValueError, match="holds something else"):
        study.run(tmp_path)
