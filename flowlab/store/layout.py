"""The arrays of a store that is filled block by block, before they have values.

Letters in shapes: c axes of cases, n starts, b blocks of a case.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray

__all__ = ["START", "Block", "Layout", "Variable", "layout_of"]

START = "start"


class Block(NamedTuple):
    """The runs of one case from consecutive starts.

    Attributes:
        case: The index of the case along each axis of cases.
        number: The number of the block in its case.
    """

    case: tuple[int, ...]
    number: int


@dataclass(frozen=True)
class Variable:
    """The description of an array of a store.

    Attributes:
        dims: Names of the dimensions after the axes of cases and `start`.
        shape: Lengths of these dimensions.
        dtype: Name of the dtype.
        attributes: Attributes of the array.
        of_cases: True if each case has its own values; false for values that all cases share, such
            as starts.
        is_coordinate: True if xarray should read the array as a coordinate.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, Any] = field(default_factory=dict)
    of_cases: bool = True
    is_coordinate: bool = False

    @property
    def bytes(self) -> int:
        """The number of bytes for one start of one case."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """The description of all arrays of a store.

    Attributes:
        axes: The labels along each axis of cases, by its name.
        count: The number of starts.
        length: The number of starts in a block; the last block of a case may have fewer.
        variables: The arrays with an axis of starts, by name.
        labels: Coordinates along other dimensions, by name.
        attributes: Attributes of the group, in addition to those of every store.
    """

    axes: dict[str, list[Any]]
    count: int
    length: int
    variables: dict[str, Variable]
    labels: dict[str, np.ndarray]
    attributes: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of cases along each axis."""
        return tuple(len(labels) for labels in self.axes.values())

    @property
    def blocks_of_a_case(self) -> int:
        """The number of blocks in each case."""
        return -(-self.count // self.length)

    @property
    def bytes(self) -> int:
        """The number of bytes of all arrays without compression."""
        cases = int(np.prod(self.shape, dtype=np.int64))
        return sum(
            (cases if each.of_cases else 1) * self.count * each.bytes
            for each in self.variables.values()
        )

    def part(self, number: int) -> tuple[int, int]:
        """The index of the first start of a block, and the index after its last start."""
        return number * self.length, min((number + 1) * self.length, self.count)

    def starts_of(self, number: int) -> int:
        """The number of starts in a block."""
        first, last = self.part(number)
        return last - first

    def blocks(self) -> Iterator[Block]:
        """All blocks, case by case."""
        for case in np.ndindex(*self.shape):
            for number in range(self.blocks_of_a_case):
                yield Block(case, number)


def layout_of(
    example: "xarray.Dataset", axes: Mapping[str, Sequence[Any]], count: int, length: int
) -> Layout:
    """The layout of a store for many runs, from an example with a few runs.

    Args:
        example: Runs of one case, as `Runs.to_xarray` returns them.
        axes: The labels along each axis of cases, by its name.
        count: The number of starts.
        length: The number of starts in a block.
    """
    variables = {}
    for name, array in example.variables.items():
        if START not in array.dims:
            continue
        is_coordinate = name in example.coords
        variables[str(name)] = Variable(
            dims=tuple(str(dim) for dim in array.dims[1:]),
            shape=array.shape[1:],
            dtype=array.dtype.name,
            attributes=dict(array.attrs),
            of_cases=not is_coordinate and name != "starts",
            is_coordinate=is_coordinate,
        )
    labels = {str(n): c.values for n, c in example.coords.items() if START not in c.dims}
    return Layout(
        {name: list(labels) for name, labels in axes.items()},
        count,
        length,
        variables,
        labels,
        dict(example.attrs),
    )
