"""FP16 graphs: what stays FP32, strict types, weights that do not fit, parity, and the twin."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, shape_inference
from tiny import VARIANT, export_tiny, tiny_model, traced_before
from tiny_ovformer import shared_bundle
from typer.testing import CliRunner

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.main import app
from openvis_rt.compare.differences import GATES, sqnr
from openvis_rt.compare.torch_reference import TorchReference, compare_with_torch
from openvis_rt.errors import InputError, ParityError
from openvis_rt.export import bundle as bundle_export
from openvis_rt.export.fp16.convert import Fp16Graph, fp16_from_fp32, fp16_spec
from openvis_rt.export.fp16.emulation import fp16_emulation
from openvis_rt.export.fp16.keeps import KEEPS, MOVES, GraphView, narrowed
from openvis_rt.export.fp16.parity import (
    attention_masks,
    compare_fp16_with_torch,
    with_given_masks,
)
from openvis_rt.export.graph_module import GraphModule
from openvis_rt.models import clip_vis
from openvis_rt.systems.graphs import HALF_TENSORS, GraphSpec, TensorSpec

NARROWED = ("propose", "classify", "text")
NAMES = [keep.name for keep in KEEPS]
ELSEWHERE = {
    "crops": "of MinVIS-CLIP: test_crop_clip.py",
    "window positions": "of VideoOVFormer: test_ovformer_pipeline.py",
}
HERE = [name for name in NAMES if name not in ELSEWHERE]


@pytest.fixture(scope="module")
def wide(tiny_bundle) -> dict[str, tuple[onnx.ModelProto, GraphSpec]]:
    """The FP32 graphs of the tiny bundle and what they promise."""
    bundle = Bundle.open(tiny_bundle)
    return {g: (onnx.load(bundle.graph_path(g)), bundle.graph(g).spec) for g in NARROWED}


@pytest.fixture(scope="module")
def half(tiny_bundle) -> dict[str, onnx.ModelProto]:
    """The FP16 graphs of the tiny bundle."""
    bundle = Bundle.open(tiny_bundle)
    return {g: onnx.load(bundle.graph_path(g, "fp16")) for g in NARROWED}


def one_node_graph(op: str, constant: np.ndarray) -> tuple[onnx.ModelProto, GraphSpec]:
    """y = op(x, constant) in FP32."""
    shape = list(constant.shape)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy")
    node = helper.make_node(op, ["x", "c"], ["y"], "node")
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(constant, "c")])
    tensors = [TensorSpec(name, "float32", tuple(shape)) for name in "xy"]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model, GraphSpec("g", (tensors[0],), (tensors[1],))


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    serialized = model.SerializeToString()
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


# the list


def test_every_entry_finds_nodes_and_they_are_fp32(wide, half):
    found = Counter()
    for graph in NARROWED:
        assert narrowed(half[graph]) == {}
        view = GraphView(wide[graph][0].graph)
        found.update({keep.name: len(keep.find(view)) for keep in KEEPS})
    assert all(found[name] for name in HERE), found


@pytest.mark.parametrize("name", HERE)
def test_leaving_out_an_entry_is_noticed(wide, name):
    keeps = [keep for keep in KEEPS if keep.name != name]
    if name == "class scores":  # whose 1e-12 cannot even be written
        with pytest.raises(InputError, match="takes for 0"):
            fp16_from_fp32(*wide["classify"], keeps)
        return
    broken = [narrowed(fp16_from_fp32(*wide[graph], keeps).model) for graph in NARROWED]
    assert any(name in entries for entries in broken)


@pytest.mark.parametrize(
    ("graph", "name"),
    [("propose", "window positions"), ("propose", "picture"), ("embed", "picture")],
)
def test_what_clips_have_of_their_own_is_fp32(tmp_path_factory, graph, name):
    bundle = shared_bundle("ovformer-video-r50", tmp_path_factory)
    model, spec = onnx.load(bundle.graph_path(graph)), bundle.graph(graph).spec
    found = next(keep for keep in KEEPS if keep.name == name).find(GraphView(model.graph))
    kinds = {model.graph.node[i].op_type for i in found}
    assert kinds >= (
        {"Sin", "Cos", "Range", "Add"} if name == "window positions" else {"Div", "Sub"}
    )
    assert narrowed(fp16_from_fp32(model, spec).model) == {}
    without = [keep for keep in KEEPS if keep.name != name]
    assert name in narrowed(fp16_from_fp32(model, spec, without).model)


def test_all_heavy_work_outside_the_list_is_fp16(wide, half):
    for graph in NARROWED:
        view, model = GraphView(half[graph].graph), half[graph]
        kept = set().union(*(keep.find(view) for keep in KEEPS))
        heavy = [i for i, n in enumerate(model.graph.node) if n.op_type in HEAVY and i not in kept]
        assert len(heavy) > 5
        for index in heavy:
            types = {view.types[name] for name in model.graph.node[index].input if name}
            assert types == {TensorProto.FLOAT16}, model.graph.node[index].name


HEAVY = ("Conv", "MatMul", "Gemm")


def test_the_docs_list_every_entry_with_its_reason():
    text = (Path(__file__).parents[2] / "docs" / "fp16.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert listed == [(keep.name, keep.what, keep.reason) for keep in KEEPS]


# types


def test_types_agree_in_every_operator(half):
    for model in half.values():
        onnx.checker.check_model(model, full_check=True)
        shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def test_no_number_goes_to_the_other_type_and_back(half):
    """But for the sums that are rounded on purpose, which `test_sums_...` looks at."""
    for model in half.values():
        view = GraphView(model.graph)
        for node in model.graph.node:
            if node.op_type != "Cast" or not view.is_float(node.input[0]):
                continue
            before = view.producer.get(node.input[0])
            if before is not None and model.graph.node[before].input[0].endswith(".sum"):
                continue
            if before is not None and model.graph.node[before].op_type == "Cast":
                assert not view.is_float(model.graph.node[before].input[0]), node.name
            assert view.types[node.input[0]] != view.types[node.output[0]], node.name


def test_mask_products_are_sums_in_fp32_of_fp16_numbers_rounded_at_once(half):
    """The Casts around it that TensorRT makes one FP16 kernel with an FP32 sum of."""
    view = GraphView(half["propose"].graph)
    [keep] = [keep for keep in KEEPS if keep.rounded]
    products = keep.find(view)
    assert products
    for index in products:
        node = view.nodes[index]
        assert {view.types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}
        [rounding] = view.consumers[node.output[0]]
        assert view.nodes[rounding].op_type == "Cast"
        assert view.types[view.nodes[rounding].output[0]] == TensorProto.FLOAT16
        for name in node.input:
            sources = {view.nodes[i].op_type for i in view.upstream(name, ("Cast",))}
            assert sources <= MOVES  # nothing computes between the operand's Cast and the product


def test_inputs_and_outputs_have_the_types_of_the_manifest(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    for graph in bundle.graphs:
        file = bundle.graph(graph, "fp16")
        assert file.precision == ("fp32" if graph == "masks" else "fp16")
        ports = onnx.load(bundle.path / file.file).graph
        for values, tensors in ((ports.input, file.spec.inputs), (ports.output, file.spec.outputs)):
            for value, tensor in zip(values, tensors, strict=False):  # overridable ones come last
                dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                in_file = (
                    "bool" if tensor.name == "masks" else tensor.dtype
                )  # rows are packed later
                assert (value.name, dtype.name) == (tensor.name, in_file)
                half_wanted = tensor.name in HALF_TENSORS
                assert (tensor.dtype == "float16") == half_wanted


def test_files_are_half_as_large(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    for graph in NARROWED:
        wide, half = (bundle.graph_path(graph, p).stat().st_size for p in ("fp32", "fp16"))
        assert half < 0.52 * wide


def test_a_file_says_its_precision_and_what_is_kept(half):
    facts = {p.key: p.value for p in half["propose"].metadata_props}
    assert facts["openvis_rt.precision"] == '"fp16"'
    assert '"mask product": 3' in facts["openvis_rt.kept_in_fp32"]


# weights


@pytest.mark.parametrize("value", [65520.0, -1e6])
def test_a_weight_beyond_fp16_is_an_error_that_names_it(value):
    model, spec = one_node_graph("Add", np.array([1.0, value], np.float32))
    message = re.escape(f"'c' holds {value:g},") + ".*--precision fp32"
    with pytest.raises(InputError, match=message):
        fp16_from_fp32(model, spec)


def test_weights_are_rounded_as_ieee_754_does():
    numbers = np.array([65504, 65519, 1e-8, 2.9e-8, 3.1e-8, -1e-5, 1 / 3], np.float32)
    model, spec = one_node_graph("Mul", numbers)
    [found] = fp16_from_fp32(model, spec).model.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(found), numbers.astype(np.float16))


def test_a_constant_that_would_become_zero_is_an_error():
    model, spec = one_node_graph("Max", np.array(1e-12, np.float32))
    with pytest.raises(InputError, match="takes for 0"):
        fp16_from_fp32(model, spec)


def test_a_weight_of_kept_and_other_nodes_stays_exact_for_the_kept():
    value = np.array([1 / 3, 2 / 3], np.float32)
    model, spec = one_node_graph("Mul", value)
    softmax = helper.make_node("Softmax", ["c"], ["s"])
    model.graph.node.append(softmax)
    model.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [2]))
    found = {
        t.name: numpy_helper.to_array(t)
        for t in fp16_from_fp32(model, spec).model.graph.initializer
    }
    np.testing.assert_array_equal(found["c"], value)
    np.testing.assert_array_equal(found["c.fp16"], value.astype(np.float16))


# parity


def test_activations_beyond_fp16_are_noticed(wide):
    model, spec = onnx.ModelProto(), wide["propose"][1]
    model.CopyFrom(wide["propose"][0])
    network = tiny_model()
    first = next(n for n in model.graph.node if n.op_type == "Conv")
    for tensor in model.graph.initializer:
        if tensor.name in first.input:  # every weight fits, what they give does not
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * 3e5, tensor.name)
            )
    with torch.no_grad():
        network.backbone.clip_model.visual.bn1.weight *= 3e5
    reference = TorchReference(spec, GraphModule(network, spec))
    half = fp16_from_fp32(model, spec)
    twin = fp16_emulation(half.model).SerializeToString()
    with pytest.raises(ParityError, match="--precision fp32"):
        compare_with_torch(twin, half.spec, reference, "fp16")


def test_every_precision_is_held_against_pytorch(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_export, "onnx_from_module", traced_before(tiny_bundle))
    result = export_tiny(tmp_path / "bundle")
    outputs = {
        (precision if graph != "masks" else "fp32", graph, t.name)
        for precision, graphs in result.bundle.manifest.graphs.items()
        for graph, file in graphs.items()
        for t in file.spec.outputs
    }
    assert {(d.precision, d.graph, d.output) for d in result.differences} == outputs


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_of_one_precision_holds_no_other(tiny_bundle, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(bundle_export, "onnx_from_module", traced_before(tiny_bundle))
    bundle = export_tiny(tmp_path / "bundle", precisions=(precision,), verify=False).bundle
    bundle.verify()
    assert list(bundle.manifest.graphs) == [precision]
    files = {p.name for p in bundle.path.glob("*.onnx")}
    suffix = ".fp16.onnx" if precision == "fp16" else ".onnx"
    assert files == {"masks.onnx", *(f"{g}{suffix}" for g in NARROWED)}


@pytest.mark.parametrize("precisions", [("fp8",), ()])
def test_a_precision_that_does_not_exist_is_refused_before_any_work(tmp_path, precisions):
    with pytest.raises(InputError, match="fp32, fp16"):
        export_tiny(tmp_path / "bundle", precisions=precisions)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), ["fp32", "fp16"]),
        (("--precision", "fp16,fp32"), ["fp32", "fp16"]),
        (("--precision", "fp16", "--precision", "fp32"), ["fp32", "fp16"]),
        (("--precision", "fp32"), ["fp32"]),
    ],
)
def test_the_command_takes_precisions(tiny_bundle, tmp_path, monkeypatch, options, wanted):
    monkeypatch.setattr(clip_vis, "build", lambda _: tiny_model())
    monkeypatch.setattr(bundle_export, "onnx_from_module", traced_before(tiny_bundle))
    place = ("-o", str(tmp_path / "new"), "--size", "60x90", "--random-weights", "0", "--no-verify")
    done = CliRunner().invoke(app, ["export", VARIANT.name, *place, *options])
    assert done.exit_code == 0, done.output
    assert list(Bundle.open(tmp_path / "new").manifest.graphs) == wanted


def test_the_command_refuses_an_unknown_precision_before_it_loads_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_vis, "build", None)  # not callable
    place = ("-o", str(tmp_path / "new"), "--random-weights", "0")
    done = CliRunner().invoke(app, ["export", VARIANT.name, *place, "--precision", "fp64"])
    assert isinstance(done.exception, InputError)
    assert "'fp64'" in str(done.exception)


# the twin


def additions(count: int) -> onnx.ModelProto:
    """y = x + 1 + 1 ... in FP16."""
    names = ["x", *(f"s{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("Add", [a, "one"], [b]) for a, b in pairwise(names)]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, [1]) for n in "xy")
    one = numpy_helper.from_array(np.ones(1, np.float16), "one")
    graph = helper.make_graph(nodes, "g", [x], [y], [one])
    graph.value_info.extend(
        helper.make_tensor_value_info(n, TensorProto.FLOAT16, [1]) for n in names[1:-1]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_the_twin_rounds_after_every_operator():
    """ONNX Runtime 1.31 answers 2052 to the FP16 graph itself: it computes in FP32 and rounds once.

    That is no promise of theirs, and nothing here relies on it: the twin has its rounding in Casts.
    """
    x = np.array([2048], np.float16)
    [exact] = run(fp16_emulation(additions(3)), {"x": x})
    assert exact.dtype == np.float16
    assert exact == x + np.float16(1) + np.float16(1) + np.float16(1) == 2048


def test_the_twin_is_numpys_fp16(half):
    """Element by element, where the order of sums plays no part."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 64)).astype(np.float16)
    ops = [
        ("Mul", "x", "y", "a"),
        ("Add", "a", "x", "b"),
        ("Sub", "b", "y", "c"),
        ("Div", "c", "x", "d"),
    ]
    nodes = [helper.make_node(op, [a, b], [out]) for op, a, b, out in ops]
    info = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT16, [64]) for n in "xyabcd"}
    graph = helper.make_graph(nodes, "g", [info["x"], info["y"]], [info["d"]])
    graph.value_info.extend(info[n] for n in "abc")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    [found] = run(fp16_emulation(model), {"x": x, "y": y})
    np.testing.assert_array_equal(found, (x * y + x - y) / x)


def test_the_twin_computes_in_fp32_and_looks_like_the_graph(half):
    for model in half.values():
        twin = fp16_emulation(model)
        onnx.checker.check_model(twin, full_check=True)
        assert list(twin.graph.input) == list(model.graph.input)
        assert list(twin.graph.output) == list(model.graph.output)
        inferred = shape_inference.infer_shapes(twin, check_type=True, strict_mode=True)
        halves = {
            v.name
            for v in inferred.graph.value_info
            if v.type.tensor_type.elem_type == TensorProto.FLOAT16
        }
        uses = {n.op_type for n in twin.graph.node if not halves.isdisjoint(n.input)}
        assert uses == {"Cast"}


def test_only_tensors_that_stay_on_the_device_are_fp16(wide):
    for _, spec in wide.values():
        for before, after in zip(
            (*spec.inputs, *spec.outputs),
            (*fp16_spec(spec).inputs, *fp16_spec(spec).outputs),
            strict=True,
        ):
            assert (before.dtype != after.dtype) == (before.name == "features")


# flipped bits of attention masks, and what is lost otherwise


def turn_attention_masks(model: onnx.ModelProto, masks: list[str]) -> None:
    """Let the graph see what it must not and the other way round, so that every bit flips."""
    for node in model.graph.node:
        if node.output[0] in masks:
            node.op_type = {"Less": "Greater"}[node.op_type]


@pytest.fixture
def close(monkeypatch) -> None:
    """A gate end to end that tells 34 to 46 dB, with every bit flipped, from 55, with none."""
    monkeypatch.setitem(GATES["fp16"], "mask_logits", 50.0)


@pytest.fixture
def flipping(monkeypatch, close) -> None:
    """Exports whose FP16 `propose` computes well, but with attention masks of flipped bits."""

    def converted(model: onnx.ModelProto, spec: GraphSpec) -> Fp16Graph:
        half = fp16_from_fp32(model, spec)
        turn_attention_masks(half.model, attention_masks(model))
        return half

    monkeypatch.setattr(bundle_export, "fp16_from_fp32", converted)


def test_attention_masks_are_found_by_what_reads_them(wide, tmp_path_factory):
    assert len(attention_masks(wide["propose"][0])) == tiny_model().sem_seg_head.predictor.layers
    assert attention_masks(wide["classify"][0]) == attention_masks(wide["text"][0]) == []
    windows = onnx.load(shared_bundle("ovformer-video-r50", tmp_path_factory).graph_path("propose"))
    assert len(attention_masks(windows)) > 0


def test_given_masks_take_the_place_of_those_that_the_graph_decides(wide):
    model, spec = wide["propose"]
    masks = attention_masks(model)
    reference = TorchReference(spec, GraphModule(tiny_model(), spec))
    inputs, wanted = reference.answer(0)
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in masks)
    known = dict(zip(masks, run(shown, inputs)[-len(masks) :], strict=True))
    given = run(with_given_masks(model, masks), inputs | known)
    assert sqnr(given[0], wanted[0]) > 80
    turned = {name: ~mask for name, mask in known.items()}
    assert sqnr(run(with_given_masks(model, masks), inputs | turned)[0], wanted[0]) < 40


def test_flipped_bits_are_told_from_a_loss_of_precision(wide, close):
    model, spec = wide["propose"]
    reference = TorchReference(spec, GraphModule(tiny_model(), spec))
    half = fp16_from_fp32(model, spec)
    sound = compare_fp16_with_torch(half, model, reference)
    assert {d.given_masks for d in sound} == {False, True}
    turn_attention_masks(half.model, attention_masks(model))
    with pytest.raises(ParityError, match="flipped bits of attention masks, not a loss of prec"):
        compare_fp16_with_torch(half, model, reference)
    lossy = fp16_from_fp32(model, spec)
    first = next(n for n in lossy.model.graph.node if n.op_type == "Conv")
    for tensor in lossy.model.graph.initializer:
        if tensor.name == first.input[1]:
            coarse = np.round(numpy_helper.to_array(tensor) * 16) / 16
            tensor.CopyFrom(numpy_helper.from_array(coarse.astype(np.float16), tensor.name))
    with pytest.raises(ParityError, match="even if it is given PyTorch's attention masks"):
        compare_fp16_with_torch(lossy, model, reference)


def test_the_default_leaves_fp16_out_and_says_why(tiny_bundle, tmp_path, monkeypatch, flipping):
    monkeypatch.setattr(clip_vis, "build", lambda _: tiny_model())
    monkeypatch.setattr(bundle_export, "onnx_from_module", traced_before(tiny_bundle))
    place = ("-o", str(tmp_path / "new"), "--size", "60x90", "--random-weights", "0", "--json")
    done = CliRunner().invoke(app, ["export", VARIANT.name, *place, "--no-reference"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert "flipped bits" in told["left_out"]["fp16"]
    assert "warning: FP16 is left out" in done.stderr
    assert {d["precision"] for d in told["differences"]} == {"fp32"}
    bundle = Bundle.open(tmp_path / "new")
    assert list(bundle.manifest.graphs) == ["fp32"]
    assert not list(bundle.path.glob("*.fp16.onnx"))


@pytest.mark.parametrize("named", ["fp16", "fp32,fp16"])
def test_fp16_that_is_asked_for_by_name_is_not_left_out(
    tiny_bundle, tmp_path, monkeypatch, flipping, named
):
    monkeypatch.setattr(clip_vis, "build", lambda _: tiny_model())
    monkeypatch.setattr(bundle_export, "onnx_from_module", traced_before(tiny_bundle))
    place = ("-o", str(tmp_path / "new"), "--size", "60x90", "--random-weights", "0")
    done = CliRunner().invoke(app, ["export", VARIANT.name, *place, "--precision", named])
    assert isinstance(done.exception, ParityError)
    assert done.exception.exit_code == 4
    assert str(done.exception).endswith("Nothing was written.")
    assert not (tmp_path / "new").exists()


def test_a_weight_beyond_fp16_leaves_fp32(tiny_bundle, tmp_path, monkeypatch):
    def large(model: onnx.ModelProto, spec: GraphSpec) -> Fp16Graph:
        if spec.name != "text":  # the last one, when other FP16 files are written already
            return fp16_from_fp32(model, spec)
        raise InputError("the weight 'w' holds 1e+05")

    monkeypatch.setattr(bundle_export, "onnx_from_module", traced_before(tiny_bundle))
    monkeypatch.setattr(bundle_export, "fp16_from_fp32", large)
    steps: list[tuple[int, int]] = []
    result = export_tiny(
        tmp_path / "bundle", progress=lambda _, done, total: steps.append((done, total))
    )
    assert result.left_out == {"fp16": "the weight 'w' holds 1e+05"}
    result.bundle.verify()
    assert not list(result.bundle.path.glob("*.fp16.onnx"))
    assert steps[-1][0] == steps[-1][1] - 1


def test_a_bundle_of_fp16_alone_gets_pytorchs_answers(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_vis, "build", lambda _: tiny_model())
    monkeypatch.setattr(bundle_export, "onnx_from_module", traced_before(tiny_bundle))
    place = ("-o", str(tmp_path / "new"), "--size", "60x90", "--random-weights", "0")
    done = CliRunner().invoke(app, ["export", VARIANT.name, *place, "--precision", "fp16"])
    assert done.exit_code == 0, done.output
    bundle = Bundle.open(tmp_path / "new")
    assert list(bundle.manifest.gates) == ["fp16"]
    assert any(name.startswith("reference/") for name in bundle.manifest.files)
