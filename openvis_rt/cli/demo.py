"""``openvis demo``: the whole path, from a checkpoint that it makes to a tracked video."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from openvis_rt.cli.export import export, require_export
from openvis_rt.cli.run import run
from openvis_rt.cli.ui import CONSOLE, print_json, progress_bar
from openvis_rt.errors import OutputError

_MODEL = "clip-vis-r50"
_FIT_EVERY = 4  # frames: the weights are solved on these, and run on all


def demo(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Takes everything that is made."),
    ] = Path("openvis-demo"),
    seconds: Annotated[
        float, typer.Option(min=0.5, metavar="X", help="Length of the generated video.")
    ] = 4.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="What was made, as JSON on stdout.")
    ] = False,
) -> None:
    """Check the installation: make, export and track an example.

    The example is a generated video. No trained weights are shipped: the checkpoint has random
    weights but for its last layers, which are solved for this one video. Everything else is the
    path that a real checkpoint takes.
    """
    require_export()
    from openvis_rt.checkpoints.load import save_checkpoint
    from openvis_rt.runtime.video.generated import (
        SAMPLE_CLASSES,
        sample_frames,
        sample_names,
        write_sample_video,
    )
    from openvis_rt.training.demo_weights import fit_demo_model

    video, checkpoint = output / "video.mp4", output / "checkpoint.pth"
    bundle, results = output / "bundle", output / "results"
    if output.exists():
        raise OutputError(f"{output} exists already; remove it or give another --output")
    width, height, fps = 640, 360, 10
    CONSOLE.print(f"[bold]1/4[/] generating {escape(str(video))}")
    write_sample_video(video, width=width, height=height, fps=fps, seconds=seconds)
    CONSOLE.print(
        f"[bold]2/4[/] solving weights for it, as {escape(str(checkpoint))} in the official format"
    )
    with progress_bar() as bar:
        bar("solving", 0, None)
        names = sample_names(4)
        sample = list(sample_frames(width=width, height=height, fps=fps, seconds=seconds))
        frames, masks = zip(*sample[::_FIT_EVERY], strict=True)
        objects = [SAMPLE_CLASSES.index(name) for name in names]
        model = fit_demo_model(
            _MODEL, frames, masks, SAMPLE_CLASSES, objects, network_size=(180, 320)
        )
        save_checkpoint(model, checkpoint)
    CONSOLE.print(
        f"[bold]3/4[/] openvis export {_MODEL} --checkpoint {escape(str(checkpoint))} "
        f"--size 180x320 -o {escape(str(bundle))}"
    )
    with redirect_stdout(sys.stderr):  # the tables of both steps are talk here
        export(_MODEL, bundle, checkpoint=checkpoint, size="180x320")
    words = " ".join(f"-c {name}" for name in SAMPLE_CLASSES)
    command = f"openvis run {bundle} {video} {words} -o {results}"
    CONSOLE.print(f"[bold]4/4[/] {escape(command)}")
    run(bundle, str(video), results, classes=list(SAMPLE_CLASSES))
    if as_json:
        print_json({"video": video, "checkpoint": checkpoint, "bundle": bundle, "results": results})
    CONSOLE.print(
        "These weights know this one video. With a checkpoint of your own:\n"
        f"  openvis export {_MODEL} --checkpoint FILE -o bundle"
    )
