"""GPT-2: learned positions, layer norms before attention and perceptron, tied embeddings.

Letters in shapes: b sequences, t tokens, m width of the model, v tokens in the vocabulary.
"""

import re
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowlab.models.architecture import READ_OUT, AbstractArchitecture
from flowlab.models.checkpoint import Config
from flowlab.models.layers import ACTIVATIONS, attend, layer_norm, projected

__all__ = ["GPT2"]

# The causal mask, which is a tensor of early checkpoints.
_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")


@dataclass(frozen=True)
class GPT2(AbstractArchitecture):
    """The sizes and options of a GPT-2 model.

    Attributes:
        vocabulary: Number of tokens in the vocabulary.
        positions: Maximal number of tokens in a sequence.
        width: Width of the model.
        layers: Number of blocks.
        heads: Number of attention heads.
        inner: Width of the perceptrons.
        activation: Name of the activation of the perceptrons.
        epsilon: The constant ε of the norms.
        tied: True if the embedding is also the read-out.
        scaled: True if attention scores are scaled by the inverse square root of the head width.
        scaled_by_layer: True if attention scores in layer i, counted from 1, are also divided by i.

    Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019); options as
        in transformers.
    """

    embedding: ClassVar[str] = "transformer.wte.weight"
    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int
    inner: int
    activation: str
    epsilon: float
    tied: bool
    scaled: bool
    scaled_by_layer: bool

    @classmethod
    def from_config(cls, config: Config) -> "GPT2":
        """The architecture that a configuration describes.

        Raises:
            ValueError: If an entry is missing, of the wrong type, or not supported.
        """
        width, heads = config.size("n_embd"), config.size("n_head")
        if width % heads:
            raise config.wrong("n_head", f"a divisor of `n_embd`, {width},", heads)
        if config.flag("add_cross_attention", False):
            raise config.wrong("add_cross_attention", "false", True)
        return cls(
            vocabulary=config.size("vocab_size"),
            positions=config.size("n_positions"),
            width=width,
            layers=config.size("n_layer"),
            heads=heads,
            inner=config.size("n_inner", 4 * width),
            activation=config.choice("activation_function", *ACTIVATIONS, default="gelu_new"),
            epsilon=config.positive("layer_norm_epsilon", 1e-5),
            tied=config.flag("tie_word_embeddings", True),
            scaled=config.flag("scale_attn_weights", True),
            scaled_by_layer=config.flag("scale_attn_by_inverse_layer_idx", False),
        )

    @property
    def longest(self) -> int:
        return self.positions

    def shapes(self) -> dict[str, tuple[int, ...]]:
        width, inner = self.width, self.inner
        shapes: dict[str, tuple[int, ...]] = {
            self.embedding: (self.vocabulary, width),
            "transformer.wpe.weight": (self.positions, width),
        }
        block: dict[str, tuple[int, int]] = {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, inner),
            "mlp.c_proj": (inner, width),
        }
        for layer in range(self.layers):
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{_block(layer)}{norm}.{part}": (width,) for part in ("weight", "bias")}
            for name, shape in block.items():
                shapes[f"{_block(layer)}{name}.weight"] = shape
                shapes[f"{_block(layer)}{name}.bias"] = shape[1:]
        shapes |= {f"transformer.ln_f.{part}": (width,) for part in ("weight", "bias")}
        return shapes if self.tied else {**shapes, READ_OUT: (self.vocabulary, width)}

    def parameter(self, stored: str) -> str | None:
        # The first checkpoints were saved without the read-out, so that names have no prefix.
        name = stored if stored.startswith(("transformer.", READ_OUT)) else f"transformer.{stored}"
        return None if _BUFFER.fullmatch(name) else name

    @property
    def depth(self) -> int:
        return self.layers

    def _placed(
        self, parameters: dict[str, Array], x: Float[Array, "b t m"]
    ) -> Float[Array, "b t m"]:
        positions = parameters["transformer.wpe.weight"][: x.shape[1]]
        return x + jnp.broadcast_to(positions, x.shape)

    def _last_norm(
        self, parameters: dict[str, Array], x: Float[Array, "b t m"]
    ) -> Float[Array, "b t m"]:
        return self._normed(parameters, "transformer.ln_f", x)

    def _after_block(
        self, parameters: dict[str, Array], layer: int, x: Float[Array, "b t m"]
    ) -> Float[Array, "b t m"]:
        block = _block(layer)
        mixed = _linear(
            parameters, f"{block}attn.c_attn", self._normed(parameters, f"{block}ln_1", x)
        )
        shape = (*x.shape[:2], self.heads, self.width // self.heads)
        queries, keys, values = (part.reshape(shape) for part in jnp.split(mixed, 3, axis=-1))
        scale = 1 / sqrt(shape[-1]) if self.scaled else 1.0
        scale = scale / (layer + 1) if self.scaled_by_layer else scale
        attended = attend(queries, keys, values, scale=scale)
        x = x + _linear(parameters, f"{block}attn.c_proj", attended)
        inner = _linear(parameters, f"{block}mlp.c_fc", self._normed(parameters, f"{block}ln_2", x))
        return x + _linear(parameters, f"{block}mlp.c_proj", ACTIVATIONS[self.activation](inner))

    def _normed(
        self, parameters: dict[str, Array], name: str, x: Float[Array, "b t m"]
    ) -> Float[Array, "b t m"]:
        return layer_norm(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], self.epsilon)


def _block(layer: int) -> str:
    return f"transformer.h.{layer}."


def _linear(
    parameters: dict[str, Array], name: str, x: Float[Array, "b t m"]
) -> Float[Array, "b t n"]:
    """A projection whose weight is stored with inputs first, which only GPT-2 does."""
    return projected(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
