"""What a hand-over costs `openvis batch`: videos that take no time, by one, two and four actors.

    python benchmarks/handover.py [--videos 1000] [--workers 1 2 4] [--sources 100000]

The videos are finished already, so that a worker reads a small file's hash and a record, and gives
the record back: what is left is Ray's and the records' own time. The seconds are from the first
record to the last; a hand-over is their share of each video. With two actors on two cores the
driver and the actors share the cores.

Also timed, without Ray: ids and folders for that many sources at once, and the merging of records.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from openvis_rt.runtime.run import RunOptions
from openvis_rt.serving.index import BatchFolder, Record, Video
from openvis_rt.serving.ray_pool import Resources, fit_pool, ray_cluster, records_by_ray
from openvis_rt.serving.sources import fingerprint
from openvis_rt.serving.tables import write_tables
from openvis_rt.serving.worker import BatchWork
from openvis_rt.vocabulary import Vocabulary


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sources", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, videos = finished_folder(Path(scratch), given.videos)
        found = {"merged_videos_a_second": given.videos / merge_seconds(folder, videos)}
        with ray_cluster(None) as resources:
            for _ in range(given.rounds):
                for count in given.workers:
                    seconds = handover_seconds(folder, videos, count, resources)
                    found.setdefault(f"handover_ms_{count}", []).append(round(1e3 * seconds, 2))
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        folder = BatchFolder(Path(scratch))
        with folder.held():
            folder.add(f"/data/{n % 1000}/{n // 10}/clip.mp4" for n in range(given.sources))
        found["ids_a_second"] = given.sources / (time.perf_counter() - begin)
    print(json.dumps(found, indent=1))


def finished_folder(scratch: Path, count: int) -> tuple[BatchFolder, list[Video]]:
    """A batch's folder in which every video is finished, with an object in each of ten frames."""
    sources = [scratch / "clips" / f"{number}.mp4" for number in range(count)]
    sources[0].parent.mkdir()
    for number, source in enumerate(sources):
        source.write_text(str(number))
    folder = BatchFolder(scratch / "out")
    with folder.held():
        videos = folder.add(map(str, sources))
    segmentation = {"size": [720, 1280], "counts": "Wj8?`32M5K4M2O1N2M3N2O1O1OnNWMm0j2POYMP1k2" * 5}
    entry = {"video_id": 1, "score": 0.5, "category_id": 1, "segmentations": [segmentation] * 10}
    shown = {"id": 1, "name": "cat", "category_id": 1, "score": 0.5, "box": [1, 2, 3, 4]}
    frame = {"size": [720, 1280], "instances": [{**shown, "segmentation": segmentation}]}
    lines = [json.dumps({"frame": n, "time": n / 25, **frame}) for n in range(10)]
    for video in videos:
        output = folder.output(video)
        output.mkdir()
        (output / "results.json").write_text(json.dumps([entry]))
        (output / "frames.jsonl").write_text("\n".join(lines) + "\n")
        record = Record(video, "finished", fingerprint(video.source), "hash", attempts=1)
        folder.write(replace(record, report={"frames": 10, "tracks": 1, "seconds": 1.0}))
    return folder, videos


def merge_seconds(folder: BatchFolder, videos: list[Video]) -> float:
    """Reading every record, and writing the merged files."""
    begin = time.perf_counter()
    records = [record for video in videos if (record := folder.record(video)) is not None]
    write_tables(folder, ["cat"], records, entries=True)
    return time.perf_counter() - begin


def handover_seconds(
    folder: BatchFolder, videos: list[Video], workers: int, resources: Resources
) -> float:
    """Seconds of a hand-over, without the actors' start."""
    work = BatchWork(Path("bundle"), Vocabulary(("cat",)), run=RunOptions(overlay=False))
    pool = fit_pool(resources, len(videos), workers=workers, gpus=0, memory=0)
    first, last, count = 0.0, 0.0, 0
    for record in records_by_ray(work, folder, videos, "hash", "batch", pool):
        last, count = time.perf_counter(), count + 1
        first = first or last
        if record.status != "finished":
            raise SystemExit(f"{record.video.source} was not taken as finished: {record.error}")
    return (last - first) / (count - 1)


if __name__ == "__main__":
    main()
