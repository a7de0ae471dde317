"""JSON that means one thing to one reader and another thing to the next is refused."""

from __future__ import annotations

import pytest

from openvis_rt.errors import InputError
from openvis_rt.given_files import json_from_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1e999]", "the number 1e999 is too large"),
        ("[-1e999]", "the number -1e999 is too large"),
        ("[NaN]", "NaN is no number"),
        ("[Infinity]", "Infinity is no number"),
        ('{"a": 1, "b": 2, "a": 3}', "an object has 'a' twice"),
        ('[{"b": {"c": 1, "c": 1}}]', "an object has 'c' twice"),
        ("[" * 101 + "]" * 101, "nests more than 100"),
        ("[" * 100_000, "is no JSON"),
        ("", "is no JSON"),
        ("\xff", "is no JSON"),
    ],
)
def test_texts_that_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        json_from_bytes(text.encode("latin-1"), "a text")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": {"b": 1e300}, "b": [-0.5]}', {"a": {"b": 1e300}, "b": [-0.5]}),
        ("\ufeff[1]", [1]),
        ("1e-999", 0.0),
        (str(2**64), 2**64),
    ],
)
def test_texts_that_are_taken(text, value):
    assert json_from_bytes(text.encode(), "a text") == value
