"""``openvis verify``: a sound bundle passes, planted faults are found, and found in their place."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

pytest.importorskip("torch", reason="a reference is recorded by PyTorch")

from tiny import export_tiny, tiny_model
from tiny_ovformer import tiny_ovformer

from openvis_rt.bundle.bundle import MANIFEST, Bundle, write_manifest
from openvis_rt.bundle.recorded import RECORD
from openvis_rt.bundle.recorded_forms import sample_of
from openvis_rt.cli.main import app
from openvis_rt.errors import BackendError, BundleError, InputError, UnavailableError
from openvis_rt.export.bundle import export_bundle
from openvis_rt.runtime import video_state
from openvis_rt.runtime.text import TextEmbedder
from openvis_rt.runtime.tracking.association import TemporalTopK
from openvis_rt.verify import onnx_rewritten
from openvis_rt.verify import verify as verify_module
from openvis_rt.verify.checks import Check, gates_of
from openvis_rt.verify.onnx_bisect import bisect_check
from openvis_rt.verify.reference import read_reference
from openvis_rt.verify.report import markdown_from_report, svg_from_report, verdict
from openvis_rt.verify.sequence import agreement
from openvis_rt.verify.stages import check_host
from openvis_rt.verify.torch_recording import add_reference, record_reference
from openvis_rt.verify.verify import AS_BUILT, verify_bundle


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def sound(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "bundle"
    return add_reference(export_tiny(path).bundle, model)


@pytest.fixture
def faulty(sound, tmp_path):
    """A copy to plant a fault in."""
    shutil.copytree(sound.path, tmp_path / "faulty")
    return tmp_path / "faulty"


def relisted(path, **changes):
    """The bundle with its files listed as they are now, so that only what it computes tells."""
    manifest = Bundle.open(path, verify=False).manifest
    others = [name for name in manifest.files if name not in manifest.graph_files]
    (path / MANIFEST).unlink()
    write_manifest(path, replace(manifest, files={}, **changes), others)
    return Bundle.open(path)


def with_graph(path, graph, precision, change):
    """The bundle whose graph was changed in place."""
    file = Bundle.open(path).graph_path(graph, precision)
    model = onnx.load(str(file))
    change(model)
    onnx.save(model, str(file))
    return relisted(path)


def scaled(number, factor):
    """Multiplies the largest weight of the graph's convolution of that number, from 0."""

    def change(model):
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
        tensor = weights[convolutions[number].input[1]]
        values = numpy_helper.to_array(tensor).copy()
        values.flat[np.abs(values).argmax()] *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def departs(bundle, **options):
    """The first departure of a bundle in ONNX Runtime."""
    options = {"backends": ["onnxruntime"], "video": False, **options}
    first = verify_bundle(bundle, **options).first_departure
    assert first is not None
    return first


# what is sound


def test_a_sound_bundle_passes_on_every_contender(sound):
    report = verify_bundle(sound)
    assert report.failed == []
    assert verdict(report) == f"all {len(report.checks)} checks are within their gates"
    tried = {contender.split(" (")[0] for contender in report.contenders}
    assert tried == {"onnxruntime", onnx_rewritten.RewrittenGraphs.name}
    assert {name.split(" ")[0] for name in report.passed_over} == {"tensorrt", "tensorrt-rtx"}
    points = {(check.stage, check.point) for check in report.checks}
    assert {("masks", f"n={n}") for n in range(1, 9)} <= points
    assert {("classify", f"T=1 K={k}") for k in (1, 6, 256)} <= points
    stages = [check.stage for check in report.checks if check.contender == report.contenders[0]]
    assert {"text", "class names", "propose", "classify", "masks", "video"} == set(stages)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    model = tiny_ovformer("ovformer-video-r50")
    path = tmp_path_factory.mktemp("windows") / "bundle"
    exported = export_bundle(
        model, path, network_size=(60, 90), checkpoint={"random_weights": 0}, verify=False
    )
    return add_reference(exported.bundle, model)


def test_windows_are_verified_at_every_length(windows):
    report = verify_bundle(windows, backends=["onnxruntime"])
    assert report.failed == []
    lengths = {check.point for check in report.checks if check.stage == "propose"}
    assert lengths == {"T=1", "T=2", "T=3", "T=4", "T=5"}


WITHOUT_TORCH = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "open_clip", "polygraphy"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.verify.verify import verify_bundle
report = verify_bundle(Bundle.open(sys.argv[1]))
assert not report.failed
print(len(report.contenders), *(name.split()[0] for name in report.passed_over))
"""


def test_a_board_without_torch_verifies_and_uses_no_cache(sound):
    command = [sys.executable, "-c", WITHOUT_TORCH, str(sound.path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["2", "tensorrt", "tensorrt-rtx", "as-built"], ended.stderr
    assert not (sound.path / "text").exists()


def test_the_recording_is_the_same_twice(sound, model):
    one, two = read_reference(sound), record_reference(sound, model)
    assert one.arrays.keys() == two.arrays.keys()
    for key, array in one.arrays.items():
        np.testing.assert_array_equal(array, two.arrays[key], err_msg=key)
    assert one.record == two.record
    assert one.results == two.results


def test_a_bundle_takes_one_reference(sound, model):
    with pytest.raises(InputError, match="has a recorded reference already"):
        add_reference(sound, model)


# planted faults


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_changed_weight_is_found_and_its_node(faulty, model, precision):
    bundle = with_graph(faulty, "propose", precision, scaled(1, 8))
    first = departs(bundle)
    assert (first.stage, first.output) == ("propose", "features")
    assert first.contender.endswith(f"{precision})")
    reference = read_reference(bundle)
    jumps = bisect_check(bundle, first, reference, model if precision == "fp32" else None)
    assert jumps[0].operator == "Conv"
    assert jumps[0].note.startswith("1 of the numbers in ")
    assert jumps[0].before - jumps[0].after > 30


def test_an_fp32_graph_is_bisected_with_its_weights_only(faulty):
    bundle = with_graph(faulty, "propose", "fp32", scaled(1, 8))
    with pytest.raises(InputError, match="only PyTorch is more trusted"):
        bisect_check(bundle, departs(bundle), read_reference(bundle), None)


def test_an_overflow_of_fp16_is_found(faulty):
    def overflow(model):
        for number in range(3):
            scaled(number, 3e3)(model)

    first = departs(with_graph(faulty, "propose", "fp16", overflow))
    assert (first.stage, first.contender) == ("propose", "onnxruntime (cpu, fp16)")
    assert not first.value > 0  # NaN, or no signal at all


def test_gathers_that_are_off_by_half_a_pixel_are_found(sound, monkeypatch):
    right = onnx_rewritten.replace_grid_sample

    def shifted(model):
        """((x + 1) W - 1) / 2 becomes (x + 1) W / 2."""
        made = right(model)
        constants = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
        made_by = {name: node for node in made.graph.node for name in node.output}
        for node in made.graph.node:
            one = constants.get(node.input[1]) if node.op_type == "Sub" else None
            source = made_by.get(node.input[0])
            if one is not None and one.ndim == 0 and one == 1 and source.op_type == "Mul":
                node.op_type = "Add"
                zero = numpy_helper.from_array(np.float32(0), f"{node.output[0]}_zero")
                made.graph.initializer.append(zero)
                node.input[1] = zero.name
        return made

    monkeypatch.setattr(onnx_rewritten, "replace_grid_sample", shifted)
    first = departs(sound, backends=["onnxruntime", AS_BUILT])
    assert first.stage == "propose"
    assert first.contender.startswith(onnx_rewritten.RewrittenGraphs.name)
    assert first.output != "features"  # those are made before the pixel decoder


def test_swapped_rows_of_class_names_are_found(sound, monkeypatch):
    embed = TextEmbedder.__call__

    def swapped(self, words, *args):
        rows = embed(self, words, *args)
        return rows[[1, 0, *range(2, len(rows))]]

    monkeypatch.setattr(TextEmbedder, "__call__", swapped)
    first = departs(sound)
    assert first.stage == "class names"
    assert first.note in {"the row of 'disc'", "the row of 'box'"}


def test_a_mirrored_mask_is_found(faulty):
    def mirror(model):
        [output] = model.graph.output
        producer = next(n for n in model.graph.node if output.name in n.output)
        producer.output[0] = "straight"
        constants = {"starts": [-1], "ends": [-(2**31)], "axes": [3], "steps": [-1]}
        for name, value in constants.items():
            tensor = numpy_helper.from_array(np.array(value, np.int64), f"mirror_{name}")
            model.graph.initializer.append(tensor)
        inputs = ["straight", *(f"mirror_{name}" for name in constants)]
        model.graph.node.append(onnx.helper.make_node("Slice", inputs, [output.name]))

    first = departs(with_graph(faulty, "masks", "fp32", mirror))
    assert (first.stage, first.output) == ("masks", "masks")


def test_masks_that_are_transposed_on_the_host_are_found(sound, monkeypatch):
    encode = video_state.run_lengths

    def transposed(rows, width):
        masks = np.unpackbits(rows, axis=-1, count=width)
        turned = np.ascontiguousarray(masks.swapaxes(1, 2)).reshape(masks.shape)
        return encode(np.packbits(turned, axis=-1), width)

    monkeypatch.setattr(video_state, "run_lengths", transposed)
    first = departs(sound, video=True)
    assert first.stage == "video"
    report = verify_bundle(sound, backends=["onnxruntime"])
    assert {check.output for check in report.failed} == {"masks", "track ids"}


def test_a_wrong_parameter_of_the_tracker_is_found(faulty, sound):
    rule = sound.manifest.tracker
    other = replace(rule, parameters={**rule.parameters, "top_k": 3})
    first = departs(relisted(faulty, tracker=other))
    assert first.stage == "tracker"
    report = verify_bundle(Bundle.open(faulty), backends=["onnxruntime"], video=False)
    failed = {check.output: check for check in report.failed}
    assert "'top_k': 3" in failed["tracker rule"].note
    assert "'top_k': 5" in failed["tracker rule"].note


def test_a_tracker_that_forgets_is_found(sound, monkeypatch):
    """The rule is the same, the code is not: only the tracks tell."""
    step = TemporalTopK.step

    def forgetful(self, queries):
        if not hasattr(self, "calls"):
            self.calls = 0
        self.calls += 1
        if self.calls % 7 == 0:
            self.reset()
        return step(self, queries)

    monkeypatch.setattr(TemporalTopK, "step", forgetful)
    first = departs(sound)
    assert first.stage == "tracker"
    assert first.output.startswith("tracks of")


# bad input


def test_a_bundle_without_a_reference_says_how_to_get_one(tmp_path):
    bundle = export_tiny(tmp_path / "b", precisions=("fp32",), verify=False).bundle
    with pytest.raises(InputError, match=r"holds no recorded reference\. Give --checkpoint"):
        verify_bundle(bundle)


def test_a_reference_of_another_checkpoint_is_refused(faulty):
    bundle = relisted(faulty, checkpoint={"random_weights": 1})
    with pytest.raises(BundleError, match="of another checkpoint"):
        verify_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b'{"frames": -1}', b"[]", b"\xff\xfe"])
def test_a_damaged_reference_is_refused(faulty, content):
    (faulty / RECORD).write_bytes(content)
    with pytest.raises(BundleError, match="is damaged"):
        verify_bundle(relisted(faulty))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precisions": ["int3"]}, "holds no precision 'int3'; it holds fp32, fp16"),
        ({"backends": ["cuda"]}, "no backend 'cuda' to verify; there are: tensorrt"),
    ],
)
def test_what_there_is_not_is_refused(sound, options, message):
    with pytest.raises(InputError, match=message):
        verify_bundle(sound, **options)


def test_gates_cannot_be_opened(faulty):
    open_gates = {"fp32": {"queries": -1e308, "bits": 1e9, "masks": 0.0, "video ids": 0.1}}
    gates = gates_of(relisted(faulty, gates=open_gates), "fp32")
    assert (gates["queries"], gates["bits"], gates["masks"]) == (80.0, 1e-3, 0.99)
    assert gates["video ids"] == 0.1  # rounding may decide the tracks
    with pytest.raises(BundleError, match="has a gate 'qeries'"):
        gates_of(relisted(faulty, gates={"fp32": {"qeries": 5.0}}), "fp32")


def changed_record(path, **changes):
    record = json.loads((path / RECORD).read_bytes())
    (path / RECORD).write_text(json.dumps({**record, **changes}))
    return relisted(path)


@pytest.mark.parametrize("what", ["calls", "inputs", "outputs", "key", "shape", "frames"])
def test_a_reference_that_is_not_whole_is_refused(faulty, what):
    record = json.loads((faulty / RECORD).read_bytes())
    calls = record["calls"]
    value = next(iter(calls[0]["outputs"].values()))
    if what == "calls":
        calls = [call for call in calls if call["graph"] != "classify"]
    elif what in ("inputs", "outputs"):
        calls[0][what]["more"] = value
    elif what == "key":
        value["key"] = "nowhere"
    elif what == "shape":
        value["shape"] = [10**12, *value["shape"][1:]]
    frames = record["frames"] + 1 if what == "frames" else record["frames"]
    with pytest.raises(BundleError):
        verify_bundle(changed_record(faulty, calls=calls, frames=frames))


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY\x01\x00", bytes(100)])
def test_arrays_that_are_none_are_refused(faulty, content):
    (faulty / "reference/arrays.npz").write_bytes(content)
    with pytest.raises(BundleError, match="is damaged"):
        verify_bundle(relisted(faulty))


def test_where_nothing_works_nothing_passes(sound, monkeypatch):
    def refuse(*_):
        raise BackendError("there is none here")

    monkeypatch.setattr(verify_module, "open_backend", refuse)
    with pytest.raises(UnavailableError, match=r"so nothing was compared\. tensorrt"):
        verify_bundle(sound)


def test_a_score_that_is_no_number_is_no_equal(sound):
    reference = read_reference(sound)
    track, category, _ = reference.record.detected[0]
    detected = [(track, category, math.nan), *reference.record.detected[1:]]
    spoiled = replace(reference, record=replace(reference.record, detected=detected))
    [check] = [c for c in check_host(sound, spoiled) if c.output == "detections of the video"]
    assert check.value == 1


# the command


def test_on_a_cpu_tensorrt_is_not_tried(sound):
    arguments = ["verify", str(sound.path), "--device", "cpu", "--no-video", "--json"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.exception
    assert json.loads(found.stdout)["passed_over"] == {}


def test_a_report_is_kept_where_nothing_can_be_bisected(faulty, monkeypatch):
    with_graph(faulty, "propose", "fp16", scaled(1, 8))
    monkeypatch.setitem(sys.modules, "openvis_rt.verify.onnx_bisect", None)  # onnx is not there
    arguments = ["verify", str(faulty), "--backend=onnxruntime", "--no-video", "--bisect"]
    failed = CliRunner().invoke(app, arguments)
    assert failed.exception.exit_code == 4
    assert "DEPARTS" in failed.stdout


def test_clip_without_a_checkpoint_is_refused(sound):
    failed = CliRunner().invoke(app, ["verify", str(sound.path), "--clip", "ViT-B-32:openai"])
    assert failed.exception.exit_code == 2


def test_the_command_writes_its_files_and_exits_with_4(faulty, tmp_path):
    out = tmp_path / "out"
    arguments = ["verify", str(faulty), "--backend", "onnxruntime", "--no-video", "-o", str(out)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    report = json.loads((out / "verify.json").read_text())
    assert report["passed"]
    assert report["first_departure"] is None
    assert report["reference"].endswith("recorded in the bundle")
    assert (out / "verify.svg").read_text().startswith("<svg")
    with_graph(faulty, "propose", "fp16", scaled(1, 8))
    failed = CliRunner().invoke(app, [*arguments, "--overwrite", "--bisect", "--json"])
    assert failed.exception.exit_code == 4
    assert "is propose T=1: features" in str(failed.exception)
    found = json.loads(failed.stdout)
    assert found["bisected"][0]["operator"] == "Conv"
    assert not json.loads((out / "verify.json").read_text())["passed"]


def test_other_weights_than_the_bundles_are_refused(sound):
    failed = CliRunner().invoke(app, ["verify", str(sound.path), "--random-weights", "1"])
    assert failed.exception.exit_code == 2
    assert "was exported from other weights" in str(failed.exception)


def test_polygraphys_own_files_are_left(sound, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other people's packages warn of
        polygraphy = pytest.importorskip("polygraphy.comparator", reason="needs [verify]")
    arguments = [str(sound.path), "--backend=onnxruntime", "--no-video", "--json"]
    arguments += ["--polygraphy", str(tmp_path / "poly")]
    found = CliRunner().invoke(app, ["verify", *arguments])
    assert found.exit_code == 0, found.exception
    rows = json.loads(found.stdout)["polygraphy"]
    assert all(row["passed"] for row in rows)
    assert {row["graph"] for row in rows} == {"propose", "classify", "text"}
    results = polygraphy.RunResults.load(str(tmp_path / "poly/propose/fp16/outputs.json"))
    [(name, iterations)] = results.items()
    assert name == "onnxruntime fp16"
    assert "mask_logits" in iterations[0]


# the parts


def test_agreement_of_a_run_with_itself_and_with_other_ids(sound):
    results = read_reference(sound).results
    assert agreement(results, results)[0] == 1.0
    others = [
        replace(r, instances=tuple(replace(i, track_id=i.track_id + 1) for i in r.instances))
        for r in results
    ]
    ids, ious = agreement(others, results)
    assert ids == 0.0
    assert set(ious) == {1.0}
    nothing = [replace(r, instances=()) for r in results]
    assert agreement(nothing, results) == (0.0, [0.0] * len(ious))
    assert agreement(results, nothing) == (1.0, [])


def test_a_sample_has_every_value_once():
    large = np.arange(20_000)
    sample = sample_of(large)
    assert len(sample) == len(np.unique(sample)) == 16_384
    assert (np.diff(sample[:100]) != np.diff(sample[:2])[0]).any()  # not one column again and again
    np.testing.assert_array_equal(sample_of(np.ones((3, 4))), np.ones(12))


def test_nan_is_outside_every_gate():
    check = Check("c", "propose", "T=1", "queries", "SQNR dB", math.nan, 15.0)
    assert not check.passed
    assert check.margin == -math.inf
    assert Check("c", "masks", "", "masks", "bits that differ", 0.0, 1e-3).passed


def test_the_picture_and_the_table_show_every_contender(sound):
    report = verify_bundle(sound, backends=["onnxruntime"], video=False)
    picture, table = svg_from_report(report), markdown_from_report(report)
    for name in report.contenders:
        assert name in picture
        assert f"## {name}" in table
    assert picture.count("<circle") > len(report.contenders) * 5
