"""Tables of plain text, for terminals and files, and the same rows as HTML, for notebooks."""

import html as markup
import io
from collections.abc import Iterable, Sequence

__all__ = ["html", "table"]

_WIDEST = 1 << 16  # columns of a console, so wide that nothing is cut or wrapped


def table(rows: Iterable[Sequence[str]], sides: str = "l", *, gap: int = 2) -> str:
    """Rows of text in aligned columns, as plain text without colours.

    Args:
        rows: The rows, including a header if there is one; a row may have fewer cells.
        sides: The alignment of each column, `l` or `r`; the last letter also applies to all further
            columns.
        gap: Number of spaces between two columns.
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


def html(title: str, rows: Iterable[Sequence[str]], sides: str = "l") -> str:
    """Rows of text as an HTML table with a title, without styles except the alignment.

    Args:
        title: The title.
        rows: The rows, including a header if there is one; a row may have fewer cells.
        sides: The alignment of the columns, as in `table`.
    """
    drawn = []
    for row in rows:
        words = {"l": "left", "r": "right"}
        cells = (
            f'<td style="text-align:{words[sides[min(index, len(sides) - 1)]]}">'
            f"{markup.escape(cell)}</td>"
            for index, cell in enumerate(row)
        )
        drawn.append(f"<tr>{''.join(cells)}</tr>")
    caption = f'<caption style="text-align:left">{markup.escape(title)}</caption>'
    return f"<table>{caption}<tbody>{''.join(drawn)}</tbody></table>"
