"""The options of the command, which are also the entries of recipes, and errors that name them.

It imports only the standard library, so that `flowlab --help` answers at once.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

from flowlab._names import did_you_mean, key, meant

__all__ = [
    "OF_POLICY",
    "OF_SWEEP",
    "OPTIONS",
    "Option",
    "OptionError",
    "as_entry_named",
    "as_flag",
    "as_option_named",
    "check",
    "filled",
    "implied",
    "refuse_idle",
    "refuse_twice",
    "refuse_unless",
    "spelled",
]

_TYPES = {
    "a flag": bool,
    "a list of paths": list[Path],
    "a list of texts": list[str],
    "a number": float,
    "a path": Path,
    "a text": str,
    "a whole number": int,
    "numbers": list[float],
    "tables by name": dict,
    "two numbers": tuple[float, float],
    "two whole numbers": tuple[int, int],
}


@dataclass(frozen=True)
class Option:
    """An option of the command, and the entry of a recipe that has the same name.

    Attributes:
        group: The group: `loss`, `policy`, `starts`, `run`, or `command` for options of the command
            line that are not entries of a recipe.
        name: The name in Python and in a recipe.
        type: The type, in words; for a list, the command line takes one value at a time.
        help: The help text.
        help_of: Other help texts for some commands, by the name of the command.
        metavar: The placeholder of the value in the help; None for the type.
        flag: The name on the command line, in capitals for a positional argument; derived from
            `name` if empty.
        also: Further names on the command line, for commands in which these names are free.
        choices: The allowed words; empty if every value of the type is allowed.
        words: The words that the value may begin with (names of library functions), each with its
            `=` and placeholder if a number follows; they replace `{words}` in the help.
        default: The default value; None leaves the choice to the library.
        by: Another option on whose value the default depends; `default` is then a table.
        implied: Whether the value is inferred from other options: an option that has an effect with
            only one word of this option implies that word.
        instead: Other options, by type: a value of that type that is none of the choices was meant
            for that option.
        elsewhere: For a command without this option, the option that was probably meant, by the
            name of the command.
        least: The smallest allowed value.
        variable: An environment variable that also sets the option.
        only: Another option, followed by its words with which this option has an effect.
    """

    group: str
    name: str
    type: str
    help: str = ""
    help_of: Mapping[str, str] = field(default_factory=dict)
    metavar: str | None = None
    flag: str = ""
    also: Sequence[str] = ()
    choices: Sequence[str] = ()
    words: Sequence[str] = ()
    default: Any = None
    by: str | None = None
    implied: bool = False
    instead: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    least: int | None = None
    variable: str | None = None
    only: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Insert `words` into the help text."""
        object.__setattr__(self, "help", self.help.replace("{words}", self.listed))

    @property
    def listed(self) -> str:
        """The `words` as an enumeration: "a, b or c"."""
        return " or ".join(filter(None, (", ".join(self.words[:-1]), *self.words[-1:])))

    @property
    def takes(self) -> dict[str, str]:
        """For each of the `words`, the placeholder of the value after its `=`, or ""."""
        return {name: value for name, _, value in (word.partition("=") for word in self.words)}

    @property
    def annotation(self) -> Any:
        """The Python type of the option's values."""
        return _TYPES[self.type]


_TABLE = tomllib.loads(Path(__file__).with_name("options.toml").read_text(encoding="utf-8"))
OPTIONS = {
    name: Option(group, name, **keys)
    for group, options in _TABLE.items()
    for name, keys in options.items()
}
# The options whose names differ from the arguments of the library.
_OF_ARGUMENT = {
    "below": "measure",
    "betas": "beta",
    "chosen": "box_chosen",
    "level": "measure",
    "levels": "until",
    "of": "measure",
    "ratios": "rejected_kernel",
    "rejected": "box_rejected",
}
OF_SWEEP = tuple(name for name, option in OPTIONS.items() if option.group != "command")
OF_POLICY = tuple(name for name, option in OPTIONS.items() if option.group == "policy")


class OptionError(ValueError):
    """The error for a wrong option, worded for Python, a recipe file or the command line.

    Args:
        name: The name of the option.
        sentence: The message, without the option's name at its beginning and without a full stop.
            Names of other options stand in braces, `{policy}`; `{}` and `{!r}` stand for values.
        values: The values that are inserted into the message.
    """

    def __init__(self, name: str, sentence: str, *values: Any) -> None:
        super().__init__(name, sentence, *values)

    @property
    def name(self) -> str:
        """The name of the option."""
        return self.args[0]

    def of_another(self, name: str) -> "OptionError":
        """The same error about another option."""
        return OptionError(name, *self.args[1:])

    def __str__(self) -> str:
        """The message as a sentence that names entries of a recipe."""
        return f"Entry {self._told(_as_entry)}"

    def of_file(self) -> str:
        """The message about an entry of a recipe file, to be put after the name of the file."""
        return f"entry {self._told(_as_entry)}"

    def of_command(self) -> str:
        """The message with the options as they are written on the command line."""
        return self._told(as_flag, _as_option)

    def _told(
        self, spelled: Callable[[str], str], first: Callable[[str], str] | None = None
    ) -> str:
        name, sentence, *values = self.args
        others = {each: spelled(each) for each in OPTIONS}
        said = f"{(first or spelled)(name)} {sentence.format(*values, **others)}"
        return said if said.endswith("?") else f"{said}."


def as_flag(name: str) -> str:
    """An option as it is written on the command line; a positional argument in backticks."""
    flag = OPTIONS[name].flag if name in OPTIONS else ""
    return f"`{flag}`" if flag.isupper() else flag or f"--{name.replace('_', '-')}"


def as_option_named(message: str, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """A message about an argument of a function, reworded for the option of the command line.

    A message about an argument that is no option is returned unchanged.

    Args:
        message: The message.
        names: The options whose names differ from the argument's, by the name of the argument.
    """
    return _renamed(message, _as_option, as_flag, names)


def as_entry_named(message: str) -> str:
    """A message about an argument of a function, reworded for the entry of a recipe.

    A message about an argument that is no entry is returned unchanged.
    """
    return _renamed(message, lambda name: f"entry {_as_entry(name)}", _as_entry)


def _renamed(
    message: str,
    first: Callable[[str], str],
    others: Callable[[str], str],
    names: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """A message with its arguments renamed to options."""
    said = re.match(r"Argument `(\w+)`", message)
    name = "" if said is None else {**_OF_ARGUMENT, **names}.get(said[1], said[1])
    if said is None or name not in OPTIONS:
        return message

    def other(found: re.Match[str]) -> str:
        return others(found[1]) if found[1] in OPTIONS else found[0]

    return first(name) + re.sub(r"`(\w+)`", other, message[said.end() :])


def _as_option(name: str) -> str:
    flag = as_flag(name)
    return f"{'Option' if flag.startswith('--') else 'Argument'} {flag}"


def _as_entry(name: str) -> str:
    return f"`{name}`"


def refuse_unless(condition: bool, name: str, sentence: str, *values: Any) -> None:
    """Raise an `OptionError` about the option `name` unless a condition holds."""
    if not condition:
        raise OptionError(name, sentence, *values)


def refuse_twice(name: str, values: Sequence[Any]) -> None:
    """Raise an `OptionError` if a list has the same value twice."""
    once = len(set(values)) == len(values)
    refuse_unless(once, name, "must name each once, but is {}", list(values))


def spelled(name: str, value: Any) -> Any:
    """The value of an option in its standard spelling; unchanged if its meaning is not clear.

    Case, hyphens and underscores do not matter. For an option that has `words`, a comparison is
    also understood: `loss<0.1` as `loss_below=0.1`, `margin > 2` as `margin_above=2`, and
    `loss=0.1` if exactly one of the words begins with `loss`.
    """
    option = OPTIONS[name]
    if not isinstance(value, str):
        return value
    if option.choices:
        return meant(value, option.choices) or value
    parts = _WORDED.fullmatch(value) if option.words else None
    if parts is None:
        return value
    word, sign, number, space = parts.groups(default="")
    endings = {"<": ("below",), ">": ("above",)}.get(sign[:1], ("",))
    known = [each for each in option.takes if each.endswith(endings)]
    exact = meant(word, known)
    begun = [each for each in known if key(each.partition("_")[0]) == key(word) and sign]
    if exact is None and len(begun) != 1:
        return value
    return f"{exact or begun[0]}{'=' if sign else ''}{number}{space.lower()}"


# A word, a sign with a value, and a space (":u") after a colon.
_WORDED = re.compile(r"\s*([A-Za-z][\w -]*?)\s*(?:([<>]=?|==?)\s*([^:]*?))?\s*(:\w+)?\s*")


def check(name: str, value: Any) -> None:
    """Refuse an entry of a recipe with an unknown word or of the wrong type.

    Raises:
        OptionError: If the value is none of the option's words, or not of its type.
    """
    option = OPTIONS[name]
    if option.choices:
        known, near = ", ".join(option.choices), did_you_mean(str(value), option.choices)
        sentence = "must be one of {}, but is {!r}{}"
        refuse_unless(value in option.choices, name, sentence, known, value, near)
    else:
        right = _is_of(option.annotation, value)
        refuse_unless(right, name, "must be {}, but is {!r}", option.type, value)


def _is_of(annotation: Any, value: Any) -> bool:
    parts = get_args(annotation)
    if not parts:
        wanted = int | float if annotation is float else annotation
        return isinstance(value, wanted) and not isinstance(value, bool)
    many = get_origin(annotation) is list
    return (
        isinstance(value, list | tuple)
        and (many or len(value) == len(parts))
        and all(_is_of(parts[0], each) for each in value)
    )


def refuse_idle(asked: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise an `OptionError` for an option that was given and has no effect."""
    for option in (OPTIONS[name] for name in names):
        if asked[option.name] is None or _applies(option, asked):
            continue
        other, *words = option.only
        given = _word(asked[other])
        beside = f"without {{{other}}} {{}}" if given is None else f"with {{{other}}} {{}}"
        raise OptionError(option.name, f"has no effect {beside}", given or " or ".join(words))


def implied(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Options, with those filled in that other options imply, as a shape implies a grid.

    Only options marked as `implied` are filled in; with nothing to imply them, by their defaults.
    """
    found = dict(asked)
    for name in [name for name in asked if OPTIONS[name].implied and asked[name] is None]:
        pairs = [OPTIONS[each].only for each in asked if asked[each] is not None]
        words = [only[1] for only in pairs if len(only) == 2 and only[0] == name]
        found[name] = words[0] if words else OPTIONS[name].default
    return found


def filled(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Options, with defaults filled in for options that have an effect and were not given."""
    found = dict(asked)
    for name in [name for name, value in asked.items() if value is None]:
        option = OPTIONS[name]
        if _applies(option, asked):
            by = option.by and (asked[option.by] or OPTIONS[option.by].default)
            found[name] = option.default[by] if by else option.default
    return found


def _applies(option: Option, asked: Mapping[str, Any]) -> bool:
    """True if an option has an effect beside the others."""
    if not option.only:
        return True
    other, *words = option.only
    return (_word(asked[other]) or OPTIONS[other].default) in words


def _word(value: Any) -> str | None:
    """The word that an option begins with, such as `time` of `time=3`."""
    return None if value is None else str(value).partition("=")[0]
