"""Checkpoints of a training run or a flow line; a resumed run has the same bits."""

import hashlib
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from flowlab import __version__
from flowlab._files import check_writable, replacing
from flowlab.solve.captured import add_held

__all__ = ["Checkpoint", "History", "check_place", "identity_of"]

_VERSIONED = ("jax", "jaxlib", "diffrax", "optax")  # packages whose releases may compute other bits

_Carry = TypeVar("_Carry")  # the carry of a loop, a PyTree of arrays


@dataclass
class History:
    """The record of a run so far, as a list with one part per call of the loop.

    Attributes:
        numbers: Numbers of steps, or flow times, at which quantities were recorded.
        rows: The leaves of the recorded quantities.
        steps: Means over the pairs, for each step.
    """

    numbers: list[np.ndarray]
    rows: list[list[np.ndarray]]
    steps: list[np.ndarray]

    def joined(self) -> "History":
        """The record with all parts joined to a single part."""
        rows = [np.concatenate(leaf) for leaf in zip(*self.rows, strict=True)]
        return History([np.concatenate(self.numbers)], [rows], [np.concatenate(self.steps)])


@dataclass(frozen=True)
class Checkpoint:
    """A file with the state of a run, from which it can be resumed.

    Attributes:
        path: The file.
        identity: A digest that identifies the run.
    """

    path: Path
    identity: str

    def check(self) -> None:
        """Refuse a path that cannot be written, before the run begins.

        Raises:
            ValueError: If the path is a folder, or its parent does not exist.
            NotWritableError: If the file cannot be written.
        """
        check_place(self.path)

    def read(self, begun: _Carry) -> tuple[_Carry, History] | None:
        """The carry of the loop and the history in the file; None if the file does not exist.

        Args:
            begun: The initial carry of the run's loop.

        Raises:
            ValueError: If the file belongs to another run, or is not a checkpoint.
        """
        if not self.path.is_file():
            return None
        try:
            with self.path.open("rb") as file:
                held = dict(np.load(file, allow_pickle=False))
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
            held = {}
        if "identity" not in held:
            raise ValueError(
                "Argument `checkpoint` must be a new file or a checkpoint of this run, but "
                f"{self.path} is neither; name another file."
            )
        if str(held["identity"]) != self.identity:
            raise ValueError(
                "Argument `checkpoint` must be a new file or a checkpoint of this run, but "
                f"{self.path} is from a run with other parameters, data, steps or options, or from "
                "other versions; name another file."
            )
        arrays, rest = eqx.partition(begun, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        carry = [_like(held[f"carry_{index}"], leaf) for index, leaf in enumerate(leaves)]
        count = sum(name.startswith("row_") for name in held)
        rows = [held[f"row_{index}"] for index in range(count)]
        history = History([held["numbers"]], [rows], [held["steps"]])
        return eqx.combine(jax.tree.unflatten(structure, carry), rest), history

    def write(self, carry: PyTree[Any], history: History) -> None:
        """Replace the file atomically, so that an intact checkpoint exists at any moment."""
        seen = history.joined()
        held: dict[str, Any] = {"identity": np.array(self.identity)}
        leaves = jax.tree.leaves(eqx.filter(carry, eqx.is_array))
        held |= {f"carry_{index}": _plain(leaf) for index, leaf in enumerate(leaves)}
        held |= {f"row_{index}": leaf for index, leaf in enumerate(seen.rows[0])}
        held |= {"numbers": seen.numbers[0], "steps": seen.steps[0]}
        with replacing(self.path) as file:
            np.savez(file, **held)


def check_place(path: Path) -> None:
    """Refuse a path at which no checkpoint can be written.

    Raises:
        ValueError: If the path is a folder, or its parent does not exist.
        NotWritableError: If the file cannot be written.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(
            f"Argument `checkpoint` must be a file in a folder that exists, but is {path}."
        )
    check_writable("Argument `checkpoint`", path)


def identity_of(*parts: Any) -> str:
    """A digest of `parts` and of the versions of libraries, on which the bits of a run depend."""
    digest = hashlib.blake2b(digest_size=16)
    versions = [__version__, *map(metadata.version, _VERSIONED), jax.default_backend()]
    add_held(digest, [*versions, *parts])
    return digest.hexdigest()


def _plain(leaf: Any) -> np.ndarray:
    """An array, or the data of a random key, as a NumPy array."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _like(held: np.ndarray, leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(held), impl=jax.random.key_impl(leaf))
    return jnp.asarray(held, leaf.dtype)
