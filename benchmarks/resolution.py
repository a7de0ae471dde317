"""What a larger frame costs, and a longer window: one model exported at several sizes.

    python benchmarks/resolution.py MODEL [--sizes 180x320 240x427 360x640 480x853] [--frames 10]
        [--backend onnxruntime] [--device cpu] [--threads N] [--work FOLDER]

Each size is exported with seeded weights, in FP32, once, and measured in a process of its own over
the same generated video, whose frames the host resizes. Timed as in `openvis bench`. Of models that
take windows every length from 1 to the exported one is measured at the first size. Operations are
those of `propose`, `embed` and `classify`, for one frame.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from variants import size

from openvis_rt.bench.contenders import Contender
from openvis_rt.bench.markdown import table
from openvis_rt.bench.onnx_operations import flops_of_bundle
from openvis_rt.bench.parts import host_share, network_seconds
from openvis_rt.bench.player import Run
from openvis_rt.bench.remote import RemotePlayer
from openvis_rt.bench.statistics import Latency, latency_of
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.video.generated import write_sample_video
from openvis_rt.systems import VARIANTS


def main() -> None:
    """Print the table and, as the last line, JSON."""
    options = parse()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        height, width = options.source
        write_sample_video(video, width=width, height=height, seconds=2, audio=False)
        for index, wanted in enumerate(options.sizes):
            bundle = exported(wanted, options)
            longest = bundle.manifest.window_length
            for length in range(1, longest + 1) if index == 0 else [longest]:
                rows.append(measured(bundle, length, video, Path(folder), options))
    header = ["size", "frames of a window", "s a frame", "in the graphs", "host", "GFLOP a frame"]
    cells = [
        [
            "x".join(map(str, row["size"])),
            str(row["length"]),
            *(f"{row[key].p50:.3f}" for key in ("frame", "network")),
            f"{row['host']:.1%}",
            f"{row['flops'] / 1e9:.1f}",
            f"{row['peak'] / 1e6:.0f}",
        ]
        for row in rows
    ]
    print("\n".join(table([*header, "peak MB"], cells)))
    plain = [{k: asdict(v) if isinstance(v, Latency) else v for k, v in r.items()} for r in rows]
    print(json.dumps(plain))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=list(VARIANTS))
    sizes = [(180, 320), (240, 427), (360, 640), (480, 853)]
    parser.add_argument("--sizes", nargs="+", type=size, default=sizes, metavar="HxW")
    parser.add_argument("--source", type=size, default=(720, 1280), metavar="HxW")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path, default=Path("resolution-benchmark"))
    return parser.parse_args()


def exported(wanted: tuple[int, int], options: argparse.Namespace) -> Bundle:
    """The bundle of a size, of an earlier run if there is one."""
    text = "x".join(map(str, wanted))
    path = options.work / f"{options.model}-{text}"
    if not path.exists():
        command = [sys.executable, "-m", "openvis_rt", "export", options.model, "--size", text]
        command += ["--random-weights", "0", "--precision", "fp32", "--no-verify", "-o", str(path)]
        subprocess.run(command, check=True)
    return Bundle.open(path)


def measured(
    bundle: Bundle, length: int, video: Path, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """One size and length of a window."""
    contender = Contender(
        bundle.path, options.backend, device=options.device, threads=options.threads
    )
    player = RemotePlayer(contender, Run(str(video), folder, window_length=length))
    try:
        player.turn(2)
        windows = player.turn(max(2, options.frames // length)).windows
        peak = player.peak_bytes()
    finally:
        player.close()
    parts = {part: sum(w.parts.get(part, 0.0) for w in windows) for part in windows[0].parts}
    flops = flops_of_bundle(bundle, "fp32", 40, length)
    return {
        "size": bundle.manifest.preprocess.network_size,
        "length": length,
        "frame": latency_of([w.seconds / w.frames for w in windows]),
        "network": latency_of([network_seconds(w.parts) / w.frames for w in windows]),
        "host": host_share(parts),
        "flops": sum(flops.values()) / length,
        "peak": peak,
    }


if __name__ == "__main__":
    main()
