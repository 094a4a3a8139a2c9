"""Models against the code of transformers, in double precision; and what is no checkpoint."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned
from refusals import assert_refused

from flowlab import models

safetensors = pytest.importorskip("safetensors.numpy")

MODELS = Path(__file__).parent / "data" / "models"
GOLDEN = json.loads((MODELS / "logits.json").read_text("utf-8"))
NAMES = list(GOLDEN["logits"])
TOKENS = np.array(GOLDEN["tokens"])


def in_precision(model: models.Model, dtype: Any) -> Any:
    return {name: array.astype(dtype) for name, array in model.parameters.items()}


# Every model in double precision, and one of each family in single.
PRECISIONS = [
    *((name, np.float64, 1e-10) for name in NAMES),
    *thinned(
        [(name, np.float32, 1e-5) for name in NAMES],
        [(name, np.float32, 1e-5) for name in ("gpt2", "llama3")],
    ),
]


@pytest.mark.parametrize(("name", "dtype", "accuracy"), PRECISIONS)
def test_logits_are_those_of_transformers(name: str, dtype: Any, accuracy: float) -> None:
    model = models.load(MODELS / name)
    assert all(array.dtype == np.float32 for array in model.parameters.values())
    logits = jax.jit(model.apply)(in_precision(model, dtype), TOKENS)
    assert logits.dtype == dtype and logits.shape == (*TOKENS.shape, model.vocabulary)
    for row, length, golden in zip(logits, GOLDEN["lengths"], GOLDEN["logits"][name], strict=True):
        np.testing.assert_allclose(row[:length], golden, rtol=0, atol=accuracy)


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_what_stands_at_the_right_has_no_influence(name: str) -> None:
    model = models.load(MODELS / name)
    apply = jax.jit(model.apply)
    changed = np.where(np.arange(9) < 4, TOKENS, 5)
    logits, others = apply(model.parameters, TOKENS), apply(model.parameters, changed)
    np.testing.assert_array_equal(logits[:, :4], others[:, :4])
    assert np.all(np.max(np.abs(logits - others)[:, 4:], axis=-1) > 1e-3)


def test_logits_have_gradients_by_all_parameters() -> None:
    model = models.load(MODELS / "llama3")
    state, rng = in_precision(model, np.float64), np.random.default_rng(0)
    direction = {name: rng.standard_normal(a.shape) for name, a in state.items()}

    @jax.jit
    @jax.value_and_grad
    def at(size: float) -> jax.Array:
        moved = {name: a + size * direction[name] for name, a in state.items()}
        return jnp.mean(model.apply(moved, TOKENS)[0] ** 2)

    slope = (at(1e-5)[0] - at(-1e-5)[0]) / 2e-5
    np.testing.assert_allclose(at(0.0)[1], slope, rtol=1e-6)


def test_a_model_says_what_it_is() -> None:
    gpt2, llama = models.load(MODELS / "gpt2"), models.load(MODELS / "llama3")
    assert repr(gpt2) == "Model(gpt2: 1,992 parameters, 13 tokens)"
    assert (gpt2.longest, llama.longest, llama.family) == (16, None, "llama")


def test_a_token_beyond_the_vocabulary_gives_nan() -> None:
    model = models.load(MODELS / "gpt2")
    logits = jax.jit(model.apply)(model.parameters, np.array([[3, 13], [3, -1], [3, 12]]))
    assert np.all(np.isnan(logits[:2, 1])) and np.all(np.isfinite(logits[2]))


def test_tokens_that_do_not_fit_are_refused() -> None:
    model = models.load(MODELS / "gpt2")
    assert_refused(
        partial(model.apply, model.parameters),
        "Argument `tokens` must have at most 16 tokens in a sequence, the positions that the model "
        "has, but has 17.",
        np.zeros((1, 17), int),
    )
    assert_refused(
        partial(model.apply, model.parameters),
        "Argument `tokens` must hold ids of tokens and have shape (b, t), but has dtype float32 "
        "and shape (3,).",
        np.zeros(3, np.float32),
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return shutil.copytree(MODELS / "gpt2", tmp_path / "gpt2")


def reconfigured(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | entries), "utf-8")


def resaved(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = {name: np.array(a) for name, a in safetensors.load_file(path).items()}
    change(tensors)
    safetensors.save_file(tensors, path)


def test_early_checkpoints_without_prefix_and_with_buffers_are_read(checkpoint: Path) -> None:
    def early(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()

    resaved(checkpoint, early)
    found, wanted = models.load(checkpoint), models.load(MODELS / "gpt2")
    assert list(found.parameters) == list(wanted.parameters)
    assert all(np.array_equal(found.parameters[n], a) for n, a in wanted.parameters.items())


def test_configurations_of_before_transformers_5_are_read(tmp_path: Path) -> None:
    folder = shutil.copytree(MODELS / "mistral", tmp_path / "mistral")
    reconfigured(
        folder,
        rope_parameters=None,
        rope_theta=100.0,
        rope_scaling={"type": "linear", "factor": 4.0},
    )
    model = models.load(folder)
    logits = jax.jit(model.apply)(in_precision(model, np.float64), TOKENS)
    np.testing.assert_allclose(logits[0], GOLDEN["logits"]["mistral"][0], rtol=0, atol=1e-10)


SPOILED = {
    "another family": ({"model_type": "mamba"}, '"gpt2" or "llama" or "mistral" or "qwen2"'),
    "no size": ({"n_embd": None}, "an int of at least 1"),
    "heads that do not divide": ({"n_head": 3}, "a divisor of `n_embd`, 8,"),
    "an activation": (
        {"activation_function": "gelu_fast"},
        '"gelu" or "gelu_new" or "gelu_pytorch_tanh" or "relu" or "silu" or "swish"',
    ),
    "cross-attention": ({"add_cross_attention": True}, "false"),
    "no flag": ({"tie_word_embeddings": 1}, "true or false"),
    "no epsilon": ({"layer_norm_epsilon": 0}, "a positive number"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_configurations_of_other_models_are_refused(name: str, checkpoint: Path) -> None:
    ((key, value),), wanted = SPOILED[name][0].items(), SPOILED[name][1]
    reconfigured(checkpoint, **{key: value})
    found = "has no such entry" if value is None else f"has {json.dumps(value)}"
    assert_refused(
        models.load,
        f"Argument `folder` must have a config.json with {wanted} for `{key}`, but the one in "
        f"{checkpoint} {found}.",
        checkpoint,
    )


@pytest.mark.parametrize(
    ("entry", "value", "wanted"),
    [
        (
            "rope_parameters",
            {"rope_type": "yarn", "factor": 4.0},
            'the type "default", "linear" or "llama3"',
        ),
        ("rope_parameters", {"rope_type": "linear", "factor": "4"}, "a positive `factor`"),
        ("rope_parameters", [1], "an object"),
        ("partial_rotary_factor", 0.5, "1"),
        ("num_key_value_heads", 3, "a divisor of 2"),
        ("head_dim", 7, "an even number"),
    ],
)
def test_positions_and_heads_that_are_not_computed_are_refused(
    entry: str, value: Any, wanted: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(MODELS / "mistral", tmp_path / "mistral")
    reconfigured(folder, **{entry: value})
    with pytest.raises(ValueError) as caught:
        models.load(folder)
    assert f"must have a config.json with {wanted} for `{entry}`, but the one in" in str(
        caught.value
    )


def test_tensors_that_are_not_those_of_the_configuration_are_refused(checkpoint: Path) -> None:
    assert_sentence = partial(assert_refused, models.load)
    bias = "transformer.h.1.mlp.c_fc.bias"
    resaved(checkpoint, lambda tensors: tensors.update(spare=np.zeros(1, np.float32)))
    wanted = "Argument `folder` must hold the tensors that its config.json describes, but"
    assert_sentence(f"{wanted} {checkpoint} also has spare.", checkpoint)
    resaved(checkpoint, lambda tensors: (tensors.pop("spare"), tensors.pop(bias)))
    assert_sentence(f"{wanted} {checkpoint} lacks {bias}.", checkpoint)
    resaved(checkpoint, lambda tensors: tensors.update({bias: np.zeros(31, np.float32)}))
    assert_sentence(
        "Argument `folder` must hold tensors of the shapes that its config.json gives, but in "
        f"{checkpoint} {bias} has shape (31,) instead of (32,).",
        checkpoint,
    )
    resaved(checkpoint, lambda tensors: tensors.update({bias: np.full(32, np.nan, np.float32)}))
    assert_sentence(
        f"Argument `folder` must hold finite weights, but in {checkpoint} {bias} holds NaN or "
        "infinity.",
        checkpoint,
    )
    resaved(checkpoint, lambda tensors: tensors.update({bias: np.zeros(32, np.int8)}))
    assert_sentence(
        "Argument `folder` must hold weights in float64, float32, float16 or bfloat16, but in "
        f"{checkpoint} {bias} is of type I8.",
        checkpoint,
    )
    wte = "transformer.wte.weight"
    resaved(
        checkpoint,
        lambda tensors: tensors.update(
            {bias: np.zeros(32, np.float32), "lm_head.weight": tensors[wte] + 1}
        ),
    )
    assert_sentence(
        "Argument `folder` must hold tied embeddings, as its config.json says, but in "
        f"{checkpoint} lm_head.weight differs from {wte}.",
        checkpoint,
    )


def test_what_is_no_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    assert_sentence = partial(assert_refused, models.load)
    nowhere, weights = tmp_path / "nowhere", checkpoint / "model.safetensors"
    assert_sentence(
        f"Argument `folder` must be the folder of a checkpoint, but {nowhere} is not one.", nowhere
    )
    assert_sentence(
        "Argument `folder` must be the folder of a checkpoint, with a config.json, but "
        f"{tmp_path} has none.",
        tmp_path,
    )
    weights.unlink()
    assert_sentence(
        f"Argument `folder` must hold its weights in safetensors, but {checkpoint} lacks "
        "model.safetensors.",
        checkpoint,
    )
    (checkpoint / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert_sentence(
        f"Argument `folder` must hold its weights in model.safetensors, but {checkpoint} has "
        "pytorch_model.bin alone, a pickle, which can run any code when it is read: save the model "
        "again with save_pretrained(..., safe_serialization=True).",
        checkpoint,
    )
    index = checkpoint / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../gpt2/model.safetensors"}}', "utf-8")
    assert_sentence(
        "Argument `folder` must hold a model.safetensors.index.json that names files beside it, "
        f"but the one in {checkpoint} does not.",
        checkpoint,
    )
    index.unlink()
    weights.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="must hold weights in safetensors, but .* cannot be read"):
        models.load(checkpoint)
    reconfigured(checkpoint, quantization_config={"bits": 4})
    assert_sentence(
        "Argument `folder` must hold weights in float64, float32, float16 or bfloat16, but the "
        f"config.json of {checkpoint} says that they are quantised.",
        checkpoint,
    )
    (checkpoint / "config.json").write_text("[", "utf-8")
    with pytest.raises(ValueError, match=r"must hold a config\.json in JSON, but the one in"):
        models.load(checkpoint)
    (checkpoint / "config.json").write_text("[]", "utf-8")
    assert_sentence(
        "Argument `folder` must hold a config.json with a JSON object, but the one in "
        f"{checkpoint} has none.",
        checkpoint,
    )


def test_what_is_not_installed_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        models.load(MODELS / "gpt2")
    assert str(caught.value) == (
        "Checkpoints are read by safetensors, which is not installed: "
        "pip install 'flowlab-jax[models]'."
    )
