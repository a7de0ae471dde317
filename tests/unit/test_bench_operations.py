"""Operations of graphs whose products can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="operations are counted by onnx")

from graph_bundle import info, model_of  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from openvis_rt.bench.onnx_operations import flops_of_bundle  # noqa: E402
from openvis_rt.bundle.bundle import Bundle  # noqa: E402
from openvis_rt.errors import BundleError  # noqa: E402
from openvis_rt.export.multiply_adds import multiply_adds  # noqa: E402

FLOAT = TensorProto.FLOAT
ones = np.ones


def counted(node, shape, out, constants=None, **sizes):
    nodes = node if isinstance(node, list) else [node]
    outputs = [info("y", FLOAT, out)]
    return multiply_adds(model_of(nodes, [info("x", FLOAT, shape)], outputs, constants), sizes)


def single(kind, *others, **attributes):
    return helper.make_node(kind, ["x", *others], ["y"], kind, **attributes)


@pytest.mark.parametrize(
    ("node", "shape", "out", "weight", "wanted"),
    [
        (single("MatMul", "w"), [5, 4], [5, 3], (4, 3), 5 * 4 * 3),
        (single("MatMul", "w"), [2, 5, 4], [2, 5, 3], (4, 3), 2 * 5 * 4 * 3),
        (single("Gemm", "w"), [5, 4], [5, 3], (4, 3), 5 * 4 * 3),
        (single("Gemm", "w", transA=1), [4, 5], [5, 3], (4, 3), 5 * 4 * 3),
        (single("Conv", "w"), [1, 4, 9, 9], [1, 6, 7, 7], (6, 4, 3, 3), 6 * 49 * 36),
        (single("Conv", "w", group=4), [1, 4, 9, 9], [1, 4, 7, 7], (4, 1, 3, 3), 4 * 49 * 9),
        (
            single("Conv", "w", strides=[2, 2], pads=[1, 1, 1, 1]),
            *([1, 4, 8, 8], [1, 6, 4, 4], (6, 4, 3, 3), 6 * 16 * 36),
        ),
        (
            single("ConvTranspose", "w", strides=[2, 2]),
            *([1, 4, 3, 3], [1, 5, 6, 6], (4, 5, 2, 2), 4 * 9 * 20),
        ),
        (
            single("Einsum", "w", equation="nd,kd->nk"),
            *([5, 4], [5, 3], (3, 4), 5 * 4 * 3),
        ),
    ],
)
def test_products(node, shape, out, weight, wanted):
    assert counted(node, shape, out, {"w": ones(weight, np.float32)}) == wanted


def test_what_is_no_product_counts_nothing():
    assert counted(single("Relu"), [5, 4], [5, 4]) == 0


def test_a_dynamic_axis_gets_its_number():
    weight = {"w": ones((4, 3), np.float32)}
    assert counted(single("MatMul", "w"), ["K", 4], ["K", 3], weight, K=7) == 7 * 4 * 3


def test_a_shape_that_follows_from_data_is_refused():
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["numbers"], to=FLOAT),
        helper.make_node("MatMul", ["w", "numbers"], ["y"], "product"),
    ]
    with pytest.raises(BundleError, match=r"product.*follow from data"):
        counted(nodes, [5, 4], [3, "found"], {"w": ones((3, 2), np.float32)})


def test_a_bundles_graphs_are_counted_for_their_classes(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    few, many = (flops_of_bundle(bundle, "fp32", classes) for classes in (10, 20))
    assert set(few) == {"propose", "classify"}
    assert few["propose"] == many["propose"] > 1e6
    queries, width = 10, 32  # a class more is a row of `text_embeddings` more for each query
    assert many["classify"] - few["classify"] == 10 * 2 * queries * width
    assert flops_of_bundle(bundle, "fp16", 10) == few
