"""Files and folders that results are written to."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "NotWritableError",
    "check_folder",
    "check_writable",
    "nearest",
    "replacing",
    "write_json",
]


class NotWritableError(OSError):
    """The error for a file or folder that cannot be written; the message names the argument."""


def nearest(path: Path) -> Path:
    """The path itself if it exists, else its nearest existing parent folder."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def check_writable(what: str, path: Path) -> None:
    """Refuse a path that cannot be written to, by writing a temporary file.

    Args:
        what: The argument or option that gives the path; the message begins with it.
        path: A file or folder, which need not exist yet.

    Raises:
        NotWritableError: If the path, or its nearest existing parent, cannot be written to.
    """
    there = nearest(path)
    folder = there if there.is_dir() else there.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise NotWritableError(
            f"{what} must be in a folder that can be written, but is {path}, and {folder} cannot "
            f"be written: {error.strerror}."
        ) from None


def check_folder(what: str, folder: Path, mark: str) -> None:
    """Refuse a folder for results that is a file, or holds anything but earlier results.

    Args:
        what: The argument or option that gives the folder; the message begins with it.
        folder: The folder, which need not exist yet.
        mark: The name of a file that every folder with earlier results contains.

    Raises:
        ValueError: If the folder or its parent is a file, or the folder holds anything but earlier
            results.
        NotWritableError: If the folder cannot be written to.
    """
    there = nearest(folder)
    if not there.is_dir():
        raise ValueError(f"{what} must be a folder, but {there} is a file.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise ValueError(
            f"{what} must be a new folder, an empty one or one with earlier results, but {folder} "
            "holds something else."
        )
    check_writable(what, folder)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which replaces a file atomically: one of the two is always intact.

    Args:
        path: The file to replace, or to make.
    """
    beside = path.with_name(f"{path.name}.part")
    with beside.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(record: Any, path: Path, *, indent: int | None = 1) -> None:
    """Write a JSON-ready record; numbers that are not finite are refused.

    Args:
        record: The record.
        path: The file.
        indent: Spaces of indentation per level; None for a single line.

    Raises:
        ValueError: If a number is not finite.
    """
    text = json.dumps(record, indent=indent, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
