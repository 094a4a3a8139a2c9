"""The identity of a plan, which shows whether a store contains the plan, wholly or in part.

A case is identified by the description of what it solves, and by a fingerprint of the operations in
functions of the user. Another release of JAX may write the same operations differently. The values
of the functions at some starts are then compared instead.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import jax
import numpy as np

from flowlab.ensemble import default_backend
from flowlab.flow import AbstractFlow
from flowlab.plans.description import described, without_code
from flowlab.plans.plan import Plan
from flowlab.solve import default_rtol, make_method, make_problem, one_call, one_of

__all__ = ["Identity", "drawn_checksum", "identity_of"]

_LOOKED_AT = 4  # starts at which values are compared
_ALIKE = {"float64": 1e-9, "float32": 1e-4}  # relative: far above what the order of operations does
_SLICES, _SLICE = 64, 1024  # of the starts that are looked at where there are more


@dataclass(frozen=True)
class Identity:
    """The identity of a plan, as JSON.

    Attributes:
        cases: For each case, a digest of its description, and its fingerprint.
        values: Potentials and speeds at some starts, by fingerprint.
        dtype: The dtype of the starts, in which these values were computed.
        common: A digest of everything that all cases share, except the number of starts.
        starts: The checksum of the starts as they were drawn.
        count: The number of starts.
        optimised: True if programs are optimised.
        versions: The versions of the libraries that draw starts.
    """

    cases: list[list[str]]
    values: dict[str, list[float | None]]
    dtype: str
    common: str
    starts: int
    count: int
    optimised: bool
    versions: dict[str, str]

    def json(self) -> str:
        """The identity as text, for the attributes of a store."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> "Identity":
        """The identity from the text in the attributes of a store."""
        return cls(**json.loads(text))

    def holds(self, other: "Identity", case: int, *, same_jax: bool) -> int | None:
        """The index of a case that computes the same as a given case of another identity.

        None if there is no such case.
        """
        description, operations = other.cases[case]
        for index, (mine, fingerprint) in enumerate(self.cases):
            if mine != description:
                continue
            here, there = self.values.get(fingerprint), other.values.get(operations)
            known = here is not None and there is not None
            alike = known and _alike(here, there, _ALIKE[self.dtype])
            if fingerprint != operations:
                found = alike and not same_jax
            else:
                comparable = known and self._valued(fingerprint) == other._valued(operations)
                found = alike or not comparable
            if found:
                return index
        return None

    def _valued(self, fingerprint: str) -> str:
        """The description of the first case with a fingerprint, for which the values are known."""
        return next(description for description, mine in self.cases if mine == fingerprint)


def identity_of(plan: Plan) -> Identity:
    """The identity of a plan."""
    cases: list[list[str]] = []
    values: dict[str, list[float | None]] = {}
    points = plan.starts.part(0, min(_LOOKED_AT, plan.starts.count))
    with one_call():  # a function is looked at once for all values of the hyper-parameters
        for case in plan.cases():
            flow, operations = plan.flow(case), _operations(plan, case, points)
            if operations and operations not in values:
                values[operations] = _values(flow, points)
            cases.append([_digest(_description(plan, case)), operations])
    common = {
        "starts": _unsized(plan),
        "measures": plan.measures,
        "options": {n: v for n, v in plan.options.items() if n not in ("clock", "solver")},
        "solver": _solver(plan, points.dtype),
        "backend": default_backend(block_size=plan.options["block_size"]),
    }
    return Identity(
        cases=cases,
        values=values,
        dtype=points.dtype.name,
        common=_digest(common),
        starts=drawn_checksum(plan.starts, plan.starts.count),
        count=plan.starts.count,
        optimised=plan.optimised,
        versions={name: metadata.version(name) for name in ("numpy", "scipy")},
    )


def drawn_checksum(starts: Any, count: int) -> int:
    """The CRC-32 of starts, or of the first `count` of them.

    Of many starts that are drawn by index, only evenly spaced parts are checked, since a change in
    the method of drawing changes all starts. Given starts may differ anywhere, and a Latin
    hypercube is drawn as a whole; their checksum is of all starts.
    """
    parts: Iterator[tuple[int, int]] = iter([(0, count)])
    if count > _SLICES * _SLICE and getattr(starts, "kind", "latin") != "latin":
        firsts = np.linspace(0, count - _SLICE, _SLICES).astype(int)
        parts = ((first, first + _SLICE) for first in firsts.tolist())
    digest = 0
    for first, last in parts:
        drawn = np.ascontiguousarray(starts.part(first, last))
        digest = zlib.crc32(drawn.view(np.uint8).data, digest)
    return digest


def _solver(plan: Plan, dtype: Any) -> str:
    """The name of the solver of the cases, also for the default solver."""
    rtol = plan.options["rtol"]
    rtol = default_rtol(dtype) if rtol is None else rtol
    return make_method(plan.options["solver"], rtol=rtol).name


def _operations(plan: Plan, case: tuple[int, ...], points: np.ndarray) -> str:
    options: dict[str, Any] = {
        name: value
        for name, value in plan.options.items()
        if name not in ("solver", "block_size", "max_steps")
    }
    with jax.enable_x64(points.dtype == np.float64):
        return make_problem(
            plan.flow(case),
            until=plan.target(case),
            dtype=points.dtype,
            state=one_of(points),
            measures=plan.measures,
            **options,
        ).operations


def _values(flow: AbstractFlow, points: np.ndarray) -> list[float | None]:
    with jax.enable_x64(points.dtype == np.float64):
        found = jax.vmap(lambda state: (flow.potential(state), flow.speed(state)))(points)
    numbers = np.concatenate([np.ravel(part) for part in found])
    return [float(number) if np.isfinite(number) else None for number in numbers]


def _alike(here: Any, there: Any, tolerance: float) -> bool:
    mine, other = (np.array(numbers, float) for numbers in (here, there))
    size = np.nanmax(np.abs(mine), initial=0.0)
    return mine.shape == other.shape and np.allclose(
        mine, other, rtol=tolerance, atol=tolerance * size, equal_nan=True
    )


def _description(plan: Plan, case: tuple[int, ...]) -> dict[str, Any]:
    """The description of a case in which the default clock is written out."""
    flow, target = plan.flow(case), plan.target(case)
    clock = plan.options["clock"]
    if clock is None and plan.options["save_at"] is None:
        clock = target.clocks(flow)[0]
    return {"flow": flow, "until": target, "clock": clock}


def _unsized(plan: Plan) -> Mapping[str, Any]:
    """The description of the starts without their number."""
    told = described(plan.starts)
    return {name: value for name, value in told.items() if name not in ("size", "points")}


def _digest(thing: Any) -> str:
    text = json.dumps(without_code(described(thing)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
