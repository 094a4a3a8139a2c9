"""The check of refusals: what is raised, and its sentence."""

from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["assert_refused"]


def assert_refused(call: Callable[..., Any], sentence: str, *args: Any, **options: Any) -> None:
    """A call raises a ValueError, whose message is that sentence, to the letter."""
    with pytest.raises(ValueError) as caught:
        call(*args, **options)
    assert str(caught.value) == sentence
