"""Losses compared: the folder holds what was promised, and the page needs nothing but itself."""

import json
import re
import time

import numpy as np
import pytest
from command import made_up_card

import flowlab as fl
from flowlab import cards, losses, study

BOTH = {"dpo": fl.DPO(0.1), "hinge": losses.Hinge(0.1)}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, "card", made_up_card)
        return study.compare_losses(folder / "out", BOTH, reach=50.0, progress=False)


def test_the_folder_of_a_comparison_holds_what_was_promised(result):
    names = {path.name for path in result.folder.iterdir()}
    figures = {f"{name}.{kind}" for name in ("portraits", "comparison") for kind in ("png", "svg")}
    assert names == {"report.html", "cards.json", *figures}
    written = json.loads((result.folder / "cards.json").read_text("utf-8"))
    assert [(card["name"], card["reach"]) for card in written] == [("dpo", 50.0), ("hinge", 50.0)]
    for name in figures:
        begins = b"\x89PNG" if name.endswith("png") else b"<?xml"
        assert (result.folder / name).read_bytes().startswith(begins)


def test_the_page_of_a_comparison_needs_nothing_but_itself_and_shows_all(result):
    text = " ".join((result.folder / "report.html").read_text("utf-8").split())
    sources = re.findall(r"(?:src|href)='([^']*)'", text)
    pictures = [source for source in sources if not source.startswith("#")]
    assert len(pictures) == text.count("<figure") == 2
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert "β<sup>−2</sup>" in text
    for name, loss in BOTH.items():
        assert f"<h3>{name}</h3>" in text
        assert repr(loss) in text
    found = result.comparison
    for number in (found.margin_times[0, 2], found.margin_states[0, 1, 0]):
        assert f"<td class='number'>{number:.4g}</td>" in text
    at_ten = found.states[0, np.argmin(np.abs(found.times - 10))]
    assert f"<td class='number'>{at_ten[0] - at_ten[1]:.4g}</td>" in text
    assert "margin at time 10<" in text
    assert "<td class='number'>—</td>" in text  # hinge stops at a margin of 10


def test_the_summary_of_a_comparison_is_the_cards_and_the_margins(result):
    text = result.summary()
    assert cards.table(result.cards) in text
    assert result.comparison.summary() in text


def test_a_comparison_is_of_the_losses_in_their_order(result):
    assert tuple(result.cards) == result.comparison.names == ("dpo", "hinge")
    assert [card.loss for card in result.cards.values()] == list(BOTH.values())


def test_a_folder_of_something_else_and_what_is_no_loss_of_a_pair_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="holds something else"):
        study.compare_losses(tmp_path, BOTH)
    with pytest.raises(ValueError, match="`losses` must hold at least one loss"):
        study.compare_losses(tmp_path / "new", {})
    with pytest.raises(ValueError, match="`losses` must hold losses of one pair, but 'aot' is"):
        study.compare_losses(tmp_path / "new", {"aot": losses.AOT()})
    assert not (tmp_path / "new").exists()


def test_cards_come_in_order_and_no_more_are_begun_once_one_fails(monkeypatch):
    begun: list[str] = []

    def card(loss, *, reach):
        begun.append(repr(loss))
        if isinstance(loss, losses.IPO):
            raise RuntimeError("no card")
        time.sleep(0.1 if isinstance(loss, losses.EXO) else 0.01)
        return made_up_card(loss, reach=reach)

    monkeypatch.setattr(cards, "card", card)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    asked = {"exo": losses.EXO(), "dpo": fl.DPO(), "ipo": losses.IPO()}
    asked |= {str(n): losses.Hinge(n + 1.0) for n in range(500)}
    made = study.computed(asked, progress=False)
    names = []
    with pytest.raises(RuntimeError, match="no card"):
        for name, one in made:
            assert one.loss is asked[name]
            names.append(name)
    assert names == ["exo", "dpo"]
    assert len(begun) < len(asked)


def test_no_more_cards_are_begun_once_nobody_asks_for_them(monkeypatch):
    begun: list[str] = []

    def card(loss, *, reach):
        begun.append(repr(loss))
        time.sleep(0.01)
        return made_up_card(loss, reach=reach)

    monkeypatch.setattr(cards, "card", card)
    made = study.computed({str(n): fl.DPO(n + 1.0) for n in range(200)}, progress=False)
    assert next(iter(made))[0] == "0"
    made.close()  # type: ignore[attr-defined]
    assert len(begun) < 100
