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
        package: Its name.
        homes: The names that it offers, by the submodule that defines them.
        submodules: Further modules that are reached as its attributes.
        hint: What the error says besides, of a name that is not offered.
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
