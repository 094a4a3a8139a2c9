"""The metadata that make a folder or an address a store of flowlab."""

import json
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from flowlab import __version__

if TYPE_CHECKING:
    import zarr

__all__ = [
    "LENGTH",
    "MARK",
    "METADATA",
    "check_readable",
    "is_address",
    "is_store",
    "metadata_told",
    "opened",
    "versions",
    "without_warnings",
]

MARK = "flowlab_version"  # the attribute by which a store is known as one of flowlab's
LENGTH = "flowlab_block_length"  # and that by which it is known as filled block by block
METADATA = "zarr.json"  # the file that makes a folder a Zarr group of version 3
_FILTERS = threading.Lock()  # of warnings, which all threads share


def opened(path: str | os.PathLike[str], *, write: bool) -> "zarr.Group":
    """The Zarr group at a path or address.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If its metadata cannot be read.
    """
    import zarr

    check_readable(path)
    try:
        with metadata_told(path):
            return zarr.open_group(str(path), mode="r+" if write else "r", zarr_format=3)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Argument `path` must name a store of flowlab, but there is none at {path}."
        ) from None


def check_readable(path: str | os.PathLike[str]) -> None:
    """Refuse a folder whose metadata are damaged.

    Raises:
        ValueError: If the metadata are damaged.
    """
    if is_address(path) or not (Path(path) / METADATA).is_file():
        return
    with metadata_told(path):
        json.loads((Path(path) / METADATA).read_bytes())


@contextmanager
def metadata_told(path: str | os.PathLike[str]) -> Iterator[None]:
    """A context that replaces the errors of libraries about unreadable metadata by one sentence.

    Raises:
        ValueError: If the metadata cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except ImportError as error:  # of the library for a kind of address
        raise ValueError(
            f"Argument `path` must be an address that can be read, but {path} cannot be: {error}."
        ) from None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"Argument `path` must name a store whose metadata can be read, but {METADATA} in "
            f"{path} or below is damaged ({reason}); restore it from a copy, or remove the store "
            "and make it again."
        ) from None


def is_address(path: str | os.PathLike[str]) -> bool:
    """True for the address of an object store, which fsspec opens; false for a folder."""
    return "://" in str(path)


@contextmanager
def without_warnings() -> Iterator[None]:
    """A context without Zarr's warnings about consolidated metadata and texts in version 3.

    Consolidated metadata are needed, since xarray warns about a group without them. Warning filters
    are global, so that threads enter the context one after the other.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", message=".* does not have a Zarr V3 specification")
        yield


def is_store(folder: Path) -> bool:
    """True if a folder is a store of flowlab."""
    try:
        group = json.loads((folder / METADATA).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(group, dict) and MARK in (group.get("attributes") or {})


def versions() -> dict[str, str]:
    """The versions of libraries, which are written to every store."""
    others = {f"{name}_version": metadata.version(name) for name in ("jax", "diffrax")}
    return {MARK: __version__, **others}
