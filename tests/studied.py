"""What the study runs, on a coarse grid, once for the test files that look at it."""

from dataclasses import replace
from functools import cache

from flowlab.study.data import Settings, StudyData, collect

BETAS = (0.3, 0.5)
CELLS = 24


@cache
def studied() -> StudyData:
    settings = Settings(betas=BETAS, map_cells=32, claim_cells=CELLS, quick=True)
    return collect(settings, None, False)


def studied_at(beta: float) -> StudyData:
    """The same at one β alone."""
    data = studied()
    runs = {key: made for key, made in data.runs.items() if key[1] == beta}
    settings = replace(data.settings, betas=(beta,))
    return replace(data, settings=settings, maps={beta: data.maps[beta]}, runs=runs)
