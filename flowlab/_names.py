"""Names as people write them: `Log-Ratio` means `log_ratio`, and `dop` is near `dpo`."""

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from types import MappingProxyType

__all__ = ["did_you_mean", "key", "meant"]

_NEAR = 0.6  # of difflib's ratio: one wrong letter in three, and what it takes for near itself
_BEHIND = 0.2  # the nearest, beyond which another one was hardly meant
_MOST = 2  # names that are proposed; of more, none is what was meant
_OUTSIDE = 4  # letters of a short name from which it may stand within a longer one


def key(name: str) -> str:
    """A name without what people write in several ways: case, hyphens, underscores, spaces."""
    return "".join(letter for letter in name.lower() if letter not in "-_ ")


def meant(name: str, known: Iterable[str]) -> str | None:
    """The one of the known names that a name is another way of writing; None if there is none."""
    return next((each for each in known if key(each) == key(name)), None)


def did_you_mean(
    name: str, known: Iterable[str], written: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The question whether the nearest known names were meant, to end a sentence with; or "".

    Args:
        name: What was typed.
        known: The names that there are.
        written: How the question writes some of them.
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
