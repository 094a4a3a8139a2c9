"""The backend `kernel`: every lane takes its own steps, in a Pallas kernel on a GPU or TPU.

A lane is one flow line during its integration. The program of a lane is that of a block with a
single lane (`solve.engine`), with the same problem, method, events and loop over steps.
`solve.row_control` rewrites this program for a row of lanes side by side, each with its own step. A
loop runs until the last lane of the row has left it; it does not change lanes that have left it
before. Lanes do not interact otherwise, so that the bits of a lane do not depend on the other lanes
of its row. A lane whose steps become too small, or that goes past its level, starts again from its
start under the arc-length clock; `blocks` continues the former from its present state. There are no
small blocks: a lane that uses up its steps has the outcome `step_limit`. Stabilised methods and
Rodas5P are left to `blocks`. Results agree with those of `blocks` to the tolerance, not in their
bits.

n: starts.
"""

import math
import re
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from flowlab.ensemble.drawing import chunk_on, count_of, first_of
from flowlab.solve import Method, Problem, Program, advance, begin, finish, safe_problem
from flowlab.solve.row_control import program_in_rows
from flowlab.solve.rows import NoRowsError, in_rows
from flowlab.starts import DrawnStarts
from flowlab.until import Outcome

__all__ = ["BACKEND", "CHIPS", "Chip", "RefusedError", "refusal", "solved"]

Device = Any  # jax.Device, which type checkers do not accept as a type

BACKEND = "kernel"
"""The name of this backend, in which each lane takes all its steps in one Pallas program."""

_CHUNK = 2**21  # starts of a call: several times as many as a chip handles at once
_CHUNK_BYTES = 2**30  # the most memory for the results of a call
_AHEAD = 2  # calls queued on each device while results are collected
_SMALLEST = 1024  # the fewest starts of a call, padded, so that few sizes are compiled


class Chip(NamedTuple):
    """A kind of device, and the form of kernels for it.

    Attributes:
        platform: The name of the platform that JAX lowers for.
        lanes: Shape of the row of lanes that one program integrates.
        kind: The maker's name of a device of this kind.
        lacking: Functions that the device's compiler does not support, and that must be expressed
            by others.
    """

    platform: str
    lanes: tuple[int, ...]
    kind: str
    lacking: tuple[str, ...] = ()


CHIPS = {
    "gpu": Chip("cuda", (32,), "NVIDIA H100"),  # the lanes of a warp
    "tpu": Chip("tpu", (8, 128), "TPU v5 lite", ("expm1",)),  # the registers of its vector unit
}
"""The chips with kernels, by the platform of a device."""


class RefusedError(Exception):
    """The error for a problem that cannot be compiled to a kernel; the message gives the reason."""


def solved(
    problem: Problem,
    method: Method,
    starts: PyTree[np.ndarray] | DrawnStarts,
    *,
    devices: Sequence[Device],
    max_steps: int,
    progress: Callable[[int], Any] = lambda n: None,
    elsewhere: Callable[..., dict[str, Any]],
    interpret: bool = False,
) -> dict[str, Any]:
    """The results for all starts, first axis n, in the order of the starts.

    Args:
        problem: The problem.
        method: The solver and its step-size controller.
        starts: Leaves of shape (n, ...), or `DrawnStarts`.
        devices: Devices of one kind.
        max_steps: Largest number of attempted steps of a lane.
        progress: Called with the number of starts that have ended since the last call.
        elsewhere: The function that integrates lanes that start again, if their problem cannot be
            compiled to a kernel.
        interpret: Whether to interpret the kernel operation by operation, on any device; slow.

    Raises:
        RefusedError: If the problem cannot be compiled to a kernel for these devices.
    """
    if method.unfit_for_kernels is not None:
        raise RefusedError(method.unfit_for_kernels)
    chip = CHIPS["gpu"] if interpret else CHIPS[devices[0].platform]
    count = count_of(starts)
    run = _Chunks(problem, method, starts, chip, interpret)
    results: dict[str, Any] = {}
    evicted, again = np.zeros(count, bool), []
    for index, found, left, strayed in run.results(devices, max_steps):
        if not results:
            results = jax.tree.map(lambda x: np.empty((count, *x.shape[1:]), x.dtype), found)
        jax.tree.map(partial(_put, index), results, found)
        evicted[index] = left
        again += [strayed] if np.any(left) else []
        progress(len(left) - int(np.sum(left)))
    if again:
        safe = safe_problem(problem), method, jax.tree.map(lambda *x: np.concatenate(x), *again)
        options: Any = dict(devices=devices, max_steps=max_steps, interpret=interpret)
        try:
            found = solved(*safe, progress=progress, elsewhere=elsewhere, **options)
        except RefusedError:
            found = elsewhere(*safe, progress=progress)
        jax.tree.map(partial(_put, evicted), results, found)
    return results


def refusal(problem: Problem, method: Method, starts: PyTree[np.ndarray], chip: Chip) -> str | None:
    """The reason why a problem cannot be lowered for a chip; None if it can.

    Args:
        problem: The problem.
        method: The solver and its step-size controller.
        starts: Some starts, leaves of shape (n, ...).
        chip: The chip, which need not be present.
    """
    run = _Chunks(problem, method, starts, chip, False)
    try:
        with _as_if_on(chip), _quietly():
            run.program.lowered(*run.shapes(None), platform=chip.platform)
    except Exception as error:  # of many kinds, none of which is public
        return _reason(error)
    return None


def _put(index: Any, target: np.ndarray, source: np.ndarray) -> None:
    target[index] = source


class _Chunks:
    """Starts in chunks of equal size; one call of the kernel integrates a chunk."""

    def __init__(
        self,
        problem: Problem,
        method: Method,
        starts: PyTree[np.ndarray] | DrawnStarts,
        chip: Chip,
        interpret: bool,
    ) -> None:
        self.starts, self.count = starts, count_of(starts)
        leaves = jax.tree.leaves(first_of(starts))
        self.wide = problem.rtol.dtype == np.float64
        width = sum(int(np.prod(leaf.shape[1:])) * leaf.itemsize for leaf in leaves)
        most = min(_CHUNK, max(_SMALLEST, 2 ** int(np.log2(_CHUNK_BYTES / (4 * width)))))
        smallest = int(np.prod(chip.lanes)) if interpret else _SMALLEST
        self.size = min(most, max(smallest, 2 ** int(np.ceil(np.log2(self.count)))))
        self.program = Program(
            _for_chip(chip, interpret), (problem, method), optimise=not interpret
        )

    def shapes(self, device: Device | None) -> tuple[Any, Any]:
        """Shapes and dtypes of the arguments of a call on a device: starts, number of steps."""
        place = None if device is None else jax.sharding.SingleDeviceSharding(device)

        def shape(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
            full = (self.size, *leaf.shape[1:])
            return jax.ShapeDtypeStruct(full, leaf.dtype, sharding=place)

        steps = jax.ShapeDtypeStruct((), jnp.int32, sharding=place)
        return jax.tree.map(shape, first_of(self.starts)), steps

    def results(
        self, devices: Sequence[Device], max_steps: int
    ) -> Iterator[tuple[slice, dict[str, Any], Bool[np.ndarray, " n"], PyTree[np.ndarray]]]:
        """For each chunk: indices, results, a mask of the lanes to start again, their starts.

        While one chunk is collected, the next chunks are being integrated.
        """
        with jax.enable_x64(self.wide):
            calls = [_compiled(self, device) for device in devices]
            under_way: deque[tuple[slice, Any, Any]] = deque()
            for number, first in enumerate(range(0, self.count, self.size)):
                place = slice(first, min(first + self.size, self.count))
                device, call = devices[number % len(devices)], calls[number % len(devices)]
                given = chunk_on(device, self.starts, first, self.size)
                steps = jax.device_put(np.int32(max_steps), device)
                found = self.program.run(call, device, given, steps)
                for leaf in jax.tree.leaves(found):
                    leaf.copy_to_host_async()
                under_way.append((place, given, found))
                if len(under_way) > _AHEAD * len(devices):
                    yield self._collected(*under_way.popleft())
            while under_way:
                yield self._collected(*under_way.popleft())

    def _collected(self, index: slice, given: Any, found: Any) -> tuple[slice, Any, Any, Any]:
        number = index.stop - index.start
        results, evicted = jax.tree.map(lambda x: np.asarray(x)[:number], found)
        strayed = np.flatnonzero(evicted)
        again = jax.tree.map(lambda x: np.asarray(x[strayed]), given) if len(strayed) else None
        return index, results, evicted, again


_EXECUTABLES: OrderedDict[tuple[Any, ...], Any] = OrderedDict()  # or errors
_MOST_EXECUTABLES = 256  # as many programs as `solve.compilation` knows


def _compiled(run: _Chunks, device: Device) -> Callable[..., Any]:
    """The program of some chunks, compiled for a device; programs and failures are cached.

    Raises:
        RefusedError: If the program cannot be lowered or compiled.
    """
    given = run.shapes(device)
    shapes = tuple((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(given))
    key = (run.program.key, jax.tree.structure(given), shapes, device)
    if key not in _EXECUTABLES:
        try:
            with _quietly():
                _EXECUTABLES[key] = run.program.lowered(*given).compile()
        except Exception as error:  # of many kinds, none of which is public
            _EXECUTABLES[key] = RefusedError(_reason(error))
        while len(_EXECUTABLES) > _MOST_EXECUTABLES:
            _EXECUTABLES.popitem(last=False)
    found = _EXECUTABLES[key]
    if isinstance(found, RefusedError):
        raise found
    return found


_NOTES = ("JaxStackTraceBeforeTransformation",)  # causes that only say where an error was


def _reason(error: BaseException) -> str:
    """The reason of an error in lowering: the name of the unsupported primitive, or the message."""
    while error.__cause__ is not None and type(error.__cause__).__name__ not in _NOTES:
        error = error.__cause__
    if isinstance(error, NoRowsError):
        return str(error)
    text = " ".join(str(error).split())
    named = re.search(r"primitive in Pallas \w+ lowering(?: for \S+)?: ([\w-]+)", text)
    return named.group(1) if named else f"{type(error).__name__}: {text[:160]}"


@contextmanager
def _quietly() -> Iterator[None]:
    """A context without the warning that Pallas may drop its GPU backend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Pallas Triton.*", DeprecationWarning)
        yield


def _as_if_on(chip: Chip) -> Any:
    """A context in which newer releases of JAX lower for a chip that is not present."""
    abstract = getattr(jax.sharding, "AbstractDevice", None)
    if abstract is None or not hasattr(jax.sharding, "use_abstract_mesh"):
        return nullcontext()
    platform = "gpu" if chip.platform == "cuda" else chip.platform
    device = abstract(platform=platform, device_kind=chip.kind, num_cores=None)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def _compiler_options(chip: Chip) -> dict[str, Any]:
    """The options of `pallas_call` for a chip; they also choose the Pallas backend."""
    if chip.platform != "cuda":
        return {}
    from jax.experimental.pallas import triton

    return {"compiler_params": triton.CompilerParams(num_warps=1, num_stages=1)}


@cache
def _for_chip(chip: Chip, interpret: bool) -> Callable[..., Any]:
    """The function `_all_steps` for a chip; the same object each time, as a key of caches."""
    return partial(_all_steps, chip, interpret)


class _Packing:
    """A layout that packs the elements of several arrays into one array per dtype.

    Booleans are stored as integers.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        self.arrays = arrays
        self.sizes: dict[str, int] = {}
        self.firsts: list[int] = []
        for array in arrays:
            name = _stored(array.dtype)
            self.firsts.append(self.sizes.get(name, 0))
            self.sizes[name] = self.firsts[-1] + int(np.prod(array.shape))

    def joined(self, arrays: Sequence[Array], name: str, lead: tuple[int, ...]) -> Array:
        """The elements of all arrays that are stored as the dtype `name`, on the first axis.

        The arrays may have further trailing axes, of shape `lead`.
        """
        chosen = [
            jnp.reshape(array, (-1, *lead)).astype(name)
            for array, packed in zip(arrays, self.arrays, strict=True)
            if _stored(packed.dtype) == name
        ]
        return jnp.concatenate(chosen)

    def read(self, element: Callable[[str, int], Any]) -> list[np.ndarray]:
        """The arrays as object arrays, with elements from `element(dtype, position)`."""
        found = []
        for array, first in zip(self.arrays, self.firsts, strict=True):
            name = _stored(array.dtype)
            elements = np.empty(array.shape, object)
            for number, place in enumerate(np.ndindex(*array.shape)):
                value = element(name, first + number)
                elements[place] = value != 0 if array.dtype == np.bool_ else value
            found.append(elements)
        return found


def _stored(dtype: Any) -> str:
    return "int32" if np.dtype(dtype) == np.bool_ else np.dtype(dtype).name


def _lane(
    solved: tuple[Problem, Method], start: PyTree[Array], max_steps: Int[Array, ""]
) -> tuple[dict[str, Any], Bool[Array, ""]]:
    """The results of one start, and a flag that it must start again under another clock."""
    problem, method = solved
    lanes = begin(problem, jax.tree.map(lambda leaf: leaf[..., None], start))
    lanes, tries, _ = advance(problem, method, lanes, max_steps=max_steps)
    results = finish(problem, lanes)
    spent = lanes.active & (tries >= max_steps)
    results["outcome"] = jnp.where(spent, jnp.int32(Outcome.step_limit), results["outcome"])
    return jax.tree.map(lambda leaf: leaf[..., 0], (results, lanes.evicted & (lanes.outcome == 0)))


def _all_steps(
    chip: Chip,
    interpret: bool,
    solved: tuple[Problem, Method],
    starts: PyTree[Array],
    max_steps: Int[Array, ""],
) -> tuple[dict[str, Any], Bool[Array, " n"]]:
    """The results of starts (first axis), and a mask of those to start again, by one kernel."""
    shared, rest = eqx.partition((solved, max_steps), eqx.is_array)
    numbers, structure = jax.tree.flatten(shared)
    leaves, of_starts = jax.tree.flatten(starts)

    def of_lane(numbers: list[Array], leaves: list[Array]) -> Any:
        both, steps = eqx.combine(jax.tree.unflatten(structure, numbers), rest)
        return _lane(both, jax.tree.unflatten(of_starts, leaves), steps)

    given = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves]
    with in_rows(True):
        program, results = jax.make_jaxpr(of_lane, return_shape=True)(numbers, given)
    packed = _Packing(numbers), _Packing(given), _Packing(jax.tree.leaves(results))
    found = _called(chip, interpret, program, packed, numbers, leaves)
    return jax.tree.unflatten(jax.tree.structure(results), found)


def _in_rows(chip: Chip, program: Any, packed: tuple[_Packing, ...]) -> Callable[..., None]:
    """A kernel that runs the program of one lane for a row of lanes, on packed arrays."""
    of_numbers, of_starts, of_results = packed

    def kernel(*refs: Any) -> None:
        left = iter(refs)
        shared, own, out = ({name: next(left) for name in part.sizes} for part in packed)
        arguments = of_numbers.read(lambda name, at: shared[name][at])
        arguments += of_starts.read(lambda name, at: own[name][at])
        results = program_in_rows(program, arguments, chip.lanes, chip.lacking)
        places = zip(of_results.firsts, of_results.arrays, strict=True)
        for result, (first, array) in zip(results, places, strict=True):
            name = _stored(array.dtype)
            for number, row in enumerate(result.flat):
                out[name][first + number] = row.astype(name)

    return kernel


def _called(
    chip: Chip,
    interpret: bool,
    program: Any,
    packed: tuple[_Packing, _Packing, _Packing],
    numbers: list[Array],
    leaves: list[Array],
) -> list[Array]:
    """The results of a kernel for the program of one lane, with starts on the first axis."""
    from jax.experimental import pallas

    of_numbers, of_starts, of_results = packed
    count, lanes = leaves[0].shape[0], chip.lanes
    rows = (count,) if len(lanes) == 1 else (count // lanes[-1], lanes[-1])

    last = [jnp.moveaxis(leaf, 0, -1) for leaf in leaves]
    operands = [_padded(of_numbers.joined(numbers, name, ())) for name in of_numbers.sizes]
    specs = [_of_all(chip, operand) for operand in operands]
    operands += [of_starts.joined(last, name, rows) for name in of_starts.sizes]
    specs += [_of_rows(chip, size) for size in of_starts.sizes.values()]
    sizes = of_results.sizes.items()
    shapes = [jax.ShapeDtypeStruct((size, *rows), name) for name, size in sizes]
    made = pallas.pallas_call(
        _in_rows(chip, program, packed),
        grid=(count // math.prod(lanes),),
        in_specs=specs,
        out_specs=[_of_rows(chip, size) for _, size in sizes],
        out_shape=shapes,
        interpret=interpret,
        **_compiler_options(chip),
    )(*operands)
    return _apart(of_results, made, count)


def _apart(packing: _Packing, made: Sequence[Array], count: int) -> list[Array]:
    """The arrays of a packing, unpacked from rows, with starts on the first axis."""
    whole = dict(zip(packing.sizes, made, strict=True))
    arrays = []
    for array, first in zip(packing.arrays, packing.firsts, strict=True):
        rows = whole[_stored(array.dtype)][first : first + math.prod(array.shape)]
        last = rows.reshape(*array.shape, count)
        arrays.append(jnp.moveaxis(last, -1, 0).astype(array.dtype))
    return arrays


def _padded(numbers: Array) -> Array:
    """Numbers padded to a power of two, as Triton requires."""
    length = 2 ** int(np.ceil(np.log2(numbers.size)))
    return jnp.concatenate([numbers, jnp.zeros(length - numbers.size, numbers.dtype)])


def _of_all(chip: Chip, operand: Array) -> Any:
    """The Pallas block specification of an array that every program reads as a whole."""
    from jax.experimental import pallas

    if chip.platform == "tpu":
        from jax.experimental.pallas import tpu

        return pallas.BlockSpec(memory_space=tpu.SMEM)
    return pallas.BlockSpec(operand.shape, lambda program: (0,))


def _of_rows(chip: Chip, size: int) -> Any:
    """The Pallas block specification of an array of rows, one per element, for each program."""
    from jax.experimental import pallas

    after = (0,) * (len(chip.lanes) - 1)
    return pallas.BlockSpec((size, *chip.lanes), lambda program: (0, program, *after))
