"""Gather-based bilinear sampling against PyTorch, ONNX Runtime and the TensorRT-RTX parser.

Tolerance everywhere: a coordinate carries the rounding of a number of the image's size s, and
sampling changes by at most twice the largest value per pixel and axis, so 16 eps s max|value|.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.engines.rewrites.grid_sample import find_grid_samples, replace_grid_sample
from openvis_rt.engines.rewrites.grid_sample_check import check_grid_samples, random_inputs
from openvis_rt.errors import EngineError, ParityError

SHAPES = [  # N, C, H, W, P, Q
    (1, 3, 5, 7, 4, 4),
    (2, 8, 15, 27, 33, 4),
    (3, 2, 1, 6, 8, 3),
    (2, 2, 6, 1, 8, 3),
    (1, 1, 1, 1, 40, 2),
    (2, 4, 2, 2, 50, 1),
]


def grid_sample_model(n, c, h, w, p, q, *, opset=18, shape_of_value=True, **attributes):
    attributes = {
        "mode": "bilinear" if opset < 20 else "linear",
        "padding_mode": "zeros",
        "align_corners": 0,
        **attributes,
    }
    shape = [n, c, h, w] if shape_of_value else [n, c, "H", w]
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["value"], ["inner"]),
            helper.make_node("GridSample", ["inner", "grid"], ["out"], "sample", **attributes),
        ],
        "g",
        [
            helper.make_tensor_value_info("value", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("grid", TensorProto.FLOAT, [n, p, q, 2]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [n, c, p, q])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run(model, **inputs):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)[0]


def sample_points(n, h, w, p, q, rng):
    """Random points in and around the image; the first ones are the treacherous ones."""
    grid = rng.uniform(-1.6, 1.6, (n, p * q, 2)).astype(np.float32)
    edges = [
        -1.0,
        1.0,
        0.0,
        -1 - 1 / w,
        1 + 1 / w,
        -1 + 1 / w,
        1 - 1 / w,
        -3.0,
        1e4,
        -1e4,
        1e9,
    ]  # ONNX Runtime itself fails at 1e30
    special = np.array([(x, y) for x in edges for y in edges], np.float32)
    rng.shuffle(special)
    k = min(len(special), p * q // 2)
    grid[:, :k] = special[:k]
    return grid.reshape(n, p, q, 2)


@pytest.mark.parametrize("opset", [16, 18, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_same_numbers_as_torch_and_onnxruntime(shape, opset):
    n, c, h, w, p, q = shape
    rng = np.random.default_rng(1)
    value = rng.standard_normal((n, c, h, w)).astype(np.float32)
    model = grid_sample_model(*shape, opset=opset)
    replaced = replace_grid_sample(model)
    assert not [node for node in replaced.graph.node if node.op_type == "GridSample"]
    tolerance = 16 * np.finfo(np.float32).eps * max(h, w) * np.abs(value).max()
    for seed in range(3):
        grid = sample_points(n, h, w, p, q, np.random.default_rng(seed))
        got = run(replaced, value=value, grid=grid)
        reference = torch.nn.functional.grid_sample(
            torch.from_numpy(value), torch.from_numpy(grid), align_corners=False
        )
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, reference.numpy(), rtol=0, atol=tolerance)
        np.testing.assert_allclose(got, run(model, value=value, grid=grid), rtol=0, atol=tolerance)


def test_pixel_centres_are_exact():
    h, w = 4, 8  # powers of two: the centres are exact in FP32
    value = np.random.default_rng(0).standard_normal((1, 3, h, w)).astype(np.float32)
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    grid = (2 * np.stack([x, y], -1) - 1).astype(np.float32)[None]
    got = run(replace_grid_sample(grid_sample_model(1, 3, h, w, h, w)), value=value, grid=grid)
    np.testing.assert_array_equal(got, value)


def test_infinitely_far_points_are_zero():
    points = [[np.inf, 0], [0, -np.inf], [-np.inf, np.inf], [1e30, 0], [0, -1e30]]
    grid = np.array(points, np.float32).reshape(1, 5, 1, 2)
    model = replace_grid_sample(grid_sample_model(1, 2, 3, 5, 5, 1))
    got = run(model, value=np.ones((1, 2, 3, 5), np.float32), grid=grid)
    np.testing.assert_array_equal(got, 0)


def test_argument_is_not_changed_and_interface_stays():
    model = grid_sample_model(*SHAPES[0])
    before = model.SerializeToString()
    replaced = replace_grid_sample(model)
    assert model.SerializeToString() == before
    assert list(replaced.graph.input) == list(model.graph.input)
    assert list(replaced.graph.output) == list(model.graph.output)


def test_two_samples_of_one_value():
    model = grid_sample_model(1, 3, 5, 7, 4, 4)
    second = helper.make_node("GridSample", ["inner", "grid"], ["again"], "sample", align_corners=0)
    model.graph.node.append(second)
    model.graph.node.append(helper.make_node("Sub", ["out", "again"], ["zero"]))
    model.graph.output[0].name = "zero"
    rng = np.random.default_rng(0)
    value = rng.standard_normal((1, 3, 5, 7)).astype(np.float32)
    grid = rng.uniform(-1, 1, (1, 4, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(run(replace_grid_sample(model), value=value, grid=grid), 0)


def test_model_without_grid_sample_is_copied():
    model = grid_sample_model(*SHAPES[0])
    del model.graph.node[1]
    model.graph.output[0].name = "inner"
    assert replace_grid_sample(model) == model


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"mode": "nearest"}, "mode nearest"),
        ({"padding_mode": "border"}, "padding_mode border"),
        ({"align_corners": 1}, "align_corners 1"),
    ],
)
def test_other_sampling_is_refused(attributes, found):
    with pytest.raises(EngineError, match=found):
        replace_grid_sample(grid_sample_model(*SHAPES[0], **attributes))


def test_unknown_size_is_refused():
    with pytest.raises(EngineError, match=r"FLOAT and shape \[1, 3, \?, 7\]"):
        replace_grid_sample(grid_sample_model(*SHAPES[0], shape_of_value=False))


def test_grid_sample_in_a_subgraph_is_refused():
    inner = grid_sample_model(*SHAPES[0])
    branch = helper.make_graph(list(inner.graph.node), "branch", [], list(inner.graph.output))
    node = helper.make_node("If", ["flag"], ["out"], then_branch=branch, else_branch=branch)
    model = onnx.ModelProto()
    model.CopyFrom(inner)
    del model.graph.node[:]
    model.graph.node.append(node)
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    with pytest.raises(EngineError, match="subgraph"):
        replace_grid_sample(model)


def test_check_measures_rounding_only():
    model = grid_sample_model(2, 8, 15, 27, 33, 4)
    error = check_grid_samples(model, random_inputs(model.graph, {}))
    assert 0 <= error < 16 * np.finfo(np.float32).eps * 27


def test_check_finds_a_wrong_replacement(monkeypatch):
    from openvis_rt.engines.rewrites import grid_sample

    def half_a_pixel_off(nodes, value, grid, output, shape, *, fp16):
        shift = nodes.constant([1 / shape[3], 0], np.float32)
        original(nodes, value, nodes.add("Add", grid, shift), output, shape, fp16=fp16)

    original = grid_sample._append_sampling
    monkeypatch.setattr(grid_sample, "_append_sampling", half_a_pixel_off)
    model = grid_sample_model(2, 8, 15, 27, 33, 4)
    with pytest.raises(ParityError, match="gathers differ"):
        check_grid_samples(model, random_inputs(model.graph, {}))


def test_sites_know_the_shape():
    (site,) = find_grid_samples(grid_sample_model(2, 8, 15, 27, 33, 4))
    assert site.shape == (2, 8, 15, 27)


def fp16_model(*, readers=1, half_output=True):
    """FP16 value, cast to FP32 for a GridSample, whose result is cast back."""
    n, c, h, w, p, q = 2, 8, 15, 27, 33, 4
    make, half = helper.make_node, TensorProto.FLOAT16
    nodes = [
        make("Relu", ["value"], ["inner"]),  # no value_info: its type must be inferred
        make("Cast", ["inner"], ["wide"], to=TensorProto.FLOAT),
        make("GridSample", ["wide", "grid"], ["sampled"], "sample", align_corners=0),
        make("Cast", ["sampled"], ["out"], to=half if half_output else TensorProto.FLOAT),
    ]
    outputs = [("out", half if half_output else TensorProto.FLOAT, [n, c, p, q])]
    if readers > 1:
        nodes.append(make("Sqrt", ["wide"], ["other"]))
        outputs.append(("other", TensorProto.FLOAT, [n, c, h, w]))
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("value", half, [n, c, h, w]),
            helper.make_tensor_value_info("grid", TensorProto.FLOAT, [n, p, q, 2]),
        ],
        [helper.make_tensor_value_info(*output) for output in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def types_of(model):
    """ONNX element type of every tensor that a node makes."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}


def test_fp16_rows_are_gathered_as_they_are():
    replaced = replace_grid_sample(fp16_model())
    types = types_of(replaced)
    gathers = [node for node in replaced.graph.node if node.op_type == "Gather"]
    assert [types[node.output[0]] for node in gathers] == [TensorProto.FLOAT16]
    products = [node for node in replaced.graph.node if node.op_type in ("Mul", "Floor", "Sub")]
    assert {types[node.output[0]] for node in products} <= {TensorProto.FLOAT, TensorProto.INT32}
    assert "wide" not in {name for node in replaced.graph.node for name in node.output}


def test_fp32_rows_are_not_cast():
    nodes = replace_grid_sample(grid_sample_model(*SHAPES[1])).graph.node
    casts = [node.attribute[0].i for node in nodes if node.op_type == "Cast"]
    assert casts == [TensorProto.INT32]  # of the indices


def test_fp16_rows_give_the_same_numbers_as_fp32_rows():
    # both sum the same four FP32 products in the same order, so not a bit may differ
    rng = np.random.default_rng(3)
    value = rng.standard_normal((2, 8, 15, 27)).astype(np.float16)
    grid = sample_points(2, 15, 27, 33, 4, rng)
    got = run(replace_grid_sample(fp16_model(half_output=False)), value=value, grid=grid)
    wide = np.maximum(value, 0).astype(np.float32)
    model = replace_grid_sample(grid_sample_model(2, 8, 15, 27, 33, 4))
    np.testing.assert_array_equal(got, run(model, value=wide, grid=grid))


def test_fp16_replacement_is_checked():
    model = fp16_model()
    assert 0 <= check_grid_samples(model, random_inputs(model.graph, {})) < 16 * 2**-23 * 27


def test_a_cast_with_other_readers_stays():
    replaced = replace_grid_sample(fp16_model(readers=2))
    onnx.checker.check_model(replaced, full_check=True)
    assert "wide" in {name for node in replaced.graph.node for name in node.output}


@pytest.mark.parametrize(
    ("model", "dtype"),
    [(grid_sample_model(8, 32, 15, 27, 405, 4), "float32"), (fp16_model(), "float16")],
)
def test_gathers_compile_in_tensorrt_rtx(model, dtype, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    from openvis_rt.engines.build.builder import BuildRequest, build_plan
    from openvis_rt.engines.library import tensorrt_library

    path = tmp_path / "sample.onnx"
    onnx.save(replace_grid_sample(model), path)
    built = build_plan(path, tensorrt_library("tensorrt-rtx"), BuildRequest(targets=("sm86",)))
    assert "GRID_SAMPLE" not in built.layers
    assert built.layers["GATHER"] == {dtype: 1}
    assert len(built.plan) > 1000


# a batch that is a symbol: frames of a window times heads

HEADS, WIDTH, HEIGHT = 2, 16, 12


def clip_model(half=False):
    """Frames [T, 12, 16, 3] -> each of two heads samples 4 channels at points of its own.

    The sampled value is [T heads, 4, 12, 16], the output [T, 8, 12, 16].
    """
    random, make = np.random.default_rng(0), helper.make_node
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    constants = {
        "weight": random.standard_normal((8, 3, 3, 3)).astype(dtype) / 100,
        "mix": random.standard_normal((8, 2 * HEADS)).astype(dtype) / 8,
        "points": np.array([-1, HEIGHT, WIDTH, 2], np.int64),
        "pictures": np.array([-1, 4, HEIGHT, WIDTH], np.int64),
        "maps": np.array([-1, 8, HEIGHT, WIDTH], np.int64),
        "places": np.array([0, HEIGHT * WIDTH, HEADS, 2], np.int64),
        "reach": np.float32(1.3),
    }
    sampled, result = ("wide", "narrow") if half else ("value", "sampled")
    nodes = [
        make("Cast", ["frames"], ["float"], to=kind),
        make("Transpose", ["float"], ["image"], perm=[0, 3, 1, 2]),
        make("Conv", ["image", "weight"], ["features"], pads=[1, 1, 1, 1]),
        make("Transpose", ["features"], ["last"], perm=[0, 2, 3, 1]),
        make("MatMul", ["last", "mix"], ["offsets"]),
        make("Reshape", ["offsets", "places"], ["by_place"]),  # [T, H W, heads, 2]
        make("Transpose", ["by_place"], ["by_head"], perm=[0, 2, 1, 3]),
        make("Reshape", ["by_head", "points"], ["places_of_head"]),  # [T heads, H, W, 2]
        make("Cast", ["places_of_head"], ["coordinates"], to=TensorProto.FLOAT),
        make("Tanh", ["coordinates"], ["inside"]),
        make("Mul", ["inside", "reach"], ["grid"]),
        make("Reshape", ["features", "pictures"], ["value"]),
        *([make("Cast", ["value"], ["wide"], to=TensorProto.FLOAT)] if half else []),
        make("GridSample", [sampled, "grid"], ["sampled"], "sample", align_corners=0),
        *([make("Cast", ["sampled"], ["narrow"], to=kind)] if half else []),
        make("Reshape", [result, "maps"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["T", HEIGHT, WIDTH, 3])],
        [helper.make_tensor_value_info("out", kind, ["T", 8, HEIGHT, WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def window(length, seed=0):
    shape = (length, HEIGHT, WIDTH, 3)
    return np.random.default_rng([seed, length]).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_any_window_length_is_sampled_by_one_graph(half):
    model = clip_model(half)
    (site,) = find_grid_samples(model)
    assert site.shape == (None, 4, HEIGHT, WIDTH)
    assert site.half == ("value" if half else None)
    replaced = replace_grid_sample(model)
    assert not [node for node in replaced.graph.node if node.op_type == "GridSample"]
    # an FP16 result may fall to the other side of a rounding
    eps = np.finfo(np.float16 if half else np.float32).eps
    for length in (1, 2, 5, 3):
        wanted = run(model, frames=window(length))
        got = run(replaced, frames=window(length))
        atol = (eps if half else 16 * eps * WIDTH) * np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=atol)
        assert np.ptp(wanted) > 5  # the points lie in the image


def test_frames_of_a_clip_are_sampled_apart():
    replaced, frames = replace_grid_sample(clip_model()), window(4)
    alone = [run(replaced, frames=frames[t : t + 1]) for t in range(4)]
    np.testing.assert_allclose(run(replaced, frames=frames), np.concatenate(alone), atol=1e-5)


def test_a_known_batch_keeps_its_constant():
    nodes = replace_grid_sample(grid_sample_model(*SHAPES[1])).graph.node
    assert not {"Shape", "Range"} & {node.op_type for node in nodes}


def test_the_check_runs_windows_of_several_lengths(monkeypatch):
    from openvis_rt.engines.rewrites import grid_sample

    model = clip_model()
    runs = [random_inputs(model.graph, {"T": length}) for length in (1, 2, 5)]
    assert 0 <= check_grid_samples(model, *runs) < 16 * np.finfo(np.float32).eps * WIDTH

    def of_the_first_clip(nodes, grid, batch, size):
        return nodes.constant(0, np.int32)

    monkeypatch.setattr(grid_sample, "_append_starts", of_the_first_clip)
    with pytest.raises(ParityError, match="gathers differ"):
        check_grid_samples(model, *runs)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_gathers_of_any_window_length_compile_in_tensorrt_rtx(half, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    from openvis_rt.engines.build.builder import BuildRequest, build_plan
    from openvis_rt.engines.library import tensorrt_library
    from openvis_rt.engines.plan import Profile

    path = tmp_path / "sample.onnx"
    onnx.save(replace_grid_sample(clip_model(half)), path)
    request = BuildRequest(targets=("sm86",), profiles={"T": Profile(1, 5, 5)})
    built = build_plan(path, tensorrt_library("tensorrt-rtx"), request)
    assert built.inputs[0].shape == ("T", HEIGHT, WIDTH, 3)
    assert built.outputs[0].shape == ("?", 8, HEIGHT, WIDTH)
    assert built.profiles == {"T": Profile(1, 5, 5)}
    assert "GRID_SAMPLE" not in built.layers
    assert built.layers["GATHER"]["float16" if half else "float32"] == 1
