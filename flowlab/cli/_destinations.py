"""Files and folders that commands write; they are overwritten only on request."""

import itertools
import mimetypes
from collections.abc import Sequence
from pathlib import Path

from flowlab._files import check_folder, check_writable
from flowlab._options import as_flag, refuse_unless

__all__ = ["PAGES", "PICTURES", "file", "folder", "store"]

PICTURES = ".png", ".svg", ".pdf"
PAGES = (".html",)
_INSTEAD = "; give another path, or replace it with {overwrite}"


def file(
    option: str,
    given: Path | None,
    default: str = "",
    suffixes: Sequence[str] = (),
    *,
    overwrite: bool = False,
) -> Path:
    """The file to write, checked before any work; by default a file with a free name.

    Raises:
        ValueError: If the file exists or is a folder, if its folder does not exist, or if its
            suffix is wrong.
    """
    path = _free(Path(_clean(default))) if given is None else given
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
    """The folder to write, checked before any work; by default a folder with a free name.

    Args:
        given: The folder that the user gave, or None.
        default: The default name.
        mark: The name of a file that identifies results of this command.
        overwrite: Whether earlier results may be replaced.

    Raises:
        ValueError: If the folder holds earlier results or other files, if it is a file, or if it
            has a file's name.
    """
    path = _free(Path(_clean(default))) if given is None else given
    _check_name(str(path))
    check_folder(f"Option {as_flag('out')}", path, mark)
    new = overwrite or not (path / mark).exists()
    refuse_unless(new, "out", "must be a new folder, but {} holds earlier results" + _INSTEAD, path)
    return path


def _clean(name: str) -> str:
    """A name without the asterisks of a sum of losses, which some systems allow in no file name."""
    return name.replace("*", "")


def store(given: str | None, default: str) -> str:
    """The store to write, a folder or an address.

    Raises:
        ValueError: If the path has the name of a file, or cannot be written to.
    """
    out = f"{_clean(default)}.zarr" if given is None else given
    if "://" not in out:
        _check_name(out)
        check_writable(f"Option {as_flag('out')}", Path(out))
    return out


def _check_name(path: str) -> None:
    """Refuse the name of a folder if it has the suffix of a known file type."""
    is_file = mimetypes.guess_type(Path(path).name)[0] is not None and not Path(path).exists()
    words = "must be a folder, but {} is the name of a file; leave out its ending, {}"
    refuse_unless(not is_file, "out", words, path, Path(path).suffix)


def _free(path: Path) -> Path:
    """A path that does not exist: the given one, or the given one with the first free number."""
    numbered = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())
