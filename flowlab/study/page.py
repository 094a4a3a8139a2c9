"""Parts of the pages that studies write: self-contained HTML."""

import base64
import html
from collections.abc import Sequence
from importlib.metadata import version

import jax

from flowlab import __version__
from flowlab.study.figures import Drawn

__all__ = ["REPORT", "disabled", "document", "figure", "table", "versions"]

REPORT = "report.html"  # by which a folder is known as one of earlier results

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; }
th, td { border-bottom: 1px solid #ccc; padding: .35rem .6rem; text-align: left;
         vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 2rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { font-size: .92rem; color: #333; }
.holds { background: #d6ebf7; } .holds_in_part { background: #fff3cd; }
.fails { background: #f6d5c9; } .not_applicable { color: #666; }
table.verdicts { font-size: .78rem; line-height: 1.25; }
table.verdicts th, table.verdicts td { padding: .3rem .25rem; }
table.verdicts th { vertical-align: bottom; }
table.verdicts th.upright span { writing-mode: vertical-rl; transform: rotate(180deg);
                                 white-space: nowrap; }
table.verdicts td.verdict { border-left: 1px solid #fff; min-width: 2.9rem; }
table.verdicts small { display: block; color: #333; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } details { margin: .6rem 0; } summary { cursor: pointer; }
code { font-size: .9em; }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """A page that needs nothing but itself.

    Args:
        title: Its title.
        parts: What its body holds, as HTML.
    """
    head = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
    ]
    return "\n".join([*head, *parts, "</body></html>"])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "number") -> str:
    """A table, its cells of one kind: "number" or "text"."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td class='{kind}'>{html.escape(x)}</td>" for x in row) + "</tr>"
        for row in rows
    )
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def figure(drawn: Drawn) -> str:
    """A figure with its title and caption, the picture within."""
    data = base64.b64encode(drawn.png.read_bytes()).decode("ascii")
    return (
        f"<figure id='{drawn.name}'><h3>{html.escape(drawn.title)}</h3>"
        f"<img alt='{html.escape(drawn.title)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{html.escape(drawn.caption)}</figcaption></figure>"
    )


def versions() -> str:
    """What the results depend on: versions and devices, as HTML."""
    device = jax.devices()[0]
    return (
        f"flowlab {__version__}, jax {jax.__version__}, diffrax {version('diffrax')}, on "
        f"{len(jax.devices())} × {html.escape(device.device_kind)}"
    )


def disabled(progress: bool | None) -> bool | None:
    """What tqdm is to be told: None hides a bar where there is no terminal."""
    return None if progress is None else not progress
