"""The README's examples print what the README says."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_examples_print_what_they_say():
    text = README.read_text(encoding="utf-8")
    examples = re.findall(r"```python\n([^`]*)```\n\nprints\n\n```\n([^`]*)```", text)
    assert len(examples) == 3
    names: dict = {}
    for code, printed in examples:
        assert 9 <= len(code.strip().splitlines()) <= 16
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, "README.md", "exec"), names)
        assert output.getvalue() == printed


def test_the_two_commands_stand_on_lines_of_their_own():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert "pip install . && flowlab study" in lines
    assert "pip install '.[test]' && pytest" in lines


def test_the_figure_is_there():
    (image,) = re.findall(r"!\[.*?\]\((.*?)\)", README.read_text(encoding="utf-8"), re.S)
    assert (README.parent / image).stat().st_size > 10_000
