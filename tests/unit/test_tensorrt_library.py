"""Which TensorRT is found, what it can do, and which GPU is here; with made-up libraries."""

from __future__ import annotations

import ctypes
import enum
import subprocess
import sys
from types import SimpleNamespace

import pytest

from openvis_rt.engines import gpu
from openvis_rt.engines.build.timing_cache import load_timing_cache, save_timing_cache
from openvis_rt.engines.gpu import gpu_of_this_machine
from openvis_rt.engines.library import TensorRtLibrary, tensorrt_library, version_numbers
from openvis_rt.errors import BackendError, DependencyError, InputError, UnavailableError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a module that can be imported during the test."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, text):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)

    yield make
    for name in ("tensorrt", "tensorrt_rtx"):
        if getattr(sys.modules.get(name), "__file__", "") == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
def test_library_is_imported(package, version):
    package("tensorrt", f"__version__ = '{version}'")
    library = tensorrt_library("tensorrt")
    assert (library.backend, library.version) == ("tensorrt", version)
    assert library.module.__name__ == "tensorrt"
    assert str(library) == f"tensorrt {version}"
    assert not library.compiles_for_a_list


@pytest.mark.parametrize("version", ["10.2.0.19", "10.0.1", "8.6.1"])
def test_an_old_version_is_refused(package, version):
    package("tensorrt", f"__version__ = '{version}'")
    with pytest.raises(UnavailableError, match=rf"tensorrt {version} is .*needs 10\.3 or newer"):
        tensorrt_library("tensorrt")


def test_an_unknown_backend_is_bad_usage():
    with pytest.raises(InputError, match=r"'onnxruntime'.*there are tensorrt, tensorrt-rtx"):
        tensorrt_library("onnxruntime")


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [("tensorrt", "tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")],
)
def test_a_missing_library_names_its_extra(monkeypatch, backend, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError) as caught:
        tensorrt_library(backend)
    assert (caught.value.module, caught.value.extra) == (module, extra)


@pytest.mark.parametrize(
    "text",
    [
        "raise OSError('libnvinfer.so.10: cannot open shared object file')",
        "raise ImportError('libnvinfer.so.10: undefined symbol')",
        "import no_such_bindings_of_it",
        "raise RuntimeError('bindings and library are of different versions')",
    ],
)
def test_a_broken_library_is_not_a_missing_one(package, text):
    package("tensorrt", text)
    with pytest.raises(BackendError, match="is installed, and importing it fails"):
        tensorrt_library("tensorrt")


def test_importing_the_module_loads_no_library():
    code = "import sys, openvis_rt.engines.library as t; print('tensorrt_rtx' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


@pytest.mark.parametrize(
    ("names", "offered"),
    [
        ("NONE AMPERE_PLUS", ["ampere+"]),
        ("NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY", ["ampere+", "same-compute-capability"]),
    ],
)
def test_hardware_compatibility_is_what_the_version_offers(names, offered):
    levels = enum.Enum("HardwareCompatibilityLevel", names)
    module = SimpleNamespace(HardwareCompatibilityLevel=levels)
    library = TensorRtLibrary("tensorrt", module, "10.3.0")
    assert list(library.hardware_compatibility) == offered
    assert library.hardware_compatibility["ampere+"] is levels.AMPERE_PLUS
    assert TensorRtLibrary("tensorrt-rtx", module, "1.7.1").hardware_compatibility == {}


def test_versions_are_compared_as_numbers():
    assert version_numbers("10.16.1.11") > version_numbers("10.3.0")
    assert version_numbers("11.0.0rc1")[:2] == (11, 0)


# --- the timing cache, with the library's part played by an object ---


class Config:
    """An ``IBuilderConfig`` as far as timing caches go: it takes those that begin with b"ok"."""

    def __init__(self):
        self.cache = None

    def create_timing_cache(self, data):
        if data.startswith(b"broken"):
            return None
        return SimpleNamespace(data=data, serialize=lambda: data + b"+")

    def set_timing_cache(self, cache, _ignore_mismatch):
        fits = cache.data == b"" or cache.data.startswith(b"ok")
        self.cache = cache if fits else self.cache
        return fits

    def get_timing_cache(self):
        return self.cache


def test_a_timing_cache_is_read_and_written_back(tmp_path):
    path, config = tmp_path / "timing.cache", Config()
    assert load_timing_cache(config, path) == []  # there is none yet
    config.cache = config.create_timing_cache(b"ok")
    save_timing_cache(config, path)
    assert path.read_bytes() == b"ok+"
    assert load_timing_cache(config, path) == []
    assert config.cache.data == b"ok+"
    assert [file.name for file in tmp_path.iterdir()] == ["timing.cache"]


@pytest.mark.parametrize("data", [b"broken", b"of another GPU"])
def test_a_useless_timing_cache_is_ignored_with_a_warning(tmp_path, data):
    path, config = tmp_path / "timing.cache", Config()
    path.write_bytes(data)
    (warning,) = load_timing_cache(config, path)
    assert str(path) in warning
    assert config.cache.data == b""  # a new one, which is written afterwards


# --- the GPU, with the driver's part played by an object ---


class Driver:
    """``libcuda`` with one GPU, or with none."""

    def __init__(self, count=1, capability=(8, 7), init=0):
        self.count, self.capability, self.init = count, dict(enumerate(capability, 75)), init

    def cuInit(self, _flags):  # noqa: N802 - the driver's name
        return self.init

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, _device, _ordinal):  # noqa: N802
        return 0

    def cuDeviceGetAttribute(self, value, attribute, _device):  # noqa: N802
        value._obj.value = self.capability[attribute]
        return 0

    def cuDeviceGetName(self, name, _size, _device):  # noqa: N802
        name.value = b"Orin"
        return 0


@pytest.mark.parametrize(
    ("driver", "found"),
    [
        (Driver(), ("Orin", "sm87")),
        (Driver(capability=(12, 0)), ("Orin", "sm120")),
        (Driver(count=0), None),
        (Driver(init=100), None),  # CUDA_ERROR_NO_DEVICE
    ],
)
def test_gpu_is_asked_of_the_driver(monkeypatch, driver, found):
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda _: driver)
    assert gpu_of_this_machine() == found


def test_no_driver_is_no_gpu(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu_of_this_machine() is None
