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


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that every script takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--smoke", action="store_true", help="a small problem, once; nothing to read")
    made.add_argument("--out", type=Path, help="file for the result as JSON; stdout if not given")
    return made


def machine() -> dict[str, Any]:
    """The machine, in words, and the versions on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {
        "device": f"CPU, {cores} cores",
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
    }


def emit(result: dict[str, Any], out: Path | None) -> None:
    """Write a result with the machine it was measured on."""
    text = json.dumps({"machine": machine(), **result}, indent=2)
    if out is None:
        sys.stdout.write(f"{text}\n")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"{text}\n", encoding="utf-8")
