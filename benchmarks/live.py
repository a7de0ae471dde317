"""Age of a live source's results, and the share of its frames that are dropped, by pipeline speed.

    python benchmarks/live.py BUNDLE [--rates 0.5 5 50] [--frames 2000] [--scale 10] [--before PATH]

A server in a process of its own sends MPEG-TS over TCP at 30 frames a second. `openvis run` reads
it with a backend that computes nothing and takes a set time a frame, through the same door as any
other backend. ``--scale`` lets both clocks run faster: at 10 the source gives 300 frames a second
and a pipeline of 5 frames a second takes 20 ms; ages are printed in the source's own seconds, so
what does not scale (decoding, a scheduler's waits) counts ten times.

The age of a result is the moment at which it was given, less the moment at which its frame was due
at the server: what waits in sockets counts, too. Where the source is over, later results are still
counted, but the run ends after twice the source's time: a pipeline that keeps every frame would go
on for an hour.

``--before`` is a checkout of another version, which runs the same.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FPS = 30
WIDTH, HEIGHT = 160, 96


def pieces_of(frames: int) -> list[bytes]:
    """MPEG-TS of generated frames, as the bytes that each one adds."""
    import io

    import av

    from openvis_rt.runtime.video.generated import sample_frames

    pictures = [p for p, _ in sample_frames(width=WIDTH, height=HEIGHT, seconds=1)]
    buffer, pieces, begin = io.BytesIO(), [], 0
    with av.open(buffer, "w", format="mpegts", options={"flush_packets": "1"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"g": "30", "tune": "zerolatency", "preset": "ultrafast"}
        for index in range(frames):
            picture = np.ascontiguousarray(pictures[index % len(pictures)])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            buffer.seek(begin)
            pieces.append(buffer.read())
            begin += len(pieces[-1])
        container.mux(stream.encode())
    return pieces


def serve(frames: int, scale: float, port: Any, begun: Any) -> None:
    """Send the stream once, at its pace; ``begun`` takes the moment of the first frame."""
    pieces = pieces_of(frames)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.listen(1)
        port.put(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            begun.value = begin = time.monotonic()
            for index, piece in enumerate(pieces):
                time.sleep(max(0.0, begin + index / (FPS * scale) - time.monotonic()))
                try:
                    connection.sendall(piece)
                except OSError:
                    return


def slow_backend(seconds: float) -> Any:
    """A backend that gives zeros and takes ``seconds`` for each frame."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from watched_backend import Zeros, ZeroSession

    class Slow(ZeroSession):
        def run(self, slot: int = 0) -> None:
            if self.spec.name == "propose":
                time.sleep(seconds)

    class SlowBackend(Zeros):
        def open(self, bundle: Any, graph: str, precision: str, **_: Any) -> Any:
            return Slow(bundle.graph(graph, precision).spec)

    return SlowBackend()


def measure(bundle: Path, rate: float, frames: int, scale: float) -> dict[str, Any]:
    """One run; ages in the source's seconds."""
    from openvis_rt import Pipeline
    from openvis_rt.runtime import run as module
    from openvis_rt.runtime.run import run_video

    names = ["ring", "star"]
    Pipeline.open(bundle, vocabulary=names, backend="onnxruntime").close()  # embeds the names
    context = multiprocessing.get_context("spawn")
    port, begun = context.Queue(), context.Value("d", 0.0)
    server = context.Process(target=serve, args=(frames, scale, port, begun), daemon=True)
    server.start()
    address, given = f"tcp://127.0.0.1:{port.get()}", []
    limit = 2 * frames / (FPS * scale)
    named: dict[str, Any] = {"overlay": False}
    if "live" in inspect.signature(module.RunOptions).parameters:
        from openvis_rt import LiveOptions

        named["live"] = LiveOptions(reconnect=0)

    def note(*_: object) -> None:
        given.append(time.monotonic())
        if given[-1] - begun.value > limit:
            raise KeyboardInterrupt  # what is read below is what there is

    with (
        tempfile.TemporaryDirectory() as work,
        Pipeline.open(
            bundle, vocabulary=names, mode="stream", backend=slow_backend(1 / (rate * scale))
        ) as pipeline,
    ):
        indices = [0]
        stream = pipeline.stream

        def watched(source: Any, **how: Any) -> Any:
            for result in stream(source, **how):
                indices.append(result.index)
                yield result

        pipeline.stream = watched  # type: ignore[method-assign]
        with contextlib.suppress(KeyboardInterrupt):
            run_video(pipeline, address, Path(work) / "out", module.RunOptions(**named), note)
    server.kill()
    indices = indices[1:][: len(given)]
    ages = [
        (moment - begun.value) * scale - index / FPS
        for index, moment in zip(indices, given, strict=True)
    ]
    return {
        "rate": rate,
        "results": len(ages),
        "last_index": indices[-1],
        "dropped_share": 1 - len(ages) / (indices[-1] + 1),
        "age_p50": float(np.quantile(ages, 0.5)),
        "age_p99": float(np.quantile(ages, 0.99)),
    }


def elsewhere(checkout: Path, arguments: list[str]) -> dict[str, Any]:
    """The same measurement by another checkout's package."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a line for each rate and version and, as the last line, JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 5, 50], metavar="FPS")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--scale", type=float, default=10.0)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--one", action="store_true", help="of one rate, without a table")
    options = parser.parse_args()
    if options.one:
        found = measure(options.bundle, options.rates[0], options.frames, options.scale)
        print(json.dumps(found))
        return
    here, everything = Path(__file__).parents[1], []
    versions = {"before": options.before, "after": here} if options.before else {"after": here}
    for rate in options.rates:
        for version, checkout in versions.items():
            arguments = [str(options.bundle), "--one", "--rates", str(rate)]
            arguments += ["--frames", str(options.frames), "--scale", str(options.scale)]
            found = elsewhere(checkout, arguments)
            everything.append({"version": version, **found})
            print(
                f"{version:6s} {rate:5g} frames/s: {found['results']:5d} results, up to frame "
                f"{found['last_index']:4d}; {found['dropped_share']:.1%} dropped; age p50 "
                f"{found['age_p50']:.2f} s, p99 {found['age_p99']:.2f} s",
                flush=True,
            )
    print(json.dumps(everything))


if __name__ == "__main__":
    main()
