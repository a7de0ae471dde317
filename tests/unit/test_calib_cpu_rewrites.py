"""What of an INT8 graph stays FP32 on a CPU and is written in another order: the same numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
from graph_bundle import info
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.calib.cpu_rewrites import cpu_rewritten
from openvis_rt.compare.differences import sqnr


def decoder_model(told=False):
    """Two layers' attention masks of one size, two levels of samples, and a normed sum.

    Args:
        told: the first layer's logits are an output, so that they are needed as they are.
    """
    make, rng = helper.make_node, np.random.default_rng(0)
    nodes = [
        make("Reshape", ["features", "flat"], ["cells"]),
        *(
            node
            for layer in "ab"
            for node in (
                make("MatMul", [f"queries_{layer}", "cells"], [f"product_{layer}"]),
                make("Reshape", [f"product_{layer}", "full"], [f"logits_{layer}"]),
                make(
                    "Resize",
                    [f"logits_{layer}", "", "", "small"],
                    [f"mask_{layer}"],
                    mode="linear",
                    coordinate_transformation_mode="half_pixel",
                ),
            )
        ),
        make("Div", ["offsets", "size"], ["points"]),
        make("Reshape", ["points", "grid_shape"], ["grid"]),
        make("GridSample", ["features", "grid"], ["near"], align_corners=0),
        make("GridSample", ["coarse", "grid"], ["far"], align_corners=0),
        make("Concat", ["near", "far"], ["levels"], axis=-1),
        make("Mul", ["levels", "weights"], ["weighted"]),
        make("ReduceSum", ["weighted", "last"], ["attended"], keepdims=0),
        make("Add", ["attended", "attended_before"], ["sum"]),
        make("LayerNormalization", ["sum", "gain", "shift"], ["normed"], axis=-1),
    ]
    for number, node in enumerate(nodes):
        node.name = f"decoder/{number}"
    floats = {
        "features": [1, 6, 12, 16],
        "coarse": [1, 6, 5, 7],
        "queries_a": [1, 4, 6],
        "queries_b": [1, 4, 6],
        "offsets": [1, 9, 2, 2, 2],
        "weights": [1, 1, 9, 8],
        "attended_before": [1, 6, 9],
    }
    constants = {
        "flat": np.array([1, 6, 192], np.int64),
        "full": np.array([1, 4, 12, 16], np.int64),
        "small": np.array([1, 4, 5, 6], np.int64),
        "grid_shape": np.array([1, 9, 4, 2], np.int64),
        "last": np.array([-1], np.int64),
        "size": np.array([7.0, 5.0], np.float32),
        "gain": rng.standard_normal(9).astype(np.float32),
        "shift": rng.standard_normal(9).astype(np.float32),
    }
    outputs = [
        info("mask_a", TensorProto.FLOAT, [1, 4, 5, 6]),
        info("mask_b", TensorProto.FLOAT, [1, 4, 5, 6]),
        info("normed", TensorProto.FLOAT, [1, 6, 9]),
    ]
    if told:
        outputs.append(info("logits_a", TensorProto.FLOAT, [1, 4, 12, 16]))
    graph = helper.make_graph(
        nodes,
        "decoder",
        [info(name, TensorProto.FLOAT, shape) for name, shape in floats.items()],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model), floats


def run(model, feed, path):
    """Outputs by name, and the operators that ONNX Runtime computes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(path)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    values = dict(zip(names, session.run(names, feed), strict=True))
    return values, Counter(node.op_type for node in onnx.load(path).graph.node)


def both(tmp_path, **changes):
    model, shapes = decoder_model(**changes)
    rng = np.random.default_rng(1)
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    rewritten = cpu_rewritten(model)
    onnx.checker.check_model(rewritten, full_check=True)
    return (
        rewritten,
        run(model, feed, tmp_path / "a.onnx"),
        run(rewritten, feed, tmp_path / "b.onnx"),
    )


def test_the_numbers_are_the_same_but_for_rounding(tmp_path):
    rewritten, (wanted, _), (found, _) = both(tmp_path)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert np.ptp(value) > 0.5
        assert sqnr(found[name], value) > 110, name  # float32 in another order
    assert [v.name for v in rewritten.graph.output] == list(wanted)


def test_masks_are_made_of_features_that_are_resized_once(tmp_path):
    rewritten, (_, before), (_, after) = both(tmp_path)
    assert (before["Resize"], after["Resize"]) == (2, 1)
    made = {name: node for node in rewritten.graph.node for name in node.output}
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in rewritten.graph.value_info
    }
    for layer in "ab":
        product = made[made[f"mask_{layer}"].input[0]]
        assert product.op_type == "MatMul"
        assert shapes[product.output[0]] == [1, 4, 30]  # cells of the mask, not of the features
    assert "cells" not in made
    read = {name for node in rewritten.graph.node for name in node.input}
    assert {tensor.name for tensor in rewritten.graph.initializer} < read


def test_logits_that_somebody_else_needs_stay_as_they_are(tmp_path):
    rewritten, (wanted, _), (found, _) = both(tmp_path, told=True)
    made = {name: node for node in rewritten.graph.node for name in node.output}
    assert made["mask_a"].op_type == "Resize"
    assert made["mask_b"].op_type == "Reshape"
    assert (found["logits_a"] == wanted["logits_a"]).all()


def test_levels_are_not_copied_and_sums_are_normed_by_the_faster_kernel(tmp_path):
    rewritten, (_, before), (_, after) = both(tmp_path)
    assert (before["Concat"], after["Concat"]) == (1, 0)
    assert (before["SkipLayerNormalization"], after["SkipLayerNormalization"]) == (1, 0)
    assert after["LayerNormalization"] == 1
    divisor = next(n for n in rewritten.graph.node if n.op_type == "Div").input[1]
    [stored] = [t for t in rewritten.graph.initializer if t.name == divisor]
    assert list(stored.dims) == [2, 2, 2]


def test_a_graph_without_such_parts_stays_as_it_is():
    node = helper.make_node("Div", ["x", "x"], ["y"])
    shape = [info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "small", shape[:1], shape[1:]))
    assert list(cpu_rewritten(model).graph.node) == [node]
