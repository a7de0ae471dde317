"""INT8 on a CPU: ONNX Runtime's integer kernels are taken, and compute what FP32 computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_bundle import info
from int8_bundle import noise_frames, propose_int8_model
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.calib.cpu_plan import cpu_activations_of
from openvis_rt.calib.int8_graphs import placed_products, seen_tensors
from openvis_rt.calib.placement import products_of
from openvis_rt.calib.qdq import quantised
from openvis_rt.calib.qdq_cpu import cpu_quantised
from openvis_rt.calib.tap import with_outputs
from openvis_rt.compare.differences import sqnr
from openvis_rt.errors import InputError
from openvis_rt.export.fp16.keeps import GraphView

KERNELS = ("QLinearConv", "QGemm", "QLinearAdd", "QLinearAveragePool")


def session_of(model, **options):
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def run(model, feed):
    session = session_of(model)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def kernels_of(model, tmp_path):
    """How often each operator is in the graph that ONNX Runtime computes."""
    path = tmp_path / "optimised.onnx"
    session_of(model, optimized_model_filepath=str(path))
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def limits_of(model, feed, names):
    values = run(with_outputs(model, names), feed)
    return {n: (min(0.0, float(values[n].min())), max(0.0, float(values[n].max()))) for n in names}


def chosen_of(model):
    view = GraphView(model.graph)
    return [view.producer[name] for name in placed_products(model, "propose")]


@pytest.fixture(scope="module")
def residual():
    """A residual block and a product of rows, FP32 and INT8, and a frame."""
    model, feed = propose_int8_model(), {"frames": noise_frames(1)[0][None]}
    names = cpu_activations_of(GraphView(model.graph), chosen_of(model))
    return model, cpu_quantised(model, chosen_of(model), limits_of(model, feed, names)), feed


def layers_model(tiny=False):
    """Pooling and two linear layers of an input's rows, all of whose outputs are told.

    Args:
        tiny: the first channel of the convolution is its bias and almost nothing else.
    """
    rng, make = np.random.default_rng(3), helper.make_node
    nodes = [
        make("Conv", ["x", "w0", "b0"], ["c"], "a/0", pads=[1, 1, 1, 1]),
        make("Relu", ["c"], ["r"], "a/1"),
        make("AveragePool", ["r"], ["p"], "a/2", kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["p", "w1"], ["d"], "a/3"),
        make("MaxPool", ["d"], ["m"], "a/4", kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["m", "w2", "b2"], ["e"], "a/5"),
        make("Reshape", ["e", "shape"], ["flat"], "a/6"),
        make("Transpose", ["flat"], ["rows"], "a/7", perm=[0, 2, 1]),
        make("MatMul", ["rows", "w3"], ["s"], "a/8"),
        make("Add", ["s", "b3"], ["t"], "a/9"),
        make("Relu", ["t"], ["u"], "a/10"),
        make("MatMul", ["u", "w4"], ["v"], "a/11"),
        make("Add", ["b4", "v"], ["y"], "a/12"),
    ]
    shapes = {
        "w0": (8, 4, 3, 3),
        "b0": (8,),
        "w1": (8, 8, 1, 1),
        "w2": (8, 8, 1, 1),
        "b2": (8,),
        "w3": (8, 32),
        "b3": (32,),
        "w4": (32, 8),
        "b4": (8,),
    }
    constants = {n: rng.standard_normal(s).astype(np.float32) * 0.3 for n, s in shapes.items()}
    if tiny:
        constants["w0"][0], constants["b0"][0] = 1e-16, 2.0
    constants["shape"] = np.array([1, 8, 16], np.int64)
    graph = helper.make_graph(
        nodes,
        "layers",
        [info("x", TensorProto.FLOAT, [1, 4, 16, 16])],
        [info("y", TensorProto.FLOAT, [1, 16, 8]), info("e", TensorProto.FLOAT, [1, 8, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def layers(**changes):
    model = layers_model(**changes)
    view = GraphView(model.graph)
    feed = {"x": np.random.default_rng(4).standard_normal((1, 4, 16, 16)).astype(np.float32)}
    limits = limits_of(model, feed, cpu_activations_of(view, products_of(view)))
    return model, cpu_quantised(model, products_of(view), limits), feed


def array(model, name):
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


# the kernels


def test_every_product_and_residual_addition_is_an_integer_kernel(residual, tmp_path):
    _, integer, _ = residual
    found = kernels_of(integer, tmp_path)
    assert {k: found[k] for k in KERNELS} == {
        "QLinearConv": 5,
        "QGemm": 1,
        "QLinearAdd": 1,
        "QLinearAveragePool": 0,
    }
    assert found["Conv"] == 0


def test_pooling_and_linear_layers_are_integer_kernels(tmp_path):
    _, integer, _ = layers()
    found = kernels_of(integer, tmp_path)
    assert {k: found[k] for k in KERNELS} == {
        "QLinearConv": 4,  # of them the rows with a Relu behind them
        "QGemm": 1,
        "QLinearAdd": 0,
        "QLinearAveragePool": 1,
    }
    # the graph's own, and for the integer kernels of x and e: none around the rows
    assert found["Transpose"] <= 3
    assert found["DequantizeLinear"] <= 1  # of the output `e`
    assert found["MaxPool"] + found["NhwcMaxPool"] == 1
    # the input, what reads the graph's output `e` as rows, and nothing between kernels
    assert found["QuantizeLinear"] <= 2
    assert found["Relu"] == 0


def test_without_pairs_on_outputs_convolutions_stay_float(residual, tmp_path):
    """The placement for TensorRT is the contrast: the kernels come of the pairs on outputs."""
    model, _, feed = residual
    names = seen_tensors(model, placed_products(model, "propose"))
    reach = {n: max(-low, high) for n, (low, high) in limits_of(model, feed, names).items()}
    found = kernels_of(quantised(model, chosen_of(model), reach), tmp_path)
    assert found["QLinearConv"] == 0


# the numbers


def test_the_outputs_are_those_of_fp32_but_for_rounding(residual):
    for model, integer, feed in (residual, layers(), layers(tiny=True)):
        onnx.checker.check_model(integer, full_check=True)
        wanted, found = run(model, feed), run(integer, feed)
        assert [v.name for v in integer.graph.output] == [v.name for v in model.graph.output]
        for name, value in wanted.items():
            assert found[name].shape == value.shape
            assert 25 < sqnr(found[name], value) < 70, name


def test_a_relu_begins_at_zero_and_zero_is_exact(residual):
    model, integer, feed = residual
    names = ("x", "shortcut")
    low, high = limits_of(model, feed, names)["shortcut"]
    assert array(integer, "x.zero") == 0
    assert array(integer, "x.zero").dtype == np.uint8
    scale, zero = array(integer, "shortcut.scale"), array(integer, "shortcut.zero")
    assert low < 0 < high
    assert scale == pytest.approx((high - low) / 255, rel=1e-5)
    assert abs(-low / scale - float(zero)) <= 0.5


def test_biases_are_in_steps_of_the_accumulator(residual):
    model, integer, _ = residual
    steps = array(integer, "first.bias.scale")
    assert (steps == array(integer, "x.scale") * array(integer, "first.weight.scale")).all()
    whole = array(integer, "first.bias.int32")
    assert whole.dtype == np.int32
    assert np.abs(whole * steps.astype(np.float64) - array(model, "b1")).max() <= steps.max()


def test_a_bias_beside_tiny_weights_fits_its_accumulator():
    model, integer, feed = layers(tiny=True)
    steps, whole = array(integer, "c.bias.scale"), array(integer, "c.bias.int32")
    assert whole[0] * float(steps[0]) == pytest.approx(2.0, rel=1e-6)
    assert sqnr(run(integer, feed)["e"], run(model, feed)["e"]) > 25


def test_maximum_pooling_keeps_the_scale_and_zero_of_what_it_reads():
    _, integer, _ = layers()
    for what in ("scale", "zero"):
        assert array(integer, f"m.{what}") == array(integer, f"d.{what}")


def test_what_has_no_limits_stays_float_and_nothing_at_all_is_refused(residual):
    model, _, feed = residual
    names = cpu_activations_of(GraphView(model.graph), chosen_of(model))
    limits = limits_of(model, feed, names)
    less = {name: limit for name, limit in limits.items() if name != "x1"}
    some = cpu_quantised(model, chosen_of(model), less)
    weights = {n.output[0]: n.input[1] for n in some.graph.node if n.op_type == "Conv"}
    assert (weights["first"], weights["second"]) == ("w1", "w2")
    assert weights["shortcut.exact"] == "shortcut.weight"
    with pytest.raises(InputError, match="no range is known of"):
        cpu_quantised(model, chosen_of(model), {})
    with pytest.raises(InputError, match=r"nodes \[0\] of the graph are no products"):
        cpu_quantised(model, [0], limits)
