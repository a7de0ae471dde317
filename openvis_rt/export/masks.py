"""The `masks` graph, written by hand: it is a few nodes, and its output size is an input.

    mask_logits [N, T, h, w] --Gather(selected)--> [n, T, h, w]
      --bilinear--> padded size --crop--> network size --bilinear--> source size -- > 0 --> uint8

as `sem_seg_postprocess` of the public evaluation does it. ``frame_size`` is an initializer that is
also an input: ONNX Runtime lets the caller override it, TensorRT takes its value as a constant.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.systems.graphs import GraphSpec

__all__ = ["Masks", "masks_graph"]


class Masks(nn.Module):
    """The same in PyTorch, to hold the graph against.

    Args:
        padded_size, network_size, frame_size: as for :func:`masks_graph`.
    """

    def __init__(
        self,
        padded_size: tuple[int, int],
        network_size: tuple[int, int],
        frame_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.padded_size, self.network_size = padded_size, network_size
        self.frame_size = frame_size

    def forward(self, mask_logits: Tensor, selected: Tensor) -> Tensor:
        """Logits float32 [N, T, h, w] and indices int64 [n] to uint8 [n, T, Hs, Ws]."""
        height, width = self.network_size
        padded = _bilinear(mask_logits[selected], self.padded_size)
        return (_bilinear(padded[..., :height, :width], self.frame_size) > 0).to(torch.uint8)


def _bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


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
        helper.make_node("Greater", ["full", "zero"], ["inside"]),
        helper.make_node("Cast", ["inside"], ["masks"], to=TensorProto.UINT8),
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
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, list(spec.outputs[0].shape))],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
