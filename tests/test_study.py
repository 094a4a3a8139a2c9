"""The study from end to end, on a coarse grid, and its bad input."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import xarray
from studied import BETAS, CELLS, studied
from typer.testing import CliRunner

from flowlab import _pages, exact, logs, study
from flowlab.cli import app
from flowlab.study import Claim, Verdict, conclusions, figures, report
from flowlab.study.claims import HOLDS_FROM, likeness, to_json
from flowlab.study.claims.verdicts import verdict_from
from flowlab.study.data import Dip, ResponseLine

FALLS = "share_of_starts_where_the_chosen_falls_at_the_start"
LOG = Path(__file__).parent / "data" / "dpo_beta0.1_similar_sft300.json"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    data = studied()
    shorter = {"map_cells": 32, "claim_cells": CELLS, "quick": True}

    def collected(settings, log, progress, tell):
        assert settings == data.settings and progress is False
        tell("the last one")
        return replace(data, log=log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_QUICK", shorter)
        patch.setattr(report, "collect", collected)
        return study.run(
            folder / "out",
            betas=BETAS,
            quick=True,
            log=logs.read(LOG, beta=0.1),
            progress=False,
        )


def report_of(result):
    """The report, with one space for any white space."""
    return " ".join((result.folder / "report.html").read_text(encoding="utf-8").split())


def test_the_folder_holds_what_was_promised(result):
    names = {path.name for path in result.folder.iterdir()}
    assert names == {"report.html", "claims.json", "figures", "sweep.zarr"}
    figures = sorted(path.name for path in (result.folder / "figures").iterdir())
    assert {Path(name).suffix for name in figures} == {".png", ".svg"}
    assert len(figures) == 22
    assert {"training_run.png", "training_steps.png"} <= set(figures)


def test_the_report_needs_nothing_but_itself(result):
    text = report_of(result)
    sources = re.findall(r"(?:src|href)='([^']*)'", text)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert text.count("<figure") == 11
    for claim in result.claims:
        assert f"id='{claim.id}'" in text
    assert "the chosen ones lost 0.52: ρ = −0.52" in text


def test_the_claims_file_has_the_promised_shape(result):
    claims = json.loads((result.folder / "claims.json").read_text(encoding="utf-8"))
    assert [claim["id"] for claim in claims] == [f"C{i}" for i in range(1, 18)]
    allowed = {"holds", "holds_in_part", "fails", "not_applicable"}
    for claim in claims:
        assert {"statement", "where", "verdicts"} <= set(claim)
        assert list(claim["verdicts"]) == [geometry.name for geometry in study.GEOMETRIES]
        for verdict in claim["verdicts"].values():
            assert set(verdict) == {"verdict", "close", "evidence", "threshold"}
            assert verdict["verdict"] in allowed


def test_the_report_has_a_cell_for_every_claim_in_every_geometry(result):
    text = report_of(result)
    table = text[text.index("class='verdicts'") : text.index("id='coordinates'")]
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    assert len(rows) == 19
    assert all(row.count("<td class='verdict") == 11 for row in rows[1:])
    assert rows[0].count("<th class='upright' title=") == 11
    free = result.claims[2].verdicts["ratio_plane"]
    shares = " / ".join(map(_pages.share, free.deciding.values()))
    assert f"<small>{shares}</small>" in rows[3]
    falls = re.findall(r"<td class='verdict'>([^<]*)</td>", rows[-1])
    assert falls[:5] == ["0"] * 5
    assert falls[6:10] == ["0", "0", "0", "1"]


def test_every_figure_is_drawn_with_a_caption(result):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", report_of(result))
    assert len(captions) == 11
    for caption in captions:
        assert "nan" not in caption
        assert caption.endswith(".")
    for path in (result.folder / "figures").iterdir():
        start = path.read_bytes()[:2000]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<svg" in start
        assert path.stat().st_size < 1_000_000
    makers = figures._makers(replace(result.data, log=None))
    assert not {figures._training_run, figures._training_steps} & {*makers}
    assert len(makers) == 9


def test_the_store_opens_with_xarray_and_holds_the_right_times(result):
    dataset = xarray.open_zarr(result.folder / "sweep.zarr")
    assert dict(dataset["time"].sizes) == {"beta": 2, "x_chosen": 32, "x_rejected": 32}
    place = dict(beta=0, x_chosen=3, x_rejected=20)
    start = np.array([float(dataset["x_chosen"][3]), float(dataset["x_rejected"][20])])
    wanted = exact.ratio_plane_time(start, 0.3, level=0.1)
    assert float(dataset["time"].isel(place)) == pytest.approx(float(wanted), rel=1e-5)


def test_the_command_shows_and_draws_the_store(result, tmp_path):
    picture = tmp_path / "times.png"
    arguments = ["show", str(result.folder / "sweep.zarr"), "--figure", str(picture)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    assert "1024" in shown.output
    assert len(shown.output.splitlines()) < 60
    assert picture.stat().st_size > 10_000


def test_the_summary_shows_every_beta_and_every_claim(result):
    text = result.summary()
    assert "0.3" in text
    assert all(f"C{i}" in text.split() for i in range(1, 18))
    assert result.accuracy[0.3][1] < 1e-5


def test_what_the_loss_level_forces_does_not_decide(result):
    forced = "share_of_starts_where_x2_over_x1_is_near_0_at_the_loss_level"
    for verdict in result.claims[8].verdicts.values():
        assert forced in verdict.evidence
        assert forced not in verdict.deciding


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


STEADY = ResponseLine(
    0.1,
    np.array([0.0, 1.0]),
    np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]]),
    Dip(0.0, np.nan, np.nan, 0.3, 0.0),
)
DIPPING = ResponseLine(
    0.1,
    np.array([0.0, 1.0, 2.0]),
    np.array([[0.4, 0.4, 0.2], [0.2, 0.1, 0.7], [0.8, 0.1, 0.1]]),
    Dip(np.log(2), 1.0, 1.5, 0.7, 1.0),
)


def claim(name, statement, shares, beside=None):
    """A made-up claim: a share for each geometry, and other evidence by geometry."""
    verdicts = {}
    for place, share in shares.items():
        kind = "holds" if share >= 0.95 else "fails" if share <= 0.05 else "holds_in_part"
        evidence = {"share_of_starts_where_it_is_so": share, **(beside or {}).get(place, {})}
        verdicts[place] = Verdict(kind, evidence, {"quantity": "share_of_starts_where_it_is_so"})
    return Claim(name, statement, "", "", verdicts)


def sections(claims, line=STEADY, edits=()):
    """The text under each heading of the conclusions, without marks."""
    values = conclusions.conclusions(claims, line, edits)
    whole = _pages.rendered("conclusions.html", **values)
    parts = re.split(r"<h[23][^>]*>(.*?)</h[23]>", whole)[1:]
    plain = [" ".join(re.sub(r"<[^>]+>", "", part).split()) for part in parts]
    return dict(zip(plain[::2], plain[1::2], strict=True))


def cells(claims):
    """The cells of the table of verdicts, claim by claim."""
    text = _pages.rendered("verdicts.html", **conclusions.conclusions(claims, STEADY, ()))
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [row.split("<td class='verdict")[1:] for row in rows[1:-1]]


def under(found, start):
    return next(text for title, text in found.items() if title.startswith(start))


def test_the_page_in_words_follows_the_verdicts():
    planes = ("ratio_plane", "box", "log_ratio_plane")
    found = sections(
        [
            claim("C1", "Always.", dict.fromkeys(planes, 1.0)),
            claim("C2", "Never.", dict.fromkeys(planes, 0.0)),
            claim("C3", "Halfway.", dict.fromkeys(planes, 0.5)),
            claim("C4", "Here.", {"ratio_plane": 1.0, "box": 0.97, "log_ratio_plane": 0.02}),
            claim("C5", "There.", {"ratio_plane": 0.3, "box": 0.4, "log_ratio_plane": 1.0}),
            claim("C6", "Beside.", {"ratio_plane": 1.0, "box": 0.5, "log_ratio_plane": 1.0}),
        ]
    )
    assert under(found, "True of DPO").startswith("C1 Always. (1)")
    assert under(found, "False in every").startswith("C2 Never. (0)")
    assert under(found, "True in part, in every").startswith("C3 Halfway. (0.50)")
    here = under(found, "It depends: true")
    assert "C4 Here." in here
    assert "C5" not in here
    assert "(0.97–1)" in here
    assert "Fails on the log-ratio plane (0.02). The verdict changes with the coordinates." in here
    assert "In part on the ratio plane in the box (0.50). The verdict changes with walls." in here
    assert "C4 holds in full only on the ratio planes." in here
    assert "Holds on the log-ratio plane (1)." in under(found, "It depends: false or only")
    errors = under(found, "Where the paper errs")
    assert "C2 is false on the free ratio plane: starts where it is so (0)." in errors
    assert "C5 is true in part on the free ratio plane: starts where it is so (0.30)." in errors
    assert "C1" not in errors
    assert "C4" not in errors
    assert "C6 is true in part on the ratio plane in the box" in errors
    counts = found["What is about DPO, and what about its coordinates"]
    assert (
        "Of 6 statements, 1 holds everywhere, 1 fails everywhere and 1 is true in part everywhere. "
        "3 statements get different verdicts in different geometries; for 2 of these the choice of "
        "coordinates is one cause." in counts
    )


def test_the_page_in_words_turns_with_the_verdicts():
    planes = {"ratio_plane": 1.0, "box": 1.0, "log_ratio_plane": 1.0}
    before = sections([claim("C9", "It.", planes)])
    after = sections([claim("C9", "It.", {**planes, "log_ratio_plane": 0.5})])
    assert "C9" in under(before, "True of DPO")
    assert under(after, "True of DPO") == "None."
    assert "In part on the log-ratio plane (0.50)" in under(after, "It depends: true")


def test_a_statement_whose_parts_change_places_turns_though_its_verdict_does_not():
    def of_two_parts(first, second):
        return verdict_from({"one": first, "other": second}, ["one", "other"])

    alike = {"ratio_plane": of_two_parts(1.0, 0.0), "log_ratio_plane": of_two_parts(0.99, 0.01)}
    swapped = {"ratio_plane": of_two_parts(1.0, 0.0), "log_ratio_plane": of_two_parts(0.0, 1.0)}
    assert {v.verdict for v in (*alike.values(), *swapped.values())} == {"holds_in_part"}
    found = sections([Claim("C4", "It.", "", "", alike), Claim("C8", "So.", "", "", swapped)])
    assert under(found, "True in part, in every").startswith("C4 It.")
    assert "C8 So." in under(found, "It depends: false or only")
    assert "The verdict changes with the coordinates." in under(found, "It depends: false or only")


@pytest.mark.parametrize(
    "cause", ["simplex", "coupled_0.9", "tabular_softmax_pairs", "feature_model"]
)
def test_what_a_statement_turns_with_is_what_differs_between_the_geometries(cause):
    shares = dict.fromkeys((geometry.name for geometry in study.GEOMETRIES), 1.0)
    found = under(sections([claim("C2", "It.", {**shares, cause: 0.0})]), "It depends: true")
    told = {
        "simplex": "the simplex (its wall, or its smaller set of starts)",
        "coupled_0.9": "the coupling of the pair",
        "tabular_softmax_pairs": "other pairs",
        "feature_model": "trained features",
    }
    assert f"The verdict changes with {told[cause]}." in found


def test_what_holds_because_the_chosen_falls_is_told_as_such():
    shares = {"ratio_plane": 0.0, "coupled_1.1": 1.0}
    beside = {"ratio_plane": {FALLS: 0.0}, "coupled_1.1": {FALLS: 0.9}}
    found = under(sections([claim("C3", "It.", shares, beside)]), "It depends: false or only")
    assert "On the coupled kernel 1.1 the chosen response falls at more than half" in found
    assert "Where C3 holds there, that says little" in found
    calm = under(sections([claim("C3", "It.", shares)]), "It depends: false or only")
    assert "falls" not in calm


def test_a_share_beside_where_the_verdict_turns_is_marked():
    for value, close in ((0.952, True), (0.94, False), (0.046, True), (0.5, False), (1.0, False)):
        verdict = verdict_from({"one": 1.0, "other": value}, ["one", "other"])
        assert verdict.close is close
        assert (
            to_json([Claim("C0", "", "", "", {"here": verdict})])[0]["verdicts"]["here"]["close"]
            is close
        )
        everywhere = {geometry.name: verdict for geometry in study.GEOMETRIES}
        ((cell, *_),) = cells([Claim("C0", "", "", "", everywhere)])
        assert (" ≈<small>" in cell) is close


def test_the_page_says_that_the_chosen_falls_only_where_it_did():
    def told(shares, agrees, line, edits=()):
        keys = (FALLS, "share_of_starts_where_it_falls_just_where_k_wl_exceeds_k_ww")
        beside = {
            name: {**dict(zip(keys, (share, agrees[name]), strict=True)), largest: 0.47}
            for name, share in shares.items()
        }
        claims = [claim("C3", "It.", dict.fromkeys(shares, 0.5), beside)]
        return under(sections(claims, line, edits), "Why do my chosen")

    largest = "largest_k_wl_over_k_ww"
    names = ("ratio_plane", "tabular_softmax_pairs", "feature_model")
    right = dict.fromkeys(names, 1.0)
    calm = told(dict.fromkeys(names, 0.0), right, STEADY)
    assert "On the paper’s plane the question does not come up" in calm
    assert (
        "falls at first is 0 on the free ratio plane, the softmax with three pairs and the" in calm
    )
    assert "the rule predicts the same for every start, correctly" in calm
    assert "the rule is right for every" not in calm
    assert "it does not fall" in calm
    assert "push it down" not in calm
    some = {"ratio_plane": 0.5, "tabular_softmax_pairs": 0.98, "feature_model": 1.0}
    wild = told(some, {**right, "tabular_softmax_pairs": 0.02}, DIPPING, [(1, 1.2), (12, 0.1)])
    assert "does not come up" not in wild
    assert (
        "falls at first is 0.50 on the free ratio plane; 0.98 on the softmax with three pairs"
        in wild
    )
    assert "pairs; 1 on the feature model." in wild
    assert "On the free ratio plane, where the chosen response falls at some starts and not" in wild
    assert "at most 0.47, yet the chosen response falls at 0.98 of the starts: the other" in wild
    assert "falls by 0.69 nats until t = 1.0" in wild
    assert "probability of 0.70. At t = 1.5 the chosen response is back" in wild
    assert "does not make it fall" not in wild
    assert "k_wl/k_ww = 1.20" in wild
    assert "does not make it fall" in told(some, right, DIPPING, [(1, 0.9), (12, 0.0)])


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1, "1"), (0.9999, ">0.99"), (1e-9, "<0.01"), (0.5, "0.50")]
)
def test_a_share_is_written_as_whole_only_where_it_is(value, text):
    assert _pages.share(value) == text


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((0.0, 1e-9), "<0.01"),
        ((0.9999, 1.0), ">0.99"),
        ((0.0, 1.0), "0–1"),
        ((0.5, 0.501), "0.50"),
        ((1e-9, 0.3), "<0.01–0.30"),
    ],
)
def test_a_range_of_shares_is_written_no_longer_than_it_needs(ends, text):
    assert conclusions._from_to(*ends) == text


def test_a_caption_says_only_what_happened(tmp_path):
    png = tmp_path / "none.png"
    png.write_bytes(b"")
    drawn = figures.Drawn("any", png, png)
    captions: Any = _pages._environment().get_template("captions.html").module
    steady = captions.feature_model(drawn, line=STEADY, low=0.2)
    assert "that does not fall</h3>" in steady
    assert "falls from" not in steady
    assert "that falls and recovers</h3>" in captions.feature_model(drawn, line=DIPPING, low=0.2)
    lost = replace(DIPPING, dip=DIPPING.dip._replace(recovery=np.nan))
    fallen = captions.feature_model(drawn, line=lost, low=0.2)
    assert "that falls</h3>" in fallen
    assert "does not regain its initial probability" in fallen
    values = dict(beta=0.1, level=0.1, count=3, drift=1e-7)
    far = captions.flow_lines(drawn, **values, furthest=1.2, left=1e-3)
    assert "ends at x1 = 1.20" in " ".join(far.split())
    assert "beside the horizontal axis" in far
    near = captions.flow_lines(drawn, **values, furthest=0.9, left=0.3)
    assert "unit square" not in near
    assert "beside the horizontal axis" not in near


def test_a_page_escapes_text_and_misses_no_value():
    made = [claim("C1", "a < b", {"ratio_plane": 1.0})]
    values = conclusions.conclusions(made, STEADY, ())
    assert "a &lt; b" in _pages.rendered("conclusions.html", **values)
    del values["varying"]
    with pytest.raises(jinja2.UndefinedError, match="varying"):
        _pages.rendered("conclusions.html", **values)


def test_a_claim_of_which_the_free_plane_knows_nothing_is_listed_apart():
    known = claim("C10", "It.", {"tabular_softmax": 0.5, "coupled_0.9": 1.0})
    silent = Verdict("not_applicable", {"a": 0.0}, {"quantity": "a"})
    found = sections([replace(known, verdicts={"ratio_plane": silent, **known.verdicts})])
    assert "C10" not in under(found, "It depends: false or only")
    told = under(found, "It depends: not applicable")
    assert "No two geometries that differ in a single respect get different verdicts" in told
    assert "Not applicable on the free ratio plane." in told


def test_only_the_claims_of_a_slow_rise_are_marked_where_the_chosen_falls():
    names = [geometry.name for geometry in study.GEOMETRIES]
    beside = {"coupled_1.1": {FALLS: 0.9}, "feature_model": {FALLS: 0.4}}
    made = [claim(name, "", dict.fromkeys(names, 1.0), beside) for name in ("C2", "C3", "C12")]
    marked = [[" †" in cell for cell in row] for row in cells(made)]
    assert marked == [[False] * 11, *[[name == "coupled_1.1" for name in names]] * 2]


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ((1.0,), "holds"),
        ((HOLDS_FROM,), "holds"),
        ((HOLDS_FROM - 1e-9,), "holds_in_part"),
        ((0.05 + 1e-9,), "holds_in_part"),
        ((1 - HOLDS_FROM,), "fails"),
        ((1.0, 0.99), "holds"),
        ((1.0, 0.0), "holds_in_part"),
        ((0.0, 0.01), "fails"),
        ((math.nan,), "holds_in_part"),
    ],
)
def test_shares_become_a_verdict_by_one_rule(shares: tuple[float, ...], verdict: str) -> None:
    numbers = {f"part_{i}": value for i, value in enumerate(shares)}
    found = verdict_from({**numbers, "beside": 0.5}, list(numbers))
    assert found.verdict == verdict
    assert found.threshold["quantity"] == ", ".join(numbers)
    assert found.threshold["value"] == HOLDS_FROM


def test_a_number_that_is_not_finite_is_written_as_null() -> None:
    verdict = Verdict("fails", {"a": math.inf, "b": math.nan, "c": 1.0}, {"value": None})
    written = to_json([Claim("C0", "", "", "", {"here": verdict})])
    assert written[0]["verdicts"]["here"]["evidence"] == {"a": None, "b": None, "c": 1.0}


def test_the_line_of_the_feature_model_dips_and_recovers_as_scipy_has_it(result):
    line = result.data.line

    def velocity(time: float, state: np.ndarray) -> np.ndarray:
        del time
        readout, features = state[:6].reshape(3, 2), state[6:]
        values = np.exp(readout @ features) / np.exp(readout @ features).sum()
        margin = (readout[0] - readout[1]) @ features
        push = np.array([1.0, -1.0, 0.0]) * line.beta / (1 + np.exp(line.beta * margin))
        assert values.sum() == pytest.approx(1)
        return np.concatenate([np.outer(push, features).ravel(), readout.T @ push])

    start = np.array([1, 0.5, 1, -0.5, 0, 3, 0.3, 0])
    whole = scipy.integrate.solve_ivp(
        velocity,
        (0, 4 * line.times[-1]),
        start,
        "DOP853",
        dense_output=True,
        rtol=1e-10,
        atol=1e-12,
    ).sol

    def probabilities(times: np.ndarray) -> np.ndarray:
        ends = whole(times).T
        logits = np.einsum("kij,kj->ki", ends[:, :6].reshape(-1, 3, 2), ends[:, 6:])
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    def rates(time: float) -> np.ndarray:
        state = whole(time)
        moved = velocity(time, state)
        logits = moved[:6].reshape(3, 2) @ state[6:] + state[:6].reshape(3, 2) @ moved[6:]
        return logits - probabilities(np.array([time]))[0] @ logits

    def change(time: float) -> float:
        now, begun = probabilities(np.array([time, 0.0]))
        return float(np.log(now[0] / begun[0]))

    def first_root(function: Callable[[float], float], after: float) -> float:
        """NaN where the function keeps its sign."""
        times = np.linspace(after + 0.1, line.times[-1], 400)
        signs = np.sign([function(t) for t in times])
        places = np.flatnonzero(np.diff(signs))
        if not len(places):
            return np.nan
        bracket = times[places[0] : places[0] + 2]
        return scipy.optimize.root_scalar(function, bracket=bracket, method="brentq").root

    np.testing.assert_allclose(line.probabilities, probabilities(line.times), rtol=1e-3, atol=1e-6)
    dip = line.dip
    lowest, peak = (first_root(lambda t, i=i: rates(t)[i], 0.0) for i in (0, 2))
    back = first_root(change, lowest)
    assert dip.depth == pytest.approx(-change(lowest), rel=1e-5)
    assert dip.time == pytest.approx(lowest, abs=1e-3)
    assert dip.third == pytest.approx(probabilities(np.array([peak]))[0, 2], rel=1e-5)
    assert dip.third_time == pytest.approx(peak, abs=1e-3)
    assert dip.recovery == pytest.approx(back, abs=1e-3, nan_ok=True)


def test_sequences_that_differ_in_fewer_tokens_counteract_more() -> None:
    for edits, found in likeness((1, 5, 12)):
        # Rows of the common prefix give 1 - 1/8 each, that of the first difference -1/8.
        expected = ((12 - edits) * 7 / 8 - 1 / 8) / (12 * 7 / 8)
        assert found == pytest.approx(expected, abs=1e-12)
