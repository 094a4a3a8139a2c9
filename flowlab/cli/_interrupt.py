"""The end of the command on Ctrl-C or SIGTERM, soon, whatever it is at.

Python takes a signal up between two of its own instructions, and leaves pools of threads when
their work is done: a compilation or a long block holds it up for a minute. A thread that the
system wakes therefore waits for a moment, in which the command can say and write what is done, and
then ends the process. Results are written as they come, so none is lost.
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
    """End the process a moment after the first Ctrl-C, or SIGTERM where that is taken for one."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def say(sentence: Callable[[], str]) -> None:
    """Have a sentence told if the process is ended so, on what is kept and how to resume."""
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
