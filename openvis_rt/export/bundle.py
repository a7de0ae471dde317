"""A model to a bundle: trace every graph, compare it with PyTorch, write it aside and rename."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
from safetensors.torch import save_file
from torch import nn

from openvis_rt.bundle.attention import long_attention
from openvis_rt.bundle.bundle import (
    MANIFEST,
    TOKENIZER,
    TRACKER,
    Bundle,
    GraphFile,
    Manifest,
    Preprocess,
    write_manifest,
)
from openvis_rt.bundle.contract import LARGEST_SIDE, LONGEST_WINDOW
from openvis_rt.compare.differences import Difference
from openvis_rt.compare.torch_reference import TorchReference, compare_with_torch
from openvis_rt.errors import InputError, ParityError
from openvis_rt.export.fp16.convert import fp16_from_fp32
from openvis_rt.export.fp16.parity import compare_fp16_with_torch
from openvis_rt.export.graph_module import graph_modules
from openvis_rt.export.masks import masks_graph
from openvis_rt.export.onnx_export import OPSET, add_metadata, onnx_from_module
from openvis_rt.export.tokenizer import write_tokenizer
from openvis_rt.files import output_directory
from openvis_rt.geometry import resized_size
from openvis_rt.models.clip import picture_side
from openvis_rt.models.network import Network
from openvis_rt.systems.graphs import PRECISIONS, GraphSpec
from openvis_rt.systems.system import Variant

__all__ = [
    "ExportResult",
    "checked_precisions",
    "checked_size",
    "checked_window_length",
    "export_bundle",
    "sized_graphs",
    "tool_versions",
]

_WIDE = frozenset({"masks"})  # nothing in it may be converted to FP16

_STRETCH = 1.02  # of a picture's shape, by rounding to whole pixels

Progress = Callable[[str, int, int], None]
"""Called with what is done now, steps done, and steps in all."""


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        bundle: that was written.
        differences: each file's largest differences from PyTorch FP32.
        left_out: by precision, why the bundle has none of it; empty if it has all.
    """

    bundle: Bundle
    differences: list[Difference]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What should be known of the bundle before engines are built from it."""
        told = (
            long_attention(self.bundle, graph, file.precision)
            for files in self.bundle.manifest.graphs.values()
            for graph, file in files.items()
        )
        return [text for text in dict.fromkeys(told) if text]


def export_bundle(
    model: Network,
    output: Path,
    *,
    network_size: tuple[int, int] | None = None,
    source_size: tuple[int, int] | None = None,
    window_length: int | None = None,
    precisions: Sequence[str] | None = None,
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
        network_size: (H, W) of the frames that the network sees, pixels; None for the model's rule
            on a 16:9 video. The graph pads it to the model's divisor.
        source_size: (Hs, Ws) of the source video: then `propose` takes frames of this size and
            resizes them itself, and `masks` makes masks of this size. None: the host resizes.
        window_length: most frames of a window, for models that take windows; None for the released
            one.
        precisions: of :data:`PRECISIONS`, at least one; none is left out. None for both, but only
            FP32 if these weights cannot be FP16. Every graph is traced once; its FP16 version is
            made from the FP32 one in memory.
        checkpoint: where the weights came from, for the manifest.
        overwrite: replace an existing bundle; no other directory is replaced.
        verify: run every graph in ONNX Runtime against PyTorch on a random input.
        progress: told before each step.

    Raises:
        InputError: a size, window length or precision that cannot be exported, or weights beyond
            FP16's range where FP16 is asked for.
        OutputError: ``output`` exists or cannot be written.
        ParityError: a graph's outputs are not PyTorch's; nothing was written.
    """
    size = checked_size(model.variant, network_size, source_size)
    length = checked_window_length(model.variant, window_length)
    wanted = checked_precisions(PRECISIONS if precisions is None else precisions)
    tools = tool_versions()
    facts = {
        "openvis_rt": tools["openvis-rt"],
        "variant": model.variant.name,
        "checkpoint": checkpoint,
    }
    with output_directory(output, overwrite=overwrite, ours=_is_bundle) as folder:
        work = _Export(folder, wanted, facts, model, verify=verify, progress=progress)
        work.fp16_is_required = precisions is not None
        try:
            work.write_graphs(size, source_size)
        except ParityError as exc:
            raise ParityError(f"{exc} Nothing was written.") from exc
        work.step("writing the manifest")
        others = _write_companions(model, folder)
        preprocess = _preprocess(model.variant, size, source_size)
        manifest = _manifest(model, work.files, preprocess, length, checkpoint, tools)
        write_manifest(folder, manifest, others)
    return ExportResult(Bundle.open(output, verify=False), work.differences, work.left_out)


class _Export:
    """Files of one export as they are written, one traced graph after the other.

    Attributes:
        files: for the manifest, by precision and graph.
        differences: of every file that was compared with PyTorch.
        fp16_is_required: else FP16 is left out if it cannot be had.
        left_out: by precision, why it was left out.
    """

    def __init__(
        self,
        folder: Path,
        precisions: tuple[str, ...],
        facts: dict[str, Any],
        model: Network,
        *,
        verify: bool,
        progress: Progress,
    ) -> None:
        self._folder, self._facts, self._model = folder, facts, model
        self._verify, self._progress, self._done = verify, progress, 0
        self.files: dict[str, dict[str, GraphFile]] = {p: {} for p in precisions}
        self.differences: list[Difference] = []
        self.fp16_is_required, self.left_out = True, dict[str, str]()
        self._steps = self._steps_with(model.graphs)

    def step(self, phase: str) -> None:
        """Tell what is done now."""
        self._progress(phase, self._done, self._steps)
        self._done += 1

    def write_graphs(self, size: tuple[int, int], source: tuple[int, int] | None) -> None:
        """Trace every graph and write it in every precision; sizes as :func:`sized_graphs`."""
        specs, padded = sized_graphs(self._model, size, source)
        modules = graph_modules(self._model, padded, size, source)
        names = list(specs)
        for place, (name, spec) in enumerate(specs.items(), 1):
            self.step(f"exporting {name}")
            if name == "masks":
                frame = source or size
                graph = masks_graph(
                    spec, padded_size=padded, network_size=size, frame_size=frame, opset=OPSET
                )
            else:
                graph = onnx_from_module(modules[name], spec)
            self._write(graph, spec, modules[name])
            self._steps = self._steps_with(names[place:])  # fewer, once a precision is left out

    def _steps_with(self, graphs: Collection[str]) -> int:
        """Steps in all, if these graphs are not written yet."""
        alone, count = len(_WIDE.intersection(graphs)), len(graphs)
        narrow = count - alone if "fp16" in self.files else 0
        wide = count if "fp32" in self.files else alone
        return self._done + count + narrow + (narrow + wide) * self._verify + 1

    def _write(self, model: onnx.ModelProto, spec: GraphSpec, module: nn.Module) -> None:
        """Write a traced graph in every precision, each compared with the module."""
        reference = TorchReference(spec, module)
        wide = GraphFile(f"{spec.name}.onnx", "fp32", spec)
        alone = spec.name in _WIDE  # one file for every precision
        if "fp32" in self.files or alone:
            path = self._save(model, wide, {})
            if self._verify:
                self.step(f"comparing {wide.file} with PyTorch")
                self.differences += compare_with_torch(path, spec, reference)
        for precision in self.files:
            self.files[precision][spec.name] = wide
        if "fp16" in self.files and not alone:
            try:
                self.files["fp16"][spec.name] = self._write_fp16(model, spec, reference)
            except (InputError, ParityError) as exc:
                if self.fp16_is_required:
                    raise
                self._leave_fp16_out(str(exc))

    def _write_fp16(
        self, model: onnx.ModelProto, spec: GraphSpec, reference: TorchReference
    ) -> GraphFile:
        self.step(f"converting {spec.name} to FP16")
        half = fp16_from_fp32(model, spec)
        file = GraphFile(f"{spec.name}.fp16.onnx", "fp16", half.spec)
        self._save(half.model, file, {"kept_in_fp32": half.kept})
        if self._verify:
            self.step(f"comparing {file.file} with PyTorch")
            self.differences += compare_fp16_with_torch(half, model, reference)
        return file

    def _leave_fp16_out(self, why: str) -> None:
        del self.files["fp16"]
        self.left_out["fp16"] = why
        self.differences = [d for d in self.differences if d.precision != "fp16"]
        for path in self._folder.glob("*.fp16.onnx"):
            path.unlink()

    def _save(self, model: onnx.ModelProto, file: GraphFile, facts: dict[str, Any]) -> Path:
        add_metadata(model, file.spec, {"precision": file.precision, **facts, **self._facts})
        path = self._folder / file.file
        onnx.save_model(model, path)
        onnx.checker.check_model(path, full_check=True)
        return path


def tool_versions() -> dict[str, str]:
    """Versions of what takes part in an export."""
    found = {"python": platform.python_version()}
    for name in ("openvis-rt", "torch", "onnx", "onnxscript", "open_clip_torch", "timm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def checked_precisions(precisions: Sequence[str]) -> tuple[str, ...]:
    """The wanted ones in the order of :data:`PRECISIONS`, each once.

    Raises:
        InputError: one is not known, or there is none.
    """
    unknown = [p for p in precisions if p not in PRECISIONS]
    if unknown or not precisions:
        raise InputError(
            f"cannot export in {', '.join(map(repr, unknown)) or 'no precision'}; give one or more "
            f"of: {', '.join(PRECISIONS)}"
        )
    return tuple(p for p in PRECISIONS if p in precisions)


def checked_size(
    variant: Variant, size: tuple[int, int] | None, source: tuple[int, int] | None
) -> tuple[int, int]:
    """The network's frame, (H, W) in pixels, before the graph pads it.

    Args:
        variant: whose rule holds where ``size`` is None: on the source, or else on 16:9.
        size, source: as ``network_size`` and ``source_size`` of :func:`export_bundle`.

    Raises:
        InputError: it, or the source's frame, cannot be exported.
    """
    rule = resized_size(*(source or (1080, 1920)), variant.short_side, variant.max_side)
    size, divisor = size or rule, variant.size_divisor
    if min(size) < divisor:
        raise InputError(
            f"size {size[0]}x{size[1]} is too small: both sides must be at least {divisor} pixels"
        )
    for height, width in (size, source or size):
        if max(height, width) > LARGEST_SIDE:
            raise InputError(
                f"size {height}x{width} is too large: sizes go up to {LARGEST_SIDE} pixels a side; "
                f"the default of {variant.name} is {rule[0]}x{rule[1]}"
            )
    if source is None:
        return size
    stretch = (size[1] / size[0]) / (source[1] / source[0])
    if not 1 / _STRETCH <= stretch <= _STRETCH:
        raise InputError(
            f"a source of {source[0]}x{source[1]} would be stretched to {size[0]}x{size[1]}; give "
            "sizes of the same shape, or leave --size out for the model's rule"
        )
    return size


def checked_window_length(variant: Variant, wanted: int | None) -> int:
    """Most frames of a window: the wanted ones, or the released number.

    Raises:
        InputError: the model takes no windows, or none of that length.
    """
    if wanted is None:
        return variant.window_length
    if variant.window_length == 1 and wanted != 1:
        raise InputError(f"{variant.name} works frame by frame, and takes no --window-length")
    if not 1 <= wanted <= LONGEST_WINDOW:
        raise InputError(f"windows have 1 to {LONGEST_WINDOW} frames; got --window-length {wanted}")
    return wanted


def sized_graphs(
    model: Network, size: tuple[int, int], source: tuple[int, int] | None
) -> tuple[dict[str, GraphSpec], tuple[int, int]]:
    """The graphs of a network with every size filled in, but for the dynamic axes.

    Args:
        model: the network.
        size: (H, W) of its frames, pixels.
        source: (H, W) of the source's frames where the graphs resize.

    Returns:
        the graphs, and the frames' size with their padding.
    """
    variant = model.variant
    height, width = (side + -side % variant.size_divisor for side in size)
    side = 0 if model.clip_model is None else picture_side(model.clip_model)
    sizes = {
        **model.sizes(),
        "D": variant.embed_dim,
        "Cf": variant.feature_channels[-1],
        "H": (source or size)[0],
        "W": (source or size)[1],
        "h": height // 4,
        "w": width // 4,
        "hp": height // 32,
        "wp": width // 32,
        "P": (height // model.patch) * (width // model.patch),
        "Hc": source[0] if source else side,
        "Wc": source[1] if source else side,
    }
    if variant.window_length == 1:
        sizes["T"] = 1
    specs = {name: spec.with_sizes(sizes) for name, spec in model.graphs.items()}
    return specs, (height, width)


def _is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _write_companions(model: Network, folder: Path) -> list[str]:
    """The files beside the graphs: the tokenizer and the tracker's weights, where there are any."""
    written = []
    if "text" in model.graphs:
        write_tokenizer(folder / TOKENIZER)
        written.append(TOKENIZER)
    if model.recurrence:
        save_file({k: v.contiguous() for k, v in model.recurrence.items()}, folder / TRACKER)
        written.append(TRACKER)
    return written


def _preprocess(
    variant: Variant, size: tuple[int, int], source_size: tuple[int, int] | None
) -> Preprocess:
    return Preprocess(
        network_size=size,
        source_size=source_size,
        short_side=variant.short_side,
        max_side=variant.max_side,
        size_divisor=variant.size_divisor,
        pixel_mean=variant.pixel_mean,
    )


def _manifest(
    model: Network,
    files: dict[str, dict[str, GraphFile]],
    preprocess: Preprocess,
    window_length: int,
    checkpoint: dict[str, Any],
    tools: dict[str, str],
) -> Manifest:
    variant = model.variant
    return Manifest(
        system=variant.system,
        variant=variant.name,
        graphs=files,
        preprocess=preprocess,
        tracker=model.tracker,
        score=model.score,
        window_length=window_length,
        detections=variant.detections,
        prompts=variant.prompts,
        text_sha256=_text_digest(model),
        checkpoint=checkpoint,
        tools=tools,
    )


def _text_digest(model: Network) -> str:
    """Digest of the weights that text embeddings depend on; empty without CLIP."""
    if model.clip_model is None:
        return ""
    digest = hashlib.sha256()
    for key, value in sorted(model.clip_model.state_dict().items()):
        if not key.startswith("visual.") and key != "logit_scale":
            digest.update(key.encode())
            digest.update(value.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
