"""Plans from recipes: what the command line and TOML files say, in plain data.

A recipe holds the options of `flowlab sweep` under their names (`box_chosen` for `--box-chosen`),
`dtype` for `--float32`, and `parameters`, a table of hyper-parameters, for `--set`. Some entries
may hold several things, and each of these becomes a labelled axis of the result:

- `loss`: a list of names;
- `beta`, and each of `parameters`: a list of numbers;
- `until`: a list of targets, or a table of targets by name;
- `policies`: tables by name, each with the options of a policy, instead of those of one.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowlab.flow import preference_flow
from flowlab.plans import words
from flowlab.plans.plan import Plan
from flowlab.policies import PLANES, AbstractPolicy
from flowlab.until import AbstractTarget

__all__ = ["from_json", "from_recipe", "from_toml"]

_OF_POLICY = (
    "policy",
    "domain",
    "box_chosen",
    "box_rejected",
    "ref_prob_chosen",
    "ref_prob_rejected",
    "wall",
    "kernel",
)
_ENTRIES = (
    *("loss", "beta", "parameters", "offset"),
    *_OF_POLICY,
    "policies",
    *("starts", "count", "shape", "lower", "upper", "seed", "dtype"),
    *("until", "time_limit", "rtol", "atol", "clock", "measure", "audit"),
    *("block_size", "block"),
)
_KNOWN: dict[str, tuple[str | None, ...]] = {
    "policy": tuple(PLANES),
    "domain": (None, "quadrant", "box", "simplex"),
    "wall": (None, "stop", "slide"),
    "starts": ("grid", "sobol", "uniform", "latin"),
    "dtype": (None, "float32", "float64"),
    "clock": (None, "time", "arc_length", "loss", "margin"),
}


def from_toml(path: str | os.PathLike[str]) -> Plan:
    """The plan in a TOML file, whose entries are those of a recipe.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not TOML, or an entry is unknown, missing, of no effect, or wrong.
    """
    try:
        recipe = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no plan {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"The plan {path} is not TOML: {error}.") from None
    try:
        return from_recipe(recipe)
    except ValueError as error:
        raise ValueError(f"The plan {path}: {_in_words_of_a_file(str(error))}") from None


def from_json(text: str) -> Plan:
    """The plan whose recipe was written as JSON, as the attributes of a store hold it."""
    return from_recipe(json.loads(text))


def from_recipe(recipe: Mapping[str, Any]) -> Plan:
    """The plan of a recipe.

    Raises:
        ValueError: If an entry is unknown, missing, of no effect, or wrong.
    """
    unknown = [str(name) for name in recipe if name not in _ENTRIES]
    words.refuse_unless(not unknown, f"--{'/'.join(unknown)} is none of a sweep's")
    asked: dict[str, Any] = {**dict.fromkeys(_ENTRIES), **recipe}
    for name in ("loss", "starts", "until"):
        words.refuse_unless(asked[name] is not None, f"{words.flag(name)} must be given")
    _check_known(asked, "starts", "dtype", "clock")
    asked["beta"] = _listed(asked["beta"])
    texts = _texts(asked["until"])
    policies = _policies(asked, texts)
    losses, over = _losses(asked)
    targets = _targets(texts, asked["time_limit"])
    measures = [words.measure(text) for text in asked["measure"] or ()]
    if asked["clock"] is None and len(targets) == len(policies) == len(losses) == 1:
        (loss,), (policy,), (target,) = losses.values(), policies.values(), targets.values()
        asked["clock"] = target.clocks(preference_flow(loss, policy))[0]
    return Plan(
        words.drawn_starts(asked),
        until=targets if isinstance(asked["until"], list | Mapping) else targets["until"],
        loss=losses if isinstance(asked["loss"], list) else losses[asked["loss"]],
        policy=policies if asked["policies"] else policies["policy"],
        over=over,
        measures=measures,
        recipe=_described(asked),
        audit=asked["audit"] or 0.0,
        **{name: asked[name] for name in ("clock", "rtol", "atol", "block_size", "block")},
    )


def _listed(value: Any) -> list[float] | None:
    if value is None:
        return None
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    right = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
    words.refuse_unless(right and bool(numbers), f"--beta must hold numbers, but holds {value!r}")
    return [float(number) for number in numbers]


def _check_known(asked: dict[str, Any], *names: str) -> None:
    for name in names:
        listed = ", ".join(word for word in _KNOWN[name] if word is not None)
        words.refuse_unless(
            asked[name] in _KNOWN[name],
            f"{words.flag(name)} must be one of {listed}, but is {asked[name]!r}",
        )


def _policies(asked: dict[str, Any], targets: dict[str, str]) -> dict[str, AbstractPolicy]:
    """The policies by name; one that has none as `policy`."""
    if not asked["policies"]:
        words.refuse_unless(asked["policy"] is not None, "--policy must be given")
        return {"policy": _policy(asked, targets)}
    given = [name for name in _OF_POLICY if asked[name] is not None]
    words.refuse_unless(not given, f"--{'/'.join(given)} has no effect beside --policies")
    tables = asked["policies"]
    right = isinstance(tables, Mapping) and all(isinstance(t, Mapping) for t in tables.values())
    words.refuse_unless(right, f"--policies must hold tables by name, but is {tables!r}")
    unknown = {
        str(entry) for table in tables.values() for entry in table if entry not in _OF_POLICY
    }
    words.refuse_unless(not unknown, f"--policies must hold no {', '.join(sorted(unknown))}")
    return {name: _policy({**asked, **table}, targets) for name, table in tables.items()}


def _policy(asked: dict[str, Any], targets: dict[str, str]) -> AbstractPolicy:
    _check_known(asked, "policy", "domain", "wall")
    for text in targets.values():
        words.refuse_idle({**asked, "until": text})
    return words.policy(asked)


def _losses(asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[float]] | None]:
    """The losses by name, and the hyper-parameters to sweep."""
    names = asked["loss"] if isinstance(asked["loss"], list) else [asked["loss"]]
    words.refuse_unless(bool(names), "--loss must name a loss, but is empty")
    words.refuse_unless(len(set(names)) == len(names), f"--loss must name each once: {names}")
    parameters = dict(asked["parameters"] or {})
    words.refuse_unless("beta" not in parameters, "--set must not name beta, which is --beta")
    over = {name: values for name, values in parameters.items() if isinstance(values, list)}
    fixed = {n: values[0] if n in over else values for n, values in parameters.items()}
    losses = {name: words.loss_asked({**asked, "loss": name}, fixed) for name in names}
    if asked["beta"] and len(asked["beta"]) > 1:
        over = {"beta": asked["beta"], **over}
    return losses, over or None


def _texts(until: Any) -> dict[str, str]:
    """What describes the targets, by name; one that has none as `until`."""
    if isinstance(until, Mapping):
        named = {str(name): str(text) for name, text in until.items()}
    else:
        named = (
            {str(t): str(t) for t in until} if isinstance(until, list) else {"until": str(until)}
        )
    words.refuse_unless(bool(named), "--until must hold a target, but is empty")
    return named


def _targets(texts: dict[str, str], limit: float | None) -> dict[str, AbstractTarget]:
    return {
        name: words.target(text, None if text.startswith("time") else limit)
        for name, text in texts.items()
    }


def _described(asked: dict[str, Any]) -> dict[str, Any]:
    """The recipe, with what stands in for what was not given."""
    said = {name: value for name, value in asked.items() if value not in (None, {}, [])}
    lower, upper = words.corners(asked)
    said |= {"lower": list(lower), "upper": list(upper), "dtype": asked["dtype"] or "float64"}
    if not asked["beta"] and isinstance(asked["loss"], str):
        found = words.loss(asked["loss"], {})
        if words.has_beta(found):
            said["beta"] = [float(found.beta)]  # type: ignore[attr-defined]
    if asked["policy"] == "ratio":
        said["domain"] = asked["domain"] or "quadrant"
    if said.get("domain") in ("box", "simplex"):
        said["wall"] = asked["wall"] or "stop"
    if asked["starts"] != "grid":
        said["seed"] = asked["seed"] or 0
    said["audit"] = asked["audit"] or 0.0
    return said


def _in_words_of_a_file(message: str) -> str:
    """A message about options, about entries."""
    named = re.sub(r"Option --([\w/-]+)", lambda m: f"entry `{_entry(m[1])}`", message)
    return re.sub(r"--([\w-]+)", lambda m: f"`{_entry(m[1])}`", named)


def _entry(flag: str) -> str:
    return {"set": "parameters"}.get(flag, flag.replace("-", "_"))
