"""The Llama family: rotary positions, RMS norms, grouped queries and gated perceptrons.

Letters in shapes: b sequences, t tokens, m width of the model, v tokens in the vocabulary.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from flowlab.models.architecture import READ_OUT, AbstractArchitecture
from flowlab.models.checkpoint import Config
from flowlab.models.layers import ACTIVATIONS, attend, projected, rms_norm
from flowlab.models.rotary import angular_frequencies, rotated

__all__ = ["Llama"]

_FREQUENCIES = "rotary_emb.inv_freq"  # which early checkpoints hold
_MISTRAL_WINDOW = 4096  # what transformers takes where the configuration of a Mistral is silent


@dataclass(frozen=True, eq=False)
class Llama(AbstractArchitecture):
    """The sizes and options of a model of the Llama family.

    Attributes:
        vocabulary: Number of tokens in the vocabulary.
        width: Width of the model.
        heads: Number of query heads.
        groups: Number of heads of keys and values; each serves a group of query heads.
        head: Width of a head.
        inner: Width of the perceptrons.
        activation: Name of the activation of the perceptrons.
        epsilon: The constant ε of the norms.
        tied: True if the embedding is also the read-out.
        biased: The projections that have a bias, such as "q_proj".
        windows: For each layer, the number of tokens that a token attends to, itself included; None
            for all earlier tokens.
        frequencies: Angles of the rotary positions per token, radians.

    Source: Touvron et al. (arXiv 2302.13971 and 2307.09288), Jiang et al. (arXiv 2310.06825) for
        Mistral, Yang et al. (arXiv 2407.10671) for Qwen2; options as in transformers.
    """

    embedding: ClassVar[str] = "model.embed_tokens.weight"
    vocabulary: int
    width: int
    heads: int
    groups: int
    head: int
    inner: int
    activation: str
    epsilon: float
    tied: bool
    biased: frozenset[str]
    windows: tuple[int | None, ...]
    frequencies: Float[np.ndarray, " head/2"]

    @classmethod
    def from_config(cls, config: Config) -> "Llama":
        """The architecture that a configuration describes.

        Raises:
            ValueError: If an entry is missing, of the wrong type, or not supported.
        """
        width, heads = config.size("hidden_size"), config.size("num_attention_heads")
        head, groups = _head_width(config, width, heads), config.size("num_key_value_heads", heads)
        if heads % groups:
            raise config.wrong("num_key_value_heads", f"a divisor of {heads}", groups)
        return cls(
            vocabulary=config.size("vocab_size"),
            width=width,
            heads=heads,
            groups=groups,
            head=head,
            inner=config.size("intermediate_size"),
            activation=config.choice("hidden_act", *ACTIVATIONS, default="silu"),
            epsilon=config.positive("rms_norm_eps", 1e-6),
            tied=config.flag("tie_word_embeddings", False),
            biased=_biased(config),
            windows=_windows(config),
            frequencies=angular_frequencies(config, head),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        queries, keys = self.heads * self.head, self.groups * self.head
        block: dict[str, tuple[int, int]] = {
            "self_attn.q_proj": (queries, self.width),
            "self_attn.k_proj": (keys, self.width),
            "self_attn.v_proj": (keys, self.width),
            "self_attn.o_proj": (self.width, queries),
            "mlp.gate_proj": (self.inner, self.width),
            "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }
        shapes: dict[str, tuple[int, ...]] = {self.embedding: (self.vocabulary, self.width)}
        for layer in range(self.depth):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{_block(layer)}{norm}.weight"] = (self.width,)
            for name, shape in block.items():
                shapes[f"{_block(layer)}{name}.weight"] = shape
                if name.partition(".")[2] in self.biased:
                    shapes[f"{_block(layer)}{name}.bias"] = shape[:1]
        shapes["model.norm.weight"] = (self.width,)
        return shapes if self.tied else {**shapes, READ_OUT: (self.vocabulary, self.width)}

    def parameter(self, stored: str) -> str | None:
        return None if stored.endswith(_FREQUENCIES) else stored

    @property
    def depth(self) -> int:
        return len(self.windows)

    def _last_norm(
        self, parameters: dict[str, Array], x: Float[Array, "b t m"]
    ) -> Float[Array, "b t m"]:
        return rms_norm(x, parameters["model.norm.weight"], self.epsilon)

    def _after_block(
        self, parameters: dict[str, Array], layer: int, x: Float[Array, "b t m"]
    ) -> Float[Array, "b t m"]:
        block = _block(layer)
        seen = rms_norm(x, parameters[f"{block}input_layernorm.weight"], self.epsilon)
        queries, keys, values = (
            _linear(parameters, f"{block}self_attn.{name}_proj", seen).reshape(
                *x.shape[:2], -1, self.head
            )
            for name in "qkv"
        )
        attended = attend(
            rotated(queries, self.frequencies),
            rotated(keys, self.frequencies),
            values,
            scale=1 / sqrt(self.head),
            window=self.windows[layer],
        )
        x = x + _linear(parameters, f"{block}self_attn.o_proj", attended)
        seen = rms_norm(x, parameters[f"{block}post_attention_layernorm.weight"], self.epsilon)
        gate = ACTIVATIONS[self.activation](_linear(parameters, f"{block}mlp.gate_proj", seen))
        inner = gate * _linear(parameters, f"{block}mlp.up_proj", seen)
        return x + _linear(parameters, f"{block}mlp.down_proj", inner)


def _block(layer: int) -> str:
    return f"model.layers.{layer}."


def _linear(
    parameters: dict[str, Array], name: str, x: Float[Array, "b t m"]
) -> Float[Array, "b t n"]:
    """A projection whose weight is stored with outputs first."""
    return projected(x, parameters[f"{name}.weight"].T, parameters.get(f"{name}.bias"))


def _head_width(config: Config, width: int, heads: int) -> int:
    """The width of a head, after a check that it is even, as rotary positions require."""
    if config.entries.get("head_dim") is None and width % heads:
        raise config.wrong("num_attention_heads", f"a divisor of `hidden_size`, {width},", heads)
    head = config.size("head_dim", width // heads)
    if head % 2:
        raise config.wrong("head_dim", "an even number", head)
    return head


def _biased(config: Config) -> frozenset[str]:
    """The projections with a bias: an option in Llama; always those of attention in Qwen2."""
    attention, perceptron = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")
    family = config.entries["model_type"]
    if family != "llama":
        return frozenset(attention if family == "qwen2" else ())
    in_attention, within = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return frozenset(
        ((*attention, "o_proj") if in_attention else ()) + (perceptron if within else ())
    )


def _windows(config: Config) -> tuple[int | None, ...]:
    """For each layer, the number of tokens that a token attends to; None for all earlier tokens."""
    layers, family = config.size("num_hidden_layers"), config.entries["model_type"]
    if family == "mistral":
        given = "sliding_window" in config.entries
        none = given and config.entries["sliding_window"] is None
        return (None if none else config.size("sliding_window", _MISTRAL_WINDOW),) * layers
    if family != "qwen2" or not config.flag("use_sliding_window", False):
        return (None,) * layers
    window, kinds = config.size("sliding_window"), config.entries.get("layer_types")
    if kinds is None:
        first = config.size("max_window_layers", least=0)
        return tuple(window if layer >= first else None for layer in range(layers))
    known = {"sliding_attention": window, "full_attention": None}
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= set(known):
        raise config.wrong("layer_types", f"{layers} times full_ or sliding_attention", kinds)
    return tuple(known[kind] for kind in kinds)
