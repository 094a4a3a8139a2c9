"""Plans from recipes, which are plain data from the command line or a TOML file.

A recipe holds the options of `flowlab sweep` under their names (`box_chosen` for `--box-chosen`),
`block` for `--store-block`, `dtype` for `--float32`, and `parameters`, a table of hyper-parameters,
for `--set`. Some entries may hold several values. Each of these entries becomes a labelled axis of
the result:

- `loss`: a list of names;
- `beta`, and each of `parameters`: a list of numbers;
- `until`: a list of targets, or a table of targets by name;
- `policies`: a table by name, in which each entry is a table with the options of one policy; it
  replaces the options of a single policy.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowlab._names import did_you_mean
from flowlab._options import (
    OF_POLICY,
    OF_SWEEP,
    OPTIONS,
    OptionError,
    as_entry_named,
    check,
    filled,
    implied,
    refuse_idle,
    refuse_twice,
    refuse_unless,
    spelled,
)
from flowlab.flow import preference_flow
from flowlab.losses.from_options import beta_of, has_beta, loss, loss_from_options
from flowlab.plans import builders
from flowlab.plans.plan import Plan
from flowlab.policies import AbstractPolicy
from flowlab.until import AbstractTarget

__all__ = ["from_json", "from_recipe", "from_toml"]

_SEVERAL = ("loss", "beta", "parameters", "until", "policies")


def from_toml(path: str | os.PathLike[str]) -> Plan:
    """The plan of a recipe in a TOML file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not TOML, or if an entry is unknown, missing, without effect, or
            wrong.
    """
    try:
        recipe = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"The plan {path} does not exist.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"The plan {path} is not TOML: {error}.") from None
    try:
        return from_recipe(recipe)
    except OptionError as error:
        raise ValueError(f"The plan {path}: {error.of_file()}") from None
    except ValueError as error:
        raise ValueError(f"The plan {path}: {as_entry_named(str(error))}") from None


def from_json(text: str) -> Plan:
    """The plan of a recipe in JSON, such as the recipe in the attributes of a store."""
    return from_recipe(json.loads(text))


def from_recipe(recipe: Mapping[str, Any]) -> Plan:
    """The plan of a recipe.

    Raises:
        ValueError: If an entry is unknown, missing, without effect, or wrong.
    """
    asked = _understood(recipe)
    asked["beta"] = _betas(asked["beta"])
    texts = _texts(asked["until"])
    policies = _policies(asked, texts)
    losses, over = _losses(asked)
    targets = _targets(texts, asked["time_limit"])
    if asked["clock"] is None and len(targets) == len(policies) == len(losses) == 1:
        (loss,), (policy,), (target,) = losses.values(), policies.values(), targets.values()
        asked["clock"] = target.clocks(preference_flow(loss, policy))[0]
    stood_in = filled({**asked, "policy": _plane(asked)})
    kept = OF_POLICY if asked["policies"] else ()  # each table has its own
    asked = {**stood_in, **{name: asked[name] for name in kept}}
    return Plan(
        builders.drawn_starts(asked),
        until=targets if isinstance(asked["until"], list | Mapping) else targets["until"],
        loss=losses if isinstance(asked["loss"], list) else losses[asked["loss"]],
        policy=policies if asked["policies"] else policies["policy"],
        over=over,
        measures=[builders.measure(text) for text in asked["measure"] or ()],
        recipe=_described(asked),
        **{name: asked[name] for name in ("clock", "rtol", "atol", "audit", "block_size", "block")},
    )


def _understood(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The entries with the names and types of the table of options, short targets written out."""
    for name in recipe:
        known, near = ", ".join(OF_SWEEP), did_you_mean(str(name), OF_SWEEP)
        refuse_unless(name in OF_SWEEP, str(name), "is unknown; there are {}{}", known, near)
    asked: dict[str, Any] = {name: spelled(name, recipe.get(name)) for name in OF_SWEEP}
    refuse_unless(asked["loss"] is not None, "loss", "must be given")
    for name, value in asked.items():
        if value is not None and name not in _SEVERAL:
            check(name, value)
    if isinstance(asked["measure"], list):
        asked["measure"] = [spelled("measure", text) for text in asked["measure"]]
    if isinstance(asked["until"], list):
        asked["until"] = [spelled("until", text) for text in asked["until"]]
    if isinstance(asked["until"], Mapping):
        asked["until"] = {n: spelled("until", text) for n, text in asked["until"].items()}
    if asked["until"] is None:
        asked["until"] = OPTIONS["until"].default
    return {**implied(asked), "policy": asked["policy"]} if asked["policies"] else implied(asked)


def _plane(asked: Mapping[str, Any]) -> str:
    """The name of the policy, which determines the default corners of the starts."""
    if not asked["policies"]:
        return asked["policy"]
    planes = {_beside(asked, table)["policy"] for table in asked["policies"].values()}
    missing = [name for name in ("lower", "upper") if asked[name] is None]
    if len(planes) > 1 and missing:
        raise OptionError(
            missing[0], "must be given if {policies} names policies of different planes"
        )
    return planes.pop()


def _betas(value: Any) -> list[float] | None:
    if value is None:
        return None
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    refuse_unless(bool(numbers), "beta", "must be numbers, but is {!r}", value)
    check("beta", numbers)
    refuse_twice("beta", numbers)
    return [float(number) for number in numbers]


def _policies(asked: dict[str, Any], targets: dict[str, str]) -> dict[str, AbstractPolicy]:
    """The policies by name; a single policy has the name `policy`."""
    if not asked["policies"]:
        return {"policy": _policy(asked, targets)}
    for name in OF_POLICY:
        refuse_unless(asked[name] is None, name, "has no effect beside {policies}")
    tables = asked["policies"]
    right = isinstance(tables, Mapping) and all(isinstance(t, Mapping) for t in tables.values())
    refuse_unless(right, "policies", "must hold tables by name, but is {!r}", tables)
    for table in tables.values():
        for name, value in table.items():
            refuse_unless(name in OF_POLICY, "policies", "must hold no {}", name)
            check(name, spelled(name, value))
    return {name: _policy(_beside(asked, table), targets) for name, table in tables.items()}


def _beside(asked: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a recipe, with those of the table of a policy added."""
    return implied({**asked, **{name: spelled(name, value) for name, value in table.items()}})


def _policy(asked: dict[str, Any], targets: dict[str, str]) -> AbstractPolicy:
    for text in targets.values():
        refuse_idle({**asked, "until": text}, OF_SWEEP)
    return builders.policy(asked)


def _losses(asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[float]] | None]:
    """The losses by name, and the hyper-parameters to sweep."""
    names = asked["loss"] if isinstance(asked["loss"], list) else [asked["loss"]]
    refuse_unless(bool(names), "loss", "must name a loss, but is empty")
    refuse_twice("loss", names)
    parameters = asked["parameters"] or {}
    right = isinstance(parameters, Mapping) and [] not in parameters.values()
    wanted = "must be a table of numbers, or of lists of them, but is {!r}"
    refuse_unless(right, "parameters", wanted, parameters)
    over = {name: values for name, values in parameters.items() if isinstance(values, list)}
    fixed = {n: values[0] if n in over else values for n, values in parameters.items()}
    losses = {name: loss_from_options({**asked, "loss": name}, fixed) for name in names}
    if asked["beta"] and len(asked["beta"]) > 1:
        over = {"beta": asked["beta"], **over}
    return losses, over or None


def _texts(until: Any) -> dict[str, str]:
    """The texts of the targets by name; a single target has the name `until`."""
    if isinstance(until, Mapping):
        for name, text in until.items():
            wanted = 'must hold texts such as {} = "loss_below=0.1", but holds {} = {!r}'
            refuse_unless(isinstance(text, str), "until", wanted, name, name, text)
        named = {str(name): str(text) for name, text in until.items()}
    else:
        named = (
            {str(t): str(t) for t in until} if isinstance(until, list) else {"until": str(until)}
        )
    refuse_unless(bool(named), "until", "must hold a target, but is empty")
    return named


def _targets(texts: dict[str, str], limit: float | None) -> dict[str, AbstractTarget]:
    return {name: builders.target(text, limit) for name, text in texts.items()}


def _described(asked: dict[str, Any]) -> dict[str, Any]:
    """The recipe with all defaults written out."""
    said = {name: value for name, value in asked.items() if value not in (None, {}, [])}
    said |= {"lower": list(asked["lower"]), "upper": list(asked["upper"])}
    if not asked["beta"] and isinstance(asked["loss"], str):
        found = loss(asked["loss"], {})
        if has_beta(found):
            said["beta"] = [beta_of(found)]
    return said
