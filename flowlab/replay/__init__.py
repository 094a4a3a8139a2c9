"""A training run again, step by step, from its model, its data and the order of its samples.

`replay` carries it out; `doubts` says beforehand, and `compare` afterwards, whether it is the run
that a log tells of, and what the log does not show: what became of every pair. `forecast` says
where a run will end that nobody has carried out yet.
"""

from flowlab.replay.comparison import Comparison, compare
from flowlab.replay.fit import doubts
from flowlab.replay.pilots import Forecast, forecast, forecasts_table
from flowlab.replay.run import Replay, replay, replayed

__all__ = [
    "Comparison",
    "Forecast",
    "Replay",
    "compare",
    "doubts",
    "forecast",
    "forecasts_table",
    "replay",
    "replayed",
]
