"""Tables of plain text."""

import pytest

from flowlab._tables import table


def test_columns_are_as_wide_as_their_widest_cell_and_stand_to_their_sides():
    rows = [("loss", "", "share"), ("dpo", "beta", "3.5 %"), ("sft",)]
    assert table(rows, "llr").splitlines() == [
        "loss        share",
        "dpo   beta  3.5 %",
        "sft",
    ]
    assert table(rows[1:2], "r", gap=1) == "dpo beta 3.5 %"


def test_a_table_is_neither_cut_nor_wrapped_nor_coloured_wherever_it_goes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert table([("x" * 200, "12.5", "y" * 200)]) == f"{'x' * 200}  12.5  {'y' * 200}"


@pytest.mark.parametrize("cell", ["[bold]b[/bold]", ":smile:", "[0, 1]", "k_wl/k_ww", "β = 0.1"])
def test_a_cell_is_printed_as_it_is(cell):
    assert table([(cell, "1")], "lr") == f"{cell}  1"


def test_in_a_notebook_a_table_is_text_and_nothing_is_displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *segments: shown.append(segments))
    assert table([("a", "b"), ("1", "2")]) == "a  b\n1  2"
    assert not shown
