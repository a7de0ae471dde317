"""CLIP's byte-pair tokenizer in the `tokenizers` library's format, which needs no torch."""

from __future__ import annotations

import gzip
from pathlib import Path

from open_clip import tokenizer as clip_tokenizer
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

__all__ = ["write_tokenizer"]

_MERGES = 49152 - 256 - 2  # of the published list; the rest was never used by CLIP
# contractions, words, single digits, runs of anything else
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def write_tokenizer(path: Path) -> None:
    """Write ``tokenizer.json``, built from the merge list that open_clip ships.

    Its input is text that is already cleaned and lower-case; start and end tokens are the caller's
    work.
    """
    with gzip.open(clip_tokenizer.default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _MERGES + 1]
    merges = [(a, b) for a, b in (line.split() for line in lines)]
    letters = list(clip_tokenizer.bytes_to_unicode().values())
    words = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges)]
    words += ["<start_of_text>", "<end_of_text>"]
    tokenizer = Tokenizer(
        BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=merges,
            end_of_word_suffix="</w>",
        )
    )
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(_PIECES), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tokenizer.to_str(), encoding="utf-8")
