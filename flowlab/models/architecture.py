"""The base of all architectures: the tensors one has, and its logits."""

from abc import ABC, abstractmethod

from jaxtyping import Array, Float, Int

__all__ = ["AbstractArchitecture"]


class AbstractArchitecture(ABC):
    """Sizes and options of a model, and what they make of parameters and tokens."""

    vocabulary: int

    @property
    def longest(self) -> int | None:
        """Tokens that a sequence may have; None for any number."""
        return None

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters, by name."""

    def parameter(self, stored: str) -> str | None:
        """The parameter that a tensor of a checkpoint is; None for what can be computed.

        Args:
            stored: The name that the checkpoint has for it.
        """
        return stored

    def twin(self, stored: str) -> str | None:
        """The parameter that a tensor of a checkpoint repeats, where it is tied to one."""
        del stored
        return None

    @abstractmethod
    def logits(
        self, parameters: dict[str, Array], tokens: Int[Array, "b t"]
    ) -> Float[Array, "b t v"]:
        """Logits of the token that follows each token."""
