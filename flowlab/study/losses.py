"""A comparison of losses: portraits, flow lines and cards, with a report."""

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flowlab import _pages, cards, plots
from flowlab._files import check_folder, write_json
from flowlab.cards import Card, Comparison
from flowlab.losses import AbstractLoss
from flowlab.study.figures import Drawn, save

__all__ = ["LossStudy", "compare_losses", "computed"]

_THREADS = 4  # most of a card is compilation, of which a thread does one at a time
_MOMENTS = (1.0, 10.0, 100.0, 1000.0)  # flow times of the table at equal time


@dataclass(frozen=True)
class LossStudy:
    """A comparison of losses, and the folder with its results.

    Attributes:
        folder: The folder of `report.html`, `cards.json` and the figures.
        cards: The card of each loss.
        comparison: The flow lines of the losses from the reference point.
        seconds: The duration of the comparison, seconds.
    """

    folder: Path
    cards: dict[str, Card]
    comparison: Comparison
    seconds: float

    def summary(self) -> str:
        """The table of cards, and the table at equal margins, as plain text."""
        return f"{cards.table(self.cards)}\n\n{self.comparison.summary()}"


def compare_losses(
    out: Path | str,
    losses: Mapping[str, AbstractLoss],
    *,
    reach: float = cards.REACH,
    progress: bool | None = None,
) -> LossStudy:
    """Compare losses on the log-ratio plane, and write the results to a folder.

    The results are `report.html` (self-contained), `cards.json`, and `portraits` and `comparison`
    as `.png` and `.svg`. The results of an earlier comparison in the folder are replaced.

    Args:
        out: The folder.
        losses: Losses of one pair by name; a loss with several values of β counts as several
            losses.
        reach: Half the side of the square in which the cards search, nats.
        progress: Whether to show progress bars; None where there is a terminal.

    Raises:
        ValueError: If `out` is a file or a folder with other contents, if there is no loss, or if
            one of the losses is a batch loss.
        OSError: If the folder cannot be written.
    """
    begun = time.perf_counter()
    folder = Path(out)
    check_folder("Argument `out`", folder, _pages.REPORT)
    comparison = cards.compare(losses)
    found = dict(computed(losses, reach=reach, progress=progress))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(cards.to_json(found), folder / "cards.json")
    portraits, _ = plots.portraits(found, columns=min(4, len(found)))
    drawn = [
        save(folder, "portraits", portraits),
        save(folder, "comparison", plots.comparison(comparison)[0].figure),
    ]
    study = LossStudy(folder, found, comparison, time.perf_counter() - begun)
    (folder / _pages.REPORT).write_text(_page(study, drawn), encoding="utf-8")
    return study


def computed(
    losses: Mapping[str, AbstractLoss],
    *,
    reach: float = cards.REACH,
    progress: bool | None = None,
) -> Iterator[tuple[str, Card]]:
    """The cards of losses in order, each yielded when it is finished; several are computed at once.

    Args:
        losses: Losses of one pair by name.
        reach: Half the side of the square in which the cards search, nats.
        progress: Whether to show a progress bar; None to show it in a terminal.
    """
    threads = max(1, min(_THREADS, os.cpu_count() or 1, len(losses)))
    pool = ThreadPoolExecutor(threads)
    bar = tqdm(total=len(losses), desc="cards", disable=_pages.disabled(progress), leave=False)
    try:
        made = pool.map(lambda loss: cards.card(loss, reach=reach), losses.values())
        for name, card in zip(losses, made, strict=True):
            bar.update()
            bar.set_postfix_str(name)
            yield name, card
    finally:
        bar.close()
        # Without waiting: if this ends early, nobody needs the cards that remain.
        pool.shutdown(wait=False, cancel_futures=True)


def _page(study: LossStudy, drawn: list[Drawn]) -> str:
    return _pages.rendered(
        "losses.html",
        **{one.name: one for one in drawn},
        at_margins=_at_margins(study.comparison),
        at_times=_at_times(study.comparison),
        card_table=(cards.COLUMNS, [cards.row(*named) for named in study.cards.items()]),
        descriptions={name: cards.description(card) for name, card in study.cards.items()},
        plane=next(iter(study.cards.values())).plane,
        seconds=study.seconds,
    )


def _at_margins(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    header = ["loss", *(f"time to margin {h:g}" for h in comparison.margins)]
    header += [f"chosen log-ratio at margin {h:g}" for h in comparison.margins]
    found = zip(
        comparison.names, comparison.margin_times, comparison.margin_states[..., 0], strict=True
    )
    rows = [[name, *map(_cell, times), *map(_cell, chosen)] for name, times, chosen in found]
    return header, rows


def _at_times(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Margin and chosen log-ratio at the saved times that are closest to round numbers."""
    places = [int(np.argmin(np.abs(np.log(comparison.times / moment)))) for moment in _MOMENTS]
    moments = comparison.times[places]
    header = ["loss", *(f"margin at time {t:.4g}" for t in moments)]
    header += [f"chosen log-ratio at time {t:.4g}" for t in moments]
    rows = []
    for name, states in zip(comparison.names, comparison.states[:, places], strict=True):
        margins = states[:, 0] - states[:, 1]
        rows.append([name, *map(_cell, margins), *map(_cell, states[:, 0])])
    return header, rows


def _cell(number: float) -> str:
    return "—" if np.isnan(number) else f"{number:.4g}"
