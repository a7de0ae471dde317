"""Class names to text embeddings: CLIP's tokenizer, the `text` graph, and a cache of phrases.

For a phrase w and the templates p_1..p_n (`clipvis_video.py`, 203-211):

    e(w) = unit( mean_i unit( text(p_i(w)) ) )

An embedding is cached under the digest of (text weights, templates, phrase), so a vocabulary that
changes costs only its new phrases, and another checkpoint never reads this one's.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import OutputError, VocabularyError
from openvis_rt.files import output_file
from openvis_rt.runtime.backends.base import Session
from openvis_rt.vocabulary import Vocabulary, prompts_for

__all__ = ["ClipTokenizer", "TextEmbedder"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

_CONTEXT = 77
_START, _END = 49406, 49407
_PHRASES_A_RUN = 9  # 9 phrases x 14 templates: the public code's batches of 128 prompts


class ClipTokenizer:
    """CLIP's byte-pair tokenizer, with open_clip's cleaning of text."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))

    def __call__(self, text: str) -> list[int]:
        """Token ids of a text, with start and end, of any length."""
        clean = html.unescape(html.unescape(ftfy.fix_text(text)))
        clean = re.sub(r"\s+", " ", clean).strip().lower()
        ids: list[int] = self._tokenizer.encode(clean).ids
        return [_START, *ids, _END]

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
    """

    def __init__(self, bundle: Bundle, precision: str, open_session: Callable[[], Session]) -> None:
        self._bundle = bundle
        self._precision = bundle.graph("text", precision).precision
        self._open_session = open_session
        self._tokenizer = ClipTokenizer(bundle.path / "tokenizer" / "tokenizer.json")
        self._known: dict[str, Floats] = {}
        self.warnings: list[str] = []

    def __call__(self, vocabulary: Vocabulary, progress: Progress = lambda *_: None) -> Floats:
        """Embeddings of every synonym of every class.

        Args:
            vocabulary: the classes.
            progress: told how many new phrases are embedded, and of how many.

        Returns:
            float32 [K, D], L2-normalised rows, in the order of ``vocabulary.phrases``.

        Raises:
            VocabularyError: a name is longer than CLIP reads.
        """
        phrases = list(dict.fromkeys(vocabulary.phrases))
        prompts = self._bundle.manifest.prompts
        tokens = {p: self._tokenizer.batch(prompts_for(p, prompts)) for p in phrases}
        missing = [p for p in phrases if not self._recall(p)]
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
                unit = _unit(raw).reshape(len(batch), -1, raw.shape[-1])
                for phrase, embedding in zip(batch, _unit(unit.mean(1)), strict=True):
                    self._known[phrase] = embedding
                    self._store(phrase, embedding)
            progress(len(phrases), len(phrases))
        finally:
            session.close()

    def _path(self, phrase: str) -> Path:
        manifest = self._bundle.manifest
        key = json.dumps([manifest.text_sha256, self._precision, manifest.prompts, phrase])
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return self._bundle.path / "text" / f"{name}.safetensors"

    def _recall(self, phrase: str) -> bool:
        """Whether the phrase is known, from the cache if need be; a damaged entry is not used."""
        if phrase in self._known:
            return True
        try:
            with safe_open(self._path(phrase), framework="np") as file:
                embedding = file.get_tensor("embedding")
                facts = file.metadata() or {}
        except (OSError, SafetensorError):
            return False
        if facts.get("phrase") != phrase or facts.get("sha256") != _digest(embedding):
            return False
        self._known[phrase] = embedding
        return True

    def _store(self, phrase: str, embedding: Floats) -> None:
        facts = {"phrase": phrase, "sha256": _digest(embedding)}
        try:
            with output_file(self._path(phrase)) as path:
                save_file({"embedding": embedding}, path, metadata=facts)
        except (OutputError, SafetensorError) as exc:  # the latter where the disk is full
            if not self.warnings:  # a read-only bundle works, only without its cache
                self.warnings.append(
                    f"the bundle takes no files ({exc.__cause__ or exc}), so text embeddings "
                    "are not cached: class names are embedded anew at every start"
                )


def _unit(x: Floats) -> Floats:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    unit: Floats = x / np.maximum(norm, np.float32(1e-12))
    return unit


def _digest(embedding: Floats) -> str:
    return hashlib.sha256(np.ascontiguousarray(embedding).tobytes()).hexdigest()
