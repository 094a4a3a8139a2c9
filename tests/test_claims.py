"""Claims: verdicts turn over with the numbers, and the numbers are those of the closed forms."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from studied import CELLS, studied_at

from flowlab import exact
from flowlab.flow import Flow
from flowlab.policies import RatioPlane
from flowlab.study.claims import Claim, Verdict, evaluate, field, limits, table, to_json
from flowlab.study.claims.observables import (
    LOWER_LEFT,
    UPPER_LEFT,
    UPPER_RIGHT,
    Observables,
    observe,
)
from flowlab.study.data import GEOMETRIES, LEVEL, Geometry, StudyData
from flowlab.until import Outcome

BETA = 0.3
IDS = [f"C{number}" for number in range(1, 18)]
BY_NAME = {geometry.name: geometry for geometry in GEOMETRIES}
FREE, BOX, SIMPLEX, LOGS = GEOMETRIES[:4]
COUPLED = {ratio: BY_NAME[f"coupled_{ratio:g}"] for ratio in (0.0, 0.5, 0.9, 1.1)}
TABLE, PAIRS, FEATURES = (
    BY_NAME[name] for name in ("tabular_softmax", "tabular_softmax_pairs", "feature_model")
)
VERDICTS = {"holds", "holds_in_part", "fails", "not_applicable"}


@dataclasses.dataclass(frozen=True, eq=False)
class Elsewhere(Geometry):
    """A geometry with the field of another potential."""

    potential: Callable[[Array], Array] = dataclasses.field(kw_only=True)

    def flow(self, beta: float) -> Any:
        del beta
        return Flow(self.potential)


class Likened(RatioPlane):
    """The ratio plane with a kernel in which the responses are nearly the same."""

    def kernel(self, state: Array) -> Array:
        return jnp.asarray([[1.0, 0.9], [0.9, 1.0]], state.dtype)


@pytest.fixture(scope="module")
def data() -> StudyData:
    return studied_at(BETA)


@pytest.fixture(scope="module")
def claims(data: StudyData) -> list[Claim]:
    return evaluate(data)


@pytest.fixture(scope="module")
def evidence(claims: list[Claim]) -> dict[str, dict[str, dict[str, float]]]:
    return {c.id: {name: v.evidence for name, v in c.verdicts.items()} for c in claims}


def altered(data: StudyData, geometry: Geometry, **changes: Any) -> StudyData:
    """The data with other runs to the level; a name of a measure replaces that measure."""
    runs = data.runs[geometry.name, BETA].to_level
    measures = {k: v for k, v in changes.items() if k in runs.measures}
    rest = {k: v for k, v in changes.items() if k not in runs.measures}
    new = dataclasses.replace(runs, **rest, measures=runs.measures | measures)
    return with_runs(data, geometry, to_level=new)


def ended_later_at(data: StudyData, geometry: Geometry, end: np.ndarray) -> StudyData:
    """The data with other states at the common time."""
    at_time = data.runs[geometry.name, BETA].at_time
    return with_runs(data, geometry, at_time=dataclasses.replace(at_time, end=end))


def with_runs(data: StudyData, geometry: Geometry, **changes: Any) -> StudyData:
    """The data with other runs of one geometry."""
    key = (geometry.name, BETA)
    made = dataclasses.replace(data.runs[key], **changes)
    return dataclasses.replace(data, runs=data.runs | {key: made})


def starts_of(data: StudyData, geometry: Geometry = FREE) -> np.ndarray:
    return np.asarray(data.runs[geometry.name, BETA].to_level.starts)


def elsewhere(potential: Callable[[Array], Array]) -> Geometry:
    values = {f.name: getattr(FREE, f.name) for f in dataclasses.fields(FREE)}
    return Elsewhere(**values, potential=potential)


def full(data: StudyData, value: float) -> np.ndarray:
    return np.full(len(starts_of(data)), value)


def fast_at_low_rejected(state: Array) -> Array:
    return -0.5 / state[1] ** 2 - 0.1 * state[0]


def slow_at_low_chosen(state: Array) -> Array:
    return 0.5 * (state[1] ** 2 - state[0] ** 2)


def flat_at_the_upper_right(state: Array) -> Array:
    return (state[0] * state[1]) ** -4.0


def flat_at_both_axes(state: Array) -> Array:
    return (state[0] * state[1]) ** 2


def still_runs(data: StudyData) -> StudyData:
    """Equal arrivals, and all states in one place at the common time."""
    together = np.broadcast_to([1.0, 0.1], starts_of(data).shape)
    return ended_later_at(altered(data, FREE, time=full(data, 1.0)), FREE, together)


def little_moved_at_the_upper_right(data: StudyData) -> StudyData:
    start = starts_of(data)
    far = np.where(UPPER_RIGHT.contains(start), 0.01, 0.1)
    return ended_later_at(data, FREE, start + far[:, None] * [1.0, -1.0])


def not_arrived(data: StudyData) -> StudyData:
    nothing = np.full_like(data.runs["ratio_plane", BETA].to_level.outcome, Outcome.time_limit)
    return altered(data, FREE, outcome=nothing, time=full(data, np.nan))


def rising_chosen(data: StudyData) -> StudyData:
    end = starts_of(data) + [1.0, -1e-3]
    return altered(data, FREE, rate_ratio_x_start=full(data, 2.0), end=end)


# For every claim that is measured: its function, its verdict on the free ratio plane, and a world
# in which it is another one.
TURNED: dict[str, tuple[Any, str, str, Callable[[StudyData], tuple[StudyData, Geometry]]]] = {
    "C1": (field.c1, "holds", "fails", lambda d: (d, elsewhere(jnp.sum))),
    "C2": (
        field.c2,
        "holds",
        "fails",
        lambda d: (altered(d, FREE, rate_ratio_x_start=full(d, 30.0)), FREE),
    ),
    "C2 later": (
        field.c2,
        "holds",
        "fails",
        lambda d: (altered(d, FREE, end=0.5 * starts_of(d)), FREE),
    ),
    "C3": (
        field.c3,
        "holds_in_part",
        "holds",
        lambda d: (altered(d, FREE, rate_ratio_x_start=full(d, 0.5)), FREE),
    ),
    "C3 opposite": (field.c3, "holds_in_part", "fails", lambda d: (rising_chosen(d), FREE)),
    "C4": (field.c4, "holds_in_part", "holds", lambda d: (d, elsewhere(flat_at_both_axes))),
    "C5": (
        field.c5,
        "holds",
        "fails",
        lambda d: (
            altered(d, FREE, rate_ratio_x_start=full(d, 0.5)),
            elsewhere(slow_at_low_chosen),
        ),
    ),
    "C6": (
        field.c6,
        "holds_in_part",
        "holds",
        lambda d: (little_moved_at_the_upper_right(d), FREE),
    ),
    "C7": (
        field.c7,
        "fails",
        "holds",
        lambda d: (altered(d, FREE, slowest_speed=full(d, 0.0)), FREE),
    ),
    "C8": (
        field.c8,
        "holds_in_part",
        "holds",
        lambda d: (
            altered(d, FREE, rate_ratio_x_start=full(d, 0.01)),
            elsewhere(fast_at_low_rejected),
        ),
    ),
    "C9": (limits.c9, "holds", "fails", lambda d: (not_arrived(d), FREE)),
    "C10": (
        limits.c10,
        "not_applicable",
        "holds",
        lambda d: (d, dataclasses.replace(FREE, policy=Likened())),  # type: ignore[call-arg]
    ),
    "C11": (
        limits.c11,
        "holds_in_part",
        "holds",
        lambda d: (d, elsewhere(fast_at_low_rejected)),
    ),
    "C12": (
        limits.c12,
        "fails",
        "holds",
        lambda d: (
            altered(d, FREE, rate_ratio_x_start=full(d, 0.5)),
            elsewhere(slow_at_low_chosen),
        ),
    ),
    "C13": (
        limits.c13,
        "holds_in_part",
        "fails",
        lambda d: (altered(d, FREE, rate_ratio_x_start=full(d, 2.0)), FREE),
    ),
    "C14": (
        limits.c14,
        "holds_in_part",
        "holds",
        lambda d: (d, elsewhere(flat_at_the_upper_right)),
    ),
    "C15": (limits.c15, "fails", "holds", lambda d: (not_arrived(d), FREE)),
    "C16": (limits.c16, "holds", "fails", lambda d: (still_runs(d), FREE)),
    "C17": (limits.c17, "holds", "fails", lambda d: (d, elsewhere(jnp.sum))),
}


@pytest.mark.parametrize("case", TURNED)
def test_a_verdict_turns_over_in_a_world_where_the_opposite_is_true(
    data: StudyData, case: str
) -> None:
    function, here, there, world = TURNED[case]
    assert function(observe(data, FREE)).verdict == here
    assert function(observe(*world(data))).verdict == there


def test_every_measured_claim_has_a_world_in_which_its_verdict_is_another(
    claims: list[Claim],
) -> None:
    assert {claim.id for claim in claims} == {case.split()[0] for case in TURNED}


@pytest.mark.parametrize(
    "function", [*field.STATEMENTS[3:], *limits.STATEMENTS[2:7]], ids=lambda one: one.judge.__name__
)
def test_a_region_without_starts_makes_its_claim_not_applicable(
    data: StudyData, function: Callable[[Observables], Verdict]
) -> None:
    nowhere = np.full_like(
        data.runs["ratio_plane", BETA].to_level.outcome, Outcome.started_past_target
    )
    assert function(observe(data, FREE)).verdict != "not_applicable"
    empty = observe(altered(data, FREE, outcome=nowhere), FREE)
    assert function(empty).verdict == "not_applicable"
    assert not function(empty).deciding


def test_the_upper_right_corner_is_not_in_the_simplex(claims: list[Claim]) -> None:
    missing = {
        g.name: [c.id for c in claims if not c.verdicts[g.name].deciding] for g in GEOMETRIES
    }
    assert missing.pop("simplex") == ["C6", "C7", "C10", "C14", "C15"]
    uncoupled = {"ratio_plane", "box", "log_ratio_plane", "coupled_0"}  # and so without likeness
    assert missing == {name: ["C10"] if name in uncoupled else [] for name in missing}


def test_there_are_seventeen_claims_in_order_for_all_geometries(claims: list[Claim]) -> None:
    names = [geometry.name for geometry in GEOMETRIES]
    assert len(names) == len(set(names)) == 11
    assert [claim.id for claim in claims] == IDS
    for claim in claims:
        assert list(claim.verdicts) == names
        assert {verdict.verdict for verdict in claim.verdicts.values()} <= VERDICTS
        assert claim.statement and claim.where and claim.measured


def test_a_threshold_names_numbers_that_are_in_the_evidence(claims: list[Claim]) -> None:
    for claim in claims:
        for verdict in claim.verdicts.values():
            assert set(verdict.threshold) == {"quantity", "relation", "value"}
            assert set(verdict.threshold["quantity"].split(", ")) <= set(verdict.evidence)


def test_all_evidence_is_finite(claims: list[Claim]) -> None:
    odd = [
        (claim.id, geometry, name)
        for claim in claims
        for geometry, verdict in claim.verdicts.items()
        for name, value in verdict.evidence.items()
        if not math.isfinite(value)
    ]
    assert not odd


def test_claims_are_written_as_json_that_any_reader_takes(claims: list[Claim]) -> None:
    read = json.loads(json.dumps(to_json(claims), allow_nan=False))
    assert [entry["id"] for entry in read] == IDS
    assert set(read[0]) == {"id", "statement", "where", "measured", "verdicts"}
    assert read[1]["verdicts"]["ratio_plane"]["verdict"] == "holds"
    assert set(read[1]["verdicts"]["box"]) == {"verdict", "close", "evidence", "threshold"}


def test_the_table_has_a_line_for_each_geometry_and_a_column_for_each_claim(
    claims: list[Claim],
) -> None:
    head, *lines, legend = table(claims).splitlines()
    signs = {"holds": "+", "holds_in_part": "~", "fails": "-", "not_applicable": "."}
    assert head.split() == IDS
    assert [line.split()[0] for line in lines] == [geometry.name for geometry in GEOMETRIES]
    for line, geometry in zip(lines, GEOMETRIES, strict=True):
        verdicts = [claim.verdicts[geometry.name].verdict for claim in claims]
        assert line.split()[1:] == [signs[verdict] for verdict in verdicts]
    assert "~ holds in part" in legend
    assert max(map(len, table(claims).splitlines())) <= 100


def test_the_formulas_and_the_ratio_of_rates_are_met_to_rounding(evidence: dict) -> None:
    for geometry in GEOMETRIES:
        assert evidence["C1"][geometry.name]["largest_relative_deviation"] < 1e-13
        assert evidence["C17"][geometry.name]["largest_relative_deviation"] < 1e-13
    name = "largest_relative_deviation_at_the_start"
    assert evidence["C2"]["ratio_plane"][name] < 1e-13
    assert evidence["C2"]["box"][name] < 1e-13
    assert evidence["C2"]["ratio_plane"]["largest_relative_change_of_the_radius"] < 1e-5


def test_on_the_log_ratio_plane_the_rates_have_the_inverse_ratio(evidence: dict) -> None:
    found = evidence["C2"]["log_ratio_plane"]
    assert found["share_of_starts_where_the_ratio_is_x1_over_x2_at_the_start"] == 1
    # The two ratios are the same on the diagonal alone, one cell in each row.
    assert found["share_of_starts_where_it_is_true_at_the_start"] == pytest.approx(1 / CELLS)
    assert found["share_of_starts_where_it_is_true_all_the_way"] == 0


def test_the_circles_of_the_box_are_left_where_they_meet_its_wall(
    data: StudyData, evidence: dict
) -> None:
    times = exact.box_time(starts_of(data, BOX), BETA, wall=1.0, level=LEVEL)
    expected = np.mean(np.isnan(times.arrival) | (times.arrival >= times.total))
    found = evidence["C2"]["box"]["share_of_starts_where_it_is_true_all_the_way"]
    assert found == pytest.approx(float(expected))


def test_the_rejected_is_faster_in_the_half_below_the_diagonal(
    data: StudyData, evidence: dict
) -> None:
    start = starts_of(data)
    end = exact.ratio_plane_state(start, ratio=exact.ratio_plane_ratio_at(LEVEL, BETA))
    change = np.abs(end - start)
    found = evidence["C3"]["ratio_plane"]
    assert found["share_of_starts_where_the_rejected_is_faster_at_the_start"] == pytest.approx(
        (CELLS - 1) / (2 * CELLS)
    )
    assert found["share_of_starts_where_the_rejected_changes_more_on_the_way"] == pytest.approx(
        np.mean(change[:, 1] > change[:, 0])
    )
    assert found["median_change_of_chosen_over_change_of_rejected"] == pytest.approx(
        np.median(change[:, 0] / change[:, 1]), rel=1e-5
    )


def test_speeds_and_arrivals_of_the_upper_right_are_those_of_the_closed_forms(
    data: StudyData, evidence: dict
) -> None:
    start = starts_of(data)
    here = UPPER_RIGHT.contains(start)
    speed = exact.ratio_plane_speed(start, BETA)
    time = exact.ratio_plane_time(start, BETA, level=LEVEL)
    found = evidence["C14"]["ratio_plane"]
    assert found["median_speed_over_median_speed_everywhere"] == pytest.approx(
        np.median(speed[here]) / np.median(speed)
    )
    assert found["median_arrival_over_median_arrival_everywhere"] == pytest.approx(
        np.median(time[here]) / np.median(time), rel=1e-4
    )


def test_rates_at_the_upper_left_are_those_of_theorem_one(data: StudyData, evidence: dict) -> None:
    chosen, rejected = starts_of(data).T
    rate = BETA * rejected**BETA / (chosen * (chosen**BETA + rejected**BETA))
    relative = (rate / np.median(rate))[UPPER_LEFT.contains(starts_of(data))]
    found = evidence["C5"]["ratio_plane"]
    assert found["median_rate_of_x1_over_its_median_everywhere"] == pytest.approx(
        np.median(relative)
    )
    assert found["share_of_starts_where_x1_rises_rapidly"] == np.mean(relative >= 2)


def test_on_the_log_ratio_plane_a_ratio_moves_in_proportion_to_itself(
    data: StudyData, evidence: dict
) -> None:
    # x1' = β s x1 there, so a small ratio is a slow one: the opposite of the ratio plane.
    ratios = np.exp(starts_of(data, LOGS))
    chosen, rejected = ratios.T
    rate = chosen / (1 + (chosen / rejected) ** BETA)
    found = evidence["C5"]["log_ratio_plane"]["median_rate_of_x1_over_its_median_everywhere"]
    here = UPPER_LEFT.contains(ratios)
    assert found == pytest.approx(np.median(rate[here]) / np.median(rate))


def test_arrivals_on_the_log_ratio_plane_spread_as_the_margin_law_says(
    data: StudyData, evidence: dict
) -> None:
    start = starts_of(data, LOGS)
    margin = start[:, 0] - start[:, 1]
    time = exact.kernel_time(margin, exact.dpo_margin_at(LEVEL, BETA), BETA, np.eye(2))
    early, late = np.percentile(time, [5, 95])
    name = "smallest_95th_over_5th_percentile_of_arrival"
    assert evidence["C16"]["log_ratio_plane"][name] == pytest.approx(late / early, rel=1e-4)


def test_the_lower_left_is_halved_by_the_diagonal(data: StudyData, evidence: dict) -> None:
    assert np.any(starts_of(data)[:, 0] == starts_of(data)[:, 1])  # which count half
    name = "share_of_starts_where_x1_is_not_the_faster"
    for geometry in (FREE, LOGS):
        assert evidence["C13"][geometry.name][name] == pytest.approx(0.5)


def test_starts_that_had_met_the_target_are_left_out(data: StudyData) -> None:
    outcome = data.runs["ratio_plane", BETA].to_level.outcome.copy()
    outcome[:7] = Outcome.started_past_target
    seen = observe(altered(data, FREE, outcome=outcome), FREE)
    assert seen.count == CELLS**2 - 7
    np.testing.assert_array_equal(seen.start, starts_of(data)[7:])


@pytest.mark.parametrize("ratio", COUPLED)
def test_a_coupled_kernel_moves_the_two_ratios_in_the_ratio_of_its_rows(
    data: StudyData, evidence: dict, ratio: float
) -> None:
    geometry = COUPLED[ratio]
    start = np.exp(starts_of(data, geometry))
    here = start[LOWER_LEFT.contains(start)]
    expected = np.abs(here[:, 0] / here[:, 1] * (1 - ratio) / (1.5 - ratio))
    found = evidence["C13"][geometry.name]
    assert found["median_rate_of_x1_over_rate_of_x2"] == pytest.approx(np.median(expected))
    assert found["share_of_starts_where_x1_is_not_the_faster"] == np.mean(expected <= 1)
    falls = evidence["C3"][geometry.name]["share_of_starts_where_the_chosen_falls_at_the_start"]
    assert falls == float(ratio > 1)
    later = "share_of_starts_where_the_chosen_has_fallen_at_the_loss_level"
    assert evidence["C3"][geometry.name][later] == float(ratio > 1)


@pytest.mark.parametrize("ratio", [None, *COUPLED])
def test_arrivals_with_one_pair_are_those_of_the_margin_law(
    data: StudyData, ratio: float | None
) -> None:
    geometry = TABLE if ratio is None else COUPLED[ratio]
    kernel = np.eye(2) if ratio is None else np.array([[1, ratio], [ratio, 1.5]])
    runs = data.runs[geometry.name, BETA].to_level
    margin = np.log(geometry.ratios(runs.starts)) @ [1.0, -1.0]
    expected = exact.kernel_time(margin, exact.dpo_margin_at(LEVEL, BETA), BETA, kernel)
    np.testing.assert_allclose(runs.time, expected, rtol=1e-4)


def probabilities(geometry: Geometry, data: StudyData) -> np.ndarray:
    """Probabilities of the four responses at the starts, by arithmetic of our own."""
    logits = np.asarray(data.runs[geometry.name, BETA].to_level.starts)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_starts_of_the_tables_have_the_ratios_of_the_square_and_the_others_give_way(
    data: StudyData,
) -> None:
    for geometry in (TABLE, PAIRS):
        found = probabilities(geometry, data)
        square = starts_of(data)
        np.testing.assert_allclose(found[:, :2] / [0.1, 0.05], square, rtol=1e-12)
        np.testing.assert_allclose(found[:, 2] / found[:, 3], 16.0, rtol=1e-12)


def test_the_coupling_of_a_table_is_that_of_the_closed_form(
    data: StudyData, evidence: dict
) -> None:
    values = probabilities(TABLE, data)
    squares = (values**2).sum(axis=1)
    chosen, rejected = values[:, 0], values[:, 1]
    expected = (squares - chosen - rejected) / (1 - 2 * chosen + squares)
    for geometry in (TABLE, PAIRS):
        found = evidence["C10"][geometry.name]
        assert found["median_of_k_wl_over_k_ww"] == pytest.approx(np.median(expected))
        assert found["largest_k_wl_over_k_ww"] == pytest.approx(np.max(expected))


def test_three_pairs_lower_the_first_chosen_where_the_sum_of_their_pushes_does(
    data: StudyData, evidence: dict
) -> None:
    values = probabilities(PAIRS, data)
    ratios = np.log(values / [0.1, 0.05, 0.8, 0.05])
    push = np.zeros_like(values)
    for chosen, rejected in ((0, 1), (2, 3), (2, 1)):
        weight = 1 / (1 + np.exp(BETA * (ratios[:, chosen] - ratios[:, rejected])))
        push[:, chosen] += weight
        push[:, rejected] -= weight
    rate = push[:, 0] - (values * push).sum(axis=1)
    found = evidence["C3"][PAIRS.name]
    name = "share_of_starts_where_the_chosen_falls_at_the_start"
    assert found[name] == pytest.approx(np.mean(rate < 0))
    assert found[name] > 0.9
    assert evidence["C3"][TABLE.name][name] == 0
    assert found["share_of_betas_where_the_chosen_falls_at_the_reference"] == 1


def test_the_feature_model_lowers_the_chosen_where_its_kernel_says_so(
    data: StudyData, evidence: dict
) -> None:
    starts = data.runs[FEATURES.name, BETA].to_level.starts
    readout, features = starts["readout"], starts["features"]
    logits = np.einsum("nij,nj->ni", readout, features)
    values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(values[:, :2] / values.sum(axis=1)[:, None], values[:, :2])
    apart = readout - np.einsum("ni,nij->nj", values, readout)[:, None]
    size, squares = (features**2).sum(axis=1), (values**2).sum(axis=1)
    own = size * (1 - 2 * values[:, 0] + squares) + (apart[:, 0] ** 2).sum(axis=1)
    cross = size * (squares - values[:, 0] - values[:, 1]) + (apart[:, 0] * apart[:, 1]).sum(axis=1)
    name = "share_of_starts_where_the_chosen_falls_at_the_start"
    assert evidence["C3"][FEATURES.name][name] == pytest.approx(np.mean(cross > own))
    assert evidence["C10"][FEATURES.name]["median_of_k_wl_over_k_ww"] == pytest.approx(
        np.median(cross / own)
    )


def test_the_chosen_falls_just_where_the_kernel_of_a_single_pair_says_so(evidence: dict) -> None:
    name = "share_of_starts_where_it_falls_just_where_k_wl_exceeds_k_ww"
    assert all(evidence["C3"][g.name][name] == 1 for g in GEOMETRIES if g is not PAIRS)
    assert evidence["C3"][PAIRS.name][name] < 0.1
