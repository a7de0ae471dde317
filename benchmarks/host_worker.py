"""Runs cells of ``benchmarks/host.py`` with the code of one checkout, which PYTHONPATH names.

A line of JSON on stdin is a cell, a line on stdout says what it took. Works with earlier states of
the project as well, so that a change is compared with the state before it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from instant import Instant, bundle_at

from openvis_rt import Pipeline, Selection
from openvis_rt.bench.player import vocabulary_of
from openvis_rt.runtime.run import RunOptions, run_video
from openvis_rt.runtime.video import overlay

_STREAM_OF = overlay.video_stream_of


class Sink:
    """An encoder that takes the first frame, so that the file is a video, and drops the others."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._count = stream, 0
        self.codec_context = stream.codec_context

    def encode(self, frame: Any = None) -> list[Any]:
        """Packets of the first frame and of the end."""
        self._count += frame is not None
        return list(self._stream.encode(frame)) if self._count == 1 or frame is None else []


def run_cell(cell: dict[str, Any], bundle: Path, video: str, frames: int, out: Path) -> Any:
    """Seconds of the clock and of the processor that a whole run took; opening is not timed."""
    sunk = cell["overlay"] == "sink"
    overlay.video_stream_of = (  # type: ignore[assignment]
        (lambda *args, **kwargs: Sink(_STREAM_OF(*args, **kwargs))) if sunk else _STREAM_OF
    )
    source = tuple(cell["source"]) if cell["resize"] == "graph" else None
    model = bundle_at(bundle, source)
    names, classifier = vocabulary_of(model, 40)
    with Pipeline.open(
        model,
        vocabulary=names,
        classifier=classifier,
        backend=Instant(cell["visible"], cell["delay"] / 1e3),
        mode=cell["mode"],
        selection=Selection(threshold=0.0, limit=10),
        warn=lambda _: None,
    ) as pipeline:
        options = RunOptions(overlay=cell["overlay"] != "none", max_frames=frames, overwrite=True)
        begin, cpu = time.perf_counter(), time.process_time()
        report = run_video(pipeline, video, out, options)
        seconds, used = time.perf_counter() - begin, time.process_time() - cpu
    assert report.frames == frames
    shutil.rmtree(out)
    return {"seconds": seconds, "cpu_seconds": used}


def main() -> None:
    """Answer until stdin ends. Arguments: bundle, folder for output."""
    bundle, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for line in sys.stdin:
        asked = json.loads(line)
        found = run_cell(asked["cell"], bundle, asked["video"], asked["frames"], folder / "out")
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
