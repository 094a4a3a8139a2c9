"""Hugging Face checkpoints on disk: a configuration in JSON, and tensors in safetensors."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flowlab.models.architecture import AbstractArchitecture

__all__ = ["Config", "read_tensors"]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float32, "BF16": np.float32}
_SHOWN = 3  # names in a message


def _refused(wanted: str, found: str) -> ValueError:
    return ValueError(f"Argument `folder` must {wanted}, but {found}.")


@dataclass(frozen=True)
class Config:
    """The `config.json` of a checkpoint; each entry is checked when it is read.

    Attributes:
        folder: The folder of the checkpoint.
        entries: The entries of the file.
    """

    folder: Path
    entries: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Config":
        """The configuration in a folder.

        Raises:
            ValueError: If there is no configuration, if it is not a JSON object, or if the weights
                are quantised.
        """
        if not folder.is_dir():
            raise _refused("be the folder of a checkpoint", f"{folder} is not one")
        entries = _read_json(folder, "config.json")
        if entries.get("quantization_config"):
            raise _refused(
                "hold weights in float64, float32, float16 or bfloat16",
                f"the config.json of {folder} says that they are quantised",
            )
        return cls(folder, entries)

    def choice(self, key: str, *known: str, default: str | None = None) -> str:
        """An entry that must be one of several words."""
        value = self.entries.get(key, default)
        if value not in known:
            raise self.wrong(key, " or ".join(json.dumps(word) for word in known), value)
        return value

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """An entry that must be a whole number; the default if it is absent or null."""
        value = self.entries.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, f"an int of at least {least}", value)
        return value

    def positive(self, key: str, default: float) -> float:
        """An entry that must be a positive number."""
        value = self.entries.get(key, default)
        if not is_positive(value):
            raise self.wrong(key, "a positive number", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """An entry that must be true or false."""
        value = self.entries.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def wrong(self, key: str, wanted: str, value: object) -> ValueError:
        """The error for a wrong entry."""
        found = "has no such entry" if value is None else f"has {json.dumps(value, default=str)}"
        return _refused(
            f"have a config.json with {wanted} for `{key}`", f"the one in {self.folder} {found}"
        )


def is_positive(value: object) -> bool:
    """True for a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value < float("inf")


def read_tensors(
    folder: Path, architecture: AbstractArchitecture
) -> dict[str, Float[np.ndarray, "..."]]:
    """The parameters in a folder, by name, in the order of the architecture.

    Raises:
        ValueError: If the folder has no weights in safetensors, or if the weights are not those of
            the architecture or not finite.
    """
    shapes = architecture.shapes()
    found: dict[str, np.ndarray] = {}
    repeated: list[tuple[str, str, np.ndarray]] = []
    extra: list[str] = []
    for file, stored in _stored(folder):
        twin, name = architecture.twin(stored), architecture.parameter(stored)
        if twin is not None:
            repeated.append((stored, twin, _tensor(folder, file, stored, shapes[twin])))
        elif name in shapes:
            found[name] = _tensor(folder, file, stored, shapes[name])
        elif name is not None:
            extra.append(stored)
    for names, wrong in ((shapes.keys() - found.keys(), "lacks"), (extra, "also has")):
        if names:
            raise _refused(
                "hold the tensors that its config.json describes",
                f"{folder} {wrong} {_listed(names)}",
            )
    for stored, twin, tensor in repeated:
        if not np.array_equal(tensor, found[twin]):
            raise _refused(
                "hold tied embeddings, as its config.json says",
                f"in {folder} {stored} differs from {twin}",
            )
    return {name: found[name] for name in shapes}


def _stored(folder: Path) -> Iterator[tuple[Any, str]]:
    """The name of each tensor of a checkpoint, with the open file that holds it."""
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Checkpoints are read by safetensors, which is not installed: "
            "pip install 'flowlab-jax[models]'.",
            name=error.name,
        ) from None
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                yield from ((file, name) for name in file.keys())
        except (SafetensorError, OSError) as error:
            raise _refused(
                "hold weights in safetensors", f"{path} cannot be read: {error}"
            ) from None


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint."""
    if (folder / _INDEX).is_file():
        placed = _read_json(folder, _INDEX).get("weight_map")
        names = set(placed.values()) if isinstance(placed, dict) else set()
        if not names or not all(isinstance(name, str) and _is_bare(name) for name in names):
            raise _refused(
                f"hold a {_INDEX} that names files beside it", f"the one in {folder} does not"
            )
        files = [folder / name for name in sorted(names)]
    else:
        files = [folder / _WEIGHTS]
    missing = [path.name for path in files if not path.is_file()]
    if not missing:
        return files
    pickles = sorted(path.name for kind in _PICKLES for path in folder.glob(kind))
    if pickles and missing == [_WEIGHTS]:
        raise _refused(
            "hold its weights in model.safetensors",
            f"{folder} has {_listed(pickles)} alone, a pickle, which can run any code when it is "
            "read: save the model again with save_pretrained(..., safe_serialization=True)",
        )
    raise _refused("hold its weights in safetensors", f"{folder} lacks {_listed(missing)}")


def _is_bare(name: str) -> bool:
    """True for a file name without a path."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", ":"}


def _tensor(folder: Path, file: Any, name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """One tensor, in float32 or float64, after its header has been checked."""
    header = file.get_slice(name)
    if tuple(header.get_shape()) != shape:
        raise _refused(
            "hold tensors of the shapes that its config.json gives",
            f"in {folder} {name} has shape {tuple(header.get_shape())} instead of {shape}",
        )
    if header.get_dtype() not in _FLOATS:
        raise _refused(
            "hold weights in float64, float32, float16 or bfloat16",
            f"in {folder} {name} is of type {header.get_dtype()}",
        )
    # JAX brings the type that NumPy needs to read bfloat16.
    tensor = np.asarray(file.get_tensor(name)).astype(_FLOATS[header.get_dtype()])
    if not np.all(np.isfinite(tensor)):
        raise _refused("hold finite weights", f"in {folder} {name} holds NaN or infinity")
    return tensor


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint."""
    try:
        held = json.loads((folder / name).read_text("utf-8"))
    except FileNotFoundError:
        raise _refused(
            f"be the folder of a checkpoint, with a {name}", f"{folder} has none"
        ) from None
    except (OSError, ValueError) as error:
        raise _refused(
            f"hold a {name} in JSON", f"the one in {folder} is invalid: {error}"
        ) from None
    if not isinstance(held, dict):
        raise _refused(f"hold a {name} with a JSON object", f"the one in {folder} has none")
    return held


def _listed(names: Any) -> str:
    """The first few of several names, and the number of the others."""
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
