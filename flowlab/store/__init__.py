"""Sweeps on disk: Zarr groups that xarray opens, each with a description of its contents."""

from flowlab.store.blocks import BlockStore, Damage
from flowlab.store.layout import Layout, Variable, layout_of
from flowlab.store.reductions import cell_means, counts, histogram, quantiles
from flowlab.store.runs import check_free, description, read, remove, write

__all__ = [
    "BlockStore",
    "Damage",
    "Layout",
    "Variable",
    "cell_means",
    "check_free",
    "counts",
    "description",
    "histogram",
    "layout_of",
    "quantiles",
    "read",
    "remove",
    "write",
]
