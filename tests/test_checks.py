"""Checks at the door: what passes comes back in the form that is worked with, the rest is told."""

import enum
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import assert_refused

from flowlab import _checks as checks
from flowlab import _files

REFUSED = [
    (lambda: checks.number("x", np.inf), "be a finite number, but is inf."),
    (lambda: checks.number("x", "1"), "be a finite number, but is '1'."),
    (lambda: checks.number("x", True), "be a finite number, but is True."),
    (lambda: checks.number("x", [1.0]), "be a finite number, but is [1.0]."),
    (lambda: checks.positive("x", 0), "be positive and finite, but is 0."),
    (lambda: checks.positive("x", 1j), "be positive and finite, but is 1j."),
    (lambda: checks.between("x", 1.5, 0, 1), "lie between 0 and 1, but is 1.5."),
    (lambda: checks.between("x", np.nan, 0, 1), "lie between 0 and 1, but is nan."),
    (lambda: checks.between("x", [0.1, 2], 0, 1), "lie between 0 and 1, but is [0.1, 2]."),
    (lambda: checks.integer("x", 0), "be a positive int, but is 0."),
    (lambda: checks.integer("x", 1.0), "be a positive int, but is 1.0."),
    (lambda: checks.integer("x", True), "be a positive int, but is True."),
    (lambda: checks.integer("x", None, 0), "be a non-negative int, but is None."),
    (lambda: checks.integer("x", 1, 2), "be an int of at least 2, but is 1."),
    (lambda: checks.integer("x", 9, 2, most=8), "be an int from 2 to 8, but is 9."),
    (lambda: checks.choice("x", "c", "a", "b"), 'be "a" or "b", but is \'c\'.'),
    (lambda: checks.choice("x", ["a"], "a", "b", "d"), 'be "a", "b" or "d", but is [\'a\'].'),
    (lambda: checks.array("x", [[1, 2]], ("n",)), "have shape (n,), but has shape (1, 2)."),
    (lambda: checks.array("x", [], ("n",)), "have shape (n,), but has shape (0,)."),
    (lambda: checks.array("x", [1, [2]], ("n",)), "hold real numbers, but is [1, [2]]."),
    (lambda: checks.array("x", [1, np.nan], (2,), (3,)), "be finite, but is [ 1., nan]."),
    (lambda: checks.array("x", [1j], ("n",)), "hold real numbers, but is [1j]."),
    (lambda: checks.array("x", ["1"], ("n",)), "hold real numbers, but is ['1']."),
    (lambda: checks.array("x", [True], ("n",)), "hold real numbers, but is [True]."),
    (lambda: checks.real("x", [1, "a"]), "hold real numbers, but is [1, 'a']."),
    (lambda: checks.within("x", 0, "(0, inf)"), "be positive and finite, but is 0."),
    (lambda: checks.within("x", np.inf, "[0, inf)"), "be finite and at least 0, but is inf."),
    (lambda: checks.within("x", [0, -1.5], "[0, inf]"), "not be negative, but has -1.5."),
    (lambda: checks.within("x", [[0.2, 0.5]], "[0, 0.5)"), "lie in [0, 0.5), but has 0.5."),
    (lambda: checks.within("x", 0, "(0, 1]"), "lie in (0, 1], but is 0."),
    (lambda: checks.within("x", [0.5, np.nan], "(0, 1]"), "lie in (0, 1], but has nan."),
    (lambda: checks.within("x", [], "(-inf, inf)"), "be finite, but is []."),
    (lambda: checks.real("x", [[1], []]), "hold real numbers, but is [[1], []]."),
    (lambda: checks.span("x", (1, 1)), "be (lower, upper), but is (1, 1)."),
    (lambda: checks.span("x", (0, np.inf)), "be (lower, upper), but is (0, inf)."),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_wrong_is_told_in_a_sentence(call, sentence):
    assert_refused(call, f"Argument `x` must {sentence}")


def test_what_is_right_comes_back_in_the_types_of_python():
    found = (
        checks.number("x", np.float32(-2)),
        checks.positive("x", np.asarray(3)),
        checks.between("x", 1, 0, 1),
        checks.integer("x", np.int8(7)),
        checks.choice("x", "b", "a", "b"),
        checks.span("x", np.asarray([0, 1])),
    )
    assert found == (-2.0, 3.0, 1.0, 7, "b", (0.0, 1.0))
    assert [type(value) for value in found] == [float, float, float, int, str, tuple]
    array = checks.array("x", [[1, 2]], ("n", 2), (3,))
    assert (array.dtype, array.tolist()) == (np.float64, [[1.0, 2.0]])
    assert checks.within("x", [0, np.inf], "[0, inf]").tolist() == [0, np.inf]
    assert checks.within("x", np.zeros((0, 2)), "(0, inf)").shape == (0, 2)
    assert np.isnan(checks.real("x", [[np.nan]])).tolist() == [[True]]
    assert checks.real("x", np.full((1, 1), np.nan, np.float32)).dtype == np.float32


def test_numbers_that_numpy_has_no_type_for_are_numbers():
    assert checks.positive("x", 10**20) == 1e20
    assert checks.number("x", Fraction(1, 2)) == 0.5
    assert checks.number("x", jnp.bfloat16(0.5)) == 0.5
    assert checks.span("x", (0, 10**20)) == (0.0, 1e20)


def test_what_is_traced_is_refused_by_jax():
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda x: checks.positive("x", x))(1.0)


def test_a_word_of_an_enumeration_comes_back_as_a_plain_one():
    class Wall(enum.StrEnum):
        slide = "slide"

    assert type(checks.choice("wall", Wall.slide, "stop", "slide")) is str


def test_json_that_others_could_not_read_is_refused(tmp_path):
    _files.write_json([{"β": 0.1}], tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text("utf-8") == '[\n {\n  "β": 0.1\n }\n]\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        _files.write_json({"x": np.nan}, tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()
