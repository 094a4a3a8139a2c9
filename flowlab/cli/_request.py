"""The conversion of options of the command to arguments of the library.

Modules that only some commands need are imported inside functions, so that a log is read without
the solver.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowlab._names import did_you_mean, key, meant
from flowlab._options import (
    OF_POLICY,
    OptionError,
    as_flag,
    implied,
    refuse_idle,
    refuse_twice,
    refuse_unless,
)
from flowlab._parameters import parameter_names, replaced
from flowlab.flow import AbstractFlow, Flow, PreferenceFlow, preference_flow
from flowlab.logs import Diagnosis, diagnose
from flowlab.logs.series import read_named
from flowlab.losses import CATALOGUE, AbstractLoss, nearest
from flowlab.losses.from_options import (
    beta_of,
    has_beta,
    loss,
    loss_from_options,
    parameters_of_each,
)
from flowlab.policies import CoupledKernel, LogRatioPlane

if TYPE_CHECKING:
    from flowlab.plans import Plan
    from flowlab.potentials import AbstractPotential

_BETAS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of that of the loss, on a slider
_COUPLING = "k_wl/k_ww"
_COUPLINGS = {"kwlkww", "kwl", "coupling", "ratio"}  # how people write it
Ranges = tuple[tuple[float, float], tuple[float, float]]


def plan(asked: dict[str, Any], file: Path | None, *, float32: bool) -> "Plan":
    """The plan in a file, or the plan that the options describe."""
    from flowlab import plans

    given = {name: value for name, value in asked.items() if value not in (None, [])}
    if file is None:
        refuse_unless("loss" in given, "loss", "must be given, or {plan} instead")
        parameters = {"parameters": loss_parameters(asked["parameters"])}
        if len(given["loss"]) == 1:
            (given["loss"],) = given["loss"]
        return plans.from_recipe(
            {**given, **parameters, "dtype": "float32" if float32 else "float64"}
        )
    for name in [*given, *(["float32"] if float32 else [])]:
        raise OptionError(name, "has no effect with {plan}; put it into that file")
    return plans.from_toml(file)


def names(texts: Sequence[str] | None) -> list[str]:
    """The names in several texts, each of which may hold names separated by commas."""
    parts = [part.strip() for text in texts or () for part in text.split(",")]
    return [part for part in parts if part]


def loss_parameters(texts: Sequence[str] | None) -> dict[str, float]:
    """Hyper-parameters from texts such as `tau=0.1`."""
    found: dict[str, float] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        refuse_unless(name not in found, "parameters", "must not name {} twice", name)
        try:
            found[name] = float(value)
        except ValueError:
            raise OptionError("parameters", "must be NAME=NUMBER, but is {!r}", text) from None
    return found


def drawn(asked: dict[str, Any], potential: str | None) -> tuple[AbstractFlow, Ranges]:
    """The flow on a plane that the options describe, and the region to draw."""
    from flowlab.plans import builders

    if potential is None and len(asked["loss"]) == 1 and meant(asked["loss"][0], _potentials()):
        (potential,) = asked["loss"]
        asked = {**asked, "loss": None}
    if potential is not None:
        for name, value in asked.items():
            refuse_unless(value in (None, []), name, "has no effect with {potential}")
        return _potential(potential)
    refuse_unless(bool(asked["loss"]), "loss", "must be given, or {potential} instead")
    one = len(asked["loss"]) == 1
    refuse_unless(one, "loss", "must name one loss, but names {}", ", ".join(asked["loss"]))
    (name,) = asked["loss"]
    near = did_you_mean(name, _potentials())
    if near and not nearest(name) and meant(name, CATALOGUE) is None:
        words = "must be a loss or a classical potential, but is {!r}{}"
        raise OptionError("loss", words, name, near)
    asked = implied({**asked, "loss": name})
    refuse_idle(asked, OF_POLICY)
    chosen = loss_from_options(asked, loss_parameters(asked["parameters"]))
    plane = builders.policy(asked)
    assert plane.region is not None
    return preference_flow(chosen, plane), plane.region


def slider(flow: AbstractFlow, text: str | None) -> tuple[AbstractFlow, dict[str, list[float]]]:
    """A flow with a hyper-parameter for a slider, and the values of this hyper-parameter by name.

    Without a text, the values are several β around the β of the loss, or none if the loss has no β.
    A constant kernel is replaced by one that has the ratio k_wl/k_ww as a hyper-parameter.
    """
    if text is None:
        if not isinstance(flow, PreferenceFlow) or not has_beta(flow.loss):
            return flow, {}
        beta = beta_of(flow.loss)
        return flow, {"beta": [float(f"{beta * factor:.3g}") for factor in _BETAS]}
    name, equals, listed = text.partition("=")
    try:
        values = [float(each) for each in listed.strip(",").split(",")]
    except ValueError:
        values = []
    right = bool(equals and values)
    refuse_unless(right, "over", "must be NAME=VALUE,VALUE,..., but is {!r}", text)
    refuse_twice("over", values)
    if key(name.replace("/", "")) in _COUPLINGS:
        return _coupled(flow, values), {"ratio": values}
    known = parameter_names(flow.loss if isinstance(flow, PreferenceFlow) else flow)
    found = meant(name, known)
    if found is None:
        near = did_you_mean(name, [*known, _COUPLING])
        words = ", ".join([*known, _COUPLING])
        raise OptionError("over", "must name one of {}, but names {!r}{}", words, name, near)
    return flow, {found: values}


def _coupled(flow: AbstractFlow, ratios: Sequence[float]) -> AbstractFlow:
    """A flow on the log-ratio plane whose kernel has the ratio k_wl/k_ww as a hyper-parameter."""
    plane = flow.policy if isinstance(flow, PreferenceFlow) else None
    words = "has no effect on k_wl/k_ww without {policy} log_ratio"
    if not isinstance(flow, PreferenceFlow) or not isinstance(plane, LogRatioPlane):
        raise OptionError("over", words)
    kernel = np.asarray(plane.matrix, float)
    rejected, chosen = float(kernel[1, 1] / kernel[0, 0]), float(kernel[0, 0])
    right = all(ratio**2 <= rejected for ratio in ratios)
    most = "must have k_wl/k_ww of at most {:.4g} in size, the root of k_ll/k_ww, but is {}"
    refuse_unless(right, "over", most, rejected**0.5, ", ".join(f"{each:g}" for each in ratios))
    coupled = replaced(plane, "kernel", CoupledKernel(ratios[0], rejected, chosen))
    return preference_flow(flow.loss, coupled)


def _potential(name: str) -> tuple[AbstractFlow, Ranges]:
    """The flow of a classical potential with a given name, and the region to draw."""
    known = _potentials()
    found, listed = meant(name, known), ", ".join(sorted(known))
    if found is None:
        near = did_you_mean(name, known)
        raise OptionError("potential", "must be one of {}, but is {!r}{}", listed, name, near)
    on_plane = {"dimension": 2} if found == "double_well" else {}
    potential = known[found](**on_plane)
    first, second = potential.region
    return Flow(potential), (first, second)


def _potentials() -> dict[str, type["AbstractPotential"]]:
    """The classes of classical potentials by name."""
    from flowlab import potentials

    kinds = potentials.AbstractPotential.__subclasses__()
    return {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower(): kind for kind in kinds}


def checked_range(
    option: str, given: tuple[float, float] | None, usual: tuple[float, float]
) -> tuple[float, float]:
    """The range that the user gave, after a check, or the default range.

    Raises:
        ValueError: If the range is not finite, or if its upper end comes first.
    """
    low, high = usual if given is None else given
    right = float("-inf") < low < high < float("inf")
    refuse_unless(right, option, "must be LOW HIGH, the lower first, but is {:g} {:g}", low, high)
    return low, high


def losses(text: str, betas: Sequence[float] | None) -> dict[str, AbstractLoss]:
    """The losses that a text names, each with every β if it has a β, by title."""
    refuse_twice("beta", betas or ())
    of_pairs = [n for n, known in CATALOGUE.items() if not known.of_batch]
    names = of_pairs if text == "all" else [name.strip() for name in text.split(",")]
    refuse_twice("losses", names)
    found: dict[str, AbstractLoss] = {}
    for name in names:
        plain = loss(name, {}, "losses")
        refuse_batch(plain, name, "losses")
        if betas and has_beta(plain):
            found |= {f"{name}, β = {b:g}": loss(name, {"beta": b}) for b in betas}
        else:
            found[name] = plain
    idle = bool(betas) and found.keys() == set(names)
    refuse_unless(not idle, "beta", "has no effect with {losses} {}, which have no beta", text)
    return found


def described(name: str, beta: float | None, texts: Sequence[str] | None) -> AbstractLoss:
    """The loss with a given name and hyper-parameters; β has an option of its own."""
    parameters = loss_parameters(texts)
    listed = [each for each in names([name]) if meant(each, CATALOGUE)]
    several = len(listed) > 1 and len(listed) == len(names([name]))
    compared = "must be one loss, but names {}; compare them by flowlab study --losses {}"
    refuse_unless(not several, "name", compared, len(listed), ",".join(listed))
    words = "must be one loss, but is {}; leave it out for the table of all losses"
    refuse_unless(key(name) not in ("all", "list"), "name", words, name)
    if beta is not None:
        refuse_unless("beta" not in parameters, "parameters", "must not name beta, which is {beta}")
        plain = loss(name, {}, "name")
        refuse_unless(has_beta(plain), "beta", "has no effect with {name} {}, which has none", name)
        parameters["beta"] = beta
    found = loss(name, parameters, "name")
    refuse_batch(found, name, "name")
    return found


def losses_of_displacement(
    names: Sequence[str], beta: float | None, texts: Sequence[str] | None
) -> dict[str, AbstractLoss]:
    """The losses with a given β and, for a single loss, with its hyper-parameters."""
    refuse_unless(bool(names), "loss", "must be given")
    refuse_twice("loss", names)
    asked = {"beta": beta, "offset": None}
    each = parameters_of_each(names, loss_parameters(texts))
    found = {name: loss_from_options({**asked, "loss": name}, each[name]) for name in names}
    for name, one in found.items():
        refuse_batch(one, name, "loss")
    return found


def diagnoses(
    files: Sequence[Path], betas: Sequence[float], name: str | None, texts: Sequence[str] | None
) -> list[Diagnosis]:
    """Diagnoses of training logs with a given β, and with the given loss if there is one."""
    refuse_unless(len(betas) == 1, "beta", "must be given once, but is {}", list(betas))
    (beta,) = betas
    refuse_unless(0 < beta < float("inf"), "beta", "must be positive and finite, but is {:g}", beta)
    refuse_unless(name is not None or not texts, "parameters", "has no effect without {loss}")
    known = None if name is None else trained(name, beta, loss_parameters(texts))
    found = []
    for file in files:
        log = read_named(file, beta=beta, what=f"Argument {as_flag('files')}")
        found.append(diagnose(log, known, name=name))
    return found


def trained(
    name: str, beta: float, parameters: dict[str, float], *, of_batch: bool = False
) -> AbstractLoss:
    """The loss of a run, with its β if it has one; a batch loss only if `of_batch` allows it."""
    refuse_unless("beta" not in parameters, "parameters", "must not name beta, which is {beta}")
    plain = loss(name, parameters)
    if not of_batch:
        refuse_batch(plain, name, "loss")
    return loss(name, {**parameters, "beta": beta}) if has_beta(plain) else plain


def refuse_batch(found: AbstractLoss, name: str, option: str) -> None:
    """Refuse a batch loss where the loss of a single pair is needed."""
    words = "must name losses of one pair, but {} is of a batch"
    refuse_unless(not found.of_batch, option, words, name)


def grid(
    loss: AbstractLoss,
    rejected: float | None,
    span: tuple[float, float] | None,
    cells: int | None,
) -> dict[str, Any]:
    """The margins, the ratios k_wl/k_ww around the boundary of a loss, and the ratio k_ll/k_ww."""
    from flowlab import displacement

    ratio = displacement.REJECTED if rejected is None else rejected
    positive = 0 < ratio < float("inf")
    refuse_unless(positive, "rejected_kernel", "must be positive and finite, but is {:g}", ratio)
    low, high = checked_range("margins", span, displacement.MARGINS)
    many = {} if cells is None else {"count": cells}
    margins = displacement.default_margins(low, high, **many)
    boundary = displacement.typical_boundary(loss, margins)
    ratios = displacement.default_ratios(ratio, **many, boundary=boundary)
    return {"margins": margins, "ratios": ratios, "rejected": ratio}
