"""The state of this machine: versions, devices, compiled programs, backends."""

import os
import platform
from collections.abc import Iterator
from importlib import metadata, util

import jax
import numpy as np

from flowlab import __version__
from flowlab._tables import table
from flowlab.cli import _cache as cache
from flowlab.ensemble import backends, kernel
from flowlab.flow import preference_flow
from flowlab.losses import DPO
from flowlab.policies import RatioPlane
from flowlab.solve import make_method, make_problem, one_of
from flowlab.until import loss_below

__all__ = ["report"]

_LIBRARIES = "jax", "jaxlib", "diffrax", "equinox", "numpy", "scipy", "xarray", "zarr", "matplotlib"
_EXTRAS = {
    "models": ("safetensors", "tokenizers", "pyarrow"),
    "cluster": ("distributed",),
    "interactive": ("plotly",),
}
_WORKS_IN = {"gpu": np.float64, "tpu": np.float32}  # the widest floats that a chip computes with


def report() -> str:
    """A table of versions, devices, the cache of programs, extras, and the backends of sweeps."""
    return table([("flowlab", __version__), *_machine(), *_extras(), *_sweeps()])


def _machine() -> Iterator[tuple[str, str]]:
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield "python", f"{platform.python_version()} on {system}"
    for name in _LIBRARIES:
        yield name, metadata.version(name)
    found = [f"{each.platform}:{each.id} ({each.device_kind})" for each in jax.devices()]
    yield "devices", ", ".join(found)
    yield "cache", _programs()


def _programs() -> str:
    """The folder of compiled programs with its size."""
    if os.environ.get("FLOWLAB_NO_CACHE"):
        return "none, by FLOWLAB_NO_CACHE"
    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return f"your own, {given}, by JAX_COMPILATION_CACHE_DIR"
    place = cache.folder()
    if place is None:
        return "none, for there is no home to keep programs in"
    sizes = [entry.stat().st_size for entry in place.glob("*-cache")] if place.is_dir() else []
    return f"{place}: {len(sizes)} programs, {sum(sizes) / 2**20:.1f} MiB of at most 64"


def _extras() -> Iterator[tuple[str, str]]:
    for name, modules in _EXTRAS.items():
        missing = [module for module in modules if util.find_spec(module) is None]
        how = f"lacks {', '.join(missing)}: pip install 'flowlab-jax[{name}]'"
        yield name, how if missing else "installed"


def _sweeps() -> Iterator[tuple[str, str]]:
    """The backend of sweeps on this machine, and of a DPO sweep on each kind of chip."""
    here = {"blocks": "in blocks whose lanes share a step", "kernel": "in one kernel"}
    yield "sweeps", f"{here[backends.default_backend()]}, on {jax.devices()[0].device_kind}"
    for name, chip in kernel.CHIPS.items():
        reason = _refusal(name)
        how = "one kernel" if reason is None else f"in blocks, because of {reason}"
        precision = np.dtype(_WORKS_IN[name]).name
        yield f"on a {name.upper()}", f"{how}, in {precision} (tried by lowering for {chip.kind})"


def _refusal(name: str) -> str | None:
    """The reason why a DPO sweep on the ratio plane cannot be compiled for a chip; or None."""
    dtype = np.dtype(_WORKS_IN[name])
    starts = np.array([[0.4, 0.3]], dtype)
    with jax.enable_x64(dtype == np.float64):
        flow = preference_flow(DPO(), RatioPlane())
        target, state = loss_below(0.1), one_of(starts)
        problem = make_problem(flow, until=target, dtype=dtype, state=state, measures=())
        method = make_method(rtol=float(problem.rtol))
        return kernel.refusal(problem, method, starts, kernel.CHIPS[name])
