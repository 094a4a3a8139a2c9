"""One flow line, or a block of lanes: the only module that knows diffrax."""

from flowlab.solve.compilation import Program, compiled, exact_products
from flowlab.solve.ends import begin, finish, potentials
from flowlab.solve.engine import advance, resume, safe_problem
from flowlab.solve.line import Line, flow_line
from flowlab.solve.problem import (
    Lanes,
    Problem,
    check_states,
    default_rtol,
    make_problem,
)

__all__ = [
    "Lanes",
    "Line",
    "Problem",
    "Program",
    "advance",
    "begin",
    "check_states",
    "compiled",
    "default_rtol",
    "exact_products",
    "finish",
    "flow_line",
    "make_problem",
    "potentials",
    "resume",
    "safe_problem",
]
