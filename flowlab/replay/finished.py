"""A file with the ends of finished training runs, so that no run is ever repeated."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowlab._files import replacing
from flowlab.solve.checkpoint import check_place, identity_of

__all__ = ["FinishedRuns"]

_KIND = "flowlab forecast"  # an entry that identifies a file of this kind


@dataclass(frozen=True)
class FinishedRuns:
    """A file with a few numbers for each finished run.

    Attributes:
        path: The file; it need not exist yet.
    """

    path: Path

    def check(self) -> None:
        """Refuse a path that cannot be written to, or a file with other contents.

        Raises:
            ValueError: If the path is a folder, if its parent does not exist, or if the file has
                other contents.
            NotWritableError: If the path cannot be written to.
        """
        check_place(self.path)
        self._read()

    def get(self, *run: Any) -> list[float] | None:
        """The numbers of a run, identified by all arguments that affect it; None if unknown."""
        return self._read().get(identity_of(*run))

    def add(self, numbers: list[float], *run: Any) -> None:
        """Add the numbers of a run; an interruption leaves the old or the new file intact."""
        held = {**self._read(), identity_of(*run): numbers}
        with replacing(self.path) as file:
            file.write(json.dumps({"kind": _KIND, "runs": held}).encode())

    def _read(self) -> dict[str, list[float]]:
        if not self.path.is_file():
            return {}
        try:
            held = json.loads(self.path.read_text("utf-8"))
        except ValueError:
            held = None
        if not isinstance(held, dict) or held.get("kind") != _KIND:
            raise ValueError(
                "Argument `checkpoint` must be a new file or the file of an earlier forecast, but "
                f"{self.path} is neither; name another."
            )
        return held["runs"]
