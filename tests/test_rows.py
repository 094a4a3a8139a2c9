"""Functions of one lane, evaluated in rows: the same as `jax.vmap`, whatever the function does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned

import flowlab as fl
from flowlab import until
from flowlab.domains import Box, Simplex
from flowlab.solve import Program
from flowlab.solve.row_control import program_in_rows
from flowlab.solve.rows import NoRowsError, in_rows, lanewise

LANES = 37
RANDOM = np.random.default_rng(0)
PLANE = jnp.asarray(RANDOM.uniform(0.1, 2.0, (2, LANES)))
SPACE = jnp.asarray(RANDOM.normal(size=(5, LANES)))
KERNEL = np.array([[1.0, 0.5], [0.5, 1.5]])
WIDE = RANDOM.normal(size=(90, 5))


@pytest.fixture(autouse=True)
def rows():
    with in_rows(True):
        yield


def scanned(y):
    return jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x) + x, y)


def branched(y):
    return jax.lax.cond(y[0] > 0, jnp.sin, jnp.cos, y)


def recursive(y):
    return jax.lax.while_loop(lambda x: jnp.sum(x**2) < 9, lambda x: 2 * x + 1, y)


FUNCTIONS = {
    "a gradient": jax.grad(lambda y: jnp.log(1 + y[1] / y[0]) ** 2 + jnp.prod(y)),
    "a Hessian": jax.hessian(lambda y: jnp.sum(jnp.exp(-y) * jnp.roll(y, 1))),
    "a product with a shared matrix": lambda y: jnp.asarray(WIDE[:2, :2]) @ y[:2],
    "a product of matrices of the lane": lambda y: jnp.outer(y, y) @ jnp.outer(y, 1 + y),
    "a product with a large shared matrix": lambda y: jnp.asarray(WIDE[:, :2]) @ y[:2],
    "reductions": lambda y: (y.sum(), y.max(), y.min(), y.prod(), jnp.all(y > 0), jnp.any(y > 1)),
    "shapes": lambda y: jnp.pad(jnp.flip(y)[None], ((0, 1), (2, 1))).T[::2],
    "negative padding": lambda y: jax.lax.pad(y, 7.0, ((-1, 2, 1),)),
    "pieces": lambda y: jnp.concatenate([y[1:], y[:1] * 2, jnp.zeros(2)]).reshape(-1, 1),
    "sorting, which has no rows": lambda y: jnp.sort(y)[::-1] + jnp.cumsum(y),
    "indexing by what a lane holds": lambda y: y[jnp.argmax(y)],
    "a logarithm of a sum": lambda y: jax.nn.logsumexp(y) + jax.nn.softmax(y)[0],
    "choices": lambda y: jnp.where(y > 0.5, y, jnp.select([y > 0.2, y > 0.1], [y, 2 * y], -1.0)),
    "integers": lambda y: (
        (jnp.floor(3 * y).astype(jnp.int32) % 2) * jnp.arange(y.size, dtype=jnp.int32)
    ),
    "constants alone": lambda y: (jnp.ones(3), jnp.zeros((0, 2)), y[:0]),
    "the argument itself": lambda y: (y, y[0]),
    "a loop": scanned,
    "a branch": branched,
    "a loop of unknown length": recursive,
    "a solution of equations": lambda y: jnp.linalg.solve(jnp.eye(y.size) + jnp.outer(y, y), y),
}


@pytest.mark.parametrize("size", thinned(["two", "five"], {"five"}))
@pytest.mark.parametrize("name", thinned(FUNCTIONS, set(FUNCTIONS) - {"a Hessian"}))
def test_rows_give_what_vmap_gives(name, size):
    function, arrays = FUNCTIONS[name], {"two": PLANE, "five": SPACE}[size]
    wanted = jax.jit(jax.vmap(function, in_axes=-1, out_axes=-1))(arrays)
    found = jax.jit(lanewise(function))(arrays)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=1e-13, atol=1e-14)


def looked_up(y):
    index = jnp.argmax(y)
    return y[index], y[-index - 1], y.at[index].set(7.0), jnp.argmin(y)


def counted(y):
    def step(carry):
        total, count = carry
        return total + y[count % y.size] ** 2, count + 1

    start = jnp.zeros(()), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0] < 3.0, step, start)


def nested(y):
    def deep(x):
        return jax.lax.cond(x.sum() > 2, recursive, lambda z: (z, -z)[1], x)

    return jax.lax.switch(jnp.argmax(y), [jnp.sin, deep, lambda x: x], y)


def large(matrix, y):
    return matrix @ y


def walked(y):
    return jax.lax.scan(lambda total, x: (total + x, total * x), y[0], y, reverse=True)


# What only a program in rows has rules for; `lanewise` maps it by `vmap`.
CONTROL = {
    "a look-up": looked_up,
    "a loop that counts for each lane": counted,
    "branches with loops in them": nested,
    "a loop along an array": walked,
    "a long loop": lambda y: jax.lax.fori_loop(0, 100, lambda _, x: jnp.cos(x), y),
    "a sort and its gradient": jax.grad(
        lambda y: (jnp.sort(y) * jnp.arange(1.0, y.size + 1)).sum()
    ),
    "a stable sort of several": lambda y: jax.lax.sort((jnp.round(y), y), num_keys=1),
    "sums along an array": lambda y: (jnp.cumsum(y), jnp.cumprod(y), jax.lax.cummax(y)),
    "elements at known places": lambda y: (y[np.array([1, 0, 1])], y.at[np.array([0, 0])].add(2.0)),
    "polynomials at many points": lambda y: jnp.polyval(
        jnp.stack([y, 2.0 * y])[..., None], y[None, :1]
    ),
    "a polynomial": lambda y: jnp.polyval(jnp.stack([y[0], y[1], 2.0 * y[0], y[1] - 1.0]), y),
    "the next number": lambda y: jnp.nextafter(y, jnp.inf),
    "a bit pattern": lambda y: jax.lax.bitcast_convert_type(y, jnp.int64) >> 3,
}


# What no program in rows can do, and the names by which it says so.
REFUSED = {
    "a solution of equations": (FUNCTIONS["a solution of equations"], "lu|linear_solve"),
    "a product with a larger matrix": (
        functools.partial(large, np.ones((500, 5))),
        "an array of 2,500 elements",
    ),
    "an array of very many": (
        lambda y: jnp.sum(jnp.ones((y.size, 300)) * y[:, None]),
        "of 1,500 elements",
    ),
}


def in_one_program(function, arrays, **options):
    """A function of one lane as a kernel carries it out, outside a kernel."""
    one = jax.ShapeDtypeStruct(arrays.shape[:-1], arrays.dtype)
    program, shapes = jax.make_jaxpr(function, return_shape=True)(one)

    def carried_out(arrays):
        rows = np.empty(one.shape, object)
        for place in np.ndindex(*one.shape):
            rows[place] = arrays[place]
        found = program_in_rows(program, [rows], arrays.shape[-1:], **options)
        return [
            jnp.stack(list(x.flat)).reshape(*x.shape, -1)
            if x.size
            else jnp.zeros((*x.shape, LANES))
            for x in found
        ]

    return jax.tree.unflatten(jax.tree.structure(shapes), jax.jit(carried_out)(arrays))


@pytest.mark.parametrize("size", thinned(["two", "five"], {"five"}))
@pytest.mark.parametrize("name", [n for n in (*FUNCTIONS, *CONTROL) if n not in REFUSED])
def test_a_program_in_rows_gives_what_vmap_gives(name, size):
    function, arrays = {**FUNCTIONS, **CONTROL}[name], {"two": PLANE, "five": SPACE}[size]
    wanted = jax.jit(jax.vmap(function, in_axes=-1, out_axes=-1))(arrays)
    found = in_one_program(function, arrays)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_in_rows_is_named(name):
    function, named = REFUSED[name]
    with pytest.raises(NoRowsError, match=named):
        in_one_program(function, SPACE)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_what_a_chip_lacks_is_written_otherwise_and_as_exact(dtype):
    """By decades, of both signs, into overflow; against NumPy with more digits."""
    numbers = np.concatenate([-np.logspace(-12, 2.9, 40), [0.0], np.logspace(-12, 2.9, 40)])
    points = jnp.asarray(numbers[None], dtype)
    found = in_one_program(lambda y: jnp.expm1(y[0]), points, lacking=("expm1",))
    with np.errstate(over="ignore"):
        wanted = np.expm1(np.asarray(points[0], np.longdouble)).astype(dtype)
    np.testing.assert_allclose(found, wanted, rtol=8 * np.finfo(dtype).eps)


FLOWS = {
    "ratio": fl.preference_flow(fl.DPO(0.3), fl.RatioPlane()),
    "simplex": fl.preference_flow(fl.losses.IPO(0.3), fl.RatioPlane(Simplex())),
    "kernel": fl.preference_flow(fl.losses.DiscoPOP(), fl.LogRatioPlane(KERNEL)),
    "softmax": fl.preference_flow(
        fl.DPO(0.3), fl.TabularSoftmax([0.2, 0.3, 0.5], [(0, 1), (2, 1)], fisher=True)
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_the_velocity_of_a_flow_is_the_same_in_rows(name):
    flow = FLOWS[name]
    states = PLANE if flow.state_shape == (2,) else SPACE[:3]
    wanted = jax.jit(jax.vmap(flow.velocity, in_axes=-1, out_axes=-1))(states)
    found = jax.jit(lanewise(flow.velocity))(states)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


def test_several_arguments_and_what_is_closed_over_are_told_apart():
    factor = jnp.asarray(3.0)

    def function(first, second):
        return {"sum": factor * first.sum() + second, "pair": (first, factor)}

    found = lanewise(function)(PLANE, SPACE[0])
    np.testing.assert_allclose(found["sum"], 3 * PLANE.sum(axis=0) + SPACE[0], rtol=1e-14)
    assert found["pair"][0] is PLANE
    assert found["pair"][1].shape == (LANES,)


def test_a_rule_of_its_own_survives_when_rows_are_differentiated():
    @jax.custom_jvp
    def blunt(x):
        return x**2

    @blunt.defjvp
    def _(primals, tangents):
        return blunt(*primals), 100 * tangents[0]

    mapped = lanewise(lambda y: blunt(y[0]) + y[1])
    _, change = jax.jvp(mapped, (PLANE,), (jnp.ones_like(PLANE),))
    np.testing.assert_allclose(change, np.full(LANES, 101.0))


def test_the_gradient_of_the_paper_is_compiled_without_a_transposition():
    flow = FLOWS["ratio"]

    def compiled(function):
        return str(jax.jit(function).lower(PLANE).compile().as_text())

    assert f"f64[{LANES},2]" not in compiled(lanewise(flow.velocity))
    assert f"f64[{LANES},2]" in compiled(jax.vmap(flow.velocity, -1, -1))


def test_a_program_is_fresh_once_for_problems_that_differ_in_values_alone():
    def scaled(problem, x):
        return problem["factor"] * x

    first = Program(scaled, {"factor": jnp.asarray(2.0)}, optimise=True)
    again = Program(scaled, {"factor": jnp.asarray(3.0)}, optimise=True)
    other = Program(scaled, {"factor": 4.0}, optimise=True)
    assert (first.fresh, again.fresh, other.fresh) == (True, False, True)
    values = [float(program(jnp.asarray(1.0))) for program in (first, again, other)]
    assert values == [2.0, 3.0, 4.0]


LOSSES_OF_A_MARGIN = {"0.1": fl.DPO(0.1), "2": fl.DPO(2.0)}


@pytest.mark.parametrize("name", LOSSES_OF_A_MARGIN)
def test_the_margin_at_a_level_gives_that_loss(name):
    loss = LOSSES_OF_A_MARGIN[name]
    flow = fl.preference_flow(loss, fl.LogRatioPlane())
    levels = np.array([3.0, 0.5, 1e-3, 1e-12])
    margins = flow.margin_at(levels)
    assert margins is not None
    states = np.stack([margins, np.zeros(4)], axis=1)
    np.testing.assert_allclose(jax.vmap(flow.potential)(states), levels, rtol=1e-12)


def test_only_a_falling_function_of_one_margin_has_a_margin_clock():
    pairs = fl.TabularSoftmax([0.2, 0.3, 0.5], [(0, 1), (2, 1)])
    target = until.loss_below(0.1)
    assert target.clocks(FLOWS["ratio"])[0] == "margin"
    assert until.margin_above(1.0).clocks(FLOWS["ratio"])[0] == "margin"
    for flow in (
        FLOWS["simplex"],
        fl.preference_flow(fl.DPO(0.3), pairs),
        fl.preference_flow(fl.DPO(0.3, divergence=fl.losses.ForwardKL()), fl.LogRatioPlane()),
        fl.Flow(lambda y: (y**2).sum()),
    ):
        assert "margin" not in target.clocks(flow)
    assert "margin" not in until.loss_below(0.0).clocks(FLOWS["ratio"])


WALLED = {
    "free": fl.RatioPlane(),
    "box": fl.RatioPlane(Box(1, 1), wall="slide"),
    "simplex": fl.RatioPlane(Simplex(), wall="slide"),
    "kernel": fl.LogRatioPlane(KERNEL),
}


@functools.cache
def run(name, clock):
    points = np.random.default_rng(1).uniform(0.05, 0.49, (60, 2))
    flow = fl.preference_flow(fl.DPO(0.3), WALLED[name])
    target = until.loss_below(0.4, 0.2, 0.1)
    # Only what is optimised runs in rows: the others are mapped by `vmap`.
    optimise = clock == "margin"
    return fl.sweep(flow, points, until=target, clock=clock, rtol=1e-9, optimise=optimise)


@pytest.mark.parametrize("clock", thinned(["loss", "arc_length"], {"arc_length"}))
@pytest.mark.parametrize("name", thinned(WALLED, ()))
def test_neither_the_margin_clock_nor_rows_change_a_result(name, clock):
    margin, other = run(name, "margin"), run(name, clock)
    np.testing.assert_array_equal(margin.outcome, other.outcome)
    np.testing.assert_allclose(margin.level_times, other.level_times, rtol=3e-8)
    np.testing.assert_allclose(margin.end, other.end, rtol=3e-8, atol=1e-10)
