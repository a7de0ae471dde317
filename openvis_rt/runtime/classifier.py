"""What a model classifies with: class names, and the rows that stand for them.

Rows come from the names by CLIP's text encoder (:mod:`.text`); or from a file; or they are part of
a model with a closed vocabulary, whose class head has one row a class. A checkpoint's own rows are
never used without being named: the names are always the user's.

The public files `fg_bg_5_10_*_ens.npy` of OV2Seg and OVFormer (DetPro) hold one row of 512 numbers
a class, in the order of the data set's categories.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import InputError, VocabularyError
from openvis_rt.runtime.matrices import Matrix, matrix_from
from openvis_rt.vocabulary import Vocabulary

__all__ = [
    "Classifier",
    "classifier_for",
    "classifier_from_rows",
    "closed_classifier",
    "image_embeddings_for",
]

Floats = npt.NDArray[np.float32]

_TINY = 1e-35  # a row shorter than that has no direction in FP32
_HUGE = 1e6  # length of an embedding that no encoder gives


@dataclass(frozen=True)
class Classifier:
    """Classes, and the rows of the text classifier that stand for them.

    Attributes:
        names: of the classes, as the user gave them.
        rows: how many rows each class has; there may be more classes than names: those behind take
            part and are never reported.
        embeddings: float32 [K, D], L2-normalised rows; None where the model holds them.
    """

    names: tuple[str, ...]
    rows: list[int]
    embeddings: Floats | None


class Embedder(Protocol):
    """Names to rows, as :class:`openvis_rt.runtime.text.TextEmbedder` does it."""

    def __call__(self, vocabulary: Vocabulary, progress: Callable[[int, int], None]) -> Floats:
        """Float32 [K, D] of every synonym of every class."""


def classifier_for(
    bundle: Bundle,
    precision: str,
    words: Vocabulary,
    given: Matrix | Classifier | None,
    embedder: Embedder | None,
    progress: Callable[[int, int], None],
) -> Classifier:
    """What a bundle's model classifies these names with.

    Args:
        bundle, precision: which graphs.
        words: the names; of a closed vocabulary all of them, in the model's order.
        given: rows in place of the embedder's, one a name; or a classifier, whose rows are used as
            they stand; or None.
        embedder: the bundle's; None where it was exported without CLIP.
        progress: told of phrases that are embedded, done and in all.

    Raises:
        InputError: rows for a closed vocabulary, or none and no embedder.
        VocabularyError: another number of names than rows or classes.
    """
    if isinstance(given, Classifier):
        return given
    name, spec = bundle.manifest.variant, bundle.graph("classify", precision).spec
    width = next((t.shape[-1] for t in spec.inputs if t.name == "text_embeddings"), None)
    if width is None:
        if given is not None:
            raise InputError(f"{name} has a closed vocabulary, and takes no classifier")
        scores = next(t for t in spec.outputs if t.name == "class_scores")
        return closed_classifier(words, int(scores.shape[-1]) - 1, name)
    if given is not None and words.others:
        raise VocabularyError(
            f"rows were given for {len(words)} names, and none for the {len(words.others)} others "
            "that compete with them; leave the others out, or give their rows as names"
        )
    if given is not None:
        return classifier_from_rows(words, matrix_from(given, int(width), "classifiers"))
    if embedder is None:
        raise InputError(
            f"{bundle.path} was exported without CLIP, so it cannot read class names: "
            "give --classifier FILE.npy, one row a name, or export it again with --clip"
        )
    return Classifier(words.names, words.rows_of_class, embedder(words, progress))


def image_embeddings_for(bundle: Bundle, given: Matrix | None) -> Floats | None:
    """Image embeddings that take the place of the graph `embed`, checked.

    Returns:
        float32 [frames, D]; None if the graph computes them, or the model looks at none.

    Raises:
        InputError: some for a model that looks at none; rows that no encoder gives; or none, and
            the bundle has no `embed`.
    """
    name, precision = bundle.manifest.variant, next(iter(bundle.manifest.graphs))
    inputs = bundle.graph("classify", precision).spec.inputs
    wanted = next((t for t in inputs if t.name == "image_embeddings"), None)
    if wanted is not None and given is not None:
        rows = matrix_from(given, int(wanted.shape[-1]), "image embeddings")
        # summed in float64 without a copy in it, which of a million rows has 4 GB
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        if (odd := np.flatnonzero((lengths < _TINY) | (lengths > _HUGE))).size:
            raise InputError(
                f"row {odd[0]} of the image embeddings has the length {lengths[odd[0]]:g}; CLIP's "
                "have some 1 to 100. Give what its image encoder made of each frame"
            )
        return rows
    if given is not None:
        raise InputError(f"{name} looks at no image embeddings; leave them out")
    if wanted is not None and "embed" not in bundle.graphs:
        raise InputError(
            f"{bundle.path} was exported without CLIP, so it cannot look at whole frames: give "
            "--image-embeddings FILE.npy, one row a frame, or export it again with --clip"
        )
    return None


def classifier_from_rows(vocabulary: Vocabulary, rows: Floats) -> Classifier:
    """A classifier of given rows; a last row of zeros, the public code's background, is left out.

    Args:
        vocabulary: one name a row; synonyms in a name are only its label.
        rows: float32 [C, D] or, with the background, [C + 1, D].

    Raises:
        VocabularyError: another number of rows than names, or a row of zeros.
    """
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if len(rows) == len(vocabulary) + 1 and lengths[-1] < _TINY:
        rows, lengths = rows[:-1], lengths[:-1]
    if len(rows) != len(vocabulary):
        raise VocabularyError(
            f"the classifier has {len(rows)} rows and the vocabulary {len(vocabulary)} names; give "
            "one name a row, in the rows' order"
        )
    if (empty := np.flatnonzero(lengths < _TINY)).size:
        raise VocabularyError(
            f"row {empty[0]} of the classifier is all zeros, so it stands for no class"
        )
    embeddings: Floats = (rows / lengths).astype(np.float32)
    return Classifier(vocabulary.names, [1] * len(rows), embeddings)


def closed_classifier(vocabulary: Vocabulary, classes: int, model: str) -> Classifier:
    """The names of a model's own classes.

    Args:
        vocabulary: names in the order of the training's categories.
        classes: of the model, without "no object".
        model: for the message.

    Raises:
        VocabularyError: another number of names.
    """
    if len(vocabulary) != classes or vocabulary.others:
        raise VocabularyError(
            f"{model} knows {classes} classes, those that its checkpoint was trained on; the "
            f"vocabulary has {len(vocabulary)} names. Give all of them, in the order of the "
            "training data's categories (--vocabulary FILE takes its annotation file)."
        )
    return Classifier(vocabulary.names, [1] * classes, None)
