"""Forecasts of training runs: by short pilots, or by the run itself in several orders of its pairs.

A pilot with stride s takes one step for every s steps of the run, on minibatches of the same size,
at s times the learning rate. The decay rates β of Adam's averages become β^s. The pilot is
therefore as long as the run in flow time. The change of the end that the stride s causes is
proportional to s − 1 to first order, as are the errors of plain gradient descent and of
minibatches. The ends with s = 16 and s = 8 thus differ by 8 units, and the end with s = 8 differs
from that of the run by 7 of these units. If the two pilots agree, they give the end of the run and
its error.

If they do not agree, the size or the noise of the steps decides the end, and only steps of the real
size can predict it. The run is then carried out in several orders of the pairs. The ends are random
draws, and the run is another draw from the same distribution.

Letters in shapes: k steps, m orders, n pairs. An axis of length 3 has the means of u_w, u_l and the
margin.

Source: Smith and Le, arXiv 1710.06451, for the rates and sizes of steps with the same noise; Li,
Tai and E, arXiv 1511.06251, for the order of the error.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, PyTree
from scipy import stats

from flowlab import _tables
from flowlab._arrays import jsonable
from flowlab.descent import descend, hf_optimiser, hf_rates
from flowlab.descent.batches import checked_batches
from flowlab.flow import PreferenceFlow, preference_flow
from flowlab.losses import AbstractLoss
from flowlab.policies import LanguageModel
from flowlab.replay.finished import FinishedRuns
from flowlab.solve import compiled, fingerprint
from flowlab.solve.watched import watched_at
from flowlab.until import Outcome

__all__ = ["Forecast", "forecast", "forecasts_table"]

STRIDES = 8, 16  # steps of the run per step of a pilot; both pilots together cost 3/16 of the run
SHORTEST = (
    4  # minimal number of steps of the shorter pilot; with fewer it does not resemble the run
)
# As a fraction of the margin, which is about 3 % for the longer pilot. The difference of the pilots
# has √((16 + 8)/(8 + 1)) = 1.6 times the noise of the difference between the longer pilot and the
# run, and 8/7 times its bias.
AGREEMENT = 0.05
# Half the width of the band from pilots, in units of their difference. With independent noise, this
# covers the error of the longer pilot in five cases of six. But the band is used only if the
# difference is small, so that half its width is at least AGREEMENT of the margin.
DIFFERENCES = 2.0
# Probability that a further order ends within the band. The band from four orders is at most 1.9
# times as wide as their range.
BAND = 0.75
_NEVER = 2**30  # steps between two kept states; the same in all runs, which then share a program
_FEWEST = 2  # minimal number of orders, to compare their ends
_QUANTITIES = ("u_chosen", "u_rejected", "margin")


@dataclass(frozen=True, eq=False, repr=False)
class Forecast:
    """The forecast of the end of a training run, as means over all pairs.

    Attributes:
        pilots: Ends of the pilots with an eighth and a sixteenth of the steps, nats, shape (2, 3);
            NaN for a pilot that stopped at a number that is not finite, or that would be too short.
        orders: Ends of the run in several orders of the pairs, nats, shape (m, 3); NaN for a run
            that stopped at a number that is not finite. Empty if the pilots agree.
        fell: Fraction of the pairs whose chosen response is less likely than under the reference:
            of the longer pilot, shape (1,), or in each order, shape (m,). The fraction of a pilot
            is rough, since in less than an epoch it trains on only some of the pairs.
        gradients: Number of pairs whose gradients were computed.
        of_run: Number of pairs whose gradients a single run computes.
        steps: Number of steps of a single run.
    """

    pilots: Float[np.ndarray, "2 3"]
    orders: Float[np.ndarray, "m 3"]
    fell: Float[np.ndarray, " m"]
    gradients: int
    of_run: int
    steps: int

    @property
    def by_pilots(self) -> bool:
        """True if the pilots agree, so that the run itself was not carried out."""
        return not len(self.orders)

    @property
    def is_draw(self) -> bool:
        """True if runs in different orders of the pairs end too far apart for a forecast.

        Their ends then differ by more than 5 % of the median margin, or some of the runs stopped at
        a number that is not finite.
        """
        if self.by_pilots:
            return False
        return not np.ptp(self.orders, axis=0).max() <= AGREEMENT * abs(self.median[2])

    @property
    def end(self) -> Float[np.ndarray, "3"]:
        """The forecast end of the run, nats; NaN if the run is a draw."""
        return np.full(3, np.nan) if self.is_draw else self.median

    @property
    def median(self) -> Float[np.ndarray, "3"]:
        """The median of the ends of all orders, nats; if the pilots agree, the longer one's end."""
        return self.pilots[0] if self.by_pilots else np.median(self._known, axis=0)

    @property
    def band(self) -> Float[np.ndarray, "2 3"]:
        """The lower and the upper bound of a band for the end of the run, nats.

        If the pilots agree, the band is centred at the end of the longer pilot. Half its width is
        twice the difference of the pilots, and at least 5 % of the margin. For u_w and u_l, which
        noise moves together, it is twice the larger of the two differences. This band has no known
        coverage, since noise can make two pilots agree by chance; if the noise is strong, several
        orders show it.

        With several orders, a further order ends in the band with a probability of 0.75, if the
        ends are normally distributed and none of the runs stopped early. The band is NaN if fewer
        than two runs were completed.
        """
        if self.by_pilots:
            half = DIFFERENCES * np.abs(self.pilots[0] - self.pilots[1])
            half[:2] = half[:2].max()
            half = np.maximum(half, AGREEMENT * abs(self.pilots[0, 2]))
            return np.stack([self.pilots[0] - half, self.pilots[0] + half])
        known, count = self._known, len(self._known)
        if count < _FEWEST:
            return np.full((2, 3), np.nan)
        half = stats.t.ppf((1 + BAND) / 2, count - 1) * np.sqrt(1 + 1 / count)
        centre, spread = known.mean(axis=0), np.std(known, axis=0, ddof=1)
        return np.stack([centre - half * spread, centre + half * spread])

    @property
    def signs(self) -> Float[np.ndarray, "3"]:
        """The signs of the means of u_w, u_l and the margin; 0 if the band has both signs."""
        low, high = self.band
        return np.where(low > 0, 1.0, np.where(high < 0, -1.0, 0.0))

    @property
    def falls(self) -> Bool[np.ndarray, " m"]:
        """A mask of the orders, or of the pilots that agree, in which the mean u_w falls."""
        return (self.pilots if self.by_pilots else self.orders)[:, 0] < 0

    @property
    def cost(self) -> float:
        """The number of gradients computed, divided by the number in one run."""
        return self.gradients / self.of_run

    @property
    def _known(self) -> Float[np.ndarray, "m 3"]:
        known = self.orders[np.all(np.isfinite(self.orders), axis=1)]
        return known if len(known) else np.full((1, 3), np.nan)

    def __repr__(self) -> str:
        """The forecast on one line."""
        (low, high), middle = self.band, self.median
        told = ", ".join(
            f"{name} {middle[at]:.4g} ({low[at]:.4g} to {high[at]:.4g})"
            for at, name in enumerate(("u_w", "u_l", "margin"))
        )
        return f"Forecast({'a draw' if self.is_draw else 'no draw'}: {told} nats)"

    def text(self) -> str:
        """Sentences on the runs from which the forecast follows, and on the meaning of its band."""
        if self.by_pilots:
            apart = abs(self.pilots[0, 2] - self.pilots[1, 2]) / abs(self.pilots[0, 2])
            return (
                "runs of an eighth and a sixteenth of the steps agree, to "
                f"{apart:.1%} of the margin; no step of the real size was taken. How often such a "
                "band holds the run is not known."
            )
        known, count = self._known, len(self.orders)
        broke = int(np.sum(~np.all(np.isfinite(self.orders), axis=1)))
        lost = f" {broke} of them broke off, at a state that is not finite." if broke else ""
        band = f"A further order ends in the band with a probability of {BAND:g}."
        band = band if count - broke >= _FEWEST else "There is no band of fewer than two orders."
        if not self.is_draw:
            return f"{self._no_pilots()}, but {count} orders of the pairs do. {band}"
        low, high = known[:, 2].min(), known[:, 2].max()
        inside = (count - broke - 1) / (count - broke + 1)
        between = f", and a further one ends between these with a probability of {inside:.2g}"
        return (
            f"{self._no_pilots()}. The run is a draw, and there is no forecast of one number: in "
            f"{count} orders of the pairs it ends at margins from {low:.3g} to {high:.3g}"
            f"{'' if broke else between}; the mean chosen log-probability falls in "
            f"{np.sum(self.falls)}.{lost} {band}"
        )

    def _no_pilots(self) -> str:
        """The reason why the pilots do not give a forecast, as a clause."""
        if self.steps < SHORTEST * STRIDES[-1]:
            return f"{self.steps} steps are too few for shorter runs to agree"
        for name, end in zip(("an eighth", "a sixteenth"), self.pilots, strict=True):
            if not np.all(np.isfinite(end)):
                return f"a run of {name} of the steps broke off, so that shorter ones do not agree"
        return "shorter runs do not agree"

    def to_json(self) -> dict[str, Any]:
        """The forecast as JSON-ready data, with None for missing values."""
        named = ("by_pilots", "is_draw", "cost")
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        held = {name: jsonable(record[name]) for name in ("pilots", "orders", "fell")}
        told = {
            quantity: {
                "end": jsonable(self.end[at]),
                "median": jsonable(self.median[at]),
                "band": jsonable(self.band[:, at]),
                "sign": int(self.signs[at]),
            }
            for at, quantity in enumerate(_QUANTITIES)
        }
        counts = {name: getattr(self, name) for name in ("gradients", "of_run", "steps")}
        return {**{name: getattr(self, name) for name in named}, **told, **held, **counts}


def forecast(
    policy: LanguageModel,
    loss: AbstractLoss,
    learning_rate: npt.ArrayLike,
    orders: Sequence[Sequence[npt.ArrayLike]],
    *,
    optimiser: Literal["adamw", "sgd"] = "adamw",
    schedule: Literal["linear", "cosine", "constant"] | None = None,
    warmup_steps: int | None = None,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    progress: bool | None = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Forecast:
    """Forecast the end of a training run at a fraction of its cost.

    One pilot takes an eighth of the steps of the run, and another a sixteenth, at learning rates 8
    and 16 times as large. If their margins agree to 5 %, the end of the longer pilot is the
    forecast. If they do not agree, or if the run has fewer than 64 steps, the run itself is carried
    out in all given orders, whose ends form a band. If these ends differ by more than 5 % of the
    margin, the run is a draw: the order of the pairs decides its end.

    Args:
        policy: The model with its data; the run begins at its `start`.
        loss: The loss of the run, such as `DPO(0.1)`.
        learning_rate: The learning rate, as for `descent.hf_optimiser`.
        orders: At least two orders of the run, with the same number of steps: for each step, the
            indices of its pairs. `descent.hf_order` gives them for several seeds. The pilots take
            the first pairs of the first two orders.
        optimiser: `"adamw"` or `"sgd"`, as for `descent.hf_optimiser`.
        schedule: The schedule of the learning rate, as for `descent.hf_optimiser`.
        warmup_steps: Number of steps in which the rate rises.
        adam_betas: The decay rates of Adam's averages, per step of the run.
        weight_decay: Weight decay.
        max_grad_norm: The norm to which gradients are clipped; 0 for no clipping.
        progress: Whether to show progress bars; None to show them for long runs in a terminal.
        checkpoint: A file to which the end of every run and pilot is written when it is finished.
            Several forecasts may share one file. Finished runs are not carried out again; an
            interrupted run begins again.

    Raises:
        ValueError: If there are fewer than two orders, if they differ in the number of steps, if
            `checkpoint` is a file with other contents, or for the reasons that
            `descent.hf_optimiser` and `descent.descend` give.

    Accuracy: given by `band`. For a run of SGD over 480 steps, eight pilots with an eighth of the
        steps, on different pairs, predicted the margin within 1 %, and always the sign of u_w,
        which was a seventh of the margin. The order of the pairs moves u_w and u_l together, in
        such a pilot √8 times as far as in the run; of a small u_w a pilot therefore predicts the
        sign at best.
    """
    held = _checked(orders, len(np.asarray(policy.tokens)))
    rates = hf_rates(learning_rate, len(held[0]), schedule=schedule, warmup_steps=warmup_steps)
    fixed = {"weight_decay": weight_decay, "max_grad_norm": max_grad_norm, "optimiser": optimiser}
    finished = None if checkpoint is None else FinishedRuns(Path(checkpoint))
    if finished is not None:
        finished.check()
    trial = _Trial(policy, loss, rates, adam_betas, fixed, progress, finished)
    pilots, fell = _pilots(trial, held)
    in_orders = np.zeros((0, 3))
    if not _agree(pilots):
        ends = [trial.end(order, 1) for order in held]
        in_orders = np.stack([end for end, _ in ends])
        fell = np.array([share for _, share in ends])
    of_run = sum(map(len, held[0]))
    return Forecast(pilots, in_orders, fell, trial.gradients, of_run, len(held[0]))


def forecasts_table(found: Mapping[str, Forecast]) -> str:
    """Forecasts side by side as plain text, with one row for each name."""
    head = ("", "margin", "u_w", "u_l", "chosen", "pairs that fall", "cost")
    return _tables.table([head, *(_row(name, one) for name, one in found.items())], "lr")


def _row(name: str, one: Forecast) -> tuple[str, ...]:
    (low, high), middle = one.band, one.median

    def told(at: int) -> str:
        band = f"{low[at]:+.3g} to {high[at]:+.3g}"
        return band if one.is_draw else f"{middle[at]:+.3g} ({band})"

    moves = "falls" if middle[0] < 0 else "rises"
    if not one.by_pilots:
        ended = int(np.sum(np.isfinite(one.orders[:, 0])))
        moves = f"falls in {np.sum(one.falls)} of {ended}"
    elif not one.signs[0]:
        moves = "undecided"
    fell = f"{np.nanmedian(one.fell):.0%}" if np.any(np.isfinite(one.fell)) else "unknown"
    return (name, told(2), told(0), told(1), moves, fell, f"{one.cost:.2f} runs")


@dataclass
class _Trial:
    """The settings of a run, which carries out runs and counts the gradients that they cost."""

    policy: LanguageModel
    loss: AbstractLoss
    rates: Float[np.ndarray, " k"]
    adam_betas: tuple[float, float]
    fixed: dict[str, Any]
    progress: bool | None
    finished: FinishedRuns | None
    gradients: int = 0

    def end(self, order: Sequence[np.ndarray], stride: int) -> tuple[Float[np.ndarray, "3"], float]:
        """Means at the end of a run, and the fraction of chosen responses that fell."""
        steps = len(self.rates)
        count = -(-steps // stride)  # of which each is as long as steps / count of the run
        rates = np.add.reduceat(self.rates, np.arange(count) * steps // count)
        batches = order[:count]
        self.gradients += sum(map(len, batches))
        # With as many rates as the run has, pilots share its program.
        padded = np.pad(rates, (0, steps - count))
        betas = tuple(float(beta) ** (steps / count) for beta in self.adam_betas)
        run = (self.policy, self.loss, padded, betas, self.fixed, batches)
        found = None if self.finished is None else self.finished.get(*run)
        if found is None:
            found = self._carried_out(padded, betas, batches)
            if self.finished is not None:
                self.finished.add(found, *run)
        return np.array(found[:3]), found[3]

    def _carried_out(
        self, rates: np.ndarray, betas: Any, batches: Sequence[np.ndarray]
    ) -> list[float]:
        """The means of u_w, u_l and the margin at the end, and the fraction of chosen that fell."""
        flow = preference_flow(self.loss, self.policy)
        run = descend(
            flow,
            self.policy.start,
            hf_optimiser(rates, len(rates), adam_betas=betas, **self.fixed),
            batches=batches,
            keep_every=_NEVER,
            watch=(),  # all pairs are looked at once, at the end
            keep_states=False,
            progress=self.progress,
        )
        if run.outcome is not Outcome.reached:
            return [float("nan")] * 4
        wide = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(run.end))
        with jax.enable_x64(wide):
            told = fingerprint(flow, run.end, _log_ratios)
            last = np.asarray(_log_ratios_compiled(flow, run.end, operations=told), float)
        chosen, rejected = last.mean(axis=0)
        fell = np.mean(last[:, 0] < 0)
        return [float(number) for number in (chosen, rejected, chosen - rejected, fell)]


def _log_ratios(flow: PreferenceFlow, state: PyTree[Array]) -> Float[Array, "n 2"]:
    return watched_at(flow, ("u",), state)["u"]


_log_ratios_compiled = compiled(_log_ratios, lightly=True)


def _pilots(
    trial: _Trial, orders: list[list[np.ndarray]]
) -> tuple[Float[np.ndarray, "2 3"], Float[np.ndarray, "1"]]:
    """The ends of the two pilots, and the fraction of chosen responses that fell in the longer one.

    Each pilot begins an order of its own. If one pilot continued where the other ended, some pairs
    would occur again before all have occurred, and the noise would be several times as large. The
    shorter pilot is left out if the longer one stops at a number that is not finite.
    """
    found, fell = np.full((2, 3), np.nan), np.full(1, np.nan)
    if len(orders[0]) < SHORTEST * STRIDES[-1]:
        return found, fell
    found[0], fell[0] = trial.end(orders[0], STRIDES[0])
    if np.all(np.isfinite(found[0])):
        found[1], _ = trial.end(orders[1], STRIDES[1])
    return found, fell


def _agree(pilots: Float[np.ndarray, "2 3"]) -> bool:
    """True if both pilots were completed and their margins differ by at most AGREEMENT."""
    longer, shorter = pilots[:, 2]
    return bool(abs(longer - shorter) <= AGREEMENT * abs(longer))


def _checked(orders: Sequence[Sequence[npt.ArrayLike]], count: int) -> list[list[np.ndarray]]:
    held = [checked_batches("orders", order, count) for order in orders]
    if len(held) < _FEWEST:
        raise ValueError(
            f"Argument `orders` must hold at least {_FEWEST} orders, but holds {len(held)}."
        )
    for number, order in enumerate(held, start=1):
        if len(order) != len(held[0]):
            raise ValueError(
                f"Argument `orders` must hold orders with the same number of steps, but the first "
                f"has {len(held[0])} and number {number} has {len(order)}."
            )
    return held
