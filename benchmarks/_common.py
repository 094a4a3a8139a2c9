"""What the scripts share: their arguments, the machine, and where results go."""

import argparse
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("jax", "jaxlib", "diffrax", "optimistix", "equinox", "numpy", "scipy")
PEERS = ("torch", "torchode", "torchdiffeq", "heyoka", "gradsolve", "warp-lang")  # may be absent


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that every script takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--smoke", action="store_true", help="a small problem, once; nothing to read")
    made.add_argument("--out", type=Path, help="file for the result as JSON; stdout if not given")
    return made


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """The machine, in words, and the versions on it."""
    versions = {name: _version(name) for name in LIBRARIES}
    versions |= {name: found for name in PEERS if (found := _version(name))}
    return {
        "device": f"CPU, {cores()} cores",
        "processor": _processor(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The model of the processor, where the system tells."""
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def emit(result: dict[str, Any], out: Path | None) -> None:
    """Write a result with the machine it was measured on."""
    text = json.dumps({"machine": machine(), **result}, indent=2)
    if out is None:
        sys.stdout.write(f"{text}\n")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"{text}\n", encoding="utf-8")
