"""Engines of the demo's bundles, where they can be built and run."""

from __future__ import annotations

from collections.abc import Callable

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.build.engines import build_engines, default_backend
from openvis_rt.engines.gpu import gpu_of_this_machine
from openvis_rt.engines.library import tensorrt_library
from openvis_rt.errors import InputError, UnavailableError

__all__ = ["build_if_possible"]


def build_if_possible(
    bundle: Bundle, progress: Callable[[str, int, int | None], None] = lambda *_: None
) -> str:
    """Build a bundle's engines for the GPU of this machine.

    Args:
        bundle: takes them.
        progress: told what is done, steps done, and steps in all.

    Returns:
        a line for people: what was built, or why nothing was: there is no library or no GPU, or
        the library does not compile for it.

    Raises:
        ParityError: a rewritten graph departs from the original.
    """
    backend = default_backend()
    try:
        library = tensorrt_library(backend)
        gpu = gpu_of_this_machine()
        if gpu is None:
            return f"no engine was built: {library} is here, but no NVIDIA GPU"
        build_engines(
            bundle,
            backend=backend,
            targets=[gpu[1]] if library.compiles_for_a_list else None,
            report=lambda name, phase, done, steps: progress(f"{name}: {phase}", done, steps),
        )
    except (UnavailableError, InputError) as exc:  # a GPU that it does not know is an InputError
        return f"no engine was built: {exc}"
    return f"engines were built with {library} for {gpu[0]}"
