"""Bundles of tiny graphs, written in a moment, for builds by a real TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.bundle.bundle import (
    Bundle,
    GraphFile,
    Manifest,
    Preprocess,
    write_manifest,
)
from openvis_rt.systems.graphs import GraphSpec, TensorSpec
from openvis_rt.systems.system import Score, Tracker

NETWORK_SIZE = (24, 32)


def info(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(nodes, inputs, outputs, constants=None):
    initializers = [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def propose_model(frames=1):
    """uint8 frames -> NCHW float -> values sampled at points computed from them; bool mask.

    ``frames`` is how many: a number or "T".
    """
    make = helper.make_node
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    mix = np.random.default_rng(1).standard_normal((8, 2)).astype(np.float32)
    return model_of(
        [
            make("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
            make("Transpose", ["float"], ["image"], perm=[0, 3, 1, 2]),
            make("Conv", ["image", "weight"], ["value"], pads=[1, 1, 1, 1]),
            make("Transpose", ["value"], ["last"], perm=[0, 2, 3, 1]),
            make("MatMul", ["last", "mix"], ["offsets"]),
            make("Tanh", ["offsets"], ["grid"]),
            make("GridSample", ["value", "grid"], ["features"], "sample", align_corners=0),
            make("Greater", ["features", "zero"], ["pool_mask"]),
        ],
        [info("frames", TensorProto.UINT8, [frames, 12, 16, 3])],
        [
            info("features", TensorProto.FLOAT, [frames, 8, 12, 16]),
            info("pool_mask", TensorProto.BOOL, [frames, 8, 12, 16]),
        ],
        {"weight": weight, "mix": mix, "zero": np.float32(0)},
    )


def classify_model():
    """Tokens against K text rows."""
    make = helper.make_node
    return model_of(
        [
            make("Transpose", ["text_embeddings"], ["columns"], perm=[1, 0]),
            make("MatMul", ["tokens", "columns"], ["cosine"]),
            make("Softmax", ["cosine"], ["class_scores"], axis=-1),
        ],
        [
            info("tokens", TensorProto.FLOAT, [10, 16]),
            info("text_embeddings", TensorProto.FLOAT, ["K", 16]),
        ],
        [info("class_scores", TensorProto.FLOAT, [10, "K"])],
    )


def text_model():
    """Token embeddings at the place of the largest token."""
    make = helper.make_node
    table = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    return model_of(
        [
            make("ArgMax", ["tokens"], ["end"], axis=1, keepdims=0),
            make("Gather", ["table", "end"], ["embeddings"], axis=0),
        ],
        [info("tokens", TensorProto.INT64, ["B", 7])],
        [info("embeddings", TensorProto.FLOAT, ["B", 8])],
        {"table": table},
    )


def half_model():
    """``classify_model`` in FP16, with FP16 inputs and outputs."""
    half = classify_model()
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


def masks_model(frames=1):
    """Selected masks, cut and resized to sizes that ONNX Runtime lets the caller override.

    ``frames`` is how many: a number or "T".
    """
    make = helper.make_node
    return model_of(
        [
            make("Gather", ["mask_logits", "selected"], ["chosen"], axis=0),
            make("Slice", ["chosen", "starts", "picture_size", "axes"], ["picture"]),
            make("Shape", ["chosen"], ["leading"], start=0, end=2),
            make("Concat", ["leading", "frame_size"], ["sizes"], axis=0),
            make("Resize", ["picture", "", "", "sizes"], ["large"], mode="linear"),
            make("Greater", ["large", "zero"], ["masks"]),
        ],
        [
            info("mask_logits", TensorProto.FLOAT, [10, frames, *NETWORK_SIZE]),
            info("selected", TensorProto.INT64, ["n"]),
            info("picture_size", TensorProto.INT64, [2]),
            info("frame_size", TensorProto.INT64, [2]),
        ],
        [info("masks", TensorProto.BOOL, ["n", frames, "Hs", "Ws"])],
        {
            "starts": np.zeros(2, np.int64),
            "axes": np.array([2, 3], np.int64),
            "picture_size": np.array(NETWORK_SIZE, np.int64),
            "frame_size": np.array([20, 30], np.int64),
            "zero": np.float32(0),
        },
    )


def window_propose_model():
    """A window's masks, by the brightness of its pixels; "T" frames."""
    make = helper.make_node
    levels = np.linspace(20.1, 230.1, 10, dtype=np.float32).reshape(10, 1, 1, 1)  # no pixel is one
    return model_of(
        [
            make("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
            make("ReduceMean", ["float", "channels"], ["grey"], keepdims=0),
            make("Sub", ["grey", "levels"], ["mask_logits"]),
            make("Greater", ["mask_logits", "zero"], ["bits"]),
            make("Cast", ["bits"], ["ones"], to=TensorProto.FLOAT),
            make("ReduceSum", ["ones", "pixels"], ["mask_area"], keepdims=0),
            make("ReduceMean", ["mask_logits", "but_columns"], ["queries"], keepdims=0),
        ],
        [info("frames", TensorProto.UINT8, ["T", *NETWORK_SIZE, 3])],
        [
            info("mask_logits", TensorProto.FLOAT, [10, "T", *NETWORK_SIZE]),
            info("mask_area", TensorProto.FLOAT, [10, "T"]),
            info("queries", TensorProto.FLOAT, [10, NETWORK_SIZE[1]]),
        ],
        {
            "levels": levels,
            "zero": np.float32(0),
            "channels": np.array([3], np.int64),
            "pixels": np.array([2, 3], np.int64),
            "but_columns": np.array([1, 2], np.int64),
        },
    )


def window_classify_model():
    """A window's queries against K text rows, and how bright each frame of it is in each mask."""
    make = helper.make_node
    return model_of(
        [
            make("Transpose", ["text_embeddings"], ["columns"], perm=[1, 0]),
            make("MatMul", ["queries", "columns"], ["class_scores"]),
            make("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
            make("ReduceMean", ["float", "channels"], ["grey"], keepdims=0),
            make("Mul", ["grey", "mask_logits"], ["products"]),
            make("ReduceSum", ["products", "pixels"], ["brightness"], keepdims=0),
        ],
        [
            info("frames", TensorProto.UINT8, ["T", *NETWORK_SIZE, 3]),
            info("mask_logits", TensorProto.FLOAT, [10, "T", *NETWORK_SIZE]),
            info("queries", TensorProto.FLOAT, [10, NETWORK_SIZE[1]]),
            info("text_embeddings", TensorProto.FLOAT, ["K", NETWORK_SIZE[1]]),
        ],
        [
            info("class_scores", TensorProto.FLOAT, [10, "K"]),
            info("brightness", TensorProto.FLOAT, [10, "T"]),
        ],
        {"channels": np.array([3], np.int64), "pixels": np.array([2, 3], np.int64)},
    )


def window_embed_model():
    """The mean colour of each picture of a window."""
    make = helper.make_node
    return model_of(
        [
            make("Cast", ["pictures"], ["float"], to=TensorProto.FLOAT),
            make("ReduceMean", ["float", "pixels"], ["image_embeddings"], keepdims=0),
        ],
        [info("pictures", TensorProto.UINT8, ["T", *NETWORK_SIZE, 3])],
        [info("image_embeddings", TensorProto.FLOAT, ["T", 3])],
        {"pixels": np.array([1, 2], np.int64)},
    )


def window_models():
    """Graphs of a bundle for windows, without `text`."""
    return {
        "propose": window_propose_model(),
        "embed": window_embed_model(),
        "classify": window_classify_model(),
        "masks": masks_model("T"),
    }


MODELS = {
    "propose": propose_model,
    "classify": classify_model,
    "text": text_model,
    "masks": masks_model,
}


def write_bundle(path, half=None, source_size=None, window_length=1, **models):
    """A bundle with these graphs; ``half`` are some of them in FP16."""
    path = Path(path)
    path.mkdir(exist_ok=True)
    wide = {name: _graph_file(path, f"{name}.onnx", "fp32", m) for name, m in models.items()}
    graphs = {"fp32": wide}
    if half is not None:
        narrow = {n: _graph_file(path, f"{n}.fp16.onnx", "fp16", m) for n, m in half.items()}
        graphs["fp16"] = {**wide, **narrow}
    rule = Preprocess(NETWORK_SIZE, source_size, 24, 32, 32, (0.0, 0.0, 0.0))
    manifest = Manifest(
        system="clip-vis",
        variant="tiny",
        graphs=graphs,
        preprocess=rule,
        tracker=Tracker("momentum", parameters={"alpha": 1.0}),
        score=Score("frame-logits"),
        window_length=window_length,
        detections=10,
        prompts=("{}",),
        text_sha256="0" * 64,
        checkpoint={},
        tools={},
    )
    write_manifest(path, manifest)
    return Bundle.open(path)


def spec_of(name, model):
    """The graph's tensors as its file has them; masks, bool there, as sessions give them."""
    defaults = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in defaults]
    overridable = [value for value in model.graph.input if value.name in defaults]
    groups = (inputs, model.graph.output, overridable)
    return GraphSpec(name, *(tuple(map(_tensor_spec, group)) for group in groups))


def _tensor_spec(value):
    kind = value.type.tensor_type
    shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
    if value.name == "masks":
        return TensorSpec("masks", "uint8", (*shape[:-1], "Wb"))
    return TensorSpec(value.name, helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape)


def _graph_file(path, file, precision, model):
    onnx.save(model, path / file)
    return GraphFile(file, precision, spec_of(file.split(".")[0], model))
