"""openvis-rt: open-vocabulary video instance segmentation on ONNX Runtime and TensorRT.

What a user needs is here, and is imported when it is first asked for, so that each part stays
light: ``import openvis_rt`` loads nothing, :class:`Pipeline` neither torch nor onnx. The command is
``openvis``. docs/python.md lists the names with an example each.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openvis_rt._version import __version__
    from openvis_rt.bench.benchmark import BenchmarkSettings, benchmark
    from openvis_rt.bundle.bundle import Bundle
    from openvis_rt.calib.block_choice import BlockChoice
    from openvis_rt.calib.calibrate import CalibrationResult, calibrate, rebuild_int8
    from openvis_rt.calib.windows import CalibrationFrames
    from openvis_rt.checkpoints.load import load_model
    from openvis_rt.convert.convert import ConvertOptions, convert_results
    from openvis_rt.demo.demo import DemoReport, run_demo
    from openvis_rt.engines.build.engines import build_engines
    from openvis_rt.errors import (
        BackendError,
        BundleError,
        CheckpointError,
        DependencyError,
        EngineError,
        InputError,
        OpenVISError,
        OutputError,
        ParityError,
        UnavailableError,
        VideoError,
        VocabularyError,
    )
    from openvis_rt.evaluation.annotation_files import read_annotations
    from openvis_rt.evaluation.annotations import Annotations
    from openvis_rt.evaluation.metrics import evaluate
    from openvis_rt.evaluation.pictures import write_pictures
    from openvis_rt.evaluation.predicting import predict_videos
    from openvis_rt.evaluation.report import Report
    from openvis_rt.evaluation.splits import read_split
    from openvis_rt.evaluation.vocabularies import vocabulary_for
    from openvis_rt.export.bundle import export_bundle
    from openvis_rt.runtime.backends.base import Backend, Session
    from openvis_rt.runtime.backends.registry import BackendOptions
    from openvis_rt.runtime.options import LiveOptions, Selection, TrackingOptions
    from openvis_rt.runtime.pipeline import Pipeline
    from openvis_rt.runtime.report import RunOptions, RunReport
    from openvis_rt.runtime.run import run_video
    from openvis_rt.runtime.video.drawing import Drawer, draw
    from openvis_rt.runtime.video.overlay import OverlayWriter
    from openvis_rt.runtime.video.reading import Frame, VideoSource, open_video
    from openvis_rt.runtime.video.results import (
        FrameResult,
        Instance,
        VideoInstance,
        VideoResult,
    )
    from openvis_rt.runtime.video.run_lengths import decode_mask
    from openvis_rt.serving.batch import BatchReport, PoolOptions, run_batch
    from openvis_rt.serving.worker import BatchWork
    from openvis_rt.verify.torch_recording import add_reference
    from openvis_rt.verify.verify import VerifyReport, verify_bundle
    from openvis_rt.vocabulary import Vocabulary

_HOME = {
    **dict.fromkeys(("__version__",), "_version"),
    **dict.fromkeys(("BenchmarkSettings", "benchmark"), "bench.benchmark"),
    **dict.fromkeys(("Bundle",), "bundle.bundle"),
    **dict.fromkeys(("CalibrationResult", "calibrate", "rebuild_int8"), "calib.calibrate"),
    **dict.fromkeys(("BlockChoice",), "calib.block_choice"),
    **dict.fromkeys(("CalibrationFrames",), "calib.windows"),
    **dict.fromkeys(("load_model",), "checkpoints.load"),
    **dict.fromkeys(("read_annotations",), "evaluation.annotation_files"),
    **dict.fromkeys(("Annotations",), "evaluation.annotations"),
    **dict.fromkeys(("evaluate",), "evaluation.metrics"),
    **dict.fromkeys(("write_pictures",), "evaluation.pictures"),
    **dict.fromkeys(("predict_videos",), "evaluation.predicting"),
    **dict.fromkeys(("Report",), "evaluation.report"),
    **dict.fromkeys(("read_split",), "evaluation.splits"),
    **dict.fromkeys(("vocabulary_for",), "evaluation.vocabularies"),
    **dict.fromkeys(("export_bundle",), "export.bundle"),
    **dict.fromkeys(("ConvertOptions", "convert_results"), "convert.convert"),
    **dict.fromkeys(("DemoReport", "run_demo"), "demo.demo"),
    **dict.fromkeys(("build_engines",), "engines.build.engines"),
    **dict.fromkeys(("Pipeline",), "runtime.pipeline"),
    **dict.fromkeys(("LiveOptions", "Selection", "TrackingOptions"), "runtime.options"),
    **dict.fromkeys(("Backend", "Session"), "runtime.backends.base"),
    **dict.fromkeys(("BackendOptions",), "runtime.backends.registry"),
    **dict.fromkeys(("RunOptions", "RunReport"), "runtime.report"),
    **dict.fromkeys(("run_video",), "runtime.run"),
    **dict.fromkeys(("BatchReport", "PoolOptions", "run_batch"), "serving.batch"),
    **dict.fromkeys(("BatchWork",), "serving.worker"),
    **dict.fromkeys(("Frame", "VideoSource", "open_video"), "runtime.video.reading"),
    **dict.fromkeys(("Drawer", "draw"), "runtime.video.drawing"),
    **dict.fromkeys(("OverlayWriter",), "runtime.video.overlay"),
    **dict.fromkeys(
        ("FrameResult", "Instance", "VideoInstance", "VideoResult"), "runtime.video.results"
    ),
    **dict.fromkeys(("decode_mask",), "runtime.video.run_lengths"),
    **dict.fromkeys(("add_reference",), "verify.torch_recording"),
    **dict.fromkeys(("VerifyReport", "verify_bundle"), "verify.verify"),
    **dict.fromkeys(("Vocabulary",), "vocabulary"),
    **dict.fromkeys(
        (
            *("BackendError", "BundleError", "CheckpointError", "DependencyError", "EngineError"),
            *("InputError", "OpenVISError", "OutputError", "ParityError", "UnavailableError"),
            *("VideoError", "VocabularyError"),
        ),
        "errors",
    ),
}
"""Of each public name the module that has it."""
_EXPORTING = {"DemoReport", "add_reference", "export_bundle", "load_model", "run_demo"}

__all__ = [
    "Annotations",
    "Backend",
    "BackendError",
    "BackendOptions",
    "BatchReport",
    "BatchWork",
    "BenchmarkSettings",
    "BlockChoice",
    "Bundle",
    "BundleError",
    "CalibrationFrames",
    "CalibrationResult",
    "CheckpointError",
    "ConvertOptions",
    "DemoReport",
    "DependencyError",
    "Drawer",
    "EngineError",
    "Frame",
    "FrameResult",
    "InputError",
    "Instance",
    "LiveOptions",
    "OpenVISError",
    "OutputError",
    "OverlayWriter",
    "ParityError",
    "Pipeline",
    "PoolOptions",
    "Report",
    "RunOptions",
    "RunReport",
    "Selection",
    "Session",
    "TrackingOptions",
    "UnavailableError",
    "VerifyReport",
    "VideoError",
    "VideoInstance",
    "VideoResult",
    "VideoSource",
    "Vocabulary",
    "VocabularyError",
    "__version__",
    "add_reference",
    "benchmark",
    "build_engines",
    "calibrate",
    "convert_results",
    "decode_mask",
    "draw",
    "evaluate",
    "export_bundle",
    "load_model",
    "open_video",
    "predict_videos",
    "read_annotations",
    "read_split",
    "rebuild_int8",
    "run_batch",
    "run_demo",
    "run_video",
    "verify_bundle",
    "vocabulary_for",
    "write_pictures",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from openvis_rt.errors import DependencyError

    try:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] == __name__:
            raise
        calibrating = _HOME[name].startswith("calib.")
        extra = "export" if name in _EXPORTING else "calib" if calibrating else "rtx"
        raise DependencyError(exc.name, extra) from exc
    globals()[name] = value  # asked once
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
