"""The README's example prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_prints_what_it_says():
    text = README.read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```\n\nprints\n\n```\n(.*?)```", text, re.S)
    assert found is not None
    code, printed = found.groups()
    assert 10 <= len(code.strip().splitlines()) <= 16
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {})
    assert output.getvalue() == printed


def test_the_two_commands_stand_on_lines_of_their_own():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert "pip install . && flowlab study" in lines
    assert "pip install '.[test]' && pytest" in lines


def test_the_figure_is_there():
    (image,) = re.findall(r"!\[.*?\]\((.*?)\)", README.read_text(encoding="utf-8"), re.S)
    assert (README.parent / image).stat().st_size > 10_000
