"""The place of a store, and the hidden names beside it, while it is made or replaced.

What is not yet whole ends in `.partial`, and may be removed by whoever comes next. A whole store
that another one replaces ends in `.replaced` until that stands in its place: where a process was
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
    """A new hidden name beside a place, for what is not yet whole."""
    return _named(folder, _PARTIAL)


def put_in_place(new: Path, folder: Path) -> None:
    """Rename a whole store to its place; the one that stood there goes only once it has gone well.

    Its files are removed under another name, metadata first: half removed, it is no store.
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
    """Mend what a process left that was killed while it replaced a store.

    The store goes back to its place where none stands there now; else what is left of it is
    removed. Only for who alone writes to the path.
    """
    folder = Path(path).resolve()
    for left in _beside(folder, _REPLACED):
        if is_store(folder) or not is_store(left):
            shutil.rmtree(left, ignore_errors=True)
        elif not folder.exists():
            os.rename(left, folder)


def lost(path: str | os.PathLike[str]) -> bool:
    """True where nothing stands at a path, but the store that did can be brought back."""
    folder = Path(path).resolve()
    return not folder.exists() and any(map(is_store, _beside(folder, _REPLACED)))


def folder_of(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """The folder that a path leads to, whatever it is called; None for an address, or nothing."""
    if is_address(path):
        return None
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def clear(folder: Path) -> None:
    """Remove what was left half made beside a place."""
    for left in _beside(folder, _PARTIAL):
        shutil.rmtree(left, ignore_errors=True)


def take_away(folder: Path) -> None:
    """Remove a store, metadata first, so that half removed it is none."""
    (folder / METADATA).unlink()
    shutil.rmtree(folder)


def _named(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.{ending}")


def _beside(folder: Path, ending: str) -> Iterator[Path]:
    """The entries whose names `_named` made; those of `s.zarr` beside `s` differ."""
    digits = "[0-9a-f]" * len(uuid.uuid4().hex)
    return iter(sorted(folder.parent.glob(f".{glob.escape(folder.name)}.{digits}.{ending}")))
