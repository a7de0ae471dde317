"""Compiled kernels of TensorRT-RTX, kept beside the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from openvis_rt.engines.api import Context, Engine, RuntimeCache, RuntimeConfig
from openvis_rt.errors import OutputError
from openvis_rt.files import output_file

__all__ = ["KernelCache"]


class KernelCache:
    """TensorRT-RTX compiles kernels when an engine is first run on a GPU; this keeps them on disk.

    For TensorRT, whose engines hold their kernels, it does nothing. The library checks what it
    reads against its version and the GPU, so a foreign or damaged cache is only not used.

    Args:
        engine: that was loaded.
        plan: its file.
        tell: told before kernels are compiled, since that takes minutes.
        cuda_graphs: let TensorRT-RTX make CUDA graphs.

    Attributes:
        were_kept: whether an earlier run's kernels are used.
    """

    def __init__(
        self, engine: Engine, plan: Path, tell: Callable[[str], None], *, cuda_graphs: bool = True
    ) -> None:
        self._path, self._tell, self._cuda_graphs = plan.with_suffix(".kernels"), tell, cuda_graphs
        self.were_kept = False
        self._config: RuntimeConfig | None = None
        self._cache: RuntimeCache | None = None
        self._loaded, self._saved = b"", False
        if not hasattr(engine, "create_runtime_config"):
            return  # TensorRT 10
        config = engine.create_runtime_config()
        if hasattr(config, "create_runtime_cache"):
            self._config, self._cache = config, config.create_runtime_cache()
            self._load(self._cache, plan.stem)

    @property
    def captures(self) -> bool:
        """The library makes CUDA graphs by itself."""
        return self._cache is not None

    def context(self, engine: Engine) -> Context | None:
        """An execution context of TensorRT-RTX, or None if the device cannot hold one."""
        assert self._cache is not None
        assert self._config is not None
        self._config.set_runtime_cache(self._cache)
        strategy = type(self._config.cuda_graph_strategy)
        self._config.cuda_graph_strategy = (
            strategy.WHOLE_GRAPH_CAPTURE if self._cuda_graphs else strategy.DISABLED
        )
        return engine.create_execution_context(self._config)

    def _load(self, cache: RuntimeCache, engine: str) -> None:
        """What an earlier run compiled, or a word that it takes minutes now."""
        found = self._path.is_file()
        if found:
            self._loaded = self._path.read_bytes()
            self.were_kept = cache.deserialize(self._loaded)
        if not self.were_kept:
            self._tell(
                f"TensorRT-RTX compiles the kernels of {engine} for this GPU"
                + ", as those that were kept are of another GPU or version of it" * found
                + "; that takes up to minutes, and later starts find them kept"
            )

    def save_once(self) -> None:
        """Write what the first run compiled; later calls do nothing."""
        if not self._saved:
            self.save()

    def save(self) -> None:
        """Write the kernels if there are new ones; a bundle that takes no files goes without."""
        self._saved = True
        if self._cache is None:
            return
        kernels = bytes(memoryview(self._cache.serialize()))
        if kernels == self._loaded:
            return
        try:
            with output_file(self._path) as partial:
                partial.write_bytes(kernels)
        except OutputError:
            return
        self._loaded = kernels
