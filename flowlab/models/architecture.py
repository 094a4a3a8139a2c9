"""The base class of all architectures: the tensors of a model, and the function to its logits.

Letters in shapes: b sequences, t tokens, m width of the model, v tokens in the vocabulary.
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
        embedding: Name of the parameter that holds the embedding.
        vocabulary: Number of tokens in the vocabulary.
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
        """The maximal number of tokens in a sequence; None if it is unlimited."""
        return None

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, by name."""

    def parameter(self, stored: str) -> str | None:
        """The name of the parameter for a tensor of a checkpoint; None if the tensor is not needed.

        Args:
            stored: The name of the tensor in the checkpoint.
        """
        return stored

    def twin(self, stored: str) -> str | None:
        """The name of the parameter to which a tensor of a checkpoint is tied; None if not tied."""
        return self.embedding if self.tied and stored == READ_OUT else None

    def logits(
        self, parameters: dict[str, Array], tokens: Int[Array, "b t"]
    ) -> Float[Array, "b t v"]:
        """The logits of the next token, at each token."""
        embedding = parameters[self.embedding]
        x = self._placed(parameters, embedded(embedding, tokens))
        for layer in range(self.depth):
            x = self._after_block(parameters, layer, x)
        x = self._last_norm(parameters, x)
        return projected(x, (embedding if self.tied else parameters[READ_OUT]).T, None)

    def _placed(
        self, parameters: dict[str, Array], x: Float[Array, "b t m"]
    ) -> Float[Array, "b t m"]:
        """The embedded tokens, with an embedding of the positions added if the model has one."""
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
        """The residual stream after the last norm, before the read-out."""
