"""Comparison of a plan with a store, which may hold this plan, a part of it, or another."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flowlab.plans.description import differences, without_code
from flowlab.plans.growth import grown, places_of
from flowlab.plans.identity import Identity, identity_of
from flowlab.plans.plan import Plan
from flowlab.plans.recipes import from_json
from flowlab.store.blocks import Block, BlockStore
from flowlab.store.metadata import versions
from flowlab.store.runs import DESCRIPTION, as_json

__all__ = ["RECIPE", "attributes_of", "held_by", "matched"]

RECIPE, _PLAN, _COMMIT = "flowlab_recipe", "flowlab_plan", "flowlab_commit"
_IDENTITY = "flowlab_identity"


def matched(store: BlockStore, plan: Plan, path: Any, force: bool) -> tuple[Plan, BlockStore]:
    """A plan with the blocks and programs of a store, and the store, enlarged if necessary.

    Args:
        store: The store.
        plan: The plan that the store is to hold.
        path: The name of the store in messages.
        force: Whether to accept a store that was begun with other versions of the libraries.

    Raises:
        ValueError: If the store belongs to another plan, or if it was begun with other versions.
    """
    stored = _stored_identity(store)
    optimised = plan.optimised if stored is None else stored.optimised
    plan = plan.as_in(store.layout.length, optimised=optimised)
    here = identity_of(plan)
    others = list(_differences(store, stored, plan, here))
    places = None
    if others and stored is not None and plan.block == store.layout.length:
        places = places_of(stored, plan, here, same_jax=_same_jax(store))
    if others and places is None:
        raise ValueError(
            f"Argument `path` must be free or hold this plan, but {path} holds another plan: "
            f"{'; '.join(others[:5])}; give another path, or replace the store by `overwrite`."
        )
    _check_versions(store, path, force)
    if places is None:
        return plan, store
    return plan, grown(store, plan, places, attributes_of(plan, here), path)


def attributes_of(plan: Plan, identity: Identity) -> dict[str, Any]:
    """The attributes of a store that identify its plan and are needed to resume it."""
    recipe = None if plan.recipe is None else {**plan.recipe, "block": plan.block}
    return {
        DESCRIPTION: as_json(plan.described() if recipe is None else recipe),
        _PLAN: as_json(plan.described()),
        _IDENTITY: identity.json(),
        **({} if recipe is None else {RECIPE: as_json(recipe)}),
        **({} if (commit := _commit()) is None else {_COMMIT: commit}),
    }


def held_by(store: BlockStore) -> str:
    """The description of the plan in a store."""
    return str(store.attributes.get(_PLAN))


def _stored_identity(store: BlockStore) -> Identity | None:
    """The identity of a store; None if an earlier release wrote the store without a recipe."""
    if _IDENTITY in store.attributes:
        return Identity.of_json(str(store.attributes[_IDENTITY]))
    recipe = store.attributes.get(RECIPE)
    return None if recipe is None else identity_of(from_json(str(recipe)))


def _differences(
    store: BlockStore, stored: Identity | None, plan: Plan, here: Identity
) -> Iterator[str]:
    """The differences, as phrases, between what a store holds and what a plan computes."""
    mine, other = plan.described(), json.loads(str(store.attributes.get(_PLAN, "null")))
    if _IDENTITY in store.attributes:  # which knows what functions compute, whatever their code
        mine, other = without_code(mine), without_code(other)
    told = list(differences(other, mine))
    yield from told
    if told or stored is None:
        return
    same_jax = _same_jax(store)
    for number, labels in enumerate(map(plan.labels, plan.cases())):
        if here.holds(stored, number, same_jax=same_jax) is None:
            where = f" in the case {labels}" if labels else ""
            yield f"a function computes something else here than in the store{where}"
            return
    if stored.starts != here.starts or not _starts_are_there(store, plan):
        drawn = (_told(each.versions) for each in (stored, here))
        yield f"`starts` were drawn by {' and are drawn otherwise by '.join(drawn)}"


def _starts_are_there(store: BlockStore, plan: Plan) -> bool:
    """True if the first complete block of a store has the starts that are drawn now."""
    first = (0,) * len(plan.shape)
    marks, checksums = store.marks()
    for number in range(store.layout.blocks_of_a_case):
        block, index = Block(first, number), (*first, number)
        if marks[index] and store.damage(block, checksums[index]) is None:
            drawn = plan.starts.part(*store.layout.part(number))
            return np.array_equal(store.values("starts", block), drawn, equal_nan=True)
    return True


def _told(versions: dict[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in versions.items())


def _same_jax(store: BlockStore) -> bool:
    return store.attributes.get("jax_version") == versions()["jax_version"]


def _check_versions(store: BlockStore, path: Any, force: bool) -> None:
    here = versions()
    others = list(differences({name: store.attributes.get(name) for name in here}, here))
    if others and not force:
        raise ValueError(
            f"Argument `path` must hold a store of these versions, but {path} was begun with "
            f"other versions, and results may differ in their last bits: {'; '.join(others)}. "
            "To resume it nevertheless, use `force`."
        )


def _commit() -> str | None:
    """The git commit of this library if it runs from a checkout; else None."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    asked = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() or None
