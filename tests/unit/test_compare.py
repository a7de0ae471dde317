"""The comparison of exported graphs with PyTorch."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from tiny import export_tiny, traced_before

from openvis_rt.compare.differences import difference, sqnr
from openvis_rt.errors import ParityError
from openvis_rt.export import bundle as bundle_export
from openvis_rt.systems import SYSTEMS

TENSORS = {t.name: t for g in SYSTEMS["clip-vis"].graphs.values() for t in g.outputs}


@pytest.mark.parametrize("name", ["queries", "mask_area", "masks", "class_scores"])
def test_outputs_of_zeros_are_compared_like_any(name):
    zeros = np.zeros((4, 3), TENSORS[name].dtype)
    assert difference("g", "fp32", TENSORS[name], zeros, zeros, pixels=12).passed
    assert not difference("g", "fp32", TENSORS[name], zeros + 1, zeros, pixels=12).passed


def test_what_is_infinite_or_of_another_shape_has_no_signal():
    wanted = np.ones((2, 3), np.float32)
    assert sqnr(np.full((2, 3), np.inf, np.float16), wanted) == -math.inf
    assert math.isnan(sqnr(np.full((2, 3), np.nan), wanted))
    assert math.isnan(sqnr(np.ones((1,)), wanted))  # it would be broadcast


def test_rounding_passes_and_nan_fails():
    wanted = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
    near = difference("g", "fp32", TENSORS["queries"], wanted * (1 + 1e-6), wanted, 1)
    assert near.passed
    assert near.sqnr == pytest.approx(120, abs=1)
    broken = difference("g", "fp32", TENSORS["queries"], wanted * np.nan, wanted, 1)
    assert not broken.passed
    assert math.isnan(broken.largest)


def test_a_graph_that_computes_something_else_is_not_written(tiny_bundle, tmp_path, monkeypatch):
    load = traced_before(tiny_bundle)

    def wrong(module, spec):
        model = load(module, spec)
        for node in model.graph.node:
            if node.op_type == "GridSample":  # the convention that TensorRT releases got wrong
                for attribute in node.attribute:
                    if attribute.name == "align_corners":
                        attribute.CopyFrom(onnx.helper.make_attribute("align_corners", 1))
        return model

    monkeypatch.setattr(bundle_export, "onnx_from_module", wrong)
    with pytest.raises(ParityError, match="propose"):
        export_tiny(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
