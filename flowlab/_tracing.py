"""Errors that JAX raises while it traces a user's function, told by what to write instead."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import equinox
import jax

__all__ = ["in_jax"]

# Frames of these are no lines of a user's.
_LIBRARIES = tuple(str(Path(file).parent) for file in (jax.__file__, equinox.__file__, __file__))


@contextmanager
def in_jax(name: str) -> Iterator[None]:
    """Explain the errors by which JAX refuses code that needs the value of an array while tracing.

    Args:
        name: The argument that holds the function.

    Raises:
        ValueError: In place of JAX's error; the message quotes the line of the user's function.
    """
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            f"Argument `{name}` must be a function that JAX can trace, but {_line(error)} needs "
            "the value of an array. Use `jax.numpy` in place of `numpy` and `math`, and "
            "`jnp.where` in place of `if`."
        ) from error


def _line(error: Exception) -> str:
    """The innermost line outside of the libraries at which an error was raised."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_LIBRARIES)
    ]
    if not frames or not frames[-1].line:
        return "its code"
    return f"`{frames[-1].line.strip()}` (line {frames[-1].lineno})"
