"""What to tell a user whose video, bundle and names do not fit each other."""

from __future__ import annotations

from collections.abc import Callable

from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.video.reading import VideoSource

__all__ = ["Warn", "explain_letterbox", "nothing_found"]

Warn = Callable[[str], None]


def nothing_found(pipeline: Pipeline, best: tuple[float, str]) -> str:
    """What to try where no frame showed an object; ``best`` is the best score and its name."""
    score, name = best
    threshold = pipeline.selection.threshold
    if score <= 0:
        return (
            "no object was found at all; check that the frames show what the names say, and try "
            "other names"
        )
    return (
        f"no object reached the threshold of {threshold:g}; the best score was {score:.3f} "
        f"({name}). Try --threshold {max(0.0, 0.8 * score):.2g}, or other names"
    )


def explain_letterbox(pipeline: Pipeline, video: VideoSource, tell: Warn) -> None:
    """Tell where a video does not fit the size that its bundle was exported for."""
    letterbox = pipeline.letterbox(video.height, video.width)
    rule = pipeline.bundle.manifest.preprocess
    network = rule.source_size or rule.network_size
    resized = rule.source_size is not None and rule.source_size != letterbox.source
    if resized and "embed" in pipeline.bundle.graphs and pipeline.given_embeddings is None:
        tell(
            "CLIP sees this video's frames as they are fitted into the bundle's "
            f"{network[0]}x{network[1]}, not as they are; for the official image embeddings, "
            f"export with --source-size {video.height}x{video.width}, or without it"
        )
    if not letterbox.fills:
        option, exact = "--size", letterbox.official
        if rule.source_size is not None:  # the graph resizes, by the rule
            option, exact = "--source-size", letterbox.source
        mend = f"; for the official numbers on this video, export with {option} "
        mend = f"{mend}{exact[0]}x{exact[1]}" if min(exact) else ""  # of one pixel's height
        tell(
            f"the video's frames fill only {letterbox.picture[0]}x{letterbox.picture[1]} (height x "
            f"width) of the bundle's {network[0]}x{network[1]}{mend}"
        )
