"""What Triton adds to a frame's latency, and what sequences that come and go leave behind.

    python benchmarks/triton_serving.py BUNDLE VIDEO --triton FOLDER [--json FILE]

FOLDER has nvidia-pytriton, see tests/triton_server.py. Everything runs on this machine's CPU, one
thread a graph. Direct calls and calls through the server alternate frame by frame, so a ratio is of
one moment; the 95 % interval of its median is a bootstrap's over frames. A call's time is from the
frame in the caller's memory to its results as objects, in both.

    raw       the frame's pixels in the request
    jpeg      a JPEG of quality 95, encoded before the time begins
    together  1, 2 and 8 sequences, each with a client thread of its own
    memory    of the model's process (PSS) after 200, 400, ... sequences of two frames each; half of
              them end, and half are left behind by their client
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from triton_server import TritonServer, triton_folder, triton_server

from openvis_rt import BackendOptions, Pipeline, Selection, Vocabulary, open_video
from openvis_rt.serving.client import stream_frames
from openvis_rt.serving.triton.repository import write_repository
from openvis_rt.serving.triton.settings import ModelSettings

Frames = list[np.ndarray]


class Caller:
    """One sequence by plain calls of tritonclient, each of which waits for its answer."""

    def __init__(self, url: str, sequence: int) -> None:
        from tritonclient import grpc

        self.grpc, self.sequence, self.client = grpc, sequence, grpc.InferenceServerClient(url)

    def __call__(self, name: str, value: np.ndarray, **controls: bool) -> bytes:
        """Send a frame; its lines of results."""
        tensor = self.grpc.InferInput(name, value.shape, "UINT8")
        tensor.set_data_from_numpy(value)
        answer = self.client.infer("openvis", [tensor], sequence_id=self.sequence, **controls)
        return answer.as_numpy("results").tobytes()


def latency(pipeline: Pipeline, server: TritonServer, frames: Frames, rounds: int) -> Any:
    """Milliseconds of a frame, directly and through the server."""
    from openvis_rt.serving.client import _tensors

    jpegs = [_tensors(frame, 95)["encoded"] for frame in frames]
    raw, encoded = Caller(server.url, 1), Caller(server.url, 2)
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {"direct": [], "raw": [], "jpeg": []}
    for turn in range(rounds):
        for number, (frame, jpeg) in enumerate(zip(frames, jpegs, strict=True)):
            start = {"sequence_start": turn == number == 0}
            calls = {
                "direct": lambda f=frame: pipeline.push(f),
                "raw": lambda f=frame, s=start: raw("frame", f, **s),
                "jpeg": lambda j=jpeg, s=start: encoded("encoded", j, **s),
            }
            for kind in rng.permutation(list(calls)):
                begin = time.perf_counter()
                calls[kind]()
                times[kind].append(1e3 * (time.perf_counter() - begin))
    warm = {kind: np.array(values[5:]) for kind, values in times.items()}
    return {kind: _figures(values, warm["direct"]) for kind, values in warm.items()}


def _figures(values: np.ndarray, direct: np.ndarray) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(values), (2000, len(values)))
    ratios = np.median((values / direct)[picks], axis=1)
    added = np.median((values - direct)[picks], axis=1)
    return {
        "frames": len(values),
        "p50_ms": round(float(np.percentile(values, 50)), 2),
        "p99_ms": round(float(np.percentile(values, 99)), 2),
        "ratio": round(float(np.median(values / direct)), 3),
        "ratio_95": [round(float(v), 3) for v in np.percentile(ratios, [2.5, 97.5])],
        "added_ms": round(float(np.median(values - direct)), 2),
        "added_ms_95": [round(float(v), 2) for v in np.percentile(added, [2.5, 97.5])],
    }


def together(pipeline: Pipeline, server: TritonServer, frames: Frames, count: int) -> Any:
    """Several sequences at a time: are their results those of a pipeline, and how long they take.

    The direct time before and after is of the same frames one after the other.
    """
    begin = time.perf_counter()
    pipeline.reset()
    wanted = [pipeline.push(frame)[0] for frame in frames]
    direct = time.perf_counter() - begin
    found: list[list[Any]] = [[] for _ in range(count)]
    waits: list[float] = []

    def work(number: int) -> None:
        stream = stream_frames(frames, url=server.url, in_flight=1)
        for _ in frames:
            start = time.perf_counter()
            found[number].append(next(stream))
            waits.append(1e3 * (time.perf_counter() - start))
        stream.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    pipeline.reset()
    for frame in frames:
        pipeline.push(frame)
    direct = (direct + time.perf_counter() - begin) / 2
    return {
        "sequences": count,
        "exact": all(results == wanted for results in found),
        "p50_ms": round(float(np.percentile(waits, 50)), 1),
        "p99_ms": round(float(np.percentile(waits, 99)), 1),
        "frames_per_second": round(count * len(frames) / seconds, 2),
        "over_direct": round(seconds / count / direct, 3),
    }


def memory(server: TritonServer, frame: np.ndarray, sequences: int) -> Any:
    """MiB of the model's process as sequences come and go; every second one is left behind."""
    found = {}
    caller = Caller(server.url, 0)
    for number in range(sequences + 1):
        if number % (sequences // 5) == 0:
            found[number] = _model_memory(server.pid)
        caller.sequence = 10_000 + number
        caller("frame", frame, sequence_start=True)
        caller("frame", frame, sequence_end=number % 2 == 0)
    return found


def _model_memory(pid: int) -> float:
    """PSS of the server's children, MiB."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    pids = {child for file in children for child in file.read_text().split()}
    total = 0
    for child in pids:
        for line in Path(f"/proc/{child}/smaps_rollup").read_text().splitlines():
            total += int(line.split()[1]) if line.startswith("Pss:") else 0
    return round(total / 1024, 1)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("video")
    parser.add_argument("--triton", required=True)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ["OPENVIS_TRITON"] = given.triton
    with open_video(given.video) as video:
        frames = [frame.image for frame in islice(video, given.frames)]
    words = Vocabulary.named("miniature")
    work = Path(tempfile.mkdtemp(prefix="openvis-triton-"))
    try:
        with Pipeline.open(
            given.bundle,
            vocabulary=words,
            mode="stream",
            backend="onnxruntime",
            backend_options=BackendOptions("cpu", threads=1),
            selection=Selection(0.05),
        ) as pipeline:
            settings = ModelSettings(
                words,
                threads=1,
                device="cpu",
                selection=Selection(0.05),
                sequences=16,
                idle_seconds=5,
            )
            write_repository(given.bundle, work / "repository", settings)
            (work / "server").mkdir()
            folder = triton_folder()
            if isinstance(folder, str):
                sys.exit(folder)
            with triton_server(work / "repository", folder, work / "server") as server:
                found = {
                    "latency": latency(pipeline, server, frames, given.rounds),
                    "together": [together(pipeline, server, frames, n) for n in (1, 2, 8)],
                    "memory_mib": memory(server, frames[0], given.sequences),
                    "size": list(frames[0].shape[:2]),
                    "load": os.getloadavg()[0],
                }
    finally:
        shutil.rmtree(work)
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
