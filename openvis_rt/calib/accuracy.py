"""AP of a bundle with INT8 graphs that are not added to it yet, on a data set with annotations."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.int8_graphs import Int8Graph
from openvis_rt.calib.mixed_backend import MixedBackend
from openvis_rt.calib.sources import frames_folder
from openvis_rt.errors import InputError
from openvis_rt.evaluation.annotation_files import read_annotations
from openvis_rt.evaluation.metrics import evaluate
from openvis_rt.evaluation.predicting import predict_videos
from openvis_rt.evaluation.vocabularies import vocabulary_for
from openvis_rt.files import sha256_of
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.systems.graphs import INT8

__all__ = ["DataSet"]

Progress = Callable[[str, int, int | None], None]
Warn = Callable[[str], None]


class DataSet:
    """Videos that mixes are evaluated on, as ``openvis eval`` does.

    Args:
        annotations: a file of YTVIS, OVIS, LV-VIS, BURST or UVO whose frames are beside it.

    Attributes:
        path: of the file.
        sha256: of it.
        videos: how many it annotates.

    Raises:
        InputError: it cannot be read, annotates no track, or its frames are not found.
    """

    def __init__(self, annotations: Path) -> None:
        self.path, self._data = annotations, read_annotations(annotations)
        if not self._data.tracks:
            raise InputError(
                f"{annotations} has no annotated tracks, as the files of test sets, so no AP can "
                "be measured on it. Give one of a validation or training set."
            )
        self.sha256, self.videos = sha256_of(annotations), len(self._data.videos)
        self._folder = frames_folder(annotations, self._data.videos[0])

    def is_among(self, sources: Iterable[str]) -> bool:
        """Whether the same file or frames are among the sources of a calibration."""
        frames, own = (Path(os.path.realpath(path)) for path in (self._folder, self.path))
        for text in sources:
            path = Path(os.path.realpath(text))  # of links in a circle it is the path itself
            if path in (own, frames, frames.parent) or frames in path.parents:
                return True
        return False

    def ap(
        self,
        bundle: Bundle,
        graphs: Sequence[Int8Graph],
        precision: str,
        work: Path,
        *,
        threads: int | None = None,
        progress: Progress = lambda *_: None,
        warn: Warn = lambda _: None,
    ) -> float:
        """AP in percent, over the categories that are annotated.

        Args:
            bundle: whose other graphs are run, in FP16 with ``int8`` and else in FP32.
            graphs: that take the place of the bundle's.
            precision: of these.
            work: a folder for the results of each video; what an earlier run left there is taken.
            threads: that compute one graph; None for the library's choice.
            progress: told of videos.
            warn: told what does not stop the work.

        Raises:
            InputError: a video cannot be run, or no class has an annotated track that counts.
        """
        digests = {g.graph: _digest(g) for g in graphs}
        agnostic = self._data.class_agnostic
        words, classes = vocabulary_for(self._data, class_agnostic=agnostic)
        with Pipeline.open(
            bundle,
            vocabulary=words,
            backend=MixedBackend(graphs, threads),
            precision="fp16" if precision == INT8 else "fp32",
            warn=warn,
        ) as pipeline:
            run = predict_videos(
                pipeline,
                self._data,
                self._folder,
                work / "-".join([precision, *(d[:12] for d in digests.values())]),
                classes=classes,
                options={"graphs": digests, "annotations": self.sha256},
                progress=progress,
                warn=warn,
            )
        if run.failed:
            name, error = next(iter(run.failed.items()))
            raise InputError(
                f"{len(run.failed)} videos of {self.path} cannot be run, such as {name}: {error}"
            )
        ap = evaluate(self._data, run.results).overall["AP"]
        if ap is None:
            raise InputError(f"no class of {self.path} has an annotated track that counts")
        return 100 * ap


def _digest(graph: Int8Graph) -> str:
    return hashlib.sha256(graph.model.SerializeToString(deterministic=True)).hexdigest()
