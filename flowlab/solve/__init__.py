"""The integrator, for one flow line or a block of lanes: the only package that uses diffrax."""

from typing import TYPE_CHECKING

from flowlab._lazy import on_demand

if TYPE_CHECKING:
    from flowlab.solve.chebyshev import RKC2
    from flowlab.solve.compilation import Program, compiled, exact_products
    from flowlab.solve.engine import advance, resume, safe_problem
    from flowlab.solve.exits import exit_from, exit_from_interval
    from flowlab.solve.fingerprints import fingerprint, motion_of, one_call, one_of, operations_at
    from flowlab.solve.functions import check_potential
    from flowlab.solve.lane_lifecycle import begin, finish, potentials
    from flowlab.solve.line import Line, flow_line
    from flowlab.solve.method import Method, make_method, problem_for
    from flowlab.solve.noise import Minibatch, Thermal
    from flowlab.solve.paths import NoisyRuns, noisy_runs
    from flowlab.solve.problem import (
        Lanes,
        Problem,
        check_counts,
        check_states,
        check_target,
        default_rtol,
        filled,
        make_problem,
    )
    from flowlab.solve.rock import ROCK4
    from flowlab.solve.rosenbrock import Rodas5P
    from flowlab.solve.stiffness import bounded_rates, steady, steps_alone, stiff_solvers

__all__ = [
    "ROCK4",
    "Lanes",
    "Line",
    "Method",
    "Minibatch",
    "NoisyRuns",
    "Problem",
    "Program",
    "RKC2",
    "Rodas5P",
    "Thermal",
    "advance",
    "begin",
    "bounded_rates",
    "check_potential",
    "check_counts",
    "check_states",
    "check_target",
    "compiled",
    "default_rtol",
    "exact_products",
    "exit_from",
    "exit_from_interval",
    "filled",
    "fingerprint",
    "finish",
    "flow_line",
    "make_method",
    "make_problem",
    "motion_of",
    "noisy_runs",
    "one_call",
    "one_of",
    "operations_at",
    "potentials",
    "problem_for",
    "resume",
    "safe_problem",
    "steady",
    "steps_alone",
    "stiff_solvers",
]

__getattr__, __dir__ = on_demand(
    __name__,
    {
        "chebyshev": ("RKC2",),
        "compilation": ("Program", "compiled", "exact_products"),
        "engine": ("advance", "resume", "safe_problem"),
        "exits": ("exit_from", "exit_from_interval"),
        "functions": ("check_potential",),
        "fingerprints": ("fingerprint", "motion_of", "one_call", "one_of", "operations_at"),
        "lane_lifecycle": ("begin", "finish", "potentials"),
        "line": ("Line", "flow_line"),
        "method": ("Method", "make_method", "problem_for"),
        "noise": ("Minibatch", "Thermal"),
        "paths": ("NoisyRuns", "noisy_runs"),
        "problem": (
            "Lanes",
            "Problem",
            "check_counts",
            "check_states",
            "check_target",
            "default_rtol",
            "filled",
            "make_problem",
        ),
        "rock": ("ROCK4",),
        "rosenbrock": ("Rodas5P",),
        "stiffness": ("bounded_rates", "steady", "steps_alone", "stiff_solvers"),
    },
)
