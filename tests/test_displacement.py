"""Where the chosen log-probability falls: swept, and against closed forms, SciPy and autodiff.

u: log-ratios; h = u_w − u_l, the margin; r = k_wl/k_ww.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned
from scipy.integrate import solve_ivp

import flowlab as fl
from flowlab import displacement, domains, exact, losses, measures, plots, policies, starts, until

BETA = 0.5
DPO = fl.DPO(BETA)
RATIOS = np.array([0.0, 0.5, 0.9, 0.999, 1.0, 1.001, 1.1])
SQUARE = starts.uniform(1000, (-8.0, -8.0), (8.0, 8.0), seed=3)
PROBABILITIES = np.array([0.1, 0.05, 0.8, 0.05])
COUPLES = [(0, 1), (2, 3), (2, 1)]


def swept(policy, points, target, *, loss=DPO, measured=None, **options):
    """The dips along the flow lines of many starts."""
    return fl.sweep(
        fl.preference_flow(loss, policy),
        points,
        until=target if isinstance(target, until.AbstractTarget) else until.time(target),
        measures=measured or [measures.dip()],
        optimise=False,
        progress=False,
        **options,
    )


PLANES = {
    "ratio plane": (fl.RatioPlane(), np.exp(SQUARE / 4)),
    "ratio plane, box": (
        fl.RatioPlane(domains.Box(), wall="slide"),
        starts.uniform(1000, (0.01, 0.01), (1.0, 1.0), seed=4),
    ),
    "log-ratio plane": (fl.LogRatioPlane(), SQUARE),
    "probability plane": (
        policies.ProbabilityPlane(np.log(0.3), np.log(0.2)),
        starts.uniform(1000, (0.01, 0.01), (0.5, 0.5), seed=5),
    ),
}


@pytest.mark.parametrize("name", thinned(PLANES, {"log-ratio plane"}))
def test_for_one_pair_on_a_plane_dpo_never_lowers_the_chosen(name):
    policy, points = PLANES[name]
    runs = swept(policy, points, 20.0)
    assert len(points) == 1000
    np.testing.assert_array_equal(runs.measures["dip_depth"], 0.0)
    assert np.all(np.isnan(runs.measures["dip_time"]))
    assert not {"non_finite", "step_limit"} & set(runs.counts())


@pytest.mark.exhaustive
def test_on_the_wall_of_the_simplex_dpo_raises_the_chosen_until_the_flow_is_released():
    policy = fl.RatioPlane(domains.Simplex(0.5, 0.5), wall="slide")
    inside = starts.uniform(1300, (0.01, 0.01), (1.9, 1.9), seed=6)
    inside = inside[inside.sum(axis=1) < 1.99][:500]
    on_wall = np.linspace(0.05, 1.0, 500)
    points = np.concatenate([inside, np.stack([on_wall, 2.0 - on_wall], axis=1)])
    assert len(points) == 1000
    runs = swept(policy, points, 20.0)
    np.testing.assert_array_equal(runs.measures["dip_depth"], 0.0)


TABLES = [(2, False), (5, False), (5, True)]


@pytest.mark.parametrize(("responses", "fisher"), thinned(TABLES, TABLES[:1]))
def test_for_one_pair_under_a_softmax_table_dpo_never_lowers_the_chosen(responses, fisher):
    # Under the Fisher metric the rejected dies out in finite time, so that a margin ends the lines.
    target = until.margin_above(15.0) if fisher else until.time(50.0)
    for seed in range(2):
        random = np.random.default_rng(seed)
        policy = fl.TabularSoftmax(random.dirichlet(np.ones(responses)), (0, 1), fisher=fisher)
        points = random.normal(0, 2, (500, responses))
        runs = swept(policy, points, target)
        np.testing.assert_array_equal(runs.measures["dip_depth"], 0.0)
        assert runs.counts() == {"reached": 500}


@pytest.fixture(scope="module")
def coupled():
    plane = fl.LogRatioPlane(policies.CoupledKernel())
    measured = [measures.dip(), measures.change("u")]
    return swept(plane, SQUARE, 50.0, measured=measured, over={"ratio": RATIOS}, rtol=1e-10)


def test_with_a_kernel_dpo_lowers_the_chosen_exactly_where_the_rejected_pulls_more(coupled):
    falls = coupled.measures["dip_depth"] > 0
    np.testing.assert_array_equal(falls, np.broadcast_to((RATIOS > 1)[:, None], falls.shape))
    assert np.all(np.isnan(coupled.measures["recovery_time"]))


def test_the_depth_under_a_constant_kernel_is_that_of_the_closed_form(coupled):
    for ratio, depth, time in zip(
        RATIOS, coupled.measures["dip_depth"], coupled.measures["dip_time"], strict=True
    ):
        kernel = np.array([[1.0, ratio], [ratio, 1.5]])
        margins = SQUARE[:, 0] - SQUARE[:, 1]
        gained = exact.kernel_margin(50.0, margins, BETA, kernel) - margins
        wanted = np.maximum(0, (ratio - 1) / exact.kernel_contraction(kernel) * gained)
        np.testing.assert_allclose(depth, wanted, rtol=1e-8, atol=1e-12)
        # The chosen falls to the end, since L' < 0 all the way.
        np.testing.assert_allclose(time[depth > 0], 50.0, rtol=1e-12)


MARGINS = np.concatenate([np.linspace(-20, 20, 60), np.linspace(-1.5, 1.5, 8)])
PAST_ITS_TARGET = {
    "summed IPO": (losses.SummedIPO(0.1), lambda h: h > 5),
    "cDPO": (losses.ConservativeDPO(0.2, 0.2), lambda h: h > np.log(4) / 0.2),
    "DiscoPOP": (losses.DiscoPOP(), None),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PAST_ITS_TARGET)
def test_where_a_loss_of_the_margin_wants_a_smaller_one_the_reverse_holds(name):
    loss, past = PAST_ITS_TARGET[name]
    margins = np.sort(MARGINS)
    found = displacement.displacement(loss, margins=margins, ratios=RATIOS)
    if past is None:
        plane = fl.LogRatioPlane()
        slope = jax.jit(jax.vmap(jax.grad(lambda h: loss(plane.pairs(jnp.stack([h, 0 * h]))))))
        beyond = np.asarray(slope(jnp.asarray(margins))) > 0
    else:
        beyond = past(margins)
    assert 0 < beyond.sum() < len(margins)
    wanted = np.where(beyond, (RATIOS < 1)[:, None], (RATIOS > 1)[:, None])
    np.testing.assert_array_equal(found.rate < 0, wanted)
    np.testing.assert_array_equal(found.dip_depth > 0, wanted)
    np.testing.assert_allclose(found.boundary, 1.0, rtol=1e-12)


OTHERS = [
    losses.SPPO(),
    losses.KTO(),
    losses.DPOShift(),
    losses.DPOP(),
]
SCATTERED = starts.uniform(24, (-9.0, -9.0), (9.0, 9.0), seed=9)


def by_autodiff(loss, points):
    """∂L/∂u at points, and where between chosen and rejected it balances."""
    plane = fl.LogRatioPlane(offset=1.0)
    slope = jax.jit(jax.vmap(jax.grad(lambda u: loss(plane.pairs(u)))))
    slopes = np.asarray(slope(jnp.asarray(points)))
    return slopes, -slopes[:, 0] / np.where(slopes[:, 1] == 0, np.nan, slopes[:, 1])


@pytest.mark.parametrize("loss", thinned(OTHERS, OTHERS[:1]), ids=lambda loss: type(loss).__name__)
def test_other_losses_lower_the_chosen_at_once_exactly_beyond_their_boundary(loss):
    ratios = [-0.4, 0.3, 0.95, 1.15]
    # DPOP soon comes to its kink at u_w = 0, along which no solver of ours can slide.
    time = 0.01 if isinstance(loss, losses.DPOP) else 1.0
    found = displacement.displacement(loss, starts=SCATTERED, ratios=ratios, time=time)
    slopes, boundary = by_autodiff(loss, SCATTERED)
    np.testing.assert_allclose(found.boundary, boundary, rtol=1e-9)
    ratios = found.ratios[:, None]
    falls = np.where(slopes[:, 1] > 0, ratios > boundary, ratios < boundary)
    np.testing.assert_array_equal(found.rate < 0, falls)
    # What falls at once has a dip; what falls later is more than the boundary can tell.
    assert np.all(found.dip_depth[falls & found.known] > 0)
    assert 0 < falls.sum() < falls.size


def softmax_flow(weights):
    """The reference and couples of the example, as SciPy solves it."""
    reference = np.log(PROBABILITIES)

    def log_probs(y):
        return y - y.max() - np.log(np.exp(y - y.max()).sum())

    def field(t, y):
        u = log_probs(y) - reference
        rate = np.zeros(4)
        for (chosen, rejected), weight in zip(COUPLES, weights, strict=True):
            pull = weight * BETA / (1 + np.exp(BETA * (u[chosen] - u[rejected])))
            rate[chosen] += pull
            rate[rejected] -= pull
        return rate

    options: dict[str, Any] = dict(method="DOP853", rtol=1e-12, atol=1e-13, dense_output=True)
    solved = solve_ivp(field, (0, 200.0), reference, **options)
    times = np.linspace(0, 200.0, 40_001)
    return times, np.array([log_probs(y) for y in solved.sol(times).T])


@pytest.fixture(scope="module")
def several():
    policy = fl.TabularSoftmax(PROBABILITIES, COUPLES)
    return swept(
        policy,
        np.log(PROBABILITIES)[None],
        200.0,
        measured=[measures.dip(), measures.mass()],
        rtol=1e-10,
    )


def test_pairs_that_share_responses_lower_a_chosen_one_as_scipy_has_it(several):
    times, logs = softmax_flow(np.full(3, 1 / 3))
    for pair, chosen in enumerate((0, 2, 2)):
        moved = logs[:, chosen] - logs[0, chosen]
        lowest = np.argmin(moved)
        depth = several.measures["dip_depth"][0, pair]
        assert depth == pytest.approx(-moved[lowest], rel=1e-8, abs=1e-12)
        if lowest:
            assert several.measures["dip_time"][0, pair] == pytest.approx(times[lowest], abs=1e-3)
    assert several.measures["dip_depth"][0, 0] > 1e-3
    assert several.measures["dip_depth"][0, 1] == 0
    # It falls to the end of the line, and has not come back there.
    assert several.measures["dip_time"][0, 0] == pytest.approx(times[-1], rel=1e-6)
    assert logs[-1, 0] < logs[0, 0]
    assert np.isnan(several.measures["recovery_time"][0, 0])


def test_what_the_responses_gain_is_what_scipy_has(several):
    _, logs = softmax_flow(np.full(3, 1 / 3))
    probabilities = np.exp(logs)
    gained = probabilities[-1] - probabilities[0]
    np.testing.assert_allclose(several.measures["mass_gained"][0], gained, atol=1e-9)
    peaks = several.measures["mass_peak"][0]
    np.testing.assert_allclose(peaks, probabilities.max(axis=0), rtol=1e-6)
    # Every response is in a pair, so that nobody is left to gain.
    assert abs(several.measures["mass_gained_others"][0]) < 1e-12
    assert several.measures["mass_gainer"][0] == -1


@pytest.mark.exhaustive
def test_the_responses_outside_the_pair_gain_what_the_closed_form_leaves_them():
    reference = np.array([0.05, 0.6, 0.15, 0.2])
    policy = fl.TabularSoftmax(reference)
    points = np.log(reference)[None]
    found = swept(policy, points, 20.0, measured=[measures.mass()], rtol=1e-7).measures
    # The two logits of the pair move alike and oppositely, by half the margin each.
    margin = float(exact.kernel_margin(20.0, 0.0, BETA, np.eye(2)))
    weights = reference * np.exp([margin / 2, -margin / 2, 0, 0])
    gained = weights / weights.sum() - reference
    np.testing.assert_allclose(found["mass_gained"][0], gained, rtol=1e-6)
    assert found["mass_gained_others"][0] == pytest.approx(gained[2] + gained[3], rel=1e-6)
    assert found["mass_gainer"][0] == 3
    assert gained[3] > gained[2] > 0


def test_a_map_says_what_it_was_made_of_and_writes_it_down():
    found = displacement.displacement(DPO, margins=np.linspace(-4, 4, 5), ratios=[0.5, 1.2])
    # β/2 in the median, over 8 nats.
    assert found.time == pytest.approx(8 / 0.25)
    assert found.counts() == {"reached": 10}
    for share in found.shares.values():
        assert share.shape == (2,)
    np.testing.assert_array_equal(found.shares["falls"], [0, 1])
    data = found.to_xarray()
    assert data["dip_depth"].dims == ("ratio", "start")
    np.testing.assert_array_equal(data["margin"], found.margins)
    (record,) = displacement.to_json({"dpo": found})
    assert record["name"] == "dpo"
    assert record["dip_time"][0] == [None] * 5
    np.testing.assert_array_equal(record["dip_depth"], found.dip_depth)
    text = displacement.table({"dpo": found})
    assert text.startswith("dpo: DPO(beta=0.5), 5 starts with margins -4 to 4")
    rows = [line.split() for line in text.splitlines() if line.startswith("dpo ")]
    assert rows[0][:5] == ["dpo", "0.5", "0.0%", "0.0%", "0.0%"]
    assert rows[1][:6] == ["dpo", "1.2", "100.0%", "100.0%", "0.0%", f"{found.dip_depth.max():.4g}"]
    ax = plots.displacement(found)
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()][:1] == [
        "never below its start"
    ]
    assert ax.get_xlabel().startswith("margin of the start")
    figure, axes = plots.displacements({"one": found, "two": found})
    assert [axis.get_title().split("\n")[0] for axis in axes] == ["one", "two"]
    deepest = f"{np.nanmax(found.dip_depth):.4g}"
    assert repr(found) == (
        "Displacement(DPO(beta=0.5): 5 starts at 2 ratios k_wl/k_ww, falls by "
        f"{deepest} nats at most)"
    )
    assert found.table() == displacement.table({"DPO": found})


@pytest.mark.exhaustive
def test_lines_that_end_early_and_starts_without_a_line_are_shown_as_such():
    margins = [30.0, 45.0]
    found = displacement.displacement(losses.ORPO(), margins=margins, ratios=[0.0, 0.5], time=400.0)
    np.testing.assert_array_equal(found.known, [[True, False]] * 2)
    np.testing.assert_array_equal(found.ends_early, [[True, False]] * 2)
    assert np.all(found.end_time[:, 0] < 400)
    _, boundary = by_autodiff(losses.ORPO(), found.starts)
    np.testing.assert_allclose(found.boundary[0], boundary[0], rtol=1e-9)
    assert found.boundary[0] > 1.2
    assert np.all(found.rate[:, 0] > 0)
    # The chosen rises until its probability is 1, 20 nats above the reference.
    np.testing.assert_allclose(found.change_chosen[:, 0], 5.0, rtol=1e-4)
    assert np.isnan(found.dip_depth[:, 1]).all()
    labels = [text.get_text() for text in plots.displacement(found).figure.legends[0].get_texts()]
    assert "no flow line: the loss\nis not defined" in labels
    assert "line ends where the loss\nis no longer defined" in labels


REFUSED = {
    "Argument `rejected` must be positive and finite": dict(rejected=-1.0),
    "Argument `time` must be positive and finite": dict(time=np.nan),
    "Argument `ratios` must increase": dict(ratios=[1.0, 0.5]),
    r"Argument `ratios` must have shape \(n,\)": dict(ratios=[[0.5]]),
    "Argument `ratios` must be at most the square root": dict(ratios=[1.3]),
    r"Argument `margins` must have shape \(n,\)": dict(margins=[]),
    "Argument `margins` must be None if `starts`": dict(margins=[0.0], starts=[[0.0, 0.0]]),
    r"Argument `starts` must have shape \(n, 2\)": dict(starts=[0.0, 1.0]),
    "Argument `starts` must be finite": dict(starts=[[np.inf, 0.0]]),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_mapped_is_refused(sentence):
    with pytest.raises(ValueError, match=sentence):
        displacement.displacement(DPO, **REFUSED[sentence])


def test_losses_of_a_batch_and_flat_ones_and_flows_without_pairs_are_refused():
    with pytest.raises(ValueError, match="Argument `loss`"):
        displacement.displacement(losses.AOT())
    with pytest.raises(ValueError, match="Argument `time` must be given"):
        displacement.displacement(losses.Hinge(), margins=[15.0, 20.0])
    with pytest.raises(AttributeError, match="displacement.rates is now flowlab.displacement.expl"):
        _ = displacement.rates
    with pytest.raises(ValueError, match="Argument `displacements`"):
        plots.displacements({})


def test_ratios_lie_about_the_boundary_of_the_loss_where_they_can():
    assert displacement.typical_boundary(DPO, np.array([-5.0, 0.0, 5.0])) == pytest.approx(1)
    about = displacement.default_ratios(1.5, 4, boundary=1.0)
    edges = np.linspace(2 - np.sqrt(1.5), np.sqrt(1.5), 5)
    np.testing.assert_allclose(about, (edges[1:] + edges[:-1]) / 2)
    assert np.mean(about) == pytest.approx(1)
    # Where no ratio is as large as the boundary, or it is nowhere, the range is as wide as can be.
    for boundary in (2.0, np.nan):
        wide = displacement.default_ratios(1.5, 4, boundary=boundary)
        np.testing.assert_allclose(wide, [-0.2, 0.2, 0.6, 1.0])
