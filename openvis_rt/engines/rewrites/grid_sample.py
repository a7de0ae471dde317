"""GridSample as plain gathers, for TensorRT, which computes GridSample wrongly in several releases.

A point ``(gx, gy)`` of the grid, -1..1 from the image's left (top) edge to its right (bottom) edge,
lies at

    x = ((gx + 1) W - 1) / 2,    y = ((gy + 1) H - 1) / 2

in pixels, where pixel 0 has its centre at 0 (``align_corners`` 0). Bilinear sampling with zeros
around the image is a sum of hat functions ``hat(d) = max(0, 1 - |d|)`` over all pixels of the
image:

    out[n, c, p] = sum_ij  hat(y_p - i) hat(x_p - j) value[n, c, i, j]

Pixels outside it are not in the sum, which is the zero padding. At most two pixels of an axis have
a hat above zero, and both are among the neighbours ``l`` and ``l + 1`` with

    l = min(max(floor(x), 0), W - 2)

Inside the image that is the usual pair, and beyond an edge it is the edge's last pair, whose hats
fall to zero by themselves. So no index leaves the image, no copy of it is padded, nothing has to be
masked, and points at any distance, infinite ones too, give 0.

The layout suits a GPU: the value becomes rows of C contiguous channels, ``[N H W, C]``, and one
Gather of whole rows brings all four neighbours, which are then weighted and summed. Coordinates are
computed in FP32 in the order of the equations above, which is PyTorch's.

C, H and W are numbers of the file. The batch N may be a symbol, such as the frames of a window
times heads; then the first row of each picture in it, ``n H W``, is computed in the graph.

In an FP16 graph the value is FP16 behind a Cast to FP32. The rows are gathered as they are before
that Cast and become FP32 after the Gather: the same numbers for half the memory traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

from openvis_rt.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["GridSampleSite", "Nodes", "find_grid_samples", "replace_grid_sample", "with_nodes"]

_OP = "GridSample"

Shape = tuple[int | None, int, int, int]


def replace_grid_sample(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` in which every GridSample is gather-based bilinear sampling.

    Names of the graph's inputs, outputs and other tensors stay as they are.

    Raises:
        EngineError: a GridSample is not 4-D FP32 bilinear with zeros padding and ``align_corners``
            0, its value's C, H or W is not a number, or it stands in a subgraph or a local
            function.
    """
    sites = {site.position: site for site in find_grid_samples(model)}
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    for position, node in enumerate(model.graph.node):
        if position not in sites:
            nodes.append(node)
            continue
        gathers = sites[position].gathers(node.output[0])
        nodes.extend(gathers.nodes)
        constants.extend(gathers.constants)
    return with_nodes(model, _without_idle_casts(model, nodes, sites.values()), constants)


def with_nodes(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    """A copy of ``model`` with other nodes in its graph and more initializers."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(constants)
    return result


@dataclass(frozen=True)
class GridSampleSite:
    """A GridSample that can be replaced.

    Attributes:
        node: of the model's own graph.
        position: of the node in that graph.
        prefix: unique in the model; the names of the replacement begin with it.
        shape: [N, C, H, W] of the sampled value; N is None where it is a symbol.
        half: the FP16 tensor that a Cast makes the sampled value from, if one does.
    """

    node: onnx.NodeProto
    position: int
    prefix: str
    shape: Shape
    half: str | None

    def gathers(self, output: str) -> Nodes:
        """Nodes that compute what this node computes, into the tensor ``output``."""
        nodes = Nodes(self.prefix)
        value, grid = self.half or self.node.input[0], self.node.input[1]
        _append_sampling(nodes, value, grid, output, self.shape, fp16=self.half is not None)
        return nodes


def find_grid_samples(model: onnx.ModelProto) -> list[GridSampleSite]:
    """Every GridSample of ``model``, in order; the errors of :func:`replace_grid_sample`."""
    _refuse_nested(model)
    found = [(i, node) for i, node in enumerate(model.graph.node) if _is_grid_sample(node)]
    casts = {node.output[0]: node for node in model.graph.node if _is_cast(node)}
    types = _tensor_types(model, casts) if found else {}
    sites = []
    for position, node in found:
        _check_attributes(node)
        prefix = f"{node.name or _OP}/gathers{position}"
        cast = casts.get(node.input[0])
        half = cast.input[0] if cast and _is_half(types.get(cast.input[0])) else None
        sites.append(GridSampleSite(node, position, prefix, _known_shape(node, types), half))
    return sites


class Nodes:
    """Nodes and constants under one prefix, in the order in which they are made."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """The name of a new initializer."""
        name = f"{self.prefix}/c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """The name of a new node's only output, ``output`` if given."""
        name = f"{self.prefix}/{op}_{len(self.nodes)}"
        output = output or name
        self.nodes.append(helper.make_node(op, list(inputs), [output], name, **attributes))
        return output

    def split_xy(self, pair: str) -> tuple[str, str]:
        """[..., 2] as two tensors [..., 1]."""
        name = f"{self.prefix}/Split_{len(self.nodes)}"
        halves = (f"{name}:x", f"{name}:y")
        sizes = self.constant([1, 1], np.int64)
        self.nodes.append(helper.make_node("Split", [pair, sizes], halves, name, axis=-1))
        return halves


def _append_sampling(
    g: Nodes, value: str, grid: str, output: str, shape: Shape, *, fp16: bool
) -> None:
    """Sample ``value`` [N, C, H, W] at ``grid`` [N, P, Q, 2] into ``output`` [N, C, P, Q].

    The value is FP32, or FP16 if ``fp16``; everything else is FP32.
    """
    batch, channels, height, width = shape
    # x and y together, as the last axis holds them: [N, P, Q, 2]
    half, one = g.constant(0.5, np.float32), g.constant(1, np.float32)
    size = g.constant([width, height], np.float32)
    last = g.constant([max(width - 2, 0), max(height - 2, 0)], np.float32)
    scaled = g.add("Mul", g.add("Add", grid, one), size)
    pixel = g.add("Mul", g.add("Sub", scaled, one), half)
    first = g.constant(0, np.float32)
    low = g.add("Min", g.add("Max", g.add("Floor", pixel), first), last)
    distance = g.add("Sub", pixel, low)
    hat_low = g.add("Relu", g.add("Sub", one, g.add("Abs", distance)))
    hat_high = g.add("Relu", g.add("Sub", one, g.add("Abs", g.add("Sub", distance, one))))

    # row of the low neighbours in [N H W, C]: (n H + y) W + x, [N, P, Q]
    column, line = g.split_xy(g.add("Cast", low, to=onnx.TensorProto.INT32))
    corner = g.add("Add", g.add("Mul", line, g.constant(width, np.int32)), column)
    corner = g.add("Squeeze", corner, g.constant([-1], np.int64))
    corner = g.add("Add", corner, _append_starts(g, grid, batch, height * width))

    rows = g.add("Transpose", value, perm=[0, 2, 3, 1])
    count = -1 if batch is None else batch * height * width
    rows = g.add("Reshape", rows, g.constant([count, channels], np.int64))
    hats = [g.split_xy(hat_low), g.split_xy(hat_high)]
    pairs = [(dy, dx) for dy in range(min(height, 2)) for dx in range(min(width, 2))]
    steps = g.constant([dy * width + dx for dy, dx in pairs], np.int32)  # k neighbours, at most 4
    across = g.add("Concat", *(hats[dx][0] for _, dx in pairs), axis=-1)  # [N, P, Q, k]
    down = g.add("Concat", *(hats[dy][1] for dy, _ in pairs), axis=-1)
    end = g.constant([-1], np.int64)
    row = g.add("Add", g.add("Unsqueeze", corner, end), steps)  # [N, P, Q, k]
    weight = g.add("Unsqueeze", g.add("Mul", across, down), end)
    found = g.add("Gather", rows, row, axis=0)  # [N, P, Q, k, C]
    if fp16:
        found = g.add("Cast", found, to=onnx.TensorProto.FLOAT)
    terms = g.add("Mul", found, weight)
    total = g.add("ReduceSum", terms, g.constant([3], np.int64), keepdims=0)
    g.add("Transpose", total, output=output, perm=[0, 3, 1, 2])


def _append_starts(g: Nodes, grid: str, batch: int | None, size: int) -> str:
    """First row of each picture in the rows, n * size: INT32 [N, 1, 1].

    A constant where the batch is known; else counted up to the first size of ``grid``.
    """
    if batch is not None:
        return g.constant(np.arange(batch).reshape(batch, 1, 1) * size, np.int32)
    number = g.add("Squeeze", g.add("Shape", grid, start=0, end=1))
    zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
    pictures = g.add("Cast", g.add("Range", zero, number, one), to=onnx.TensorProto.INT32)
    starts = g.add("Mul", pictures, g.constant(size, np.int32))
    return g.add("Reshape", starts, g.constant([-1, 1, 1], np.int64))


def _without_idle_casts(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], sites: Iterable[GridSampleSite]
) -> list[onnx.NodeProto]:
    """The nodes without those casts to FP32 whose only readers were replaced."""
    used = {output.name for output in model.graph.output}
    used.update(name for node in nodes for name in _names_read(node))
    idle = {site.node.input[0] for site in sites if site.half} - used
    return [node for node in nodes if not idle.intersection(node.output)]


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for graph in _subgraphs(node):
        for inner in graph.node:
            yield from _names_read(inner)


def _is_grid_sample(node: onnx.NodeProto) -> bool:
    return node.op_type == _OP and node.domain in ("", "ai.onnx")


def _is_cast(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and node.domain in ("", "ai.onnx")


def _is_half(kind: onnx.TypeProto.Tensor | None) -> bool:
    return kind is not None and kind.elem_type == onnx.TensorProto.FLOAT16


def _refuse_nested(model: onnx.ModelProto) -> None:
    inner = [node for function in model.functions for node in function.node]
    inner += [n for node in model.graph.node for graph in _subgraphs(node) for n in graph.node]
    while inner:
        node = inner.pop()
        if _is_grid_sample(node):
            raise EngineError(
                f"GridSample {node.name!r} stands in a subgraph or a local function; only those "
                "of the main graph are replaced. Export without control flow, functions inlined."
            )
        inner += [n for graph in _subgraphs(node) for n in graph.node]


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _check_attributes(node: onnx.NodeProto) -> None:
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    mode = found.get("mode", b"bilinear").decode()
    padding = found.get("padding_mode", b"zeros").decode()
    align = int(found.get("align_corners", 0))
    # opset 16 says bilinear, opset 20 linear
    if mode not in ("bilinear", "linear") or padding != "zeros" or align != 0:
        raise EngineError(
            f"GridSample {node.name!r} has mode {mode}, padding_mode {padding}, align_corners "
            f"{align}; only bilinear, zeros, 0 can be replaced by gathers."
        )


def _tensor_types(
    model: onnx.ModelProto, casts: Mapping[str, onnx.NodeProto]
) -> dict[str, onnx.TypeProto.Tensor]:
    """Type and shape of every tensor that the file, or else shape inference, knows."""
    graph = model.graph
    values = [node.input[0] for node in graph.node if _is_grid_sample(node)]
    values += [casts[value].input[0] for value in values if value in casts]
    types = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        types[tensor.name] = info.type.tensor_type
    if all(value in types and None not in _dimensions(types[value]) for value in values):
        return types
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    types.update((v.name, v.type.tensor_type) for v in inferred.value_info)
    return types


def _dimensions(kind: onnx.TypeProto.Tensor) -> list[int | None]:
    return [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]


def _known_shape(node: onnx.NodeProto, types: dict[str, onnx.TypeProto.Tensor]) -> Shape:
    """[N, C, H, W] of the sampled value; N may be None."""
    kind = types.get(node.input[0], onnx.TypeProto.Tensor())
    dims = _dimensions(kind)
    picture = [d for d in dims[1:] if d is not None]
    if len(dims) != 4 or len(picture) != 3 or kind.elem_type != onnx.TensorProto.FLOAT:
        raise EngineError(
            f"GridSample {node.name!r} samples {node.input[0]!r} of type "
            f"{onnx.TensorProto.DataType.Name(kind.elem_type)} and shape "
            f"[{', '.join('?' if d is None else str(d) for d in dims)}]; only FLOAT [N, C, H, W] "
            "with known C, H and W can be replaced by gathers. Export with a fixed size."
        )
    channels, height, width = picture
    return dims[0], channels, height, width
