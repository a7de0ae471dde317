"""Time and memory of the evaluator on a data set of LV-VIS's size, which this script generates.

    python benchmarks/evaluator.py [--videos 1000] [--classes 1196] [--predictions 50]
        [--frames 25] [--size 720x1280] [--class-agnostic] [--folder FOLDER] [--json FILE]

Masks are ellipses with ragged edges, so that their run lengths are as long as those of a network's
masks. A video has 5 annotated tracks on average (LV-VIS: 5.4); of its predictions one in five is an
annotated track moved by some pixels, most often under its own class, and the others are anything.

Inside the timed region: reading both files from the disk, checking every mask, all IoUs, matching,
and the report. The evaluation runs in a process of its own, and the memory is that process's peak.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from variants import size

from openvis_rt.evaluation.metrics import evaluate
from openvis_rt.runtime.video.run_lengths import encode_masks

SHAPES = 400  # different masks, from which all tracks are made


def main() -> None:
    """Generate, evaluate, print."""
    options = parse()
    if options.measure:
        print(json.dumps(measure(options.measure, class_agnostic=options.class_agnostic)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "results.json").exists():
            say("generating")
            generate(folder, options)
        say("evaluating")
        command = [sys.executable, __file__, "--measure", str(folder)]
        command += ["--class-agnostic"] if options.class_agnostic else []
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(ended.stdout)
    asked = {k: str(v) for k, v in vars(options).items() if k not in {"json", "measure", "folder"}}
    result = {"machine": platform.machine(), "options": asked, **found}
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=1196)
    parser.add_argument("--predictions", type=int, default=50, help="of each video")
    parser.add_argument("--frames", type=int, default=25, help="of each video")
    parser.add_argument("--size", type=size, default=(720, 1280), metavar="HxW")
    parser.add_argument("--class-agnostic", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the data here, or use what is here")
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def generate(folder: Path, options: argparse.Namespace) -> None:
    """Write ``annotations.json`` and ``results.json``."""
    rng = np.random.default_rng(0)
    shapes = [ellipse(rng, *options.size) for _ in range(SHAPES)]
    annotations = {
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, options.classes + 1)],
        "videos": [],
        "annotations": [],
    }
    with (folder / "results.json").open("w", encoding="utf-8") as file:
        for video in range(1, options.videos + 1):
            annotations["videos"].append(video_entry(video, options))
            truths = [track(rng, options) for _ in range(rng.integers(1, 10))]
            for category, places in truths:
                masks = [shapes[place][0] for place in places]
                annotations["annotations"].append(
                    {
                        "id": len(annotations["annotations"]) + 1,
                        "video_id": video,
                        "category_id": category,
                        "iscrowd": 0,
                        "segmentations": masks,
                        "areas": [shapes[place][2] for place in places],
                    }
                )
            for number in range(options.predictions):
                category, places = (
                    truths[rng.integers(len(truths))] if number % 5 == 0 else track(rng, options)
                )
                if number % 5 == 0 and rng.random() < 0.3:
                    category = int(rng.integers(1, options.classes + 1))
                entry = {
                    "video_id": video,
                    "score": float(rng.random()),
                    "category_id": category,
                    "segmentations": [shapes[place][1] for place in places],
                }
                first = video == 1 and number == 0
                file.write(("[\n" if first else ",\n") + json.dumps(entry))
        file.write("\n]\n")
    (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")


def ellipse(
    rng: np.random.Generator, height: int, width: int
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """A mask, the same moved by some pixels, and the area of the first."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    center = rng.uniform(0.2, 0.8, 2) * (height, width)
    axes = rng.uniform(0.05, 0.3, 2) * height
    distance = np.hypot((rows - center[0]) / axes[0], (columns - center[1]) / axes[1])
    mask = (distance + rng.normal(0, 0.004, distance.shape) < 1).astype(np.uint8)
    moved = np.roll(mask, tuple(rng.integers(-40, 41, 2)), axis=(0, 1))
    truth, found = encode_masks(np.stack([mask, moved]))
    return dict(truth), dict(found), int(mask.sum())


def track(rng: np.random.Generator, options: argparse.Namespace) -> tuple[int, list[int]]:
    """A class, and the shape that each frame shows."""
    places = rng.integers(0, SHAPES, options.frames)
    return int(rng.integers(1, options.classes + 1)), places.tolist()


def video_entry(number: int, options: argparse.Namespace) -> dict[str, Any]:
    """A video as YTVIS lists it."""
    names = [f"{number:05}/{frame:05}.jpg" for frame in range(options.frames)]
    height, width = options.size
    return {"id": number, "height": height, "width": width, "file_names": names}


def measure(folder: Path, *, class_agnostic: bool) -> dict[str, Any]:
    """Seconds, peak memory, and the figures."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    report = evaluate(
        folder / "annotations.json", folder / "results.json", class_agnostic=class_agnostic
    )
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime - before.ru_utime, 1),
        "peak_memory_MB": round(after.ru_maxrss / 1024),
        "annotations_MB": round((folder / "annotations.json").stat().st_size / 1e6),
        "results_MB": round((folder / "results.json").stat().st_size / 1e6),
        "videos": report.videos,
        "tracks": report.tracks,
        "predictions": report.predictions,
        **report.overall,
    }


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
