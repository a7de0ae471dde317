"""Class names to text embeddings: CLIP's tokenizer, the `text` graph, and a cache of phrases.

For a phrase w and the templates p_1..p_n (`clipvis_video.py`, 203-211):

    e(w) = unit( mean_i unit( text(p_i(w)) ) )

An embedding is cached under the digest of (text weights, templates, phrase), so a vocabulary that
changes costs only its new phrases, and another checkpoint never reads this one's.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import TOKENIZER, Bundle
from openvis_rt.bundle.tokenizer import END, START, read_tokenizer
from openvis_rt.errors import BackendError, BundleError, VocabularyError
from openvis_rt.runtime.backends.base import Session
from openvis_rt.runtime.text_cache import TextCache
from openvis_rt.vocabulary import Vocabulary, prompts_for

__all__ = ["ClipTokenizer", "TextEmbedder"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

_CONTEXT = 77
_LONGEST = 100_000  # letters of a prompt; CLIP reads 75 tokens
_PHRASES_A_RUN = 9  # 9 phrases x 14 templates: the public code's batches of 128 prompts


class ClipTokenizer:
    """CLIP's byte-pair tokenizer, with open_clip's cleaning of text.

    Args:
        path: a file in the `tokenizers` library's format.

    Raises:
        BundleError: it is none, or not of CLIP's words.
    """

    def __init__(self, path: Path) -> None:
        self._tokenizer = read_tokenizer(path)

    def __call__(self, text: str) -> list[int]:
        """Token ids of a text, with start and end, of any length.

        Raises:
            VocabularyError: the text is far longer than CLIP reads.
        """
        if len(text) > _LONGEST:
            raise VocabularyError(f"{text[:57]!r}... has {len(text)} letters; shorten it")
        clean = html.unescape(html.unescape(ftfy.fix_text(text)))
        clean = re.sub(r"\s+", " ", clean).strip().lower()
        ids: list[int] = self._tokenizer.encode(clean).ids
        return [START, *ids, END]

    def batch(self, texts: Sequence[str]) -> Ints:
        """Tokens of several texts, padded with zeros: int64 [B, 77].

        Raises:
            VocabularyError: a text is longer than CLIP reads.
        """
        out = np.zeros((len(texts), _CONTEXT), np.int64)
        for row, text in enumerate(texts):
            ids = self(text)
            if len(ids) > _CONTEXT:
                shown = text if len(text) <= 60 else text[:57] + "..."
                raise VocabularyError(
                    f"{shown!r} has {len(ids) - 2} tokens, CLIP reads {_CONTEXT - 2}; shorten it"
                )
            out[row, : len(ids)] = ids
        return out


class TextEmbedder:
    """Text embeddings of a bundle's model.

    Args:
        bundle: its tokenizer, prompts and cache are used.
        precision: which of the bundle's `text` graphs embeds; each precision has its own entries in
            the cache.
        open_session: opens that graph; called only when a phrase is not in the cache.
        warn: told, once at the most, why the cache is of no use.
        cached: read and write the cache; without it every phrase is embedded.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        open_session: Callable[[], Session],
        warn: Callable[[str], None] = lambda _: None,
        *,
        cached: bool = True,
    ) -> None:
        graph = bundle.graph("text", precision)
        width = graph.spec.outputs[0].shape[-1]
        if not isinstance(width, int):
            raise BundleError(f"{bundle.path / graph.file} has embeddings of no fixed width")
        self._prompts = bundle.manifest.prompts
        self._open_session = open_session
        self._tokenizer = ClipTokenizer(bundle.file_path(TOKENIZER))
        self._cache = TextCache(bundle, graph.precision, width, warn) if cached else None
        self._known: dict[str, Floats] = {}

    def __call__(self, vocabulary: Vocabulary, progress: Progress = lambda *_: None) -> Floats:
        """Embeddings of every synonym of every class.

        Args:
            vocabulary: the classes.
            progress: told how many new phrases are embedded, and of how many.

        Returns:
            float32 [K, D], L2-normalised rows, in the order of ``vocabulary.phrases``.

        Raises:
            VocabularyError: a name is longer than CLIP reads.
            BackendError: the graph failed, or gave NaN, infinity or zeros.
        """
        phrases = list(dict.fromkeys(vocabulary.phrases))
        tokens = {p: self._tokenizer.batch(prompts_for(p, self._prompts)) for p in phrases}
        if self._cache is not None:
            self._known |= self._cache.get(p for p in phrases if p not in self._known)
        missing = [p for p in phrases if p not in self._known]
        if missing:
            self._embed(missing, tokens, progress)
        return np.stack([self._known[p] for p in vocabulary.phrases])

    def _embed(self, phrases: list[str], tokens: dict[str, Ints], progress: Progress) -> None:
        session = self._open_session()
        try:
            for start in range(0, len(phrases), _PHRASES_A_RUN):
                progress(start, len(phrases))
                batch = phrases[start : start + _PHRASES_A_RUN]
                session.write("tokens", np.concatenate([tokens[p] for p in batch]))
                session.run()
                raw = np.asarray(session.fetch("embeddings"), np.float32)
                _check_embeddings(raw, len(batch) * len(self._prompts))
                unit = _unit(raw).reshape(len(batch), -1, raw.shape[-1])
                self._known.update(zip(batch, _unit(unit.mean(1)), strict=True))
            progress(len(phrases), len(phrases))
        finally:
            session.close()
            # also what is done when Ctrl-C ends minutes of work
            if self._cache is not None:
                self._cache.put({p: self._known[p] for p in phrases if p in self._known})


def _check_embeddings(raw: Floats, count: int) -> None:
    """BackendError unless the graph `text` gave so many finite rows that are not zero."""
    norms = np.linalg.norm(raw.astype(np.float64), axis=-1)
    if raw.ndim != 2 or len(raw) != count or not (np.isfinite(norms) & (norms > 0)).all():
        raise BackendError(
            "graph 'text' gave NaN, infinity or zeros as an embedding: the weights, the precision "
            "or the backend do not work; try --backend onnxruntime --precision fp32"
        )


def _unit(x: Floats) -> Floats:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    unit: Floats = x / np.maximum(norm, np.float32(1e-12))
    return unit
