"""Accepted spellings of options and values on the command line, translated for typer.

The table of options determines them: `--beta 0.1,0.3`, `--x=0,1`, `--count 1e5`, `--Time_Limit 3`,
`--policy Log-Ratio`, `--until 'loss<0.1'`, `--starts 10000`. Anything else is refused here, with an
error that quotes the word as it was typed.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flowlab._names import did_you_mean, key, meant
from flowlab._options import OPTIONS, as_flag, check, refuse_unless, spelled

__all__ = ["surplus", "understood"]

Others = Mapping[str, Sequence[Any]]
_NO_OTHERS: Others = MappingProxyType({})
_COMPARED = ("losses", "study")  # commands behind which names of losses may be meant for comparing
_FEW = 3  # options that begin with a letter; of more, none is what was meant
# A single letter after a single hyphen is no option, except -h, which typer handles.
_LETTER = re.compile(r"-(?!h)[A-Za-z]")
_LIKE_AN_OPTION = re.compile(r"--[A-Za-z][\w-]*|-[A-Za-z][\w-]+")
_BETWEEN_NAMES = re.compile(r",\s*(?=[A-Za-z_])")
_SEVERAL = {"numbers": "a number", "a list of texts": "a text", "a list of paths": "a path"}
_OF_TWO = {"two numbers": "a number", "two whole numbers": "a whole number"}


def understood(
    words: Sequence[str], parameters: Sequence[Any], command: str = "", others: Others = _NO_OTHERS
) -> list[str]:
    """The words of a command, in the spelling of the table of options.

    Args:
        words: The words typed after the command.
        parameters: The parameters of the command, from typer.
        command: The name of the command.
        others: The parameters of the other commands, by command.

    Raises:
        ValueError: If a word is no option, or if a value is wrong for its option.
    """
    flags = {flag: one for one in parameters for flag in one.opts if flag.startswith("--")}
    others = {**others, command: parameters}
    left, found = deque(words), list[str]()
    while left:
        word = left.popleft()
        typed, equals, value = word.partition("=")
        if word == "--":
            return [*found, word, *left]
        if _LETTER.fullmatch(word):
            raise ValueError(f"No such option: {word}{_begun(word[1], flags)}")
        if not _LIKE_AN_OPTION.fullmatch(typed):
            found.append(_argument(word, flags))
            continue
        flag = _flag(typed, flags, command, others)
        one = flags[flag]
        if getattr(one, "is_flag", False) or one.name not in OPTIONS:
            found.append(flag + equals + value)
            continue
        if equals:
            left.appendleft(value)
        told = bool(left) and (bool(equals) or not left[0].startswith("--"))
        refuse_unless(told, one.name, "must have a value, but has none")
        found += _written(one.name, _type(one), left, flags)
    return found


def surplus(command: str, first: Sequence[str], words: Sequence[str]) -> str:
    """The error message for a command with too many arguments, with a hint at what was meant.

    Args:
        command: The name of the command.
        first: The arguments that the command took.
        words: The arguments that the command does not take.
    """
    told = f"Command {command} takes no further argument, but is given {', '.join(words)}"
    if command not in _COMPARED:
        return f"{told}."
    from flowlab.losses import CATALOGUE

    names = [*first, *words]
    listed = ",".join(name.strip(",") for name in names)
    known = all(meant(name, CATALOGUE) for name in listed.split(",") if name)
    near = f"; did you mean flowlab study --losses {listed}?"
    return told + (near if known else ".")


def _flag(typed: str, flags: Mapping[str, Any], command: str, others: Others) -> str:
    """The option that a word names, with one or with two hyphens."""
    keys = {key(flag): flag for flag in flags}
    for flag, one in flags.items():
        for other in OPTIONS[one.name].also if one.name in OPTIONS else ():
            keys.setdefault(key(other), flag)
    if key(typed) not in keys:
        raise ValueError(f"No such option: {typed}{_near(typed, flags, command, others)}")
    return keys[key(typed)]


def _begun(letter: str, flags: Mapping[str, Any]) -> str:
    """The end of an error message that names the options that begin with a letter."""
    found = [flag for flag in flags if flag.startswith(f"--{letter.lower()}")]
    return f"; did you mean {' or '.join(found)}?" if 0 < len(found) <= _FEW else "."


def _near(typed: str, flags: Mapping[str, Any], command: str, others: Others) -> str:
    """The end of an error message about an unknown option, with the option that was meant."""
    found = next((one for one in OPTIONS.values() if key(as_flag(one.name)) == key(typed)), None)
    if found is not None and command in found.elsewhere:
        return f"; did you mean {found.elsewhere[command]}?"
    for one in others.get(command, ()):
        argument = (one.metavar or "").strip(".")
        if argument.isupper() and not one.opts[0].startswith("-") and key(argument) == key(typed):
            return f"; give the {argument} without it."
    has = [
        name
        for name, parameters in others.items()
        if key(typed) in {key(flag) for one in parameters for flag in one.opts} and name != command
    ]
    of_a_loss = _of_a_loss(typed.lstrip("-"), flags)
    if of_a_loss:
        return of_a_loss
    if has:
        return f", which is one of flowlab {', '.join(has)}."
    return did_you_mean(typed, flags) or "."


def _of_a_loss(typed: str, flags: Mapping[str, Any]) -> str:
    """The hint that a word is a hyper-parameter of a loss, which --set sets; or ""."""
    if "--set" not in flags:
        return ""
    from flowlab._parameters import parameter_names
    from flowlab.losses import CATALOGUE

    known = (name for loss in CATALOGUE.values() for name in parameter_names(loss))
    name = meant(typed, known)
    return "" if name is None else f"; did you mean --set {name}=...?"


def _argument(word: str, flags: Mapping[str, Any]) -> str:
    """A positional argument, unchanged; one like `beta=0.3` is refused with a hint."""
    name, equals, value = word.partition("=")
    known = {key(flag): flag for flag in flags}.get(key(name))
    if equals and known:
        raise ValueError(f"No argument can be {word}; did you mean {known} {value}?")
    return word


def _type(parameter: Any) -> str:
    """The type of an option in this command, which may take several values of a list at once."""
    found = OPTIONS[parameter.name].type
    return found if parameter.multiple else _SEVERAL.get(found, found)


def _written(name: str, type_: str, left: deque[str], flags: Mapping[str, Any]) -> Iterator[str]:
    """An option and its value, taken from the remaining words, in the form that typer reads."""
    flag = next(flag for flag, one in flags.items() if one.name == name)
    if type_ in _OF_TWO:
        yield from (flag, *_two(name, type_, left))
        return
    if type_ == "numbers":
        yield from (f"{flag}={text}" for text in _numbers(name, left))
        return
    text = left.popleft()
    if type_ == "a list of texts":
        yield from (f"{flag}={spelled(name, each)}" for each in _BETWEEN_NAMES.split(text))
    elif (other := _instead(name, text)) in {one.name for one in flags.values()}:
        left.appendleft(text)
        yield from _written(other, OPTIONS[other].type, left, flags)
    else:
        yield f"{flag}={_one(name, type_, text)}"


def _one(name: str, type_: str, text: str) -> str:
    """A single value, after a check against the table of options."""
    if type_ in _CHECKED:
        return _CHECKED[type_](name, text)
    value = spelled(name, text)
    if OPTIONS[name].choices:
        check(name, value)
    return value


def _instead(name: str, text: str) -> str:
    """The name of another option to which a value belongs; "" if it belongs to the given option."""
    option = OPTIONS[name]
    if spelled(name, text) in option.choices:
        return ""
    parts = len(_parts("two whole numbers", text))
    types = {1: "a whole number", 2: "two whole numbers"}
    return option.instead.get(types.get(parts, ""), "") if text[:1].isdigit() else ""


def _numbers(name: str, left: deque[str]) -> Iterator[str]:
    """Several numbers, separated by commas or given as separate words."""
    first = left.popleft()
    yield from (_number(name, each) for each in first.strip(",").split(","))
    while left and _is_number(left[0]):
        yield left.popleft()


def _two(name: str, type_: str, left: deque[str]) -> list[str]:
    """Two numbers, given as one word with a comma or as two words; a single size counts twice."""
    parts = _parts(type_, left.popleft())
    if len(parts) == 1 and left and _is_number(left[0]):
        parts.append(left.popleft())
    if len(parts) == 1 and type_ == "two whole numbers":
        parts *= 2
    given = OPTIONS[name].metavar
    refuse_unless(len(parts) == 2, name, "must be {}, but is {}", given, " ".join(parts))
    return [_CHECKED[_OF_TWO[type_]](name, part) for part in parts]


def _parts(type_: str, text: str) -> list[str]:
    """The numbers in one word, such as `0,1`, `(0, 1)`, or `64x32`."""
    between = "[,;x× ]+" if type_ == "two whole numbers" else "[,; ]+"
    return re.split(between, text.strip("()[] "))


def _number(name: str, text: str) -> str:
    refuse_unless(_is_number(text), name, "must be a number, but is {!r}", text)
    return text.strip()


def _whole(name: str, text: str) -> str:
    """A whole number as digits; it may be given as 1e5 or 10_000."""
    number = float(text) if _is_number(text) else 0.5
    refuse_unless(number.is_integer(), name, "must be a whole number, but is {!r}", text)
    whole, least = int(text) if text.strip("+-_").isdigit() else int(number), OPTIONS[name].least
    right = least is None or whole >= least
    refuse_unless(right, name, "must be at least {}, but is {}", least, whole)
    return str(whole)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_CHECKED: dict[str, Callable[[str, str], str]] = {"a number": _number, "a whole number": _whole}
