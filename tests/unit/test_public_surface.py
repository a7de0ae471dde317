"""What a user imports: the names of ``openvis_rt`` itself, where they live, what they cost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import openvis_rt

HOMES = {  # a module below openvis_rt, and the public names that it has
    "bench.benchmark": {"BenchmarkSettings", "benchmark"},
    "bundle.bundle": {"Bundle"},
    "checkpoints.load": {"load_model"},
    "calib.calibrate": {"CalibrationResult", "calibrate", "rebuild_int8"},
    "calib.block_choice": {"BlockChoice"},
    "calib.windows": {"CalibrationFrames"},
    "convert.convert": {"ConvertOptions", "convert_results"},
    "demo.demo": {"DemoReport", "run_demo"},
    "engines.build.engines": {"build_engines"},
    "errors": {
        *("BackendError", "BundleError", "CheckpointError", "DependencyError", "EngineError"),
        *("InputError", "OpenVISError", "OutputError", "ParityError", "UnavailableError"),
        *("VideoError", "VocabularyError"),
    },
    "evaluation.annotation_files": {"read_annotations"},
    "evaluation.annotations": {"Annotations"},
    "evaluation.metrics": {"evaluate"},
    "evaluation.pictures": {"write_pictures"},
    "evaluation.predicting": {"predict_videos"},
    "evaluation.report": {"Report"},
    "evaluation.splits": {"read_split"},
    "evaluation.vocabularies": {"vocabulary_for"},
    "export.bundle": {"export_bundle"},
    "runtime.backends.base": {"Backend", "Session"},
    "runtime.backends.registry": {"BackendOptions"},
    "runtime.options": {"LiveOptions", "Selection", "TrackingOptions"},
    "runtime.pipeline": {"Pipeline"},
    "runtime.report": {"RunOptions", "RunReport"},
    "runtime.run": {"run_video"},
    "runtime.video.drawing": {"Drawer", "draw"},
    "runtime.video.overlay": {"OverlayWriter"},
    "runtime.video.reading": {"Frame", "VideoSource", "open_video"},
    "runtime.video.results": {"FrameResult", "Instance", "VideoInstance", "VideoResult"},
    "runtime.video.run_lengths": {"decode_mask"},
    "serving.batch": {"BatchReport", "PoolOptions", "run_batch"},
    "serving.worker": {"BatchWork"},
    "verify.torch_recording": {"add_reference"},
    "verify.verify": {"VerifyReport", "verify_bundle"},
    "vocabulary": {"Vocabulary"},
    "_version": {"__version__"},
}
NEEDS_TORCH = {"DemoReport", "add_reference", "export_bundle", "load_model", "run_demo"}
NEEDS_ONNX = {
    *(*NEEDS_TORCH, "build_engines"),
    *(name for home, names in HOMES.items() if home.startswith("calib.") for name in names),
}
NAMES = {name: home for home, names in HOMES.items() for name in names}
PAGE = Path(__file__).parents[2] / "docs" / "python.md"

ASKED = """
import json, sys
import openvis_rt
for name in sys.argv[1:]:
    getattr(openvis_rt, name)
print(json.dumps(sorted({module.split(".")[0] for module in sys.modules})))
"""


def libraries_after(*names: str) -> set[str]:
    """Top-level packages that a new process has loaded after asking for these names."""
    command = [sys.executable, "-c", ASKED, *names]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout))


def test_the_names_are_these():
    assert openvis_rt.__all__ == sorted(NAMES)
    assert dir(openvis_rt) == sorted(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_is_the_object_of_its_home(name):
    if name in NEEDS_TORCH:
        pytest.importorskip("torch", reason="exporting needs the extra [export]")
    if name in NEEDS_ONNX:
        pytest.importorskip("onnx", reason="building engines needs an extra with onnx")
    home = import_module(f"openvis_rt.{NAMES[name]}")
    value = getattr(openvis_rt, name)
    assert value is getattr(home, name)
    assert name == "__version__" or value.__module__ == home.__name__


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'openvis_rt' has no attribute 'Pipelin'"):
        _ = openvis_rt.Pipelin
    with pytest.raises(ImportError):
        from openvis_rt import WindowPipeline  # noqa: F401


def test_importing_the_package_loads_nothing():
    extra = libraries_after() - {"openvis_rt", "site", "sitecustomize", "usercustomize"}
    assert "numpy" not in extra
    assert {name for name in extra if name in ("scipy", "av", "PIL", "rich", "typer")} == set()


def test_names_for_running_need_neither_torch_nor_onnx():
    names = sorted(set(NAMES) - NEEDS_ONNX)
    loaded = libraries_after(*names)
    assert "numpy" in loaded  # they did load
    assert loaded & {"torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx"} == set()


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
import openvis_rt
try:
    getattr(openvis_rt, sys.argv[2])
except openvis_rt.DependencyError as exc:
    print(exc)
"""


@pytest.mark.parametrize(
    ("library", "name", "extra"),
    [
        ("torch", "export_bundle", "export"),
        ("torch", "load_model", "export"),
        ("onnx", "run_demo", "export"),
        ("onnx", "calibrate", "calib"),
        ("onnx", "BlockChoice", "calib"),
    ],
)
def test_a_missing_library_names_the_extra_that_brings_it(library, name, extra):
    command = [sys.executable, "-c", WITHOUT, library, name]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.startswith(f"{library} is not installed"), ended.stderr
    assert f"openvis-rt[{extra}]" in ended.stdout


def test_the_page_names_every_one():
    named = set(re.findall(r"\b\w+\b", PAGE.read_text(encoding="utf-8")))
    assert set(NAMES) - named == set()
