"""Masks as bits: what TensorRT compiles gives the same as ``np.packbits`` of the bundle's graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_bundle import NETWORK_SIZE, masks_model, propose_model

from openvis_rt.engines.rewrites.packing import gives_masks, pack_masks
from openvis_rt.export.masks import masks_graph
from openvis_rt.systems.graphs import MASKS


def run(model, **inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(["masks"], inputs)[0]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("width", [*range(1, 18), 853])
def test_packed_rows_equal_packbits(width, count):
    sizes = {"N": 10, "T": 2, "h": 6, "w": 8}
    exported = masks_graph(
        MASKS.with_sizes(sizes),
        padded_size=(24, 32),
        network_size=(20, 30),
        frame_size=(20, 30),
        opset=18,
    )
    packed = pack_masks(exported)
    onnx.checker.check_model(packed, full_check=True)
    logits = np.random.default_rng(width).standard_normal((10, 2, 6, 8), np.float32)
    inputs = {
        "mask_logits": logits,
        "selected": np.array([7, 0, 3])[:count],
        "frame_size": np.array([11, width]),
    }
    bits, rows = run(exported, **inputs), run(packed, **inputs)
    assert bits.dtype == np.bool_
    assert bits.shape == (count, 2, 11, width)
    assert rows.dtype == np.uint8
    np.testing.assert_array_equal(rows, np.packbits(bits, axis=-1))


def test_only_masks_are_packed_and_only_once():
    model = masks_model()
    before = model.SerializeToString()
    packed = pack_masks(model)
    assert model.SerializeToString() == before
    assert gives_masks(model)
    assert not gives_masks(packed)
    assert pack_masks(packed) is packed
    other = propose_model()
    assert pack_masks(other) is other


def test_a_width_of_the_file_becomes_its_bytes():
    model = masks_model()
    width = model.graph.output[0].type.tensor_type.shape.dim[3]
    width.dim_value = NETWORK_SIZE[1] + 1
    [output] = pack_masks(model).graph.output
    assert output.type.tensor_type.shape.dim[3].dim_value == -(-(NETWORK_SIZE[1] + 1) // 8)
