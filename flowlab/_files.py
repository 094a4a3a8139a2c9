"""Files and folders that results are written to."""

import json
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["NotWritableError", "check_folder", "check_writable", "nearest", "write_json"]


class NotWritableError(OSError):
    """A file or folder cannot be written; the message names the argument that gives it."""


def nearest(path: Path) -> Path:
    """A path that exists: the one given, or else the nearest above it."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def check_writable(what: str, path: Path) -> None:
    """Refuse a path at which nothing can be written, by writing a file that is gone at once.

    Args:
        what: The argument or option that names it, as the message begins.
        path: A file or folder, which need not be there yet.

    Raises:
        NotWritableError: If it, or the nearest folder that is there, cannot be written to.
    """
    there = nearest(path)
    folder = there if there.is_dir() else there.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise NotWritableError(
            f"{what} must be in a folder that can be written, but is {path}, and {folder} cannot: "
            f"{error.strerror}."
        ) from None


def check_folder(what: str, folder: Path, mark: str) -> None:
    """Refuse a folder to write to that is a file, or holds something else than earlier results.

    Args:
        what: The argument or option that names it, as the message begins.
        folder: The folder, which need not be there yet.
        mark: A file that is there wherever results were written before.

    Raises:
        ValueError: If it, or what it is to lie in, is a file, or it holds something else.
        NotWritableError: If it cannot be written to.
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


def write_json(record: Any, path: Path, *, indent: int | None = 1) -> None:
    """Write what JSON holds; a number that is not finite is refused.

    Args:
        record: What to write.
        path: The file.
        indent: Spaces before what is within, each on a line of its own; None for a single line.

    Raises:
        ValueError: If a number is not finite.
    """
    text = json.dumps(record, indent=indent, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
