"""``openvis demo``: the whole path on a generated video with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openvis_rt.cli.export import export
from openvis_rt.cli.run import run
from openvis_rt.cli.ui import TALK
from openvis_rt.errors import OutputError


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for everything that the demo makes.")
    ] = Path("openvis-demo"),
    seconds: Annotated[float, typer.Option(min=0.2, help="Length of the generated video.")] = 2.0,
    model: Annotated[str, typer.Option(help="A model of `openvis models`.")] = "clip-vis-r50",
) -> None:
    """Generate a video, export a model with random weights, and run it.

    The weights are random, so masks and names mean nothing; everything else is the real path.
    """
    from openvis_rt.runtime.sample_video import SAMPLE_CLASSES, write_sample_video

    bundle, video, results = output / "bundle", output / "video.mp4", output / "results"
    if results.exists():
        raise OutputError(f"{results} exists already; remove it or give another --output")
    TALK.print("[bold]1/3[/] generating a video")
    write_sample_video(video, width=640, height=360, fps=10, seconds=seconds)
    if not bundle.exists():
        TALK.print(f"[bold]2/3[/] openvis export {model} --random-weights 0 --size 192x320")
        export(model, bundle, random_weights=0, size="192x320")
    TALK.print(f"[bold]3/3[/] openvis run {bundle} {video}")
    run(bundle, str(video), results, classes=list(SAMPLE_CLASSES), threshold=0.0, max_instances=5)
    TALK.print(
        "The weights are random: masks and names carry no meaning. With a checkpoint of your own:\n"
        f"  openvis export {model} --checkpoint FILE -o bundle",
        soft_wrap=True,
    )
