"""What ``bundle.json`` says, as dataclasses; :mod:`openvis_rt.records` makes JSON of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from openvis_rt.systems.graphs import GraphSpec
from openvis_rt.systems.system import Score, Tracker

__all__ = ["SCHEMA", "FileEntry", "GraphFile", "Manifest", "Preprocess"]

SCHEMA = "5.0"
"""Major and minor version of the manifest. A new field that older readers may pass over raises the
minor version; anything else raises the major one."""


@dataclass(frozen=True)
class Preprocess:
    """How a source frame becomes the input of `propose`.

    Attributes:
        network_size: (H, W) of ``frames``, pixels.
        source_size: (Hs, Ws) if the graph resizes by itself, and then ``frames`` has this size;
            else None.
        short_side, max_side: the model's resize rule, pixels.
        size_divisor: the graph pads to multiples of it.
        pixel_mean: RGB for 0..255; the host fills what the picture leaves free with it.
    """

    network_size: tuple[int, int]
    source_size: tuple[int, int] | None
    short_side: int
    max_side: int
    size_divisor: int
    pixel_mean: tuple[float, float, float]

    @property
    def mask_sizes(self) -> dict[str, tuple[int, ...]]:
        """What `masks` is given where no source tells: its overridable inputs, (H, W) in pixels."""
        frame = self.source_size or self.network_size
        return {"picture_size": self.network_size, "frame_size": frame}


@dataclass(frozen=True)
class GraphFile:
    """One graph in one precision.

    Attributes:
        file: its path inside the bundle.
        precision: in which it computes; a graph of which nothing may be FP16 stays ``fp32`` and
            serves an FP16 bundle as it is.
        spec: its tensors with their sizes filled in and the types that they have in this file.
    """

    file: str
    precision: str
    spec: GraphSpec


@dataclass(frozen=True)
class FileEntry:
    """A file as it was written: the hex SHA-256 and the number of its bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What ``bundle.json`` says.

    Attributes:
        system, variant: what it is of, as in :mod:`openvis_rt.systems`.
        graphs: for each precision, every graph by name; each precision has the same graphs.
        preprocess, tracker, score: see their classes.
        window_length: most frames of one call: the largest T of graphs that take windows, 1 for
            models that work frame by frame.
        detections: instances reported for one video.
        prompts: templates of the text classifier, ``{}`` stands for the name.
        text_sha256: digest of the text graph's weights, which is part of the key of the embedding
            cache; empty where there is no text graph.
        checkpoint: where the weights came from: ``file`` and ``sha256``, and the same of ``clip``
            where it was given beside; or ``random_weights`` (the seed).
        tools: versions of what made the bundle.
        gates: for each precision how close each output must be to PyTorch's, by output name, as
            :data:`openvis_rt.compare.differences.GATES`; what is missing is that table's.
        files: every file of the bundle, by its path inside it; what is not listed is no part of it.
        schema: ``major.minor``; :data:`SCHEMA` in what this version writes.
    """

    system: str
    variant: str
    graphs: dict[str, dict[str, GraphFile]]
    preprocess: Preprocess
    tracker: Tracker
    score: Score
    window_length: int
    detections: int
    prompts: tuple[str, ...]
    text_sha256: str
    checkpoint: dict[str, Any]
    tools: dict[str, str]
    gates: dict[str, dict[str, float]] = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)
    schema: str = SCHEMA

    @property
    def graph_files(self) -> frozenset[str]:
        """Paths inside the bundle of the graphs of every precision."""
        return frozenset(g.file for graphs in self.graphs.values() for g in graphs.values())
