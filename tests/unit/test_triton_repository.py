"""What `openvis triton` writes: every configuration, read by protobuf, and the bundle in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import InputError, OutputError
from openvis_rt.runtime.options import Selection, TrackingOptions
from openvis_rt.serving.triton.config import graph_config, model_config, plan_config
from openvis_rt.serving.triton.repository import write_repository
from openvis_rt.serving.triton.settings import ModelSettings
from openvis_rt.serving.triton.text_format import Word, written
from openvis_rt.systems.graphs import TensorSpec
from openvis_rt.vocabulary import Vocabulary

SETTINGS = ModelSettings(
    Vocabulary(("a cat", 'the "dog"\n'), ("Straße",)),
    precision="fp32",
    graphs="eye",
    backend="onnxruntime",
    device="cpu",
    threads=3,
    selection=Selection(0.125, 7),
    tracking=TrackingOptions(1),
    sequences=12,
    idle_seconds=2.5,
)


@pytest.fixture(scope="module")
def parsed():
    """Protobuf's own reader of a configuration, which refuses what Triton refuses."""
    model_config_pb2 = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="reading needs the extra [triton]"
    )
    from google.protobuf import json_format, text_format

    def read(text: str):
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        return json_format.MessageToDict(config, preserving_proto_field_name=True)

    return read


def test_text_format_has_protobufs_four_kinds_of_fields():
    message = (
        ("name", 'a "b"\\\n\u00e9'),
        ("kind", Word("KIND_CPU")),
        ("optional", True),
        ("dims", [-1, 3]),
        ("one", (("x", 1),)),
        ("many", [(("x", 1),), (("x", 2),)]),
    )
    assert written(message) == (
        'name: "a \\042b\\042\\134\\012\\303\\251"\nkind: KIND_CPU\noptional: true\n'
        "dims: [-1, 3]\none {\n  x: 1\n}\nmany {\n  x: 1\n}\nmany {\n  x: 2\n}\n"
    )


def test_the_models_configuration_is_what_its_process_reads_back(parsed, tmp_path):
    found = parsed(model_config("eye", SETTINGS, instances=3))
    assert found["instance_group"] == [{"count": 3, "kind": "KIND_CPU"}]
    assert "max_batch_size" not in found  # 0: Triton adds no batch axis
    assert [entry["name"] for entry in found["input"] if entry["optional"]] == ["frame", "encoded"]
    batching = found["sequence_batching"]
    assert batching["max_sequence_idle_microseconds"] == "2500000"
    first = "CONTROL_SEQUENCE_START"  # a default, which protobuf leaves out
    assert {e["name"]: e["control"][0].get("kind", first) for e in batching["control_input"]} == {
        "START": first,
        "END": "CONTROL_SEQUENCE_END",
        "READY": "CONTROL_SEQUENCE_READY",
        "CORRID": "CONTROL_SEQUENCE_CORRID",
    }
    SETTINGS.write_vocabulary(tmp_path / "vocabulary.json")
    assert ModelSettings.read(found, tmp_path / "vocabulary.json") == SETTINGS


def test_a_graphs_configuration_has_its_tensors(parsed, opened_bundle):
    for name in opened_bundle.graphs:
        spec = opened_bundle.graph(name).spec
        found = parsed(graph_config(f"eye_{name}", spec, device="cuda"))
        assert found["platform"] == "onnxruntime_onnx"
        assert found["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
        assert [t["name"] for t in found["input"]] == [
            t.name for t in (*spec.inputs, *spec.overridable)
        ]
        assert [t["name"] for t in found["output"]] == [t.name for t in spec.outputs]
        for tensor, entry in zip(spec.inputs, found["input"], strict=False):
            sizes = [str(s) if isinstance(s, int) else "-1" for s in tensor.shape]
            assert entry["dims"] == sizes
    # the file's masks are bool and as wide as the frame; sessions of ours pack them
    masks = parsed(graph_config("eye_masks", opened_bundle.graph("masks").spec))["output"][0]
    assert (masks["data_type"], masks["dims"][-1]) == ("TYPE_BOOL", "-1")


def test_a_plans_configuration_marks_the_inputs_that_hold_sizes(parsed):
    inputs = (
        TensorSpec("mask_logits", "float16", (20, 1, 32, 64)),
        TensorSpec("frame_size", "int64", (2,)),
    )
    outputs = (TensorSpec("masks", "uint8", ("?", 1, "?", "?")),)
    found = parsed(plan_config("eye_masks", inputs, outputs, ["frame_size"], instances=2))
    assert found["platform"] == "tensorrt_plan"
    assert [t.get("is_shape_tensor", False) for t in found["input"]] == [False, True]
    assert found["output"][0]["dims"] == ["-1", "1", "-1", "-1"]
    assert found["instance_group"] == [{"count": 2, "kind": "KIND_GPU"}]


def test_the_repository_is_complete_in_itself(tiny_bundle, tmp_path):
    original = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, original)
    report = write_repository(original, tmp_path / "r", SETTINGS, name="eye", graphs="onnxruntime")
    assert report.models == ("eye", "eye_propose", "eye_classify", "eye_text", "eye_masks")
    assert report.bytes == sum(f.stat().st_size for f in (tmp_path / "r").rglob("*") if f.is_file())
    wanted = Bundle.open(original)
    data = {name: wanted.read_graph(name) for name in wanted.graphs}
    shutil.rmtree(original)
    inner = Bundle.open(tmp_path / "r/eye/1/bundle")
    for name in inner.graphs:
        assert inner.read_graph(name) == data[name]
        assert (tmp_path / f"r/eye_{name}/1/model.onnx").read_bytes() == data[name]
    names = json.loads((tmp_path / "r/eye/1/vocabulary.json").read_text("utf-8"))
    assert names == {"names": ["a cat", 'the "dog"\n'], "others": ["Straße"]}


def test_one_precision_goes_along(tiny_bundle, tmp_path):
    assert {"fp32", "fp16"} <= Bundle.open(tiny_bundle).manifest.graphs.keys()
    write_repository(tiny_bundle, tmp_path / "r", ModelSettings(Vocabulary(("cat",)), "fp16"))
    inner = Bundle.open(tmp_path / "r/openvis/1/bundle")
    assert list(inner.manifest.graphs) == ["fp16"]
    held = {str(p.relative_to(inner.path)) for p in inner.path.rglob("*.onnx")}
    assert held == inner.manifest.graph_files


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "a/b"}, "a model's name"),
        ({"name": "../up"}, "a model's name"),
        ({"graphs": "elsewhere"}, "the graphs are run by"),
        ({"instances": 0}, "at least one instance"),
        ({"graphs": "tensorrt"}, "openvis build --backend tensorrt"),
        ({"graphs": "tensorrt", "engines": "tensorrt-sm87"}, "it has none"),
    ],
)
def test_what_triton_would_not_take_is_refused(tiny_bundle, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        write_repository(tiny_bundle, tmp_path / "r", SETTINGS, **change)
    assert list(tmp_path.iterdir()) == []


def test_only_a_repository_of_ours_is_replaced(tiny_bundle, tmp_path):
    place = tmp_path / "r"
    write_repository(tiny_bundle, place, SETTINGS)
    with pytest.raises(OutputError, match="exists already"):
        write_repository(tiny_bundle, place, SETTINGS)
    write_repository(tiny_bundle, place, SETTINGS, name="again", overwrite=True)
    assert [p.name for p in place.iterdir()] == ["again"]
    (place / "another model").mkdir()
    with pytest.raises(OutputError, match="was not made by openvis"):
        write_repository(tiny_bundle, place, SETTINGS, overwrite=True)


def test_the_command_writes_it_and_says_what_to_do(openvis, tiny_bundle, tmp_path):
    place = tmp_path / "r"
    code, out, _ = openvis(
        *("triton", tiny_bundle, "-o", place, "-c", "cat", "--only", "--idle", 5, "--json")
    )
    assert code == 0
    assert json.loads(out)["models"] == ["openvis"]
    assert "max_sequence_idle_microseconds: 5000000" in (place / "openvis/config.pbtxt").read_text()
    code, _, said = openvis("triton", tiny_bundle, "-o", place, "-c", "cat")
    assert (code, "exists already" in said) == (2, True)
    code, _, said = openvis("triton", tiny_bundle, "-o", place, "-c", "cat", "--overwrite")
    assert (code, "tritonserver --model-repository" in said) == (0, True)


def test_a_changed_vocabulary_file_is_refused_by_its_name(tmp_path):
    config = {"parameters": {}, "sequence_batching": {}}
    file = Path(tmp_path / "vocabulary.json")
    file.write_text('["cat"]')
    with pytest.raises(InputError, match=r"vocabulary\.json has no names and others"):
        ModelSettings.read(config, file)
    SETTINGS.write_vocabulary(file)
    with pytest.raises(InputError, match=r"config\.pbtxt has no parameters of the model"):
        ModelSettings.read(config, file)
