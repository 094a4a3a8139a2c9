"""Losses side by side: flow lines from the reference point, at equal time and at equal margin.

The flow of each loss is integrated once. States are saved at the times, and crossings of the
margins are located as events in the interpolants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flowlab import measures, until
from flowlab._tables import table
from flowlab.cards.card import REACH
from flowlab.cards.lines import DECADES, RTOL, only_approached, time_unit
from flowlab.cards.plane import Plane
from flowlab.ensemble import sweep
from flowlab.flow import preference_flow
from flowlab.losses import AbstractLoss
from flowlab.policies import LogRatioPlane

__all__ = ["Comparison", "compare"]

_LINE_STEPS = 20_000  # of one line, enough for any time scale of the loss
_AT_END = 1e-5  # relative to 1 + |margin|: a margin so close to the last one may not be reached


@dataclass(frozen=True)
class Comparison:
    """Flow lines of several losses from u = (0, 0); l losses, k times, m margins.

    Attributes:
        names: The losses.
        times: Flow times, shape (k,).
        states: (u_chosen, u_rejected) at the times, shape (l, k, 2); NaN after the end of a line.
        margins: Margins in nats, shape (m,).
        margin_times: Flow time at which each margin is first reached, shape (l, m); NaN if it is
            not reached while the line is followed: up to the last of `times`, or up to a million
            times the time scale at the reference point, whichever is later.
        margin_states: (u_chosen, u_rejected) at the margins, shape (l, m, 2).
    """

    names: tuple[str, ...]
    times: Float[np.ndarray, " k"]
    states: Float[np.ndarray, "l k 2"]
    margins: Float[np.ndarray, " m"]
    margin_times: Float[np.ndarray, "l m"]
    margin_states: Float[np.ndarray, "l m 2"]

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """A table, as plain text, of the time and the chosen log-ratio at each margin.

        `print` shows this table.
        """
        header = ["loss", *(f"t(h = {h:g})" for h in self.margins)]
        header += [f"u_w(h = {h:g})" for h in self.margins]
        rows = [
            [name, *(_cell(x) for x in (*times, *states[:, 0]))]
            for name, times, states in zip(
                self.names, self.margin_times, self.margin_states, strict=True
            )
        ]
        return table([header, *rows], "lr")


def compare(
    losses: Mapping[str, AbstractLoss],
    *,
    margins: Sequence[float] = (1.0, 5.0, 20.0),
    times: Sequence[float] | None = None,
    plane: LogRatioPlane | None = None,
) -> Comparison:
    """Integrate the flow line of each loss from the reference point.

    The time scale of a flow depends on the loss and on its β (for DPO on the log-ratio plane it is
    proportional to β⁻²). A comparison at equal times therefore compares learning rates as much as
    losses; a comparison at equal margins does not.

    Args:
        losses: Losses of one pair, by names of your choice.
        margins: Margins u_chosen − u_rejected to compare at, in nats, not 0.
        times: Flow times to compare at, ascending; None for 121 from 0.01 to 10,000. They do not
            limit the margins.
        plane: The log-ratio plane; None for the default of `card`.

    Raises:
        ValueError: If there is no loss, a loss is a batch loss, a margin is 0 or not finite, or
            `times` are not positive and ascending.

    Accuracy: the relative tolerance of the integration is 1e-8.
    """
    checked = _checked_losses(losses)
    moments = np.geomspace(0.01, 1e4, 121) if times is None else np.asarray(times, float)
    if not (moments.ndim == 1 and moments.size and np.all(np.diff(moments, prepend=0.0) > 0)):
        raise ValueError(
            f"Argument `times` must hold positive flow times in ascending order, but is {times!r}."
        )
    levels = np.asarray(margins, float)
    if levels.ndim != 1 or not np.all(np.isfinite(levels) & (levels != 0)):
        raise ValueError(
            f"Argument `margins` must hold finite nonzero numbers, but is {margins!r}."
        )
    space = LogRatioPlane(offset=1.0) if plane is None else plane
    found = [_line(loss, space, moments, levels) for loss in checked.values()]
    states, reached, positions = (np.stack(part) for part in zip(*found, strict=True))
    return Comparison(tuple(checked), moments, states, levels, reached, positions)


def _line(
    loss: AbstractLoss, plane: LogRatioPlane, times: np.ndarray, margins: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flow = preference_flow(loss, plane)
    space = Plane(flow, REACH)
    runs = sweep(
        flow,
        np.zeros((1, 2)),
        # At least as far as on a card: the times must not limit the margins.
        until=until.time(max(float(times[-1]), time_unit(space) * 10.0 ** DECADES[1])),
        save_at=times,
        measures=[measures.margin_at(float(margin)) for margin in margins],
        rtol=RTOL,
        max_steps=_LINE_STEPS,
        optimise=False,
        progress=False,
    )
    assert runs.saved is not None
    names = [f"margin_{margin:g}" for margin in margins]
    reached = np.array([runs.measures[f"{name}_time"][0] for name in names])
    positions = np.array([runs.measures[f"{name}_state"][0] for name in names]).reshape(-1, 2)
    # Only a line that ends at a margin can have crossed it by rounding.
    final = runs.end[0, 0] - runs.end[0, 1]
    for k in np.flatnonzero(np.abs(margins - final) < _AT_END * (1 + np.abs(margins))):
        if only_approached(space, positions[k]):
            reached[k], positions[k] = np.nan, np.nan
    return runs.saved[0], reached, positions


def _checked_losses(losses: Mapping[str, AbstractLoss]) -> dict[str, AbstractLoss]:
    if not isinstance(losses, Mapping):
        raise ValueError(
            f"Argument `losses` must be a mapping from names to losses, but is {losses!r}."
        )
    if not losses:
        raise ValueError("Argument `losses` must hold at least one loss, but is empty.")
    for name, loss in losses.items():
        if not isinstance(loss, AbstractLoss) or loss.of_batch:
            raise ValueError(
                f"Argument `losses` must hold losses of one pair, but {name!r} is {loss!r}."
            )
    return dict(losses)


def _cell(number: float) -> str:
    return "—" if np.isnan(number) else f"{number:.5g}"
