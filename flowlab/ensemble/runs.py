"""Results of many starts.

n: starts; k: levels of the target; s: times to save at; v: values of a swept hyper-parameter.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

from flowlab import _tables
from flowlab.domains import AbstractDomain
from flowlab.ensemble.drawing import whole
from flowlab.ensemble.stiff import SOLVERS
from flowlab.starts import DrawnStarts, grid_sides
from flowlab.until import Outcome, counted, told_of_domain

if TYPE_CHECKING:
    import xarray

__all__ = ["Audit", "Runs"]

_CLOCK_OF_STIFF = (
    "all solvers but the first used time as the clock, or arc length on a domain with an absorbing "
    "boundary, whatever was asked for"
)


@dataclass(frozen=True)
class Audit:
    """Deviations of a random sample of the runs from the same runs at tighter tolerances.

    The second solution, marked by a prime, is computed in float64 at tolerances a hundred times
    tighter (not below 1e-13).

    Attributes:
        count: Number of runs that were integrated again.
        rtol: The relative tolerance of the second solution.
        time_median: Median of |time − time'| / time', over runs that reached the target in both.
        time_largest: Largest |time − time'| / time' of these runs.
        end_median: Median of |end − end'| / |end'|, over runs with the same outcome other than
            `step_limit`.
        end_largest: Largest |end − end'| / |end'| of these runs.
        outcomes_differ: Number of runs whose outcome differs.
    """

    count: int
    rtol: float
    time_median: float
    time_largest: float
    end_median: float
    end_largest: float
    outcomes_differ: int


@dataclass(frozen=True)
class Runs:
    """Results of many starts, as NumPy arrays; swept hyper-parameters are leading axes.

    Attributes:
        given: The starts as they were passed to `sweep`: arrays, or `DrawnStarts`.
        outcome: A code of `until.Outcome` for every start, shape (*v, n).
        time: Flow time at which the target (its last level) was reached, shape (*v, n); NaN if it
            was not.
        end_time: Flow time at which the line ended, for whatever reason, shape (*v, n); NaN for
            starts that are not finite or outside the domain.
        end: State at the end, leaves of shape (*v, n, ...); an absorbed component is 0.
        level_times: Flow time at which each level was reached, shape (*v, n, k).
        saved: States at the times to save at, leaves of shape (*v, n, s, ...); None if there are no
            such times.
        measures: Results of the measures, by name, shape (*v, n) or (*v, n, ...).
        steps: Number of accepted steps, shape (*v, n), over all blocks that a start was in. For a
            start that was integrated again, the steps of the integration that was kept.
        over: The values of the swept hyper-parameters, by name, in the order of the axes.
        save_at: The times to save at, shape (s,).
        rtol: Relative tolerance.
        audit: Deviations from a solution at tighter tolerances; None if no audit was asked for.
        components: Names of the components of a state; None if they have none or the state is a
            PyTree.
        measure_axes: The meaning of a result's extra axis, `pair` or `response`, by the name of the
            result; for other results, the axis is that of the components of a state.
        domain: The domain of the flow; None if it is not known.
        solver: The name of the solver, "" if it is not known. If stiff starts were integrated again
            with other solvers, the solver of the other starts.
        solved_by: The solver of each start, shape (*v, n), as an index into `solvers`; None if
            `solver` integrated all. Solvers with an index other than 0 use time as the clock, or
            arc length on a domain with an absorbing boundary, whatever clock was asked for.
        backend: The backend, `blocks` or `kernel`; "" if it is not known.
    """

    given: PyTree[Float[np.ndarray, "n ..."]] | DrawnStarts
    outcome: Int[np.ndarray, "*v n"]
    time: Float[np.ndarray, "*v n"]
    end_time: Float[np.ndarray, "*v n"]
    end: PyTree[Float[np.ndarray, "..."]]
    level_times: Float[np.ndarray, "*v n k"]
    saved: PyTree[Float[np.ndarray, "..."]] | None
    measures: dict[str, PyTree[np.ndarray]]
    steps: Int[np.ndarray, "*v n"]
    over: dict[str, np.ndarray]
    save_at: Float[np.ndarray, " s"]
    rtol: float
    audit: Audit | None = None
    components: tuple[str, ...] | None = None
    measure_axes: dict[str, str] = field(default_factory=dict)
    domain: AbstractDomain | None = None
    solver: str = ""
    solved_by: Int[np.ndarray, "*v n"] | None = None
    backend: str = ""

    @cached_property
    def starts(self) -> PyTree[Float[np.ndarray, "n ..."]]:
        """The starts, shape (n, d), or a PyTree of leaves (n, ...).

        `DrawnStarts` are drawn at first access, with the bits of the starts that were integrated.
        """
        return whole(self.given)

    def __repr__(self) -> str:
        """A summary on one line: the number of starts, and of each outcome."""
        over = "".join(f", {name} of {values.tolist()}" for name, values in self.over.items())
        told = told_of_domain(self.domain, self.outcome, self.end, self.end_time, self.components)
        return (
            f"Runs({self.outcome.shape[-1]:,} starts{over}: {self.counts()}{told}{self._stiff()})"
        )

    def _stiff(self) -> str:
        """The numbers of runs integrated by solvers for stiff flows, as text."""
        codes = [] if self.solved_by is None else self.solved_by
        counts = [(name, int(np.sum(codes == i))) for i, name in enumerate(self.solvers)][1:]
        return "".join(f", {count:,} by {name}" for name, count in counts if count)

    @property
    def solvers(self) -> tuple[str, ...]:
        """The names of the solvers, in the order of the indices in `solved_by`."""
        return (self.solver, *SOLVERS)

    def counts(self) -> dict[str, int]:
        """The number of runs with each outcome, by its name, without outcomes that do not occur."""
        return counted(self.outcome)

    def to_xarray(self, *, grid: bool = True) -> "xarray.Dataset":
        """The runs as an xarray Dataset with named dimensions, long names and units.

        The components of the starts are coordinates, such as `x_chosen` and `x_rejected` on the
        ratio plane. If the starts form a grid on a plane, these are the two dimensions, so that
        `dataset.time.plot()` draws a map; otherwise there is one dimension, `start`. Outcomes are
        codes of `until.Outcome`, as in `dataset.where(dataset.outcome == until.Outcome.reached)`;
        their names are in the attributes of the variable. Results with one value per pair or
        response have a dimension `pair` or `response`, counted from 0. For states that are PyTrees,
        each leaf is a variable, such as `end_readout`. `store.write` and `store.read` keep a
        Dataset on disk.

        Args:
            grid: Whether starts on a grid get two dimensions; False for the dimension `start`.
        """
        import xarray

        lead = (*self.over, "start")
        variables: dict[str, Any] = {
            "outcome": (lead, self.outcome, _flags()),
            "time": (lead, self.time, _time("flow time to the target")),
            "end_time": (lead, self.end_time, _time("flow time at the end")),
            "level_times": (
                (*lead, "level"),
                self.level_times,
                _time("flow time to each level of the target"),
            ),
            "steps": (lead, self.steps, {"long_name": "accepted steps"}),
        }
        variables |= self._solvers_told(lead)
        variables |= _by_leaf("starts", self.starts, ("start",), "state at the start")
        variables |= _by_leaf("end", self.end, lead, "state at the end")
        coordinates: dict[str, Any] = {
            name: (name, values, {"long_name": name.replace("_", " ")})
            for name, values in self.over.items()
        }
        if self.components is not None:
            columns = zip(self.components, self.starts.T, strict=True)
            coordinates |= {n: ("start", column, _component(n)) for n, column in columns}
        if self.saved is not None:
            variables |= _by_leaf("saved", self.saved, (*lead, "saved_time"), "state at that time")
            coordinates["saved_time"] = ("saved_time", self.save_at, _time("flow time"))
        for name, values in self.measures.items():
            variables |= self._measured(name, values, lead)
            axis = self.measure_axes.get(name)
            if axis is not None and values.ndim > len(lead):
                coordinates[axis] = np.arange(values.shape[-1])
        attributes = {"rtol": self.rtol, "solver": self.solver, "backend": self.backend}
        audit = {} if self.audit is None else vars(self.audit)
        attributes |= {f"audit_{name}": value for name, value in audit.items()}
        found = xarray.Dataset(variables, coordinates, attributes)
        sides = grid_sides(self.starts) if grid else None
        return found if sides is None else _unfolded(found, *sides, self.components)

    def _solvers_told(self, lead: tuple[str, ...]) -> dict[str, Any]:
        """The Dataset variable with the solver of each start; empty if `solved_by` is None."""
        if self.solved_by is None:
            return {}
        told = {"long_name": "solver", **_meanings(range(len(self.solvers)), self.solvers)}
        told["comment"] = _CLOCK_OF_STIFF
        return {"solved_by": (lead, self.solved_by, told)}

    def _measured(self, name: str, values: Any, lead: tuple[str, ...]) -> dict[str, Any]:
        meaning = {"long_name": name.replace("_", " ")}
        if isinstance(values, np.ndarray) and values.ndim == len(lead):
            time = _time(meaning["long_name"]) if name.endswith("_time") else meaning
            return {name: (lead, values, time)}
        if name in self.measure_axes:
            return {name: ((*lead, self.measure_axes[name]), values, meaning)}
        return _by_leaf(name, values, lead, meaning["long_name"])

    def _facts(self) -> list[tuple[str, ...]]:
        """The results of the runs as rows of a table, for a notebook."""
        rows: list[tuple[str, ...]] = [("", "runs", "share")]
        for name, count in self.counts().items():
            rows.append((name, f"{count:,}", f"{count / max(self.outcome.size, 1):.1%}"))
        known = self.time[np.isfinite(self.time)]
        if known.size:
            rows.append(("flow time to the target", "median", "largest"))
            rows.append(("", f"{np.median(known):.5g}", f"{np.max(known):.5g}"))
        return rows

    def _repr_html_(self) -> str:
        return _tables.html(repr(self), self._facts(), "lrr")


def _time(meaning: str) -> dict[str, str]:
    return {"long_name": meaning, "units": "learning rate × steps"}


def _component(name: str) -> dict[str, str]:
    """The long name and the unit of a component of a state."""
    kinds = {
        "x": ("probability ratio", "1"),
        "u": ("log-ratio", "nats"),
        "p": ("probability", "1"),
    }
    kind, _, response = name.partition("_")
    if kind not in kinds or not response:
        return {"long_name": name.replace("_", " ")}
    word, unit = kinds[kind]
    return {"long_name": f"{word} of the {response} response", "units": unit}


def _by_leaf(name: str, tree: Any, lead: tuple[str, ...], meaning: str) -> dict[str, Any]:
    """States as Dataset variables: an array as `name`, the leaves of a PyTree with suffixes."""
    if isinstance(tree, np.ndarray):
        further = (f"component_{i}" for i in range(1, tree.ndim - len(lead)))
        axes = ("component", *further) if tree.ndim > len(lead) else ()
        return {name: ((*lead, *axes), tree, {"long_name": meaning})}
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        part = jax.tree_util.keystr(path, simple=True, separator="_")
        axes = tuple(f"{part}_{i}" for i in range(1, leaf.ndim - len(lead) + 1))
        found[f"{name}_{part}"] = ((*lead, *axes), leaf, {"long_name": f"{meaning}, {part}"})
    return found


def _unfolded(
    flat: "xarray.Dataset", first: np.ndarray, second: np.ndarray, components: Any
) -> "xarray.Dataset":
    """A Dataset in which the dimension `start` is replaced by two, the components of a grid."""
    across, up = components or ("y_1", "y_2")
    bare = flat.drop_vars([name for name in (across, up) if name in flat.coords])
    sides = {across: (across, first, _component(across)), up: (up, second, _component(up))}
    shape = {across: first.size, up: second.size}
    folded = {}
    for name, held in bare.variables.items():
        if "start" in held.dims:
            folded[name] = held.unstack(start=shape).transpose(..., up, across, *_behind(held))
    return bare.assign(folded).assign_coords(sides)


def _behind(held: Any) -> list[str]:
    """The names of the dimensions after that of the starts."""
    return list(held.dims[held.dims.index("start") + 1 :])


def _flags() -> dict[str, Any]:
    codes = [outcome for outcome in Outcome if outcome != Outcome.running]
    return _meanings(codes, [code.name for code in codes], np.int32)


def _meanings(codes: Iterable[int], names: Iterable[str], dtype: Any = np.int8) -> dict[str, Any]:
    """Attributes of a Dataset variable of codes: the codes and their names."""
    values = np.asarray([int(code) for code in codes], dtype)
    return {"flag_values": values, "flag_meanings": " ".join(names)}
