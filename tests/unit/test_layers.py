"""The one word for an engine's precision, and the inspector's JSON.

The JSON texts are composed after NVIDIA's documentation of the engine inspector (TensorRT 10.16,
"Engine Inspector", and 11.0, "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"); they
were not printed by an engine.
"""

from __future__ import annotations

import json

import pytest

from openvis_rt.engines.build.layers import has_heavy_layers, inspector_layers, precision_of_layers


@pytest.mark.parametrize(
    ("layers", "precision"),
    [
        ({"CONVOLUTION": {"float32": 3}}, "fp32"),
        ({"CONVOLUTION": {"float16": 3}, "NORMALIZATION": {"float32": 9}}, "fp16"),
        # one narrow layer does not make a network narrow, whatever it is
        ({"CONVOLUTION": {"float32": 3}, "CAST": {"float16": 1}}, "fp32"),
        ({"CONVOLUTION": {"float16": 1, "float32": 3}, "CAST": {"float16": 50}}, "fp32"),
        # nor does one wide layer make it wide
        ({"CONVOLUTION": {"float16": 3}, "MATRIX_MULTIPLY": {"float32": 1, "float16": 5}}, "fp16"),
        # both kinds count alike; at a tie the wider one
        ({"CONVOLUTION": {"float16": 2}, "MATRIX_MULTIPLY": {"float32": 2}}, "fp32"),
        ({"MATRIX_MULTIPLY": {"bfloat16": 2, "float32": 1}}, "bf16"),
        # products of indices are no arithmetic that a precision is about
        ({"MATRIX_MULTIPLY": {"int64": 9, "float16": 1}}, "fp16"),
        # quantised on purpose: what is not INT8 tells which of the two it is
        ({"CONVOLUTION": {"int8": 1, "float16": 3}, "QUANTIZE": {"int8": 1}}, "int8"),
        ({"CONVOLUTION": {"int8": 9}, "MATRIX_MULTIPLY": {"float32": 1}}, "int8-fp32"),
        ({"CONVOLUTION": {"int8": 9}, "RESIZE": {"float16": 1, "float32": 2}}, "int8"),
        ({"CONVOLUTION": {"int8": 9}, "RESIZE": {"float32": 2}}, "int8-fp32"),
        ({"correlation": {"int8": 34}, "gemm": {"float16": 14}}, "int8"),
        # numbers that are stored as INT8, and no product that computes with them
        ({"CONVOLUTION": {"float32": 3}, "QUANTIZE": {"int8": 1}}, "fp32"),
        # no convolution, no product
        ({"RESIZE": {"float32": 2}, "CAST": {"uint8": 1}}, "fp32"),
        ({"RESIZE": {"float16": 2}, "SOFTMAX": {"float32": 1}}, "fp16"),
        ({"GATHER": {"int64": 1}}, "fp32"),
        ({}, "fp32"),
        # the inspector's words
        ({"CaskConvolution": {"float16": 5}, "Reformat": {"float32": 9}}, "fp16"),
        ({"CaskGemmMatrixMultiply": {"float32": 5}, "kgen": {"float16": 9}}, "fp32"),
    ],
)
def test_the_precision_is_that_of_most_convolutions_and_products(layers, precision):
    assert precision_of_layers(layers) == precision


def tensor_10(text):
    return {"Name": "t", "Location": "Device", "Dimensions": [1, 8], "Format/Datatype": text}


def tensor_11(dtype, form="Row major linear FP32 format (kLINEAR)", key="Datatype"):
    return {"Name": "t", "Location": "Device", "Dimensions": [1, 8], "Format": form, key: dtype}


def layer(kind, inputs, outputs):
    return {"Name": kind.lower(), "LayerType": kind, "Inputs": inputs, "Outputs": outputs}


TEN = json.dumps(
    {
        "Layers": [
            layer("Reformat", [tensor_10("Row major linear FP32")], [tensor_10("Half")]),
            layer(
                "CaskConvolution",
                [tensor_10("Channel major FP16 format where channel % 8 == 0")],
                [tensor_10("Row major linear FP32 format")],  # a cast fused into it
            ),
            layer("CaskConvolution", [tensor_10("Half")], [tensor_10("Half")]),
            layer(
                "CaskGemmMatrixMultiply",
                [tensor_10("Thirty-two wide channel vectorized row major Int8 format.")],
                [tensor_10("Half")],
            ),
            layer("NoOp", [], [tensor_10("N/A due to dynamic shapes")]),
        ],
        "Bindings": ["frames", "queries"],
    }
)
ELEVEN = json.dumps(
    {
        "Layers": [
            layer("gemm", [tensor_11("Half")], [tensor_11("Half")]),
            layer("gemm", [tensor_11("FP16", key="DataType")], [tensor_11("Float")]),
            layer("kgen", [tensor_11("Half")], [tensor_11("Float"), tensor_11("Half")]),
            layer("signal", [], []),
        ],
        "I/O Tensors": [{"Name": "frames", "IOMode": "Input", "DataType": "UInt8"}],
        "Engine Metadata": {"Multi-Device": "Disabled"},
    }
)


def test_inspector_of_tensorrt_10():
    assert inspector_layers(TEN) == {
        "CaskConvolution": {"float16": 2},
        "CaskGemmMatrixMultiply": {"int8": 1},
        "Reformat": {"float16": 1},
    }


def test_inspector_of_tensorrt_11_and_rtx():
    layers = inspector_layers(ELEVEN)
    assert layers == {"gemm": {"float16": 2}, "kgen": {"float32": 1}}
    assert precision_of_layers(layers) == "fp16"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        '{"Layers": []}',
        '{"Layers": ["conv1", "conv2"]}',  # built with layer names only
        '{"Layers": [{"LayerType": "gemm", "Inputs": null, "Outputs": ["y"]}]}',
        '{"Layers": [{"Inputs": [{"Datatype": "Half"}]}]}',
    ],
)
def test_what_tells_no_types_gives_no_layers(text):
    assert inspector_layers(text) == {}


def test_heavy_layers_are_known_by_name():
    assert has_heavy_layers(inspector_layers(TEN))
    assert has_heavy_layers({"MATRIX_MULTIPLY": {}})
    assert not has_heavy_layers({"ForeignNode": {"float16": 1}, "ELEMENTWISE": {"float32": 1}})
