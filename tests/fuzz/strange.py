"""Strange values, and JSON with one of them in it."""

from __future__ import annotations

import copy
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


def damaged(data: bytes, largest: int = 12) -> st.SearchStrategy[bytes]:
    """A copy of some bytes with a few of them changed, a piece cut out, or the end cut off."""
    return _damaged(_Hidden(data), largest)


class _Hidden:
    """Bytes that no message prints: a bundle has megabytes of them."""

    def __init__(self, data: bytes) -> None:
        self.data = data


@st.composite
def _damaged(draw: st.DrawFn, of: _Hidden, largest: int) -> bytes:
    out = bytearray(of.data)
    how = draw(st.sampled_from(["flip", "flip", "write", "cut", "end", "insert"]))
    place = draw(st.integers(0, max(0, len(out) - 1)))
    if how == "flip":
        for _ in range(draw(st.integers(1, largest))):
            at = draw(st.integers(0, max(0, len(out) - 1)))
            out[at] ^= 1 << draw(st.integers(0, 7))
    elif how == "write":
        piece = draw(st.binary(min_size=1, max_size=largest))
        out[place : place + len(piece)] = piece
    elif how == "cut":
        del out[place : place + draw(st.integers(1, 4096))]
    elif how == "end":
        del out[place:]
    else:
        out[place:place] = draw(st.binary(min_size=1, max_size=largest))
    return bytes(out)
