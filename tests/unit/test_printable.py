"""Letters of strangers on a terminal."""

from __future__ import annotations

import pytest

from openvis_rt.printable import printable, printable_json


@pytest.mark.parametrize(
    "name",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0d28\u0d4d\u200d",
        "\U0001f468\u200d\U0001f33e",
    ],
)
def test_joiners_that_names_are_written_with_stay(name):
    assert printable(name) == name
    assert printable_json(name) == name


@pytest.mark.parametrize("letter", "\x1b\x9b\u200b\u200e\u200f\u061c\u202a\u202e\u2066\u2069\ufeff")
def test_letters_that_move_or_turn_what_follows_are_escaped(letter):
    assert printable(f"a{letter}b") == f"a{ascii(letter)[1:-1]}b"
