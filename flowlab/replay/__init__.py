"""Replays of training runs, from the model, the data and the order of the samples; and forecasts.

`replay` carries out a run again, step by step. `doubts` finds settings that contradict its log
before the replay, and `compare` compares the replay with the log afterwards. A replay also gives
the changes of every pair, which a log does not contain. `forecast` predicts the end of a run that
was never carried out.
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
