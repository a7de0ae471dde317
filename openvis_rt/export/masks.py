"""The `masks` graph, written by hand: it is a few nodes, and its output size is an input.

    mask_logits [N, T, h, w] --Gather(selected)--> [n, T, h, w]
      --bilinear--> padded size --crop--> network size --bilinear--> source size -- > 0 --> bool

as `sem_seg_postprocess` of the public evaluation does it. ``frame_size`` is an initializer that is
also an input: ONNX Runtime lets the caller override it, TensorRT takes its value as a constant. The
same in PyTorch is :class:`openvis_rt.models.masks.Masks`.

Eight pixels become a byte after it: on the host, where ONNX Runtime computes on the CPU, since
numpy takes 0.4 ms for eight masks of 1920x1080 and the fastest operators 6 ms; in the engines by
:mod:`openvis_rt.engines.rewrites.packing`, so that an eighth goes over the bus.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.systems.graphs import GraphSpec

__all__ = ["masks_graph"]


def masks_graph(
    spec: GraphSpec,
    *,
    padded_size: tuple[int, int],
    network_size: tuple[int, int],
    frame_size: tuple[int, int],
    opset: int,
) -> onnx.ModelProto:
    """Build the graph.

    Args:
        spec: `masks` of :mod:`openvis_rt.systems.graphs` with its sizes filled in.
        padded_size: height and width that the mask logits cover, pixels.
        network_size: the part of it, from the top left, that is the picture.
        frame_size: default size of the masks, pixels.
        opset: of the ONNX operators.
    """
    constants: dict[str, npt.NDArray[np.generic]] = {
        "padded_size": np.array(padded_size, np.int64),
        "crop_starts": np.zeros(2, np.int64),
        "picture_size": np.array(network_size, np.int64),
        "crop_axes": np.array([2, 3], np.int64),
        "zero": np.zeros((), np.float32),
        "frame_size": np.array(frame_size, np.int64),
    }
    _, frames, *_ = spec.inputs[0].shape
    resize = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    nodes = [
        helper.make_node("Gather", ["mask_logits", "selected"], ["chosen"], axis=0),
        # all four sizes: TensorRT's parser refuses Resize with `axes` where an axis is dynamic
        helper.make_node("Shape", ["chosen"], ["leading"], start=0, end=2),
        helper.make_node("Concat", ["leading", "padded_size"], ["padded_shape"], axis=0),
        helper.make_node("Concat", ["leading", "frame_size"], ["frame_shape"], axis=0),
        helper.make_node("Resize", ["chosen", "", "", "padded_shape"], ["padded"], **resize),
        helper.make_node(
            "Slice", ["padded", "crop_starts", "picture_size", "crop_axes"], ["picture"]
        ),
        helper.make_node("Resize", ["picture", "", "", "frame_shape"], ["full"], **resize),
        helper.make_node("Greater", ["full", "zero"], ["masks"]),
    ]
    graph = helper.make_graph(
        nodes,
        spec.name,
        [
            helper.make_tensor_value_info(
                "mask_logits", TensorProto.FLOAT, list(spec.inputs[0].shape)
            ),
            helper.make_tensor_value_info("selected", TensorProto.INT64, ["n"]),
            *(
                helper.make_tensor_value_info(t.name, TensorProto.INT64, list(t.shape))
                for t in spec.overridable
            ),
        ],
        [helper.make_tensor_value_info("masks", TensorProto.BOOL, ["n", frames, "Hs", "Ws"])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
