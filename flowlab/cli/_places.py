"""Files and folders that commands write: none is overwritten unasked, default names are free."""

import itertools
import mimetypes
from collections.abc import Sequence
from pathlib import Path

from flowlab._files import check_folder, check_writable
from flowlab._options import as_flag, refuse_unless

__all__ = ["PAGES", "PICTURES", "file", "folder", "store"]

PICTURES = ".png", ".svg", ".pdf"
PAGES = (".html",)
_INSTEAD = "; give another, or replace it with {overwrite}"


def file(
    option: str,
    given: Path | None,
    default: str = "",
    suffixes: Sequence[str] = (),
    *,
    overwrite: bool = False,
) -> Path:
    """The file to write, before there is work to lose; a free name like the default if none.

    Raises:
        ValueError: If it is there or is a folder, lies in none, or does not end as it should.
    """
    path = _free(Path(default)) if given is None else given
    refuse_unless(not path.is_dir(), option, "must be a file, but {} is a folder", path)
    there = path.parent.is_dir()
    refuse_unless(there, option, "must be a file in a folder that exists, but is {}", path)
    right = not suffixes or path.suffix.lower() in suffixes
    refuse_unless(right, option, "must end in {}, but is {}", ", ".join(suffixes), path)
    new = overwrite or not path.exists()
    refuse_unless(new, option, "must be a new file, but {} exists" + _INSTEAD, path)
    check_writable(f"Option {as_flag(option)}", path)
    return path


def folder(given: Path | None, default: str, mark: str, *, overwrite: bool = False) -> Path:
    """The folder to write, before there is work to lose; a free name like the default if none.

    Args:
        given: What was asked for.
        default: The name in place of that.
        mark: A file by which a folder is known as one of this command's.
        overwrite: Whether earlier results may be replaced.

    Raises:
        ValueError: If it holds earlier results or something else, or is or is called like a file.
    """
    path = _free(Path(default)) if given is None else given
    _check_name(str(path))
    check_folder(f"Option {as_flag('out')}", path, mark)
    new = overwrite or not (path / mark).exists()
    refuse_unless(new, "out", "must be a new folder, but {} holds earlier results" + _INSTEAD, path)
    return path


def store(given: str | None, default: str) -> str:
    """The store to write, a folder or an address.

    Raises:
        ValueError: If it is called like a file, or cannot be written to.
    """
    out = f"{default}.zarr" if given is None else given
    if "://" not in out:
        _check_name(out)
        check_writable(f"Option {as_flag('out')}", Path(out))
    return out


def _check_name(path: str) -> None:
    """Refuse what is called like a file of a known kind, but would be a folder."""
    is_file = mimetypes.guess_type(Path(path).name)[0] is not None and not Path(path).exists()
    words = "must be a folder, but {} is the name of a file; leave out its ending, {}"
    refuse_unless(not is_file, "out", words, path, Path(path).suffix)


def _free(path: Path) -> Path:
    """A path at which there is nothing: this one, or with the first number behind its name."""
    numbered = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())
