"""``openvis triton`` on a real server: interleaved videos, refusals, endings.

It needs a server, see ``triton_server.py``, and the extra [triton]. What has no server is in
``tests/unit/test_triton_*.py``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from triton_server import serve_graphs_in_python, triton_folder, triton_server

from openvis_rt.errors import BackendError, InputError
from openvis_rt.runtime.backends.registry import BackendOptions
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.video.results import result_from_line
from openvis_rt.serving.client import stream_frames
from openvis_rt.serving.triton.repository import write_repository
from openvis_rt.serving.triton.settings import ModelSettings
from openvis_rt.vocabulary import Vocabulary

grpc = pytest.importorskip("tritonclient.grpc", reason="the client needs the extra [triton]")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException
FOLDER = triton_folder()
pytestmark = pytest.mark.skipif(isinstance(FOLDER, str), reason=str(FOLDER))

WORDS = Vocabulary(("cat", "dog, hound", "kite"))
OTHERS = Vocabulary(("fish", "cat"))
SHOWN = Selection(0.0, 5)
IDLE = 2.0  # seconds; shorter ones end a sequence whose frame waits for a busy machine


@pytest.fixture(scope="module")
def bundle(cached_bundle) -> Path:
    """With every name in its cache: what a name is embedded with moves its last digit."""
    pytest.importorskip("onnxruntime", reason="running needs the extra [cpu]")
    names = (*WORDS.names, "fish")
    Pipeline.open(cached_bundle, vocabulary=names, backend="onnxruntime").close()
    return cached_bundle


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    """`openvis` opens its graphs itself; `calling` has a model of its own for each of them."""
    folder = tmp_path_factory.mktemp("triton")
    repository = folder / "repository"
    settings = ModelSettings(
        WORDS, threads=1, device="cpu", selection=SHOWN, sequences=9, idle_seconds=IDLE
    )
    write_repository(bundle, repository, settings)
    write_repository(bundle, folder / "other", settings, name="calling", graphs="onnxruntime")
    serve_graphs_in_python(folder / "other")
    for model in (folder / "other").iterdir():
        model.rename(repository / model.name)
    (folder / "work").mkdir()
    with triton_server(repository, FOLDER, folder / "work") as running:
        yield running


def video(seed: int, frames: int = 3, size: tuple[int, int] = (60, 100)) -> list[np.ndarray]:
    """Noise that moves: every frame of every video is another one."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (*size, 3), np.uint8)
    return [np.ascontiguousarray(np.roll(picture, 7 * t, 1)) for t in range(frames)]


@pytest.fixture(scope="module")
def direct(bundle):
    """What a pipeline gives for one video alone."""
    with Pipeline.open(
        bundle,
        vocabulary=WORDS,
        mode="stream",
        backend="onnxruntime",
        backend_options=BackendOptions("cpu", threads=1),
        selection=SHOWN,
    ) as pipeline:

        def run(frames, words=WORDS):
            pipeline.reset()
            pipeline.set_vocabulary(words)
            return list(pipeline.stream(frames))

        yield run


class Camera:
    """One sequence, a request at a time, by plain calls."""

    def __init__(self, url: str, sequence: int, model: str = "openvis") -> None:
        self.client, self.model, self.sequence = grpc.InferenceServerClient(url), model, sequence

    def __call__(self, frame=None, *, start=False, end=False, name="frame", **parameters):
        inputs = []
        if frame is not None:
            inputs.append(grpc.InferInput(name, frame.shape, "UINT8"))
            inputs[0].set_data_from_numpy(frame)
        answer = self.client.infer(
            self.model,
            inputs,
            sequence_id=self.sequence,
            sequence_start=start,
            sequence_end=end,
            parameters=parameters or None,
        )
        lines = answer.as_numpy("results").tobytes().decode().split("\n")
        return [result_from_line(line) for line in lines if line]

    def refused(self, *args, **how) -> str:
        with pytest.raises(InferenceServerException) as caught:
            self(*args, **how)
        return str(caught.value)


@pytest.mark.parametrize(("model", "count"), [("openvis", 2), ("openvis", 8), ("calling", 2)])
def test_interleaved_videos_give_what_each_gives_alone(server, direct, model, count):
    videos = [video(seed, size=(60 + 4 * (seed % 2), 100)) for seed in range(count)]
    words = [WORDS if seed % 2 else OTHERS for seed in range(count)]
    streams = [
        stream_frames(frames, url=server.url, model=model, vocabulary=names, in_flight=1)
        for frames, names in zip(videos, words, strict=True)
    ]
    found = [[] for _ in videos]
    for _ in videos[0]:  # a frame of each video in turn
        for stream, results in zip(streams, found, strict=True):
            results.append(next(stream))
    assert all(next(stream, None) is None for stream in streams)
    wanted = [direct(frames, names) for frames, names in zip(videos, words, strict=True)]
    assert found == wanted
    assert all(len(result.instances) for results in found for result in results)


def test_a_sequence_is_unknown_before_its_start_and_after_its_end(server):
    camera, frame = Camera(server.url, 901), video(1)[0]
    assert "START" in camera.refused(frame)  # Triton's own words
    assert [r.index for r in camera(frame, start=True)] == [0]
    assert [r.index for r in camera(frame, end=True)] == [1]
    assert "START" in camera.refused(frame)


def test_a_second_start_begins_the_video_anew(server, direct):
    camera, first, second = Camera(server.url, 902), video(2), video(3, size=(72, 90))
    camera(first[0], start=True)
    camera(first[1])
    results = [*camera(second[0], start=True), *camera(second[1]), *camera(second[2], end=True)]
    assert results == direct(second[:3])


def test_a_wrong_shape_is_refused_and_the_video_goes_on(server, direct):
    camera, frames = Camera(server.url, 903), video(4)
    results = camera(frames[0], start=True)
    assert "100x64 came after frames of 100x60" in camera.refused(np.zeros((64, 100, 3), np.uint8))
    assert "[-1,-1,3]" in camera.refused(np.zeros((60, 100, 4), np.uint8))  # Triton's own
    assert "no whole JPEG" in camera.refused(np.zeros(9, np.uint8), name="encoded")
    results += camera(frames[1], end=True)
    assert results == direct(frames[:2])


def test_a_refused_start_begins_nothing(server):
    camera, frame = Camera(server.url, 904), video(5)[0]
    said = camera.refused(frame, start=True, vocabulary=json.dumps(["cat", "cat"]))
    assert "stands twice" in said
    assert "is not under way here" in camera.refused(frame)
    assert "JSON list" in camera.refused(frame, start=True, vocabulary="cat")
    assert len(camera(frame, start=True, end=True)) == 1


def test_a_place_is_free_again_when_its_client_died(server):
    """Nine places: eight cameras die with theirs, and a ninth and a tenth find room."""
    frame = video(6)[0]
    for sequence in range(910, 918):
        Camera(server.url, sequence)(frame, start=True)  # and never ends it
    begin = time.monotonic()
    for sequence in (918, 919):
        assert len(Camera(server.url, sequence)(frame, start=True)) == 1
    assert Camera(server.url, 919)(frame, end=True)[0].index == 1
    assert time.monotonic() - begin < 20 * IDLE  # it waited for a place, and not for ever


def test_a_client_that_stops_early_ends_its_sequence(server):
    stream = stream_frames(video(7), url=server.url, sequence=905, in_flight=1)
    next(stream)
    stream.close()
    assert "START" in Camera(server.url, 905).refused(video(7)[0])


def test_the_client_says_what_the_server_refused_and_that_none_is_there(server):
    frames = [*video(8)[:1], *video(8, size=(72, 90))[:1]]
    with pytest.raises(InputError, match="refused a request: a frame of 90x72"):
        list(stream_frames(frames, url=server.url))
    with pytest.raises(BackendError, match="cannot be reached"):
        list(stream_frames(frames, url="127.0.0.1:9"))
    with pytest.raises(InputError, match="nothing"):
        list(stream_frames(frames, url=server.url, model="nothing"))
