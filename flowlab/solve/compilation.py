"""Compilation of the engine's programs, and the cache of compiled programs.

A program is compiled once for each combination of functions, dtype and shapes. Functions are
compared by the fingerprint of their operations (`fingerprints`). Numbers are arguments of the
compiled program, so that another value of a hyper-parameter, or other starts, compile nothing.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, cast

import equinox as eqx
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import PyTree

from flowlab.solve.rows import in_rows

__all__ = ["Program", "compiled", "exact_products"]

_QUICKLY = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""On a CPU, code by XLA's older way and without LLVM's optimisations: half of the compilation, and
a program that takes several times as long, since its exponentials go one by one. One thread makes
it: to part it among several takes longer than there is to gain."""

_LIGHTLY = {"xla_backend_optimization_level": 1}
"""On a CPU, LLVM's first level. Programs that spend their time in matrix products, which are
compiled beforehand, run as fast, and are compiled in three quarters of the time."""

_SOUNDLY = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""On a CPU, matrix products by XLA itself. The library that jax 0.10 hands some of them to, fused
with what is around them, gives wrong numbers in float32: of four gradients of a small language
model, taken together, the last three were off by factors. jax 0.12 is right with it."""


def compiled(
    function: Callable[..., Any], *, optimise: bool = True, lightly: bool = False
) -> Callable[..., Any]:
    """A function that compiles itself when it is first called, as `equinox.filter_jit` does.

    It takes a further argument `operations`, the fingerprint of the functions in its arguments, and
    is compiled again for another fingerprint.

    Args:
        function: The function to compile.
        optimise: False to compile quickly, for a program that runs briefly.
        lightly: True for a program that is called a few times and consists mostly of the matrix
            products of a model.
    """

    def traced(operations: str, *arguments: Any) -> Any:
        del operations  # which tells two programs apart that are otherwise the same
        with in_rows(optimise):
            return _with_constants_of_its_own(function, *arguments)

    traced.__name__ = traced.__qualname__ = function.__name__  # the name of the program in JAX

    @cache
    def program() -> Callable[..., Any]:
        return eqx.filter_jit(compiler_options=_options(optimise, lightly))(traced)  # type: ignore[call-overload]

    def call(*arguments: Any, operations: str = "") -> Any:
        with exact_products():
            return program()(operations, *arguments)

    return call


class Program:
    """A compiled function of a problem and of arrays, bound to one problem for many calls.

    A call is much cheaper than a call of a `compiled` function, which flattens all its arguments
    each time.

    Args:
        function: The function to compile; its first argument is the problem.
        problem: Any PyTree. Leaves that are not arrays become constants of the compiled code.
        operations: The fingerprint of the functions in the problem.
        optimise: False to compile quickly, for a program that runs briefly.

    Attributes:
        fresh: Whether the first call compiles: True unless a problem that differs only in the
            values of its arrays was bound before.
    """

    def __init__(
        self, function: Callable[..., Any], problem: Any, *, optimise: bool, operations: str = ""
    ) -> None:
        leaves, structure = jax.tree.flatten(problem)
        arrays = [eqx.is_array(leaf) for leaf in leaves]
        self._arrays = [leaf for leaf, is_one in zip(leaves, arrays, strict=True) if is_one]
        others = tuple(
            None if is_one else leaf for leaf, is_one in zip(leaves, arrays, strict=True)
        )
        before = _bound.cache_info().misses
        self._call = _bound(function, structure, tuple(arrays), others, optimise, operations)
        self.fresh = _bound.cache_info().misses > before

    def __call__(self, *arguments: Any) -> Any:
        with exact_products():
            return self._call(self._arrays, *arguments)

    @property
    def key(self) -> Any:
        """The key of the compiled code, shared by programs that differ only in array values."""
        return self._call

    def lowered(self, *arguments: Any, platform: str | None = None) -> Any:
        """Lower the program for the shapes of the arguments, for this platform or another."""
        platforms, program = None if platform is None else (platform,), cast(Any, self._call)
        with exact_products():
            return program.trace(self._arrays, *arguments).lower(lowering_platforms=platforms)

    def run(self, executable: Callable[..., Any], device: Any, *arguments: Any) -> Any:
        """Call the program on a device, with code compiled for a program with the same key."""
        return executable(jax.device_put(self._arrays, device), *arguments)


@lru_cache(maxsize=256)
def _bound(
    function: Callable[..., Any],
    structure: Any,
    arrays: tuple[bool, ...],
    others: tuple[Any, ...],
    optimise: bool,
    operations: str,
) -> Any:
    del operations  # which tells two programs apart that are otherwise the same

    def flat(given: list[Any], *arguments: Any) -> Any:
        left = iter(given)
        leaves = [
            next(left) if is_one else other for is_one, other in zip(arrays, others, strict=True)
        ]
        with in_rows(optimise):
            problem = jax.tree.unflatten(structure, leaves)
            return _with_constants_of_its_own(function, problem, *arguments)

    return jax.jit(flat, compiler_options=_options(optimise))


def _with_constants_of_its_own(function: Callable[..., Any], *arguments: Any) -> PyTree[Any]:
    """Trace a function with fresh copies of the NumPy arrays that it captures.

    JAX caches its conversion of a NumPy array, with values and precision, as long as a program
    holds the array. Fresh copies are converted again, so that arrays that have changed since, or
    are used in another precision, have their present values.
    """
    traced, shapes, rest = eqx.filter_make_jaxpr(function)(*arguments)
    constants = [
        np.array(constant, variable.aval.dtype) if isinstance(constant, np.ndarray) else constant
        for variable, constant in zip(traced.jaxpr.constvars, traced.consts, strict=True)
    ]
    given = [leaf for leaf in jax.tree.leaves(arguments) if eqx.is_array(leaf)]
    results = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, constants))(*given)
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(shapes), results), rest)


def _options(optimise: bool, lightly: bool = False) -> dict[str, Any] | None:
    if jax.default_backend() != "cpu":
        return None
    return dict(_known_options(optimise, lightly)) or None


def exact_products() -> Any:
    """A context in which matrix products keep the precision of their dtype.

    By default, accelerators round the factors of a float32 product to about ten bits. The field is
    then so rough that the step-size control takes very many steps.
    """
    return jax.default_matmul_precision("highest")


@cache
def _known_options(optimise: bool, lightly: bool) -> tuple[tuple[str, Any], ...]:
    """The compiler options that this release of XLA accepts; they differ between releases."""

    def are_known(options: dict[str, Any]) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options=options)()
        except Exception:
            return False
        return True

    wanted = _SOUNDLY | (_LIGHTLY if lightly else {}) | ({} if optimise else _QUICKLY)
    if not are_known(wanted):
        wanted = {name: value for name, value in wanted.items() if are_known({name: value})}
    return tuple(wanted.items())
