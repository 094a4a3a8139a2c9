"""The scripts' common parts: arguments, the machine, and the files that results go to."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("jax", "jaxlib", "diffrax", "optimistix", "equinox", "numpy", "scipy")
PEERS = ("torch", "torchode", "torchdiffeq", "heyoka", "gradsolve", "warp-lang")  # may be absent
PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")  # what JAX reaches accelerators by
GIB = 2**30


def parser(
    description: str, *, out: str = "file for the result as JSON; stdout if not given"
) -> argparse.ArgumentParser:
    """Arguments that every script takes; `out` is the help of `--out`."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--smoke", action="store_true", help="a small problem, once; nothing to read")
    made.add_argument("--out", type=Path, help=out)
    return made


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def devices() -> list[str]:
    """JAX's names of its local devices."""
    import jax

    return [f"{device.platform} {device.device_kind}" for device in jax.local_devices()]


def machine() -> dict[str, Any]:
    """The machine, in words, and the versions on it. Takes hold of the devices, as JAX does."""
    versions = {name: _version(name) for name in LIBRARIES}
    versions |= {name: found for name in (*PEERS, *PLUGINS) if (found := _version(name))}
    seen, cpu = devices(), f"CPU, {cores()} cores"
    on_cpu = seen[0].startswith("cpu")
    return {
        "device": cpu if on_cpu else f"{len(seen)} x {seen[0]}, {cpu}",
        **({} if on_cpu else _accelerator()),
        "processor": _processor(),
        "memory_gib": _memory_gib(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
    }


def age() -> float:
    """Seconds since this process began, imports and all; 0 where the system does not say."""
    mine, whole = Path("/proc/self/stat"), Path("/proc/uptime")
    if not (mine.exists() and whole.exists()):
        return 0.0
    began = int(mine.read_text("utf-8").rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(whole.read_text("ascii").split()[0]) - began


def free_memory() -> int | None:
    """Bytes that this process can still be given; None where the system does not say."""
    listed = Path("/proc/meminfo")
    if not listed.exists():
        return None
    fields = dict(line.split(":", 1) for line in listed.read_text("ascii").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and used.exists() and (allowed := limit.read_text("ascii").strip()) != "max":
        free = min(free, int(allowed) - int(used.read_text("ascii")))
    return free


def device_memory() -> int | None:
    """Bytes that JAX may use on its first device; None where it does not say, as on a CPU."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def _accelerator() -> dict[str, Any]:
    """Driver, backend and memory of the first accelerator."""
    import jax

    backend = " ".join(jax.local_devices()[0].client.platform_version.split())
    memory = device_memory()
    return {
        "driver": _nvidia_driver(),
        "backend": backend,
        "device_memory_gib": None if memory is None else round(memory / GIB, 1),
    }


def _nvidia_driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return answer.stdout.partition("\n")[0].strip() or None if answer.returncode == 0 else None


def _memory_gib() -> float | None:
    """The memory of the machine, where the system tells."""
    listed = Path("/proc/meminfo")
    if not listed.exists():
        return None
    fields = dict(line.split(":", 1) for line in listed.read_text("ascii").splitlines())
    return round(int(fields["MemTotal"].split()[0]) * 1024 / GIB, 1)


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
