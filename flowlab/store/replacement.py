"""The replacement of stores: hidden names beside a path, and recovery after a crash.

The name of an incomplete store ends in `.partial`; any process may remove it. While a new store is
put in place of an old one, the name of the old store ends in `.replaced`. If a process is killed at
this moment, the old store is the only complete one, and is renamed back.
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
    """A new hidden path beside the path of a store, for a store that is still incomplete."""
    return _named(folder, _PARTIAL)


def put_in_place(new: Path, folder: Path) -> None:
    """Rename a complete store to its path, and then remove the store that was there before.

    The old store is removed under another name and metadata first, so that a partly removed store
    is no longer recognised as a store.
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
    """Recover after a process was killed while it replaced a store.

    If there is no store at the path, the old store is renamed back; otherwise its remains are
    removed. No other process may write to the path during this call.
    """
    folder = Path(path).resolve()
    for left in _beside(folder, _REPLACED):
        if is_store(folder) or not is_store(left):
            shutil.rmtree(left, ignore_errors=True)
        elif not folder.exists():
            os.rename(left, folder)


def lost(path: str | os.PathLike[str]) -> bool:
    """True if no store is at a path, but the one that was there can be recovered."""
    folder = Path(path).resolve()
    return not folder.exists() and any(map(is_store, _beside(folder, _REPLACED)))


def folder_of(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """The identity of the folder at a path, which does not depend on its name; or None."""
    if is_address(path):
        return None
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def clear(folder: Path) -> None:
    """Remove incomplete stores beside a path."""
    for left in _beside(folder, _PARTIAL):
        shutil.rmtree(left, ignore_errors=True)


def take_away(folder: Path) -> None:
    """Remove a store, metadata first, so that a partly removed one is not recognised as a store."""
    (folder / METADATA).unlink()
    shutil.rmtree(folder)


def _named(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.{ending}")


def _beside(folder: Path, ending: str) -> Iterator[Path]:
    """The hidden paths that `_named` made for a store, without those of longer names."""
    digits = "[0-9a-f]" * len(uuid.uuid4().hex)
    return iter(sorted(folder.parent.glob(f".{glob.escape(folder.name)}.{digits}.{ending}")))
