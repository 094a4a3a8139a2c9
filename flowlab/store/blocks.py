"""Stores that any number of processes fill block by block, in any order.

A store is a Zarr group of version 3. All arrays are allocated at the beginning, so that
`xarray.open_zarr` opens the store at any time. A case is one combination of a loss, a policy,
values of the hyper-parameters, and so on. A block holds the runs of one case from consecutive
starts; it is one chunk of every array. The results of a block are written first, then their
checksum, then the time at which the block was finished. This time marks the block as done. A
process that is interrupted leaves no mark, and a block that is written twice has the same bits.

Letters in shapes: c axes of cases, n starts, b blocks of a case.
"""

import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from flowlab.store.layout import START, Block, Layout, Variable
from flowlab.store.metadata import (
    LENGTH,
    MARK,
    is_address,
    metadata_told,
    opened,
    versions,
    without_warnings,
)
from flowlab.store.replacement import bring_back, clear, folder_of, sibling

if TYPE_CHECKING:
    import xarray
    import zarr

__all__ = ["Block", "BlockStore", "Damage", "checksum", "damage_told"]

CHECKSUM, SECONDS, FINISHED = "block_checksum", "block_seconds", "block_finished"
_ABOUT_BLOCKS = {
    CHECKSUM: (np.uint64, "checksum of the block's results, CRC-32"),
    SECONDS: (np.float64, "seconds of work on the block"),
    FINISHED: (np.float64, "when the block was finished, seconds since 1970 (UTC); NaN before"),
}
_COORDINATES = "coordinates"  # by which xarray knows which arrays are some


_SHOWN = 5  # damaged blocks that are named; of the others their number


class Damage(NamedTuple):
    """A block that is marked as done although its data differ from those that were written.

    Attributes:
        block: The block.
        reason: A phrase that describes the damage.
    """

    block: Block
    reason: str


class BlockStore:
    """A store that is filled block by block.

    Attributes:
        layout: The arrays and blocks of the store.
    """

    def __init__(
        self,
        group: "zarr.Group",
        layout: Layout,
        place: tuple[str | os.PathLike[str], tuple[int, int] | None] | None = None,
    ) -> None:
        self._group = group
        self.layout = layout
        self._place = place  # its path, and the folder that this led to when it was opened

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], layout: Layout, attributes: Mapping[str, Any]
    ) -> "BlockStore":
        """Allocate a store at a path, or at the address of an object store (`s3://...`).

        A folder is allocated under another name and then renamed, so that the store at `path` is
        always complete.

        Args:
            path: The path or address, which must be free.
            layout: The arrays and blocks of the store.
            attributes: Further attributes of the group, JSON-ready: a `description`, and what is
                needed to resume the store.

        Raises:
            FileExistsError: If the path is not free.
            OSError: If the store cannot be written.
        """
        if is_address(path):
            return cls.laid_out(path, layout, attributes)
        place = Path(path).resolve()
        bring_back(place)
        if place.exists():
            raise FileExistsError(f"Argument `path` must be free, but {path} exists.")
        place.parent.mkdir(parents=True, exist_ok=True)
        clear(place)
        half_made = sibling(place)
        try:
            _lay_out(str(half_made), layout, attributes)
            os.rename(half_made, place)
        except BaseException:
            shutil.rmtree(half_made, ignore_errors=True)
            raise
        return cls.open(place)

    @classmethod
    def laid_out(
        cls, path: str | os.PathLike[str], layout: Layout, attributes: Mapping[str, Any]
    ) -> "BlockStore":
        """Allocate a store at its final path; until this is finished, the store is incomplete."""
        _lay_out(str(path), layout, attributes)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, write: bool = True) -> "BlockStore":
        """The store at a path or address.

        Raises:
            FileNotFoundError: If there is nothing at the path.
            ValueError: If the path holds anything but a store that is filled block by block.
        """
        place = (path, folder_of(path))  # first: what is put there meanwhile is not this store
        group = opened(path, write=write)
        if not cls.is_in(group):
            raise ValueError(
                f"Argument `path` must name a store that is filled block by block, as "
                f"`flowlab sweep` writes it, but {path} is a different kind of store."
            )
        with metadata_told(path):
            return cls(group, _read_layout(group), place)

    @staticmethod
    def is_in(group: "zarr.Group") -> bool:
        """True if a group is a store of flowlab that is filled block by block."""
        return MARK in group.attrs and LENGTH in group.attrs

    @classmethod
    def of(cls, group: "zarr.Group") -> "BlockStore":
        """The store in a Zarr group."""
        return cls(group, _read_layout(group))

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the group."""
        return dict(self._group.attrs)

    def update(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes of the group."""
        import zarr

        with without_warnings():
            self._group.attrs.update(dict(attributes))
            zarr.consolidate_metadata(self._group.store)

    def done(self) -> Bool[np.ndarray, "*c b"]:
        """A mask of the blocks that are marked as done."""
        return np.isfinite(self.about(FINISHED))

    def about(self, name: str) -> Float[np.ndarray, "*c b"]:
        """One number for each block: its checksum, its seconds of work, or the time of its end.

        A number that cannot be read counts as missing.
        """
        array = self._array(name)
        try:
            return np.asarray(array[...])
        except Exception:  # one of many small files is torn: they are read one by one
            found = np.full(array.shape, array.fill_value, array.dtype)
            for place in np.ndindex(array.shape):
                try:
                    found[place] = array[place]
                except Exception:
                    continue
            return found

    def missing(self) -> list[Block]:
        """The blocks that are not done, in the order of cases and starts."""
        done = self.done()
        return [block for block in self.layout.blocks() if not done[(*block.case, block.number)]]

    def write(self, block: Block, runs: "xarray.Dataset", seconds: float) -> None:
        """Write the results of a block, then their checksum, then the mark that the block is done.

        Raises:
            ValueError: If the number of runs is not the number of starts in the block.
            OSError: If the results cannot be written, or if another store, perhaps with another
                layout, has replaced this one. The block is then not marked.
        """
        if self._place is not None and folder_of(self._place[0]) != self._place[1]:
            raise OSError(
                f"{self._place[0]} has been replaced since it was opened, perhaps by a larger "
                "store; run its plan again."
            )
        self._put(block, self._padded(block, runs), seconds, time.time())

    def copy(self, other: "BlockStore", block: Block, to: Block) -> bool:
        """Copy a block from another store if it is intact.

        Returns:
            True if the block was copied. False if it is not done in the other store, or if the
            block or the starts, which all cases share, are damaged.
        """
        first = Block((0,) * len(block.case), block.number)
        marks, checksums = other.marks()
        sources = [block, first] if not any(to.case) else [block]
        for one in sources:
            place = (*one.case, one.number)
            if not marks[place] or other.damage(one, checksums[place]) is not None:
                return False
        of_cases = self.layout.variables
        results = {
            name: other.values(name, block if of_cases[name].of_cases else first)
            for name in self._names(to)
        }
        place = (*block.case, block.number)
        self._put(to, results, *(float(other.about(name)[place]) for name in (SECONDS, FINISHED)))
        return True

    def _put(
        self, block: Block, results: Mapping[str, np.ndarray], seconds: float, finished: float
    ) -> None:
        for name, values in results.items():
            self._array(name)[self._region(name, block)] = values
        place = (*block.case, block.number)
        self._array(CHECKSUM)[place] = checksum(results)
        self._array(SECONDS)[place] = seconds
        self._array(FINISHED)[place] = finished

    def values(self, name: str, block: Block) -> np.ndarray:
        """The values of a variable in a block; the starts are the first axis."""
        return np.asarray(self._array(name)[self._region(name, block)])

    def marks(self) -> tuple[Bool[np.ndarray, "*c b"], np.ndarray]:
        """The mask of the blocks that are marked as done, and the checksums of all blocks."""
        return self.done(), self.about(CHECKSUM)

    def damaged(self) -> Iterator[Damage | None]:
        """For each block that is marked as done: the description of its damage, or None."""
        done, checksums = self.marks()
        for block in self.layout.blocks():
            place = (*block.case, block.number)
            if done[place]:
                yield self.damage(block, checksums[place])

    def damage(self, block: Block, known: np.uint64) -> Damage | None:
        """A description of the damage to a block with a known checksum; None if it is intact."""
        try:
            results = {name: self.values(name, block) for name in self._names(block)}
        except Exception as error:  # whatever a codec makes of bytes that are not its own
            return Damage(block, f"{type(error).__name__}: {error}")
        return None if checksum(results) == known else Damage(block, "its checksum differs")

    def forget(self, block: Block) -> None:
        """Remove the mark of a block, so that it counts as missing."""
        self._array(FINISHED)[(*block.case, block.number)] = np.nan

    def _array(self, name: str) -> "zarr.Array":
        return self._group[name]  # type: ignore[return-value]

    def _names(self, block: Block) -> list[str]:
        """The variables of a block; the first case also has the variables that all cases share."""
        first = not any(block.case)
        return sorted(n for n, v in self.layout.variables.items() if v.of_cases or first)

    def _region(self, name: str, block: Block) -> tuple[Any, ...]:
        starts = slice(*self.layout.part(block.number))
        return (*block.case, starts) if self.layout.variables[name].of_cases else (starts,)

    def _padded(self, block: Block, runs: "xarray.Dataset") -> dict[str, np.ndarray]:
        """The results of a block, padded to the shapes of the store."""
        found = {}
        for name in self._names(block):
            variable = self.layout.variables[name]
            values = np.asarray(runs[name].values, variable.dtype)
            wanted = (self.layout.starts_of(block.number), *variable.shape)
            if len(values) != wanted[0]:
                raise ValueError(
                    f"Argument `runs` must have the {wanted[0]} starts of the block, but has "
                    f"{len(values)}."
                )
            if values.shape != wanted:
                room = np.full(wanted, np.nan, variable.dtype)
                room[tuple(slice(length) for length in values.shape)] = values
                values = room
            found[name] = np.ascontiguousarray(values)
        return found


def damage_told(damages: Sequence[Damage], blocks: int, path: str | os.PathLike[str]) -> str:
    """A sentence on damaged blocks of a store: their number, their names and how to repair them."""
    shown = [str(each.block.number) for each in damages[:_SHOWN]]
    if any(each.block.case for each in damages):
        shown = [f"{each.block.number} of case {each.block.case}" for each in damages[:_SHOWN]]
    more = f" and {len(damages) - _SHOWN} more" if len(damages) > _SHOWN else ""
    be, it = ("is", "it") if len(damages) == 1 else ("are", "them")
    return (
        f"{len(damages)} of {blocks} blocks of {path} {be} damaged (block {', '.join(shown)}{more}:"
        f" {damages[0].reason}); `flowlab resume {path}` solves {it} again."
    )


def _lay_out(path: str, layout: Layout, attributes: Mapping[str, Any]) -> None:
    """Make a group with all its attributes and its arrays, which are still empty."""
    import zarr

    with without_warnings():
        group = zarr.open_group(path, mode="w-", zarr_format=3)
        for name, variable in layout.variables.items():
            _allocate(group, layout, name, variable)
        for name, (dtype, meaning) in _ABOUT_BLOCKS.items():
            shape = (*layout.shape, layout.blocks_of_a_case)
            group.create_array(
                name,
                shape=shape,
                chunks=(1,) * len(shape),
                dtype=dtype,
                fill_value=np.nan if dtype is np.float64 else 0,
                dimension_names=(*layout.axes, "block"),
                attributes={"long_name": meaning},
            )
        for name, values in {**layout.axes, **layout.labels}.items():
            _write_labels(group, name, np.asarray(values))
        coordinates = [n for n, v in layout.variables.items() if v.is_coordinate]
        group.attrs.update(
            {
                **layout.attributes,
                **versions(),
                **({_COORDINATES: " ".join(coordinates)} if coordinates else {}),
                LENGTH: layout.length,
                **attributes,
            }
        )
        zarr.consolidate_metadata(group.store)


def _allocate(group: "zarr.Group", layout: Layout, name: str, variable: Variable) -> None:
    lead = tuple(layout.axes) if variable.of_cases else ()
    floating = np.dtype(variable.dtype).kind == "f"
    group.create_array(
        name,
        shape=(*(layout.shape if lead else ()), layout.count, *variable.shape),
        chunks=(*(1 for _ in lead), layout.length, *variable.shape),
        dtype=variable.dtype,
        fill_value=np.nan if floating else 0,
        # Floats hardly compress, and compression would take a quarter of the time to solve.
        compressors=None,
        dimension_names=(*lead, START, *variable.dims),
        attributes={name: _plain(value) for name, value in variable.attributes.items()},
    )


def _write_labels(group: "zarr.Group", name: str, values: np.ndarray) -> None:
    """Write a coordinate along the dimension of the same name."""
    if values.dtype.kind in "US":
        values = values.astype(object)
        array = group.create_array(name, shape=values.shape, dtype=str, dimension_names=(name,))
    else:
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, dimension_names=(name,)
        )
    array[...] = values


def _read_layout(group: "zarr.Group") -> Layout:
    coordinates = str(group.attrs.get(_COORDINATES, "")).split()
    count = 0
    axes_of = group[FINISHED].metadata.dimension_names[:-1]  # type: ignore[union-attr]
    variables, labels = {}, {}
    for name, array in group.arrays():
        dims = tuple(array.metadata.dimension_names or ())  # type: ignore[union-attr]
        if START in dims:
            behind = dims.index(START) + 1
            variables[name] = Variable(
                tuple(str(dim) for dim in dims[behind:]),
                array.shape[behind:],
                array.dtype.name,
                dict(array.attrs),
                of_cases=name != "starts" and name not in coordinates,
                is_coordinate=name in coordinates,
            )
            count = array.shape[behind - 1]
        elif name not in _ABOUT_BLOCKS:
            labels[name] = np.asarray(array[...])
    axes = {str(name): list(labels.pop(str(name))) for name in axes_of}
    return Layout(axes, count, int(str(group.attrs[LENGTH])), variables, labels, {})


def checksum(results: Mapping[str, np.ndarray]) -> np.uint64:
    """The CRC-32 of arrays, with their names, dtypes and shapes."""
    digest = 0
    for name in sorted(results):
        values = np.ascontiguousarray(results[name])
        digest = zlib.crc32(f"{name}{values.dtype.str}{values.shape}".encode(), digest)
        digest = zlib.crc32(values.reshape(-1).view(np.uint8).data, digest)
    return np.uint64(digest)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
