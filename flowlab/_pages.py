"""Self-contained HTML pages, from the templates of studies, diagnoses and replays."""

import base64
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from flowlab import __version__

__all__ = ["REPORT", "disabled", "factor", "joined", "rendered", "share", "signed"]

_FOLDERS = [
    Path(__file__).parent / part / "templates" for part in ("study", "logs", "replay", "plots")
]
_LARGE = 100.0
_SECTION = re.compile(r"<h2(?: id='(?P<id>[^']*)')?>(?P<title>.*?)</h2>", re.DOTALL)
REPORT = "report.html"  # the file by which a folder with earlier results is recognised


def rendered(template: str, **values: Any) -> str:
    """The text of a rendered template; values are escaped in HTML.

    Args:
        template: The name of the template's file.
        values: The variables of the template, by name.

    Raises:
        jinja2.UndefinedError: If a variable is missing.
    """
    return _environment().get_template(template).render(values)


def joined(texts: Iterable[str]) -> str:
    """Texts as an enumeration: "a, b and c"."""
    listed = list(texts)
    return " and ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]]))


def share(value: float) -> str:
    """A fraction to two decimals, such that only 0 and 1 are "0" and "1"; else "<0.01", ">0.99"."""
    if value in (0.0, 1.0):
        return f"{value:.0f}"
    if 0 < value < 0.005:
        return "<0.01"
    return ">0.99" if 0.995 < value < 1 else f"{value:.2f}"


def signed(value: float) -> str:
    """A number with its sign, to two decimals; from 100 on, to a whole number."""
    digits = 0 if abs(value) >= _LARGE else 2
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # + 0.0: there is no −0


def factor(logarithm: float) -> str:
    """The exponential of a number: to two digits, or as a power of ten if it is far from 1."""
    if abs(logarithm) < np.log(_LARGE):
        return f"{np.exp(logarithm):.2g}"
    return f"10^{logarithm / np.log(10):.0f}".replace("-", "−")


def having(effects: Mapping[str, str], effect: str) -> list[str]:
    """The names that have a certain effect."""
    return [name for name, held in effects.items() if held == effect]


def disabled(progress: bool | None) -> bool | None:
    """The argument `disable` of tqdm: None shows a progress bar only on a terminal."""
    return None if progress is None else not progress


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_FOLDERS),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "base64": _base64,
        "factor": factor,
        "fmt": format,
        "having": having,
        "joined": joined,
        "minus": lambda text: text.replace("-", "−"),
        "share": share,
        "signed": signed,
        "significant": _significant,
        "with_contents": _with_contents,
        "words": lambda name: name.replace("_", " "),
    }
    made.globals["versions"] = _versions()
    return made


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _with_contents(body: str) -> Markup:
    """The body of a page with a table of contents before it, unless it has one."""
    if "<nav" in body:
        return Markup(body)
    sections: list[tuple[str, str]] = []

    def noted(found: re.Match[str]) -> str:
        place = found["id"] or f"section-{len(sections) + 1}"
        sections.append((place, found["title"].strip()))
        return f"<h2 id='{place}'>{found['title']}</h2>"

    whole = _SECTION.sub(noted, body)
    items = "\n".join(f"<li><a href='#{place}'>{title}</a></li>" for place, title in sections)
    return Markup(f"<nav aria-label='Contents'>\n<ol>\n{items}\n</ol>\n</nav>\n{whole}")


def _significant(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "not finite"


def _versions() -> str:
    """The versions of the libraries and the devices, on which results depend."""
    devices = jax.devices()
    return (
        f"flowlab {__version__}, jax {jax.__version__}, diffrax {version('diffrax')}, on "
        f"{len(devices)} × {devices[0].device_kind}"
    )
