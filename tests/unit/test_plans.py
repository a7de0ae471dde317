"""Sidecars, and which engine a library and a GPU may load."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from sidecars import HERE, PLAN, sidecar

from openvis_rt.bundle.bundle import (
    Bundle,
    GraphFile,
    Manifest,
    Preprocess,
    write_manifest,
)
from openvis_rt.engines.plan import (
    BuildOptions,
    Sidecar,
    check_plan,
    find_plan,
    plan_path,
    sidecar_path,
)
from openvis_rt.errors import BundleError, EngineError
from openvis_rt.records import json_from_record
from openvis_rt.systems.graphs import GraphSpec
from openvis_rt.systems.system import Score, Tracker

# --- the file ---


def test_sidecar_round_trip(tmp_path):
    path = tmp_path / "engines" / "x" / "classify.fp32.json"
    written = sidecar(gpu="Orin", options=BuildOptions(512, 3, True, "ampere+"))
    written.write(path)
    assert Sidecar.read(path) == written
    entry = json.loads(path.read_text())
    assert entry["schema"] == 2
    assert entry["profiles"] == {"K": [1, 64, 4096]}
    assert entry["shape_values"] == {"frame_size": [[1, 1], [20, 30], [40, 60]]}
    assert {field.name for field in dataclasses.fields(Sidecar)} == set(entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, "of schema 2: its schema is 1"),
        ({"extra": 1}, "extra: this field is not known"),
        ({"plan_bytes": "3"}, "plan_bytes: a whole number is needed, found '3'"),
        ({"targets": "sm86"}, "targets: a list is needed, found 'sm86'"),
        ({"gpu": 87}, "gpu: a string or null is needed, found 87"),
        ({"options": {"fp16": True}}, "options.fp16: this field is not known"),
        ({"options": {"workspace_mib": True}}, "options.workspace_mib: a whole number or null"),
        ({"profiles": {"K": [1]}}, "profiles.K: 3 values are needed, found 1"),
        ({"profiles": {"K": [1, 2, "3"]}}, "profiles.K.max: a whole number"),
        ({"shape_values": {"frame_size": [1, 2, 3]}}, "frame_size.min: a list is needed"),
        ({"inputs": [{}]}, r"inputs\[0\].name: this field is missing"),
        ({"build_seconds": float("nan")}, "NaN is no number in JSON"),
    ],
)
def test_wrong_sidecar_is_refused(tmp_path, change, message):
    path = tmp_path / "a.fp32.json"
    path.write_text(json.dumps({**json_from_record(sidecar()), **change}))
    with pytest.raises(EngineError, match=message):
        Sidecar.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema": 2}', "\x80"])
def test_damaged_sidecar_is_refused(tmp_path, text):
    path = tmp_path / "a.fp32.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(EngineError, match=r"sidecar|cannot be read"):
        Sidecar.read(path)


def test_an_engine_without_sidecar_is_refused(tmp_path):
    plan = tmp_path / "bundle" / "engines" / "x" / "a.fp32.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"abc")
    with pytest.raises(EngineError, match=r"json is missing.*Build it again with: openvis build"):
        check_plan(plan, "1" * 64)
    assert sidecar_path(plan).name == "a.fp32.json"


# --- which engine fits ---


@pytest.fixture
def bundle(tmp_path):
    """Two graphs; of ``masks`` the fp32 file serves fp16 as well."""
    files = {"classify": "classify.onnx", "masks": "masks.onnx"}
    for file in (*files.values(), "classify.fp16.onnx"):
        (tmp_path / file).write_text(file)
    wide = {n: GraphFile(f, "fp32", GraphSpec(n, (), ())) for n, f in files.items()}
    half = GraphFile("classify.fp16.onnx", "fp16", GraphSpec("classify", (), ()))
    manifest = Manifest(
        system="clip-vis",
        variant="tiny",
        graphs={"fp32": wide, "fp16": {**wide, "classify": half}},
        preprocess=Preprocess((24, 32), None, 24, 32, 32, (0.0, 0.0, 0.0)),
        tracker=Tracker("momentum", parameters={"alpha": 1.0}),
        score=Score("frame-logits"),
        window_length=1,
        detections=10,
        prompts=("{}",),
        text_sha256="0" * 64,
        checkpoint={},
        tools={},
    )
    write_manifest(tmp_path, manifest)
    return Bundle.open(tmp_path)


def put(bundle, **changes):
    """An engine in its place, with its sidecar."""
    card = sidecar(**changes)
    if "onnx_sha256" not in changes:
        digest = bundle.graph_sha256(card.graph, card.precision)
        card = dataclasses.replace(card, onnx_sha256=digest)
    plan = plan_path(bundle.path, card.backend, card.targets, card.graph, card.precision)
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(PLAN)
    card.write(sidecar_path(plan))
    return plan


def find(bundle, graph="classify", precision="fp32", **wanted):
    machine = {"backend": "tensorrt-rtx", "version": "1.7.1", "capability": "sm86"}
    return find_plan(bundle, graph, precision, **{**machine, **wanted})


TENSORRT = {"backend": "tensorrt", "library_version": "10.3.0", "targets": ("sm87",)}
NEWER = {**TENSORRT, "options": BuildOptions(version_compatible=True)}
AMPERE = {
    **TENSORRT,
    "targets": ("ampere+",),
    "options": BuildOptions(hardware_compatible="ampere+"),
}


def on(version, capability, backend="tensorrt"):
    return {"backend": backend, "version": version, "capability": capability}


@pytest.mark.parametrize(
    ("built", "machine", "needed"),
    [
        # TensorRT-RTX: its list, and exactly its version
        ({}, {}, None),
        ({"targets": ("sm86", "sm120")}, {"capability": "sm120"}, None),
        ({}, {"capability": None}, None),
        ({}, {"capability": "sm89"}, r"for sm86, and this GPU is sm89"),
        ({"targets": ("sm120",)}, {"capability": "sm12"}, r"for sm120, and this GPU is sm12$"),
        ({}, {"version": "1.7.2"}, r"1\.7\.1 and needs that version exactly; this is 1\.7\.2"),
        ({}, {"version": "1.6.0"}, r"this is 1\.6\.0"),
        # TensorRT: its own capability, and exactly its version
        (TENSORRT, on("10.3.0", "sm87"), None),
        (TENSORRT, on("10.3.0", "sm86"), r"for sm87, and this GPU is sm86"),
        (TENSORRT, on("10.3.0.1", "sm87"), r"10\.3\.0 and needs that version exactly"),
        (TENSORRT, on("1.7.1", "sm87", "tensorrt-rtx"), r"of tensorrt, and tensorrt-rtx was asked"),
        ({}, on("1.7.1", "sm86"), r"engine of tensorrt-rtx, and tensorrt was asked"),
        # version-compatible: newer ones as well, older ones never
        (NEWER, on("10.3.0", "sm87"), None),
        (NEWER, on("10.16.1.11", "sm87"), None),
        (NEWER, on("11.4.0", "sm87"), None),
        (NEWER, on("10.2.9", "sm87"), r"needs that version or newer; this is 10\.2\.9"),
        (NEWER, on("8.6.1", "sm87"), "or newer"),
        (NEWER, on("11.4.0", "sm86"), "this GPU is sm86"),
        # hardware-compatible: 8.0 and above
        (AMPERE, on("10.3.0", "sm80"), None),
        (AMPERE, on("10.3.0", "sm87"), None),
        (AMPERE, on("10.3.0", "sm120"), None),
        (AMPERE, on("10.3.0", "sm75"), r"for ampere\+, and this GPU is sm75"),
        (AMPERE, on("10.4.0", "sm87"), "exactly"),
        # another machine, another graph
        ({"platform": "linux-riscv64"}, {}, f"on linux-riscv64, and this is {HERE}"),
        ({"onnx_sha256": "2" * 64}, {}, "built from another classify graph"),
    ],
)
def test_which_engine_fits(bundle, built, machine, needed):
    plan = put(bundle, **built)
    if needed is None:
        found, card = find(bundle, **machine)
        assert (found, card) == (plan, Sidecar.read(sidecar_path(plan)))
        return
    with pytest.raises(EngineError) as caught:
        find(bundle, **machine)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(f"  {plan}")
    assert re.search(needed, lines[1])
    assert lines[-1].startswith(f"Build it with: openvis build {bundle.path} --backend ")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("machine", "command"),
    [
        ({}, "--backend tensorrt-rtx --precision fp16 --targets sm86 --graph classify"),
        (on("10.3.0", "sm87"), "--backend tensorrt --precision fp16 --graph classify"),
        ({"capability": None}, "--backend tensorrt-rtx --precision fp16 --graph classify"),
    ],
)
def test_where_nothing_was_built_the_command_is_named(bundle, machine, command):
    with pytest.raises(EngineError) as caught:
        find(bundle, precision="fp16", **machine)
    assert str(caught.value).endswith(f"Build it with: openvis build {bundle.path} {command}")
    assert "classify.fp16.plan" in str(caught.value)


def test_of_several_the_one_for_this_gpu_alone_is_taken(bundle):
    put(bundle, targets=("sm86", "sm89"))
    own = put(bundle, targets=("sm86",))
    put(bundle, targets=("sm80", "sm86", "sm89"))
    assert find(bundle)[0] == own
    own.write_bytes(b"b plan")  # and where that one is damaged, the next one
    assert find(bundle)[0].parent.name == "tensorrt-rtx-sm86-sm89"


def test_an_engine_for_many_gpus_comes_after_one_for_this_gpu(bundle):
    put(bundle, **AMPERE)
    own = put(bundle, **NEWER)
    assert find(bundle, **on("10.3.0", "sm87"))[0] == own
    # of an older version, and still for this GPU
    assert find(bundle, **on("10.5.0", "sm87"))[0] == own
    assert find(bundle, **on("10.3.0", "sm86"))[0].parent.name == "tensorrt-ampere+"


def test_a_graph_that_stays_fp32_serves_fp16(bundle):
    plan = put(bundle, graph="masks")
    assert find(bundle, "masks", "fp16")[0] == plan
    with pytest.raises(EngineError, match=r"no engine classify\.fp16\.plan"):
        find(bundle, "classify", "fp16")


def test_a_graph_that_the_bundle_has_not(bundle):
    with pytest.raises(BundleError, match="no graph 'depth'"):
        find(bundle, "depth")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda plan: plan.write_bytes(PLAN[:-1]), "has 5 bytes, and 6 were written"),
        (lambda plan: plan.write_bytes(b"b plan"), "was changed after it was built"),
        (lambda plan: sidecar_path(plan).unlink(), "json is missing"),
        (lambda plan: sidecar_path(plan).write_text("{"), "json is no JSON"),
        (lambda plan: sidecar_path(plan).write_text("{}"), "not a sidecar of schema 2"),
    ],
    ids=["truncated", "other bytes", "no sidecar", "half a sidecar", "foreign sidecar"],
)
def test_damaged_engines_are_not_loaded(bundle, damage, message):
    damage(put(bundle))
    with pytest.raises(EngineError, match=message) as caught:
        find(bundle)
    assert "openvis build" in str(caught.value)


def test_every_candidate_is_named(bundle):
    put(bundle, targets=("sm89",))
    put(bundle, **TENSORRT)
    put(bundle, targets=("sm120",), library_version="1.5.0")
    with pytest.raises(EngineError) as caught:
        find(bundle)
    assert len(str(caught.value).splitlines()) == 5


def test_an_engine_of_another_gpu_of_the_same_capability_is_refused(bundle):
    on_orin = {**TENSORRT, "gpu": "Orin (nvgpu)"}
    plan = put(bundle, **on_orin)
    here = {"backend": "tensorrt", "version": "10.3.0", "capability": "sm87"}
    assert find(bundle, **here, gpu="Orin (nvgpu)")[0] == plan
    assert find(bundle, **here)[0] == plan  # of a GPU that is not known any fits
    with pytest.raises(EngineError, match=r"built on Orin \(nvgpu\), and this is Orin Nano"):
        find(bundle, **here, gpu="Orin Nano")
    same = BuildOptions(hardware_compatible="same-compute-capability")
    put(bundle, **on_orin, options=same)
    assert find(bundle, **here, gpu="Orin Nano")[0] == plan


def test_a_plan_of_tensorrt_rtx_is_for_a_capability(bundle):
    plan = put(bundle, gpu="NVIDIA L40S")
    assert find(bundle, gpu="NVIDIA GeForce RTX 4090")[0] == plan
