"""A cache of compiled programs in the user's cache folder.

It is the cache of JAX. Its settings are global to a process; the command changes them, and the
library never does.
"""

import hashlib
import os
import platform
import sys
import warnings
from contextlib import suppress
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# JAX looks at every entry when it adds one. Programs that compile about as quickly as they are read
# are therefore not kept, and the folder has a maximal size. 64 MiB hold the programs of about a
# hundred sweeps.
_SETTINGS = {
    "jax_compilation_cache_max_size": 2**26,
    # Further files of XLA would not count towards this size.
    "jax_persistent_cache_enable_xla_caches": "none",
    "jax_persistent_cache_min_compile_time_secs": 0.05,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
_HARMLESS = (  # of a folder that is full or not to be written, and entries that are torn
    "Error (reading|writing) persistent compilation cache|Cache value for key .* exceeds|"
    "flock not supported on this filesystem"
)
_OF_PROCESSOR = {
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),  # x86
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"),  # ARM
    *("Features", "features", "cpu", "machine", "isa", "uarch"),  # ARM, s390, POWER, RISC-V
}


def keep_programs() -> None:
    """Use the cache folder in this process, for reading and writing.

    Nothing happens if the user has configured another cache, or if there is no cache folder. If the
    folder cannot be used, programs are compiled without a cache, and without a message.
    """
    place = folder()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or place is None:
        return
    _silence_loading()
    import jax

    warnings.filterwarnings("ignore", _HARMLESS)
    jax.config.update("jax_compilation_cache_dir", str(place))
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if jax.config.jax_compilation_cache_max_size != -1:  # type: ignore[attr-defined]
        _forget_torn(place)  # one without bounds keeps no times


def _silence_loading() -> None:
    """Suppress XLA's messages on stderr about programs loaded from a cache.

    Up to jax 0.10 at least, on every processor with AVX-512, XLA reports that the processor lacks
    "prefer-no-gather", which is a preference of the compiler and no feature. The folder belongs to
    one kind of processor, and real faults raise exceptions too. XLA reads the level when it is
    loaded; jax itself sets it to 1, and its child processes inherit this.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def folder() -> Path | None:
    """The folder of programs for this processor; None if the user has no cache folder.

    A program is machine code for the kind of processor that compiled it, and may crash on another
    one; but several machines often share a home folder.
    """
    caches = _caches()
    return None if caches is None else caches / "flowlab" / "compiled" / _processor()


def _caches() -> Path | None:
    """The user's cache folder, by the convention of the operating system."""
    with suppress(RuntimeError):  # there is no home
        if sys.platform == "win32":
            return _absolute("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches"
        return _absolute("XDG_CACHE_HOME") or Path.home() / ".cache"
    return None


def _absolute(variable: str) -> Path | None:
    """The absolute path in an environment variable; relative paths are ignored by convention."""
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else None


def _processor() -> str:
    """A name for the processor model and the number of its cores.

    XLA divides the work of a program among the cores of the machine that compiled it.
    """
    told = _told_by_linux() or [platform.version(), platform.processor()]
    facts = "\n".join([platform.machine(), str(_cores()), *told])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _told_by_linux() -> list[str]:
    """The model and the features of the processors from Linux; empty on other systems."""
    try:
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    return sorted({line for line in lines if line.partition(":")[0].strip() in _OF_PROCESSOR})


def _forget_torn(place: Path) -> None:
    """Remove cache entries that were written incompletely, so that they lack the time of last use.

    JAX writes this time after the entry. It never replaces an entry, and up to jax 0.10 it adds no
    entry to a folder that contains an entry without its time.
    """
    from filelock import FileLock

    # If another process holds the lock, or if locks are impossible, nothing is changed.
    with suppress(OSError, NotImplementedError):
        if not place.is_dir():
            return
        with FileLock(place / ".lockfile", timeout=0):
            for entry in place.glob("*-cache"):
                if not entry.with_name(f"{entry.name.removesuffix('cache')}atime").exists():
                    entry.unlink()
