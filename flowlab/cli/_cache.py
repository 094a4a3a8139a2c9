"""The cache of compiled programs in the user's cache folder.

It is JAX's own cache. Its settings are global to a process, so that only the command makes them,
and never the library.
"""

import hashlib
import os
import platform
import sys
import warnings
from contextlib import suppress
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# JAX looks at every entry when it adds one. So what compiles about as quickly as it is read back is
# not kept, and the folder is bounded; 64 MiB hold the programs of some hundred sweeps.
_SETTINGS = {
    "jax_compilation_cache_max_size": 2**26,
    # XLA's own files beside JAX's would be outside that bound.
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

    Nothing is done if the user has configured another cache, or if there is no folder for it. If
    the folder cannot be used, programs are silently compiled without it.
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

    Up to jax 0.10 at least, that is that the processor lacks "prefer-no-gather", which is no
    feature but a preference of the compiler's, on every processor with AVX-512. The folder is for
    one processor, and what is really wrong is an exception as well. XLA reads the level as it is
    loaded; 1 is what jax puts there itself, and hands on to the processes that it starts.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def folder() -> Path | None:
    """The folder of programs for this processor; None if the user has no cache folder.

    A program is machine code for the processor that compiled it, and may end the process on another
    one, whereas a home is often shared by several machines.
    """
    caches = _caches()
    return None if caches is None else caches / "flowlab" / "compiled" / _processor()


def _caches() -> Path | None:
    """The user's cache folder by the convention of the system."""
    with suppress(RuntimeError):  # there is no home
        if sys.platform == "win32":
            return _absolute("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches"
        return _absolute("XDG_CACHE_HOME") or Path.home() / ".cache"
    return None


def _absolute(variable: str) -> Path | None:
    """The absolute path in an environment variable; by convention, others are ignored."""
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else None


def _processor() -> str:
    """A name for the processor model and the number of cores.

    XLA divides the work of a program among the cores that were present when it was compiled.
    """
    told = _told_by_linux() or [platform.version(), platform.processor()]
    facts = "\n".join([platform.machine(), str(_cores()), *told])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _told_by_linux() -> list[str]:
    """Model and features of the processors on Linux; empty on other systems."""
    try:
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    return sorted({line for line in lines if line.partition(":")[0].strip() in _OF_PROCESSOR})


def _forget_torn(place: Path) -> None:
    """Remove entries that were written incompletely: those without the time of their last use.

    JAX writes that after the entry. It never replaces an entry, and up to jax 0.10 it adds none to
    a folder that holds one without its time.
    """
    from filelock import FileLock

    # Where another process holds the lock, or nobody can, all stays as it is.
    with suppress(OSError, NotImplementedError):
        if not place.is_dir():
            return
        with FileLock(place / ".lockfile", timeout=0):
            for entry in place.glob("*-cache"):
                if not entry.with_name(f"{entry.name.removesuffix('cache')}atime").exists():
                    entry.unlink()
