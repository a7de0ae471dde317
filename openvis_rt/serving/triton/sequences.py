"""The videos of one Triton model instance: a tracker for each correlation id, over the same graphs.

    START -> a video of its own begins       frame, frame, ... -> results       END -> it is dropped

Triton gives a sequence's requests to one instance, in order, and frees a sequence's place at END
and when it has been idle for too long. It does not tell the model of the latter. So a video is also
dropped here when it was idle for twice that time, and the one that was idle longest when a new one
begins and Triton's places are all taken: Triton has freed it already. Memory is bounded by the
number of places.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import InputError
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.vocabulary import Vocabulary

__all__ = ["PARAMETERS", "SequenceRequest", "Sequences"]

PARAMETERS = ("vocabulary", "others", "threshold", "max_instances")
"""What a request may say beside its frame. ``vocabulary`` and ``others`` are JSON lists of names,
the others numbers; at START they hold for the video, and ``vocabulary`` also later, from its frame
on."""

_MOST = 1 << 31
_LOOK = 2.0  # times the idle limit after which a video is dropped here


@dataclass(frozen=True)
class SequenceRequest:
    """One request of a sequence.

    Attributes:
        sequence: Triton's correlation id.
        start, end: its controls.
        frame: uint8 [H, W, 3] RGB; None for a request that only ends a sequence. It is kept until
            its window is full.
        parameters: of :data:`PARAMETERS`; others belong to other layers, and are passed over.
    """

    sequence: int
    start: bool
    end: bool
    frame: npt.NDArray[np.uint8] | None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Video:
    pipeline: Pipeline
    seen: float  # when its last request came


class Sequences:
    """Every video that an instance has the state of.

    Args:
        pipeline: open in stream mode; its graphs, and where a request says nothing else its
            vocabulary and selection, are every video's. The caller closes it.
        capacity: videos at a time.
        idle_seconds: after which Triton gives a sequence's place away.
        clock: seconds, of any beginning.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        capacity: int,
        idle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipeline, self._capacity, self._idle = pipeline, capacity, idle_seconds
        self._clock = clock
        self._videos: OrderedDict[int, _Video] = OrderedDict()  # the longest idle one first

    def __len__(self) -> int:
        return len(self._videos)

    def step(self, request: SequenceRequest) -> list[FrameResult]:
        """Take one request.

        Returns:
            results of the frames that are known now: of this one for models that work frame by
            frame; else none until its window is full, or the sequence ends.

        Raises:
            InputError: no video of this id began here; or a frame or a parameter cannot be used. A
                refused START begins nothing, and after any other refusal the video goes on.
            BackendError: a graph failed; only another START with this id helps.
        """
        now = self._clock()
        self._drop_idle(now)
        if request.start:
            self._begin(request, now)
        video = self._videos.get(request.sequence)
        if video is None:
            raise InputError(
                f"sequence {request.sequence} is not under way here: it was not started, it has "
                f"ended, its START was refused, or it was idle for more than {self._idle:g} s. "
                "Send its next frame with sequence_start"
            )
        video.seen = now
        self._videos.move_to_end(request.sequence)
        try:
            if not request.start:
                _change(video.pipeline, request.parameters)
            results = [] if request.frame is None else video.pipeline.push(request.frame)
            return results + video.pipeline.flush() if request.end else results
        finally:
            if request.end:
                self._drop(request.sequence)

    def close(self) -> None:
        """Drop every video."""
        for sequence in list(self._videos):
            self._drop(sequence)

    def _begin(self, request: SequenceRequest, now: float) -> None:
        """A new video; one of the same id, whose client began anew, is dropped."""
        self._drop(request.sequence)
        while len(self._videos) >= self._capacity:
            self._drop(next(iter(self._videos)))
        parameters = request.parameters
        pipeline = self._pipeline.another(
            vocabulary=_vocabulary_of(parameters),
            selection=_selection_of(parameters, self._pipeline.selection),
        )
        self._videos[request.sequence] = _Video(pipeline, now)

    def _drop_idle(self, now: float) -> None:
        limit = now - _LOOK * self._idle
        for sequence in [s for s, video in self._videos.items() if video.seen < limit]:
            self._drop(sequence)

    def _drop(self, sequence: int) -> None:
        video = self._videos.pop(sequence, None)
        if video is not None:
            video.pipeline.close()


def _change(pipeline: Pipeline, parameters: Mapping[str, Any]) -> None:
    """Look for other classes in the middle of a video; InputError for what only START may say."""
    if late := sorted({"threshold", "max_instances"} & parameters.keys()):
        raise InputError(f"{' and '.join(late)} can be given with sequence_start only")
    vocabulary = _vocabulary_of(parameters)
    if vocabulary is not None:
        pipeline.set_vocabulary(vocabulary)


def _vocabulary_of(parameters: Mapping[str, Any]) -> Vocabulary | None:
    """The classes that a request names; None where it names none.

    Raises:
        InputError: ``others`` without ``vocabulary``, or no JSON list of names.
        VocabularyError: names that cannot be used.
    """
    if "vocabulary" not in parameters:
        if "others" in parameters:
            raise InputError("the parameter others goes with vocabulary, which was not given")
        return None
    words = Vocabulary(_names(parameters, "vocabulary"))
    return words.among(_names(parameters, "others")) if "others" in parameters else words


def _names(parameters: Mapping[str, Any], key: str) -> tuple[str, ...]:
    text = parameters[key]
    try:
        names = json.loads(text)
    except (TypeError, ValueError) as exc:
        raise InputError(f"the parameter {key} is a JSON list of names; got {text!r}") from exc
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"the parameter {key} is a JSON list of names; got {text!r}")
    return tuple(names)


def _selection_of(parameters: Mapping[str, Any], usual: Selection) -> Selection:
    threshold = _number(parameters, "threshold", usual.threshold)
    limit = _number(parameters, "max_instances", usual.limit)
    if not 0 <= threshold <= 1 or not 1 <= limit < _MOST or limit != int(limit):
        raise InputError(
            "threshold is a score, 0..1, and max_instances a whole number from 1 on; got "
            f"{threshold:g} and {limit:g}"
        )
    return replace(usual, threshold=threshold, limit=int(limit))


def _number(parameters: Mapping[str, Any], key: str, usual: float) -> float:
    value = parameters.get(key, usual)
    try:
        return float(value)
    except (TypeError, ValueError) as exc:
        raise InputError(f"the parameter {key} is a number; got {value!r}") from exc
