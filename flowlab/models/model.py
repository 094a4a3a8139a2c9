"""A language model: its parameters, and the function from tokens to logits.

Letters in shapes: b sequences, t tokens in a sequence, v tokens in the vocabulary.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from flowlab.models.architecture import AbstractArchitecture
from flowlab.models.checkpoint import Config, read_tensors
from flowlab.models.gpt2 import GPT2
from flowlab.models.llama import Llama
from flowlab.policies import LanguageModel, Policy
from flowlab.policies.language import TokenPairs

__all__ = ["Model", "load"]

_FAMILIES = {
    "gpt2": GPT2.from_config,
    "llama": Llama.from_config,
    "mistral": Llama.from_config,
    "qwen2": Llama.from_config,
}


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A language model; use `load` to make one.

    Attributes:
        family: The `model_type` of the model: "gpt2", "llama", "mistral" or "qwen2".
        parameters: A PyTree: a dict of NumPy arrays by their names in the checkpoint, in float64 if
            the checkpoint has float64 weights, else in float32.
        vocabulary: Number of tokens in the vocabulary, which is the number of logits.
        longest: Maximal number of tokens in a sequence; None if positions are not learned.
    """

    family: str
    parameters: dict[str, Float[np.ndarray, "..."]]
    _architecture: AbstractArchitecture

    @property
    def vocabulary(self) -> int:
        return self._architecture.vocabulary

    @property
    def longest(self) -> int | None:
        return self._architecture.longest

    def apply(
        self, parameters: Mapping[str, Float[ArrayLike, "..."]], tokens: Int[ArrayLike, "b t"]
    ) -> Float[Array, "b t v"]:
        """The logits of the next token, at each token.

        Pad sequences of unequal lengths at the right, with any token. Attention is causal, so that
        padding has no influence and no mask is needed.

        Args:
            parameters: The parameters, such as `self.parameters`; their dtype is the dtype of the
                work.
            tokens: Ids from 0 to `vocabulary` − 1, shape (b, t); a sequence with another id gives
                NaN.

        Returns:
            Logits, shape (b, t, v).

        Raises:
            ValueError: If `tokens` has another shape or type, or if its sequences are too long.

        Accuracy: within 1e-12 of transformers 5.24 in float64, and 1e-6 in float32, for small
            random weights.
        """
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                "Argument `tokens` must hold ids of tokens and have shape (b, t), but has dtype "
                f"{tokens.dtype} and shape {tokens.shape}."
            )
        if self.longest is not None and tokens.shape[1] > self.longest:
            raise ValueError(
                f"Argument `tokens` must have at most {self.longest} tokens in a sequence, the "
                f"positions that the model has, but has {tokens.shape[1]}."
            )
        held = {name: jnp.asarray(array) for name, array in parameters.items()}
        return self._architecture.logits(held, tokens)

    def policy(self, pairs: TokenPairs, **options: Any) -> LanguageModel:
        """The policy of the model on preference data; its `start` has the present parameters.

        Args:
            pairs: The data, such as the result of `data.preferences`.
            **options: `chunk`, `trainable` and `reference`, as for `Policy.from_model`.

        Raises:
            ValueError: If a token is not in the vocabulary, or for the reasons that
                `Policy.from_model` gives.
        """
        tokens = np.asarray(pairs.tokens)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            raise ValueError(
                f"Argument `pairs` must have tokens from 0 to {self.vocabulary - 1}, the "
                f"vocabulary of the model, but has {tokens.min()} to {tokens.max()}: make them "
                "with the tokenizer of the model."
            )
        return Policy.from_model(self.apply, self.parameters, pairs, **options)

    def __repr__(self) -> str:
        """The family and the size on one line."""
        count = sum(array.size for array in self.parameters.values())
        return f"Model({self.family}: {count:,} parameters, {self.vocabulary:,} tokens)"


def load(folder: str | os.PathLike[str]) -> Model:
    """The language model of a Hugging Face checkpoint.

    Weights come from `model.safetensors`, or from the files that `model.safetensors.index.json`
    names. They are in float64, float32, float16 or bfloat16; the last two are converted to float32,
    which represents them exactly. Nothing in a checkpoint is executed: pickles and code in the
    checkpoint are not read.

    The supported architectures are GPT-2 and, with common code, Llama (1 to 3), Mistral and Qwen2,
    with rotary positions (scaling `linear` and `llama3`), grouped queries, sliding windows, tied
    embeddings and biases.

    Args:
        folder: A local folder with `config.json` and the weights.

    Raises:
        ValueError: If the folder, the configuration or the weights are missing, or if the weights
            are only in pickles; if the family or an option is not supported; or if tensors are
            missing, superfluous, of another shape or type, or not finite.
        ModuleNotFoundError: If safetensors is not installed, which belongs to the extra `models`.
    """
    config = Config.read(Path(folder))
    family = config.choice("model_type", *_FAMILIES)
    architecture = _FAMILIES[family](config)
    return Model(family, read_tensors(config.folder, architecture), architecture)
