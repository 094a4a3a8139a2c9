"""Pages: self-contained HTML, and the templates that hold the prose of the studies."""

import base64
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from flowlab import __version__

__all__ = ["REPORT", "disabled", "joined", "rendered", "share"]

REPORT = "report.html"  # by which a folder is known as one of earlier results


def rendered(template: str, **values: Any) -> str:
    """A template filled in; text is escaped, and a value that is missing is an error.

    Args:
        template: Its name in the folder of templates.
        values: What it works with, by name.

    Raises:
        jinja2.UndefinedError: If it asks for another value.
    """
    return _environment().get_template(template).render(values)


def joined(texts: Iterable[str]) -> str:
    """Texts as an enumeration: "a, b and c"."""
    listed = list(texts)
    return " and ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]]))


def share(value: float) -> str:
    """A share in two digits, such that only 0 is "0" and only 1 is "1"; may hold a "<" or ">"."""
    if value in (0.0, 1.0):
        return f"{value:.0f}"
    if 0 < value < 0.005:
        return "<0.01"
    return ">0.99" if 0.995 < value < 1 else f"{value:.2f}"


def disabled(progress: bool | None) -> bool | None:
    """The `disable` of tqdm, for which None hides a bar where there is no terminal."""
    return None if progress is None else not progress


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("flowlab.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "base64": _base64,
        "fmt": format,
        "joined": joined,
        "minus": lambda text: text.replace("-", "−"),
        "share": share,
        "significant": _significant,
        "words": lambda name: name.replace("_", " "),
    }
    made.globals["versions"] = _versions()
    return made


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _significant(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "not finite"


def _versions() -> str:
    """The versions and devices that results depend on."""
    devices = jax.devices()
    return (
        f"flowlab {__version__}, jax {jax.__version__}, diffrax {version('diffrax')}, on "
        f"{len(devices)} × {devices[0].device_kind}"
    )
