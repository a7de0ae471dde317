"""A client of the Triton model `openvis`: frames go out, results come back, one sequence a video.

with open_video("street.mp4") as video:
    for result in stream_frames(video, url="localhost:8001", vocabulary=["person", "bicycle"]):
        print(result.index, result.track_ids)
"""

from __future__ import annotations

import contextlib
import io
import json
import queue
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvis_rt.errors import BackendError, DependencyError, InputError
from openvis_rt.runtime.video.reading import Frame
from openvis_rt.runtime.video.results import FrameResult, result_from_line
from openvis_rt.vocabulary import Vocabulary

__all__ = ["stream_frames"]

Image8 = npt.NDArray[np.uint8]
Answer = tuple[Any, Exception | None]


def stream_frames(
    frames: Iterable[Frame | Image8],
    *,
    url: str = "localhost:8001",
    model: str = "openvis",
    vocabulary: Iterable[str] | Vocabulary | None = None,
    threshold: float | None = None,
    max_instances: int | None = None,
    sequence: int | None = None,
    in_flight: int = 2,
    jpeg_quality: int | None = None,
    timeout: float = 60.0,
) -> Iterator[FrameResult]:
    """Results of a video's frames, in order, as :meth:`.Pipeline.stream` gives them.

    The sequence is ended on the server when the frames end, and also when the caller stops early or
    an error comes up. A client that dies without that leaves a place that the server gives away
    after its idle time.

    Args:
        frames: of one video, all of one size, taken as they are sent.
        url: host and gRPC port of the server.
        model: its name there.
        vocabulary: classes to look for, as for :meth:`.Pipeline.open`; None for the model's own.
        threshold: the lowest score that is shown, 0..1; None for the model's own.
        max_instances: the most instances of a frame that are shown; the same.
        sequence: the correlation id, from 1 on and no other client's; None for a random one.
        in_flight: frames that are sent ahead of their results. A camera's results are most recent
            with 1.
        jpeg_quality: send JPEGs of this quality, 1..95, in place of raw frames: a tenth of the
            bytes, and no longer the very same pixels.
        timeout: seconds to wait for a result.

    Raises:
        DependencyError: tritonclient is not installed.
        BackendError: the server cannot be reached, or does not answer in time.
        InputError: the server refuses a frame, the vocabulary or the sequence; it says why.
    """
    if in_flight < 1:
        raise InputError(f"at least one frame is in flight; got in_flight={in_flight}")
    parameters = _parameters(vocabulary, threshold, max_instances)
    with _Stream(url, model, sequence or secrets.randbits(62) + 1, timeout) as stream:
        yield from _results(stream, iter(frames), parameters, in_flight, jpeg_quality)


def _results(
    stream: _Stream,
    frames: Iterator[Frame | Image8],
    parameters: dict[str, Any],
    in_flight: int,
    jpeg_quality: int | None,
) -> Iterator[FrameResult]:
    times: deque[float | None] = deque()  # of the frames whose results have not come
    for frame in frames:
        image = frame.image if isinstance(frame, Frame) else frame
        times.append(frame.time if isinstance(frame, Frame) else None)
        stream.send(_tensors(image, jpeg_quality), parameters)
        parameters = {}
        while stream.waiting >= in_flight:
            yield from _timed(stream.receive(), times)
    if not stream.sent:
        return
    stream.end()
    while stream.waiting:
        yield from _timed(stream.receive(), times)


def _timed(results: list[FrameResult], times: deque[float | None]) -> Iterator[FrameResult]:
    for result in results:
        yield replace(result, time=times.popleft())


def _parameters(
    vocabulary: Iterable[str] | Vocabulary | None,
    threshold: float | None,
    max_instances: int | None,
) -> dict[str, Any]:
    """What START says beside its frame."""
    found: dict[str, Any] = {}
    if vocabulary is not None:
        words = Vocabulary.of(vocabulary)
        found["vocabulary"] = json.dumps(words.names)
        if words.others:
            found["others"] = json.dumps(words.others)
    if threshold is not None:
        found["threshold"] = str(threshold)  # of numbers, older servers take whole ones only
    if max_instances is not None:
        found["max_instances"] = max_instances
    return found


def _tensors(image: Image8, jpeg_quality: int | None) -> dict[str, npt.NDArray[np.uint8]]:
    if jpeg_quality is None:
        return {"frame": np.ascontiguousarray(image)}
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=jpeg_quality)
    return {"encoded": np.frombuffer(data.getvalue(), np.uint8)}


class _Stream:
    """One sequence on a gRPC stream, which keeps its requests and their answers in order.

    Attributes:
        sent: requests so far.
        waiting: those whose answers were not received.
    """

    def __init__(self, url: str, model: str, sequence: int, timeout: float) -> None:
        try:
            from tritonclient import grpc, utils
        except ImportError as exc:
            raise DependencyError("tritonclient", "triton") from exc
        self._grpc: Any = grpc
        self._refused: type[Exception] = utils.InferenceServerException
        self._url, self._model, self._sequence, self._timeout = url, model, sequence, timeout
        self._answers: queue.Queue[Answer] = queue.Queue()
        self.sent = self.waiting = 0
        self._ended = self._failed = False

    def __enter__(self) -> _Stream:
        self._client = self._grpc.InferenceServerClient(self._url)
        self._client.start_stream(callback=self._take)
        return self

    def __exit__(self, *_: object) -> None:
        if self.sent and not self._ended and not self._failed:
            self.end()
        self._client.stop_stream(cancel_requests=self._failed)
        self._client.close()

    def send(self, tensors: dict[str, npt.NDArray[np.uint8]], parameters: dict[str, Any]) -> None:
        """Send a frame; the first one starts the sequence."""
        inputs = []
        for name, array in tensors.items():
            inputs.append(self._grpc.InferInput(name, array.shape, "UINT8"))
            inputs[-1].set_data_from_numpy(array)
        self._send(inputs, parameters, end=False)

    def end(self) -> None:
        """End the sequence, by a request without a frame."""
        self._ended = True
        self._send([], {}, end=True)

    def _take(self, result: Any, error: Exception | None) -> None:
        self._answers.put((result, error))

    def receive(self) -> list[FrameResult]:
        """Results of the oldest request that waits; see :func:`stream_frames` for errors."""
        try:
            result, error = self._answers.get(timeout=self._timeout)
        except queue.Empty as exc:
            self._failed = True
            raise BackendError(
                f"the server at {self._url} did not answer within {self._timeout:g} s; it may be "
                "busy with other sequences. Wait longer with timeout=, or see its log"
            ) from exc
        self.waiting -= 1
        if error is not None:
            raise self._refusal(error)
        data = result.as_numpy("results").tobytes().decode("utf-8")
        return [result_from_line(line) for line in data.split("\n") if line]

    def _refusal(self, error: Any) -> Exception:
        status, message = str(error.status() or ""), error.message()
        if "UNAVAILABLE" in status or "CANCELLED" in status:
            self._failed = True
            return BackendError(
                f"the server at {self._url} cannot be reached, or went away: {message}"
            )
        return InputError(f"the server at {self._url} refused a request: {message}")

    def _send(self, inputs: list[Any], parameters: dict[str, Any], *, end: bool) -> None:
        try:
            self._client.async_stream_infer(
                self._model,
                inputs,
                sequence_id=self._sequence,
                sequence_start=not self.sent,
                sequence_end=end,
                parameters=parameters or None,
            )
        except self._refused as exc:  # the stream broke; the reason was put among the answers
            self._failed = True
            reasons = [error for _, error in self._drained() if error is not None]
            raise self._refusal(reasons[-1] if reasons else exc) from exc
        self.sent += 1
        self.waiting += 1

    def _drained(self) -> Iterator[Answer]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._answers.get_nowait()
