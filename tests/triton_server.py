"""A real Triton server on the loopback address, where nvidia-pytriton brought one.

That package asks for numpy 1, so it is installed beside the environment and named by a variable:

    pip install --no-deps --target /somewhere nvidia-pytriton==0.7.0
    OPENVIS_TRITON=/somewhere pytest tests/model/test_triton_server.py

It holds the server and its python backend only. Graphs as models of their own are therefore tried
with the models of ``doubles/graph_model.py`` in the place of ONNX Runtime's.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GRAPH_MODEL = Path(__file__).parent / "doubles" / "graph_model.py"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def triton_folder() -> Path | str:
    """Where the package lies, or why no server can be started here."""
    named = os.environ.get("OPENVIS_TRITON")
    spec = None if named else importlib.util.find_spec("pytriton")
    if not named and spec is None:
        return "no Triton server: OPENVIS_TRITON names no folder with nvidia-pytriton"
    folder = Path(named) if named else Path(str(spec and spec.origin)).parents[1]
    stub = folder / "pytriton/tritonserver/python_backend_stubs" / _PYTHON
    if not stub.is_dir():
        return f"the Triton server in {folder} has no stub for Python {_PYTHON}"
    library = str(sysconfig.get_config_var("INSTSONAME") or f"libpython{_PYTHON}.so.1.0")
    for path in (Path(str(sysconfig.get_config_var("LIBDIR"))) / library, Path(library)):
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(path))
            return folder
    return f"the server's stub needs {library}, and this Python comes without"


@dataclass(frozen=True)
class TritonServer:
    """A server that runs.

    Attributes:
        pid: of its process; those of its models are its children.
        url: host and port of gRPC.
        http: address of HTTP.
        log: what it said so far.
    """

    pid: int
    url: str
    http: str
    log: Path


@contextlib.contextmanager
def triton_server(repository: Path, folder: Path, work: Path) -> Iterator[TritonServer]:
    """Serve a repository until the block ends.

    Args:
        repository: of models.
        folder: of :func:`triton_folder`.
        work: an empty folder for the server's own files.
    """
    packed = folder / "pytriton" / "tritonserver"
    shutil.copytree(packed / "backends", work / "backends")
    stub = packed / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    shutil.copy(stub, work / "backends" / "python")
    grpc, http = _free_port(), _free_port()
    root = Path(__file__).parents[1]
    libraries = [str(folder / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PYTHONPATH": os.pathsep.join([str(root), *(p for p in sys.path if "packages" in p)]),
    }
    command = [
        str(packed / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={work / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name=openvis_{os.getpid()}_{grpc}",
        *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false"),
        *(f"--http-port={http}", f"--grpc-port={grpc}"),
    ]
    log = work / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        server = TritonServer(process.pid, f"127.0.0.1:{grpc}", f"http://127.0.0.1:{http}", log)
        _wait_until_ready(process, server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def serve_graphs_in_python(repository: Path) -> None:
    """Let a small python model run each graph, where the repository wants ONNX Runtime to."""
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text()
        if 'platform: "onnxruntime_onnx"' in text:
            text = text.replace('platform: "onnxruntime_onnx"', 'backend: "python"')
            config.write_text(re.sub("KIND_AUTO", "KIND_CPU", text))
            shutil.copy(GRAPH_MODEL, config.parent / "1" / "model.py")


def _wait_until_ready(process: subprocess.Popen[bytes], server: TritonServer) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        url = f"{server.http}/v2/health/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the Triton server did not start:\n{server.log.read_text()[-5000:]}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
