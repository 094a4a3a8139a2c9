"""The base class of all policies, with the kernel of the log-ratios from their Jacobian.

p: number of pairs; a single pair has no axis p.
"""

from abc import abstractmethod
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from flowlab._checks import choice
from flowlab._parameters import short_call
from flowlab.domains import AbstractDomain
from flowlab.losses import Pair

__all__ = ["AbstractPolicy", "AbstractStates", "WallRule", "check_wall"]

WallRule = Literal["stop", "slide"]
Region = tuple[tuple[float, float], tuple[float, float]]


class AbstractStates(eqx.Module):
    """A domain of states with a rule for its walls: the common base of policies and flows."""

    domain: eqx.AbstractVar[AbstractDomain]
    wall: eqx.AbstractVar[WallRule]

    @property
    def state_shape(self) -> tuple[int, ...] | None:
        """Shape of a state that is one array; None for a PyTree, or if any shape is allowed."""
        return None

    @property
    def components(self) -> tuple[str, ...] | None:
        """Names of the components of a state, if it is one array and they have names."""
        return None

    def __repr__(self) -> str:
        """The arguments that differ from their defaults, on one line."""
        return short_call(self)


class AbstractPolicy(AbstractStates):
    """The meaning of a state: its pairs, metric and domain, and the rule at the domain's walls.

    To define a policy, subclass this class with `domain`, `wall` and `pairs`, or use
    `Policy.from_function` with a function of the state.
    """

    @property
    def reference_state(self) -> PyTree[ArrayLike] | None:
        """The state at which the policy equals its reference, so that log-ratios are 0; or None.

        It is None if no such state is known. It has float64 numbers, so that a flow line from it is
        solved in float64; for a policy made from a function it keeps the precision that was given.
        """
        return None

    @property
    def example_state(self) -> PyTree[ArrayLike] | None:
        """A state with the structure and shapes that all states have; None if none is known."""
        return self.reference_state

    @property
    def region(self) -> Region | None:
        """The default region of a plane for figures and searches: (low, high) of both components.

        It is None if the states do not form a plane.
        """
        return None

    @abstractmethod
    def pairs(self, state: PyTree[Array]) -> Pair:
        """The pairs of log-probabilities at a state."""

    def subset(self, indices: Int[ArrayLike, " b"]) -> "AbstractPolicy":
        """The policy restricted to some of its pairs, such as those of a minibatch.

        The default implementation computes all pairs and then selects some.

        Args:
            indices: Indices of the pairs, counted from 0; an index may occur more than once.
        """
        return _SomePairs(
            policy=self, indices=jnp.asarray(indices), domain=self.domain, wall=self.wall
        )

    def metric(self, state: PyTree[Array], covector: PyTree[Array]) -> PyTree[Array]:
        """M(state) applied to a covector such as a gradient; by default the covector itself."""
        del state
        return covector

    def kernel(self, state: PyTree[Array]) -> Float[Array, "..."]:
        """The kernel K = J M Jᵀ on the log-ratios of the pairs: u' = −K ∇_u L.

        J is the Jacobian of the log-ratios (u_chosen, u_rejected) with respect to the state, and M
        the metric. For a single pair K has shape (2, 2) and the entries k_ww, k_wl and k_ll. For p
        pairs it has shape (p, 2, p, 2), and u'_ia = −Σ_jb K_iajb ∂L/∂u_jb with the mean L of the
        loss over pairs.
        """

        def log_ratios(state: PyTree[Array]) -> Float[Array, "*p 2"]:
            pairs = self.pairs(state)
            return jnp.stack([pairs.u_chosen, pairs.u_rejected], axis=-1)

        ratios, pull = jax.vjp(log_ratios, state)

        def column(cotangent: Float[Array, "*p 2"]) -> Float[Array, "*p 2"]:
            (covector,) = pull(cotangent)
            return jax.jvp(log_ratios, (state,), (self.metric(state, covector),))[1]

        basis = jnp.eye(ratios.size, dtype=ratios.dtype).reshape(-1, *ratios.shape)
        return jax.vmap(column)(basis).reshape(ratios.shape * 2)

    def state_at(self, log_ratios: Float[ArrayLike, " 2"]) -> PyTree[Array]:
        """A state with given log-ratios (u_chosen, u_rejected), if the policy defines one.

        Raises:
            ValueError: If the policy does not define a state for given log-ratios.
        """
        del log_ratios
        raise ValueError(f"{type(self).__name__} defines no state for given log-ratios.")

    def velocity(self, state: PyTree[Array], gradient: PyTree[Array]) -> PyTree[Array]:
        """−M(state)·gradient: the velocity of the flow without walls."""
        return jax.tree.map(jnp.negative, self.metric(state, gradient))


class _SomePairs(AbstractPolicy):
    """A policy restricted to some of its pairs."""

    policy: AbstractPolicy
    indices: Int[Array, " b"]
    domain: AbstractDomain
    wall: WallRule = eqx.field(static=True)

    @property
    def state_shape(self) -> tuple[int, ...] | None:
        return self.policy.state_shape

    @property
    def reference_state(self) -> PyTree[ArrayLike] | None:
        return self.policy.reference_state

    @property
    def example_state(self) -> PyTree[ArrayLike] | None:
        return self.policy.example_state

    def pairs(self, state: PyTree[Array]) -> Pair:
        return jax.tree.map(lambda held: held[self.indices], self.policy.pairs(state))

    def metric(self, state: PyTree[Array], covector: PyTree[Array]) -> PyTree[Array]:
        return self.policy.metric(state, covector)


def check_wall(wall: str) -> WallRule:
    """The given wall rule, after a check.

    Raises:
        ValueError: If the rule is neither "stop" nor "slide".
    """
    return choice("wall", wall, "stop", "slide")
