"""The base of all architectures: the tensors one has, and its logits.

b: sequences; t: tokens; m: width of the model; v: tokens of the vocabulary.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Array, Float, Int

from flowlab.models.layers import embedded, projected

__all__ = ["READ_OUT", "AbstractArchitecture"]

READ_OUT = "lm_head.weight"
"""The parameter by which the last states become logits, where it is not the embedding itself."""


class AbstractArchitecture(ABC):
    """The architecture of a model: its sizes and options, and the function from tokens to logits.

    Attributes:
        embedding: Name of the embedding among the parameters.
        vocabulary: Tokens of the vocabulary.
        tied: True if the embedding is also the read-out.
    """

    embedding: ClassVar[str]
    vocabulary: int
    tied: bool

    @property
    @abstractmethod
    def depth(self) -> int:
        """The number of blocks."""

    @property
    def longest(self) -> int | None:
        """The maximal number of tokens of a sequence; None if it is unlimited."""
        return None

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters, by name."""

    def parameter(self, stored: str) -> str | None:
        """The name of the parameter for a tensor of a checkpoint; None for one that is not needed.

        Args:
            stored: Its name in the checkpoint.
        """
        return stored

    def twin(self, stored: str) -> str | None:
        """The name of the parameter to which a tensor of a checkpoint is tied, if any."""
        return self.embedding if self.tied and stored == READ_OUT else None

    def logits(
        self, parameters: dict[str, Array], tokens: Int[Array, "b t"]
    ) -> Float[Array, "b t v"]:
        """Logits of the token that follows each token."""
        embedding = parameters[self.embedding]
        x = self._placed(parameters, embedded(embedding, tokens))
        for layer in range(self.depth):
            x = self._after_block(parameters, layer, x)
        x = self._last_norm(parameters, x)
        return projected(x, (embedding if self.tied else parameters[READ_OUT]).T, None)

    def _placed(
        self, parameters: dict[str, Array], x: Float[Array, "b t m"]
    ) -> Float[Array, "b t m"]:
        """The embedded tokens, plus the embedding of positions if there is one."""
        del parameters
        return x

    @abstractmethod
    def _after_block(
        self, parameters: dict[str, Array], layer: int, x: Float[Array, "b t m"]
    ) -> Float[Array, "b t m"]:
        """The residual stream after one block."""

    @abstractmethod
    def _last_norm(
        self, parameters: dict[str, Array], x: Float[Array, "b t m"]
    ) -> Float[Array, "b t m"]:
        """The norm before the read-out."""
