"""Sessions of ONNX Runtime on the CPU that read each other's buffers, for windows of any length."""

from __future__ import annotations

import weakref

import numpy as np
import onnxruntime
import pytest
from graph_bundle import NETWORK_SIZE, window_models, write_bundle
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.errors import BackendError, InputError
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from openvis_rt.systems.graphs import GraphSpec, TensorSpec

LENGTHS = (5, 2, 5, 1)
SELECTED = np.array([7, 2, 3])
PIXELS = NETWORK_SIZE[0] * NETWORK_SIZE[1]


def window(length, seed=0):
    random = np.random.default_rng([seed, length])
    return random.integers(0, 256, (length, *NETWORK_SIZE, 3), np.uint8)


def rows(count):
    return np.random.default_rng(count).standard_normal((count, NETWORK_SIZE[1])).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("windows"), window_length=5, **window_models())


@pytest.fixture
def sessions(bundle):
    """`propose`, and `classify` and `masks` that read it; `frames` is shared."""
    backend = OnnxRuntime("cpu")
    propose, classify, masks = (
        backend.open(bundle, graph) for graph in ("propose", "classify", "masks")
    )
    classify.bind("frames", propose, "frames")
    for name in ("mask_logits", "queries"):
        classify.bind(name, propose, name)
    masks.bind("mask_logits", propose, "mask_logits")
    classify.write("text_embeddings", rows(3))
    masks.write("selected", SELECTED)
    masks.write("picture_size", np.array(NETWORK_SIZE))
    masks.write("frame_size", np.array(NETWORK_SIZE))
    yield propose, classify, masks
    for session in (masks, classify, propose):
        session.close()


def expected(frames, text):
    """What the graphs compute, in numpy and float64."""
    grey = frames.mean(-1, dtype=np.float64)
    logits = grey[None] - np.linspace(20.1, 230.1, 10).reshape(10, 1, 1, 1)
    return {
        "mask_area": (logits > 0).sum((2, 3)),
        "class_scores": logits.mean((1, 2)) @ text.T,
        "brightness": (grey * logits).sum((2, 3)),
        "masks": np.packbits(logits[SELECTED] > 0, axis=-1),
    }


def check(sessions, frames, text):
    """Run all three and compare; float32 sums of 768 products of up to 255 by 255."""
    propose, classify, masks = sessions
    wanted = expected(frames, text)
    for session in sessions:
        session.run()
    scores = classify.fetch("class_scores")
    assert scores.shape == (10, len(text))
    np.testing.assert_allclose(scores, wanted["class_scores"], rtol=0, atol=1e-2)
    brightness = classify.fetch("brightness")
    assert brightness.shape == (10, len(frames))
    np.testing.assert_allclose(
        brightness, wanted["brightness"], rtol=0, atol=1e-6 * PIXELS * 255**2
    )
    np.testing.assert_array_equal(propose.fetch("mask_area"), wanted["mask_area"])
    np.testing.assert_array_equal(masks.fetch("masks"), wanted["masks"])


def test_windows_of_any_length_go_through_bound_sessions(sessions):
    for length in LENGTHS:
        for seed in range(2):
            frames = window(length, seed)
            sessions[0].write("frames", frames)
            check(sessions, frames, rows(3))


def view(session, length, name="frames"):
    return session.input_view(name, (length, *NETWORK_SIZE, 3))


def test_the_reader_reads_the_very_same_memory(bundle, sessions):
    """What is changed in the memory of an input is seen by a session that is bound to it."""
    propose = sessions[0]
    embed = OnnxRuntime("cpu").open(bundle, "embed")
    embed.bind("pictures", propose, "frames")
    for length in LENGTHS:
        memory = view(propose, length)
        for frames in (window(length), window(length, seed=1)):
            memory[...] = frames
            embed.run()
            found = embed.fetch("image_embeddings")
            np.testing.assert_allclose(found, frames.mean((1, 2)), rtol=1e-5)


def test_a_view_is_read_by_the_next_run(sessions):
    for length in LENGTHS:
        memory = view(sessions[0], length)
        assert (memory.dtype, memory.shape) == (np.uint8, (length, *NETWORK_SIZE, 3))
        assert memory.flags.c_contiguous
        memory[...] = window(length)
        check(sessions, window(length), rows(3))


def test_a_view_that_is_filled_twice_holds_the_last_frames(sessions):
    for frames in (window(3), window(3)[::-1]):
        view(sessions[0], 3)[...] = frames
    check(sessions, window(3)[::-1], rows(3))
    view(sessions[0], 5)[...] = window(5)
    view(sessions[0], 2)[...] = window(2)
    check(sessions, window(2), rows(3))


def test_a_view_holds_what_was_in_it_until_it_is_filled(sessions):
    sessions[0].write("frames", window(4))
    check(sessions, window(4), rows(3))
    memory = view(sessions[0], 4)
    np.testing.assert_array_equal(memory, window(4))
    memory[1] = 255
    changed = window(4)
    changed[1] = 255
    check(sessions, changed, rows(3))


def test_buffers_stay_while_the_window_length_stays(sessions):
    memory = view(sessions[0], 5)
    assert view(sessions[0], 5) is memory
    assert not np.shares_memory(view(sessions[0], 2), memory)


@pytest.mark.parametrize("name", ["picture_size", "frame_size"])
def test_sizes_have_no_view(sessions, name):
    with pytest.raises(InputError, match=f"'{name}'.*holds sizes.*write"):
        sessions[2].input_view(name, (2,))


@pytest.mark.parametrize("shape", [(2, 24, 33, 3), (24, 32, 3)])
def test_a_view_of_another_shape_is_refused(sessions, shape):
    with pytest.raises(InputError, match=r"takes uint8 \['T', 24, 32, 3\]"):
        sessions[0].input_view("frames", shape)


def test_other_rows_of_text_give_other_scores(sessions):
    sessions[0].write("frames", window(2))
    for count in (3, 40, 1):
        sessions[1].write("text_embeddings", rows(count))
        check(sessions, window(2), rows(count))


def test_memory_of_other_lengths_is_given_back(sessions):
    old = weakref.ref(view(sessions[0], 5))
    for length in (5, 2):
        assert old() is not None
        sessions[0].write("frames", window(length))
        for session in sessions:
            session.run()
    assert old() is None


def test_what_was_made_stays_until_the_next_run(sessions):
    propose, _, masks = sessions
    propose.write("frames", window(5))
    propose.run()
    propose.write("frames", window(2))
    masks.run()
    wanted = expected(window(5), rows(3))["masks"]
    np.testing.assert_array_equal(masks.fetch("masks"), wanted)
    assert propose.fetch("mask_area").shape == (10, 5)


def test_one_axis_of_two_sizes_is_refused(sessions):
    propose, classify, _ = sessions
    propose.write("frames", window(5))
    propose.run()
    propose.write("frames", window(2))
    with pytest.raises(InputError, match=r"'mask_logits'.*\[10, 5, 24, 32\], and axis T is 2"):
        classify.run()


def test_an_input_is_read_before_the_session_that_owns_it_runs(bundle, sessions):
    propose = sessions[0]
    embed = OnnxRuntime("cpu").open(bundle, "embed")
    embed.bind("pictures", propose, "frames")
    for length in LENGTHS:
        propose.write("frames", window(length))
        embed.run()
        wanted = window(length).mean((1, 2))
        np.testing.assert_allclose(embed.fetch("image_embeddings"), wanted, rtol=1e-5)


def test_an_input_of_another_session_is_read_through_a_third(bundle, sessions):
    propose, classify, _ = sessions
    other = OnnxRuntime("cpu").open(bundle, "classify")
    for name in ("frames", "mask_logits", "queries"):
        other.bind(name, classify, name)
    other.write("text_embeddings", rows(2))
    for length in LENGTHS:
        propose.write("frames", window(length))
        propose.run()
        other.run()
        wanted = expected(window(length), rows(2))["class_scores"]
        np.testing.assert_allclose(other.fetch("class_scores"), wanted, rtol=0, atol=1e-2)


def test_a_value_written_later_takes_the_place_of_what_was_bound(sessions):
    propose, _, masks = sessions
    propose.write("frames", window(5))
    propose.run()
    masks.write("mask_logits", np.full((10, 2, *NETWORK_SIZE), -1, np.float32))
    masks.run()
    assert masks.fetch("masks").shape == (3, 2, 24, 4)
    assert not masks.fetch("masks").any()
    masks.bind("mask_logits", propose, "mask_logits")
    masks.run()
    np.testing.assert_array_equal(masks.fetch("masks"), expected(window(5), rows(3))["masks"])


def test_nothing_is_read_that_was_never_made(sessions):
    propose, classify, masks = sessions
    with pytest.raises(InputError, match="'frames' of graph 'propose' was never written"):
        propose.run()
    with pytest.raises(InputError, match=r"'mask_logits' of graph 'propose' .*never run"):
        masks.run()
    propose.write("frames", window(2))
    with pytest.raises(InputError, match=r"'mask_logits' of graph 'propose' .*never run"):
        classify.run()
    with pytest.raises(InputError, match="never run, to fetch 'class_scores'"):
        classify.fetch("class_scores")
    check(sessions, window(2), rows(3))
    propose.close()
    with pytest.raises(InputError, match="closed"):
        masks.run()


def test_a_size_that_follows_from_no_input_cannot_be_bound(sessions):
    propose, _, masks = sessions
    with pytest.raises(InputError, match="no 'masks' whose size follows"):
        propose.bind("frames", masks, "masks")
    with pytest.raises(InputError, match="no 'logits'"):
        masks.bind("mask_logits", propose, "logits")


def test_sizes_that_follow_from_no_input_change_from_run_to_run(sessions):
    propose, _, masks = sessions
    propose.write("frames", window(2))
    propose.run()
    for selected, size in (([1], (20, 30)), ([0, 9, 4], (7, 50)), ([1], (20, 30))):
        masks.write("selected", np.array(selected))
        masks.write("frame_size", np.array(size))
        masks.run()
        assert masks.fetch("masks").shape == (len(selected), 2, size[0], -(-size[1] // 8))


def test_a_graph_that_fails_is_a_backend_error(sessions):
    propose, _, masks = sessions
    propose.write("frames", window(2))
    propose.run()
    masks.write("selected", np.array([10]))  # of 10
    with pytest.raises(BackendError, match="failed in graph 'masks'"):
        masks.run()


def test_the_number_of_threads_reaches_the_library(bundle, monkeypatch):
    asked = []

    class Noted(onnxruntime.SessionOptions):
        def __init__(self):
            super().__init__()
            asked.append(self)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Noted)
    for threads in (None, 3):
        OnnxRuntime("cpu", threads=threads).open(bundle, "classify").close()
    assert [options.intra_op_num_threads for options in asked] == [0, 3]  # 0: its own choice


def test_an_fp16_bias_beside_int8_pairs_stays_what_it_is():
    """The product of both scales is 2^-26, which FP16 has not; ONNX Runtime would count in it."""
    make = helper.make_node
    constants = {
        "step": np.float16(2**-8),
        "zero": np.int8(0),
        "integers": np.full((1, 1, 1, 1), 127, np.int8),
        "steps": np.full(1, 2**-18, np.float16),
        "zeros": np.zeros(1, np.int8),
        "bias": np.full(1, 0.375, np.float16),
    }
    nodes = [
        make("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        make("DequantizeLinear", ["q", "step", "zero"], ["wide"]),
        make("DequantizeLinear", ["integers", "steps", "zeros"], ["weight"], axis=0),
        make("Conv", ["wide", "weight", "bias"], ["made"]),
        make("QuantizeLinear", ["made", "step", "zero"], ["next"]),
        make("DequantizeLinear", ["next", "step", "zero"], ["y"]),
    ]
    shape = (1, 1, 4, 4)
    graph = helper.make_graph(
        nodes,
        "biased",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    tensors = {name: TensorSpec(name, "float16", shape) for name in "xy"}
    spec = GraphSpec("biased", (tensors["x"],), (tensors["y"],))
    session = OnnxRuntimeSession("biased", spec, "cpu", 1, model.SerializeToString())
    session.write("x", np.full(shape, 0.25, np.float16))
    session.run()
    assert np.allclose(session.fetch("y"), 0.375, atol=2**-8)
    session.close()
