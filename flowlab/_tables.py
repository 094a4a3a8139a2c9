"""Tables of plain text, for terminals and files."""

import io
from collections.abc import Iterable, Sequence

__all__ = ["table"]

_WIDEST = 1 << 16  # columns of a console in which nothing is cut or wrapped


def table(rows: Iterable[Sequence[str]], sides: str = "l", *, gap: int = 2) -> str:
    """Rows of text in columns, as one text without colours, whatever it is written to.

    Args:
        rows: The rows, a header among them if there is one; those with fewer cells end early.
        sides: For each column `l`, to the left, or `r`, to the right; the last for all further.
        gap: Spaces between two columns.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    held = [[Text(cell) for cell in row] for row in rows]
    grid = Table.grid(padding=(0, gap, 0, 0))
    for index in range(max(map(len, held), default=0)):
        side = sides[min(index, len(sides) - 1)]
        grid.add_column(justify="left" if side == "l" else "right", no_wrap=True)
    for row in held:
        grid.add_row(*row)
    console = Console(file=io.StringIO(), width=_WIDEST, color_system=None, force_jupyter=False)
    with console.capture() as drawn:
        console.print(grid)
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())
