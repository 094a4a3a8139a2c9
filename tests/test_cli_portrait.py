"""The command that draws a phase portrait and prints where a flow rests."""

import os
from typing import Any

import numpy as np
import pytest
from command import flowlab_command, refusal

from flowlab import DPO, LogRatioPlane, RatioPlane, critical, domains, losses, plots, potentials
from flowlab.critical import CriticalPoint, CriticalPoints
from flowlab.flow import Flow, PreferenceFlow

DPO_ON_RATIOS = ("--loss", "dpo", "--policy", "ratio")
Region = tuple[tuple[float, float], tuple[float, float]]


def made_up_points(region: Region) -> CriticalPoints:
    rates = np.array([1.0, 2.0])
    point = CriticalPoint(np.array([3.0, 2.0]), "minimum", 0, 0.5, 1e-12, rates, rates)
    return CriticalPoints((point,), np.asarray(region), 0.25, np.array([1.0, 1.0]), 256)


@pytest.fixture
def drawn_with(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Region, dict]]:
    """What was searched and drawn, which then computes nothing: flow, region, other options."""
    calls: list[tuple[Any, Region, dict]] = []

    def draw(flow: Any, *, x: Any, y: Any, **options: Any) -> Any:
        calls.append((flow, (x, y), options))
        return plots.panels()[1][0]

    monkeypatch.setattr(critical, "critical_points", lambda flow, region: made_up_points(region))
    monkeypatch.setattr(plots, "phase_portrait", draw)
    return calls


def test_a_portrait_is_drawn_and_the_points_are_printed(tmp_path):
    picture = tmp_path / "himmelblau.png"
    words = ("--potential", "himmelblau", "--x", "2", "4", "--y", "1", "3")
    result = flowlab_command("portrait", *words, "--figure", picture)
    assert result.exit_code == 0, result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = critical.critical_points(Flow(potentials.Himmelblau()), ((2, 4), (1, 3)))
    assert len(found) == 1
    assert result.stdout == f"{found}\n\nfigure: {picture}\n"
    assert "minimum at (3, 2)" in result.stdout


@pytest.mark.exhaustive
def test_where_nothing_rests_the_smallest_gradient_is_printed(tmp_path):
    words = ("--loss", "dpo", "--policy", "log_ratio", "--x", "0", "1", "--y", "0", "1")
    result = flowlab_command("portrait", *words, "--figure", tmp_path / "dpo.png")
    assert result.exit_code == 0, result.stderr
    first, second, *_ = result.stdout.splitlines()
    assert first == "no critical point in the region"
    # |∇L| = √2 β σ(−β h), smallest at the largest margin, 1 nat
    smallest = np.sqrt(2) * 0.1 / (1 + np.exp(0.1))
    assert f"at least {smallest:.3g}, at (1, " in second


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_figure_is_of_the_kind_its_name_says(suffix, tmp_path, drawn_with):
    picture = tmp_path / f"it.{suffix}"
    assert flowlab_command("portrait", *DPO_ON_RATIOS, "--figure", picture).exit_code == 0
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert picture.read_bytes().startswith(begins[suffix])


BOX = ("--domain", "box", "--box-chosen", "2", "--wall", "slide")
SIMPLEX = ("--domain", "simplex", "--ref-prob-rejected", "0.5")
ASKED: dict[str, tuple[tuple[str, ...], Any, Region]] = {
    "ratio": (DPO_ON_RATIOS, (DPO(0.1), RatioPlane()), ((0, 1), (0, 1))),
    "beta": ((*DPO_ON_RATIOS, "--beta", "0.3"), (DPO(0.3), RatioPlane()), ((0, 1), (0, 1))),
    "box": (
        (*DPO_ON_RATIOS, *BOX),
        (DPO(0.1), RatioPlane(domains.Box(2.0), wall="slide")),
        ((0, 2), (0, 1)),
    ),
    "simplex": (
        (*DPO_ON_RATIOS, *SIMPLEX),
        (DPO(0.1), RatioPlane(domains.Simplex(ref_prob_rejected=0.5))),
        ((0, 1), (0, 2)),
    ),
    "log-ratio": (
        ("--loss", "discopop", "--set", "tau=0.1", "--policy", "log_ratio", "--y", "-3", "4"),
        (losses.DiscoPOP(tau=0.1), LogRatioPlane()),
        ((-10, 10), (-3, 4)),
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_the_flow_and_the_ranges_are_those_asked_for(name, tmp_path, drawn_with):
    words, (loss, policy), region = ASKED[name]
    result = flowlab_command("portrait", *words, "--figure", tmp_path / "it.png")
    assert result.exit_code == 0, result.stderr
    ((flow, drawn, options),) = drawn_with
    assert isinstance(flow, PreferenceFlow)
    assert (repr(flow.loss), repr(flow.policy)) == (repr(loss), repr(policy))
    assert drawn == region
    assert (options["layers"], options["cells"]) == (plots.LAYERS, None)
    np.testing.assert_array_equal(options["points"].region, region)


@pytest.mark.parametrize("kind", potentials.AbstractPotential.__subclasses__())
def test_every_classical_potential_has_a_portrait_of_its_own_region(kind, tmp_path, drawn_with):
    # A word begins with a capital, but for a hyphen any other sign will do.
    name = "".join(f"-{sign.lower()}" if sign.isupper() else sign for sign in kind.__name__)
    result = flowlab_command("portrait", "--potential", name[1:], "--figure", tmp_path / "it.png")
    assert result.exit_code == 0, result.stderr
    ((flow, region, _),) = drawn_with
    assert type(flow.function) is kind
    assert region == flow.function.region
    assert len(region) == 2


def test_basins_are_filled_in_on_demand(tmp_path, drawn_with):
    for words, cells in ((("--basins",), 64), (("--basins", "--cells", "9"), 9)):
        asked = (*DPO_ON_RATIOS, *words, "--figure", tmp_path / f"{cells}.png")
        assert flowlab_command("portrait", *asked).exit_code == 0
        options = drawn_with[-1][-1]
        assert options["cells"] == cells
        assert options["layers"] == ("basins", *plots.LAYERS)


def test_the_portrait_has_a_name_unless_told(tmp_path, monkeypatch, drawn_with):
    monkeypatch.chdir(tmp_path)
    for name in ("dpo.png", "dpo-2.png", "dpo-3.png"):  # what is there stays
        assert flowlab_command("portrait", "dpo").stdout.endswith(f"figure: {name}\n")
    assert sorted(os.listdir(tmp_path)) == ["dpo-2.png", "dpo-3.png", "dpo.png"]


def test_a_picture_is_replaced_only_where_that_is_asked_for(tmp_path, drawn_with):
    picture = tmp_path / "it.png"
    picture.write_text("mine")
    said = refusal(flowlab_command("portrait", "dpo", "--figure", picture))
    assert said == (
        f"Option --figure must be a new file, but {picture} exists; give another path, or replace "
        "it with --overwrite."
    )
    assert (picture.read_text(), drawn_with) == ("mine", [])
    assert flowlab_command("portrait", "dpo", "--out", picture, "--overwrite").exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


NOT_DRAWN = {
    "Option --loss must be given, or --potential instead.": (),
    "Option --loss has no effect with --potential.": (*DPO_ON_RATIOS, "--potential", "bowl"),
    "Option --beta has no effect with --potential.": ("--potential", "bowl", "--beta", "0.1"),
    "Option --set has no effect with --potential.": ("--potential", "bowl", "--set", "a=1"),
    "Option --kernel has no effect with --potential.": ("--potential", "bowl", "--kernel", "1,0,1"),
    "Option --potential must be one of bowl, double_well, ": (
        "--potential",
        "ackley",
    ),
    "Option --loss must be one of dpo, ": ("--loss", "mse", "--policy", "ratio"),
    "Option --loss must be a loss of one pair": ("--loss", "aot", "--policy", "ratio"),
    "Option --policy must be one of ratio, log_ratio, but is 'plane'.": (
        *("--loss", "dpo", "--policy", "plane"),
    ),
    "Option --kernel has no effect with --policy ratio.": (*DPO_ON_RATIOS, "--kernel", "1,0,1"),
    "Option --wall has no effect without --domain box or simplex.": (
        *DPO_ON_RATIOS,
        "--wall",
        "slide",
    ),
    "Option --set must not name beta": (*DPO_ON_RATIOS, "--set", "beta=1"),
    "Option --offset has no effect with --loss dpo": (*DPO_ON_RATIOS, "--offset", "1"),
    "Option --x must be LOW HIGH, the lower first, but is 1 0.": (*DPO_ON_RATIOS, "--x", "1", "0"),
    "Option --y must be LOW HIGH, the lower first, but is 0 inf.": (
        *(*DPO_ON_RATIOS, "--y", "0", "inf"),
    ),
    "Option --cells has no effect without --basins.": (*DPO_ON_RATIOS, "--cells", "9"),
    "Option --cells must be at least 2, but is 1.": (*DPO_ON_RATIOS, "--basins", "--cells", "1"),
    "Option --figure must end in .png, .svg, .pdf, .html, but is x.gif.": (
        *DPO_ON_RATIOS,
        "--figure",
        "x.gif",
    ),
    "Option --figure must be a file in a folder that exists": (
        *DPO_ON_RATIOS,
        "--figure",
        "a/x.png",
    ),
    "Argument `region` must hold states at which the flow is defined": (
        *(*DPO_ON_RATIOS, "--domain", "simplex", "--x", "2", "3"),
    ),
}


@pytest.mark.parametrize("sentence", NOT_DRAWN)
def test_what_cannot_be_drawn_is_refused_in_one_line(sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = flowlab_command("portrait", *NOT_DRAWN[sentence])
    assert refusal(result).startswith(sentence)
    assert result.stdout == ""
    assert os.listdir(tmp_path) == []
