"""CLIP's byte-pair tokenizer, which a bundle keeps in the `tokenizers` library's format.

Of a file only the words and the merges are taken; how a text is cut is CLIP's and is said here. So
a file from a stranger cannot pad, cut short or replace anything, nor reach the library's defects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split

from openvis_rt.errors import BundleError
from openvis_rt.given_files import json_from_bytes

__all__ = ["END", "LARGEST", "START", "clip_tokenizer", "tokenizer_from_bytes"]

START, END = 49406, 49407
"""Tokens at the start and at the end of every text; all words of CLIP are below them."""

LARGEST = 64 << 20
"""Bytes that a file has at most; CLIP's has 3 MB."""

# contractions, words, single digits, runs of anything else
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """A tokenizer of text that is cleaned and lower-case; start and end are the caller's work.

    Args:
        vocab: the number of each word, 0 to :data:`END`.
        merges: pairs of words that become one, the most frequent first.
    """
    tokenizer = Tokenizer(BPE(vocab=dict(vocab), merges=list(merges), end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            Split(Regex(_PIECES), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def tokenizer_from_bytes(file: bytes, path: Path) -> Tokenizer:
    """The tokenizer of a file's bytes; ``path`` is for messages.

    Raises:
        BundleError: it is no such file, or its words and merges are not like CLIP's.
    """
    data = json_from_bytes(file, str(path), BundleError)
    model = data.get("model") if isinstance(data, dict) else None
    vocab: Any = model.get("vocab") if isinstance(model, dict) else None
    merges: Any = model.get("merges") if isinstance(model, dict) else None
    if not _is_vocab(vocab) or not _are_merges(merges):
        raise BundleError(
            f"{path} is no tokenizer of CLIP's {END + 1} words and their merges; export the bundle "
            "again"
        )
    try:
        return clip_tokenizer(vocab, [(a, b) for a, b in merges])
    except Exception as exc:  # the library raises Exception itself
        raise BundleError(f"{path} is no tokenizer ({exc}); export the bundle again") from exc


def _is_vocab(vocab: object) -> bool:
    """Whether it is a dict in which each of the numbers stands once."""
    return (
        isinstance(vocab, dict)
        and all(type(number) is int for number in vocab.values())
        and set(vocab.values()) == set(range(END + 1))
        and len(vocab) == END + 1
    )


def _are_merges(merges: object) -> bool:
    return isinstance(merges, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(word, str) for word in pair)
        for pair in merges
    )
