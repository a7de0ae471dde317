"""The stateful model without a server: sequences, endings, errors, and graphs as other models."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from doubles.pb_utils import PbUtils, Request
from PIL import Image

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BackendError, InputError
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.backends.registry import BackendOptions
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.video.results import result_from_line
from openvis_rt.serving.triton.backend import TritonBackend
from openvis_rt.serving.triton.model import OpenVisModel, decoded
from openvis_rt.serving.triton.sequences import SequenceRequest, Sequences
from openvis_rt.serving.triton.tensors import array_of, tensor_of

pytest.importorskip("onnxruntime", reason="running needs the extra [cpu]")

WORDS = ("cat", "dog, hound", "kite")
SHOWN = Selection(0.0, 5)
IDLE = 10.0


def picture(seed: int, size: tuple[int, int] = (60, 100)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture(scope="module")
def shared(cached_bundle):
    """A pipeline in stream mode, over whose graphs others work."""
    with Pipeline.open(
        cached_bundle,
        vocabulary=WORDS,
        mode="stream",
        backend="onnxruntime",
        backend_options=BackendOptions("cpu", threads=1),
        selection=SHOWN,
    ) as pipeline:
        yield pipeline


@pytest.fixture
def pipeline(shared):
    shared.reset()
    shared.set_vocabulary(WORDS)
    return shared


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sequences(pipeline, clock):
    found = Sequences(pipeline, capacity=3, idle_seconds=IDLE, clock=clock)
    yield found
    found.close()
    assert len(found) == 0


def ask(sequences, sequence, seed=None, *, start=False, end=False, size=(60, 100), **given):
    frame = None if seed is None else picture(seed, size)
    return sequences.step(SequenceRequest(sequence, start, end, frame, given))


# several videos over one set of graphs


def test_pipelines_over_the_same_graphs_do_not_touch_each_other(pipeline):
    other = pipeline.another(vocabulary=["fish", "cat"], selection=Selection(0.0, 3))
    mixed = [
        result
        for t in range(3)
        for result in (pipeline.step(picture(t)), other.step(picture(t + 50, (72, 64))))
    ]
    other.close()
    pipeline.reset()
    assert mixed[0::2] == [pipeline.step(picture(t)) for t in range(3)]
    pipeline.reset()
    pipeline.set_vocabulary(["fish", "cat"])
    alone = [pipeline.step(picture(t + 50, (72, 64))) for t in range(3)]
    assert [r.instances for r in mixed[1::2]] == [r.instances[:3] for r in alone]


class TwoSlots(OnnxRuntime):
    slots = 2  # of one buffer, which is enough to be refused


def test_a_window_in_flight_keeps_the_graphs(cached_bundle):
    backend = TwoSlots("cpu", threads=1)
    with Pipeline.open(cached_bundle, vocabulary=WORDS, mode="stream", backend=backend) as pipeline:
        other = pipeline.another()
        stream = pipeline.stream(picture(t) for t in range(3))
        next(stream)
        with pytest.raises(InputError, match="another stream is open"):
            other.step(picture(9))
        stream.close()
        assert other.step(picture(9)).index == 0
        other.close()


def test_pushed_frames_give_what_a_stream_gives(pipeline):
    frames = [picture(t) for t in range(3)]
    streamed = list(pipeline.stream(frames))
    pipeline.reset()
    assert [pipeline.push(frame) for frame in frames] == [[result] for result in streamed]
    assert pipeline.flush() == []


# sequences


def test_each_sequence_has_a_video_of_its_own(sequences, pipeline):
    found = {1: [], 2: []}
    for t in range(3):
        for sequence in found:
            found[sequence] += ask(sequences, sequence, 10 * sequence + t, start=t == 0)
    for sequence, results in found.items():
        pipeline.reset()
        assert results == [pipeline.step(picture(10 * sequence + t)) for t in range(3)]


def test_an_ended_sequence_is_forgotten(sequences):
    ask(sequences, 1, 0, start=True)
    assert len(ask(sequences, 1, 1, end=True)) == 1
    assert len(sequences) == 0
    with pytest.raises(InputError, match="sequence 1 is not under way here"):
        ask(sequences, 1, 2)
    ask(sequences, 1, 0, start=True)
    assert ask(sequences, 1, end=True) == []
    assert len(sequences) == 0


def test_an_ended_sequence_is_forgotten_also_where_its_last_frame_is_refused(sequences):
    ask(sequences, 1, 0, start=True)
    with pytest.raises(InputError, match="came after frames of"):
        ask(sequences, 1, 1, end=True, size=(64, 64))
    assert len(sequences) == 0


def test_a_start_begins_anew(sequences):
    ask(sequences, 1, 0, start=True)
    ask(sequences, 1, 1)
    assert ask(sequences, 1, 2, start=True, size=(40, 40))[0].index == 0
    assert len(sequences) == 1


def test_an_idle_sequence_is_dropped_after_twice_the_servers_time(sequences, clock):
    ask(sequences, 1, 0, start=True)
    clock.now += 2 * IDLE - 1
    ask(sequences, 2, 0, start=True)
    assert len(sequences) == 2
    clock.now += 2
    ask(sequences, 2, 1)
    assert len(sequences) == 1
    with pytest.raises(InputError, match="idle for more than 10 s"):
        ask(sequences, 1, 1)


def test_the_longest_idle_one_makes_room(sequences, clock):
    for sequence in (1, 2, 3):
        ask(sequences, sequence, 0, start=True)
    clock.now += 1
    ask(sequences, 1, 1)
    ask(sequences, 4, 0, start=True)
    assert len(sequences) == 3
    assert ask(sequences, 1, 2)[0].index == 2
    with pytest.raises(InputError):
        ask(sequences, 2, 1)


def test_a_vocabulary_holds_for_its_sequence(sequences):
    given = {"vocabulary": json.dumps(["fish"]), "others": json.dumps(["cat"])}
    ask(sequences, 1, 0, start=True)
    shown = ask(sequences, 2, 0, start=True, **given)[0]
    assert {instance.name for instance in shown.instances} == {"fish"}
    assert {i.name for i in ask(sequences, 1, 1)[0].instances} <= set(WORDS)
    ask(sequences, 1, 2, vocabulary=json.dumps(["kite"]))  # from this frame on
    assert {i.name for i in ask(sequences, 1, 3)[0].instances} == {"kite"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"vocabulary": "cat"}, "JSON list of names"),
        ({"vocabulary": '{"a": 1}'}, "JSON list of names"),
        ({"vocabulary": "[1]"}, "JSON list of names"),
        ({"vocabulary": 7}, "JSON list of names"),
        ({"vocabulary": "[]"}, "vocabulary is empty"),
        ({"others": '["cat"]'}, "goes with vocabulary"),
        ({"threshold": "high"}, "is a number"),
        ({"threshold": 2}, "0..1"),
        ({"threshold": float("nan")}, "0..1"),
        ({"max_instances": 0}, "from 1 on"),
        ({"max_instances": float("inf")}, "from 1 on"),
    ],
)
def test_a_start_with_parameters_that_cannot_be_used_begins_nothing(sequences, given, said):
    with pytest.raises(InputError, match=said):
        ask(sequences, 1, 0, start=True, **given)
    assert len(sequences) == 0


def test_a_selection_is_given_at_the_start_only(sequences):
    assert len(ask(sequences, 1, 0, start=True, max_instances=2)[0].instances) == 2
    with pytest.raises(InputError, match="with sequence_start only"):
        ask(sequences, 1, 1, threshold=0.5)
    assert ask(sequences, 1, 2, priority=3)[0].index == 1  # of another layer: passed over


# the model that Triton calls


@pytest.fixture
def model(cached_bundle, tmp_path, monkeypatch):
    """Makes the model of a repository on a double of the server."""
    from openvis_rt.serving.triton.repository import write_repository
    from openvis_rt.serving.triton.settings import ModelSettings
    from openvis_rt.vocabulary import Vocabulary

    made = []

    def make(pb, **how):
        settings = ModelSettings(
            Vocabulary(WORDS), threads=1, device="cpu", selection=SHOWN, sequences=3
        )
        write_repository(cached_bundle, tmp_path / "r", settings, **how)
        settings = replace(settings, graphs="openvis" if how else None)
        config = {
            "parameters": {k: {"string_value": v} for k, v in settings.to_parameters().items()},
            "sequence_batching": {
                "max_sequence_idle_microseconds": "60000000",
                "oldest": {"max_candidate_sequences": 3},
            },
        }
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb)
        model = OpenVisModel()
        model.initialize(
            {
                "model_repository": str(tmp_path / "r/openvis"),
                "model_version": "1",
                "model_config": json.dumps(config),
            }
        )
        made.append(model)
        return model

    yield make
    for model in made:
        model.finalize()


def lines(answer) -> list:
    data = array_of(answer.output_tensors()[0]).tobytes().decode()
    return [result_from_line(line) for line in data.split("\n") if line]


def test_requests_are_answered_in_order_and_one_error_is_one_requests(model, pipeline):
    pb = PbUtils()
    good = Request(1, start=True, tensors={"frame": picture(1)})
    answers = model(pb).execute(
        [good, Request(2, tensors={"frame": picture(1)}), Request(1, end=True)]
    )
    assert lines(answers[0]) == [pipeline.step(picture(1))]
    assert "sequence 2 is not under way" in answers[1].error().message()
    assert lines(answers[2]) == []
    assert pb.log == ["openvis runs on onnxruntime (cpu, fp32)"]


def test_a_defect_is_told_and_ends_nothing_else(model, monkeypatch):
    pb = PbUtils()
    served = model(pb)
    served.execute([Request(1, start=True, tensors={"frame": picture(1)})])
    with monkeypatch.context() as patch:
        patch.setattr(Sequences, "step", lambda *_: 1 / 0)
        answer = served.execute([Request(1, tensors={"frame": picture(2)})])[0]
    assert "a defect of openvis-rt: ZeroDivisionError" in answer.error().message()
    assert "Traceback" in pb.log[-1]
    assert lines(served.execute([Request(1, tensors={"frame": picture(2)})])[0])[0].index == 1


def test_a_frame_may_be_encoded(model, pipeline):
    data = io.BytesIO()
    Image.fromarray(picture(3)).save(data, "PNG")
    encoded = np.frombuffer(data.getvalue(), np.uint8)
    served = model(PbUtils())
    answer = served.execute([Request(1, start=True, tensors={"encoded": encoded})])[0]
    assert lines(answer) == [pipeline.step(picture(3))]
    both = {"encoded": encoded, "frame": picture(3)}
    assert "has both" in served.execute([Request(1, tensors=both)])[0].error().message()


@pytest.mark.parametrize("data", [b"", b"nothing", b"GIF89a" + bytes(20)])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(InputError, match="no whole JPEG, PNG or WebP"):
        decoded(data)


def test_a_cut_picture_and_one_too_large_are_refused():
    data = io.BytesIO()
    Image.fromarray(picture(3)).save(data, "JPEG")
    with pytest.raises(InputError, match="no whole JPEG"):
        decoded(data.getvalue()[:-200])
    Image.new("L", (9000, 1)).save(data := io.BytesIO(), "PNG")
    with pytest.raises(InputError, match="8192 pixels a side; got 9000x1"):
        decoded(data.getvalue())


def test_tensors_pass_through_a_server_that_renames_capsules():
    for value in (picture(1), np.zeros((0, 4), np.float32), np.array([True, False])):
        tensor = tensor_of(PbUtils(), "x", value)
        assert (array_of(tensor) == value).all()
        assert array_of(tensor).dtype == value.dtype
    assert tensor.name() == "x"


# graphs that are other models


@pytest.fixture
def graph_models(cached_bundle):
    """By name, what runs each graph in the server's place."""
    backend, bundle = OnnxRuntime("cpu", threads=1), Bundle.open(cached_bundle)
    found = {f"openvis_{name}": backend.open(bundle, name) for name in bundle.graphs}
    yield found
    for session in found.values():
        session.close()


def test_graphs_as_models_give_the_same_and_hand_tensors_on(model, graph_models, pipeline):
    pb = PbUtils(graph_models)
    served = model(pb, graphs="onnxruntime")
    assert pb.calls == []  # nothing is called before the server has loaded its models
    requests = [Request(1, start=t == 0, tensors={"frame": picture(t)}) for t in range(2)]
    found = [result for answer in served.execute(requests) for result in lines(answer)]
    assert found == [pipeline.step(picture(t)) for t in range(2)]
    called = [name for name, _ in pb.calls if name != "openvis_text"]
    assert called[:3] == ["openvis_propose", "openvis_classify", "openvis_masks"]
    inputs = dict(pb.calls)
    assert {"features", "pool_mask", "text_embeddings"} == set(inputs["openvis_classify"])
    assert {"picture_size", "frame_size"} < set(inputs["openvis_masks"])


def test_a_model_that_is_not_there_is_named(model):
    served = model(PbUtils(), graphs="onnxruntime")
    said = served.execute([Request(1, start=True, tensors={"frame": picture(1)})])[0].error()
    assert "openvis_propose is not ready" in said.message()
    assert "--graphs inside" in said.message()


def test_a_session_says_what_it_lacks(opened_bundle):
    backend = TritonBackend(PbUtils(), "openvis")
    propose = backend.open(opened_bundle, "propose", "fp32")
    with pytest.raises(InputError, match="'frames' of graph 'propose' holds nothing"):
        propose.run()
    with pytest.raises(InputError, match="holds nothing: it was never written or run"):
        propose.fetch("queries")
    with pytest.raises(InputError, match="another backend's session"):
        propose.bind("frames", OnnxRuntime("cpu").open(opened_bundle, "propose"), "frames")
    propose.input_view("frames", propose.spec.inputs[0].shape)[...] = 0
    with pytest.raises(BackendError, match="openvis_propose of this server failed"):
        propose.run()
