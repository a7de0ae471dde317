"""The bundle: a directory of graphs with a manifest that says what is in it and how to drive it.

    bundle.json              the manifest, below
    propose.onnx ...         one graph each; `propose.fp16.onnx` is the same in another precision
    tracker.safetensors      recurrence weights, where the tracker has any
    tokenizer/tokenizer.json CLIP's byte-pair tokenizer, in the `tokenizers` library's format
    text/<key>.safetensors   cached text embeddings, written at run time
    engines/<target>/        plans and their sidecars, written by `openvis build`

Every file that the export wrote stands in the manifest with its SHA-256, and the manifest carries
its own. Nothing in a bundle is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from openvis_rt.errors import BundleError
from openvis_rt.files import sha256_of
from openvis_rt.systems.graphs import GraphSpec

__all__ = [
    "SCHEMA",
    "Bundle",
    "GraphFile",
    "Manifest",
    "Preprocess",
    "Tracker",
    "write_manifest",
]

SCHEMA = 3
MANIFEST = "bundle.json"
TRACKER = "tracker.safetensors"


@dataclass(frozen=True)
class Preprocess:
    """How a source frame becomes the input of `propose`.

    Attributes:
        network_size: (H, W) of ``frames``, pixels.
        source_size: (Hs, Ws) if the graph resizes by itself, and then ``frames`` has this size;
            else None.
        short_side, max_side: the family's resize rule, pixels.
        size_divisor: the graph pads to multiples of it.
        pixel_mean: RGB for 0..255; the host fills what the picture leaves free with it.
    """

    network_size: tuple[int, int]
    source_size: tuple[int, int] | None
    short_side: int
    max_side: int
    size_divisor: int
    pixel_mean: tuple[float, float, float]


@dataclass(frozen=True)
class Tracker:
    """The association rule.

    Attributes:
        name: ``temporal-top-k`` (CLIP-VIS), with ``frames`` T and ``top_k`` K; or ``rollout``
            (InstFormer), with ``normalise_parts`` and ``video_score``, its recurrence in
            ``tracker.safetensors`` if it has one; or ``previous-frame`` (MinVIS); or
            ``previous-window`` (VideoOVFormer); or ``momentum`` (OV2Seg, OVFormerVideo), with
            ``alpha``, the weight of the newest frame.
        parameters: its own.
    """

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class GraphFile:
    """One graph in one precision.

    Attributes:
        file: its path inside the bundle.
        precision: in which it computes; a graph of which nothing may be narrowed stays ``fp32`` and
            serves a narrower bundle as it is.
        spec: its tensors with their sizes filled in and the types that they have in this file.
    """

    file: str
    precision: str
    spec: GraphSpec

    def to_json(self) -> dict[str, Any]:
        """The form that ``bundle.json`` holds."""
        return {"file": self.file, "precision": self.precision, "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> GraphFile:
        """Inverse of :meth:`to_json`."""
        spec = GraphSpec.from_json(entry["spec"])
        return cls(str(entry["file"]), str(entry["precision"]), spec)


@dataclass(frozen=True)
class Manifest:
    """What ``bundle.json`` says.

    Attributes:
        family, variant: the system and the model, as in :mod:`openvis_rt.systems.variants`.
        graphs: for each precision, every graph by name.
        preprocess, tracker: see their classes.
        window_length: most frames of one call: the largest T of graphs that take clips, 1 for models
            that work frame by frame.
        detections: instances reported for one video.
        prompts: templates of the text classifier, ``{}`` stands for the name.
        text_sha256: digest of the text graph's weights, which keys the embedding cache; empty where
            there is no text graph.
        checkpoint: where the weights came from: ``file`` and ``sha256``, and the same of ``clip``
            where it was given beside; or ``random_weights`` (the seed).
        tools: versions of what made the bundle.
        files: sha256 and bytes of every file, by its path inside the bundle.
    """

    family: str
    variant: str
    graphs: dict[str, dict[str, GraphFile]]
    preprocess: Preprocess
    tracker: Tracker
    window_length: int
    detections: int
    prompts: tuple[str, ...]
    text_sha256: str
    checkpoint: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON types, without its own digest."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        out["graphs"] = {
            precision: {name: graph.to_json() for name, graph in graphs.items()}
            for precision, graphs in self.graphs.items()
        }
        out["preprocess"], out["tracker"] = asdict(self.preprocess), asdict(self.tracker)
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Inverse of :meth:`to_json`; ``KeyError``, ``TypeError``, ``ValueError`` if malformed."""
        values = {f.name: data[f.name] for f in fields(cls)}
        values["graphs"] = {
            str(precision): {n: GraphFile.from_json(g) for n, g in graphs.items()}
            for precision, graphs in data["graphs"].items()
        }
        size = data["preprocess"]
        source = size["source_size"]
        values["preprocess"] = Preprocess(
            **{
                **size,
                "network_size": tuple(size["network_size"]),
                "source_size": tuple(source) if source else None,
                "pixel_mean": tuple(size["pixel_mean"]),
            }
        )
        values["tracker"] = Tracker(**data["tracker"])
        values["prompts"] = tuple(data["prompts"])
        return cls(**values)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, its manifest read and, unless told otherwise, its files checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Open a bundle.

        Args:
            path: its directory.
            verify: compare every file's SHA-256 with the manifest (about a second for 500 MB).

        Raises:
            BundleError: it is missing, unfinished, damaged, or of a schema that is not known here.
        """
        path = Path(path)
        bundle = cls(path, _read_manifest(path))
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Compare every file that the export wrote with the manifest.

        Raises:
            BundleError: a file is missing or has changed; the message names the first one.
        """
        for name, entry in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise BundleError(f"{file} is missing; {_MEND}")
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise BundleError(
                    f"{file} has {size} bytes, {entry['bytes']} were written; {_MEND}"
                )
            found = sha256_of(file)
            if found != entry["sha256"]:
                raise BundleError(
                    f"{file} was changed: its sha256 is {found[:16]}..., "
                    f"{entry['sha256'][:16]}... was written; {_MEND}"
                )

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs, in the order in which a frame meets them."""
        return tuple(next(iter(self.manifest.graphs.values())))

    def graph(self, name: str, precision: str = "fp32") -> GraphFile:
        """A graph's file, computing precision and tensors.

        Raises:
            BundleError: the bundle does not hold this graph in this precision.
        """
        found = self.manifest.graphs.get(precision, {}).get(name)
        if found is None:
            held = ", ".join(f"{p} ({', '.join(g)})" for p, g in self.manifest.graphs.items())
            raise BundleError(
                f"{self.path} holds no graph {name!r} in precision {precision!r}; it holds {held}"
            )
        return found

    def graph_path(self, name: str, precision: str = "fp32") -> Path:
        """The ONNX file of a graph; BundleError as in :meth:`graph`."""
        return self.path / self.graph(name, precision).file

    def graph_sha256(self, name: str, precision: str = "fp32") -> str:
        """Hex SHA-256 of a graph's ONNX file, from the manifest."""
        return str(self.manifest.files[self.graph(name, precision).file]["sha256"])


_MEND = "the bundle cannot be trusted: export it again with `openvis export`"


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write ``bundle.json`` into a finished directory, with the digest of every file in it.

    Args:
        path: the directory; every file below it that stands there now becomes part of the bundle.
        manifest: its ``files`` are replaced.
    """
    data = manifest.to_json()
    data["files"] = {
        file.relative_to(path).as_posix(): {
            "sha256": sha256_of(file),
            "bytes": file.stat().st_size,
        }
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    data = json.loads(json.dumps(data))  # tuples become lists, as they will be read back
    data["manifest_sha256"] = _digest(data)
    (path / MANIFEST).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _digest(data: dict[str, Any]) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if path.is_file():
        raise BundleError(
            f"{path} is a file, and a bundle is a directory; `openvis export` makes one"
        )
    if not path.is_dir():
        raise BundleError(f"{path} is not a bundle: there is no such directory")
    if not file.is_file():
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST} (an unfinished export leaves none)"
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        schema = data["schema"]
        if schema != SCHEMA:
            raise BundleError(
                f"{path} has bundle schema {schema}; this version of openvis-rt reads {SCHEMA}. "
                "Use the openvis-rt that wrote it, or export it again with this one."
            )
        digest = data.pop("manifest_sha256")
        if digest != _digest(data):
            raise BundleError(f"{file} was changed after it was written; {_MEND}")
        return Manifest.from_json(data)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BundleError(f"{file} is damaged ({type(exc).__name__}: {exc}); {_MEND}") from exc
