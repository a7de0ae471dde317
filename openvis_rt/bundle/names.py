"""Embeddings of names that come with a bundle: a listed file, ``names.safetensors``.

It has one tensor, ``embeddings`` float32 [N, D] of L2-normalised rows, and in its metadata the N
phrases as a JSON list and the precision of the graph `text` that made them. The manifest has its
digest, so it is as much to be trusted as the bundle's graphs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BundleError, InputError
from openvis_rt.given_files import json_from_bytes

__all__ = ["NAMES", "are_unit", "read_names", "write_names"]

NAMES = "names.safetensors"

Floats = npt.NDArray[np.float32]

_LARGEST = 1 << 30  # bytes; LV-VIS's 1,196 names have 5 MB
_UNIT = 1e-3  # of a row's norm; rounding is below 1e-6


def read_names(bundle: Bundle, precision: str, width: int) -> dict[str, Floats]:
    """Embeddings by phrase, float32 [D]; none where the bundle has none of that precision.

    Args:
        bundle: opened.
        precision: in which its graph `text` computes.
        width: D.

    Raises:
        BundleError: the file was changed, or is not of the form above.
    """
    if NAMES not in bundle.manifest.files:
        return {}
    data = bundle.read_file(NAMES, _LARGEST)
    try:
        [(name, rows)] = load(data).items()
        facts = _metadata(data)
        phrases = json_from_bytes(facts["phrases"].encode(), "its list of phrases")
        if not all(isinstance(phrase, str) for phrase in phrases):
            raise InputError("a phrase is no text")
        wanted = ("embeddings", np.dtype(np.float32), (len(phrases), width))
        if (name, rows.dtype, rows.shape) != wanted:
            raise InputError(f"it has {name}, {rows.dtype} {rows.shape}; needed are {wanted}")
        if not are_unit(rows):
            raise InputError("a row of its embeddings has not length 1")
    except (SafetensorError, InputError, KeyError, TypeError, ValueError) as exc:
        raise BundleError(
            f"{bundle.path / NAMES} is damaged ({exc}); export the bundle again"
        ) from exc
    return dict(zip(phrases, rows, strict=True)) if facts.get("precision") == precision else {}


def are_unit(rows: Floats) -> bool:
    """Whether every row of float32 [N, D] is finite and has length 1."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    return bool((np.abs(norms - 1) < _UNIT).all())  # false for NaN


def write_names(bundle: Bundle, precision: str, embeddings: Mapping[str, Floats]) -> Bundle:
    """Add embeddings, float32 [D] by phrase, to a bundle that has none; the bundle as it is then.

    Raises:
        OutputError, BundleError: as :meth:`Bundle.adding`.
    """
    facts = {"phrases": json.dumps(list(embeddings)), "precision": precision}
    data = save({"embeddings": np.stack(list(embeddings.values())).astype("<f4")}, facts)
    with bundle.adding() as change:
        change.new_file(NAMES).write_bytes(data)
    return Bundle.open(bundle.path, verify=False)


def _metadata(data: bytes) -> dict[str, str]:
    """The texts of a safetensors file that could be read."""
    size = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return found
