"""Class names to text embeddings: CLIP's tokenizer, the `text` graph, and a cache of phrases.

For a phrase w and the templates p_1..p_n (`clipvis_video.py`, 203-211):

    e(w) = unit( mean_i unit( text(p_i(w)) ) )

A bundle brings those of the names that were embedded at its export. What else is embedded is cached
under the digest of (text weights, templates, phrase), so a vocabulary that changes costs only its
new phrases, and another checkpoint never reads this one's.
"""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Callable, Sequence

import ftfy
import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import TOKENIZER, Bundle
from openvis_rt.bundle.names import read_names, write_names
from openvis_rt.bundle.tokenizer import END, LARGEST, START, tokenizer_from_bytes
from openvis_rt.errors import BackendError, BundleError, VocabularyError
from openvis_rt.runtime.backends.base import Session
from openvis_rt.runtime.backends.registry import BackendOptions, open_backend
from openvis_rt.runtime.text_cache import TextCache
from openvis_rt.systems.graphs import CONTEXT_LENGTH
from openvis_rt.vocabulary import Vocabulary, prompts_for

__all__ = ["ClipTokenizer", "TextEmbedder", "keep_embeddings"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Rows = list[list[int]]
Progress = Callable[[int, int], None]

_LONGEST = 100_000  # letters of a prompt; CLIP reads 75 tokens
_KEPT = 2048  # phrases in memory beside those that are looked for; 8 MB of the widest
_PROMPTS_A_RUN = 128  # as many as an engine takes, and the public code
_PROMPTS_AT_ONCE = 512  # that are put in order of length and cached together


class ClipTokenizer:
    """CLIP's byte-pair tokenizer, with open_clip's cleaning of text.

    Args:
        bundle: whose tokenizer, a file in the `tokenizers` library's format.

    Raises:
        BundleError: it has none, it was changed, or is not of CLIP's words.
    """

    def __init__(self, bundle: Bundle) -> None:
        data = bundle.read_file(TOKENIZER, LARGEST)
        self._tokenizer = tokenizer_from_bytes(data, bundle.path / TOKENIZER)

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
        """Tokens of several texts, int64 [B, L], L of the longest, the others padded with zeros.

        Raises:
            VocabularyError: as :meth:`rows`.
        """
        return _padded(self.rows(texts))

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with start and end.

        Raises:
            VocabularyError: a text is longer than CLIP reads.
        """
        rows = [self(text) for text in texts]
        for text, ids in zip(texts, rows, strict=True):
            if len(ids) > CONTEXT_LENGTH:
                shown = text if len(text) <= 60 else text[:57] + "..."
                raise VocabularyError(
                    f"{shown!r} has {len(ids) - 2} tokens, CLIP reads {CONTEXT_LENGTH - 2}; "
                    "shorten it"
                )
        return rows


class TextEmbedder:
    """Text embeddings of a bundle's model.

    Args:
        bundle: its tokenizer, prompts and embedded names are used.
        precision: which of the bundle's `text` graphs embeds; each precision has its own entries in
            the cache.
        open_session: opens that graph; called only when a phrase is not in the cache.
        warn: told, once each at the most, why the cache is of no use, and which names have letters
            that English has not.
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
        self._prompts, self._warn, self._hinted = bundle.manifest.prompts, warn, False
        self._open_session = open_session
        self._tokenizer = ClipTokenizer(bundle)
        self._cache = TextCache(bundle, graph.precision, width, warn) if cached else None
        self._brought = read_names(bundle, graph.precision, width)
        self._known: dict[str, Floats] = {}

    def __call__(self, vocabulary: Vocabulary, progress: Progress = lambda *_: None) -> Floats:
        """Embeddings of every synonym of every class.

        Args:
            vocabulary: the classes.
            progress: told how many new phrases are embedded, and of how many.

        Returns:
            float32 [K, D], L2-normalised rows, in the order of ``vocabulary.phrases``.

        Raises:
            VocabularyError: a name is longer than CLIP reads, or two names have the same tokens.
            BackendError: the graph failed, or gave NaN, infinity or zeros.
        """
        phrases = list(dict.fromkeys(vocabulary.phrases))
        rows = {p: self._tokenizer.rows(prompts_for(p, self._prompts)) for p in phrases}
        _refuse_same(vocabulary, rows)
        self._hint(phrases)
        self._keep(phrases)
        if self._cache is not None:
            self._known |= self._cache.get(self._missing(phrases))
        missing = self._missing(phrases)
        if missing:
            self._embed(sorted(missing, key=lambda p: max(map(len, rows[p]))), rows, progress)
        found = self._brought | self._known
        return np.stack([found[p] for p in vocabulary.phrases])

    def _missing(self, phrases: list[str]) -> list[str]:
        return [p for p in phrases if p not in self._brought and p not in self._known]

    def _keep(self, phrases: list[str]) -> None:
        """Forget what was asked for longest ago, so that names may change for ever."""
        again = {p: self._known.pop(p) for p in phrases if p in self._known}
        for phrase in list(self._known)[: max(0, len(self._known) - _KEPT)]:
            del self._known[phrase]
        self._known |= again

    def _hint(self, phrases: list[str]) -> None:
        """Tell of names that are perhaps not English; plain letters may be of any language."""
        found = [p for p in phrases if any(c.isalpha() and not c.isascii() for c in p)]
        if found and not self._hinted:
            self._hinted = True
            more = f" and {len(found) - 1} more names have" if len(found) > 1 else " has"
            self._warn(
                f"{found[0]!r}{more} letters beyond a to z: CLIP learned from English captions and "
                "hardly knows other languages; where this is no English word, give the English one"
            )

    def _embed(self, phrases: list[str], rows: dict[str, Rows], progress: Progress) -> None:
        session = self._open_session()
        step = max(1, _PROMPTS_AT_ONCE // len(self._prompts or (None,)))
        try:
            for start in range(0, len(phrases), step):
                progress(start, len(phrases))
                part = phrases[start : start + step]
                raw = _by_length(session, [row for phrase in part for row in rows[phrase]])
                _check_embeddings(raw)
                unit = _unit(raw).reshape(len(part), -1, raw.shape[-1])
                self._known.update(zip(part, _unit(unit.mean(1)), strict=True))
            progress(len(phrases), len(phrases))
        finally:
            session.close()
            # also what is done when Ctrl-C ends minutes of work
            if self._cache is not None:
                self._cache.put({p: self._known[p] for p in phrases if p in self._known})


def keep_embeddings(
    bundle: Bundle,
    names: Sequence[str],
    progress: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Embed names and add them to the bundle, so that they cost nothing when it is run.

    ONNX Runtime embeds them on the CPU, in FP32 where the bundle has that; runs in other precisions
    embed them themselves. A model without a graph `text` needs none.

    Args:
        bundle: opened, and without such names.
        names: as a :class:`.Vocabulary` takes them; of those that share a synonym the first.
        progress, warn: as for :class:`TextEmbedder`.

    Returns:
        the bundle as it is then.

    Raises:
        BackendError: the graph failed, or gave NaN, infinity or zeros.
        OutputError, BundleError: as :meth:`.Bundle.adding`.
    """
    if not names or "text" not in bundle.graphs:
        return bundle
    precision = "fp32" if "fp32" in bundle.manifest.graphs else next(iter(bundle.manifest.graphs))
    with contextlib.closing(
        open_backend("onnxruntime", bundle, precision, BackendOptions("cpu"), warn)
    ) as backend:
        embedder = TextEmbedder(
            bundle, precision, lambda: backend.open(bundle, "text", precision), warn, cached=False
        )
        first, *others = names
        words = Vocabulary((first,)).among(others)
        embeddings = dict(zip(words.phrases, embedder(words, progress), strict=True))
    return write_names(bundle, bundle.graph("text", precision).precision, embeddings)


def _refuse_same(vocabulary: Vocabulary, rows: dict[str, Rows]) -> None:
    """VocabularyError where the tokenizer's own cleaning leaves two names the same."""
    seen: dict[str, str] = {}
    for name in vocabulary.names:
        tokens = str([rows[phrase] for phrase in vocabulary.synonyms_of(name)])
        if (first := seen.setdefault(tokens, name)) != name:
            raise VocabularyError(
                f"{first!r} and {name!r} are the same tokens to CLIP; their score would be split "
                "between them. Remove one."
            )


def _check_embeddings(raw: Floats) -> None:
    """BackendError unless the graph `text` gave finite rows that are not zero."""
    norms = np.linalg.norm(raw.astype(np.float64), axis=-1)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise BackendError(
            "graph 'text' gave NaN, infinity or zeros as an embedding: the weights, the precision "
            "or the backend do not work; try --backend onnxruntime --precision fp32"
        )


def _by_length(session: Session, rows: Rows) -> Floats:
    """Raw embeddings of prompts, float32 [B, D]; those of about one length share a run.

    A run is as long as its longest prompt, since a token never sees what comes after it.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, Floats] = {}
    for start in range(0, len(order), _PROMPTS_A_RUN):
        places = order[start : start + _PROMPTS_A_RUN]
        session.write("tokens", _padded([rows[i] for i in places]))
        session.run()
        raw = np.array(session.fetch("embeddings"), np.float32)  # a copy: the next run writes anew
        found.update(zip(places, raw, strict=True))
    return np.stack([found[i] for i in range(len(rows))])


def _padded(rows: Rows) -> Ints:
    """Token ids as one array int64 [B, L]; 0 behind the shorter ones."""
    out = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    for ids, place in zip(rows, out, strict=True):
        place[: len(ids)] = ids
    return out


def _unit(x: Floats) -> Floats:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    unit: Floats = x / np.maximum(norm, np.float32(1e-12))
    return unit
