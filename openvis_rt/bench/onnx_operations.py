"""Floating-point operations of a bundle's graphs, counted in the ONNX files.

A multiply-add is two of them; :mod:`openvis_rt.export.multiply_adds` says what is counted.
"""

from __future__ import annotations

import onnx

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.export.multiply_adds import multiply_adds
from openvis_rt.systems.graphs import masks_per_run

__all__ = ["flops_of_bundle"]

_NETWORKS = ("propose", "embed", "classify")


def flops_of_bundle(
    bundle: Bundle, precision: str, classes: int, window_length: int | None = None
) -> dict[str, int]:
    """Operations of one window, by graph: `propose`, `embed` and `classify`.

    Args:
        bundle, precision: whose graphs.
        classes: rows of the text classifier, K.
        window_length: frames of the window, T; None for the bundle's.

    Raises:
        BundleError: a shape follows from data, so that a product cannot be counted.
    """
    length = window_length or bundle.manifest.window_length
    sizes = {"T": length, "K": classes, "n": masks_per_run(length)}
    names = [name for name in bundle.graphs if name in _NETWORKS]
    return {
        name: 2 * multiply_adds(onnx.load_from_string(bundle.read_graph(name, precision)), sizes)
        for name in names
    }
