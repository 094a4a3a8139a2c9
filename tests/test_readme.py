"""The README is one page, its commands exist, and its example prints what it says."""

import re

from manual import README, run


def test_the_examples_print_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(README) == []
    assert (tmp_path / "times.png").stat().st_size > 10_000


def test_it_is_one_page_with_the_words_of_the_field():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    words = "likelihood displacement", "trajectory", "initial condition", "fixed point"
    for word in (*words, "vector field"):
        assert " ".join(text.split()).count(word) == 1, word


def test_the_two_commands_stand_on_lines_of_their_own():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert "pip install . && flowlab study" in lines
    assert "pip install '.[test]' && pytest" in lines


def test_the_figure_is_there():
    (image,) = re.findall(r"!\[.*?\]\((.*?)\)", README.read_text(encoding="utf-8"), re.S)
    assert (README.parent / image).stat().st_size > 10_000
