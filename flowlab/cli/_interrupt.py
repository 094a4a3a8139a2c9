"""An immediate end of the command on Ctrl-C or SIGTERM, even during compilation.

Python handles a signal between two of its own instructions, and leaves a pool of threads only when
their work is finished. A compilation or a long block can therefore delay the end by a minute. This
module has a thread that the system wakes. It waits for a moment, in which the command can print and
write results, and then ends the process. Results are written as soon as they are finished, so that
no result is lost.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

__all__ = ["INTERRUPTED", "end_soon", "say"]

INTERRUPTED = 130  # the exit code
_MOMENT = 1.2  # seconds, so that with what the system takes it is less than two
_sentences: list[Callable[[], str]] = []


def end_soon() -> None:
    """End the process a moment after the first Ctrl-C, or SIGTERM if it is treated like Ctrl-C."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def say(sentence: Callable[[], str]) -> None:
    """Register a sentence for an interruption, on the results that are kept and how to resume."""
    _sentences.append(sentence)


def _watch(reader: int) -> None:
    while os.read(reader, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
        pass
    time.sleep(_MOMENT)
    told = ["interrupted", *(sentence() for sentence in _sentences)]
    sys.stdout.flush()
    begun = "\n" if sys.stderr.isatty() else ""  # behind the ^C, or a bar
    sys.stderr.write(f"{begun}flowlab: {': '.join(told)}\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)
