"""Stores of runs that are already in memory, and the reading of all stores."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowlab._files import nearest
from flowlab.ensemble import Runs
from flowlab.store.metadata import (
    LENGTH,
    METADATA,
    check_readable,
    is_address,
    is_store,
    metadata_told,
    opened,
    versions,
    without_warnings,
)
from flowlab.store.replacement import bring_back, put_in_place, sibling, take_away

if TYPE_CHECKING:
    import xarray

__all__ = ["check_free", "description", "read", "remove", "write"]

DESCRIPTION = "flowlab_description"


def write(
    runs: "Runs | xarray.Dataset",
    path: str | os.PathLike[str],
    *,
    description: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write runs as a Zarr group of version 3, which `read` and `xarray.open_zarr` open.

    The attributes of the group hold the versions of flowlab, jax and diffrax, and the description
    as JSON. The group is written under another name and then renamed, so that the store at `path`
    is always complete. Missing parent folders are created.

    Args:
        runs: The result of `sweep`, or a Dataset.
        path: The folder to write.
        description: A JSON-ready description of the runs (loss, policy, target, tolerances, ...).
            None keeps the description of a Dataset that was read from a store.
        overwrite: True to replace a store at `path`. Nothing else is ever replaced.

    Raises:
        ValueError: If `runs` is neither Runs nor a Dataset, `description` is not JSON-ready, or
            `path` exists (with `overwrite`, if it is not a store of flowlab).
        OSError: If the folder cannot be written; the contents of `path` are then unchanged.
    """
    text = None if description is None else as_json(description)
    dataset = _as_dataset(runs)
    told = {} if text is None else {DESCRIPTION: text}
    bring_back(path)
    check_free(path, overwrite=overwrite)
    folder = Path(path).resolve()  # a link stays one: what it leads to is replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    half_written = sibling(folder)
    try:
        _write_group(dataset.assign_attrs({**versions(), **told}), half_written)
        _note_checksums(half_written)
        check_free(path, overwrite=overwrite)
        put_in_place(half_written, folder)
    except BaseException:
        shutil.rmtree(half_written, ignore_errors=True)
        raise


def read(path: str | os.PathLike[str]) -> "xarray.Dataset":
    """The runs in a store, as a Dataset whose values are read when they are needed.

    Values are verified by their checksums, block by block, when they are first read. If they are
    damaged, an OSError names the blocks and says how to repair them.

    Args:
        path: A folder that `write` or `flowlab.plans.run` wrote, or an address (`s3://...`).

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        NotADirectoryError: If `path` is a file.
        ValueError: If the folder is not a store of flowlab, or its metadata is damaged.
    """
    if is_address(path):
        return _opened(path)
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(
            f"Argument `path` must name a store of flowlab, but {folder} does not exist."
        )
    if not folder.is_dir():
        raise NotADirectoryError(
            f"Argument `path` must name a store of flowlab, but {folder} is a file."
        )
    check_readable(folder)
    if not is_store(folder):
        raise ValueError(
            f"Argument `path` must name a store of flowlab, but {folder} is another folder."
        )
    return _opened(folder)


def description(dataset: "xarray.Dataset") -> dict[str, Any]:
    """The description with which a store was written; empty if it had none."""
    return json.loads(dataset.attrs.get(DESCRIPTION, "{}"))


def check_free(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a path that `write` would refuse; for use before long work.

    Raises:
        ValueError: If `path` is taken, or if one of its parents is a file.
    """
    folder = Path(path)
    parent = nearest(folder.absolute().parent)
    if not parent.is_dir():
        raise ValueError(
            f"Argument `path` must lie in a folder, but {parent} is a file; give another path."
        )
    if not folder.exists() and not folder.is_symlink():
        return
    if not is_store(folder):
        torn = f" whose {METADATA} can be read" if (folder / METADATA).is_file() else ""
        raise ValueError(
            f"Argument `path` must be free, but {folder} exists and is not a store of "
            f"flowlab{torn}; give another path."
        )
    if not overwrite:
        raise ValueError(
            f"Argument `path` must be free, but {folder} exists; give another path, or "
            "`overwrite=True` to replace it."
        )


def remove(path: str | os.PathLike[str]) -> None:
    """Remove the store at a path, metadata first; do nothing if there is none.

    Raises:
        ValueError: If `path` holds anything but a store.
    """
    if is_address(path):
        import zarr

        zarr.open_group(str(path), mode="w", zarr_format=3)
        return
    folder = Path(path)
    check_free(folder, overwrite=True)
    if folder.exists():
        take_away(folder)


def _opened(path: str | os.PathLike[str]) -> "xarray.Dataset":
    import xarray

    from flowlab.store.verification import verified

    group = opened(path, write=False)
    with metadata_told(path):
        return verified(xarray.open_zarr(str(path), chunks=None), group, path)


def _write_group(dataset: "xarray.Dataset", folder: Path) -> None:
    with without_warnings():
        dataset.to_zarr(folder, mode="w-", zarr_format=3, consolidated=True)


def _note_checksums(folder: Path) -> None:
    """Write the checksums of all numbers in a group, computed as they are read back."""
    from flowlab.store.blocks import checksum
    from flowlab.store.verification import CHECKSUMS

    group = opened(folder, write=True)
    arrays = {name: np.asarray(array[...]) for name, array in group.arrays()}
    numbers = {name: values for name, values in arrays.items() if values.dtype.kind in "biuf"}
    import zarr

    with without_warnings():
        found = {name: int(checksum({name: values})) for name, values in numbers.items()}
        group.attrs.update({CHECKSUMS: found})
        zarr.consolidate_metadata(group.store)


def as_json(description: Mapping[str, Any]) -> str:
    """A description as JSON text.

    Raises:
        ValueError: If the description is not JSON-ready.
    """
    try:
        return json.dumps(dict(description), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "Argument `description` must consist of dicts, lists, texts and finite numbers, "
            f"but is {description!r} ({error})."
        ) from error


def _as_dataset(runs: "Runs | xarray.Dataset") -> "xarray.Dataset":
    import xarray

    if isinstance(runs, Runs):
        return runs.to_xarray(grid=False)
    if isinstance(runs, xarray.Dataset):
        whole = runs.copy()
        whole.attrs.pop(LENGTH, None)  # which says that a store is filled block by block
        return whole
    raise ValueError(
        f"Argument `runs` must be Runs or a Dataset, but is of type {type(runs).__name__}."
    )
