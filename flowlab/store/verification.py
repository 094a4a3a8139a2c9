"""Arrays of stores that are verified when they are read, so that damage is an error."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from flowlab.store.blocks import Block, BlockStore, checksum, damage_told
from flowlab.store.replacement import folder_of

if TYPE_CHECKING:
    import xarray
    import zarr

__all__ = ["CHECKSUMS", "verified"]

CHECKSUMS = "flowlab_checksums"  # of the arrays of a store that was written as a whole, by name


def verified(
    dataset: "xarray.Dataset", group: "zarr.Group", path: str | os.PathLike[str]
) -> "xarray.Dataset":
    """A Dataset whose values are verified by their checksums when they are first read.

    In a store that is filled block by block, the blocks that are read and marked as done are
    verified. In other stores each array is verified as a whole. Values without a checksum are not
    verified.

    Args:
        dataset: The Dataset that xarray reads from the group.
        group: The group with the values.
        path: The name of the group in messages.
    """
    if BlockStore.is_in(group):
        blocks = _Blocks(BlockStore.of(group), path)
        checks = {name: blocks.check_of(name) for name in blocks.store.layout.variables}
    else:
        known: Any = dataset.attrs.get(CHECKSUMS, {})
        checks = {name: _whole(group[name], name, known[name], path) for name in known}
    place = folder_of(path)
    for name, check in checks.items():
        if name in dataset.variables:
            held = dataset[name].variable
            checked = _Verified(
                group[name], held.dtype, [partial(_check_is_there, path, place), check]
            )
            lazy = indexing.LazilyIndexedArray(checked)
            dataset[name] = (held.dims, lazy, held.attrs, held.encoding)
    return dataset


class _Verified(BackendArray):
    """An array of a group that verifies each part of it before reading it."""

    def __init__(
        self, array: Any, dtype: np.dtype, checks: Sequence[Callable[[Sequence[Any]], None]]
    ) -> None:
        self.array, self.checks = array, checks
        self.shape, self.dtype = array.shape, dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        for check in self.checks:
            check(key)
        return np.asarray(self.array.oindex[key], self.dtype)


def _check_is_there(
    path: str | os.PathLike[str], place: tuple[int, int] | None, key: Sequence[Any]
) -> None:
    """Refuse to read a store that has been replaced since it was opened, as by a larger store."""
    del key
    if folder_of(path) != place:
        raise OSError(
            f"{path} has been replaced since it was read, perhaps by a larger store; read it again."
        )


class _Blocks:
    """The blocks of a store, with a mask of the blocks that have been verified."""

    def __init__(self, store: BlockStore, path: str | os.PathLike[str]) -> None:
        self.store, self.path = store, path
        self._marks, self._checksums = store.marks()
        self._whole = np.zeros(self._marks.shape, bool)

    def check_of(self, name: str) -> Callable[[Sequence[Any]], None]:
        """The function that verifies a part of a variable, given its indices."""
        layout = self.store.layout
        cases = len(layout.shape) if layout.variables[name].of_cases else 0

        def check(key: Sequence[Any]) -> None:
            wanted = [
                np.atleast_1d(np.arange(n)[k])
                for n, k in zip(layout.shape[:cases], key[:cases], strict=True)
            ]
            wanted += [np.zeros(1, int)] * (len(layout.shape) - cases)
            starts = np.atleast_1d(np.arange(layout.count)[key[cases]])
            self._verify([*wanted, np.unique(starts // layout.length)])

        return check

    def _verify(self, places: list[np.ndarray]) -> None:
        region = np.ix_(*places)
        left = np.argwhere(self._marks[region] & ~self._whole[region])
        damages = []
        for index in left:
            place = tuple(int(at[i]) for at, i in zip(places, index, strict=True))
            found = self.store.damage(Block(place[:-1], place[-1]), self._checksums[place])
            if found is None:
                self._whole[place] = True
            else:
                damages.append(found)
        if damages:
            raise OSError(damage_told(damages, self._marks.size, self.path))


def _whole(
    array: Any, name: str, known: int, path: str | os.PathLike[str]
) -> Callable[[Iterable[Any]], None]:
    """The function that verifies an array as a whole."""
    seen = []

    def check(key: Iterable[Any]) -> None:
        del key
        if not seen and int(checksum({name: np.asarray(array[...])})) != known:
            raise OSError(
                f"`{name}` in {path} is damaged, since its checksum differs; restore the store "
                "from a copy, or make it again."
            )
        seen.append(name)

    return check
