"""Imports every module, runs the README's example, and each command once; warnings are errors.

What it tries is the flowlab that is installed. With --lowest, deprecations are let pass that the
oldest releases allowed meet in newer ones of what they need themselves.
"""

import contextlib
import importlib
import io
import pkgutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# typer 0.18 calls click by names of old, and matplotlib 3.9 pyparsing, which names itself for it.
OF_OLD_RELEASES = r"(typer|matplotlib|pyparsing)\b"
SWEEP = (
    "sweep --loss dpo --beta 0.3 --policy ratio --starts grid --shape 8 8 --until loss_below=0.1 "
    "--measure path_length --store-block 32 --quiet"
)
COMMANDS = (
    f"{SWEEP} --out runs.zarr",
    f"{SWEEP} --float32 --out single.zarr",
    "resume runs.zarr",
    "status runs.zarr",
    "show runs.zarr --figure maps.png",
    "losses dpo --figure card.png --json card.json",
    "portrait --loss dpo --beta 0.3 --policy ratio --figure portrait.png",
    "displacement --loss dpo --cells 3 --out displacement",
    "study --quick --beta 0.3 --out study",
)


def main() -> None:
    """Try everything; the first that fails ends it."""
    warnings.simplefilter("error")
    if "--lowest" in sys.argv:
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=OF_OLD_RELEASES)
    with timed("every module imported"):
        import_all()
    with timed("the README's example"), tempfile.TemporaryDirectory() as folder:
        with contextlib.chdir(folder):
            run_readme()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for line in COMMANDS:
            if line.startswith("resume"):
                forget_a_block()
            with timed(f"flowlab {line}"):
                command(line)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Says what was done, and how long it took."""
    began = time.perf_counter()
    yield
    print(f"{time.perf_counter() - began:5.1f} s  {what}", flush=True)


def run_readme() -> None:
    """Runs the README's example, which prints what the README says."""
    sys.path.insert(0, str(ROOT / "tests"))
    from manual import README, run

    wrong = run(README)
    if wrong:
        sys.exit("\n".join(wrong))


def import_all() -> None:
    """Imports every module but the one that starts the command."""
    import flowlab

    for module in pkgutil.walk_packages(flowlab.__path__, "flowlab."):
        if module.name != "flowlab.__main__":
            importlib.import_module(module.name)


def command(line: str) -> None:
    """Runs the command in this process, where what is compiled for one serves the next."""
    from flowlab import cli

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            cli.app(line.split())
    except SystemExit as end:
        if end.code:
            sys.exit(f"{printed.getvalue()}flowlab {line}: exit code {end.code}")


def forget_a_block() -> None:
    """Leaves something to `flowlab resume`."""
    from flowlab.store.blocks import Block, BlockStore

    BlockStore.open("runs.zarr").forget(Block((), 1))


if __name__ == "__main__":
    main()
