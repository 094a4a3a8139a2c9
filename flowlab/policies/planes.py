"""Planes: policies with one pair, whose state consists of one number for each response."""

import functools
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from flowlab import _checks as checks
from flowlab._arrays import floats, like
from flowlab._parameters import parameter, positive, short_call
from flowlab.domains import AbstractDomain, Quadrant, Simplex, WholeSpace
from flowlab.losses import Pair
from flowlab.policies.base import AbstractPolicy, Region, WallRule, check_wall

__all__ = ["CoupledKernel", "LogRatioPlane", "ProbabilityPlane", "RatioPlane"]

_SYMMETRY = 1e-12  # relative; a kernel is given by three numbers
_NATS = 10.0  # e^10 = 22,000: how far training moves a response, and where sigmoids are flat
_MEASURED = 1e-6  # of the largest entry: what rounding of float32 inner products makes of 0

KernelFunction = Callable[[Float[Array, " 2"]], Float[Array, "2 2"]]


def _domain(usual: type[AbstractDomain]) -> Any:
    """A dataclass field for a domain in the positive quadrant; None means the domain `usual`."""
    return eqx.field(default=None, converter=functools.partial(_positive_domain, usual))


def _positive_domain(usual: type[AbstractDomain], domain: Any) -> AbstractDomain:
    held = usual() if domain is None else domain
    if isinstance(held, WholeSpace) or not isinstance(held, AbstractDomain):
        raise ValueError(
            "Argument `domain` must be a set of positive ratios such as Quadrant(), "
            f"but is {domain!r}."
        )
    return held


def _checked_kernel(kernel: Any) -> Any:
    """The given kernel, or function that gives a kernel, after a check unless it is traced."""
    held: Any = kernel
    if callable(kernel):
        with jax.enable_x64(True):
            held = kernel(jnp.zeros(2))
    if isinstance(held, Tracer):
        return kernel
    matrix = _checked_matrix(held)
    return kernel if callable(kernel) else matrix


def _checked_matrix(kernel: npt.ArrayLike) -> np.ndarray:
    matrix = checks.array("kernel", kernel, (2, 2))
    if not np.allclose(matrix, matrix.T, rtol=_SYMMETRY, atol=0):
        raise ValueError(f"Argument `kernel` must be symmetric, but is {matrix.tolist()}.")
    smallest = float(np.linalg.eigvalsh(matrix)[0])
    if smallest < -_MEASURED * np.abs(matrix).max():
        raise ValueError(
            "Argument `kernel` must be positive semidefinite, "
            f"but its smallest eigenvalue is {smallest:.3g}."
        )
    return matrix


class _Plane(AbstractPolicy):
    """A plane of one pair, with its reference log-probabilities, lengths and required margin."""

    _: KW_ONLY
    ref_chosen: Float[ArrayLike, ""] = parameter(0.0, "ref_chosen", "(-inf, inf)")
    ref_rejected: Float[ArrayLike, ""] = parameter(0.0, "ref_rejected", "(-inf, inf)")
    chosen_length: Float[ArrayLike, ""] = positive(20.0, "chosen_length", single=True)
    rejected_length: Float[ArrayLike, ""] = positive(20.0, "rejected_length", single=True)
    offset: Float[ArrayLike, ""] | None = parameter(None, "offset", "(-inf, inf)")

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def reference_state(self) -> Float[np.ndarray, " 2"]:
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            return np.asarray(self.state_at(np.zeros(2)))

    def _pair(self, log_ratios: Float[Array, " 2"]) -> Pair:
        ref_chosen, ref_rejected = (
            like(r, log_ratios) for r in (self.ref_chosen, self.ref_rejected)
        )
        return Pair(
            chosen=log_ratios[0] + ref_chosen,
            rejected=log_ratios[1] + ref_rejected,
            ref_chosen=ref_chosen,
            ref_rejected=ref_rejected,
            chosen_length=like(self.chosen_length, log_ratios),
            rejected_length=like(self.rejected_length, log_ratios),
            offset=None if self.offset is None else like(self.offset, log_ratios),
        )


class _PositivePlane(_Plane):
    """A plane with positive coordinates, the Euclidean metric, and walls.

    A subclass has the field `domain`.
    """

    _: KW_ONLY
    wall: WallRule = eqx.field(static=True, default="stop", converter=check_wall)

    @property
    def region(self) -> Region:
        """The interval from 0 to the wall of each axis, or to 1 if there is no wall."""
        normals, offsets = self.domain.walls()
        normals, never = normals.reshape(-1, 2), np.full((len(offsets), 2), np.inf)
        meets = np.divide(offsets[:, None], normals, out=never, where=normals > 0)
        ends = np.min(meets, axis=0, initial=np.inf)
        chosen, rejected = np.where(np.isfinite(ends), ends, 1.0).tolist()
        return (0.0, chosen), (0.0, rejected)

    def kernel(self, state: Float[Array, " 2"]) -> Float[Array, "2 2"]:
        return jnp.diag(1 / jnp.asarray(state) ** 2)


class RatioPlane(_PositivePlane):
    """The paper's plane: the state is (x1, x2), the ratios π/π_ref of chosen and rejected response.

    The metric is Euclidean in x. On the log-ratio plane the kernel is therefore diag(x1⁻², x2⁻²).

    Args:
        domain: `Quadrant()`, `Box(a, b)` or `Simplex(p_chosen, p_rejected)`.
        wall: The rule for a flow line at a wall: `"stop"`, or `"slide"` along the wall (projected
            flow) until the flow points inward.
        ref_chosen: Reference log-probability of the chosen response, nats.
        ref_rejected: Reference log-probability of the rejected response, nats.
        chosen_length: Number of tokens in the chosen response.
        rejected_length: Number of tokens in the rejected response.
        offset: Required margin of the pair, for losses that use one (ODPO); None for none.

    Raises:
        ValueError: If `wall` is unknown, a length is not positive, or a reference log-probability
            or the offset is not finite.

    Source: arXiv 2404.04626, section 3.1, which sets both reference probabilities to 1 (0 nats).
    """

    domain: AbstractDomain = _domain(Quadrant)

    @property
    def components(self) -> tuple[str, ...]:
        return ("x_chosen", "x_rejected")

    def pairs(self, state: Float[Array, " 2"]) -> Pair:
        return self._pair(jnp.log(state))

    def state_at(self, log_ratios: Float[ArrayLike, " 2"]) -> Float[Array, " 2"]:
        return jnp.exp(jnp.asarray(log_ratios))


class ProbabilityPlane(_PositivePlane):
    """The plane of the two probabilities: the state is (π_chosen, π_rejected).

    The metric is Euclidean in π. On the log-ratio plane the kernel is therefore diag(π_chosen⁻²,
    π_rejected⁻²). If both reference probabilities are p, this is the ratio plane with x = π/p, and
    a flow time is p² times the flow time on the ratio plane.

    Args:
        ref_chosen: Reference log-probability of the chosen response, nats; np.log(0.3), say.
        ref_rejected: Reference log-probability of the rejected response, nats.
        domain: `Simplex()`, which is π_chosen + π_rejected ≤ 1; `Box(1, 1)`; or `Quadrant()`. None
            for `Simplex()`.
        wall: The rule for a flow line at a wall: `"stop"`, or `"slide"` along the wall (projected
            flow) until the flow points inward.
        chosen_length: Number of tokens in the chosen response.
        rejected_length: Number of tokens in the rejected response.
        offset: Required margin of the pair, for losses that use one (ODPO); None for none.

    Raises:
        ValueError: If a reference is not a log-probability (above 0, or not finite), `wall` is
            unknown, a length is not positive, or the offset is not finite.
    """

    domain: AbstractDomain = _domain(Simplex)

    def __init__(
        self,
        ref_chosen: float,
        ref_rejected: float,
        domain: AbstractDomain | None = None,
        *,
        wall: WallRule = "stop",
        chosen_length: float = 20.0,
        rejected_length: float = 20.0,
        offset: float | None = None,
    ) -> None:
        self.ref_chosen, self.ref_rejected = ref_chosen, ref_rejected
        self.chosen_length, self.rejected_length = chosen_length, rejected_length
        self.domain, self.wall, self.offset = domain, wall, offset  # type: ignore[assignment]

    def __check_init__(self) -> None:
        for name in ("ref_chosen", "ref_rejected"):
            held: Any = getattr(self, name)
            if not isinstance(held, Tracer) and held > 0:
                raise ValueError(
                    f"Argument `{name}` must be a log-probability in nats, at most 0, but is "
                    f"{held:g}; for a probability p give np.log(p)."
                )

    @property
    def components(self) -> tuple[str, ...]:
        return ("probability_chosen", "probability_rejected")

    def pairs(self, state: Float[Array, " 2"]) -> Pair:
        references = jnp.stack([like(r, state) for r in (self.ref_chosen, self.ref_rejected)])
        return self._pair(jnp.log(state) - references)

    def state_at(self, log_ratios: Float[ArrayLike, " 2"]) -> Float[Array, " 2"]:
        values = floats(log_ratios)
        references = jnp.stack([like(r, values) for r in (self.ref_chosen, self.ref_rejected)])
        return jnp.exp(values + references)


class LogRatioPlane(_Plane):
    """The plane of log-ratios (u_chosen, u_rejected), with a kernel as its metric.

    The flow is u' = −K ∇_u L. The identity K gives the gradient flow in u. A kernel measured on a
    model, whose entries k_ww, k_wl and k_ll are the inner products of the gradients of the two
    log-probabilities, gives the linearised training of one pair. A function of u gives a kernel
    that changes along the flow line.

    Args:
        kernel: Symmetric positive semidefinite array of shape (2, 2), or a JAX function from u,
            shape (2,), to such an array, for example a `CoupledKernel`; None for the identity. A
            function is checked only at u = 0.
        ref_chosen: Reference log-probability of the chosen response, nats.
        ref_rejected: Reference log-probability of the rejected response, nats.
        chosen_length: Number of tokens in the chosen response.
        rejected_length: Number of tokens in the rejected response.
        offset: Required margin of the pair, for losses that use one (ODPO); None for none.

    Raises:
        ValueError: If the kernel is not a finite symmetric positive semidefinite (2, 2) array, a
            length is not positive, or a reference log-probability or the offset is not finite.
    """

    matrix: Float[ArrayLike, "2 2"] | KernelFunction = eqx.field(
        converter=_checked_kernel, metadata={"argument": "kernel", "usual": np.eye(2)}
    )
    domain: AbstractDomain
    wall: WallRule = eqx.field(static=True)

    def __init__(
        self,
        kernel: npt.ArrayLike | KernelFunction | None = None,
        *,
        ref_chosen: float = -20.0,
        ref_rejected: float = -20.0,
        chosen_length: float = 20.0,
        rejected_length: float = 20.0,
        offset: float | None = None,
    ) -> None:
        self.matrix = np.eye(2) if kernel is None else kernel  # type: ignore[assignment]
        self.ref_chosen, self.ref_rejected = ref_chosen, ref_rejected
        self.chosen_length, self.rejected_length = chosen_length, rejected_length
        self.offset = offset
        self.domain, self.wall = WholeSpace(), "stop"

    @property
    def components(self) -> tuple[str, ...]:
        return ("u_chosen", "u_rejected")

    @property
    def region(self) -> Region:
        """The square that extends ten nats to each side of the reference."""
        return (-_NATS, _NATS), (-_NATS, _NATS)

    def pairs(self, state: Float[Array, " 2"]) -> Pair:
        return self._pair(floats(state))

    def metric(self, state: Float[Array, " 2"], covector: Float[Array, " 2"]) -> Float[Array, " 2"]:
        covector = floats(covector)
        return self.kernel(like(state, covector)) @ covector

    def kernel(self, state: Float[Array, " 2"]) -> Float[Array, "2 2"]:
        state = floats(state)
        held = self.matrix
        return jnp.asarray(held(state) if callable(held) else held, state.dtype)

    def state_at(self, log_ratios: Float[ArrayLike, " 2"]) -> Float[Array, " 2"]:
        return floats(log_ratios)


class CoupledKernel(eqx.Module):
    """A constant kernel, given by how strongly the rejected response moves the chosen one.

        K = k_ww [[1, r], [r, s]],  r = k_wl/k_ww,  s = k_ll/k_ww

    For one pair and a loss L(h) of the margin alone with L' < 0, the chosen log-ratio falls if and
    only if r > 1. The three numbers are hyper-parameters of the flow: `over={"ratio": [0, 0.5, 0.9,
    1.1]}` sweeps r without compiling again.

    Args:
        ratio: r = k_wl/k_ww, with r² at most s.
        rejected: s = k_ll/k_ww, at least 0.
        chosen: k_ww, positive.

    Raises:
        ValueError: If a number is not finite or out of its range, or the kernel is not positive
            semidefinite.
    """

    ratio: Float[ArrayLike, ""] = parameter(0.0, "ratio", "(-inf, inf)")
    rejected: Float[ArrayLike, ""] = parameter(1.5, "rejected", "[0, inf)")
    chosen: Float[ArrayLike, ""] = positive(1.0, "chosen", single=True)

    def __repr__(self) -> str:
        """The arguments that differ from their defaults, on one line."""
        return short_call(self)

    def __check_init__(self) -> None:
        if isinstance(self.ratio, Tracer) or isinstance(self.rejected, Tracer):
            return
        ratio, rejected = np.asarray(self.ratio), np.asarray(self.rejected)
        if ratio**2 > rejected * (1 + _MEASURED):
            raise ValueError(
                "Argument `ratio` must be at most the square root of `rejected`, "
                f"{np.sqrt(rejected):.4g}, in absolute value, for the kernel to be positive "
                f"semidefinite, but is {ratio:g}."
            )

    def __call__(self, log_ratios: Float[Array, " 2"]) -> Float[Array, "2 2"]:
        ratio, rejected, chosen = (
            like(v, log_ratios) for v in (self.ratio, self.rejected, self.chosen)
        )
        return chosen * jnp.stack(
            [jnp.stack([jnp.ones_like(ratio), ratio]), jnp.stack([ratio, rejected])]
        )
