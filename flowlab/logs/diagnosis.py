"""Diagnosis of a training run from its log, without integration."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from flowlab._parameters import replaced
from flowlab.logs import coupling as coupled
from flowlab.logs.checks import doubts, fitted, reference_shown
from flowlab.logs.coupling import Coupling, Effect
from flowlab.logs.forecast import (
    BackTest,
    Forecast,
    Slope,
    back_test,
    forecast,
    pulls_back,
    rest,
    slope_of,
)
from flowlab.logs.reading import number
from flowlab.logs.series import TrainingLog
from flowlab.logs.slopes import (
    LENGTHS,
    UNKNOWN,
    catalogue,
    loss_values,
    push,
    without_reference,
)
from flowlab.logs.verdict import Displacement, displacement, has_diverged
from flowlab.logs.windows import Windows, windows
from flowlab.losses import CPO, CPOIPO, IPO, AbstractLoss, CPOHinge, named

__all__ = ["Diagnosis", "Side", "diagnose"]

_LOOK_AHEAD = 0.5  # of the run's length: as far as the back-test looks
_USUAL = "dpo"
_SHIFTED = "dpo_shift"


@dataclass(frozen=True)
class Side:
    """The change of one quantity of a run from the first window to the last.

    Attributes:
        first: Mean of the first window, nats.
        last: Mean of the last window, nats.
        change: Mean of the last window less mean of the first window, nats.
        error: Half the width of the 95 % interval of the change; None if the noise is not known.
        rows: The number of rows that have the quantity.
    """

    first: float
    last: float
    change: float
    error: float | None
    rows: int

    @property
    def sure(self) -> bool:
        """True if the quantity changed by more than its noise."""
        return self.error is not None and abs(self.change) > self.error


@dataclass(frozen=True)
class Diagnosis:
    """Diagnosis of a training run, computed from means over windows of its rows.

    Attributes:
        log: The log.
        name: The name of the loss; None if the loss is not known.
        loss: The loss; None if it is not known, because the rewards have no reference and the file
            does not show it.
        assumed: True if the loss is a guess, neither given nor shown by the file.
        evaluated: True if evaluation rows were used, because there are no training rows.
        step: The step of each row of `points`.
        points: (u_w, u_l) in each row, or the two log-probabilities if there is no reference.
        windows: Windows of the rows that have both numbers.
        moved: True if any value differs between rows.
        chosen: The change of the chosen response; None if no row has its value.
        rejected: The change of the rejected response.
        margin: The change of the margin.
        displacement: The verdict whether the chosen response fell.
        coupling: The effective coupling ρ.
        kernels: The range of k_wl/k_ww that the interval of ρ allows; None unless the loss depends
            only on the margin.
        effects: The effect of each loss of the catalogue on the chosen response; None if the
            effects are not known. DPO-Shift is left out if its effect depends on its λ: see
            `shift`.
        shift: The largest λ at which DPO-Shift certainly does not lower the chosen response.
        likelihood: The smallest weight of an added term −log π(chosen) at which the chosen response
            does not fall, neither at the reference nor at the mean margins of the run. None if it
            is not known, or if the loss stops raising the margin at one of these margins.
        rest: The margin at which the loss stops raising the margin, because its derivative
            vanishes: in nats, or in nats per token for `IPO`. None if there is no such margin.
        pulls_back: True if the loss lowers a margin beyond `rest`, False if it is flat there; None
            without `rest`.
        references: Log-probabilities of both responses under the reference, from the first rows;
            None if not known.
        bounds: The largest possible u_w and u_l, which belong to a probability of 1; inf if not
            known.
        forecast: The forecast of the continuation of the run.
        back_test: A forecast of the second half of the run from the first half, with the measured
            end.
        uncoupled: The ends of a line from the first window to the last margin without coupling, on
            which both responses change by opposite amounts, shape (2, 2); or None.
        beta_given: The β that was given, if it differs from the β that the file shows; `log` has
            the latter. Else None.
        unlike: Sentences on contradictions between the file and the loss. If there are any, nothing
            is derived from the loss.
        doubts: The sentences of `unlike`, and sentences on contradictions with the β that was
            given.
    """

    log: TrainingLog
    name: str | None
    loss: AbstractLoss | None
    assumed: bool
    evaluated: bool
    step: Float[np.ndarray, " row"]
    points: Float[np.ndarray, "row 2"]
    windows: Windows
    moved: bool
    chosen: Side | None
    rejected: Side | None
    margin: Side | None
    displacement: Displacement
    coupling: Coupling
    references: tuple[float, float] | None
    bounds: Float[np.ndarray, " 2"]
    kernels: tuple[float, float] | None = None
    effects: dict[str, Effect] | None = None
    shift: float | None = None
    likelihood: float | None = None
    rest: float | None = None
    pulls_back: bool | None = None
    forecast: Forecast | None = None
    back_test: BackTest | None = None
    uncoupled: Float[np.ndarray, "2 2"] | None = None
    beta_given: float | None = None
    unlike: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def per_token(self) -> bool:
        """True if `rest` is in nats per token."""
        return isinstance(self.loss, IPO)

    @property
    def rest_done(self) -> float | None:
        """The last margin as a fraction of `rest`; None if `rest` is 0, per token or not known."""
        if self.rest is None or self.margin is None or self.per_token or self.rest == 0:
            return None
        return self.margin.last / self.rest

    @property
    def diverged(self) -> dict[str, Side]:
        """The responses that changed by more than training plausibly changes a log-probability."""
        sides = {"rejected": self.rejected, "chosen": self.chosen}
        return {
            name: side
            for name, side in sides.items()
            if side is not None and has_diverged(side.change, self.log.beta)
        }

    @property
    def drawable(self) -> bool:
        """True if the training rows have log-ratios, which can be drawn on the plane."""
        return not self.reference_free and not self.evaluated and len(self.windows) > 0

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the run on the plane of log-ratios, or over its steps if it has no log-ratios.

        Args:
            ax: The matplotlib Axes to draw on; None for the Axes of a new Figure.
        """
        from flowlab import plots

        draw = plots.training_run if self.drawable else plots.training_steps
        return draw(self, ax=ax)

    @property
    def title(self) -> str:
        """The name of the file without its suffix."""
        return self.log.path.stem

    @property
    def coupled(self) -> Float[np.ndarray, "k 2"] | None:
        """Points of the flow with the fitted coupling, shape (k, 2); or None.

        The points are the first window, the last window and the end of the forecast.
        """
        if self.effects is None or not self.drawable:
            return None
        begin, end = self.windows.mean[[0, -1]]
        ahead = [] if self.forecast is None else [self.forecast.end]
        return np.array([begin, end, *ahead])

    def loss_at(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"] | None:
        """The loss at points (u_w, u_l); None if it depends on values that a log does not contain.

        Args:
            points: The points (u_w, u_l).
        """
        if self.loss is None or self.reference_free or self.unlike:
            return None
        values = []
        for reference in UNKNOWN if self.references is None else (self.references,):
            for length in LENGTHS:
                values.append(loss_values(self.loss, points, reference, length))
        return values[0] if np.allclose(values, values[0], equal_nan=True) else None

    @property
    def reference_free(self) -> bool:
        """True if the values are log-probabilities, because there is no reference."""
        return self.log.reference_free


def diagnose(
    log: TrainingLog, loss: AbstractLoss | None = None, *, name: str | None = None
) -> Diagnosis:
    """Diagnose a run from its log: what moved, whether the chosen response fell, and the coupling.

    Args:
        log: A log.
        loss: The loss that was trained. None for the loss that the keys of the file show (ORPO,
            KTO), and otherwise DPO; with rewards that have no reference, the loss then remains
            unknown.
        name: The name of the loss; None for the name of its class.

    Raises:
        ValueError: If `loss` has a reference and the rewards of the file have none, or the other
            way round.
    """
    given = log.beta
    log, unfit = fitted(log)
    loss = loss if unfit is None else _with_beta(loss, given, log.beta)
    known, kind, assumed = _loss(log, loss, name)
    if known is not None and without_reference(known):
        log = _as_without_reference(log)
    step, time, points, held, evaluated = _values(log)
    both = _windows_of_both(step, time, points)
    chosen = windows(step, time, points[:, :1])
    fallen = displacement(chosen)
    together = windows(step, time, np.concatenate([held, points], axis=1))
    references = None if log.reference_free else _references(together)
    bounds = np.zeros(2) if log.reference_free else np.full(2, np.inf)
    unlike = doubts(log, known)
    diagnosis = Diagnosis(
        log=log,
        name=kind,
        loss=known,
        assumed=assumed,
        evaluated=evaluated,
        step=step,
        points=points,
        windows=both,
        moved=_moved(points),
        chosen=_side(chosen, [1.0]),
        rejected=_side(windows(step, time, points[:, 1:]), [1.0]),
        margin=_side(both, [1.0, -1.0]),
        displacement=fallen,
        coupling=coupled.effective_coupling(both.change()) if len(both) > 1 else Coupling(),
        references=references,
        bounds=bounds if references is None else -np.array(references),
        beta_given=None if unfit is None else given,
        unlike=unlike,
        doubts=unlike if unfit is None else [unfit, *unlike],
    )
    return diagnosis if known is None or unlike or not len(both) else _with_loss(diagnosis, known)


def _with_beta(loss: AbstractLoss | None, given: float, beta: float) -> AbstractLoss | None:
    """The loss with the β of the file in place of the β that was given."""
    held = getattr(loss, "beta", None)
    if loss is None or held is None or not np.all(np.asarray(held) == given):
        return loss
    return replaced(loss, "beta", beta)


def _loss(
    log: TrainingLog, loss: AbstractLoss | None, name: str | None
) -> tuple[AbstractLoss | None, str | None, bool]:
    """The loss of a run, its name, and whether it is a guess."""
    if loss is not None:
        if log.reference_free and not without_reference(loss):
            raise ValueError(
                "Argument `loss` must be a loss without a reference, such as ORPO, CPO or SimPO, "
                f"but is {name or type(loss).__name__}; the rewards in {log.path} are β·log π."
            )
        shown = reference_shown(log) if without_reference(loss) else None
        if shown is not None:
            raise ValueError(
                "Argument `loss` must be a loss with a reference, such as DPO, but is "
                f"{name or type(loss).__name__}; the rewards in {log.path} are not β·log π: "
                f"{shown}."
            )
        return loss, name or type(loss).__name__, False
    if log.trainer is not None:
        return named(log.trainer, beta=log.beta), log.trainer, False
    if log.reference_free:
        return None, None, False
    return named(_USUAL, beta=log.beta), _USUAL, True


def _as_without_reference(log: TrainingLog) -> TrainingLog:
    """The log with rewards taken to be β·log π, although the file does not show that they are."""
    if log.reference_free:
        return log
    told = np.isfinite(log.logp_chosen).any() and np.isfinite(log.logp_rejected).any()
    nowhere = np.full_like(log.step, np.nan)
    return replace(
        log,
        u_chosen=nowhere,
        u_rejected=nowhere,
        margin=nowhere,
        logp_chosen=log.logp_chosen if told else log.u_chosen,
        logp_rejected=log.logp_rejected if told else log.u_rejected,
        reference_free=True,
    )


def _values(log: TrainingLog) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
    """Steps, times, points and log-probabilities of the training rows, or of the evaluations."""
    if log.step.size:
        ratios = np.stack([log.u_chosen, log.u_rejected], axis=1)
        held = np.stack([log.logp_chosen, log.logp_rejected], axis=1)
        return log.step, log.time, held if log.reference_free else ratios, held, False
    rows = [row for row in log.evaluations if "eval_rewards/chosen" in row]

    def column(key: str) -> np.ndarray:
        return np.array([number(row, f"eval_{key}", log.path, "The log") for row in rows])

    step = np.array([number(row, "step", log.path, "The log") for row in rows])
    step = step if np.all(np.isfinite(step)) else np.arange(1.0, len(rows) + 1)
    sides = ("chosen", "rejected")
    held = np.stack([column(f"logps/{side}") for side in sides], axis=1)
    ratios = np.stack([column(f"rewards/{side}") for side in sides], axis=1) / log.beta
    points = held if log.reference_free and np.all(np.isfinite(held)) else ratios
    return step, np.full_like(step, np.nan), points, held, True


def _windows_of_both(
    step: Float[np.ndarray, " row"],
    time: Float[np.ndarray, " row"],
    points: Float[np.ndarray, "row 2"],
) -> Windows:
    """Windows of the rows with both responses; over steps if the flow time does not increase."""
    found = windows(step, time, points)
    if np.all(np.diff(found.time) > 0):
        return found
    return windows(step, step, points)  # no rates in the file, or of 0: the pace is per step


def _moved(points: Float[np.ndarray, "row 2"]) -> bool:
    """True if a column has different values, or has a single value that is not 0."""
    for column in points.T:
        known = column[np.isfinite(column)]
        if known.size and (np.ptp(known) > 0 or (known.size == 1 and known[0] != 0)):
            return True
    return False


def _side(seen: Windows, weights: list[float]) -> Side | None:
    if not len(seen):
        return None
    by, change = np.array(weights), seen.change()
    error = change.error(by)
    return Side(
        float(seen.mean[0] @ by),
        float(seen.mean[-1] @ by),
        float(change.value @ by),
        error if np.isfinite(error) else None,
        int(seen.count.sum()),
    )


def _references(seen: Windows) -> tuple[float, float] | None:
    """Log-probabilities of both responses under the reference, from the first window."""
    if not len(seen):
        return None
    chosen, rejected, ratio_chosen, ratio_rejected = seen.mean[0]
    return float(chosen - ratio_chosen), float(rejected - ratio_rejected)


def _with_loss(diagnosis: Diagnosis, loss: AbstractLoss) -> Diagnosis:
    """The diagnosis, completed by all that follows from the loss."""
    ratios = not diagnosis.reference_free
    lengths = LENGTHS if ratios or isinstance(loss, CPO | CPOHinge | CPOIPO) else (1.0,)
    others = {
        n: o for n, o in catalogue(diagnosis.log.beta).items() if ratios or without_reference(o)
    }
    references = diagnosis.references if ratios else (0.0, 0.0)
    # A run with another loss would start at the reference.
    start = np.zeros((1, 2)) if ratios else diagnosis.windows.mean[:1]
    places = np.concatenate([start, diagnosis.windows.mean])
    coupling = diagnosis.coupling
    slopes = push({"": loss, **(others if coupling.known else {})}, places, references, lengths)
    own = slopes.pop("").after_first()
    if coupling.known:
        diagnosis = replace(diagnosis, effects=coupled.effects(coupling, own, slopes))
    if not own.of_margin:
        return diagnosis
    diagnosis = replace(diagnosis, kernels=coupled.kernel_range(coupling))
    if not ratios:
        return diagnosis
    diagnosis = replace(diagnosis, uncoupled=_uncoupled(diagnosis))
    if isinstance(loss, IPO):
        return replace(diagnosis, rest=1 / (2 * float(np.asarray(loss.beta))), pulls_back=True)
    if own.of_guesses:
        return diagnosis
    return _with_slope(diagnosis, slope_of(loss))


def _with_slope(diagnosis: Diagnosis, slope: Slope) -> Diagnosis:
    """The diagnosis, completed by all that follows from the slope of a loss of the margin."""
    seen, coupling = diagnosis.windows, diagnosis.coupling
    margin = float(seen.mean[-1] @ [1.0, -1.0])
    resting = rest(slope, margin, diagnosis.log.beta)
    if resting is not None:
        back = pulls_back(slope, resting, diagnosis.log.beta)
        diagnosis = replace(diagnosis, rest=resting, pulls_back=back)
    if diagnosis.effects is None:
        return diagnosis
    ahead = _LOOK_AHEAD * float(seen.time[-1] - seen.time[0])
    shift, effects = coupled.shift_that_holds(coupling), dict(diagnosis.effects)
    if shift is not None and effects[_SHIFTED] == "either":
        del effects[_SHIFTED]  # its λ decides, and `shift` says from which on
    return replace(
        diagnosis,
        effects=effects,
        shift=shift,
        likelihood=_likelihood(diagnosis, slope),
        forecast=forecast(seen, slope, diagnosis.bounds, time=ahead),
        back_test=back_test(seen, slope, diagnosis.bounds),
    )


def _likelihood(diagnosis: Diagnosis, slope: Slope) -> float | None:
    """The weight that suffices at the reference and at every mean margin; or None.

    None if the slope of the loss is not positive at one of these margins.
    """
    margins = diagnosis.windows.mean @ np.array([1.0, -1.0])
    slopes = slope(np.concatenate([[0.0], margins]))
    if not np.all(slopes > 0):
        return None
    return coupled.likelihood_that_holds(diagnosis.coupling, float(slopes.max()))


def _uncoupled(diagnosis: Diagnosis) -> Float[np.ndarray, "2 2"]:
    """The line from the first window to the last margin on which u_w and u_l change oppositely."""
    begin, end = diagnosis.windows.mean[[0, -1]]
    half = float((end - begin) @ [1.0, -1.0]) / 2
    room = diagnosis.bounds[0] - begin[0]
    half = min(half, max(0.0, float(room))) if half > 0 else half
    return np.array([begin, begin + half * np.array([1.0, -1.0])])
