"""A plan: a product of sweeps, with its cases and its runs.

Letters in shapes: c axes of cases, n starts, d components of a state.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import ArrayLike, Float

from flowlab import ensemble
from flowlab._checks import between, floating, integer, real
from flowlab.flow import AbstractFlow, preference_flow
from flowlab.losses import AbstractLoss
from flowlab.measures import Measure
from flowlab.measures.base import shapes
from flowlab.plans.description import described
from flowlab.policies import AbstractPolicy
from flowlab.solve.problem import listed_measures
from flowlab.starts import DrawnStarts
from flowlab.until import AbstractTarget, Clock

__all__ = ["Plan"]

BLOCK = 1 << 18  # starts of a block: some tenths of a second of work at the least


@dataclass(frozen=True)
class _GivenStarts:
    """Starts that the user gave as an array."""

    points: Float[np.ndarray, "n d"]

    @property
    def count(self) -> int:
        return len(self.points)

    @property
    def dtype(self) -> str:
        return self.points.dtype.name

    def part(self, first: int, last: int) -> Float[np.ndarray, "n d"]:
        return self.points[first:last]


class Plan:
    """A product of sweeps: starts × losses × policies × hyper-parameters × targets.

    Each argument that is a mapping from names to objects becomes a labelled axis of the result:
    `loss`, `policy`, `flow`, `target`, and each hyper-parameter. A single object becomes no axis.

    Args:
        starts: `DrawnStarts`, or an array (n, d).
        until: A target, or targets by name.
        loss: A loss, or losses by name.
        policy: A policy, or policies by name; their states have the shape of the starts.
        flow: A flow, or flows by name, in place of losses and policies.
        over: Hyper-parameters to sweep, by name.
        measures: The measures to take.
        clock: The clock, as in `sweep`.
        rtol: Relative tolerance, as in `sweep`.
        atol: Absolute tolerance, as in `sweep`.
        solver: A solver of diffrax, as in `sweep`.
        save_at: Flow times at which to keep the states, as in `sweep`.
        block_size: Number of starts that share a step, as in `sweep`.
        max_steps: Maximal number of attempted steps, as in `sweep`.
        audit: Fraction of the starts, chosen at random, that are solved again at the end at
            tolerances a hundred times tighter.
        block: Maximal number of starts in a block of the store. A block is solved, written and
            marked as done as a whole. None for about 262,144. An existing store keeps its blocks.
        recipe: The recipe of the plan, as for `from_recipe`; None if the plan was made from
            objects.

    Raises:
        ValueError: If an argument is missing, superfluous, or out of its range; if a loss lacks a
            hyper-parameter; or if the states of a policy do not have the shape of the starts.
    """

    def __init__(
        self,
        starts: DrawnStarts | Float[ArrayLike, "n d"],
        *,
        until: AbstractTarget | Mapping[str, AbstractTarget],
        loss: AbstractLoss | Mapping[str, AbstractLoss] | None = None,
        policy: AbstractPolicy | Mapping[str, AbstractPolicy] | None = None,
        flow: AbstractFlow | Mapping[str, AbstractFlow] | None = None,
        over: Mapping[str, Sequence[float]] | None = None,
        measures: Sequence[Measure] = (),
        clock: Clock | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        solver: Any = None,
        save_at: npt.ArrayLike | None = None,
        block_size: int | None = None,
        max_steps: int = 4096,
        audit: float = 0.0,
        block: int | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        _check_what_flows(loss, policy, flow)
        self.starts = starts if isinstance(starts, DrawnStarts) else _given(starts)
        self.recipe = None if recipe is None else dict(recipe)
        self.measures = tuple(listed_measures(measures))
        self.audit = between("audit", audit, 0, 1)
        named = {"loss": loss, "policy": policy, "flow": flow, "target": until}
        self._choices = {name: _choices(name, given) for name, given in named.items()}
        self._over = ensemble.checked_over(over, self._flow(self._first))
        exactness: dict[str, Any] = dict(clock=clock, rtol=rtol, atol=atol, solver=solver)
        self._options = {**exactness, "save_at": save_at, "block_size": block_size}
        self._options["max_steps"] = max_steps
        self.most = BLOCK if block is None else integer("block", block)
        self.block = _even_block(self.starts.count, self.most)
        self.optimised = ensemble.worth_optimising(self.runs)
        for case in self.cases():
            self._check(case)
        self._check_measures()

    @property
    def options(self) -> dict[str, Any]:
        """The options that all cases share, under their names in `sweep`."""
        return dict(self._options)

    def as_in(self, block: int, *, optimised: bool) -> "Plan":
        """This plan with the blocks and programs of a store, unless these blocks are too large."""
        fitted = copy.copy(self)
        if block <= self.most:
            fitted.block, fitted.optimised = block, optimised
        return fitted

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """The labels along each axis of cases, by its name."""
        named = {n: list(c) for n, c in self._choices.items() if None not in c}
        target = {"target": named.pop("target")} if "target" in named else {}
        return {**named, **self._over, **target}

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of cases along each axis."""
        return tuple(len(labels) for labels in self.axes.values())

    @property
    def runs(self) -> int:
        """The number of runs, which is starts times cases."""
        return self.starts.count * int(np.prod(self.shape, dtype=np.int64))

    def cases(self) -> Iterator[tuple[int, ...]]:
        """The indices of all cases."""
        return itertools.product(*(range(length) for length in self.shape))

    def flow(self, case: Sequence[int]) -> AbstractFlow:
        """The flow of a case, with its hyper-parameters."""
        labels = self.labels(case)
        found = self._flow(labels)
        for name in self._over:
            try:
                found = found.with_parameter(name, labels[name])
            except ValueError as error:
                raise ValueError(f"{error} (Case: {labels}.)") from None
        return found

    def target(self, case: Sequence[int]) -> AbstractTarget:
        """The target of a case."""
        return self._chosen("target", self.labels(case))

    def _check(self, case: Sequence[int]) -> None:
        """Refuse a case whose flow is invalid or can never reach its target."""
        flow, target = self.flow(case), self.target(case)
        if isinstance(target, AbstractTarget):
            try:
                target.check(flow)
            except ValueError as error:
                where = f" (Case: {labels}.)" if (labels := self.labels(case)) else ""
                raise ValueError(f"{error}{where}") from None

    def _check_measures(self) -> None:
        """Refuse measures whose results have different shapes for different policies or flows."""
        for axis in ("policy", "flow"):
            labels = [label for label in self._choices[axis] if label is not None]
            seen: dict[str, tuple[str, tuple[int, ...]]] = {}
            for label in labels if len(labels) > 1 else ():
                flow = self._flow({**self._first, axis: label})
                point = self.starts.part(0, 1)[0]
                results = [found for m in self.measures for found in shapes(m, flow, point).items()]
                for name, shape in results:
                    other, wanted = seen.setdefault(name, (label, shape))
                    if shape != wanted:
                        raise ValueError(
                            f"Argument `measures` must have results of one shape with every "
                            f"{axis}, but `{name}` has shape {wanted} with {other!r} and {shape} "
                            f"with {label!r}; make one plan for each {axis}."
                        )

    def labels(self, case: Sequence[int]) -> dict[str, Any]:
        """The labels of a case, by axis."""
        named = zip(self.axes.items(), case, strict=True)
        return {name: values[index] for (name, values), index in named}

    def solve(
        self,
        case: Sequence[int],
        first: int,
        last: int,
        devices: Sequence[Any] | None = None,
        *,
        optimise: bool | None = None,
    ) -> ensemble.Runs:
        """The runs of a case from the starts between two indices, in memory.

        By default the program is optimised if the whole plan is large enough to repay this.
        """
        if optimise is None:
            optimise = self.optimised
        options = {**self._options, "optimise": optimise}
        return ensemble.sweep(
            self.flow(case),
            self.starts.part(first, last),
            until=self.target(case),
            measures=self.measures,
            devices=devices,
            progress=False,
            **options,
        )

    def audited(self, case: Sequence[int], points: np.ndarray, found: dict[str, np.ndarray]) -> Any:
        """Deviations of runs from the same runs at tighter tolerances; see `ensemble.audited`."""
        return ensemble.audited(
            self.flow(case), points, found, until=self.target(case), **self._options
        )

    def described(self) -> dict[str, Any]:
        """A JSON-ready description of the plan; plans with equal descriptions compute the same."""
        given = {n: c if None not in c else c[None] for n, c in self._choices.items()}
        given["until"] = given.pop("target")
        return described(
            {
                "starts": self.starts,
                **{name: choice for name, choice in given.items() if choice is not None},
                "over": self._over,
                "measures": self.measures,
                **{n: v for n, v in self._options.items() if v is not None},
                "audit": self.audit,
                "block": self.block,
            }
        )

    @property
    def _first(self) -> dict[str, Any]:
        """The labels of the first case."""
        return {name: next(iter(choices)) for name, choices in self._choices.items()}

    def _flow(self, labels: Mapping[str, Any]) -> AbstractFlow:
        if self._chosen("flow", labels) is not None:
            return self._chosen("flow", labels)
        return preference_flow(self._chosen("loss", labels), self._chosen("policy", labels))

    def _chosen(self, name: str, labels: Mapping[str, Any]) -> Any:
        choices = self._choices[name]
        return choices[None] if None in choices else choices[labels[name]]


def _choices(name: str, given: Any) -> dict[Any, Any]:
    """Objects by name; a single object has the name None."""
    if not isinstance(given, Mapping):
        return {None: given}
    if not given:
        argument = "until" if name == "target" else name
        raise ValueError(f"Argument `{argument}` must hold something, but is empty.")
    return {str(label): value for label, value in given.items()}


def _given(points: Any) -> _GivenStarts:
    array = floating(real("starts", points))
    if array.ndim != 2:
        raise ValueError(
            "Argument `starts` must be DrawnStarts or an array of shape (n, d), but has shape "
            f"{array.shape}."
        )
    if not len(array):
        raise ValueError("Argument `starts` must hold a start, but is empty.")
    return _GivenStarts(array)


def _check_what_flows(loss: Any, policy: Any, flow: Any) -> None:
    by_halves = (loss is None) != (policy is None)
    if by_halves or (flow is None) == (loss is None):
        raise ValueError("Arguments `loss` and `policy` must both be given, or `flow` instead.")


def _even_block(count: int, most: int) -> int:
    """The number of starts in a block, at most `most`, that gives blocks of similar size."""
    blocks = -(-count // most)
    return -(-count // blocks)
