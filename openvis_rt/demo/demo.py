"""The trained miniatures from their weights to a tracked video, beside each other.

OUTPUT/video/                00000.png, ...: a video of the generated world
OUTPUT/annotations.json      what it shows, for `openvis eval`
OUTPUT/bundles/MODEL/        each system, exported
OUTPUT/results/MODEL/        frames.jsonl, results.json, categories.json of `openvis run`
OUTPUT/overlay.mp4           the systems side by side
OUTPUT/contact-sheet.png     some frames of the truth and of each system
OUTPUT/demo.json             the report
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.checkpoints.load import load_model
from openvis_rt.demo.engines import build_if_possible
from openvis_rt.demo.pictures import Panel, write_contact_sheet, write_side_by_side
from openvis_rt.demo.scene import ANNOTATIONS, VIDEO, Scene, choose_scene, write_scene
from openvis_rt.demo.tracks import FoundTrack, colors_by_object, tracks_of
from openvis_rt.errors import InputError
from openvis_rt.evaluation.annotation_files import read_annotations
from openvis_rt.evaluation.metrics import evaluate
from openvis_rt.evaluation.report import percent
from openvis_rt.export.bundle import export_bundle
from openvis_rt.files import output_directory
from openvis_rt.geometry import resized_size
from openvis_rt.records import json_from_record
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.run import RunOptions, run_video
from openvis_rt.runtime.video.drawing import color_of
from openvis_rt.runtime.video.results import FrameResult, read_frame_log
from openvis_rt.systems import system_of, variant_named
from openvis_rt.verify.torch_recording import add_reference

__all__ = ["MODELS", "DemoReport", "SystemReport", "run_demo"]

MODELS = ("clip-vis-mini", "instformer-mini", "ovformer-mini")
_BUNDLES, _RESULTS, _OVERLAY = "bundles", "results", "overlay.mp4"
_SHEET, _REPORT = "contact-sheet.png", "demo.json"
_OURS = {VIDEO, ANNOTATIONS, _BUNDLES, _RESULTS, _OVERLAY, _SHEET, _REPORT}
_FPS = 8  # of the overlay
_FOUND = 0.5  # the IoU over the video at which an object counts as found

Progress = Callable[[str, int, int | None], None]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class SystemReport:
    """What one system did.

    Attributes:
        model: its name in `openvis models`.
        title: its name in papers.
        ap, ap50: of the phrases that the video shows, 0..1, as `openvis eval` has them; None where
            it shows none.
        objects: how many the video shows that have a phrase.
        found: how many of these a track covers with an IoU of 0.5 or more over the video.
        named: how many of those have the right phrase.
        others: tracks that are none of the found objects.
        frames_per_second: of the run, reading included.
        backend: where it ran.
        tracks: what some frame shows.
    """

    model: str
    title: str
    ap: float | None
    ap50: float | None
    objects: int
    found: int
    named: int
    others: int
    frames_per_second: float
    backend: str
    tracks: tuple[FoundTrack, ...]


@dataclass(frozen=True)
class DemoReport:
    """What a demo did.

    Attributes:
        output: the folder.
        video: its name in the world, such as ``test-00007``.
        frames: how many it has.
        phrases: that were looked for.
        objects: that it shows, by the world's phrases.
        engines: which were built, or why none was.
        systems: one for each model.
        remarks: on the phrases.
    """

    output: Path
    video: str
    frames: int
    phrases: tuple[str, ...]
    objects: tuple[str, ...]
    engines: str
    systems: tuple[SystemReport, ...]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON types; paths are strings."""
        files = {"overlay": _OVERLAY, "contact_sheet": _SHEET, "annotations": ANNOTATIONS}
        return {
            "output": str(self.output),
            "files": {kind: str(self.output / name) for kind, name in files.items()},
            "video": self.video,
            "frames": self.frames,
            "objects": list(self.objects),
            "phrases": list(self.phrases),
            "remarks": list(self.remarks),
            "engines": self.engines,
            "systems": [json_from_record(system) for system in self.systems],
        }


def run_demo(
    output: Path,
    phrases: Sequence[str] = (),
    *,
    seed: int = 0,
    models: Sequence[str] = MODELS,
    size: tuple[int, int] = (128, 224),
    frames: int = 24,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
    warn: Warn = lambda _: None,
) -> DemoReport:
    """Export the miniatures, run them over a video that they never saw, and compare them.

    Args:
        output: takes the files of this module's docstring; it gets its name when all are whole.
        phrases: to look for; see :func:`~openvis_rt.demo.scene.choose_scene`.
        seed: of the choice of video and phrases.
        models: variants with shipped weights.
        size: (H, W) of the video's frames in pixels.
        frames: of the video.
        overwrite: replace the output of an earlier demo; no other folder is replaced.
        progress: told what is done, steps done, and steps in all.
        warn: told what does not stop the demo, when it arises.

    Raises:
        OutputError: the output exists, or cannot be written.
        InputError: phrases, size or a model cannot be used.
        ParityError: a graph's outputs are not PyTorch's.
    """
    if not models:
        raise InputError(f"no model to show; give some of {', '.join(MODELS)}")
    with output_directory(output, overwrite=overwrite, ours=_is_demo) as folder:
        scene = choose_scene(phrases, seed=seed, size=size, frames=frames, progress=progress)
        for remark in scene.remarks:
            warn(remark)
        write_scene(folder, scene)
        systems, panels, engines = [], [_truth_panel(scene)], ""
        for number, model in enumerate(models, 1):
            tell = _prefixed(progress, f"{number}/{len(models)} {model}")
            bundle = _exported(folder, model, size, tell)
            engines = build_if_possible(bundle, tell)
            report, results = _ran(folder, scene, bundle, tell, warn)
            systems.append(report)
            panels.append(_panel(report, results, len(scene.objects)))
        progress("drawing", 0, None)
        write_side_by_side(folder / _OVERLAY, scene.video.images, panels[1:], _FPS)
        write_contact_sheet(
            folder / _SHEET,
            scene.video.images,
            panels,
            heading="looked for: " + ", ".join(scene.vocabulary.names),
        )
        done = DemoReport(
            output=output,
            video=scene.video.name,
            frames=frames,
            phrases=scene.vocabulary.names,
            objects=scene.objects,
            engines=engines,
            systems=tuple(systems),
            remarks=scene.remarks,
        )
        text = json.dumps(done.to_json(), indent=1) + "\n"
        (folder / _REPORT).write_text(text, encoding="utf-8")
    return done


def _is_demo(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} == _OURS


def _exported(folder: Path, model: str, size: tuple[int, int], progress: Progress) -> Bundle:
    """A model's bundle for frames of a size, FP32, with PyTorch's answers for `openvis verify`."""
    variant = variant_named(model)
    progress("loading the weights", 0, None)
    loaded = load_model(model)
    exported = export_bundle(
        loaded.model,
        folder / _BUNDLES / model,
        network_size=resized_size(*size, variant.short_side, variant.max_side),
        precisions=("fp32",),
        checkpoint=loaded.facts,
        progress=progress,
    )
    add_reference(exported.bundle, loaded.model, progress)
    return exported.bundle


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda phase, done, total: progress(f"{prefix}: {phase}", done, total)


def _ran(
    folder: Path, scene: Scene, bundle: Bundle, progress: Progress, warn: Warn
) -> tuple[SystemReport, list[FrameResult]]:
    """Run one system in ONNX Runtime and hold what it found against the truth."""
    model = bundle.manifest.variant
    output = folder / _RESULTS / model
    progress("opening the bundle", 0, None)
    with Pipeline.open(
        bundle,
        vocabulary=scene.vocabulary,
        backend="onnxruntime",
        progress=lambda done, total: progress("embedding phrases", done, total),
        warn=lambda message: warn(f"{model}: {message}"),
    ) as pipeline:
        run = run_video(
            pipeline,
            str(folder / VIDEO),
            output,
            RunOptions(overlay=False),
            progress,
            lambda message: warn(f"{model}: {message}"),
        )
    results = read_frame_log(output / "frames.jsonl")
    tracks = tracks_of(results, scene.video.masks)
    figures: dict[str, float | None] = {"AP": None, "AP50": None}
    if scene.shown:
        truth = read_annotations(folder / ANNOTATIONS, "ytvis")
        figures = evaluate(truth, output / "results.json", class_agnostic=False).overall
    with_name = [place for place in scene.names if place is not None]
    found = [t for t in tracks if t.iou >= _FOUND and _name_of(scene, t.object) is not None]
    named = [t for t in found if t.name == _name_of(scene, t.object)]
    report = SystemReport(
        model=model,
        title=system_of(variant_named(model)).title.split(" (")[0],
        ap=figures["AP"],
        ap50=figures["AP50"],
        objects=len(with_name),
        found=len(found),
        named=len(named),
        others=len(tracks) - len(found),
        frames_per_second=round(run.frames_per_second, 2),
        backend=run.backend,
        tracks=tuple(tracks),
    )
    return report, results


def _name_of(scene: Scene, number: int | None) -> str | None:
    place = None if number is None else scene.names[number]
    return None if place is None else scene.vocabulary.names[place]


def _truth_panel(scene: Scene) -> Panel:
    colors = {number: color_of(number) for number in range(1, len(scene.objects) + 1)}
    legend = [(phrase, color_of(number)) for number, phrase in enumerate(scene.objects, 1)]
    return Panel("Ground truth", scene.video.name, scene.truth(), colors, legend)


def _panel(report: SystemReport, results: list[FrameResult], objects: int) -> Panel:
    colors = colors_by_object(report.tracks, objects)
    best = sorted(report.tracks, key=lambda track: -track.score)
    return Panel(
        title=report.title,
        facts=f"AP {percent(report.ap)}, {report.frames_per_second:.1f} frames/s",
        results=results,
        colors=colors,
        legend=[(f"{track.name}  {track.score:.2f}", colors[track.id]) for track in best],
    )
