"""A minibatch step of `descent.descend`, against a loop written by hand in optax; its memory.

The small GPT-2 of the tests, DPO by AdamW. Steps are timed in turn, after both have compiled, and
the log-ratios that both end with are compared. The memory is that of a process that trains one
large table, by plain gradient descent, over the size of that table.
"""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import optax
from _common import emit, parser
from _problem import peak_mib

import flowlab
from flowlab import data, descent, models
from flowlab.policies import Policy, response_log_probs

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "data" / "reversal"
BETA, RATE, BATCH = 0.1, 3e-4, 16
STEPS, SMOKE_STEPS = 64, 2
REPETITIONS = 5
WIDTH, SMOKE_WIDTH = 6000, 300  # tokens of the table, whose size is their square
MIB = 2**20


def by_hand(model: models.Model, pairs: data.Pairs, optimiser: Any) -> Any:
    """The loop as one writes it: from the pairs of each step to the state after the last."""
    start = jax.tree.map(jax.numpy.asarray, model.parameters)
    step = _step_by_hand(model, optimiser)
    of_all = jax.jit(partial(response_log_probs, model.apply))
    references = np.asarray(of_all(start, pairs.tokens, pairs.mask))

    def trained(order: list[np.ndarray]) -> Any:
        state, memory = start, optimiser.init(start)
        for taken in order:
            batch = pairs.tokens[taken], pairs.mask[taken], references[taken]
            state, memory = step(state, memory, batch)
        return jax.block_until_ready(state)

    return trained


def _step_by_hand(model: models.Model, optimiser: Any) -> Any:
    def loss(state: Any, batch: Any) -> Any:
        tokens, mask, references = batch
        lines = tokens.reshape(-1, tokens.shape[-1])
        logs = jax.nn.log_softmax(model.apply(state, lines)[:, :-1])
        taken = jax.numpy.take_along_axis(logs, lines[:, 1:, None], axis=-1)[..., 0]
        kept = mask.reshape(lines.shape)[:, 1:]
        ratios = (taken * kept).sum(axis=1).reshape(-1, 2) - references
        return -jax.nn.log_sigmoid(BETA * (ratios[:, 0] - ratios[:, 1])).mean()

    @jax.jit
    def step(state: Any, memory: Any, batch: Any) -> Any:
        updates, memory = optimiser.update(jax.grad(loss)(state, batch), memory, state)
        return optax.apply_updates(state, updates), memory

    return step


def compared(steps: int, repetitions: int) -> dict[str, Any]:
    """Seconds of a step both ways, in turn."""
    model, pairs = models.load(FOLDER), data.preferences(FOLDER / "pairs.jsonl", FOLDER)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE))
    order = descent.hf_order(len(pairs), 12, BATCH)[: 2 * steps]
    policy = model.policy(pairs, chunk=2 * BATCH)
    flow = flowlab.preference_flow(flowlab.DPO(BETA), policy)
    options: dict[str, Any] = dict(keep_states=False, watch=(), keep_every=len(order))

    def ours(part: list[np.ndarray]) -> Any:
        return descent.descend(flow, policy.start, optimiser, batches=part, **options).end

    ways = {"descend": ours, "by_hand": by_hand(model, pairs, optimiser)}
    # What a run costs beside its steps is in a short and a long one alike.
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    ends = {}
    for way in ways.values():
        way(order)  # compiles
    for _ in range(repetitions):
        for name, way in ways.items():
            times = []
            for part in (order[:steps], order):
                began = time.perf_counter()
                ends[name] = way(part)
                times.append(time.perf_counter() - began)
            seconds[name].append((times[1] - times[0]) / steps)
    apart = max(
        float(np.max(np.abs(a - b)))
        for a, b in zip(*(jax.tree.leaves(end) for end in ends.values()), strict=True)
    )
    per_step = {name: median(held) for name, held in seconds.items()}
    return {
        "seconds_per_step": per_step,
        "ratio": per_step["descend"] / per_step["by_hand"],
        "largest_difference_of_parameters": apart,
    }


def table_trained(width: int) -> dict[str, float]:
    """Peak memory of training one table of logits by successors, in this process."""

    def bigrams(table: Any, tokens: Any) -> Any:
        return table[tokens]

    table = np.zeros((width, width), np.float32)
    tokens = np.arange(16, dtype=np.int32).reshape(2, 2, 4)
    mask = np.ones_like(tokens, bool)
    mask[..., 0] = False
    pairs = data.Pairs(tokens, mask, np.full((2, 2), 3.0), np.arange(2))
    before = peak_mib() or 0.0
    policy = Policy.from_model(bigrams, table, pairs)
    flow = flowlab.preference_flow(flowlab.DPO(BETA), policy)
    options: dict[str, Any] = dict(keep_states=False, watch=())
    descent.descend(flow, table, optax.sgd(0.1), batches=[[0], [1]] * 8, **options)
    return {"table_mib": table.nbytes / MIB, "beyond_table_mib": (peak_mib() or 0.0) - before}


def main() -> None:
    """Time steps both ways, and measure the memory in a process of its own."""
    arguments = parser("A minibatch step of descend, against a loop written by hand in optax.")
    arguments.add_argument("--table", type=int, help="train one table of this width, and tell")
    options = arguments.parse_args()
    if options.table:
        sys.stdout.write(f"{json.dumps(table_trained(options.table))}\n")
        return
    width = SMOKE_WIDTH if options.smoke else WIDTH
    command = [sys.executable, __file__, "--table", str(width)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    memory = json.loads(answer.stdout.splitlines()[-1])
    memory["over_parameters"] = memory["beyond_table_mib"] / memory["table_mib"]
    steps, repetitions = (SMOKE_STEPS, 1) if options.smoke else (STEPS, REPETITIONS)
    result = {
        "benchmark": "minibatch",
        "problem": f"GPT-2 of 234,048 parameters, batches of {BATCH} pairs, AdamW",
        **compared(steps, repetitions),
        "memory": memory,
    }
    emit(result, options.out)


if __name__ == "__main__":
    main()
