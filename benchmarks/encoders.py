"""What encoding costs: milliseconds a frame of each preset, beside the conversion alone.

    python benchmarks/encoders.py [--frames 60] [--presets ultrafast superfast veryfast medium]

The frames of a generated video, with ten discs drawn on each, are written as an overlay is; the
pictures are made before the clock starts. The conversion is that of RGB to 4:2:0.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from host import SOURCES
from instant import DISCS, discs

from openvis_rt.bench.markdown import table
from openvis_rt.runtime.video.drawing import Drawer
from openvis_rt.runtime.video.encoders import EncoderOptions, choose_encoder
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.runtime.video.overlay import Canvas, OverlayWriter
from openvis_rt.runtime.video.results import FrameResult, Instance
from openvis_rt.runtime.video.run_lengths import box_of, encode_masks


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--encoder", default="libx264")
    parser.add_argument(
        "--presets", nargs="+", default=["ultrafast", "superfast", "veryfast", "medium"]
    )
    options = parser.parse_args()
    rows = []
    for name, source in SOURCES.items():
        canvases = drawn(source, options.frames)
        for preset in options.presets:
            encoder = EncoderOptions(options.encoder, preset)
            rows.append([name, preset, *spent(canvases, source, encoder)])
    head = ["source", "preset", "ms a frame", "CPU ms a frame", "of it converting", "kB a frame"]
    print("\n".join(table(head, rows)))


def spent(canvases: list[Canvas], source: tuple[int, int], options: EncoderOptions) -> list[str]:
    """Time of the clock and of the processor, that of the conversion, and the file's size."""
    (height, width), frames = source, len(canvases)
    begin = time.process_time()
    for canvas in canvases:
        canvas.frame().reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", threads=1
        )
    converting = time.process_time() - begin
    encoder = choose_encoder(options, width, height, Fraction(25))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        begin, cpu = time.perf_counter(), time.process_time()
        with OverlayWriter(path, width, height, 25, encoder=encoder) as writer:
            for canvas in canvases:
                writer.write_canvas(canvas)
        seconds, used = time.perf_counter() - begin, time.process_time() - cpu
        size = path.stat().st_size
    milliseconds = [f"{1e3 * value / frames:.1f}" for value in (seconds, used, converting)]
    return [*milliseconds, f"{size / frames / 1e3:.1f}"]


def drawn(source: tuple[int, int], frames: int) -> list[Canvas]:
    """Frames of a generated video with ten discs on each."""
    height, width = source
    masks = discs(np.random.default_rng(0), (DISCS, 1, height, width))[:, 0]
    found = [
        Instance(number, 1, f"class {number}", 0.5, box_of(rle), rle)
        for number, rle in enumerate(encode_masks(masks))
    ]
    result = FrameResult(0, None, height, width, tuple(found))
    images = islice(sample_frames(width=width, height=height, seconds=frames / 25), frames)
    drawer, canvases = Drawer(), [Canvas(image) for image, _ in images]
    for canvas in canvases:
        drawer.paint(canvas.planes, result)
    return canvases


if __name__ == "__main__":
    main()
