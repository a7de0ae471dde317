"""CLIP's byte-pair tokenizer in the `tokenizers` library's format, which needs no torch."""

from __future__ import annotations

import gzip
from pathlib import Path

from open_clip import tokenizer as open_clip_tokenizer

from openvis_rt.bundle.tokenizer import clip_tokenizer

__all__ = ["write_tokenizer"]

_MERGES = 49152 - 256 - 2  # of the published list; the rest was never used by CLIP


def write_tokenizer(path: Path) -> None:
    """Write ``tokenizer.json``, built from the merge list that open_clip ships.

    Its input is text that is already cleaned and lower-case; start and end tokens are the caller's
    work.
    """
    with gzip.open(open_clip_tokenizer.default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _MERGES + 1]
    merges = [(a, b) for a, b in (line.split() for line in lines)]
    letters = list(open_clip_tokenizer.bytes_to_unicode().values())
    words = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges)]
    words += ["<start_of_text>", "<end_of_text>"]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = clip_tokenizer(vocab, merges)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tokenizer.to_str(), encoding="utf-8")
