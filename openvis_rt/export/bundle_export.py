"""A model to a bundle: trace every graph, hold it against PyTorch, write it aside and rename."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from openvis_rt.bundle import (
    MANIFEST,
    Bundle,
    GraphFile,
    Manifest,
    Preprocess,
    Tracker,
    write_manifest,
)
from openvis_rt.errors import InputError
from openvis_rt.export.masks import Masks, masks_graph
from openvis_rt.export.onnx_export import OPSET, add_metadata, onnx_from_module
from openvis_rt.export.resize import PillowResize
from openvis_rt.export.tokenizer import write_tokenizer
from openvis_rt.export.verify import Difference, compare_with_torch
from openvis_rt.export.wrappers import Classify, Propose, Text
from openvis_rt.files import output_directory
from openvis_rt.graphs import GRAPHS_OF_FAMILY, GraphSpec
from openvis_rt.models.clip_vis import ClipVis
from openvis_rt.variants import resized_size
from openvis_rt.vocabulary import VILD_PROMPTS

__all__ = ["ExportResult", "export_bundle", "tool_versions"]

_LARGEST = 8192  # pixels a side; an 8K frame
_STRETCH = 1.02  # of a picture's shape, by rounding to whole pixels

Progress = Callable[[str, int, int], None]
"""Called with what is done now, steps done, and steps in all."""


@dataclass(frozen=True)
class ExportResult:
    """A finished export: the bundle, and each graph's largest differences from PyTorch."""

    bundle: Bundle
    differences: list[Difference]


def export_bundle(
    model: ClipVis,
    output: Path,
    *,
    network_size: tuple[int, int] | None = None,
    source_size: tuple[int, int] | None = None,
    checkpoint: dict[str, Any],
    overwrite: bool = False,
    verify: bool = True,
    progress: Progress = lambda *_: None,
) -> ExportResult:
    """Export every graph of a model.

    Args:
        model: with its weights, in evaluation mode.
        output: the bundle's directory; it must not exist, or ``overwrite`` replaces it at the very
            end.
        network_size: (H, W) of the frames that the network sees, pixels; None for the family's rule
            on a 16:9 video. The graph pads it to the family's divisor.
        source_size: (Hs, Ws) of the source video: then `propose` takes frames of this size and
            resizes them itself, and `masks` makes masks of this size. None: the host resizes.
        checkpoint: where the weights came from, for the manifest.
        overwrite: replace an existing bundle; no other directory is replaced.
        verify: run every graph in ONNX Runtime against PyTorch on a random input.
        progress: told before each step.

    Raises:
        InputError: a size that cannot be exported.
        OutputError: ``output`` exists or cannot be written.
        ParityError: a graph's outputs are not PyTorch's.
    """
    variant = model.variant
    source = source_size or (1080, 1920)
    size = network_size or resized_size(*source, variant.short_side, variant.max_side)
    _check_sizes(size, source_size, variant.size_divisor)
    specs, padded = _sized_graphs(model, size, source_size)
    resize = None if source_size is None else PillowResize(source_size, size)
    modules: dict[str, nn.Module] = {
        "propose": Propose(model, resize),
        "classify": Classify(model),
        "text": Text(model),
        "masks": Masks(padded, size, source_size or size),
    }
    tools = tool_versions()
    facts = {"openvis_rt": tools["openvis-rt"], "variant": variant.name, "checkpoint": checkpoint}
    steps = len(specs) * (2 if verify else 1) + 1
    differences: list[Difference] = []
    done = 0
    with output_directory(output, overwrite=overwrite, ours=_is_bundle) as folder:
        for name, spec in specs.items():
            progress(f"exporting {name}", done, steps)
            if name == "masks":
                onnx_model = masks_graph(
                    spec,
                    padded_size=padded,
                    network_size=size,
                    frame_size=source_size or size,
                    opset=OPSET,
                )
            else:
                onnx_model = onnx_from_module(modules[name], spec)
            add_metadata(onnx_model, spec, facts)
            onnx.save_model(onnx_model, folder / f"{name}.onnx")
            onnx.checker.check_model(folder / f"{name}.onnx")
            done += 1
            if verify:
                progress(f"holding {name} against PyTorch", done, steps)
                differences += compare_with_torch(folder / f"{name}.onnx", spec, modules[name])
                done += 1
        progress("writing the manifest", done, steps)
        write_tokenizer(folder / "tokenizer" / "tokenizer.json")
        write_manifest(folder, _manifest(model, specs, size, source_size, checkpoint, tools))
    return ExportResult(Bundle.open(output, verify=False), differences)


def tool_versions() -> dict[str, str]:
    """Versions of what takes part in an export."""
    found = {"python": platform.python_version()}
    for name in ("openvis-rt", "torch", "onnx", "onnxscript", "open_clip_torch", "timm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _check_sizes(size: tuple[int, int], source: tuple[int, int] | None, divisor: int) -> None:
    if min(size) < divisor:
        raise InputError(
            f"size {size[0]}x{size[1]} is too small: both sides must be at least {divisor} pixels"
        )
    if max(*size, *(source or size)) > _LARGEST:
        raise InputError(
            f"sizes go up to {_LARGEST} pixels a side; the family's default is 480x853"
        )
    if source is None:
        return
    stretch = (size[1] / size[0]) / (source[1] / source[0])
    if not 1 / _STRETCH <= stretch <= _STRETCH:
        raise InputError(
            f"a source of {source[0]}x{source[1]} would be stretched to {size[0]}x{size[1]}; give "
            "sizes of the same shape, or leave --size out for the family's rule"
        )


def _sized_graphs(
    model: ClipVis, size: tuple[int, int], source: tuple[int, int] | None
) -> tuple[dict[str, GraphSpec], tuple[int, int]]:
    variant = model.variant
    divisor = variant.size_divisor
    height, width = (side + -side % divisor for side in size)
    sizes = {
        "N": model.sem_seg_head.predictor.query_feat.num_embeddings,
        "T": 1,
        "C": model.sem_seg_head.predictor.query_feat.embedding_dim,
        "D": variant.embed_dim,
        "Cf": variant.feature_channels[-1],
        "H": (source or size)[0],
        "W": (source or size)[1],
        "h": height // 4,
        "w": width // 4,
        "hp": height // 32,
        "wp": width // 32,
    }
    graphs = GRAPHS_OF_FAMILY[variant.family]
    return {name: spec.with_sizes(sizes) for name, spec in graphs.items()}, (height, width)


def _manifest(
    model: ClipVis,
    specs: dict[str, GraphSpec],
    size: tuple[int, int],
    source_size: tuple[int, int] | None,
    checkpoint: dict[str, Any],
    tools: dict[str, str],
) -> Manifest:
    variant = model.variant
    return Manifest(
        family=variant.family,
        variant=variant.name,
        graphs={
            "fp32": {name: GraphFile(f"{name}.onnx", "fp32", spec) for name, spec in specs.items()}
        },
        preprocess=Preprocess(
            network_size=size,
            source_size=source_size,
            short_side=variant.short_side,
            max_side=variant.max_side,
            size_divisor=variant.size_divisor,
            pixel_mean=variant.pixel_mean,
        ),
        tracker=Tracker("temporal-top-k", variant.tracker_frames, variant.tracker_top_k),
        detections=variant.detections,
        prompts=VILD_PROMPTS,
        text_sha256=_text_digest(model),
        checkpoint=checkpoint,
        tools=tools,
    )


def _text_digest(model: ClipVis) -> str:
    """Digest of the weights that text embeddings depend on."""
    digest = hashlib.sha256()
    clip = model.backbone.clip_model
    for key, value in sorted(clip.state_dict().items()):
        if not key.startswith("visual.") and key != "logit_scale":
            digest.update(key.encode())
            digest.update(value.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
