"""Every class, method and member of TensorRT that this package uses, in the versions that it names.

TensorRT-RTX is asked in this process. Of TensorRT 10 and 11 the bindings are enough, a megabyte
each: their libraries, which need NVIDIA's own index, are played by empty ones that gcc makes here.
What no source line shows, such as methods called on an object of another name, stands in
``BUILD_API`` and ``RUNTIME_API``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorrt_api
from tensorrt_api import Use, problems, uses_of, write_uses

import openvis_rt

PACKAGE = Path(openvis_rt.__file__).parent
SOURCES = [
    PACKAGE / "tensorrt_library.py",
    PACKAGE / "engines" / "plan_builder.py",
    PACKAGE / "engines" / "callbacks.py",
    PACKAGE / "engines" / "layers.py",
    PACKAGE / "runtime" / "tensorrt_session.py",
    PACKAGE / "runtime" / "kernel_cache.py",
]
VERSIONS = {  # the first, a late one of its kind, the newest
    "10.3.0": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
LEVELS = {
    "10.3.0": ["AMPERE_PLUS"],
    "10.16.1.11": ["AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"],
    "11.4.0.106": ["AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"],
}
ONLY_RTX = {  # used only where the library is TensorRT-RTX, or after asking whether it is there
    "ComputeCapability",
    "ComputeCapability.__members__",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "ICudaEngine.create_runtime_config",  # 10.3 has none
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "IRuntimeCache.serialize",
    "IRuntimeCache.deserialize",
}

BUILD_API = [
    Use("IOptimizationProfile", "set_shape", 4),
    Use("IOptimizationProfile", "set_shape_input", 4),
    Use("INetworkDefinition", "get_input", 1),
    Use("INetworkDefinition", "get_output", 1),
    Use("ILayer", "get_input", 1),
    Use("ILayer", "get_output", 1),
    Use("ITensor", "is_shape_tensor"),
    Use("IHostMemory", "nbytes"),
    Use("HardwareCompatibilityLevel", "__members__"),
    Use("LayerType", "CONVOLUTION"),
    Use("LayerType", "MATRIX_MULTIPLY"),
    Use("ILogger", "INTERNAL_ERROR"),
]
RUNTIME_API = [
    Use("Runtime", "deserialize_cuda_engine", 1),
    Use("Runtime", "engine_host_code_allowed", writes=True),
    Use("ICudaEngine", "num_io_tensors"),
    Use("ICudaEngine", "get_tensor_name", 1),
    Use("ICudaEngine", "get_tensor_mode", 1),
    Use("ICudaEngine", "get_tensor_dtype", 1),
    Use("ICudaEngine", "get_tensor_shape", 1),
    Use("ICudaEngine", "get_tensor_profile_shape", 2),
    Use("ICudaEngine", "get_tensor_profile_values", 2),
    Use("ICudaEngine", "get_tensor_location", 1),
    Use("ICudaEngine", "is_shape_inference_io", 1),
    Use("ICudaEngine", "create_execution_context", 0),
    Use("ICudaEngine", "create_engine_inspector", 0),
    Use("ICudaEngine", "device_memory_size_v2"),
    Use("IExecutionContext", "set_tensor_address", 2),
    Use("IExecutionContext", "set_input_shape", 2),
    Use("IExecutionContext", "infer_shapes", 0),
    Use("IExecutionContext", "execute_async_v3", 1),
    Use("IExecutionContext", "get_tensor_shape", 1),
    Use("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
    Use("TensorIOMode", "INPUT"),
    Use("TensorIOMode", "OUTPUT"),
    Use("TensorLocation", "HOST"),
    Use("TensorLocation", "DEVICE"),
    *(
        Use("DataType", name)
        for name in ["FLOAT", "HALF", "INT64", "INT32", "UINT8", "BOOL", "INT8"]
    ),
]

STUB = """
#define F(n) void *n() { return 0; }
F(createInferBuilder_INTERNAL) F(createInferRefitter_INTERNAL) F(createInferRuntime_INTERNAL)
F(createNvOnnxParser_INTERNAL) F(createNvOnnxParserRefitter_INTERNAL)
F(getBuilderPluginRegistry) F(getPluginRegistry) F(initLibNvInferPlugins) F(getInferLibVersion)
int getNvOnnxParserVersion() { return 0; }
"""
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")


def all_uses():
    return [*uses_of(SOURCES), *BUILD_API, *RUNTIME_API]


def cannot(reason):
    """Skip, or fail where a skip would hide something."""
    if os.environ.get("OPENVIS_REQUIRE_REFERENCE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """A folder with empty libraries of both major versions."""
    compiler = shutil.which("gcc")
    if compiler is None:
        cannot("no gcc to make empty TensorRT libraries with")
    folder = tmp_path_factory.mktemp("stubs")
    source = folder / "stub.c"
    source.write_text(STUB)
    first = folder / "stub.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", source, "-o", first], check=True)
    for name in LIBRARIES:
        for major in (10, 11):
            shutil.copy(first, folder / f"{name}.so.{major}")
    return folder


def bindings(version, target):
    """Install a version's bindings alone."""
    requirement = f"{VERSIONS[version]}=={version}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary", ":all:", "--target", str(target), requirement]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if ended.returncode:
        cannot(f"no {requirement} for this Python from the package index: {ended.stderr[-400:]}")


@pytest.mark.parametrize("version", VERSIONS)
def test_tensorrt_has_what_is_used(version, stubs, tmp_path):
    bindings(version, tmp_path / "site")
    uses = [use for use in all_uses() if str(use) not in ONLY_RTX]
    write_uses(uses, tmp_path / "uses.json")
    ended = subprocess.run(
        [sys.executable, tensorrt_api.__file__, "tensorrt_bindings", tmp_path / "uses.json"],
        env={**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert answer["version"] == version
    assert answer["problems"] == []
    assert answer["levels"] == LEVELS[version]


def test_tensorrt_rtx_has_what_is_used():
    module = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    assert problems(module, all_uses()) == []


def test_the_source_is_read():
    found = {str(use): use for use in uses_of(SOURCES)}
    assert found["Builder.build_serialized_network"].arguments == 2
    assert found["Builder.__init__"].arguments == 1
    assert found["BuilderFlag.TF32"].arguments == -1
    assert found["IProgressMonitor.phase_start"].arguments == 3
    assert found["IBuilderConfig.progress_monitor"].writes
    assert found["Runtime.deserialize_cuda_engine"].arguments == 1
    assert found["IExecutionContext.execute_async_v3"].arguments == 1
    # precision is in the graph: these are gone from 11, and would do nothing in a typed network
    assert not {"BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.BF16"} & found.keys()


class Shapes:
    """What the checker is held against."""

    def method(self):
        """method(self: Shapes, a: dict[str, int], b: int = 0) -> None

        Text.
        """

    fixed = property(lambda self: 0)


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        (Use("Shapes", "method", 2), None),
        (Use("Shapes", "method", 1), None),
        (Use("Shapes", "method", 1, ("b",)), None),
        (Use("Shapes", "method", 0), "called with 0"),
        (Use("Shapes", "method", 3), "called with 3"),
        (Use("Shapes", "method", 1, ("c",)), "called with 1"),
        (Use("Shapes", "fixed"), None),
        (Use("Shapes", "fixed", writes=True), "cannot be assigned"),
        (Use("Shapes", "fixed", 0), "is no method"),
        (Use("Shapes", "gone"), "no such member"),
        (Use("Gone", "method", 1), "no Gone"),
    ],
)
def test_the_checker_finds_what_is_missing(use, problem):
    found = problems(sys.modules[__name__], [use])
    assert found == [] if problem is None else problem in found[0]
