"""Histograms of activations over many windows; what is interrupted goes on where it was.

Every few windows the histograms are saved in one file, written aside and renamed, so a process that
is killed at any moment loses these windows at most. The file's name has a digest of everything that
the numbers depend on; with other frames or another graph, counting begins anew.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.histograms import BINS, Histogram
from openvis_rt.calib.tap import TapBackend, TappedGraph, run_windows
from openvis_rt.errors import InputError
from openvis_rt.files import output_file
from openvis_rt.given_files import given_bytes
from openvis_rt.runtime.backends.base import Array

__all__ = ["Histograms", "Saved", "collect"]

_LARGEST = 1 << 30  # bytes of the file
_EVERY = 8  # windows between two savings

Image8 = npt.NDArray[np.uint8]
Histograms = dict[str, dict[str, Histogram]]
"""By graph and tensor."""
Progress = Callable[[str, int, int | None], None]


class Saved:
    """Where unfinished histograms are kept.

    Args:
        beside: the bundle that is calibrated or made; the file stands next to it.
        facts: everything that the numbers depend on, as JSON types.
    """

    def __init__(self, beside: Path, facts: object) -> None:
        self._prefix = f".{beside.absolute().name}.calibrating-"
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self.path = beside.absolute().parent / f"{self._prefix}{key}.npz"

    def write(self, histograms: Histograms, done: int) -> None:
        """Save what was counted in the first so many windows.

        Raises:
            OutputError: the place cannot be written.
        """
        every = [h for graph in histograms.values() for h in graph.values()]
        with output_file(self.path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                done=np.int64(done),
                counts=np.stack([h.counts for h in every]),
                limits=np.array([(h.top, h.lowest, h.highest) for h in every]),
            )

    def read(self, histograms: Histograms) -> int:
        """Fill empty histograms with what was saved; the number of windows that are in them."""
        every = [h for graph in histograms.values() for h in graph.values()]
        try:
            with np.load(io.BytesIO(given_bytes(self.path, _LARGEST)), allow_pickle=False) as saved:
                done, counts, limits = int(saved["done"]), saved["counts"], saved["limits"]
        except (InputError, OSError, ValueError, KeyError, TypeError, MemoryError, BadZipFile):
            return 0  # nothing was saved, or what is there is nothing of ours
        if counts.shape != (len(every), BINS) or limits.shape != (len(every), 3):
            return 0
        for histogram, bins, (top, lowest, highest) in zip(every, counts, limits, strict=True):
            histogram.counts, histogram.top = bins, float(top)
            histogram.lowest, histogram.highest = float(lowest), float(highest)
        return done

    def clear(self) -> None:
        """Remove it, and what was left of other calibrations of the same bundle."""
        for file in self.path.parent.glob(f"{self._prefix}*.npz"):
            file.unlink(missing_ok=True)


def collect(
    bundle: Bundle,
    graphs: Mapping[str, TappedGraph],
    windows: Sequence[Sequence[Image8]],
    places: Sequence[str],
    saved: Saved,
    *,
    threads: int | None = None,
    progress: Progress = lambda *_: None,
) -> Histograms:
    """Count the numbers of the tensors that are seen in some graphs.

    Args:
        bundle: whose FP32 graphs are computed.
        graphs: that are looked into.
        windows: of uint8 [H, W, 3] frames.
        places: where each window came from, for messages.
        saved: where unfinished histograms are, and are put.
        threads: that compute one graph; None for the library's choice.
        progress: told of windows done and in all.

    Raises:
        InputError: a tensor is infinite or NaN; the message names it, its graph and the frame.
        BackendError: a graph failed.
        OutputError: unfinished histograms cannot be saved.
    """
    found = {name: {t: Histogram() for t in graph.seen} for name, graph in graphs.items()}
    done = saved.read(found)

    def count(graph: str, values: Mapping[str, Array]) -> None:
        for name, value in values.items():
            try:
                found[graph][name].add(value)
            except InputError as exc:
                raise InputError(
                    f"{name!r} of graph {graph!r} holds {exc} at {places[done]}: the FP32 graph "
                    "itself fails there, so it cannot be calibrated. `openvis verify` says whether "
                    "the bundle is sound."
                ) from exc

    backend = TapBackend(graphs, count, threads)
    try:
        progress("calibrating", done, len(windows))
        for _ in run_windows(bundle, backend, windows[done:]):
            done += 1
            progress("calibrating", done, len(windows))
            if done % _EVERY == 0:
                saved.write(found, done)
    finally:
        backend.close()
    saved.write(found, done)
    return found
