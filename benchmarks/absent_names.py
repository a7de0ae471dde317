"""How often an object gets a name that is not its own, where a few names are looked for.

    python benchmarks/absent_names.py FOLDER [MODEL ...] [--videos 40] [--threads 1]

In each video of the generated world two names are looked for: one of an object that is there, and
one of nothing that is there. `--only` is how they compete with each other alone, `among` with the
list of names that takes part by default. Told are the shares of videos in which

    found          a track of the name that is there has its object (mean IoU of at least 0.5)
    false          some track has the name of what is not there
    mistaken       some track with the name that is there is on something else

among tracks with a score of at least the threshold of `openvis run`. FOLDER keeps the videos.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from miniature_runs import DataSet, Progress, data_set, exported, shipped

from openvis_rt.bench.markdown import table
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.ui import progress_bar
from openvis_rt.evaluation.annotations import Track, Video
from openvis_rt.evaluation.sources import annotated_frames
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.video.results import VideoInstance
from openvis_rt.runtime.video.run_lengths import RLE, decode_mask
from openvis_rt.systems import VARIANTS
from openvis_rt.vocabulary import Vocabulary

MODELS = ("clip-vis-mini", "instformer-mini")
SHARES = ("found", "false", "mistaken")


def main() -> None:
    """Print the table."""
    options = parse()
    rows = []
    with progress_bar() as bar:
        data = data_set(options.folder, "validation", 0, options.videos, bar)
        for name in options.models:
            loaded, digest = shipped(name)
            bundle = exported(loaded.model, options.folder / f"{name}-{digest}", loaded.facts)
            for kind in ("only", "among"):
                counts = counted(bundle, data, kind, options.threads, bar)
                shares = [f"{100 * counts[share] / options.videos:.0f} %" for share in SHARES]
                rows.append([name, kind, *shares])
    print("\n".join(table(["model", "names", *SHARES], rows)))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if unknown := sorted(set(options.models) - set(MODELS)):
        parser.error(f"{unknown[0]} is none of {', '.join(MODELS)}, whose names share a score")
    return options


def counted(
    bundle: Bundle, data: DataSet, kind: str, threads: int, progress: Progress
) -> Counter[str]:
    """In how many videos each of SHARES was seen."""
    found: Counter[str] = Counter()
    rng = random.Random(0)
    others = Vocabulary.named(VARIANTS[bundle.manifest.variant].other_names).names
    names = {c.id: c.name for c in data.annotations.categories}
    backend = OnnxRuntime("cpu", threads=threads)
    with Pipeline.open(bundle, vocabulary=others, backend=backend) as pipeline:
        for number, video in enumerate(data.annotations.videos):
            progress(f"{bundle.manifest.variant}, {kind}", number, len(data.annotations.videos))
            tracks = [t for t in data.annotations.tracks if t.video_id == video.id]
            there = sorted({names[t.category_id] for t in tracks})
            wanted = rng.choice(there), rng.choice(sorted(set(names.values()) - set(there)))
            words = Vocabulary(wanted)
            pipeline.set_vocabulary(words if kind == "only" else words.among(others))
            own = [t for t in tracks if names[t.category_id] == wanted[0]]
            found.update(seen_in(pipeline, video, data, own, wanted[1]))
    return found


def seen_in(
    pipeline: Pipeline, video: Video, data: DataSet, own: Sequence[Track], absent: str
) -> set[str]:
    """Which of SHARES a video shows."""
    with annotated_frames(video, data.videos) as frames:
        for _ in pipeline.stream(frames):
            pass
    shown = [i for i in pipeline.finish().instances if i.score >= Selection().threshold]
    present = [i for i in shown if i.name != absent]
    fits = [max((overlap(i, track) for track in own), default=0.0) >= 0.5 for i in present]
    seen = {"false"} if len(present) < len(shown) else set[str]()
    return seen | ({"found"} if any(fits) else set()) | ({"mistaken"} if not all(fits) else set())


def overlap(instance: VideoInstance, track: Track) -> float:
    """IoU of two tracks over the whole video."""
    both = either = 0
    for one, other in zip(instance.segmentations, track.segmentations, strict=True):
        a, b = pixels(one), pixels(other)
        both += int((a & b).sum())
        either += int((a | b).sum())
    return both / max(1, either)


def pixels(rle: RLE | None) -> np.ndarray:
    """A mask, or a single pixel of nothing."""
    return np.zeros((1, 1), np.uint8) if rle is None else decode_mask(rle)


if __name__ == "__main__":
    sys.exit(main())
