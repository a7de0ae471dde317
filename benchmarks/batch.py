"""What `openvis batch` costs over plain runs, with no worker, and with one, two or more.

    python benchmarks/batch.py BUNDLE --videos 40 --rounds 3 --workers 0 1 2 4

Every contender is a process of its own and does the same generated videos; in each round they come
in turn. "Plain" is one pipeline and `run_video` for each video. Wall time is all of the process,
with Python's and Ray's start; CPU time is that of the process and of all below it, so that other
work on the machine weighs less. The last column leaves the start out: it is the time between the
first and the last video's end, for each video.

Results must be the same, file by file, or the script ends with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from openvis_rt.bench.statistics import ratio_of_pairs
from openvis_rt.runtime.video.generated import SAMPLE_CLASSES, write_sample_video

_TICKS = os.sysconf("SC_CLK_TCK")
PLAIN = """
import sys
from pathlib import Path
from openvis_rt import Pipeline, RunOptions, Selection, run_video
bundle, clips, output = map(Path, sys.argv[1:4])
with Pipeline.open(bundle, vocabulary=sys.argv[4:], backend="onnxruntime",
                   selection=Selection(0.0), warn=lambda _: None) as pipeline:
    for number, video in enumerate(sorted(clips.iterdir()), 1):
        run_video(pipeline, str(video), output / "videos" / video.stem, RunOptions(number, False))
"""


def main() -> None:
    """Make the videos, time the contenders, and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.6, help="of a video, at 10 frames/s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        clips = Path(scratch) / "clips"
        clips.mkdir()
        for number in range(given.videos):
            path = clips / f"{number:03}.mp4"
            size = {"width": 224, "height": 128, "fps": 10, "seconds": given.seconds}
            write_sample_video(path, **size, objects=2 + number % 3, seed=number)
        rounds = [
            timed_round(given.bundle.absolute(), clips, Path(scratch), given.workers)
            for _ in range(given.rounds)
        ]
    print(table(rounds))
    if given.json:
        given.json.write_text(json.dumps(rounds, indent=1) + "\n")


def timed_round(
    bundle: Path, clips: Path, scratch: Path, workers: list[int]
) -> dict[str, dict[str, float]]:
    """Each contender once."""
    plain = [sys.executable, "-c", PLAIN, bundle, clips, scratch / "plain", *SAMPLE_CLASSES]
    names = [word for name in SAMPLE_CLASSES for word in ("-c", name)]
    batch = [sys.executable, "-m", "openvis_rt", "batch", bundle, clips, "--no-overlay", "--only"]
    batch += [*names, "--threshold", "0", "--backend", "onnxruntime"]
    found = {"plain": timed(plain, scratch / "plain", len(list(clips.iterdir())))}
    for count in workers:
        output = scratch / f"workers{count}"
        command = [*batch, "--workers", count, "-o", output]
        found[f"{count} workers"] = timed(command, output, len(list(clips.iterdir())))
        same = ["diff", "-r", scratch / "plain" / "videos", output / "videos"]
        subprocess.run(list(map(str, same)), check=True)
        shutil.rmtree(output)
    shutil.rmtree(scratch / "plain")
    print(json.dumps(found), file=sys.stderr)
    return found


def timed(command: list[object], output: Path, videos: int) -> dict[str, float]:
    """Wall and CPU seconds of a command, and seconds a video between the first and the last."""
    # Ray's workers are nicer than their driver by 15 otherwise, and would yield to other work
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    begin, used = time.perf_counter(), {}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(list(map(str, command)), env=environment, stderr=log, stdout=log)
        while process.poll() is None:
            used |= cpu_below(process.pid)
            time.sleep(0.1)
        wall = time.perf_counter() - begin
        if process.returncode:
            log.seek(0)
            sys.exit(log.read().decode())
    ends = sorted(path.stat().st_mtime for path in output.glob("videos/*/frames.jsonl"))
    each = (ends[-1] - ends[0]) / (videos - 1)
    return {"wall": wall, "cpu": sum(used.values()), "each": each}


def cpu_below(root: int) -> dict[int, float]:
    """CPU seconds of a process and all below it, by process."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
        seconds[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    found, level = {}, {root}
    while level:
        found |= {pid: seconds[pid] for pid in level if pid in seconds}
        level = {pid for pid, parent in parents.items() if parent in level}
    return found


def table(rounds: list[dict[str, dict[str, float]]]) -> str:
    """Medians, and the ratios to plain runs with their intervals."""
    lines = [
        "| contender | wall s | CPU s | s a video, without the start | wall over plain | "
        "CPU over plain | a video over plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in rounds[0]:
        middle = {k: float(np.median([r[name][k] for r in rounds])) for k in rounds[0][name]}
        ratios = [
            str(ratio_of_pairs([r[name][k] for r in rounds], [r["plain"][k] for r in rounds]))
            for k in ("wall", "cpu", "each")
        ]
        numbers = f"{middle['wall']:.1f} | {middle['cpu']:.1f} | {middle['each']:.3f}"
        lines.append(f"| {name} | {numbers} | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
