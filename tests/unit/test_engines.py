"""Plans of tiny graphs, compiled for real by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.errors import (
    BundleError,
    DependencyError,
    EngineError,
    InputError,
    OutputError,
    UnavailableError,
)
from openvis_rt.files import sha256_of
from openvis_rt.graphs import TensorSpec
from openvis_rt.plans import Profile, Sidecar, check_plan, sidecar_path

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

from openvis_rt.engines import tensorrt_rtx
from openvis_rt.engines.build import build_engines, plan_folder
from openvis_rt.engines.tensorrt_rtx import build_plan, check_targets

TESTS = str(Path(__file__).parent)


def info(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(nodes, inputs, outputs, constants=None):
    initializers = [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def propose_model():
    """uint8 frame -> NCHW float -> values sampled at points computed from them; bool mask."""
    make = helper.make_node
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    mix = np.random.default_rng(1).standard_normal((8, 2)).astype(np.float32)
    return model_of(
        [
            make("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
            make("Transpose", ["float"], ["image"], perm=[0, 3, 1, 2]),
            make("Conv", ["image", "weight"], ["value"], pads=[1, 1, 1, 1]),
            make("Transpose", ["value"], ["last"], perm=[0, 2, 3, 1]),
            make("MatMul", ["last", "mix"], ["offsets"]),
            make("Tanh", ["offsets"], ["grid"]),
            make("GridSample", ["value", "grid"], ["features"], "sample", align_corners=0),
            make("Greater", ["features", "zero"], ["pool_mask"]),
        ],
        [info("frames", TensorProto.UINT8, [1, 12, 16, 3])],
        [
            info("features", TensorProto.FLOAT, [1, 8, 12, 16]),
            info("pool_mask", TensorProto.BOOL, [1, 8, 12, 16]),
        ],
        {"weight": weight, "mix": mix, "zero": np.float32(0)},
    )


def classify_model():
    """Tokens against K text rows."""
    make = helper.make_node
    return model_of(
        [
            make("Transpose", ["text_embeddings"], ["columns"], perm=[1, 0]),
            make("MatMul", ["tokens", "columns"], ["cosine"]),
            make("Softmax", ["cosine"], ["class_scores"], axis=-1),
        ],
        [
            info("tokens", TensorProto.FLOAT, [10, 16]),
            info("text_embeddings", TensorProto.FLOAT, ["K", 16]),
        ],
        [info("class_scores", TensorProto.FLOAT, [10, "K"])],
    )


def text_model():
    """Token embeddings at the place of the largest token."""
    make = helper.make_node
    table = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    return model_of(
        [
            make("ArgMax", ["tokens"], ["end"], axis=1, keepdims=0),
            make("Gather", ["table", "end"], ["embeddings"], axis=0),
        ],
        [info("tokens", TensorProto.INT64, ["B", 7])],
        [info("embeddings", TensorProto.FLOAT, ["B", 8])],
        {"table": table},
    )


def masks_model():
    """Selected masks at the size of an initializer that ONNX Runtime lets the caller override."""
    make = helper.make_node
    return model_of(
        [
            make("Gather", ["mask_logits", "selected"], ["chosen"], axis=0),
            make("Shape", ["chosen"], ["leading"], start=0, end=2),
            make("Concat", ["leading", "frame_size"], ["sizes"], axis=0),
            make("Resize", ["chosen", "", "", "sizes"], ["large"], mode="linear"),
            make("Greater", ["large", "zero"], ["bits"]),
            make("Cast", ["bits"], ["masks"], to=TensorProto.UINT8),
        ],
        [
            info("mask_logits", TensorProto.FLOAT, [10, 1, 6, 8]),
            info("selected", TensorProto.INT64, ["n"]),
            info("frame_size", TensorProto.INT64, [2]),
        ],
        [info("masks", TensorProto.UINT8, ["n", 1, "Hs", "Ws"])],
        {"frame_size": np.array([20, 30], np.int64), "zero": np.float32(0)},
    )


MODELS = {
    "propose": propose_model,
    "classify": classify_model,
    "text": text_model,
    "masks": masks_model,
}


def write_bundle(path, **models):
    """A bundle with these graphs, as far as a build looks at it."""
    path.mkdir(exist_ok=True)
    for name, model in models.items():
        onnx.save(model, path / f"{name}.onnx")

    def graph_path(graph, precision="fp32"):
        if precision != "fp32":
            raise BundleError(f"{path} holds no graph {graph!r} in precision {precision!r}")
        return path / f"{graph}.onnx"

    return types.SimpleNamespace(
        path=path,
        graphs=tuple(models),
        graph_path=graph_path,
        graph_sha256=lambda graph, precision="fp32": sha256_of(graph_path(graph, precision)),
    )


def compiled(tmp_path, model, **options):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return build_plan(path, targets=["sm86"], **options)


# --- the library ---


def test_uint8_input_and_bool_output(tmp_path):
    model = propose_model()
    del model.graph.node[6]  # GridSample
    model.graph.node[6].input[0] = "value"
    model.graph.output[0].name = "value"
    built = compiled(tmp_path, model)
    assert built.inputs == (TensorSpec("frames", "uint8", (1, 12, 16, 3)),)
    assert built.outputs[1] == TensorSpec("pool_mask", "bool", (1, 8, 12, 16))
    assert built.profiles == {}
    assert built.layers["CONVOLUTION"] == {"float32": 1}


def test_dynamic_rows_get_a_profile(tmp_path):
    built = compiled(tmp_path, classify_model())
    assert built.inputs[1] == TensorSpec("text_embeddings", "float32", ("K", 16))
    assert built.outputs == (TensorSpec("class_scores", "float32", (10, "?")),)
    assert built.profiles == {"K": tensorrt_rtx.DEFAULT_PROFILES["K"]}


def test_int64_indices_and_overridable_initializer(tmp_path):
    built = compiled(tmp_path, masks_model())
    assert [spec.name for spec in built.inputs] == ["mask_logits", "selected"]
    assert built.inputs[1] == TensorSpec("selected", "int64", ("n",))
    assert built.outputs == (TensorSpec("masks", "uint8", ("?", 1, 20, 30)),)
    assert "RESIZE" in built.layers


def test_unknown_symbol_is_refused(tmp_path):
    with pytest.raises(EngineError, match=r"dynamic axis 'K'.*sizes are known for B only"):
        compiled(tmp_path, classify_model(), profiles={"B": Profile(1, 2, 3)})


def test_parser_error_is_shown(tmp_path):
    model = model_of(
        [helper.make_node("Transpose", ["frames"], ["out"], "turn", perm=[0, 3, 1, 2])],
        [info("frames", TensorProto.UINT8, [1, 4, 4, 3])],
        [info("out", TensorProto.UINT8, [1, 3, 4, 4])],
    )
    with pytest.raises(EngineError, match=r"(?s)cannot parse.*Transpose 'turn'.*UInt8") as caught:
        compiled(tmp_path, model)
    assert "driver" not in str(caught.value)


def test_file_that_is_no_graph(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph" * 9)
    with pytest.raises(EngineError, match="cannot parse"):
        build_plan(path, targets=["sm86"])


def test_targets_are_put_in_order():
    assert check_targets([" SM120", "sm86", "sm89", "sm86"]) == ("sm86", "sm89", "sm120")


@pytest.mark.parametrize("targets", [["sm86", "sm87"], [""], []])
def test_unknown_target_lists_what_works(targets):
    with pytest.raises(InputError, match=r"sm75, sm80, sm86, sm89, sm120, sm121"):
        check_targets(targets)


def test_error_in_a_callback_cancels_and_comes_back(tmp_path):
    calls = []

    def progress(*step):
        calls.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled(tmp_path, classify_model(), progress=progress)
    assert len(calls) == 1


def test_progress_counts_up_to_the_number_of_steps(tmp_path):
    calls = []
    compiled(tmp_path, classify_model(), progress=lambda *step: calls.append(step))
    assert calls
    assert all(1 <= done <= steps for _, done, steps in calls)


def test_nothing_is_printed(tmp_path, capfd):
    compiled(tmp_path, text_model())  # warns about int64
    assert capfd.readouterr() == ("", "")


# --- the build ---


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """All four graphs, built once; tests that change anything copy it."""
    path = tmp_path_factory.mktemp("bundle")
    bundle = write_bundle(path, **{name: make() for name, make in MODELS.items()})
    steps = []
    results = build_engines(bundle, targets=["sm89", "sm86"], report=lambda *s: steps.append(s))
    return bundle, results, steps


def test_every_graph_is_built_with_its_sidecar(built):
    bundle, results, steps = built
    folder = plan_folder(bundle.path, ("sm86", "sm89"))
    assert folder == bundle.path / "engines" / "tensorrt-rtx-sm86-sm89"
    names = {f"{graph}.fp32.{suffix}" for graph in MODELS for suffix in ("plan", "json")}
    assert {file.name for file in folder.iterdir()} == names
    assert {step[0] for step in steps} == set(MODELS)
    for result in results:
        sidecar = result.sidecar
        assert not result.skipped
        assert sidecar == check_plan(result.plan, bundle.graph_sha256(sidecar.graph))
        assert sidecar.precision == sidecar.precision_built == "fp32"
        assert sidecar.targets == ("sm86", "sm89")
        assert sidecar.library_version == tensorrt_rtx.VERSION
        assert sidecar.build_seconds > 0


def test_grid_sample_was_replaced_and_checked(built):
    propose = built[1][0].sidecar
    assert propose.replaced_grid_samples == 1
    assert 0 <= propose.replacement_error < 1e-4  # 16 eps of 16 pixels is 3e-5
    assert "GRID_SAMPLE" not in propose.layers
    masks = built[1][3].sidecar
    assert (masks.replaced_grid_samples, masks.replacement_error) == (0, None)


def test_second_build_does_nothing(built):
    bundle, results, _ = built
    again = build_engines(bundle, targets=["sm86", "sm89"])
    assert all(result.skipped for result in again)
    assert [result.sidecar for result in again] == [result.sidecar for result in results]


def test_forced_build_builds(tmp_path):
    bundle = write_bundle(tmp_path, text=text_model())
    build_engines(bundle, targets=["sm86"])
    (forced,) = build_engines(bundle, targets=["sm86"], force=True)
    assert not forced.skipped


def test_changed_graph_is_detected_and_built_again(tmp_path):
    bundle = write_bundle(tmp_path, text=text_model())
    (old,) = build_engines(bundle, targets=["sm86"])
    changed = text_model()
    changed.producer_name = "another"
    bundle = write_bundle(tmp_path, text=changed)
    with pytest.raises(
        EngineError, match=r"built from another text graph.*openvis build"
    ) as caught:
        check_plan(old.plan, bundle.graph_sha256("text"))
    assert old.sidecar.onnx_sha256 in str(caught.value)
    assert bundle.graph_sha256("text") in str(caught.value)
    (new,) = build_engines(bundle, targets=["sm86"])
    assert not new.skipped
    check_plan(new.plan, bundle.graph_sha256("text"))


def test_damaged_plan_is_detected_and_built_again(tmp_path):
    bundle = write_bundle(tmp_path, text=text_model())
    (old,) = build_engines(bundle, targets=["sm86"])
    data = bytearray(old.plan.read_bytes())
    data[len(data) // 2] ^= 1
    old.plan.write_bytes(data)
    command = "openvis build .* --backend tensorrt-rtx --precision fp32 --targets sm86 --graph text"
    with pytest.raises(EngineError, match=f"changed after it was built.*{command}"):
        check_plan(old.plan, old.sidecar.onnx_sha256)
    old.plan.write_bytes(data[:-1])
    with pytest.raises(EngineError, match=rf"has {len(data) - 1} bytes, and {len(data)} were"):
        check_plan(old.plan, old.sidecar.onnx_sha256)
    (new,) = build_engines(bundle, targets=["sm86"])
    assert not new.skipped


def test_unverified_build_is_verified_by_the_next(tmp_path):
    bundle = write_bundle(tmp_path, propose=propose_model())
    (fast,) = build_engines(bundle, targets=["sm86"], verify=False)
    assert fast.sidecar.replacement_error is None
    assert build_engines(bundle, targets=["sm86"], verify=False)[0].skipped
    (checked,) = build_engines(bundle, targets=["sm86"])
    assert checked.sidecar.replacement_error is not None


def test_unknown_graph_and_precision(built):
    bundle = built[0]
    with pytest.raises(InputError, match="no graph depth; it has propose"):
        build_engines(bundle, targets=["sm86"], graphs=["depth"])
    with pytest.raises(InputError, match="precision 'int8'"):
        build_engines(bundle, targets=["sm86"], precision="int8")


def test_refused_graph_leaves_nothing(tmp_path):
    bad = model_of(
        [helper.make_node("Transpose", ["frames"], ["out"], perm=[0, 3, 1, 2])],
        [info("frames", TensorProto.UINT8, [1, 4, 4, 3])],
        [info("out", TensorProto.UINT8, [1, 3, 4, 4])],
    )
    bundle = write_bundle(tmp_path, text=text_model(), propose=bad)
    with pytest.raises(EngineError, match="UInt8"):
        build_engines(bundle, targets=["sm86"])
    folder = plan_folder(tmp_path, ("sm86",))
    assert {file.name for file in folder.iterdir()} == {"text.fp32.plan", "text.fp32.json"}


def test_half_precision_layers_are_not_fp32(tmp_path):
    half = classify_model()
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    bundle = write_bundle(tmp_path, classify=half)
    with pytest.raises(EngineError, match="built as fp32, and its layers compute in fp16"):
        build_engines(bundle, targets=["sm86"])


def test_folder_that_cannot_be_made(tmp_path):
    bundle = write_bundle(tmp_path, text=text_model())
    (tmp_path / "engines").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        build_engines(bundle, targets=["sm86"])


def test_missing_onnxruntime_is_named(tmp_path):
    # the module is hidden in the child by a folder that is earlier on its path
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        if __name__ == "__main__":
            sys.path.insert(0, sys.argv[1])
            from openvis_rt.engines.build import build_engines
            from openvis_rt.errors import UnavailableError
            from test_engines import propose_model, write_bundle
            bundle = write_bundle(Path(sys.argv[2]), propose=propose_model())
            sys.path.insert(0, sys.argv[2])
            try:
                build_engines(bundle, targets=["sm86"])
            except UnavailableError as exc:
                print(exc)
        """
    )
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('hidden')")
    out = run_script(tmp_path, script, tmp_path)
    assert "onnxruntime is not installed" in out
    assert "openvis-rt[cpu]" in out


def run_script(tmp_path, script, *arguments):
    file = tmp_path / "script.py"
    file.write_text(script)
    command = [sys.executable, str(file), TESTS, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


BUILD_SLOWLY = """
import sys, time
from pathlib import Path
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from openvis_rt.engines.build import build_engines
    from test_engines import classify_model, text_model, write_bundle
    bundle = write_bundle(Path(sys.argv[2]), text=text_model(), classify=classify_model())
    def report(graph, phase, done, steps):
        if graph == "classify":
            print("building", flush=True)
            time.sleep(60)
    build_engines(bundle, targets=["sm86"], report=report)
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_killed_build_keeps_what_is_finished_and_nothing_else(tmp_path, kind):
    script = tmp_path / "script.py"
    script.write_text(BUILD_SLOWLY)
    bundle_path = tmp_path / "bundle"
    command = [sys.executable, str(script), TESTS, str(bundle_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout.readline() == "building\n"
        process.send_signal(kind)
        assert process.wait(timeout=30) != 0
    folder = plan_folder(bundle_path, ("sm86",))
    names = {file.name for file in folder.iterdir() if not file.name.endswith(".building")}
    assert names == {"text.fp32.plan", "text.fp32.json"}
    if kind == signal.SIGINT:
        assert not list(folder.glob("*.building"))
    bundle = write_bundle(bundle_path, text=text_model(), classify=classify_model())
    with pytest.raises(EngineError, match="no plan"):
        check_plan(folder / "classify.fp32.plan", bundle.graph_sha256("classify"))
    text, classify = build_engines(bundle, targets=["sm86"])
    assert (text.skipped, classify.skipped) == (True, False)
    assert not list(folder.glob("*.building"))


# --- the sidecar ---


def sidecar():
    return Sidecar(
        graph="classify",
        precision="fp32",
        precision_built="fp32",
        plan_sha256="0" * 64,
        plan_bytes=3,
        library="tensorrt_rtx",
        library_version="1.7",
        platform="linux-x86_64",
        targets=("sm86",),
        onnx_sha256="1" * 64,
        replaced_grid_samples=0,
        replacement_error=None,
        inputs=(TensorSpec("text_embeddings", "float32", ("K", 16)),),
        outputs=(TensorSpec("class_scores", "float32", (10, "?")),),
        profiles={"K": Profile(1, 64, 4096)},
        layers={"MATRIX_MULTIPLY": {"float32": 2}},
        build_seconds=0.5,
        created_with="0.1.0",
    )


def test_sidecar_round_trip(tmp_path):
    path = tmp_path / "engines" / "x" / "classify.fp32.json"
    sidecar().write(path)
    assert Sidecar.read(path) == sidecar()
    entry = json.loads(path.read_text())
    assert entry["schema"] == 1
    assert entry["profiles"] == {"K": [1, 64, 4096]}
    assert {field.name for field in dataclasses.fields(Sidecar)} | {"schema"} == set(entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "its schema is 2"),
        ({"extra": 1}, "missing or unknown.*extra"),
        ({"plan_bytes": "3"}, "plan_bytes is '3', not int"),
        ({"targets": "sm86"}, "targets is 'sm86'"),
        ({"profiles": {"K": [1]}}, "not a sidecar"),
        ({"inputs": [{}]}, "not a sidecar"),
    ],
)
def test_wrong_sidecar_is_refused(tmp_path, change, message):
    path = tmp_path / "a.fp32.json"
    path.write_text(json.dumps({**sidecar().to_json(), **change}))
    with pytest.raises(EngineError, match=message):
        Sidecar.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema": 1}'])
def test_damaged_sidecar_is_refused(tmp_path, text):
    path = tmp_path / "a.fp32.json"
    path.write_text(text)
    with pytest.raises(EngineError, match=r"sidecar|cannot be read"):
        Sidecar.read(path)


def test_plan_without_sidecar_is_refused(tmp_path):
    plan = tmp_path / "bundle" / "engines" / "x" / "a.fp32.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"abc")
    with pytest.raises(EngineError, match=r"json is missing.*Build it again with: openvis build"):
        check_plan(plan, "1" * 64)
    assert sidecar_path(plan).name == "a.fp32.json"


# --- the command ---


def test_command_prints_json(tmp_path, monkeypatch):
    import typer
    from typer.testing import CliRunner

    from openvis_rt import bundle as bundle_module
    from openvis_rt.cli.build import build

    fake = write_bundle(tmp_path, text=text_model())
    monkeypatch.setattr(bundle_module.Bundle, "open", lambda path: fake)
    app = typer.Typer()
    app.command()(build)
    arguments = [str(tmp_path), "--targets", "sm86", "--graph", "text"]
    first = CliRunner().invoke(app, [*arguments, "--json"])
    assert first.exit_code == 0, first.output
    (entry,) = json.loads(first.stdout)
    assert (entry["graph"], entry["skipped"], entry["targets"]) == ("text", False, ["sm86"])
    second = CliRunner().invoke(app, arguments)
    assert "up to date" in second.stdout
    other = CliRunner().invoke(app, [*arguments, "--backend", "tensorrt"])
    assert isinstance(other.exception, UnavailableError)
    assert not isinstance(other.exception, DependencyError)
