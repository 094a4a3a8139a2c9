"""The replacement of stores: hidden names beside a path, and recovery after a crash.

What is not yet whole ends in `.partial`, and may be removed by whoever comes next. A whole store
that another store replaces ends in `.replaced` until that stands in its place: where a process was
killed in between, it is the only one, and goes back.
"""

import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from flowlab.store.metadata import METADATA, is_address, is_store

__all__ = ["bring_back", "clear", "folder_of", "lost", "put_in_place", "sibling", "take_away"]

_PARTIAL, _REPLACED = "partial", "replaced"


def sibling(folder: Path) -> Path:
    """A new hidden path beside a store's, for one that is still incomplete."""
    return _named(folder, _PARTIAL)


def put_in_place(new: Path, folder: Path) -> None:
    """Rename a complete store to its path; one that was there is removed only afterwards.

    It is removed under another name, metadata first, so that a partly removed one counts as no
    store.
    """
    if not folder.exists():
        os.rename(new, folder)
        return
    old = _named(folder, _REPLACED)
    try:
        os.rename(folder, old)
        os.rename(new, folder)
    except BaseException:
        if not folder.exists():
            os.rename(old, folder)
        raise
    take_away(old)


def bring_back(path: str | os.PathLike[str]) -> None:
    """Recover from a process that was killed while it replaced a store.

    The old store is renamed back if there is none at the path; otherwise its remains are removed.
    The caller must be the only one that writes to the path.
    """
    folder = Path(path).resolve()
    for left in _beside(folder, _REPLACED):
        if is_store(folder) or not is_store(left):
            shutil.rmtree(left, ignore_errors=True)
        elif not folder.exists():
            os.rename(left, folder)


def lost(path: str | os.PathLike[str]) -> bool:
    """True if there is nothing at a path, but its former store can be recovered."""
    folder = Path(path).resolve()
    return not folder.exists() and any(map(is_store, _beside(folder, _REPLACED)))


def folder_of(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """The identity of the folder at a path, independent of its name; None if there is none."""
    if is_address(path):
        return None
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def clear(folder: Path) -> None:
    """Remove incomplete stores that were left beside a path."""
    for left in _beside(folder, _PARTIAL):
        shutil.rmtree(left, ignore_errors=True)


def take_away(folder: Path) -> None:
    """Remove a store, metadata first, so that a partly removed one counts as no store."""
    (folder / METADATA).unlink()
    shutil.rmtree(folder)


def _named(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.{ending}")


def _beside(folder: Path, ending: str) -> Iterator[Path]:
    """The hidden paths beside a store's that `_named` has made, and not those of a longer name."""
    digits = "[0-9a-f]" * len(uuid.uuid4().hex)
    return iter(sorted(folder.parent.glob(f".{glob.escape(folder.name)}.{digits}.{ending}")))
