"""Other spellings of names (`Log-Ratio`, `dop`), and old names with their new ones."""

from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher
from types import MappingProxyType
from typing import Any, NoReturn

__all__ = ["FormerName", "did_you_mean", "former_names", "key", "meant"]

_NEAR = 0.6  # of difflib's ratio: about one wrong letter in three
_BEHIND = 0.2  # below the best ratio: names with a smaller one were hardly meant
_MOST = 2  # the most names that are proposed
_OUTSIDE = 4  # the fewest letters of a name that is searched for within longer names


def key(name: str) -> str:
    """A name in lower case, without hyphens, underscores and spaces, for comparison."""
    return "".join(letter for letter in name.lower() if letter not in "-_ ")


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known name that differs from `name` in spelling alone (`key`); None if there is none."""
    return next((each for each in known if key(each) == key(name)), None)


def did_you_mean(
    name: str, known: Iterable[str], written: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The end of a message, "; did you mean …?", with similar known names; "" if there are none.

    Args:
        name: The unknown name.
        known: The known names.
        written: Other texts for some of the known names, for display.
    """
    keys: dict[str, str] = {}
    for each in known:
        keys.setdefault(key(each), each)
    likeness = {each: SequenceMatcher(None, key(name), each).ratio() for each in keys}
    best = max([_NEAR, *likeness.values()])
    near = [each for each, like in likeness.items() if like >= best - _BEHIND and like >= _NEAR]
    if not near and len(key(name)) >= _OUTSIDE:
        near = [each for each in keys if key(name) in each or each in key(name)]
    near = sorted(near, key=likeness.__getitem__, reverse=True)[:_MOST]
    asked = [written.get(keys[each], keys[each]) for each in near]
    return f"; did you mean {' or '.join(asked)}?" if near else ""


def former_names(module: str, new: Mapping[str, str]) -> Callable[[str], NoReturn]:
    """A `__getattr__` for a module: access to an old name raises an error with the new name.

    Args:
        module: The name of the module.
        new: The new names, by the old ones.
    """

    def missing(name: str) -> NoReturn:
        if name in new:
            raise AttributeError(f"{module}.{name} is now {module}.{new[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing


class FormerName:
    """A class attribute under its old name: access raises an error with the new name.

    Args:
        new: The new name of the attribute.
    """

    def __init__(self, new: str) -> None:
        self._new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self._old = name

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        raise AttributeError(f"{owner.__name__}.{self._old} is now {owner.__name__}.{self._new}")
