"""A bundle with every kind of product that INT8 decides about, written in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from graph_bundle import NETWORK_SIZE, classify_model, info, spec_of, write_bundle
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.export.fp16.convert import fp16_from_fp32

PRODUCTS = ("stem", "first", "second", "shortcut", "features", "mixed")
"""Outputs of the products that are quantised by default."""


def _weights(*shape, seed):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.2).astype(np.float32)


def propose_int8_model(scale=1 / 128, dead=False):
    """A residual block on the picture, a normed product, and a query decoder with attention.

    Args:
        scale: of the pixels.
        dead: the second convolution reads nothing but zeros.
    """
    make = helper.make_node
    nodes = [
        make("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        make("Transpose", ["float"], ["image"], perm=[0, 3, 1, 2]),
        make("Mul", ["image", "scale"], ["picture"]),
        make("Conv", ["picture", "w0", "b0"], ["stem"], strides=[4, 4], pads=[1, 1, 1, 1]),
        make("Relu", ["stem"], ["x"]),
        make("Conv", ["x", "w1", "b1"], ["first"], pads=[1, 1, 1, 1]),
        make("Relu", ["first"], ["x1"]),
        make("Conv", ["x1", "w2"], ["second"], pads=[1, 1, 1, 1]),
        make("Conv", ["x", "w3"], ["shortcut"]),
        make("Add", ["second", "shortcut"], ["sum"]),
        make("Relu", ["sum"], ["x2"]),
        make("Conv", ["x2", "w4"], ["features"]),
        make("Reshape", ["features", "flat"], ["cells"]),
        make("Transpose", ["cells"], ["rows"], perm=[1, 0]),
        make("MatMul", ["rows", "w5"], ["mixed"]),
        make("Add", ["mixed", "rows"], ["residual"]),
        make("LayerNormalization", ["residual", "one", "none"], ["normed"]),
        make("Transpose", ["normed"], ["columns"], perm=[1, 0]),
        make("MatMul", ["start", "columns"], ["logits"], "predictor/mask_product"),
        make("Softmax", ["logits"], ["weights"], axis=-1),
        make("MatMul", ["weights", "normed"], ["attended"]),
        make("MatMul", ["attended", "w6"], ["queries"]),
        make("Reshape", ["logits", "masks_shape"], ["mask_logits"]),
    ]
    for number, node in enumerate(nodes):
        node.name = node.name or f"backbone.res{number}/{node.op_type}"
    constants = {
        "scale": np.float32(scale),
        "w0": _weights(8, 3, 4, 4, seed=0),
        "w1": _weights(8, 8, 3, 3, seed=1),
        "w2": _weights(8, 8, 3, 3, seed=2),
        "w3": _weights(8, 8, 1, 1, seed=3),
        "w4": _weights(16, 8, 1, 1, seed=4),
        "w5": _weights(16, 16, seed=5),
        "w6": _weights(16, 16, seed=6),
        "b0": _weights(8, seed=7),
        "b1": np.full(8, -1e4 if dead else 0.1, np.float32),
        "one": np.ones(16, np.float32),
        "none": np.zeros(16, np.float32),
        "start": _weights(10, 16, seed=8),
        "flat": np.array([16, 48], np.int64),
        "masks_shape": np.array([10, 1, 6, 8], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "propose",
        [info("frames", TensorProto.UINT8, [1, *NETWORK_SIZE, 3])],
        [
            info("mask_logits", TensorProto.FLOAT, [10, 1, 6, 8]),
            info("queries", TensorProto.FLOAT, [10, 16]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def classify_int8_model():
    """As `classify_model`, of the queries."""
    model = classify_model()
    model.graph.input[0].name = "queries"
    for node in model.graph.node:
        node.input[:] = ["queries" if name == "tokens" else name for name in node.input]
    return onnx.shape_inference.infer_shapes(model)


def masks_int8_model():
    """The masks themselves, at whatever size."""
    nodes = [
        helper.make_node("Gather", ["mask_logits", "selected"], ["chosen"], axis=0),
        helper.make_node("Greater", ["chosen", "zero"], ["bits"]),
        helper.make_node("Cast", ["bits"], ["masks"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "masks",
        [
            info("mask_logits", TensorProto.FLOAT, [10, 1, 6, 8]),
            info("selected", TensorProto.INT64, ["n"]),
        ],
        [info("masks", TensorProto.UINT8, ["n", 1, 6, 8])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_int8_bundle(path: Path, *, half: bool = True, **changes) -> Bundle:
    """The bundle in FP32, and in FP16 unless told; ``changes`` are of the `propose` graph."""
    models = {
        "propose": propose_int8_model(**changes),
        "classify": classify_int8_model(),
        "masks": masks_int8_model(),
    }
    narrow = None
    if half:
        narrow = {
            name: fp16_from_fp32(models[name], spec_of(name, models[name])).model
            for name in ("propose", "classify")
        }
    return write_bundle(path, half=narrow, **models)


def noise_frames(count: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of coarse coloured noise, each different from the others."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [
        np.repeat(np.repeat(c, NETWORK_SIZE[0] // 8, 0), NETWORK_SIZE[1] // 8, 1) for c in coarse
    ]
