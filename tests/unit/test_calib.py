"""INT8: ranges, pairs, the record, and a bundle that is calibrated, also by a killed process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from int8_bundle import BLOCKS, PRODUCTS, noise_frames, propose_int8_model, write_int8_bundle
from onnx import TensorProto, numpy_helper
from PIL import Image
from sealing import replaced

from openvis_rt.bundle.bundle import Bundle, write_manifest
from openvis_rt.calib import recording
from openvis_rt.calib.calibrate import calibrate, rebuild_int8
from openvis_rt.calib.histograms import BINS, METHODS, Histogram, range_of
from openvis_rt.calib.placement import block_of, place, products_of
from openvis_rt.calib.qdq import activations_of, fp16_scales, quantised
from openvis_rt.calib.ranges import Calibration
from openvis_rt.calib.reading import calibration_file, read_calibration
from openvis_rt.calib.tap import TapBackend, TappedGraph, run_windows
from openvis_rt.calib.windows import CalibrationFrames
from openvis_rt.compare.differences import sqnr
from openvis_rt.errors import BundleError, InputError, OutputError, ParityError, RecordError
from openvis_rt.export.fp16.keeps import GraphView
from openvis_rt.records import json_from_record

pytestmark = pytest.mark.usefixtures("parts_of_a_system")

FRAMES = CalibrationFrames(16, stride=1, allow_few=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise")
    for number, image in enumerate(noise_frames(24)):
        Image.fromarray(image).save(path / f"{number:03}.png")
    return path


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, folder):
    bundle = write_int8_bundle(tmp_path_factory.mktemp("calib") / "bundle")
    return calibrate(bundle, [str(folder)], frames=FRAMES, threads=1)


@pytest.fixture
def bundle(tmp_path):
    return write_int8_bundle(tmp_path / "bundle")


def files_of(bundle):
    return {p: p.read_bytes() for p in sorted(bundle.path.rglob("*")) if p.is_file()}


# ranges


def histogram_of(*arrays):
    histogram = Histogram()
    for array in arrays:
        histogram.add(np.asarray(array, np.float32))
    return histogram


def test_a_histogram_grows_and_loses_no_number():
    small, large = np.linspace(0, 1, 1000), np.linspace(-9, 30, 500)
    grown, whole = histogram_of(small, large), histogram_of(large, small)
    assert grown.counts.sum() == whole.counts.sum() == 1500
    assert grown.largest == whole.largest == 30.0
    assert grown.top == 32.0
    edge = BINS // 32  # the bins up to 1
    assert abs(grown.counts[:edge].sum() - (np.abs(np.r_[small, large]) < 1).sum()) <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(InputError, match="infinite numbers"):
        histogram_of([1.0, value])


def test_every_method_clips_less_than_it_saves():
    rng = np.random.default_rng(0)
    outlier = np.r_[rng.standard_normal(100_000), 40.0]
    ranges = {method: range_of(histogram_of(outlier), method) for method in METHODS}
    assert ranges["max"] == 40.0
    for method in ("percentile", "mse", "entropy"):
        assert 2.0 < ranges[method] < 39.0, method

    def error(limit):
        step = limit / 127
        return ((np.clip(np.rint(outlier / step), -127, 127) * step - outlier) ** 2).mean()

    assert error(ranges["mse"]) <= min(map(error, ranges.values())) * 1.01
    with pytest.raises(InputError, match="nothing but zeros"):
        range_of(histogram_of([0.0, 0.0]), "mse")


# where


def test_products_that_the_picture_reaches_are_placed_but_for_the_decoder():
    view = GraphView(propose_int8_model().graph)
    placement = place(view)
    assert tuple(view.nodes[i].output[0] for i in placement.products) == PRODUCTS
    left = {view.nodes[i].output[0]: reason for i, reason in placement.left.items()}
    assert left == {"queries": "query decoder"}
    assert len(products_of(view)) == len(PRODUCTS) + 1


@pytest.mark.parametrize(("alone", "left"), [(True, "what is normed"), (False, None)])
def test_a_product_that_only_a_layer_norm_reads_is_left(alone, left):
    model = propose_int8_model()
    nodes = {node.output[0]: node for node in model.graph.node}
    nodes["normed"].input[0] = "mixed"
    if alone:
        model.graph.node.remove(nodes["residual"])
    view = GraphView(model.graph)
    placement = place(view)
    assert placement.left.get(view.producer["mixed"]) == left
    assert (view.producer["mixed"] in placement.products) is (not alone)


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("model.proposal.backbone.res3.0.conv2.norm", "backbone.res3"),
        ("pixel_decoder.encoder.layers.1.linear1", "pixel_decoder.encoder.layers.1"),
        ("backbone.stem.conv1.norm", "backbone.stem"),
        (
            "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.linear1",
            "pixel_decoder.encoder.layers.0",
        ),
        ("backbone.clip_model.visual.layer1.0.conv1", "backbone.visual.layer1"),
        ("visual.trunk.stages.2.blocks.7.mlp.fc1", "visual.trunk.stages.2"),
    ],
)
def test_blocks_are_named_by_the_path_of_the_module(module, block):
    assert block_of(module) == block


# pairs


def ranges_of(model, products, limit=4.0):
    return dict.fromkeys(activations_of(GraphView(model.graph), products), limit)


@pytest.fixture(scope="module")
def placed():
    model = propose_int8_model()
    return model, place(GraphView(model.graph)).products


def test_pairs_stand_where_products_read_and_nowhere_else(placed):
    model, products = placed
    made = quantised(model, products, ranges_of(model, products))
    onnx.checker.check_model(made, full_check=True)
    view = GraphView(made.graph)
    pairs = [n.input[0] for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert sorted(pairs) == ["picture", "rows", "shortcut", "x", "x1", "x2"]
    read = {name: view.nodes[view.producer[name]].input for name in ("sum", "residual", "second")}
    assert list(read["sum"]) == ["second", "shortcut.dequantised"]  # may be fused with its conv
    assert list(read["residual"]) == ["mixed", "rows"]  # a sum that stays as it was
    assert read["second"][0] == "x1.dequantised"
    assert {view.types[n] for node in view.nodes for n in node.output} <= {1, 2, 3}  # all typed
    assert model.SerializeToString() == propose_int8_model().SerializeToString()  # unchanged


def test_weights_are_rounded_by_a_scale_for_each_channel(placed):
    model, products = placed
    made = quantised(model, products, ranges_of(model, products))
    held = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    wide = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, axis in (("w1", 0), ("w4", 0), ("w5", 1)):
        stored, scale = held[f"{name}.int8"], held[f"{name}.scale"]
        assert stored.dtype == np.int8
        assert scale.shape == (wide[name].shape[axis],)
        assert (scale.astype(np.float16) == scale).all()
        shape = [-1 if a == axis else 1 for a in range(stored.ndim)]
        error = np.abs(stored * scale.reshape(shape) - wide[name])
        assert (error <= scale.reshape(shape) / 2 + 1e-7).all()
        assert name not in held


def test_scales_are_rounded_up_to_fp16_and_never_to_0():
    ranges = np.array([0.0, 1e-9, 1e-3, 0.1, 12.7, 127 * 65504.0])
    scales = fp16_scales(ranges, "w")
    assert (scales.astype(np.float16) == scales).all()
    assert (scales * 127.0 >= ranges).all()
    assert scales.min() == 2.0**-24
    assert (scales[3:] * 127 <= ranges[3:] * 1.001).all()
    with pytest.raises(InputError, match=r"'w' reaches 1e\+08.*cannot be quantised"):
        fp16_scales([1e8], "w")


def test_onnxruntime_places_the_same_pairs(placed):
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model, products = placed
    limits = ranges_of(model, products)
    data = {n: TensorData(lowest=np.float32(-r), highest=np.float32(r)) for n, r in limits.items()}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    writer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[model.graph.node[i].name for i in products],
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv", "MatMul"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv", "MatMul"],
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
        },
    )
    writer.quantize_activation_tensor("shortcut")
    writer.quantize_model()
    theirs = {n.input[0] for n in writer.model.model.graph.node if n.op_type == "QuantizeLinear"}
    ours = quantised(model, products, limits)
    assert theirs == {n.input[0] for n in ours.graph.node if n.op_type == "QuantizeLinear"}
    held = {t.name: numpy_helper.to_array(t) for t in ours.graph.initializer}
    for tensor in writer.model.model.graph.initializer:
        if tensor.name.endswith("_quantized") and tensor.name.removesuffix("_quantized")[:1] == "w":
            stored = held[f"{tensor.name.removesuffix('_quantized')}.int8"].astype(int)
            assert np.abs(numpy_helper.to_array(tensor) - stored).max() <= 1


@pytest.mark.parametrize("spoil", ["again", "no range", "no product"])
def test_what_cannot_be_quantised_is_refused(placed, spoil):
    model, products = placed
    limits = ranges_of(model, products)
    if spoil == "again":
        model = quantised(model, products, limits)
        message = r"QuantizeLinear and DequantizeLinear nodes already; calibrate the FP32 graph"
    elif spoil == "no range":
        limits["x1"] = 0.0
        message = r"no range is known of 1 tensors, such as 'x1'"
    else:
        products, message = (0,), "no products with a weight"
    with pytest.raises(InputError, match=message):
        quantised(model, products, limits)


# the tap


def test_a_tapped_graph_is_computed_and_later_ones_are_not(bundle):
    model = onnx.load(bundle.graph_path("propose"))
    told = []
    spec = bundle.graph("propose").spec
    graphs = {"propose": TappedGraph(model, spec, ("x1", "mask_logits"))}
    backend = TapBackend(graphs, lambda graph, values: told.append((graph, dict(values))), 1)
    frames = noise_frames(2)
    assert list(run_windows(bundle, backend, [[frame] for frame in frames])) == [0, 1]
    backend.close()
    assert [graph for graph, _ in told] == ["propose"] * 2
    session = onnxruntime.InferenceSession(bundle.graph_path("propose"))
    for frame, (_, values) in zip(frames, told, strict=True):
        [wanted] = session.run(["mask_logits"], {"frames": frame[None]})
        np.testing.assert_allclose(values["mask_logits"], wanted, rtol=1e-4, atol=1e-4)
        assert values["x1"].shape == (1, 8, 6, 8)
        assert values["x1"].min() == 0.0


def test_a_later_graph_is_given_what_the_one_before_it_made(bundle):
    told = []
    graphs = {
        name: TappedGraph(onnx.load(bundle.graph_path(name)), bundle.graph(name).spec, seen)
        for name, seen in (("propose", ("queries",)), ("classify", ("class_scores",)))
    }
    backend = TapBackend(graphs, lambda graph, values: told.append(dict(values)), 1)
    list(run_windows(bundle, backend, [[frame] for frame in noise_frames(2)]))
    backend.close()
    queries, scores = (
        np.stack([t[n] for t in told if n in t]) for n in ("queries", "class_scores")
    )
    assert np.abs(queries[0] - queries[1]).max() > 1e-3
    assert np.abs(scores[0] - scores[1]).max() > 1e-5  # so they are of these queries


# a bundle


def outputs_of(bundle, precision, frame):
    session = onnxruntime.InferenceSession(bundle.graph_path("propose", precision))
    return dict(
        zip(("mask_logits", "queries"), session.run(None, {"frames": frame[None]}), strict=True)
    )


def test_a_calibrated_bundle_has_both_precisions(calibrated):
    bundle = Bundle.open(calibrated.bundle.path)
    assert list(bundle.manifest.graphs) == ["fp32", "fp16", "int8-fp32", "int8"]
    files = {p: [g.file for g in graphs.values()] for p, graphs in bundle.manifest.graphs.items()}
    assert files["int8"] == ["propose.int8.onnx", "classify.fp16.onnx", "masks.onnx"]
    assert files["int8-fp32"] == ["propose.int8-fp32.onnx", "classify.onnx", "masks.onnx"]
    assert bundle.graph("propose", "int8").precision == "int8"
    for precision in ("int8", "int8-fp32"):
        onnx.checker.check_model(bundle.graph_path("propose", precision), full_check=True)
        for frame in noise_frames(3, seed=9):
            found, wanted = (outputs_of(bundle, p, frame) for p in (precision, "fp32"))
            for name, value in wanted.items():
                assert 15 < sqnr(found[name], value) < 70, (precision, name)


def test_scales_have_the_type_of_their_node(calibrated):
    model = onnx.load(calibrated.bundle.graph_path("propose", "int8"))
    view = GraphView(model.graph)
    kinds = set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert view.types[node.input[0]] == view.types[node.input[1]]
            kinds.add(view.types[node.input[0]])
        if node.op_type == "DequantizeLinear":
            assert view.types[node.output[0]] == view.types[node.input[1]] == TensorProto.FLOAT16
    assert kinds == {TensorProto.FLOAT, TensorProto.FLOAT16}  # the picture's is FP32


def test_the_record_says_what_was_done_and_is_read_again_as_it_was(calibrated, folder):
    record = read_calibration(calibrated.bundle)
    assert record == calibrated.calibration
    [source] = record.sources
    assert (source.name, source.frames, source.candidates, source.chosen) == (
        str(folder),
        24,
        24,
        20,
    )
    assert (record.frames, record.held_out, record.method) == (16, 4, "percentile")
    graph = record.graphs["propose"]
    assert graph.products == PRODUCTS
    assert set(graph.tensors) == {
        *("picture", "x", "x1", "x2", "rows", "shortcut"),
        *("second", "features"),  # made by integer kernels on a CPU
    }
    assert graph.tensors["x"].lowest == 0.0 > graph.tensors["shortcut"].lowest
    assert graph.tensors["x"].by_method["max"] == graph.tensors["x"].largest
    told = {(m.output, m.measure) for m in record.measured["int8"]}
    assert told == {
        ("mask_logits", "SQNR dB"),
        ("mask_logits", "median IoU"),
        ("queries", "SQNR dB"),
    }
    assert all(m.worst <= m.median for m in record.measured["int8-fp32"])


def test_the_record_counts_the_int8_products_of_the_files_by_block(calibrated):
    bundle = calibrated.bundle
    blocks = read_calibration(bundle).graphs["propose"].blocks
    assert [block.name for block in blocks] == [*BLOCKS, "other"]
    assert sum(block.share for block in blocks) < 1.0  # products of two activations have the rest
    for precision in ("int8", "int8-fp32"):
        for block in blocks[:-1]:
            assert block.quantised(precision) == block.products == len(BLOCKS[block.name])
            assert block.left[precision] == {}
        assert blocks[-1].left[precision] == {"query decoder": 1}
        nodes = onnx.load(bundle.graph_path("propose", precision)).graph.node
        weights = {"Conv", "MatMul", "Gemm"} & {node.op_type for node in nodes}
        integer = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
        products = [n for n in nodes if n.op_type in weights and n.input[1] in integer]
        assert len(products) == sum(block.quantised(precision) for block in blocks)


def test_inspect_lists_the_blocks_of_a_bundle_and_of_a_graph(openvis, calibrated, folder):
    path = calibrated.bundle.path
    code, out, err = openvis("inspect", path)
    assert code == 0, err
    [row] = [line.split() for line in out.splitlines() if "backbone.res2" in line]
    assert row.count("3/3") == 2
    assert f"20 of {folder}, which has 24 frames" in " ".join(out.split())
    assert "not quantised, the same files as without INT8: classify, masks" in out
    code, out, err = openvis("inspect", path, "--json")
    assert code == 0, err
    told = json.loads(out)["calibration"]
    assert told["sensitivity"] is None
    record = json_from_record(calibrated.calibration)
    assert told["measured"] == record["measured"]
    assert told["graphs"]["propose"]["blocks"] == record["graphs"]["propose"]["blocks"]
    code, out, err = openvis("inspect", path / "propose.int8.onnx", "--json")
    assert code == 0, err
    assert json.loads(out)["blocks"]["backbone.res2"] == "3 of 3"
    code, out, _ = openvis("inspect", path / "propose.onnx", "--json")
    assert "blocks" not in json.loads(out)


def test_the_same_frames_and_seed_make_the_same_files(calibrated, folder, tmp_path):
    again = calibrate(
        Bundle.open(calibrated.bundle.path),
        [str(folder)],
        output=tmp_path / "again",
        frames=FRAMES,
        threads=1,
    )
    assert again.calibration.graphs == calibrated.calibration.graphs
    for precision in ("int8", "int8-fp32"):
        paths = [b.graph_path("propose", precision) for b in (again.bundle, calibrated.bundle)]
        assert len({path.read_bytes() for path in paths}) == 1
    Bundle.open(tmp_path / "again")
    assert [p.name for p in tmp_path.iterdir()] == ["again"]  # nothing beside it


def test_graphs_are_made_again_from_the_record_alone(calibrated, tmp_path):
    same = rebuild_int8(calibrated.bundle, output=tmp_path / "same")
    paths = [b.graph_path("propose", "int8") for b in (same.bundle, calibrated.bundle)]
    assert len({path.read_bytes() for path in paths}) == 1
    assert same.calibration == calibrated.calibration
    told = []
    other = rebuild_int8(calibrated.bundle, output=tmp_path / "b", method="max", warn=told.append)
    assert "were not measured" in told[0]
    assert other.calibration.measured == {}
    assert other.bundle.graph_path("propose", "int8").read_bytes() != paths[0].read_bytes()
    assert read_calibration(other.bundle).method == "max"


def test_what_is_there_is_replaced_only_when_asked(calibrated, bundle, folder):
    with pytest.raises(OutputError, match=r"has int8 and int8-fp32 graphs already.*--overwrite"):
        calibrate(calibrated.bundle, [str(folder)], frames=FRAMES)
    first = calibrate(bundle, [str(folder)], frames=FRAMES, threads=1).bundle
    second = rebuild_int8(first, method="max", overwrite=True).bundle
    Bundle.open(second.path)
    names = {path.name for path in second.path.glob("*.onnx")}
    assert {"propose.int8.2.onnx", "propose.int8-fp32.2.onnx"} < names
    assert not names & {"propose.int8.onnx", "propose.int8-fp32.onnx"}
    assert calibration_file(second.manifest.files) == "calibration/ranges.2.json"
    assert read_calibration(second).method == "max"


def test_a_bundle_without_fp16_gets_what_a_cpu_runs(tmp_path, folder):
    bundle, told = write_int8_bundle(tmp_path / "wide", half=False), []
    made = calibrate(bundle, [str(folder)], frames=FRAMES, threads=1, warn=told.append)
    assert made.precisions == ("int8-fp32",)
    assert "has no FP16 graphs" in told[0]


# what is refused


def test_a_graph_without_pixels_has_nothing_to_quantise(bundle, folder):
    with pytest.raises(InputError, match="nothing of the graph 'classify' is to be quantised"):
        calibrate(bundle, [str(folder)], frames=FRAMES, graphs=["classify"])
    with pytest.raises(InputError, match="no graph 'nothing' to quantise; it has propose"):
        calibrate(bundle, [str(folder)], frames=FRAMES, graphs=["nothing"])


def test_activations_that_are_no_numbers_stop_the_run_and_are_named(tmp_path, folder):
    bundle = write_int8_bundle(tmp_path / "nan", half=False, scale=np.inf)
    before = files_of(bundle)
    with pytest.raises(
        InputError, match=r"'picture' of graph 'propose' holds infinite.*frame \d+ of"
    ):
        calibrate(bundle, [str(folder)], frames=FRAMES)
    assert files_of(bundle) == before


def test_products_of_nothing_but_zeros_are_left_and_said(tmp_path, folder):
    bundle, told = write_int8_bundle(tmp_path / "dead", dead=True), []
    made = calibrate(bundle, [str(folder)], frames=FRAMES, threads=1, check=False, warn=told.append)
    assert any("2 tensors of propose, such as 'x1', are 0 everywhere" in text for text in told)
    weights = {}
    for precision in ("int8", "int8-fp32"):
        graph = onnx.load(made.bundle.graph_path("propose", precision)).graph
        weights[precision] = {n.output[0]: n.input[1] for n in graph.node if n.op_type == "Conv"}
    assert weights["int8"]["first"] == "w1.dequantised"
    assert not weights["int8"]["second"].endswith(".dequantised")
    left = weights["int8-fp32"]  # there the output of a product has to have a range as well
    assert (left["first"], left["second"]) == ("w1", "w2")
    assert left["shortcut.exact"] == "shortcut.weight"
    block = made.calibration.graphs["propose"].blocks[1]
    assert block.left == {"int8": {"only zeros": 1}, "int8-fp32": {"only zeros": 2}}


def test_a_graph_that_is_int8_already_is_refused(calibrated, tmp_path, folder):
    bundle = write_int8_bundle(tmp_path / "twice", half=False)
    twice = onnx.load(calibrated.bundle.graph_path("propose", "int8-fp32"))
    onnx.save(twice, bundle.graph_path("propose"))
    write_manifest(bundle.path, bundle.manifest)
    with pytest.raises(InputError, match=r"propose\.onnx: the graph has 24 QuantizeLinear"):
        calibrate(Bundle.open(bundle.path), [str(folder)], frames=FRAMES)


@pytest.mark.parametrize("foreign", ["checkpoint", "variant", "graph"])
def test_a_calibration_of_something_else_is_refused(calibrated, tmp_path, foreign):
    bundle = rebuild_int8(calibrated.bundle, output=tmp_path / "b").bundle
    manifest = bundle.manifest
    if foreign == "graph":
        model = onnx.load(bundle.graph_path("propose"))
        model.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.float32(0.5), model.graph.initializer[0].name)
        )
        onnx.save(model, bundle.graph_path("propose"))
    else:
        value = {"sha256": "another"} if foreign == "checkpoint" else "another"
        manifest = replace(manifest, **{foreign: value})
    others = [n for n in bundle.manifest.files if not n.endswith(".onnx")]
    write_manifest(bundle.path, manifest, others)
    message = {
        "checkpoint": r"is of the checkpoint \{\}.*another",
        "variant": "is of the model tiny.*another",
        "graph": "is of another graph 'propose': its FP32 file had sha256",
    }[foreign]
    with pytest.raises(InputError, match=message):
        rebuild_int8(Bundle.open(bundle.path), overwrite=True)


def test_a_damaged_record_is_refused(calibrated, tmp_path):
    bundle = rebuild_int8(calibrated.bundle, output=tmp_path / "b").bundle
    name = calibration_file(bundle.manifest.files)
    data = json.loads((bundle.path / name).read_text())
    data["graphs"]["propose"]["tensors"]["x"]["by_method"]["mse"] = 0.0
    replaced(bundle.path, name, json.dumps(data).encode())
    with pytest.raises(InputError, match=r"no calibration .*tensors.x: the ranges are not"):
        read_calibration(Bundle.open(bundle.path))
    with pytest.raises(InputError, match="no recorded calibration"):
        read_calibration(write_int8_bundle(tmp_path / "none", half=False))
    with pytest.raises((RecordError, InputError), match="schema 1 is not known"):
        replace(calibrated.calibration, schema=1)
    assert isinstance(calibrated.calibration, Calibration)


def test_a_bundle_of_fp16_alone_cannot_be_calibrated(bundle, folder):
    manifest = replace(bundle.manifest, graphs={"fp16": bundle.manifest.graphs["fp16"]})
    write_manifest(bundle.path, manifest)
    with pytest.raises(BundleError, match="no graph 'propose' in precision 'fp32'"):
        calibrate(Bundle.open(bundle.path), [str(folder)], frames=FRAMES)


def test_int8_that_is_too_far_is_refused_and_nothing_is_added(bundle, folder, monkeypatch):
    strict = {"mask_logits": 90.0, "queries": 90.0, "bits": 0.0, "masks": 1.0}
    gates = {"int8": strict, "int8-fp32": strict}
    monkeypatch.setattr("openvis_rt.calib.measuring.GATES", gates)
    before = files_of(bundle)
    with pytest.raises(
        ParityError, match=r"int8-fp32 is too far from FP32 on 4 frames.*gate is 90"
    ):
        calibrate(bundle, [str(folder)], frames=FRAMES, threads=1)
    assert files_of(bundle) == before
    calibrate(bundle, [str(folder)], frames=FRAMES, threads=1, check=False)


# a killed process

KILLED = """
import os, signal, sys
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.calibrate import calibrate
from openvis_rt.calib.windows import CalibrationFrames

def progress(what, done, total):
    if what == "calibrating" and done == 11:
        os.kill(os.getpid(), signal.SIGKILL)

frames = CalibrationFrames(16, stride=1, allow_few=True)
calibrate(Bundle.open(sys.argv[1]), [sys.argv[2]], frames=frames, threads=1, progress=progress)
"""


def test_kill_9_loses_a_few_frames_and_no_more(calibrated, bundle, folder):
    before = files_of(bundle)
    command = [sys.executable, "-c", KILLED, str(bundle.path), str(folder)]
    ended = subprocess.run(command, capture_output=True, env={**os.environ}, timeout=50)
    assert ended.returncode == -9, ended.stderr
    assert files_of(bundle) == before
    assert len(list(bundle.path.parent.glob(".bundle.calibrating-*.npz"))) == 1
    done = []

    def progress(what, number, total):
        if what == "calibrating":
            done.append(number)

    result = calibrate(bundle, [str(folder)], frames=FRAMES, threads=1, progress=progress)
    assert done[0] == 8
    assert result.calibration.graphs == calibrated.calibration.graphs
    assert not list(bundle.path.parent.glob(".bundle.calibrating-*"))


def test_what_was_saved_is_of_the_same_frames_only(bundle, folder, monkeypatch):
    saved = []
    monkeypatch.setattr(
        recording, "collect", lambda *args, **_: saved.append(args[4].path) or 1 / 0
    )
    for frames in (FRAMES, FRAMES, replace(FRAMES, seed=1), replace(FRAMES, count=12)):
        with pytest.raises(ZeroDivisionError):
            calibrate(bundle, [str(folder)], frames=frames)
    assert saved[0] == saved[1]
    assert len(set(saved)) == 3


# the command


def test_the_command_calibrates_and_rebuilds(openvis, bundle, folder):
    options = ("--into", "--frames", 16, "--stride", 1, "--allow-few", "--threads", 1)
    code, out, err = openvis("calibrate", bundle.path, folder, *options)
    assert code == 0, err
    assert "mask_logits" in out
    assert "6 products in INT8, ranges by percentile from 16 windows of 1 sources" in err
    code, _, err = openvis("calibrate", bundle.path, folder, *options)
    assert code == 2
    assert "--overwrite" in err
    code, out, err = openvis(
        *("calibrate", bundle.path, "--rebuild", "--method", "entropy", "--into", "--overwrite"),
        "--json",
    )
    assert code == 0, err
    record = json.loads(out)
    assert record["calibration"]["method"] == "entropy"
    assert set(record["files"]) == {"int8", "int8-fp32"}
    code, out, _ = openvis("inspect", bundle.path)
    assert code == 0
    assert "ranges by entropy from 16 frames" in " ".join(out.split())
    assert "the graphs by entropy were not measured beside FP32" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --into to add to the bundle itself, or -o FOLDER"),
        (("video.mp4", "--into", "-o", "new"), "give --into to add to the bundle itself, or -o"),
        (("--into",), "give videos to calibrate on, or --rebuild"),
        (("video.mp4", "--into", "--rebuild"), "one of both"),
        (("--into", "--rebuild", "--graph", "propose"), "leave --graph out"),
        (("--into", "--rebuild"), "no recorded calibration"),
        (("video.mp4", "--into", "--method", "best"), "there is no method 'best'"),
        (("video.mp4", "--into", "--frames", "5"), "5 frames are too few"),
        (("none.mp4", "--into"), "none.mp4 does not exist"),
    ],
)
def test_wrong_usage_exits_2_and_says_how_to_mend_it(openvis, bundle, arguments, message):
    before = files_of(bundle)
    code, out, err = openvis("calibrate", bundle.path, *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert files_of(bundle) == before


def test_tensorrt_is_not_given_what_is_for_a_cpu(openvis, calibrated):
    path = calibrated.bundle.path
    code, _, err = openvis("build", path, "--backend", "tensorrt-rtx", "--precision", "int8-fp32")
    assert code == 2
    assert "is for ONNX Runtime on a CPU" in " ".join(err.split())
    with pytest.raises(BundleError, match=r"holds no graph .*openvis calibrate. with videos makes"):
        write_int8_bundle(path.parent / "plain", half=False).graph("propose", "int8")


@pytest.mark.timeout(180)  # compiling, on a busy machine
def test_an_engine_of_int8_is_built_and_said_to_be_one(calibrated, tmp_path, openvis):
    pytest.importorskip("tensorrt_rtx", reason="compiling needs the extra [rtx]")
    bundle = rebuild_int8(calibrated.bundle, output=tmp_path / "b").bundle
    code, out, err = openvis(
        *("build", bundle.path, "--backend", "tensorrt-rtx", "--targets", "sm89", "--json"),
        *("--precision", "int8", "--graph", "propose"),
    )
    assert code == 0, err
    [built] = json.loads(out)
    assert built["precision_built"] == "int8"
    layers = built["layers"]
    assert layers["CONVOLUTION"] == {"int8": 5}
    assert layers["MATRIX_MULTIPLY"]["int8"] == 1
    _, out, _ = openvis("inspect", bundle.path)
    assert "fits this bundle; int8, by tensorrt-rtx" in out
