"""From the options of the commands to what the library takes."""

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flowlab.cli._options import Domain, Policy, Starts, Wall

if TYPE_CHECKING:
    import numpy as np

    from flowlab.flow import AbstractFlow, PreferenceFlow
    from flowlab.losses import AbstractLoss
    from flowlab.measures import AbstractMeasure
    from flowlab.policies import AbstractPolicy
    from flowlab.until import AbstractTarget

    Ranges = tuple[tuple[float, float], tuple[float, float]]


def refuse_unless(condition: bool, message: str) -> None:
    """Raise a ValueError about an option unless a condition holds."""
    if not condition:
        raise ValueError(f"Option {message}.")


def refuse_idle(asked: dict[str, Any]) -> None:
    """Refuse options that would have no effect, and ask for those that are missing."""
    on_ratio_plane = asked["policy"] == Policy.ratio
    gridded = asked["starts"] == Starts.grid
    timed = asked["until"].startswith("time")
    effective = {
        "count": (not gridded, "--starts grid"),
        "seed": (not gridded, "--starts grid"),
        "shape": (gridded, f"--starts {asked['starts']}"),
        "time_limit": (not timed, "--until time"),
    }
    _refuse_without_effect(asked, {**_of_plane(asked), **effective})
    needed = ["shape" if gridded else "count", *([] if on_ratio_plane else ["lower", "upper"])]
    for name in needed:
        context = (
            f"--starts {asked['starts']}" if name in ("shape", "count") else "--policy log_ratio"
        )
        refuse_unless(asked[name] is not None, f"{_flag(name)} must be given with {context}")
    refuse_twice(asked["beta"])
    _refuse_beta_set(asked["set"])


def _of_plane(asked: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """Which options of the policy would have an effect, and with what they would have none."""
    on_ratio_plane = asked["policy"] == Policy.ratio
    domain = (asked["domain"] or Domain.quadrant) if on_ratio_plane else None
    return {
        "domain": (on_ratio_plane, "--policy log_ratio"),
        "box_chosen": (domain == Domain.box, "anything but --domain box"),
        "box_rejected": (domain == Domain.box, "anything but --domain box"),
        "ref_chosen": (domain == Domain.simplex, "anything but --domain simplex"),
        "ref_rejected": (domain == Domain.simplex, "anything but --domain simplex"),
        "wall": (domain in (Domain.box, Domain.simplex), "a domain without walls"),
        "kernel": (not on_ratio_plane, "--policy ratio"),
    }


def _refuse_without_effect(asked: dict[str, Any], effective: dict[str, tuple[bool, str]]) -> None:
    for name, (has_effect, context) in effective.items():
        idle = asked[name] is not None and not has_effect
        refuse_unless(not idle, f"{_flag(name)} has no effect with {context}")


def _refuse_beta_set(texts: Sequence[str] | None) -> None:
    for text in texts or ():
        named_beta = text.partition("=")[0] == "beta"
        refuse_unless(not named_beta, f"--set must not name beta, which is --beta, but is {text!r}")


def refuse_twice(betas: Sequence[float] | None) -> None:
    """Refuse a beta that was given twice."""
    twice = len(set(betas or ())) < len(betas or ())
    refuse_unless(not twice, f"--beta must not be given one value twice, but is {betas}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def flow(asked: dict[str, Any]) -> "PreferenceFlow":
    """The flow that was asked for, at the first beta."""
    from flowlab.flow import preference_flow
    from flowlab.losses import ODPO

    parameters = loss_parameters(asked["set"])
    found = loss(asked["loss"], parameters)
    if asked["beta"]:
        refuse_unless(
            has_beta(found), f"--beta has no effect with --loss {asked['loss']}, which has none"
        )
        found = loss(asked["loss"], {**parameters, "beta": asked["beta"][0]})
    offset, wanted = asked["offset"] is not None, isinstance(found, ODPO)
    refuse_unless(wanted or not offset, f"--offset has no effect with --loss {asked['loss']}")
    refuse_unless(offset or not wanted, f"--offset must be given with --loss {asked['loss']}")
    return preference_flow(found, _policy(asked))


def drawn(asked: dict[str, Any]) -> "tuple[AbstractFlow, Ranges]":
    """The flow on a plane that is to be drawn, and the ranges of its two components."""
    of_loss = ("loss", "policy", "beta", "set", "offset", *_of_plane(asked))
    if asked["potential"] is None:
        for name in ("loss", "policy"):
            refuse_unless(
                asked[name] is not None, f"{_flag(name)} must be given, or --potential instead"
            )
        _refuse_without_effect(asked, _of_plane(asked))
        _refuse_beta_set(asked["set"])
        found: AbstractFlow = flow({**asked, "beta": asked["beta"] and [asked["beta"]]})
        usual = _usual_ranges(asked)
    else:
        _refuse_without_effect(asked, dict.fromkeys(of_loss, (False, "--potential")))
        found, usual = _potential(asked["potential"])
    return found, (_range("--x", asked["x"], usual[0]), _range("--y", asked["y"], usual[1]))


def _usual_ranges(asked: dict[str, Any]) -> "Ranges":
    if asked["policy"] == Policy.log_ratio:
        return (-10.0, 10.0), (-10.0, 10.0)
    ends = [asked[name] or 1.0 for name in ("box_chosen", "box_rejected")]
    if asked["domain"] == Domain.simplex:
        ends = [1 / (asked[name] or 1.0) for name in ("ref_chosen", "ref_rejected")]
    return (0.0, ends[0]), (0.0, ends[1])


def _potential(name: str) -> "tuple[AbstractFlow, Ranges]":
    """The flow of a classical potential with a name, and where it is usually looked at."""
    from flowlab import potentials
    from flowlab.flow import Flow

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


def loss(name: str, parameters: dict[str, float], flag: str = "Option --loss") -> "AbstractLoss":
    """The loss with a name and hyper-parameters."""
    from flowlab.losses import named

    # `parameters` could hold a key `name`, which no loss has.
    refuse_unless("name" not in parameters, "--set must name hyper-parameters, but names 'name'")
    try:
        plain = named(name)
        for key in parameters:
            number = not dataclasses.is_dataclass(getattr(plain, key, None))
            refuse_unless(number, f"--set must name numbers, but {key} is none")
        return named(name, **parameters)
    except ValueError as error:
        told = str(error).replace("Argument `name`", flag)
        raise ValueError(told.replace("Argument `parameters`", "Option --set")) from None


def loss_parameters(texts: Sequence[str] | None) -> dict[str, float]:
    """Hyper-parameters from texts such as `tau=0.1`."""
    found: dict[str, float] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        refuse_unless(name not in found, f"--set must not name {name} twice")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"Option --set must be NAME=NUMBER, but is {text!r}.") from None
    return found


def has_beta(found: "AbstractLoss") -> bool:
    """Whether a loss has a hyper-parameter beta."""
    return hasattr(found, "beta")


def losses(text: str, betas: Sequence[float] | None) -> "dict[str, AbstractLoss]":
    """The losses named in a text, each with every beta if it has one, by the names to show."""
    from flowlab.losses import CATALOGUE

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
) -> "dict[str, AbstractLoss]":
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
    from flowlab import displacement

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


def _policy(asked: dict[str, Any]) -> "AbstractPolicy":
    from flowlab import domains, policies

    if asked["policy"] == Policy.log_ratio:
        return policies.LogRatioPlane(_kernel(asked["kernel"]), offset=asked["offset"])

    def given(**names: str) -> dict[str, float]:
        return {key: asked[name] for key, name in names.items() if asked[name] is not None}

    domain: domains.AbstractDomain = domains.Quadrant()
    if asked["domain"] == Domain.box:
        domain = domains.Box(**given(chosen="box_chosen", rejected="box_rejected"))
    elif asked["domain"] == Domain.simplex:
        domain = domains.Simplex(**given(ref_chosen="ref_chosen", ref_rejected="ref_rejected"))
    wall = (asked["wall"] or Wall.stop).value
    return policies.RatioPlane(domain, wall=wall, offset=asked["offset"])


def _kernel(text: str | None) -> "np.ndarray | None":
    import numpy as np

    if text is None:
        return None
    numbers = _numbers("--kernel", text)
    refuse_unless(len(numbers) == 3, f"--kernel must be three numbers KWW,KWL,KLL, but is {text!r}")
    chosen, cross, rejected = numbers
    return np.array([[chosen, cross], [cross, rejected]])


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"Option {flag} must hold numbers with commas between, but holds {text!r}."
        ) from None


def starts(asked: dict[str, Any]) -> Any:
    """The starts that were asked for."""
    import numpy as np

    from flowlab import starts

    dtype = np.float32 if asked["float32"] else np.float64
    lower, upper = _corners(asked)
    if asked["starts"] == Starts.grid:
        return starts.grid(asked["shape"], lower, upper, dtype=dtype)
    count, seed = asked["count"], asked["seed"] or 0
    if asked["starts"] == Starts.uniform:
        return starts.uniform(count, lower, upper, key=seed, dtype=dtype)
    drawn = starts.sobol if asked["starts"] == Starts.sobol else starts.latin_hypercube
    return drawn(count, lower, upper, seed=seed, dtype=dtype)


def _corners(asked: dict[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    return asked["lower"] or (0.0, 0.0), asked["upper"] or (1.0, 1.0)


def target(text: str, time_limit: float | None) -> "AbstractTarget":
    """The target with a name and levels such as `loss_below=0.1`."""
    from flowlab import until

    name, equals, value = text.partition("=")
    if name == "boundary" and not equals:
        return until.boundary(time_limit=time_limit)
    known = ("loss_below", "margin_above", "speed_below", "time")
    refuse_unless(
        name in known and bool(value),
        "--until must be loss_below=L, margin_above=H, speed_below=V, time=T or boundary, "
        f"but is {text!r}",
    )
    levels = _numbers("--until", value)
    refuse_unless(
        name == "loss_below" or len(levels) == 1,
        f"--until must have one number after {name}=, but is {text!r}",
    )
    if name == "time":
        return until.time(levels[0])
    return getattr(until, name)(*levels, time_limit=time_limit)


def measure(text: str) -> "AbstractMeasure":
    """The measure with a name, speed and space such as `dwell=0.1:u`."""
    from flowlab import measures

    parts = re.fullmatch(r"(\w+)(?:=([^:]*))?(?::(\w+))?", text)
    name, value, space = parts.groups() if parts else (None, None, None)
    spaceless = ("margin_zero", "margin_at", "dip")
    known = ("path_length", "dwell", "slowest", *spaceless, "change", "rate_ratio")
    refuse_unless(name in known, f"--measure must be one of {', '.join(known)}, but is {text!r}")
    assert name is not None
    refuse_unless(
        (value is not None) == (name in ("dwell", "margin_at")),
        "--measure must have a speed after dwell=, a margin after margin_at=, and no number after "
        f"another name, but is {text!r}",
    )
    refuse_unless(
        space is None or name not in spaceless,
        f"--measure must have no space for {name}, but is {text!r}",
    )
    levels = [] if value is None else _numbers("--measure", value)
    return getattr(measures, name)(*levels, **({} if space is None else {"of": space}))


def described(asked: dict[str, Any], clock: str, flow: "PreferenceFlow") -> dict[str, Any]:
    """What was asked for, and what stood in for what was not."""
    left_out = {"out", "overwrite", "quiet", "float32", "set"}
    said = {name: value for name, value in asked.items() if name not in left_out}
    lower, upper = _corners(asked)
    dtype = "float32" if asked["float32"] else "float64"
    said |= {"lower": lower, "upper": upper, "dtype": dtype, "clock": clock}
    if not asked["beta"] and has_beta(flow.loss):
        said["beta"] = [float(flow.loss.beta)]  # type: ignore[attr-defined]
    said |= {"parameters": loss_parameters(asked["set"])} if asked["set"] else {}
    if asked["policy"] == Policy.ratio:
        said["domain"] = asked["domain"] or Domain.quadrant
    if said["domain"] in (Domain.box, Domain.simplex):
        said["wall"] = asked["wall"] or Wall.stop
    if asked["starts"] != Starts.grid:
        said["seed"] = asked["seed"] or 0
    return {name: value for name, value in said.items() if value is not None}
