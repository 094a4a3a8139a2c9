"""The command as its tests give it: its words, what it answers, and runs that nothing solved."""

from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner, Result

from flowlab import LogRatioPlane, cards, cli, losses, until
from flowlab.ensemble import Runs

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "tests" / "data" / "dpo_beta0.1_similar_sft300.json"
RATIO = {"--loss": "dpo", "--beta": "0.3", "--policy": "ratio", "--until": "loss_below=0.1"}
GRID = {"--starts": "grid", "--shape": ("3", "4")}
UNIFORM = {"--starts": "uniform", "--count": "5"}
CORNERS = {"--lower": ("-2", "-1"), "--upper": ("0", "1")}
LOG_RATIO = {**RATIO, "--policy": "log_ratio", **CORNERS}


def flowlab_command(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def swept(out: Path, *options: dict[str, Any], flags: tuple[str, ...] = ()) -> Result:
    """What `flowlab sweep` did with options, of which later ones replace earlier ones."""
    merged = {name: value for group in options for name, value in group.items()}
    words: list[Any] = []
    for name, value in merged.items():
        if isinstance(value, list):
            words += [word for item in value for word in (name, item)]
        elif value is not None:
            words += [name, *(value if isinstance(value, tuple) else (value,))]
    return flowlab_command("sweep", *words, *flags, "--out", out)


def refusal(result: Result, code: int = 2) -> str:
    """The one line on stderr with which the command stopped."""
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("flowlab: ")
    return lines[0].removeprefix("flowlab: ")


def made_up(starts: np.ndarray, time: float = 1.5) -> Runs:
    times = np.full(len(starts), time)
    codes = np.full(len(starts), int(until.Outcome.reached), np.int32)
    return Runs(
        starts,
        outcome=codes,
        time=times,
        end_time=times,
        end=starts,
        level_times=times[:, None],
        saved=None,
        measures={},
        steps=codes,
        over={},
        save_at=np.zeros(0),
        rtol=1e-6,
    )


def made_up_card(loss: losses.AbstractLoss, *, reach: float) -> cards.Card:
    still = cards.Approach("constant", 0.0, 0.0)
    return cards.Card(
        loss=loss,
        plane=LogRatioPlane(),
        reach=reach,
        value=0.25,
        gradient=(-0.5, 0.5),
        speed=0.75,
        critical_sets=(),
        approach={"chosen": still, "rejected": still, "margin": still},
        plateau=cards.Plateau(0.0, np.nan),
        traps=cards.Traps(False, 0.0, 0.0, 0.0),
        fall=cards.Fall(0.0, False, ""),
        conserved="u_w + u_l",
        bound=cards.Bound(True, 0.0),
        crossings=(),
    )


def assert_same(mine: Any, expected: Any) -> None:
    """What was made is what was expected, in its type, its text and its numbers."""
    assert type(mine) is type(expected)
    assert repr(mine) == repr(expected)
    for name in vars(expected):
        np.testing.assert_equal(getattr(mine, name), getattr(expected, name))
