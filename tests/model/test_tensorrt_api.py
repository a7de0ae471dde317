"""Every class, method and member of TensorRT that this package declares, in the versions it names.

Of TensorRT 10 and 11 the bindings are enough, a megabyte each: their libraries, which need NVIDIA's
own index, are played by empty ones that gcc makes here. TensorRT-RTX and the double are asked in
``tests/unit/test_tensorrt_api_contract.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import tensorrt_api

from openvis_rt.engines import api

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
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "ICudaEngine.create_runtime_config",  # 10.3 has none
    "IRuntimeConfig",
    "IRuntimeCache",
    "CudaGraphStrategy",
}

STUB = """
#define F(n) void *n() { return 0; }
F(createInferBuilder_INTERNAL) F(createInferRefitter_INTERNAL) F(createInferRuntime_INTERNAL)
F(createNvOnnxParser_INTERNAL) F(createNvOnnxParserRefitter_INTERNAL)
F(getBuilderPluginRegistry) F(getPluginRegistry) F(initLibNvInferPlugins) F(getInferLibVersion)
int getNvOnnxParserVersion() { return 0; }
"""
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")


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
def test_tensorrt_has_what_is_declared(version, stubs, tmp_path):
    bindings(version, tmp_path / "site")
    command = [sys.executable, tensorrt_api.__file__, "tensorrt_bindings", api.__file__]
    ended = subprocess.run(
        [*command, *ONLY_RTX],
        env={**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert answer["version"] == version
    assert answer["lacks"] == []
    assert answer["levels"] == LEVELS[version]
