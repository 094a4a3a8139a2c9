"""Results of many starts.

n: starts; k: levels of the target; s: times to save at; v: values of a swept hyper-parameter.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, PyTree

from flowlab.domains import AbstractDomain
from flowlab.ensemble.drawing import whole
from flowlab.starts import DrawnStarts
from flowlab.until import Outcome, counted, told_of_domain

if TYPE_CHECKING:
    import xarray

__all__ = ["Audit", "Runs"]


@dataclass(frozen=True)
class Audit:
    """Deviations of a random sample of the runs from the same runs at tighter tolerances.

    Solved in float64 at tolerances a hundred times tighter (not below 1e-13).

    Attributes:
        count: Runs solved again.
        rtol: The tolerance of the second solution.
        time_median: Median of |time − time'| / time', over runs that reached the target in both.
        time_largest: The largest of them.
        end_median: Median of |end − end'| / |end'|, over runs with the same outcome.
        end_largest: The largest of them.
        outcomes_differ: Runs whose outcome differs.
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
        given: The starts as `sweep` was given them: arrays, or how they are drawn.
        outcome: A code of `until.Outcome` for every start, shape (*v, n).
        time: Flow time at which the target (its last level) was reached; NaN where it was not.
        end_time: Flow time at which the line ended, for whatever reason; NaN for unfit starts.
        end: State there, leaves of shape (*v, n, ...); an absorbed component is 0.
        level_times: Flow time at which each level was met, shape (*v, n, k).
        saved: States at the times to save at, leaves of shape (*v, n, s, ...); None without any.
        measures: What was measured, by name, shape (*v, n) or (*v, n, ...).
        steps: Accepted steps, shape (*v, n).
        over: The values of the swept hyper-parameters, by name, in the order of the axes.
        save_at: The times to save at.
        rtol: Relative tolerance.
        audit: Deviation from tighter tolerances, if asked for.
        components: Names of the components of a state, where it is one array that has such.
        measure_axes: What the extra axis of a measure is, `pair` or `response`, by name; that of
            one not named is a state's.
        domain: The domain of the flow; None where it is not known.
        solver: The name of the Runge–Kutta method; empty where it is not known.
        backend: What solved them, `blocks` or `kernel`; empty where it is not known.
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
    backend: str = ""

    @cached_property
    def starts(self) -> PyTree[Float[np.ndarray, "n ..."]]:
        """The starts, shape (n, d), or a PyTree of leaves (n, ...), drawn when they are asked for.

        Those that `sweep` was given as `DrawnStarts` have the bits of the ones that were solved.
        """
        return whole(self.given)

    def __repr__(self) -> str:
        """A summary on one line: the starts, and how many had each outcome."""
        over = "".join(f", {name} of {values.tolist()}" for name, values in self.over.items())
        told = told_of_domain(self.domain, self.outcome, self.end, self.end_time, self.components)
        return f"Runs({self.outcome.shape[-1]:,} starts{over}: {self.counts()}{told})"

    def counts(self) -> dict[str, int]:
        """Number of runs with each outcome, by name; outcomes that did not occur are left out."""
        return counted(self.outcome)

    def to_xarray(self) -> "xarray.Dataset":
        """The runs as an xarray Dataset with named dimensions.

        The components of the starts are coordinates, `x_chosen` and `x_rejected` on the ratio
        plane. Outcomes are the codes of `until.Outcome`, as in
        `dataset.where(dataset.outcome == until.Outcome.reached)`; their names stand in the
        attributes of the variable. Measures of each pair or response have a dimension `pair` or
        `response`, counted from 0.

        Raises:
            ValueError: If the states are no plain arrays.
        """
        import xarray

        if not isinstance(self.starts, np.ndarray):
            raise ValueError("Runs must have states that are one array each to become a Dataset.")
        lead = (*self.over, "start")
        components = tuple(f"component_{i}" for i in range(1, self.starts.ndim - 1))
        state = ("component", *components)
        variables: dict[str, Any] = {
            "starts": (("start", *state), self.starts, {"long_name": "state at the start"}),
            "outcome": (lead, self.outcome, _flags()),
            "time": (lead, self.time, {"long_name": "flow time to the target"}),
            "end_time": (lead, self.end_time, {"long_name": "flow time at the end"}),
            "end": ((*lead, *state), self.end, {"long_name": "state at the end"}),
            "level_times": (
                (*lead, "level"),
                self.level_times,
                {"long_name": "flow time to each level of the target"},
            ),
            "steps": (lead, self.steps, {"long_name": "accepted steps"}),
        }
        coordinates: dict[str, Any] = dict(self.over)
        if self.components is not None:
            columns = zip(self.components, self.starts.T, strict=True)
            coordinates |= {name: ("start", column) for name, column in columns}
        if self.saved is not None:
            variables["saved"] = ((*lead, "saved_time", *state), self.saved)
            coordinates["saved_time"] = self.save_at
        for name, values in self.measures.items():
            own = (self.measure_axes[name],) if name in self.measure_axes else state
            extra = own if values.ndim > len(lead) else ()
            variables[name] = ((*lead, *extra), values)
            counted = (axis for axis in extra if axis not in state)
            coordinates |= {axis: np.arange(values.shape[-1]) for axis in counted}
        attributes = {"rtol": self.rtol, "solver": self.solver, "backend": self.backend}
        audit = {} if self.audit is None else vars(self.audit)
        attributes |= {f"audit_{name}": value for name, value in audit.items()}
        return xarray.Dataset(variables, coordinates, attributes)


def _flags() -> dict[str, Any]:
    codes = [outcome for outcome in Outcome if outcome != Outcome.running]
    return {
        "flag_values": np.asarray([int(code) for code in codes], np.int32),
        "flag_meanings": " ".join(code.name for code in codes),
    }
