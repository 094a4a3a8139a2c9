"""Errors that JAX raises while it traces a user's function, reworded with what to write instead."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import equinox
import jax

__all__ = ["ImproperFunctionError", "in_jax"]

# Frames in these folders are not lines of the user's code.
_LIBRARIES = tuple(
    f"{Path(file).parent}{os.sep}" for file in (jax.__file__, equinox.__file__, __file__)
)


class ImproperFunctionError(ValueError):
    """The refusal of a user's function, in a message that says what it must do."""


@contextmanager
def in_jax(name: str) -> Iterator[None]:
    """A context that rewords JAX's errors about code that needs the values of traced arrays.

    Args:
        name: The name of the argument with the function, for messages.

    Raises:
        ImproperFunctionError: Instead of JAX's error; the message quotes the line of the user's
            function.
    """
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise ImproperFunctionError(
            f"Argument `{name}` must be a function that JAX can trace, but {_line(error)} needs "
            "the value of an array. Use `jax.numpy` in place of `numpy` and `math`, and "
            "`jnp.where` in place of `if`."
        ) from error


def _line(error: Exception) -> str:
    """The line of the user's code at which an error was raised, for messages."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_LIBRARIES)
    ]
    if not frames or not frames[-1].line:
        return "its code"
    return f"`{frames[-1].line.strip()}` (line {frames[-1].lineno})"
