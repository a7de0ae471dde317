"""CLIP-VIS frame by frame: networks on the device, association and sums on the host.

    frame --place--> propose --features, pool_mask stay on the device--> classify
                        |                                                    |
          queries, object logits, IoU, area, mass                     class scores
                        '------------> association, scores <-----------------'
                                          |
                        selected queries --masks--> bit masks --> run lengths

In video mode the masks of every query that has any are kept as run lengths, because only the end of
the video tells which ones are reported. In streaming mode only the shown ones are made, and nothing
grows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle import Bundle
from openvis_rt.errors import BackendError, InputError
from openvis_rt.runtime.association import TemporalTopK
from openvis_rt.runtime.preprocess import Placement, place_frame, placement_for
from openvis_rt.runtime.results import (
    RLE,
    FrameResult,
    Instance,
    VideoInstance,
    VideoResult,
    box_of,
    empty_rle,
    encode_masks,
)
from openvis_rt.runtime.scoring import VideoScores, merge_synonyms
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.session import SessionFactory
from openvis_rt.vocabulary import Vocabulary

__all__ = ["ClipVisPipeline"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Image8 = npt.NDArray[np.uint8]

_HOST_OUTPUTS = ["queries", "object_logits", "mask_iou", "mask_area", "mask_mass"]  # of `propose`
_MASKS_A_RUN = 8  # masks made at once: 8 x 1080 x 1920 floats are 66 MB


class ClipVisPipeline:
    """Sessions, tracker and sums of one model on one backend.

    Args:
        bundle: of the family ``clip-vis``.
        factory: the backend.
        precision: which of the bundle's graphs.
        tracker: association; it keeps its own memory.
        selection: what is shown of a frame.
        keep_video: video mode, so that :meth:`finish` can report the whole video.
    """

    def __init__(
        self,
        bundle: Bundle,
        factory: SessionFactory,
        precision: str,
        tracker: TemporalTopK,
        selection: Selection,
        *,
        keep_video: bool,
    ) -> None:
        self._bundle, self.selection, self.keep_video = bundle, selection, keep_video
        self._tracker = tracker
        self._propose = factory.open(bundle, "propose", precision)
        self._classify = factory.open(bundle, "classify", precision)
        self._masks = factory.open(bundle, "masks", precision)
        for name in ("features", "pool_mask"):
            self._classify.bind(name, self._propose, name)
        self._masks.bind("mask_logits", self._propose, "mask_logits")
        spec = self._propose.spec
        shapes = {t.name: t.shape for t in (*spec.inputs, *spec.outputs)}
        self._queries = int(shapes["queries"][0])
        self._frame = np.zeros([int(d) for d in shapes["frames"]], np.uint8)
        self._placement: Placement | None = None
        self._vocabulary = Vocabulary(("object",))
        self._scores: VideoScores | None = None
        self._torn = False
        self._kept: list[list[RLE]] = []  # run lengths of every track, a frame

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: Floats) -> None:
        """Look for other classes from the next frame on; tracks go on, class averages start anew.

        Args:
            vocabulary: the classes.
            embeddings: float32 [K, D] of its phrases.

        Raises:
            InputError: in video mode, in the middle of a video: its averages cannot mix
                vocabularies.
        """
        self.check_vocabulary_may_change()
        self._vocabulary = vocabulary
        self._classify.write("text_embeddings", embeddings)
        self._restart_scores()

    def check_vocabulary_may_change(self) -> None:
        """Refuse in the middle of a video in video mode; see :meth:`set_vocabulary`."""
        if self.keep_video and self._kept:
            raise InputError(
                "the vocabulary cannot change in the middle of a video in video mode; "
                "call reset() first, or open the pipeline for streaming"
            )

    def reset(self) -> None:
        """Forget the video: tracks, sums and masks."""
        self._tracker.reset()
        self._torn = False
        self._placement = None
        self._kept.clear()
        self._restart_scores()

    def placement(self, height: int, width: int) -> Placement:
        """Where a source frame of this size lies in the network's frame."""
        return placement_for(height, width, self._bundle.manifest.preprocess)

    def step(self, image: Image8, index: int, time: float | None) -> FrameResult:
        """One frame.

        Args:
            image: uint8 [Hs, Ws, 3], RGB, every frame of a video of the same size; read only.
            index: its number, for the result.
            time: its time in seconds, for the result.

        Returns:
            the instances that are known now.

        Raises:
            InputError: the image is not RGB of 8 bits, or of another size than the first.
            BackendError: a graph failed, or gave NaN or infinity.
        """
        if self._torn:
            raise InputError("an earlier frame of this video failed half-way; call reset() first")
        placement = self._place(image)
        self._propose.write("frames", self._frame)
        self._propose.run()
        self._classify.run()
        output = self._fetch_outputs(index)
        self._torn = True  # until tracker, sums and masks all have this frame
        order = self._tracker.step(output["queries"])
        self._add_scores(output, order)
        visible = output["mask_area"][order] > 0
        wanted = self._choose(visible)
        shown = np.array(sorted(wanted), np.int64)
        tracks = np.flatnonzero(visible) if self.keep_video else shown
        found = dict(zip(tracks.tolist(), self._make_masks(order[tracks]), strict=True))
        if self.keep_video:
            empty = empty_rle(*placement.source)
            self._kept.append([found.get(t, empty) for t in range(self._queries)])
        self._torn = False
        instances = [
            Instance(track, category, self._vocabulary.names[category], score, box, found[track])
            for track, (category, score) in wanted.items()
            if (box := box_of(found[track]))[2] > 0
        ]
        return FrameResult(index, time, *placement.source, tuple(instances))

    def finish(self) -> VideoResult:
        """The whole video's result by the official scoring; the next frame starts a new video.

        Raises:
            InputError: no frame was given, or the pipeline was opened for streaming.
        """
        if not self.keep_video:
            raise InputError("a pipeline opened for streaming keeps no video to report")
        if self._torn:
            raise InputError("a frame of this video failed half-way; call reset() first")
        if self._placement is None or self._scores is None:
            raise InputError("no frame was given, so there is no video to report")
        height, width = self._placement.source
        empty = empty_rle(height, width)
        instances = [
            VideoInstance(
                d.track,
                d.category,
                self._vocabulary.names[d.category],
                d.score,
                tuple(
                    kept[d.track] if shown else empty
                    for kept, shown in zip(self._kept, d.shown, strict=True)
                ),
            )
            for d in self._scores.detections(self._bundle.manifest.detections)
        ]
        result = VideoResult(height, width, len(self._kept), tuple(instances))
        self.reset()
        return result

    def close(self) -> None:
        """Close the sessions."""
        for session in (self._masks, self._classify, self._propose):
            session.close()
        if self._scores is not None:
            self._scores.close()

    def _restart_scores(self) -> None:
        if self._scores is not None:
            self._scores.close()
        self._scores = None

    def _place(self, image: Image8) -> Placement:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(
                f"a frame is uint8 [H, W, 3] in RGB; got {image.dtype} {list(image.shape)}"
            )
        if self._placement is None:
            self._placement = self.placement(*image.shape[:2])
            self._masks.write("picture_size", np.array(self._placement.cut, np.int64))
            self._masks.write("frame_size", np.array(self._placement.source, np.int64))
        if image.shape[:2] != self._placement.source:
            raise InputError(
                f"a frame of {image.shape[1]}x{image.shape[0]} came after frames of "
                f"{self._placement.source[1]}x{self._placement.source[0]}; "
                "call reset() before a video of another size"
            )
        mean = self._bundle.manifest.preprocess.pixel_mean
        place_frame(image, self._placement, self._frame[0], mean)
        return self._placement

    def _fetch_outputs(self, index: int) -> dict[str, Floats]:
        """What the host needs of a frame, by output name; float32, in the order of the queries."""
        out: dict[str, Floats] = {}
        for session, names in ((self._propose, _HOST_OUTPUTS), (self._classify, ["class_scores"])):
            for name in names:
                out[name] = np.asarray(session.fetch(name), np.float32)
                if not np.isfinite(out[name]).all():
                    raise BackendError(
                        f"graph {session.spec.name!r} gave NaN or infinity in {name!r} at frame "
                        f"{index}: the weights, the precision or the backend do not work; try "
                        "--backend onnxruntime --precision fp32"
                    )
        return out

    def _add_scores(self, output: dict[str, Floats], order: Ints) -> None:
        rows = self._vocabulary.rows_of_class
        if self._scores is None:
            self._scores = VideoScores(self._queries, len(rows), keep=self.keep_video)
        self._scores.add(
            merge_synonyms(output["class_scores"], rows)[order],
            output["mask_iou"][order],
            output["object_logits"][order],
            output["mask_area"][order],
            output["mask_mass"][order],
        )

    def _choose(self, visible: npt.NDArray[np.bool_]) -> dict[int, tuple[int, float]]:
        """Tracks to show, best first: their class and their score so far."""
        assert self._scores is not None
        categories, scores, shown = self._scores.now()
        scores = np.where(visible & shown, scores, 0.0)
        best = np.argsort(-scores, kind="stable")[: self.selection.limit]
        return {
            int(t): (int(categories[t]), float(scores[t]))
            for t in best
            if scores[t] >= self.selection.threshold and scores[t] > 0
        }

    def _make_masks(self, queries: Ints) -> Sequence[RLE]:
        """Run lengths of some queries' masks at the source's size."""
        out: list[RLE] = []
        for start in range(0, len(queries), _MASKS_A_RUN):
            self._masks.write("selected", queries[start : start + _MASKS_A_RUN].astype(np.int64))
            self._masks.run()
            masks = np.asarray(self._masks.fetch("masks"), np.uint8)
            out += encode_masks(masks[:, 0])
        return out
