"""What a function computes now is what is solved, whatever was compiled before."""

import functools
import importlib
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowlab as fl
from flowlab import domains, losses, measures, policies, until
from flowlab.flow import AbstractFlow
from flowlab.solve import compilation, fingerprint, make_problem, motion_of, one_call

STATE = jax.ShapeDtypeStruct((2,), np.float64)
SCALE, UNRELATED = 1.0, 1.0
CHANGE = Callable[[], Any]


def operations(flow: Any, **options: Any) -> str:
    """The fingerprint under which programs for a flow are kept."""
    asked: dict[str, Any] = {"until": until.time(1.0), "dtype": np.float64, "state": STATE}
    flow = flow if isinstance(flow, AbstractFlow) else fl.Flow(flow)
    return make_problem(flow, **{**asked, **options}).operations


def bowl(y: Any) -> Any:
    return 0.5 * SCALE * jnp.sum(y**2)


def helper(y: Any) -> Any:
    return SCALE * y


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    globals().update(SCALE=1.0, UNRELATED=1.0)


def a_global() -> tuple[Any, CHANGE]:
    return bowl, lambda: globals().update(SCALE=2.0)


def a_global_of_a_helper() -> tuple[Any, CHANGE]:
    return lambda y: jnp.sum(helper(y) ** 2), lambda: globals().update(SCALE=2.0)


def a_closure() -> tuple[Any, CHANGE]:
    scale = 1.0

    def potential(y: Any) -> Any:
        return scale * jnp.sum(y**2)

    def change() -> None:
        nonlocal scale
        scale = 2.0

    return potential, change


def a_default() -> tuple[Any, CHANGE]:
    def potential(y: Any, scale: float = 1.0) -> Any:
        return scale * jnp.sum(y**2)

    return potential, lambda: setattr(potential, "__defaults__", (2.0,))


def a_keyword_default() -> tuple[Any, CHANGE]:
    def potential(y: Any, *, scale: float = 1.0) -> Any:
        return scale * jnp.sum(y**2)

    return potential, lambda: setattr(potential, "__kwdefaults__", {"scale": 2.0})


def an_attribute_of_a_function() -> tuple[Any, CHANGE]:
    def potential(y: Any) -> Any:
        return potential.scale * jnp.sum(y**2)  # type: ignore[attr-defined]

    potential.scale = 1.0  # type: ignore[attr-defined]
    return potential, lambda: setattr(potential, "scale", 2.0)


class Bowl:
    scale: ClassVar[float] = 1.0

    def __call__(self, y: Any) -> Any:
        return self.scale * jnp.sum(y**2)

    def method(self, y: Any) -> Any:
        return self(y)


def an_attribute_of_a_callable_object() -> tuple[Any, CHANGE]:
    made = Bowl()
    return made, lambda: setattr(made, "scale", 2.0)


def an_attribute_behind_a_method() -> tuple[Any, CHANGE]:
    made = Bowl()
    return made.method, lambda: setattr(made, "scale", 2.0)


def an_attribute_of_a_class() -> tuple[Any, CHANGE]:
    kind = type("Kind", (Bowl,), {})
    return kind(), lambda: setattr(kind, "scale", 2.0)


def a_method_of_a_class() -> tuple[Any, CHANGE]:
    kind = type("Kind", (Bowl,), {})
    return kind(), lambda: setattr(kind, "__call__", lambda self, y: jnp.sum(y**4))


def a_list_behind_a_partial() -> tuple[Any, CHANGE]:
    scales = [1.0]
    made = functools.partial(lambda scales, y: scales[0] * jnp.sum(y**2), scales)
    return made, lambda: scales.__setitem__(0, 2.0)


def another_partial() -> tuple[Any, CHANGE]:
    def potential(y: Any, scale: float) -> Any:
        return scale * jnp.sum(y**2)

    made = [functools.partial(potential, scale=1.0)]
    change = functools.partial(made.__setitem__, 0, functools.partial(potential, scale=2.0))
    return lambda y: made[0](y), change


def a_dict() -> tuple[Any, CHANGE]:
    held = {"scale": 1.0}
    return lambda y: held["scale"] * jnp.sum(y**2), lambda: held.update(scale=2.0)


def a_captured_numpy_array() -> tuple[Any, CHANGE]:
    held = np.ones(2)
    return lambda y: jnp.sum(held * y**2), lambda: held.__setitem__(1, 2.0)


def a_captured_array_of_jax() -> tuple[Any, CHANGE]:
    held = [jnp.ones(2)]
    return lambda y: jnp.sum(held[0] * y**2), lambda: held.__setitem__(0, jnp.full(2, 2.0))


def a_branch_of_python() -> tuple[Any, CHANGE]:
    held = {"steep": False}
    potential = lambda y: jnp.sum(y**4) if held["steep"] else jnp.sum(y**2)  # noqa: E731
    return potential, lambda: held.update(steep=True)


def the_length_of_a_loop() -> tuple[Any, CHANGE]:
    held = [3]

    def potential(y: Any) -> Any:
        return jax.lax.fori_loop(0, held[0], lambda _, x: x + jnp.sum(y**2), jnp.zeros(()))

    return potential, lambda: held.__setitem__(0, 4)


def the_body_of_a_loop() -> tuple[Any, CHANGE]:
    held = [1.0]

    def potential(y: Any) -> Any:
        return jax.lax.fori_loop(0, 3, lambda _, x: x + held[0] * y[0] ** 2, jnp.zeros(()))

    return potential, lambda: held.__setitem__(0, 2.0)


def a_rule_for_a_derivative() -> tuple[Any, CHANGE]:
    held = [1.0]

    @jax.custom_jvp
    def norm(y: Any) -> Any:
        return jnp.sum(y**2)

    norm.defjvp(lambda y, dy: (norm(*y), held[0] * jnp.sum(y[0] * dy[0])))
    return lambda y: norm(y), lambda: held.__setitem__(0, 2.0)


def a_rule_for_reverse_mode() -> tuple[Any, CHANGE]:
    held = [1.0]

    @jax.custom_vjp
    def norm(y: Any) -> Any:
        return jnp.sum(y**2)

    norm.defvjp(lambda y: (norm(y), y), lambda y, ct: (held[0] * y * ct,))
    return lambda y: norm(y), lambda: held.__setitem__(0, 2.0)


def on_the_host(host: Any) -> Any:
    """A potential of which a part is computed by a function on the host."""

    def potential(y: Any) -> Any:
        shape, held = jax.ShapeDtypeStruct((), y.dtype), jax.lax.stop_gradient(y)
        return jnp.sum(y**2) + jax.pure_callback(host, shape, held, vmap_method="sequential")

    return potential


def a_value_that_the_host_captured() -> tuple[Any, CHANGE]:
    held = {"scale": np.ones(2)}
    potential = on_the_host(lambda y: np.sum(held["scale"] * y))
    return potential, lambda: held.update(scale=np.full(2, 2.0))


def host(y: Any) -> Any:
    return np.sum(host_helper(y))


def host_helper(y: Any) -> Any:
    return SCALE * np.asarray(y)


def a_global_of_a_helper_on_the_host() -> tuple[Any, CHANGE]:
    return on_the_host(host), lambda: globals().update(SCALE=2.0)


def an_attribute_of_an_object_on_the_host() -> tuple[Any, CHANGE]:
    made = Bowl()
    return on_the_host(made.method), lambda: setattr(made, "scale", 2.0)


def a_constant_on_the_host() -> tuple[Any, CHANGE]:
    made: list[Any] = [lambda y: 1.0 * np.sum(y)]
    potential = lambda y: on_the_host(made[0])(y)  # noqa: E731
    return potential, lambda: made.__setitem__(0, lambda y: 2.0 * np.sum(y))


def what_is_printed_from_the_host() -> tuple[Any, CHANGE]:
    held = [1.0]

    def potential(y: Any) -> Any:
        jax.debug.callback(lambda y: held[0] * y, y)
        return jnp.sum(y**2)

    return potential, lambda: held.__setitem__(0, 2.0)


CHANGED = [
    a_global, a_global_of_a_helper, a_closure, a_default, a_keyword_default,
    an_attribute_of_a_function, an_attribute_of_a_callable_object, an_attribute_behind_a_method,
    an_attribute_of_a_class, a_method_of_a_class, a_list_behind_a_partial, another_partial, a_dict,
    a_captured_numpy_array, a_captured_array_of_jax, a_branch_of_python, the_length_of_a_loop,
    the_body_of_a_loop, a_rule_for_a_derivative, a_rule_for_reverse_mode,
    a_value_that_the_host_captured, a_global_of_a_helper_on_the_host,
    an_attribute_of_an_object_on_the_host, a_constant_on_the_host, what_is_printed_from_the_host,
]  # fmt: skip


@pytest.mark.parametrize("way", CHANGED, ids=lambda way: way.__name__)
def test_a_function_that_has_changed_is_another_one(way):
    potential, change = way()
    flow = fl.Flow(potential)
    before = operations(flow)
    assert operations(flow) == operations(fl.Flow(potential)) == before
    change()
    assert operations(flow) == operations(fl.Flow(potential)) != before


def test_a_module_that_is_loaded_again_is_another_one_if_it_computes_something_else(
    tmp_path, monkeypatch
):
    def written(text: str) -> None:
        (tmp_path / "loaded_again.py").write_text(text)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written("def V(y): return (y**2).sum()")
    module = importlib.import_module("loaded_again")
    before = operations(module.V)
    written("# the same\ndef V(point):\n    squares = point**2\n    return squares.sum()")
    assert operations(importlib.reload(module).V) == before
    written("def V(y): return 2 * (y**2).sum()")
    assert operations(importlib.reload(module).V) != before


def test_what_the_host_holds_is_told_by_what_it_is_and_not_by_where_it_lies():
    def potential(*held: Any) -> str:
        return operations(on_the_host(lambda y: np.sum(y) * len(held)))

    around: list[Any] = []
    around.append(around)
    one, two = [1.0], [1.0]
    assert potential(one, one) == potential(one, two) != potential(one, [2.0])
    assert potential(np.random.default_rng(0).normal, {"a", "b"}) == potential(
        np.random.default_rng(0).normal, {"b", "a"}
    )
    assert potential({"a": 1}.get) != potential({"a": 2}.get)
    assert potential(around, logging.getLogger("flowlab")) == potential(
        around, logging.getLogger("flowlab")
    )


def test_what_computes_the_same_is_the_same():
    before = operations(bowl)
    globals()["UNRELATED"] = 2.0
    assert operations(bowl) == before
    assert operations(lambda point: 0.5 * SCALE * jnp.sum(point**2)) == before
    # Numbers that a module holds as fields are arguments of a program, not parts of it.
    assert operations(Quadratic(1.0)) == operations(Quadratic(2.0))
    assert operations(Quadratic(1.0)) != operations(Quadratic(np.ones(2)))


class Quadratic(eqx.Module):
    scale: Any = eqx.field(converter=np.asarray)

    def __call__(self, y: Any) -> Any:
        return 0.5 * jnp.sum(self.scale * y**2)


def test_only_functions_of_the_user_are_looked_at():
    assert operations(fl.preference_flow(fl.DPO(0.1), fl.RatioPlane())) == ""
    assert operations(bowl, measures=[measures.path_length()]) != ""


class Tilted(losses.AbstractLoss):
    def __call__(self, pairs: Any) -> Any:
        return SCALE * jax.nn.softplus(-pairs.margin)


class Turned(policies.AbstractPolicy):
    domain: Any = domains.WholeSpace()
    wall: Any = eqx.field(static=True, default="stop")

    def pairs(self, state: Any) -> losses.Pair:
        return fl.LogRatioPlane().pairs(SCALE * state)


class Wide(domains.WholeSpace):
    def contains(self, state: Any) -> Any:
        return jnp.all(jnp.abs(state) < SCALE)


def climb(flow: Any, state: Any, velocity: Any) -> Any:
    return SCALE * velocity[1]


def metric(state: Any, covector: Any) -> Any:
    return SCALE * covector


def log_probs(state: Any) -> Any:
    return jax.nn.log_softmax(SCALE * state)


OTHERS: dict[str, Callable[[], str]] = {
    "a loss": lambda: operations(fl.preference_flow(Tilted(), fl.LogRatioPlane())),
    "a policy": lambda: operations(fl.preference_flow(fl.DPO(0.1), Turned())),
    "a policy of a function": lambda: operations(
        fl.preference_flow(fl.DPO(0.1), fl.Policy.from_function(log_probs, reference=np.ones(2)))
    ),
    "a metric": lambda: operations(fl.Flow(jnp.sum, metric=metric)),
    "a domain": lambda: operations(fl.Flow(jnp.sum, domain=Wide())),
    "a measure": lambda: operations(
        fl.Flow(jnp.sum), measures=[measures.Measure(("climb",), rate=climb)]
    ),
    "what ends a measure": lambda: operations(
        fl.Flow(jnp.sum),
        measures=[measures.Measure(("end",), at_end=lambda _, ends: (SCALE * ends.end[0],))],
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_takes_a_function_sees_what_it_computes_now(what):
    before = OTHERS[what]()
    assert OTHERS[what]() == before
    globals()["SCALE"] = 2.0
    assert OTHERS[what]() != before


def test_what_is_solved_is_what_a_function_computes_now_and_is_compiled_once_for_each():
    held = np.ones(2)
    flow = fl.Flow(lambda y: 0.5 * SCALE * jnp.sum(held * y**2))

    def end(of: Any = flow, dtype: Any = np.float64) -> np.ndarray:
        return fl.sweep(of, np.ones((1, 2), dtype), until=until.time(1.0)).end[0]

    np.testing.assert_allclose(end(), np.exp([-1.0, -1.0]), rtol=1e-6)
    globals()["SCALE"] = 2.0
    np.testing.assert_allclose(end(), np.exp([-2.0, -2.0]), rtol=1e-6)
    held[1] = 0.5
    np.testing.assert_allclose(end(), np.exp([-2.0, -1.0]), rtol=1e-6)
    compiled = compilation._bound.cache_info().misses
    globals()["SCALE"], held[1] = 1.0, 1.0
    np.testing.assert_allclose(end(), np.exp([-1.0, -1.0]), rtol=1e-6)
    assert compilation._bound.cache_info().misses == compiled
    # The same array, float64, in 32 bits: JAX keeps what it first made of it.
    np.testing.assert_allclose(end(dtype=np.float32), np.exp([-1.0, -1.0]), rtol=1e-4)
    held[1] = 0.5
    np.testing.assert_allclose(end(dtype=np.float32), np.exp([-1.0, -0.5]), rtol=1e-4)


def test_a_function_that_the_user_has_compiled_is_what_jax_says_it_is():
    held = [1.0]
    potential = jax.jit(lambda y: held[0] * jnp.sum(y**2))
    before, now = operations(potential), jnp.ones(2)
    held[0] = 2.0
    assert operations(potential) == before
    assert potential(now) == 2.0
    potential.clear_cache()  # type: ignore[attr-defined]
    assert operations(potential) != before


def test_within_one_call_functions_are_looked_at_once():
    looks = []

    def potential(y: Any) -> Any:
        looks.append(SCALE)
        return SCALE * jnp.sum(y**2)

    flow = fl.Flow(potential)
    with one_call():
        first = fingerprint(flow, STATE, motion_of)
        seen = len(looks)
        globals()["SCALE"] = 2.0
        assert fingerprint(flow, STATE, motion_of) == first
        assert len(looks) == seen
    assert fingerprint(flow, STATE, motion_of) != first


def test_a_fingerprint_is_the_same_in_another_process():
    program = (
        "import jax, sys; jax.config.update('jax_enable_x64', True)\n"
        "sys.path.insert(0, 'tests')\n"
        "import test_fingerprints as here\n"
        "print([here.operations(way()[0]) for way in here.CHANGED])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert told.stdout.strip() == str([operations(way()[0]) for way in CHANGED])
