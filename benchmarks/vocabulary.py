"""What a larger vocabulary costs: 1 to 10,000 class names on one bundle.

    python benchmarks/vocabulary.py BUNDLE [--classes 1 40 1000 10000] [--frames 10] [--mode video]
        [--backend onnxruntime] [--device cpu] [--threads N]

Each number of names has a process of its own, over the same generated video; the rows of the
classifier are random, since what they hold changes no time. Timed as in `openvis bench`: `classify`
is the graph, "scores" are the sums over classes and the choice of what is shown, "whole frame" is
everything from decoding to the encoded overlay. The peak is the process's resident memory. Names
are embedded once, before; `--text` embeds 32 phrases that were never seen and says what one takes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from variants import size

from openvis_rt import BackendOptions
from openvis_rt.bench.contenders import Contender
from openvis_rt.bench.markdown import table
from openvis_rt.bench.player import Run
from openvis_rt.bench.remote import RemotePlayer
from openvis_rt.bench.statistics import Latency, latency_of
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.backends.registry import open_backend
from openvis_rt.runtime.video.generated import write_sample_video

PHRASES = 32


def main() -> None:
    """Print the table and, as the last line, JSON."""
    options = parse()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        height, width = options.source
        write_sample_video(video, width=width, height=height, seconds=2, audio=False)
        for classes in options.classes:
            rows.append(measured(classes, video, Path(folder), options))
    header = ["classes", "classify ms", "scores ms", "whole frame ms", "peak MB"]
    cells = [
        [
            str(row["classes"]),
            *(f"{row[key].p50 * 1e3:.2f}" for key in ("classify", "scores", "frame")),
            f"{row['peak'] / 1e6:.0f}",
        ]
        for row in rows
    ]
    print("\n".join(table(header, cells)))
    plain = [{k: asdict(v) if isinstance(v, Latency) else v for k, v in r.items()} for r in rows]
    result: dict[str, Any] = {"rows": plain}
    if options.text:
        result["text_seconds"] = embedding(options)
        print(f"\none phrase of {PHRASES} through `text`: {result['text_seconds'] * 1e3:.1f} ms")
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--classes", nargs="+", type=int, default=[1, 10, 40, 100, 1000, 10_000])
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--mode", choices=["stream", "video"], default="video")
    parser.add_argument("--source", type=size, default=(720, 1280), metavar="HxW")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--text", action="store_true")
    return parser.parse_args()


def measured(
    classes: int, video: Path, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Latencies of one number of classes."""
    contender = Contender(
        options.bundle, options.backend, device=options.device, threads=options.threads
    )
    run = Run(str(video), folder, options.mode, classes=classes)
    player = RemotePlayer(contender, run)
    try:
        length = player.facts()["window_length"]
        player.turn(2)
        windows = player.turn(max(1, options.frames // length)).windows
        return {
            "classes": classes,
            "classify": latency_of([w.graphs["classify"] / w.frames for w in windows]),
            "scores": latency_of([w.parts["scores"] / w.frames for w in windows]),
            "frame": latency_of([w.seconds / w.frames for w in windows]),
            "peak": player.peak_bytes(),
        }
    finally:
        player.close()


def embedding(options: argparse.Namespace) -> float:
    """Seconds of one phrase through the graph `text`, in batches as the runtime makes them."""
    bundle = Bundle.open(options.bundle)
    choice = BackendOptions(options.device, threads=options.threads)
    backend = open_backend(options.backend, bundle, "fp32", choice)
    session = backend.open(bundle, "text", "fp32")
    tokens = np.zeros((PHRASES, 77), np.int64)
    tokens[:, :4] = [49406, 320, 2368, 49407]
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        session.write("tokens", tokens)
        session.run()
        session.fetch("embeddings")
        seconds.append(time.perf_counter() - begin)
    session.close()
    backend.close()
    return min(seconds[1:]) / PHRASES


if __name__ == "__main__":
    main()
