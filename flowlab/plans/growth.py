"""Stores that grow: by starts, losses, policies, targets, or values of hyper-parameters."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowlab.plans.identity import Identity, drawn_checksum
from flowlab.plans.plan import Plan
from flowlab.store.blocks import Block, BlockStore
from flowlab.store.metadata import is_address
from flowlab.store.replacement import clear, put_in_place, sibling

__all__ = ["grown", "places_of"]

_OF_ALL = "audit_"  # attributes that say something of all runs together begin like this


def places_of(stored: Identity, plan: Plan, here: Identity, *, same_jax: bool) -> list[int] | None:
    """For each case of a store, the index of the same case in a plan; or None.

    None if a case of the store is missing in the plan; if the two differ in more than the cases and
    the number of starts; or if the starts of the plan do not begin with the starts of the store, as
    with a grid or a Latin hypercube of another size.
    """
    if stored.common != here.common or here.count < stored.count:
        return None
    if drawn_checksum(plan.starts, stored.count) != stored.starts:
        return None
    found = [here.holds(stored, case, same_jax=same_jax) for case in range(len(stored.cases))]
    return None if None in found else [folder for folder in found if folder is not None]


def grown(
    store: BlockStore,
    plan: Plan,
    places: list[int],
    attributes: Mapping[str, Any],
    path: str | os.PathLike[str],
) -> BlockStore:
    """A larger store, with the blocks of the present one, which it replaces.

    The larger store is written under another name and renamed when it is complete, so that one of
    the two stores is at the path at any time. Blocks that are damaged, or that have more starts in
    the larger store, are not copied and remain to be solved.

    Args:
        store: The present store.
        plan: The larger plan.
        places: For each case of the store, the index of the same case in the plan.
        attributes: The attributes of the plan.
        path: The path of both stores.

    Raises:
        ValueError: If the path is the address of an object store, or if a target has more levels
            than the store has room for.
    """
    if is_address(path):
        raise ValueError(
            f"Argument `path` must be a folder for a store to grow, but is {path}; give another "
            "path, or copy the store to a folder."
        )
    _check_levels(store, plan, path)
    kept = {n: v for n, v in store.attributes.items() if not n.startswith(_OF_ALL)}
    layout = dataclasses.replace(
        store.layout, axes=plan.axes, count=plan.starts.count, attributes=kept
    )
    folder = Path(path).resolve()
    clear(folder)
    half_made = sibling(folder)
    try:
        _copied(store, BlockStore.laid_out(half_made, layout, attributes), plan, places)
        put_in_place(half_made, folder)
    except BaseException:
        shutil.rmtree(half_made, ignore_errors=True)
        raise
    return BlockStore.open(folder)


def _copied(store: BlockStore, made: BlockStore, plan: Plan, places: list[int]) -> None:
    """Copy the blocks of a store to the corresponding blocks of a larger one."""
    cases = list(plan.cases())
    for number, case in enumerate(np.ndindex(*store.layout.shape)):
        for block in range(store.layout.blocks_of_a_case):
            if store.layout.starts_of(block) == made.layout.starts_of(block):
                made.copy(store, Block(case, block), Block(cases[places[number]], block))


def _check_levels(store: BlockStore, plan: Plan, path: str | os.PathLike[str]) -> None:
    room = store.layout.variables["level_times"].shape[0]
    for case in plan.cases():
        levels = int(np.size(plan.target(case).levels))
        if levels > room:
            raise ValueError(
                f"Argument `until` must have at most {room} levels, since {path} has room for no "
                f"more, but has {levels}; give another path."
            )
