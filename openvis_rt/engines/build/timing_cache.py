"""Measured times of kernels, kept from one build to the next."""

from __future__ import annotations

from pathlib import Path

from openvis_rt.engines.api import BuilderConfig
from openvis_rt.errors import InputError
from openvis_rt.files import output_file
from openvis_rt.given_files import given_bytes

__all__ = ["load_timing_cache", "save_timing_cache"]

_LARGEST = 1 << 30  # bytes; those of large models have some 10 MB


def load_timing_cache(config: BuilderConfig, path: Path) -> list[str]:
    """Give the library the times of earlier builds; a warning if they are of no use."""
    try:
        data = given_bytes(path, _LARGEST) if path.exists() else b""
    except InputError as exc:
        config.set_timing_cache(config.create_timing_cache(b""), False)
        return [f"{exc}; kernels are timed anew"]
    cache = config.create_timing_cache(data)
    # false: the times of another GPU or version are not taken for this one's
    if cache is not None and config.set_timing_cache(cache, False):
        return []
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return [f"{path} is damaged, or of another GPU or version; kernels are timed anew"]


def save_timing_cache(config: BuilderConfig, path: Path) -> None:
    """Write the times of this build, with those that it was given.

    Raises:
        OutputError: the file cannot be written.
    """
    cache = config.get_timing_cache()
    if cache is not None:
        with output_file(path) as partial:
            partial.write_bytes(memoryview(cache.serialize()))
