"""Formulas as MathML, which browsers draw by themselves: no script, and no other server."""

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    """Tells Sphinx of the renderer `mathml`."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def inline(self: Any, node: nodes.math) -> None:
    """Writes a formula within a line."""
    self.body.append(_formula(node))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """Writes a formula on lines of its own, to be moved where it is wider than a phone."""
    written = _formula(node, as_block=True)
    self.body.append(f'<div class="math" style="overflow-x: auto">{written}</div>')
    raise nodes.SkipNode


def _formula(node: nodes.Element, *, as_block: bool = False) -> str:
    """A formula whose primes are raised in any font."""
    return tex2mathml(node.astext(), as_block=as_block).replace(">'<", ">′<")
