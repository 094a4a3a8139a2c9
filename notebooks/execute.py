"""Runs notebooks and the gallery from top to bottom, and stores what they print and draw.

    python notebooks/execute.py                    # all of them, in some ten minutes
    python notebooks/execute.py 02_losses.ipynb gallery.md

The manual is built from what is stored, in seconds, and a reader of the repository sees the
figures. `tests/test_manual.py` finds a notebook whose code was changed and not run since.
"""

import argparse
import base64
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parent
sys.path.insert(0, str(NOTEBOOKS.parent / "tests"))

from manual import ROOT, fingerprint, run  # noqa: E402, what the tests compare with

# A figure of lines and a colour map is told from the original by nobody, in a third of the bytes.
COLOURS = 128
SLOWEST_CELL = 600  # seconds


def execute(path: Path) -> None:
    """Runs a notebook in its own folder, and writes it back with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=SLOWEST_CELL,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
    ).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            shrink(output.get("data", {}))
    # The version of Python that happened to run it is no part of the notebook.
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["executed"] = fingerprint(notebook)
    nbformat.write(notebook, path)


def draw(page: Path) -> None:
    """Runs the code of a page, and stores the pictures that it leaves behind in its folder."""
    stored = page.with_suffix("")
    stored.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        (folder / "tests").symlink_to(ROOT / "tests")
        wrong = run(page)
        if wrong:
            sys.exit("\n".join(wrong))
        for picture in folder.glob("*.png"):
            (stored / picture.name).write_bytes(in_few_colours(picture.read_bytes()))


def shrink(data: dict[str, str]) -> None:
    """Draws a picture with few colours, in place, and drops what shows a table a second time."""
    data.pop("text/html", None)
    if "image/png" in data:
        picture = in_few_colours(base64.b64decode(data["image/png"]))
        data["image/png"] = base64.b64encode(picture).decode("ascii")


def in_few_colours(picture: bytes) -> bytes:
    """A PNG with a palette."""
    small = io.BytesIO()
    whole = Image.open(io.BytesIO(picture)).convert("RGB")
    whole.quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> None:
    """Runs what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME.ipynb|gallery.md")
    names = parser.parse_args().names
    everything = [*sorted(NOTEBOOKS.glob("*.ipynb")), NOTEBOOKS / "gallery.md"]
    for path in [NOTEBOOKS / name for name in names] or everything:
        (draw if path.suffix == ".md" else execute)(path)
        print(f"{path.name} is stored.", flush=True)


if __name__ == "__main__":
    main()
