"""What the steps of ``first_gpu.py`` share: a row of the table, and what is tried.

A step is a generator of rows, so that the rows before a failure are kept. A row's verdict is

    ok               it was compared with something, and is as it must be
    told             a fact, which nothing here judges
    does not apply   was not done; the row says why
    FAILED           was compared, and is not as it must be; the step raises after its last row

A step opens the device for itself and gives it back, so that the next one meets a device as a new
process does, and so that the builder has all of its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.library import tensorrt_library
from openvis_rt.engines.plan import BuildOptions, Sidecar, find_plan
from openvis_rt.runtime.backends.tensorrt.bindings import CudaChoice, open_cuda
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.verify.reference import Reference

OK, TOLD, NOT_HERE, FAILED = "ok", "told", "does not apply", "FAILED"

Image8 = npt.NDArray[np.uint8]

DISTINCT = 40  # frames of the generated video, which then repeats
NETWORKS = ("propose", "embed", "classify")


class Row(NamedTuple):
    """One line of the table."""

    what: str
    found: str
    verdict: str


@dataclass
class Work:
    """What is tried, and how.

    Attributes:
        bundle, reference: the model, and PyTorch's answers that it holds.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        cuda: the CUDA binding.
        frames: of the long video.
        compared: frames that are compared bit for bit.
        size: height and width of the generated video, where the bundle takes any.
        options, verify: of the builds.
        tell: told what is being done, steps done and in all.
        details: what is too long for a row, for the JSON.
    """

    bundle: Bundle
    reference: Reference
    backend: str
    cuda: CudaChoice = "auto"
    frames: int = 2000
    compared: int = 50
    size: tuple[int, int] = (720, 1280)
    options: BuildOptions = field(default_factory=BuildOptions)
    verify: bool = True
    tell: Callable[[str, int, int | None], None] = lambda *_: None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def precisions(self) -> list[str]:
        """Of the bundle, the widest first."""
        return list(self.bundle.manifest.graphs)

    @property
    def networks(self) -> list[str]:
        """Graphs that see the frames, in their order."""
        return [name for name in NETWORKS if name in self.bundle.graphs]

    @cached_property
    def pictures(self) -> list[Image8]:
        """Distinct frames of the generated video."""
        height, width = self.bundle.manifest.preprocess.source_size or self.size
        made = sample_frames(width=width, height=height, seconds=DISTINCT / 25)
        return [image for image, _ in made]

    def video(self, count: int) -> Iterator[Image8]:
        """So many frames."""
        return islice(cycle(self.pictures), count)

    def image_embeddings(self, count: int) -> npt.NDArray[np.float32] | None:
        """CLIP's of so many frames, for a model whose bundle does not compute them."""
        known = self.reference.arrays.get("image_embeddings")
        if known is None:
            return None
        return known[np.arange(count) % len(known)].astype(np.float32)

    def engine(self, graph: str, precision: str) -> tuple[Path, Sidecar]:
        """The engine that a session of this graph would load."""
        with closing(open_cuda(self.cuda)) as cuda:
            capability = cuda.capability
        library = tensorrt_library(self.backend)
        return find_plan(
            self.bundle,
            graph,
            precision,
            backend=self.backend,
            version=library.version,
            capability=capability,
        )
