"""Ends of training runs in a file, so that none is carried out twice after an interruption."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowlab.solve.checkpoint import Checkpoint, identity_of

__all__ = ["FinishedRuns"]

_KIND = "flowlab forecast"  # by which a file of this kind is recognised


@dataclass(frozen=True)
class FinishedRuns:
    """A file with a few numbers for each run that was carried out.

    Attributes:
        path: The file; it need not exist yet.
    """

    path: Path

    def check(self) -> None:
        """Refuse a path that cannot be written, or a file of something else.

        Raises:
            ValueError: If it is a folder, its parent does not exist, or the file is another.
            NotWritableError: If it cannot be written.
        """
        Checkpoint(self.path, "").check()
        self._read()

    def get(self, *run: Any) -> list[float] | None:
        """The numbers of a run, which is identified by all that decides them; None if unknown."""
        return self._read().get(identity_of(*run))

    def add(self, numbers: list[float], *run: Any) -> None:
        """Add the numbers of a run, so that the old or the new file is always intact."""
        held = {**self._read(), identity_of(*run): numbers}
        beside = self.path.with_name(f"{self.path.name}.part")
        with beside.open("w", encoding="utf-8") as file:
            json.dump({"kind": _KIND, "runs": held}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)

    def _read(self) -> dict[str, list[float]]:
        if not self.path.is_file():
            return {}
        try:
            held = json.loads(self.path.read_text("utf-8"))
        except ValueError:
            held = None
        if not isinstance(held, dict) or held.get("kind") != _KIND:
            raise ValueError(
                "Argument `checkpoint` must be a new file or that of an earlier forecast, but "
                f"{self.path} is neither; name another."
            )
        return held["runs"]
