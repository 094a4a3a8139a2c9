"""Packages that import their parts on first use."""

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

__all__ = ["on_demand"]


def on_demand(
    package: str,
    homes: Mapping[str, Sequence[str]],
    submodules: Collection[str] = (),
    hint: Callable[[str], str] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package that imports its parts on first use.

    No submodule may have the name of an offered object: on import, Python would bind that name to
    the module.

    Args:
        package: The name of the package.
        homes: The names that the package offers, by the submodule that defines them.
        submodules: Submodules that are attributes of the package.
        hint: A function from an unknown name to a text that is added to the error; None for none.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def found(name: str) -> Any:
        if name in home:
            return getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        also = "" if hint is None or name.startswith("_") else hint(name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}{also}")

    return found, lambda: sorted({*home, *submodules})
