"""The command that explains a model: the library's numbers, with the texts of the pairs."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import flowlab_command, refusal

import flowlab as fl
from flowlab import data, displacement, models
from flowlab.displacement import Explanation
from flowlab.policies import LanguageModel

REVERSAL = Path(__file__).parent / "data" / "reversal"
COUNT = 8


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = (REVERSAL / "pairs.jsonl").read_text("utf-8").splitlines()[230 : 230 + COUNT]
    path = tmp_path_factory.mktemp("explained") / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def explain(some: Path, *words: Any) -> Any:
    given = ("--model", REVERSAL, "--data", some, "--beta", 0.1)
    return flowlab_command("explain", *given, *words)


@pytest.fixture(scope="module")
def policy(some: Path) -> LanguageModel:
    model, pairs = models.load(REVERSAL), data.preferences(some, REVERSAL)
    return model.policy(pairs, chunk=64)


@pytest.fixture(scope="module")
def wanted(policy: LanguageModel) -> Explanation:
    return displacement.explain(fl.preference_flow(fl.DPO(0.1), policy), policy.start)


def test_what_the_command_prints_is_what_the_library_finds(some, wanted):
    told = explain(some, "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    np.testing.assert_allclose(record["rate"], wanted.rate, rtol=1e-5)
    assert record["rows"] == list(range(COUNT))
    text = explain(some, "--pairs", 1).stdout
    assert wanted.table() in text
    worst = int(wanted.lowering(1)[0])
    assert f"\nrow {worst}: -" in text
    row = json.loads(some.read_text("utf-8").splitlines()[worst])
    for name in ("prompt", "chosen", "rejected"):
        assert row[name].replace("<eos>", "").strip() in text


def test_kernels_of_means_are_products_of_mean_gradients(policy, wanted):
    @jax.jit
    def mean_gradients(state):
        means = (lambda y, s=side: policy.log_probs(y)[:, s].mean() for side in range(2))
        return tuple(jax.grad(mean)(state) for mean in means)

    both = mean_gradients(policy.start)
    flat = [jnp.concatenate([x.ravel() for x in jax.tree.leaves(one)]) for one in both]
    products = [[float(one @ other) for other in flat] for one in flat]
    np.testing.assert_allclose(wanted.mean_kernel, products, rtol=1e-4)
    # At the reference all slopes are alike.
    np.testing.assert_allclose(wanted.weighted_kernel, products, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--learning-rate", 0.1], "--learning-rate has no effect without --batch-size"),
        (["--batch-size", 4], "--batch-size has no effect without --learning-rate"),
        (["--learning-rate", 0.1, "--batch-size", 9], "at most the number of pairs, 8, but is 9"),
        (["--beta", -1], "--beta must be positive and finite"),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused(some, words, sentence):
    assert sentence in refusal(explain(some, *words))
