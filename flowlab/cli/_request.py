"""From the options of the commands to what the library takes."""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from flowlab import displacement, plans, potentials
from flowlab.flow import AbstractFlow, Flow, preference_flow
from flowlab.losses import CATALOGUE, AbstractLoss
from flowlab.plans import words
from flowlab.plans.words import has_beta, loss, loss_parameters, refuse_unless

OF_RUN = ("out", "plan", "overwrite", "quiet", "dry_run", "force", "scheduler", "no_cache")
Ranges = tuple[tuple[float, float], tuple[float, float]]


def plan(asked: dict[str, Any]) -> plans.Plan:
    """The plan in the file that was asked for, or of the options."""
    if asked["plan"] is None:
        for name in ("loss", "policy", "starts", "until"):
            given = asked[name] is not None
            refuse_unless(given, f"{words.flag(name)} must be given, or --plan instead")
        return plans.from_recipe(_recipe(asked))
    for name, value in asked.items():
        own = name in OF_RUN or value is None or value is False
        refuse_unless(own, f"{words.flag(name)} has no effect with --plan; put it into that file")
    return plans.from_toml(asked["plan"])


def _recipe(asked: dict[str, Any]) -> dict[str, Any]:
    """The recipe of the sweep that was asked for, without what was not."""
    parameters = loss_parameters(asked["set"])
    words.refuse_beta_set(asked["set"])
    renamed = {**asked, "dtype": "float32" if asked["float32"] else None, "parameters": parameters}
    others = {"set", "float32", *OF_RUN}
    given = {n: v for n, v in renamed.items() if n not in others and v not in (None, {}, [])}
    return {n: v.value if isinstance(v, StrEnum) else v for n, v in given.items()}


def drawn(asked: dict[str, Any]) -> tuple[AbstractFlow, Ranges]:
    """The flow on a plane that is to be drawn, and the ranges of its two components."""
    of_loss = ("loss", "policy", "beta", "set", "offset", *words.of_plane(asked))
    if asked["potential"] is None:
        for name in ("loss", "policy"):
            refuse_unless(
                asked[name] is not None, f"{words.flag(name)} must be given, or --potential instead"
            )
        words.refuse_without_effect(asked, words.of_plane(asked))
        words.refuse_beta_set(asked["set"])
        once = {**asked, "beta": asked["beta"] and [asked["beta"]]}
        chosen = words.loss_asked(once, loss_parameters(asked["set"]))
        plane = words.policy(asked)
        assert plane.region is not None
        found: AbstractFlow = preference_flow(chosen, plane)
        usual = plane.region
    else:
        words.refuse_without_effect(asked, dict.fromkeys(of_loss, (False, "--potential")))
        found, usual = _potential(asked["potential"])
    return found, (_range("--x", asked["x"], usual[0]), _range("--y", asked["y"], usual[1]))


def _potential(name: str) -> tuple[AbstractFlow, Ranges]:
    """The flow of a classical potential with a name, and where it is usually looked at."""
    kinds = potentials.AbstractPotential.__subclasses__()
    known = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower(): kind for kind in kinds}
    key = name.lower().replace("-", "_")
    refuse_unless(
        key in known, f"--potential must be one of {', '.join(sorted(known))}, but is {name!r}"
    )
    on_plane = {"dimension": 2} if known[key] is potentials.DoubleWell else {}
    potential = known[key](**on_plane)
    first, second = potential.region
    return Flow(potential), (first, second)


def _range(
    flag: str, given: tuple[float, float] | None, usual: tuple[float, float]
) -> tuple[float, float]:
    low, high = usual if given is None else given
    between = float("-inf") < low < high < float("inf")
    refuse_unless(between, f"{flag} must be LOW HIGH, the lower first, but is {low:g} {high:g}")
    return low, high


def losses(text: str, betas: Sequence[float] | None) -> dict[str, AbstractLoss]:
    """The losses named in a text, each with every beta if it has one, by the names to show."""
    of_pairs = [n for n, known in CATALOGUE.items() if not known.of_batch]
    names = of_pairs if text == "all" else [name.strip() for name in text.split(",")]
    refuse_unless(len(set(names)) == len(names), f"--losses must name each once, but is {text!r}")
    found: dict[str, AbstractLoss] = {}
    for name in names:
        plain = loss(name, {}, "Option --losses")
        words = f"--losses must name losses of one pair, but {name} is of a batch"
        refuse_unless(not plain.of_batch, words)
        if betas and has_beta(plain):
            found |= {f"{name}, β = {b:g}": loss(name, {"beta": b}) for b in betas}
        else:
            found[name] = plain
    idle = bool(betas) and found.keys() == set(names)
    refuse_unless(not idle, f"--beta has no effect with --losses {text}, which have no beta")
    return found


def displaced(
    names: Sequence[str], beta: float | None, texts: Sequence[str] | None
) -> dict[str, AbstractLoss]:
    """The losses named, with a beta and, if it is only one, hyper-parameters of its own."""
    names = [name.strip() for text in names for name in text.split(",")]
    refuse_unless(len(set(names)) == len(names), f"--loss must name each once, but is {names}")
    alone = len(names) == 1
    refuse_unless(alone or not texts, "--set must come with one --loss alone")
    found: dict[str, AbstractLoss] = {}
    for name in names:
        parameters = loss_parameters(texts)
        refuse_unless("beta" not in parameters, "--set must not name beta, which is --beta")
        one = loss(name, parameters)
        refuse_unless(not one.of_batch, f"--loss must name losses of one pair, but {name} is not")
        if beta is not None:
            refuse_unless(has_beta(one), f"--beta has no effect with --loss {name}, which has none")
            one = loss(name, {**parameters, "beta": beta})
        found[name] = one
    return found


def grid(
    rejected: float | None, span: tuple[float, float] | None, cells: int | None
) -> dict[str, Any]:
    """Margins, ratios k_wl/k_ww and k_ll/k_ww, of what was asked for."""
    share = displacement.REJECTED if rejected is None else rejected
    positive = 0 < share < float("inf")
    refuse_unless(positive, f"--rejected must be positive and finite, but is {share:g}")
    low, high = _range("--margins", span, displacement.MARGINS)
    many = {} if cells is None else {"count": cells}
    return {
        "margins": displacement.default_margins(low, high, **many),
        "ratios": displacement.default_ratios(share, **many),
        "rejected": share,
    }
