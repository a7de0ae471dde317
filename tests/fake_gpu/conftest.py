"""The TensorRT backend on a driver that is none, and on a library that computes with ONNX Runtime.

The driver runs queued work at the worst of moments. It cannot be unloaded, and every library of the
process finds it, so these tests have a process of their own; ``tests/unit/test_fake_gpu.py`` starts
it, and so does ``pytest tests/fake_gpu``.
"""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import pytest
from doubles.engines import CLASSES, EVERYTHING, KINDS, frames_of, write_plan
from doubles.fake_cuda import FakeCuda, build
from doubles.tensorrt_double import VERSIONS, tensorrt_double

from openvis_rt import Pipeline
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.library import TensorRtLibrary
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.backends.tensorrt.backend import TensorRt

EXPORTED = "OPENVIS_EXPORTED"
"""Where the unit tier has exported the bundles: `tiny`, `windows`, and both with a reference."""


@pytest.fixture(scope="session")
def built(request, tmp_path_factory):
    """The tiny bundle with engines of every library."""
    given = os.environ.get(EXPORTED)
    exported = Path(given) / "tiny" if given else request.getfixturevalue("tiny_bundle")
    return with_engines(exported, tmp_path_factory.mktemp("built") / "bundle")


@pytest.fixture(scope="session")
def built_windows(tmp_path_factory):
    """A tiny VideoOVFormer with engines of every library."""
    if given := os.environ.get(EXPORTED):
        exported = Path(given) / "windows"
    else:
        from tiny_ovformer import shared_bundle  # it needs torch

        exported = shared_bundle("ovformer-video-r50", tmp_path_factory).path
    return with_engines(exported, tmp_path_factory.mktemp("built-windows") / "bundle")


def with_engines(exported, path):
    shutil.copytree(exported, path, copy_function=os.link)
    bundle = Bundle.open(path)
    for kind in KINDS:
        for graph in bundle.graphs:
            write_plan(bundle, graph, kind)
    return bundle


@pytest.fixture(scope="session")
def recorded(request, tmp_path_factory):
    """A folder with both bundles, FP16 in the first, and a recorded reference in each."""
    if given := os.environ.get(EXPORTED):
        return Path(given)
    from recorded_bundles import record_bundles  # it needs torch
    from tiny_ovformer import shared_bundle

    folder = tmp_path_factory.mktemp("recorded")
    windows = shared_bundle("ovformer-video-r50", tmp_path_factory).path
    record_bundles(request.getfixturevalue("tiny_bundle"), windows, folder)
    return folder


@pytest.fixture(scope="session")
def fake_driver(built, built_windows, recorded, tmp_path_factory):
    """The fake CUDA driver, loaded for good; first of all is exported, which must not find it."""
    gc.collect()
    gc.freeze()  # what the export left behind would make every later collection slow
    return FakeCuda(build(tmp_path_factory.mktemp("driver")))


@pytest.fixture
def driver(fake_driver):
    """The fake CUDA driver as in a new process; in the end nothing may be left in it."""
    fake_driver.reset()
    yield fake_driver
    fake_driver.check()


@pytest.fixture
def changeable(built, tmp_path):
    """A copy whose engines may be written anew."""
    path = tmp_path / "bundle"
    shutil.copytree(built.path, path, copy_function=os.link)
    shutil.rmtree(path / "engines")
    bundle = Bundle.open(path)
    for graph in bundle.graphs:
        write_plan(bundle, graph)
    return bundle


@pytest.fixture(autouse=True)
def unproven(request, monkeypatch):
    """Engines serve without a proof, but where a test is about it."""
    if not request.node.get_closest_marker("proven"):
        monkeypatch.setattr("openvis_rt.runtime.backends.proving.prove", lambda *_: {})


@pytest.fixture
def use(driver, monkeypatch):
    """Puts a library into the place of the real one; ``doubles`` are those that were put there."""
    doubles = []

    def install(kind="tensorrt"):
        double = tensorrt_double(driver, kind)
        library = TensorRtLibrary(kind.removesuffix(" 10"), double, VERSIONS[kind])
        where = "openvis_rt.runtime.backends.tensorrt.backend.tensorrt_library"
        monkeypatch.setattr(where, lambda _backend: library)
        doubles.append(double)
        return double

    install.doubles = doubles
    yield install
    assert [failure for double in doubles for failure in double.failures] == []


@pytest.fixture
def opened(use, built):
    """Opens pipelines on a library, and closes them in the end."""
    pipelines = []

    def open_pipeline(mode="stream", kind="tensorrt", *, bundle=built, **options):
        use(kind)
        options = {"vocabulary": CLASSES, "selection": EVERYTHING, **options}
        backend = kind.removesuffix(" 10")
        pipelines.append(Pipeline.open(bundle, backend=backend, mode=mode, **options))
        return pipelines[-1]

    yield open_pipeline
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture
def reference(built):
    """Opens pipelines on ONNX Runtime."""
    pipelines = []

    def open_pipeline(mode="stream", **options):
        options = {"vocabulary": CLASSES, "selection": EVERYTHING, **options}
        pipelines.append(Pipeline.open(built, backend=OnnxRuntime("cpu"), mode=mode, **options))
        return pipelines[-1]

    yield open_pipeline
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture
def told():
    """What the backends of ``sessions`` warn of."""
    return []


@pytest.fixture
def sessions(use, told):
    """Opens the backend itself, for sessions of one graph."""
    factories = []

    def open_backend(kind="tensorrt"):
        use(kind)
        factories.append(TensorRt(kind.removesuffix(" 10"), warn=told.append))
        return factories[-1]

    yield open_backend
    for factory in factories:
        factory.close()


@pytest.fixture(scope="session")
def frames():
    return frames_of(6)


@pytest.fixture(scope="session")
def expected(built, frames):
    """Every frame's result and the video's, by ONNX Runtime."""
    options = {"vocabulary": CLASSES, "selection": EVERYTHING, "mode": "video"}
    with Pipeline.open(built, backend=OnnxRuntime("cpu"), **options) as pipeline:
        return list(pipeline.stream(frames)), pipeline.finish()
