"""Seconds from nothing: the import, the first result, the help of the command.

Each case is a fresh interpreter on files that the system has read before. A bare interpreter is
measured beside them, and is part of every other number. The first result is a sweep of 1,024
starts on the ratio plane to L = 0.1: the imports, the compilation and the solution. The help of the
command is to come within half a second.
"""

import subprocess
import sys
import time
from statistics import median

from _common import emit, parser

REPETITIONS = 7
HELP, HELP_WITHIN_S = "flowlab --help", 0.5
FIRST_RESULT = """
import flowlab
from flowlab import starts, until
flow = flowlab.preference_flow(flowlab.DPO(0.3), flowlab.RatioPlane())
points = starts.uniform(1024, (0.01, 0.01), (1, 1), seed=0)
assert (flowlab.sweep(flow, points, until=until.loss_below(0.1)).time > 0).any()
"""
CASES = {
    "bare interpreter": ["-c", "pass"],
    "import flowlab": ["-c", "import flowlab"],
    "import flowlab, sweep and flow_line": ["-c", "from flowlab import flow_line, sweep"],
    HELP: ["-m", "flowlab", "--help"],
    "flowlab sweep --help": ["-m", "flowlab", "sweep", "--help"],
    "first result of a sweep": ["-c", FIRST_RESULT],
}


def seconds(arguments: list[str]) -> float:
    """Seconds that a fresh interpreter takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure and write the result."""
    options = parser(__doc__ or "").parse_args()
    repetitions = 1 if options.smoke else REPETITIONS
    measured: dict[str, list[float]] = {name: [] for name in CASES}
    if not options.smoke:
        for arguments in CASES.values():
            seconds(arguments)
    for _ in range(repetitions):
        for name, arguments in CASES.items():
            measured[name].append(seconds(arguments))
    medians = {name: median(values) for name, values in measured.items()}
    emit(
        {
            "benchmark": "cold_start",
            "repetitions": repetitions,
            "median_s": medians,
            f"help_within_{HELP_WITHIN_S}_s": medians[HELP] <= HELP_WITHIN_S,
            "seconds": measured,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
