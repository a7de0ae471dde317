"""Engines of the tiny model on a real GPU, against ONNX Runtime on the CPU.

It has not been run where it was written, for want of a GPU; its gates are what strongly typed FP32
and FP16 leave on a CPU, with room for kernels that sum in another order.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from tiny_ovformer import shared_bundle

from openvis_rt import Pipeline
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.build.builder import check_targets
from openvis_rt.engines.library import tensorrt_library
from openvis_rt.errors import InputError, UnavailableError
from openvis_rt.runtime.backends.registry import open_backend
from openvis_rt.runtime.backends.tensorrt.bindings import open_cuda
from openvis_rt.runtime.video.generated import sample_frames

SQNR = {"fp32": 40.0, "fp16": 20.0}  # dB; a defect leaves about 0


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def backend(request) -> str:
    """A backend whose library is here, on a machine with a GPU."""
    try:
        cuda = open_cuda()
        cuda.close()
        library = tensorrt_library(request.param)
    except UnavailableError as exc:
        pytest.skip(f"engines run on a GPU alone: {exc}")
    try:
        check_targets(library, [cuda.capability] if library.compiles_for_a_list else [])
    except InputError as exc:
        pytest.skip(f"{cuda.device_name} is not served: {exc}")
    return request.param


def build(bundle: Bundle, backend: str, precision: str) -> None:
    from openvis_rt.engines.build.engines import build_engines

    cuda = open_cuda()
    targets = [cuda.capability] if backend == "tensorrt-rtx" else None
    cuda.close()
    build_engines(bundle, backend=backend, targets=targets, precisions=[precision])


def frames() -> list[np.ndarray]:
    made = sample_frames(width=90, height=60, fps=5, seconds=1.2, objects=2)
    return [image for image, _ in made]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_propose_gives_onnx_runtimes_numbers(backend, bundle_copy, precision):
    bundle = Bundle.open(bundle_copy)
    build(bundle, backend, precision)
    compare_propose(bundle, backend, precision, [frames()[0][None]])


def test_one_engine_gives_onnx_runtimes_numbers_for_windows_of_every_length(
    backend, tmp_path, tmp_path_factory
):
    """A batch above 1 has been silently wrong in TensorRT releases."""
    shared = shared_bundle("ovformer-video-r50", tmp_path_factory)
    bundle = Bundle.open(shutil.copytree(shared.path, tmp_path / "bundle"))
    build(bundle, backend, "fp32")
    windows = [np.stack(frames()[:length]) for length in (5, 1, 2, 3, 4, 5)]
    compare_propose(bundle, backend, "fp32", windows)


def compare_propose(bundle, backend, precision, windows) -> None:
    found = {}
    for name, used in ((backend, precision), ("onnxruntime", "fp32")):
        factory = open_backend(name, bundle, used)
        session = factory.open(bundle, "propose", used, fetched=("queries", "mask_logits"))
        found[name] = []
        for window in windows:
            session.input_view("frames", window.shape)[...] = window
            session.run()
            found[name] += [session.fetch(n).astype(float) for n in ("queries", "mask_logits")]
        session.close()
        factory.close()
    for ours, wanted in zip(found[backend], found["onnxruntime"], strict=True):
        noise = ((ours - wanted) ** 2).sum()
        sqnr = 10 * np.log10((wanted**2).sum() / max(noise, 1e-30))
        assert sqnr >= SQNR[precision], f"{list(wanted.shape)}: {sqnr:.0f} dB"


def test_a_stream_with_two_frames_in_flight_is_the_frames_one_by_one(backend, bundle_copy):
    bundle = Bundle.open(bundle_copy)
    build(bundle, backend, "fp32")
    options = {"vocabulary": ["cat", "dog"], "backend": backend, "mode": "stream"}
    with Pipeline.open(bundle, **options) as pipeline:
        streamed = list(pipeline.stream(frames()))
    with Pipeline.open(bundle, **options) as pipeline:
        stepped = [pipeline.step(frame) for frame in frames()]
    assert [r.instances for r in streamed] == [r.instances for r in stepped]
