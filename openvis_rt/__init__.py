"""openvis-rt: open-vocabulary video instance segmentation on ONNX Runtime and TensorRT.

``Pipeline`` is the way in from Python; the command is ``openvis``.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openvis_rt.runtime.pipeline import Pipeline

__all__ = ["Pipeline", "__version__"]

try:
    __version__ = version("openvis-rt")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+source"


def __getattr__(name: str) -> Any:
    if name == "Pipeline":  # imported when asked for, so that other parts stay light
        from openvis_rt.runtime.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
