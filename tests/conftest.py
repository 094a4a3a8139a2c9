"""Sets up every test process: strict JAX, two CPU devices, examples without deadlines."""

import os
from collections.abc import Iterator

# JAX and matplotlib read these when they are imported, so they are set before; who wants the tests
# on another device says so in the environment.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# What goes to several devices is tested on any machine.
jax.config.update("jax_num_cpu_devices", 2)

# The first example pays for a compilation, so a deadline would measure the machine; the same
# examples in every run make a failure reproducible.
hypothesis.settings.register_profile(
    "flowlab",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("flowlab")


@pytest.fixture(scope="module", autouse=True)
def free_compiled_functions() -> Iterator[None]:
    """Bounds the memory of a run: what one file compiled is dropped before the next."""
    yield
    jax.clear_caches()
