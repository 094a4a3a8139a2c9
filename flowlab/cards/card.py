"""Dynamics cards: numerical summaries of the flow of a loss on the log-ratio plane.

A card has four kinds of result. Critical points, lines and regions come from the search of
`critical`, started on a square of ±100 nats around the reference point and at the ends of flow
lines. Long-run behaviour (limits, rates, traps) comes from flow lines over nine decades of time,
from 1e-3 to 1e6 of the time scale at the reference point. Crossings of margins are located as
events on the line from the reference point. Plateaus (where the rejected response is ahead), the
region where the chosen log-ratio falls, conserved quantities and the lower bound come from the
field on a grid and on rays. The modules of this package explain the methods.
"""

import numpy as np

from flowlab._checks import positive
from flowlab.cards.critical_sets import find
from flowlab.cards.formats import Card
from flowlab.cards.lines import approaches, crossings, follow, traps
from flowlab.cards.plane import Plane
from flowlab.cards.regions import bound, conserved, fall, plateau
from flowlab.flow import PreferenceFlow, preference_flow
from flowlab.losses import AbstractLoss
from flowlab.policies import LogRatioPlane
from flowlab.solve import one_call

__all__ = ["REACH", "card"]

REACH = 100.0  # nats; real runs stay within (the farthest of the two logs at hand: 48)


@one_call()
def card(loss: AbstractLoss, *, plane: LogRatioPlane | None = None, reach: float = REACH) -> Card:
    """Compute the dynamics card of a loss.

    Critical points come from Newton's method, started on a grid over a square and at the ends of
    flow lines. Approaches, traps and crossings come from flow lines over nine decades of time, the
    other results from the field on a grid and on rays.

    Args:
        loss: A loss of one pair.
        plane: The log-ratio plane; None for the identity as kernel, both references −20 nats, 20
            tokens each, and an offset of 1 for losses that need one.
        reach: Half the side of the square that is searched, in nats. If β·reach exceeds about 700,
            gradients underflow in the outer part of the square, and critical points there are
            missed.

    Raises:
        ValueError: If the loss does not apply to a single pair, or is not finite at the reference
            point; `plane` is another policy, or its kernel is singular or a function; or `reach` is
            not positive and finite.

    Accuracy: the relative error is 1e-8 for critical points (1e-6 at a degenerate minimum), about
        1e-7 for times and crossings, and about 1e-3 for fitted rates of approach. Lines are
        integrated to a million times the time scale at the reference point, or for 5,000 steps;
        `traps` and `approach` describe the lines up to that time.
    """
    space = Plane(_flow(loss, plane), positive("reach", reach))
    reference = space.reference
    if not np.all(np.isfinite([*reference.value, *reference.gradient[0]])):
        raise ValueError(
            "Argument `loss` must have a finite value and gradient at the reference point, but has "
            f"{reference.value[0]:g} and {reference.gradient[0].tolist()}."
        )
    lines = follow(space)
    ends = np.concatenate([lines.reference.end, lines.ends])
    near = np.all(np.abs(ends) <= 10 * space.reach, axis=1)
    guesses = np.concatenate([space.rings(), lines.starts, ends[near], space.square(25)])
    critical_sets = find(space, guesses)
    return Card(
        loss=loss,
        plane=space.flow.policy,  # type: ignore[arg-type]
        reach=space.reach,
        value=float(reference.value[0]),
        gradient=(float(reference.gradient[0, 0]), float(reference.gradient[0, 1])),
        speed=float(reference.speed[0]),
        critical_sets=critical_sets,
        approach=approaches(space, lines),
        plateau=plateau(space, critical_sets),
        traps=traps(space, lines),
        fall=fall(space),
        conserved=conserved(space),
        bound=bound(space, critical_sets, lines.reference.end[0]),
        crossings=crossings(space, lines),
    )


def _flow(loss: AbstractLoss, plane: LogRatioPlane | None) -> PreferenceFlow:
    if plane is not None and not isinstance(plane, LogRatioPlane):
        raise ValueError(f"Argument `plane` must be a LogRatioPlane, but is {plane!r}.")
    space = LogRatioPlane(offset=1.0) if plane is None else plane
    flow = preference_flow(loss, space)
    if callable(space.matrix):
        raise ValueError(
            "Argument `plane` must have a constant kernel, given as an array, but has the function "
            f"{space.matrix!r}."
        )
    if np.linalg.eigvalsh(space.matrix)[0] <= 0:
        raise ValueError(
            "Argument `plane` must have a positive definite kernel, but a kernel of "
            f"{np.asarray(space.matrix).tolist()} lets the flow rest where the gradient does not "
            "vanish."
        )
    return flow
