"""Strange values, and JSON with one of them in it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

NUMBERS = [0, 1, -1, 2, 7, 10**6, 10**9, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-300, 1e308]
TEXTS = [
    *("", "T", "K", "n", "B", "Hs", "x" * 1000, "../x", "/etc/passwd", "a/../../b", "\x1b[31mred"),
    *("float16", "uint8", "int64", "bool", "object", "fp16", "fp32", "int8", "queries", "masks"),
    *(
        "mask_logits",
        "class_scores",
        "momentum",
        "rollout",
        "mean-logits",
        "\ud800",
        "\u202ereverse",
    ),
    *("{}", "{}{}", "%s", "None", "nan", "0" * 64, "\0"),
]
LISTS = [[], {}, [1], [10**9], ["K"], [[1, 2]], ["{}"], {"a": 1}, [None], [[[[[]]]]]]

strange_values = st.one_of(
    st.sampled_from([None, True, False, *NUMBERS, *TEXTS, *LISTS]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A copy of some JSON in which one to three places have something strange, or nothing."""
    out = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(out))
        if not places:
            return copy.deepcopy(draw(strange_values))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.sampled_from(["set", "set", "set", "remove", "twice"]))
        if how == "set":
            holder[key] = copy.deepcopy(draw(strange_values))
        elif how == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[draw(st.text(max_size=10))] = copy.deepcopy(holder[key])
    return out


def _places(value: Any) -> Any:
    """Every (holder, key) of a tree of lists and dicts."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


@dataclass(frozen=True)
class Damage:
    """What happens to some bytes: small itself, because Hypothesis keeps whatever is drawn.

    Attributes:
        flips: bits that are turned: the byte's place and the bit's.
        place, cut, piece: where ``cut`` bytes are taken out, and what is put there instead.
    """

    flips: tuple[tuple[int, int], ...] = ()
    place: int = 0
    cut: int = 0
    piece: bytes = b""

    def of(self, data: bytes) -> bytes:
        """A copy with the damage."""
        out = bytearray(data)
        for at, bit in self.flips:
            out[at] ^= 1 << bit
        out[self.place : self.place + self.cut] = self.piece
        return bytes(out)


def damaged(data: st.DataObject, original: bytes, largest: int = 12) -> bytes:
    """A copy of some bytes with a few of them changed, a piece cut out, or the end cut off."""
    damage: Damage = data.draw(_damages(len(original), largest))
    return damage.of(original)


@st.composite
def _damages(draw: st.DrawFn, length: int, largest: int) -> Damage:
    places = st.integers(0, max(0, length - 1))
    how = draw(st.sampled_from(["flip", "flip", "write", "cut", "end", "insert"]))
    if how == "flip" and length:
        bits = st.tuples(places, st.integers(0, 7))
        return Damage(tuple(draw(st.lists(bits, min_size=1, max_size=largest))))
    place = draw(places)
    if how == "cut":
        return Damage(place=place, cut=draw(st.integers(1, 4096)))
    if how == "end":
        return Damage(place=place, cut=length)
    piece = draw(st.binary(min_size=1, max_size=largest))
    return Damage(place=place, cut=len(piece) if how == "write" else 0, piece=piece)
