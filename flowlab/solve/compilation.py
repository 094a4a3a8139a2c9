"""How the engine's programs are compiled."""

from collections.abc import Callable
from functools import cache, lru_cache, wraps
from typing import Any

import equinox as eqx
import jax

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


def compiled(function: Callable[..., Any], *, optimise: bool = True) -> Callable[..., Any]:
    """A function that compiles itself when it is first called, as `equinox.filter_jit` does.

    Args:
        function: What to compile.
        optimise: False for a program that runs briefly and is to compile quickly.
    """

    @wraps(function)
    def traced(*arguments: Any) -> Any:
        with in_rows(optimise):
            return function(*arguments)

    @cache
    def program() -> Callable[..., Any]:
        return eqx.filter_jit(compiler_options=_options(optimise))(traced)  # type: ignore[call-overload]

    def call(*arguments: Any) -> Any:
        with exact_products():
            return program()(*arguments)

    return call


class Program:
    """A function of a problem and of arrays, compiled, and bound to one problem for many calls.

    A call costs a fraction of one by `compiled`, which takes its arguments apart each time.

    Args:
        function: What to compile; called with the problem first.
        problem: Any PyTree. What it holds beside arrays is compiled in.
        optimise: False for a program that runs briefly and is to compile quickly.

    Attributes:
        fresh: Whether no problem that is like this one but for the values of its arrays has been
            bound yet: the first call compiles.
    """

    def __init__(self, function: Callable[..., Any], problem: Any, *, optimise: bool) -> None:
        leaves, structure = jax.tree.flatten(problem)
        arrays = [eqx.is_array(leaf) for leaf in leaves]
        self._arrays = [leaf for leaf, is_one in zip(leaves, arrays, strict=True) if is_one]
        others = tuple(
            None if is_one else leaf for leaf, is_one in zip(leaves, arrays, strict=True)
        )
        before = _bound.cache_info().misses
        self._call = _bound(function, structure, tuple(arrays), others, optimise)
        self.fresh = _bound.cache_info().misses > before

    def __call__(self, *arguments: Any) -> Any:
        with exact_products():
            return self._call(self._arrays, *arguments)


@lru_cache(maxsize=256)
def _bound(
    function: Callable[..., Any],
    structure: Any,
    arrays: tuple[bool, ...],
    others: tuple[Any, ...],
    optimise: bool,
) -> Callable[..., Any]:
    def flat(given: list[Any], *arguments: Any) -> Any:
        left = iter(given)
        leaves = [
            next(left) if is_one else other for is_one, other in zip(arrays, others, strict=True)
        ]
        with in_rows(optimise):
            return function(jax.tree.unflatten(structure, leaves), *arguments)

    return jax.jit(flat, compiler_options=_options(optimise))


def _options(optimise: bool) -> dict[str, Any] | None:
    quick = not optimise and jax.default_backend() == "cpu"
    return dict(_known_quick_options()) or None if quick else None


def exact_products() -> Any:
    """A context in which matrix products keep the precision of their dtype.

    Accelerators round the factors of a float32 product to ten bits or so unless told otherwise,
    which a step-size control takes for a rough field, and answers with very many steps.
    """
    return jax.default_matmul_precision("highest")


@cache
def _known_quick_options() -> tuple[tuple[str, Any], ...]:
    """Those of the options that this release of XLA has; they come and go without notice."""

    def are_known(options: dict[str, Any]) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options=options)()
        except Exception:
            return False
        return True

    known = _QUICKLY
    if not are_known(_QUICKLY):
        known = {name: value for name, value in _QUICKLY.items() if are_known({name: value})}
    return tuple(known.items())
