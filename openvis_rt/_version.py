"""The version of this distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("openvis-rt")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+source"
