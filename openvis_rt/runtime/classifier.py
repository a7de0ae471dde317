"""What a model classifies with: class names, and the rows that stand for them.

Rows come from the names by CLIP's text encoder (:mod:`.text`); or from a file; or they are part of
a model with a closed vocabulary, whose class head has one row a class. A checkpoint's own rows are
never used without being named: the names are always the user's.

The public files `fg_bg_5_10_*_ens.npy` of OV2Seg and OVFormer (DetPro) hold one row of 512 numbers
a class, in the order of the data set's categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import VocabularyError
from openvis_rt.vocabulary import Vocabulary

__all__ = ["Classifier", "classifier_from_rows", "closed_classifier"]

Floats = npt.NDArray[np.float32]

_TINY = 1e-35  # a row shorter than that has no direction in FP32


@dataclass(frozen=True)
class Classifier:
    """Classes, and the rows of the text classifier that stand for them.

    Attributes:
        names: of the classes, as the user gave them.
        rows: how many rows each class has.
        embeddings: float32 [K, D], L2-normalised rows; None where the model holds them.
    """

    names: tuple[str, ...]
    rows: list[int]
    embeddings: Floats | None


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
    if len(vocabulary) != classes:
        raise VocabularyError(
            f"{model} knows {classes} classes, those that its checkpoint was trained on; the "
            f"vocabulary has {len(vocabulary)} names. Give all of them, in the order of the "
            "training data's categories (--vocabulary FILE takes its annotation file)."
        )
    return Classifier(vocabulary.names, [1] * classes, None)
