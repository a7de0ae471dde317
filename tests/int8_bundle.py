"""A bundle with every kind of product that INT8 decides about, written in a moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from graph_bundle import (
    NETWORK_SIZE,
    classify_model,
    info,
    masks_model,
    model_of,
    spec_of,
    write_bundle,
)
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.bundle.bundle import Bundle, GraphFile, write_manifest
from openvis_rt.export.fp16.convert import fp16_from_fp32
from openvis_rt.systems.system import Score

PRODUCTS = ("stem", "first", "second", "shortcut", "features", "mixed")
"""Outputs of the products that are quantised by default."""
_MODULES = {
    "stem": "backbone.stem.conv1",
    "first": "backbone.res2.0.conv1",
    "second": "backbone.res2.0.conv2",
    "shortcut": "backbone.res2.0.shortcut",
    "features": "pixel_decoder.input_proj.0",
    "mixed": "pixel_decoder.encoder.layers.0.linear1",
}
BLOCKS = {
    "backbone.stem": ("stem",),
    "backbone.res2": ("first", "second", "shortcut"),
    "pixel_decoder.input_proj": ("features",),
    "pixel_decoder.encoder.layers.0": ("mixed",),
}
"""Of these products, by the modules that they were traced in."""


def _weights(*shape, seed):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.2).astype(np.float32)


def propose_int8_model(scale=1 / 128, dead=False, sensitive=False):
    """A residual block on the picture, a normed product, and a query decoder with attention.

    Args:
        scale: of the pixels.
        dead: the second convolution reads nothing but zeros.
        sensitive: what the second convolution reads has a channel of numbers so large that INT8
            holds none of the others, and its weights pass over this channel.
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
        module = _MODULES.get(node.output[0], "other")
        node.name = node.name or f"{module}/{node.op_type}_{number}"
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
    if sensitive:
        constants["b1"][0] = 3000.0
        constants["w2"][:, 0] = 0.0
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
        helper.make_node("Greater", ["chosen", "zero"], ["masks"]),
    ]
    graph = helper.make_graph(
        nodes,
        "masks",
        [
            info("mask_logits", TensorProto.FLOAT, [10, 1, 6, 8]),
            info("selected", TensorProto.INT64, ["n"]),
        ],
        [info("masks", TensorProto.BOOL, ["n", 1, "Hs", "Ws"])],
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


CLASSES = ("disc", "box", "triangle")
"""Of :func:`write_video_bundle`, which has a closed vocabulary."""


def write_video_bundle(path: Path, **changes) -> Bundle:
    """The bundle in FP32 and FP16 with all that a pipeline needs: areas, classes, large masks."""
    propose = propose_int8_model(**changes)
    make = helper.make_node
    propose.graph.node.extend(
        [
            make("Greater", ["mask_logits", "limit"], ["inside"], "other/Greater"),
            make("Cast", ["inside"], ["ones"], "other/Cast", to=TensorProto.FLOAT),
            make("ReduceSum", ["ones", "all_but_queries"], ["mask_area"], "other/Sum", keepdims=0),
        ]
    )
    propose.graph.initializer.append(numpy_helper.from_array(np.float32(0), "limit"))
    axes = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "all_but_queries")
    propose.graph.initializer.append(axes)
    propose.graph.output.append(info("mask_area", TensorProto.FLOAT, [10]))
    models = {
        "propose": onnx.shape_inference.infer_shapes(propose),
        "classify": _closed_classify_model(),
        "masks": _large_masks_model(),
    }
    half = {
        name: fp16_from_fp32(models[name], spec_of(name, models[name])).model
        for name in ("propose", "classify")
    }
    bundle = write_bundle(path, half=half, **models)
    score = Score("mean-logits", {"formula": "softmax-without-last", "visible_only": False})
    graphs = {
        precision: {name: _fetched(file) for name, file in files.items()}
        for precision, files in bundle.manifest.graphs.items()
    }
    manifest = replace(bundle.manifest, system="minvis", score=score, graphs=graphs)
    write_manifest(bundle.path, manifest)
    return Bundle.open(path)


def _fetched(file: GraphFile) -> GraphFile:
    """The file, whose outputs the host reads, but for mask logits."""
    outputs = [replace(t, fetched=t.name != "mask_logits") for t in file.spec.outputs]
    return replace(file, spec=replace(file.spec, outputs=tuple(outputs)))


def _closed_classify_model():
    """Logits of three classes and of none."""
    return onnx.shape_inference.infer_shapes(
        model_of(
            [helper.make_node("MatMul", ["queries", "w"], ["class_scores"])],
            [info("queries", TensorProto.FLOAT, [10, 16])],
            [info("class_scores", TensorProto.FLOAT, [10, len(CLASSES) + 1])],
            {"w": _weights(16, len(CLASSES) + 1, seed=9)},
        )
    )


def _large_masks_model():
    """As `masks_model`, of masks at a quarter of the network's size."""
    model = masks_model()
    model.graph.input[0].type.tensor_type.shape.CopyFrom(
        info("", TensorProto.FLOAT, [10, 1, 6, 8]).type.tensor_type.shape
    )
    large = helper.make_node("Resize", ["mask_logits", "", "stride"], ["large_logits"])
    nodes = [large, *model.graph.node]
    nodes[1].input[0] = "large_logits"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    stride = numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), "stride")
    model.graph.initializer.append(stride)
    onnx.checker.check_model(model, full_check=True)
    return model


def noise_frames(count: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of coarse coloured noise, each different from the others."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [
        np.repeat(np.repeat(c, NETWORK_SIZE[0] // 8, 0), NETWORK_SIZE[1] // 8, 1) for c in coarse
    ]
