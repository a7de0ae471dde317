"""What viewers cost a run: frames a second with none, with a page nobody opens, with viewers.

Inside the timed region is `run_video` in stream mode without an overlay's file: decoding, the
pipeline and the log, and beside it, in other threads, drawing, encoding and sending. Four viewers
look on at once: three read all that comes, one connects and reads nothing. The kinds take turns,
and what is told are ratios of neighbouring runs with the 95 % interval of their median (bootstrap).

    python benchmarks/viewers.py BUNDLE VIDEO -c NAME --rounds 9
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from openvis_rt import Pipeline
from openvis_rt.runtime.run import RunOptions, run_video
from openvis_rt.runtime.views.opening import ViewOptions, open_views

KINDS = ("none", "unwatched", "watched")


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("video")
    parser.add_argument("-c", "--class", dest="names", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--frames", type=int, default=60)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    busy: dict[str, list[float]] = {kind: [] for kind in KINDS}
    pictures: list[int] = []
    with Pipeline.open(given.bundle, vocabulary=given.names, mode="stream") as pipeline:
        measured(pipeline, given.video, 10, "none")  # warm-up
        for number in range(given.rounds):
            for kind in KINDS if number % 2 else reversed(KINDS):
                took, processor, got = measured(pipeline, given.video, given.frames, kind)
                seconds[kind].append(took)
                busy[kind].append(processor)
                pictures += [got] if kind == "watched" else []
    rates = {kind: given.frames / np.median(taken) for kind, taken in seconds.items()}
    ratios = {kind: ratio(seconds["none"], seconds[kind]) for kind in KINDS[1:]}
    json.dump(
        {
            "frames_per_second": {kind: round(float(rate), 2) for kind, rate in rates.items()},
            "rate_over_none": ratios,
            "processor_ms_a_frame": {
                kind: round(1000 * float(np.median(taken)) / given.frames, 2)
                for kind, taken in busy.items()
            },
            "kilobytes_to_three_viewers": [size // 1000 for size in pictures],
            "rounds": given.rounds,
            "frames": given.frames,
        },
        sys.stdout,
        indent=2,
    )
    print()


def measured(pipeline: Pipeline, video: str, frames: int, kind: str) -> tuple[float, float, int]:
    """Seconds of a run, those of its processor time, and the bytes that its viewers took."""
    serve, got = (None if kind == "none" else "0"), [0]
    said: list[str] = []
    options = RunOptions(overlay=False, max_frames=frames)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        views = stack.enter_context(open_views(ViewOptions(serve=serve), said.append, print))
        if kind == "watched":
            port = urlsplit(said[0].split()[-1]).port
            assert port is not None
            for reads in (True, True, True, False):
                peer = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                peer.sendall(b"GET /live HTTP/1.0\r\nHost: localhost\r\n\r\n")
                if reads:
                    threading.Thread(target=read_all, args=(peer, got), daemon=True).start()
        begin = time.process_time()
        report = run_video(pipeline, video, folder / "out", options, views=views)
        processor = time.process_time() - begin
    return report.seconds, processor, got[0]


def read_all(peer: socket.socket, got: list[int]) -> None:
    """Take what comes until the end."""
    try:
        while data := peer.recv(1 << 16):
            got[0] += len(data)
    except OSError:
        pass


def ratio(base: list[float], other: list[float]) -> list[float]:
    """Median of base / other in pairs, and its 95 % interval."""
    pairs = np.array(base) / np.array(other)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(pairs, (2000, len(pairs))), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return [round(float(value), 3) for value in (np.median(pairs), low, high)]


if __name__ == "__main__":
    main()
