"""Checkpoints of a training run or a flow line, from which it is resumed to the same bits."""

import hashlib
import os
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
from flowlab._files import check_writable
from flowlab.solve.captured import add_held

__all__ = ["Checkpoint", "History", "identity_of"]

_VERSIONED = ("jax", "jaxlib", "diffrax", "optax")  # whose releases may compute other bits

_Carry = TypeVar("_Carry")  # what the loop hands on, a PyTree of arrays


@dataclass
class History:
    """The record of a run so far, in one part for each call of its loop.

    Attributes:
        numbers: Numbers of steps, or flow times, after which states were recorded.
        rows: The leaves of the quantities that were recorded.
        steps: Means over the pairs of each step.
    """

    numbers: list[np.ndarray]
    rows: list[list[np.ndarray]]
    steps: list[np.ndarray]

    def joined(self) -> "History":
        """The record as of a single call."""
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
        """Refuse a path that cannot be written, before there is work to lose.

        Raises:
            ValueError: If it is a folder, or its parent does not exist.
            NotWritableError: If it cannot be written.
        """
        if self.path.is_dir() or not self.path.absolute().parent.is_dir():
            raise ValueError(
                f"Argument `checkpoint` must be a file in a folder that exists, but is {self.path}."
            )
        check_writable("Argument `checkpoint`", self.path)

    def read(self, begun: _Carry) -> tuple[_Carry, History] | None:
        """The checkpoint in the file; None if there is none.

        Args:
            begun: The initial carry of the run.

        Raises:
            ValueError: If it belongs to another run, or is not a checkpoint.
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
                "Argument `checkpoint` must be a new file or that of an earlier run, but "
                f"{self.path} is neither; name another."
            )
        if str(held["identity"]) != self.identity:
            raise ValueError(
                f"Argument `checkpoint` must be a new file or that of this run, but {self.path} is "
                "of another: of other parameters, data, steps or options, or made by other "
                "versions; name another."
            )
        arrays, rest = eqx.partition(begun, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        carry = [_like(held[f"carry_{index}"], leaf) for index, leaf in enumerate(leaves)]
        count = sum(name.startswith("row_") for name in held)
        rows = [held[f"row_{index}"] for index in range(count)]
        history = History([held["numbers"]], [rows], [held["steps"]])
        return eqx.combine(jax.tree.unflatten(structure, carry), rest), history

    def write(self, carry: PyTree[Any], history: History) -> None:
        """Replace the file atomically, so that the old or the new one is always intact."""
        seen = history.joined()
        held: dict[str, Any] = {"identity": np.array(self.identity)}
        leaves = jax.tree.leaves(eqx.filter(carry, eqx.is_array))
        held |= {f"carry_{index}": _plain(leaf) for index, leaf in enumerate(leaves)}
        held |= {f"row_{index}": leaf for index, leaf in enumerate(seen.rows[0])}
        held |= {"numbers": seen.numbers[0], "steps": seen.steps[0]}
        beside = self.path.with_name(f"{self.path.name}.part")
        with beside.open("wb") as file:
            np.savez(file, **held)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)


def identity_of(*parts: Any) -> str:
    """A digest of everything on which the bits of a run depend, versions included."""
    digest = hashlib.blake2b(digest_size=16)
    versions = [__version__, *map(metadata.version, _VERSIONED), jax.default_backend()]
    add_held(digest, [*versions, *parts])
    return digest.hexdigest()


def _plain(leaf: Any) -> np.ndarray:
    """An array in NumPy; the data of a random key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _like(held: np.ndarray, leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(held), impl=jax.random.key_impl(leaf))
    return jnp.asarray(held, leaf.dtype)
