"""What is found in the bytes of an ONNX file, without onnx."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx", reason="making ONNX files needs the extra [export]")
from onnx import TensorProto, helper  # noqa: E402

from openvis_rt.bundle.onnx_file import refused_part  # noqa: E402


def model(*nodes):
    return helper.make_model(helper.make_graph(list(nodes), "g", [], []))


def found(made) -> str:
    return refused_part(made.SerializeToString()) or ""


def test_a_graph_of_standard_operators_is_taken():
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2], [1, 2])
    made = model(
        helper.make_node("Constant", [], ["a"], value=tensor),
        helper.make_node("Relu", ["a"], ["b"], domain="ai.onnx"),
    )
    assert not found(made)


def test_an_operator_of_somebodys_own_is_named():
    made = model(helper.make_node("Strange", ["a"], ["b"], domain="com.stranger"))
    assert "operator 'Strange' of 'com.stranger'" in found(made)


@pytest.mark.parametrize("kind", ["Loop", "Scan", "If"])
def test_a_node_with_a_graph_inside_is_named(kind):
    body = helper.make_graph([], "body", [], [])
    assert f"has operator '{kind}' that has a graph inside" in found(
        model(helper.make_node(kind, ["a"], ["b"], body=body))
    )


def test_a_function_is_named():
    made = model()
    opsets = [helper.make_opsetid("", 18)]
    made.functions.append(helper.make_function("own", "Hidden", [], [], [], opsets))
    assert "function 'Hidden'" in found(made)


def test_a_constant_in_another_file_is_named():
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2], [1, 2])
    tensor.data_location = TensorProto.EXTERNAL
    made = model(helper.make_node("Constant", [], ["a"], value=tensor))
    assert "keeps the numbers of 'w' in another file" in found(made)
