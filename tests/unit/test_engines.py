"""Engines of tiny graphs, compiled for real by TensorRT-RTX, which needs no GPU for it.

Where the other library is meant, TensorRT-RTX stands in for it: the two have one interface, and
what each of its versions really has is the business of ``tests/model/test_tensorrt_api.py``.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from graph_bundle import (
    MODELS,
    NETWORK_SIZE,
    classify_model,
    half_model,
    info,
    masks_model,
    model_of,
    propose_model,
    text_model,
    write_bundle,
)
from onnx import TensorProto, helper

from openvis_rt.bundle.bundle import Bundle, write_manifest
from openvis_rt.engines.build import engines as build_module
from openvis_rt.engines.build.builder import (
    DEFAULT_PROFILES,
    BuildRequest,
    build_plan,
    check_options,
    check_targets,
)
from openvis_rt.engines.build.engines import build_engines, default_backend
from openvis_rt.engines.library import TensorRtLibrary, tensorrt_library
from openvis_rt.engines.plan import (
    BuildOptions,
    Profile,
    ShapeValues,
    check_plan,
    find_plan,
    plan_folder,
)
from openvis_rt.engines.rewrites.packing import pack_masks
from openvis_rt.engines.rewrites.rewrite import rewrite, without_defaults
from openvis_rt.errors import (
    BundleError,
    EngineError,
    InputError,
    OutputError,
    UnavailableError,
)
from openvis_rt.systems.graphs import TensorSpec

pytestmark = pytest.mark.usefixtures("parts_of_a_system")

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

TESTS = str(Path(__file__).parents[1])
RTX = tensorrt_library("tensorrt-rtx")
TENSORRT = TensorRtLibrary("tensorrt", RTX.module, "10.3.0")  # a stand-in
SIZES = {
    "picture_size": ShapeValues((1, 1), NETWORK_SIZE, NETWORK_SIZE),
    "frame_size": ShapeValues((1, 1), (1080, 1920), (2304, 4096)),
}


def compiled(tmp_path, model, library=RTX, progress=None, **request):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return build_plan(path, library, BuildRequest(("sm86",), **request), progress)


def build_rtx(bundle, **arguments):
    return build_engines(bundle, backend="tensorrt-rtx", **{"targets": ["sm86"], **arguments})


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(build_module, "gpu_of_this_machine", lambda: None)


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
    assert built.profiles == {"K": DEFAULT_PROFILES["K"]}
    assert built.shape_values == {}


def test_sizes_with_defaults_are_constants(tmp_path):
    built = compiled(tmp_path, pack_masks(masks_model()))
    assert [spec.name for spec in built.inputs] == ["mask_logits", "selected"]
    assert built.inputs[1] == TensorSpec("selected", "int64", ("n",))
    assert built.outputs == (TensorSpec("masks", "uint8", ("?", 1, 20, 4)),)
    assert "RESIZE" in built.layers


def test_sizes_without_defaults_are_inputs_with_their_ranges(tmp_path):
    model = pack_masks(without_defaults(masks_model(), SIZES))
    built = compiled(tmp_path, model, shape_values=SIZES)
    assert built.inputs[2:] == (
        TensorSpec("picture_size", "int64", (2,)),
        TensorSpec("frame_size", "int64", (2,)),
    )
    assert built.shape_values == SIZES
    assert built.profiles == {"n": Profile(1, 8, 8)}
    assert built.outputs == (TensorSpec("masks", "uint8", ("?", 1, "?", "?")),)


def test_sizes_without_ranges_are_refused(tmp_path):
    model = without_defaults(masks_model(), SIZES)
    with pytest.raises(EngineError, match=r"picture_size holds sizes.*only for frame_size"):
        compiled(tmp_path, model, shape_values={"frame_size": SIZES["frame_size"]})


def test_fp16_layers_are_counted_as_such(tmp_path):
    built = compiled(tmp_path, half_model())
    assert built.layers["MATRIX_MULTIPLY"] == {"float16": 1}


def test_workspace_is_limited(tmp_path):
    model = model_of(
        [helper.make_node("Conv", ["x", "weight"], ["y"], pads=[1, 1, 1, 1])],
        [info("x", TensorProto.FLOAT, [1, 64, 56, 56])],
        [info("y", TensorProto.FLOAT, [1, 64, 56, 56])],
        {"weight": np.ones((64, 64, 3, 3), np.float32)},
    )
    with pytest.raises(EngineError, match="cannot compile"):
        compiled(tmp_path, model, options=BuildOptions(workspace_mib=1))
    assert compiled(tmp_path, model, options=BuildOptions(workspace_mib=1024)).plan


def test_options_of_tensorrt_reach_the_library(tmp_path):
    options = BuildOptions(optimization_level=2, hardware_compatible="ampere+")
    check_options(TENSORRT, options)
    assert compiled(tmp_path, text_model(), TENSORRT, options=options).plan
    # the stand-in refuses this one, and says why
    with pytest.raises(EngineError, match="lean"):
        compiled(tmp_path, text_model(), TENSORRT, options=BuildOptions(version_compatible=True))


@pytest.mark.parametrize(
    ("library", "options", "message"),
    [
        (RTX, BuildOptions(optimization_level=3), "tensorrt-rtx .* has no --optimization-level"),
        (RTX, BuildOptions(version_compatible=True), "has no --version-compatible: .*exactly"),
        (RTX, BuildOptions(hardware_compatible="ampere+"), "has no --hardware-compatible ampere"),
        (TENSORRT, BuildOptions(hardware_compatible="all"), r"10.3.0 .*it has ampere\+, same-comp"),
        (TENSORRT, BuildOptions(optimization_level=6), "level is 6; give 0 to 5"),
        (TENSORRT, BuildOptions(optimization_level=-1), "level is -1; give 0 to 5"),
        (TENSORRT, BuildOptions(workspace_mib=0), "workspace-mib is 0; give 1 to"),
        (RTX, BuildOptions(workspace_mib=10**22), "give 1 to 1048576"),
    ],
)
def test_an_option_that_the_library_does_not_have_is_refused(library, options, message):
    with pytest.raises(InputError, match=message):
        check_options(library, options)


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
        build_plan(path, RTX, BuildRequest(("sm86",)))


def test_targets_are_put_in_order():
    assert check_targets(RTX, [" SM120", "sm86", "sm89", "sm86"]) == ("sm86", "sm89", "sm120")


@pytest.mark.parametrize("targets", [["sm86", "sm87"], [""], []])
def test_unknown_target_lists_what_works(targets):
    with pytest.raises(InputError, match=r"sm75, sm80, sm86, sm89, sm120, sm121"):
        check_targets(RTX, targets)


def test_tensorrt_takes_no_targets():
    assert check_targets(TENSORRT, []) == ()
    with pytest.raises(
        InputError, match=r"sm86: tensorrt 10\.3\.0 compiles for the GPU that it runs"
    ):
        check_targets(TENSORRT, ["sm86"])


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
    results = build_rtx(bundle, targets=["sm89", "sm86"], report=lambda *s: steps.append(s))
    return bundle, results, steps


def test_every_graph_is_built_with_its_sidecar(built):
    bundle, results, steps = built
    folder = plan_folder(bundle.path, "tensorrt-rtx", ("sm86", "sm89"))
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
        assert sidecar.library_version == RTX.version
        assert (sidecar.backend, sidecar.gpu) == ("tensorrt-rtx", None)
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
    again = build_rtx(bundle, targets=["sm86", "sm89"])
    assert all(result.skipped for result in again)
    assert [result.sidecar for result in again] == [result.sidecar for result in results]


def test_forced_build_builds(tmp_path):
    bundle = write_bundle(tmp_path, text=text_model())
    build_rtx(bundle)
    (forced,) = build_rtx(bundle, force=True)
    assert not forced.skipped


def test_changed_graph_is_detected_and_built_again(tmp_path):
    bundle = write_bundle(tmp_path, text=text_model())
    (old,) = build_rtx(bundle)
    changed = text_model()
    changed.producer_name = "another"
    bundle = write_bundle(tmp_path, text=changed)
    with pytest.raises(
        EngineError, match=r"built from another text graph.*openvis build"
    ) as caught:
        check_plan(old.plan, bundle.graph_sha256("text"))
    assert old.sidecar.onnx_sha256 in str(caught.value)
    assert bundle.graph_sha256("text") in str(caught.value)
    (new,) = build_rtx(bundle)
    assert not new.skipped
    check_plan(new.plan, bundle.graph_sha256("text"))


def test_damaged_engine_is_detected_and_built_again(tmp_path):
    bundle = write_bundle(tmp_path, text=text_model())
    (old,) = build_rtx(bundle)
    data = bytearray(old.plan.read_bytes())
    data[len(data) // 2] ^= 1
    old.plan.write_bytes(data)
    command = "openvis build .* --backend tensorrt-rtx --precision fp32 --targets sm86 --graph text"
    with pytest.raises(EngineError, match=f"changed after it was built.*{command}"):
        check_plan(old.plan, old.sidecar.onnx_sha256)
    old.plan.write_bytes(data[:-1])
    with pytest.raises(EngineError, match=rf"has {len(data) - 1} bytes, and {len(data)} were"):
        check_plan(old.plan, old.sidecar.onnx_sha256)
    (new,) = build_rtx(bundle)
    assert not new.skipped


def test_unverified_build_is_verified_by_the_next(tmp_path):
    bundle = write_bundle(tmp_path, propose=propose_model())
    (fast,) = build_rtx(bundle, verify=False)
    assert fast.sidecar.replacement_error is None
    assert build_rtx(bundle, verify=False)[0].skipped
    (checked,) = build_rtx(bundle)
    assert checked.sidecar.replacement_error is not None


def test_unknown_graph_and_precision(built):
    bundle = built[0]
    with pytest.raises(InputError, match="no graph depth; it has propose"):
        build_rtx(bundle, graphs=["depth"])
    with pytest.raises(BundleError, match="precision 'int8'"):
        build_rtx(bundle, precisions=["int8"])


def test_refused_graph_leaves_nothing(tmp_path):
    bad = model_of(
        [helper.make_node("Transpose", ["frames"], ["out"], perm=[0, 3, 1, 2])],
        [info("frames", TensorProto.UINT8, [1, 4, 4, 3])],
        [info("out", TensorProto.UINT8, [1, 3, 4, 4])],
    )
    bundle = write_bundle(tmp_path, text=text_model(), propose=bad)
    with pytest.raises(EngineError, match="UInt8"):
        build_rtx(bundle)
    folder = plan_folder(tmp_path, "tensorrt-rtx", ("sm86",))
    assert {file.name for file in folder.iterdir()} == {"text.fp32.plan", "text.fp32.json"}


def test_half_precision_layers_are_not_fp32(tmp_path):
    bundle = write_bundle(tmp_path, classify=half_model())
    with pytest.raises(EngineError, match=r"built as fp32, and by its network.* compute in fp16"):
        build_rtx(bundle)


def test_fp32_layers_are_not_half_precision(tmp_path):
    bundle = write_bundle(tmp_path, half={"classify": classify_model()}, classify=classify_model())
    with pytest.raises(EngineError, match=r"built as fp16, and by its network.* compute in fp32"):
        build_rtx(bundle, precisions=["fp16"])


def test_a_graph_that_serves_two_precisions_is_built_once(tmp_path):
    bundle = write_bundle(
        tmp_path,
        half={"classify": half_model()},
        classify=classify_model(),
        masks=masks_model(),
    )
    results = build_rtx(bundle, precisions=["fp32", "fp16"])
    assert [(r.plan.name, r.sidecar.precision_built) for r in results] == [
        ("classify.fp32.plan", "fp32"),
        ("masks.fp32.plan", "fp32"),
        ("classify.fp16.plan", "fp16"),
    ]
    (again,) = build_rtx(bundle, precisions=["fp16"], graphs=["masks"])
    assert again.skipped
    for precision in ("fp32", "fp16"):
        found = find_plan(
            bundle,
            "masks",
            precision,
            backend="tensorrt-rtx",
            version=RTX.version,
            capability="sm86",
        )
        assert found == (again.plan, again.sidecar)


def test_sizes_are_inputs_unless_the_bundle_is_for_one_size(tmp_path):
    (any_size,) = build_rtx(write_bundle(tmp_path / "any", masks=masks_model()))
    assert any_size.sidecar.shape_values == SIZES
    assert [spec.name for spec in any_size.sidecar.inputs][2:] == ["picture_size", "frame_size"]
    fixed = write_bundle(tmp_path / "one", source_size=(20, 30), masks=masks_model())
    (one_size,) = build_rtx(fixed)
    assert one_size.sidecar.shape_values == {}
    assert one_size.sidecar.outputs[0].shape == ("?", 1, 20, 4)


def test_limits_are_kept_and_other_limits_are_another_build(tmp_path):
    bundle = write_bundle(tmp_path, classify=classify_model(), masks=masks_model())
    limits = {"max_classes": 20, "max_frame": (720, 1280)}
    classify, masks = build_rtx(bundle, **limits)
    assert classify.sidecar.profiles == {"K": Profile(1, 20, 20)}
    assert masks.sidecar.shape_values["frame_size"] == ((1, 1), (720, 1280), (720, 1280))
    assert all(result.skipped for result in build_rtx(bundle, **limits))
    assert not any(result.skipped for result in build_rtx(bundle))
    with pytest.raises(InputError, match="max-classes is 0"):
        build_rtx(bundle, max_classes=0)


def test_windows_of_any_length_up_to_the_bundle_s_are_one_engine(tmp_path):
    models = {"propose": propose_model("T"), "masks": masks_model("T"), "text": text_model()}
    propose, masks, text = build_rtx(write_bundle(tmp_path, window_length=5, **models))
    assert propose.sidecar.inputs == (TensorSpec("frames", "uint8", ("T", 12, 16, 3)),)
    assert propose.sidecar.profiles == {"T": Profile(1, 5, 5)}
    assert propose.sidecar.replaced_grid_samples == 1
    assert 0 <= propose.sidecar.replacement_error < 1e-4  # as for one frame
    assert masks.sidecar.inputs[0] == TensorSpec("mask_logits", "float32", (10, "T", *NETWORK_SIZE))
    assert masks.sidecar.outputs[0].shape == ("?", "?", "?", "?")
    # at most eight masks a run
    assert masks.sidecar.profiles == {"T": Profile(1, 5, 5), "n": Profile(1, 1, 1)}
    assert text.sidecar.profiles == {"B": DEFAULT_PROFILES["B"]}
    # only what takes windows is built again for longer ones
    longer = build_rtx(write_bundle(tmp_path, window_length=7, **models))
    assert [result.skipped for result in longer] == [False, False, True]
    assert longer[0].sidecar.profiles == {"T": Profile(1, 7, 7)}


def test_gathers_are_checked_at_one_frame_and_at_the_whole_window(monkeypatch):
    lengths = []

    def check(_model, *runs):
        lengths.extend(run["frames"].shape[0] for run in runs)
        return 0.0

    monkeypatch.setattr("openvis_rt.engines.rewrites.rewrite.check_grid_samples", check)
    sizes = [{"T": 5, "K": 64}, {"T": 1, "K": 1}]
    rewrite(propose_model("T"), (), sizes, verify=True)
    assert lengths == [5, 1]
    lengths.clear()
    rewrite(propose_model(), (), sizes, verify=True)
    assert lengths == [1]  # a frame is a frame


def test_other_options_are_another_build(tmp_path):
    bundle = write_bundle(tmp_path, text=text_model())
    (plain,) = build_rtx(bundle)
    (limited,) = build_rtx(bundle, options=BuildOptions(workspace_mib=512))
    assert (plain.skipped, limited.skipped) == (False, False)
    assert limited.sidecar.options == BuildOptions(workspace_mib=512)


def test_a_timing_cache_is_refused_where_nothing_is_timed(tmp_path):
    bundle = write_bundle(tmp_path, text=text_model())
    with pytest.raises(InputError, match="measures no kernels"):
        build_rtx(bundle, timing_cache=True)
    assert build_rtx(bundle, timing_cache=False)


def test_folder_that_cannot_be_made(tmp_path):
    bundle = write_bundle(tmp_path, text=text_model())
    (tmp_path / "engines").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        build_rtx(bundle)


def test_missing_onnxruntime_is_named(tmp_path):
    # the module is hidden in the child by a folder that is earlier on its path
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        if __name__ == "__main__":
            sys.path.insert(0, sys.argv[1])
            from graph_bundle import propose_model, write_bundle
            from openvis_rt.engines.build.engines import build_engines
            from openvis_rt.errors import UnavailableError
            bundle = write_bundle(Path(sys.argv[2]), propose=propose_model())
            sys.path.insert(0, sys.argv[2])
            try:
                build_engines(bundle, backend="tensorrt-rtx")
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
    from graph_bundle import classify_model, text_model, write_bundle
    from openvis_rt.engines.build.engines import build_engines
    bundle = write_bundle(Path(sys.argv[2]), text=text_model(), classify=classify_model())
    def report(graph, phase, done, steps):
        if graph == "classify":
            print("building", flush=True)
            time.sleep(60)
    build_engines(bundle, backend="tensorrt-rtx", targets=["sm86"], report=report)
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
    folder = plan_folder(bundle_path, "tensorrt-rtx", ("sm86",))
    names = {file.name for file in folder.iterdir() if not file.name.endswith(".building")}
    assert names == {"text.fp32.plan", "text.fp32.json"}
    if kind == signal.SIGINT:
        assert not list(folder.glob("*.building"))
    bundle = Bundle.open(bundle_path)
    with pytest.raises(EngineError, match="no engine"):
        check_plan(folder / "classify.fp32.plan", bundle.graph_sha256("classify"))
    text, classify = build_rtx(bundle)
    assert (text.skipped, classify.skipped) == (True, False)
    assert not list(folder.glob("*.building"))


# --- TensorRT, with a stand-in ---


STAND_IN = """
from tensorrt_rtx import *
__version__ = "10.3.0"
"""
WITH_STAND_IN = """
import json, sys
sys.path[:0] = sys.argv[1:3]
if __name__ == "__main__":
    from graph_bundle import classify_model, half_model, write_bundle
    from openvis_rt.engines.build import engines as build
    from openvis_rt.errors import OpenVISError
    from openvis_rt.engines.plan import BuildOptions
    from openvis_rt.records import json_from_record
    build.gpu_of_this_machine = lambda: ("Orin", "sm87")
    bundle = write_bundle(sys.argv[3], half={"classify": half_model()}, classify=classify_model())
    options = BuildOptions(hardware_compatible=json.loads(sys.argv[4]))
    for _ in range(2):
        (result,) = build.build_engines(
            bundle, backend="tensorrt", precisions=["fp16"], options=options, timing_cache=False
        )
        entry = {"plan": str(result.plan), "skipped": result.skipped, "warnings": result.warnings}
        print(json.dumps({**entry, **json_from_record(result.sidecar)}))
"""


@pytest.mark.parametrize(
    ("compatible", "target"), [(None, "sm87"), ("ampere+", "ampere+")], ids=["own", "ampere+"]
)
def test_tensorrt_builds_for_the_gpu_of_this_machine(tmp_path, compatible, target):
    (tmp_path / "tensorrt.py").write_text(STAND_IN)
    out = run_script(tmp_path, WITH_STAND_IN, tmp_path, tmp_path / "bundle", json.dumps(compatible))
    first, second = map(json.loads, out.splitlines())
    assert Path(first["plan"]).parent.name == f"tensorrt-{target}"
    assert (first["gpu"], first["targets"], first["library_version"]) == (
        ("Orin", ["sm87"], "10.3.0") if compatible is None else ("Orin", ["ampere+"], "10.3.0")
    )
    assert first["options"]["hardware_compatible"] == compatible
    assert first["layers_from"] == "network"
    assert first["warnings"] == []  # without a GPU the stand-in cannot load what it built
    assert (first["skipped"], second["skipped"]) == (False, True)


class Module:
    """``tensorrt_rtx`` with some of its names replaced."""

    def __init__(self, **names):
        self.__dict__.update(names)

    def __getattr__(self, name):
        return getattr(RTX.module, name)


def loading(json_text):
    """A library whose engines load, and whose inspector gives this text."""
    inspector = SimpleNamespace(get_engine_information=lambda _form: json_text)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda _plan: engine)
    return TensorRtLibrary("tensorrt-rtx", Module(Runtime=lambda _log: runtime), "1.7.1")


def inspected(kind, dtype):
    tensor = {"Name": "t", "Datatype": dtype}
    return json.dumps({"Layers": [{"LayerType": kind, "Inputs": [tensor], "Outputs": [tensor]}]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        inspected("gemm", "Half"),
        inspected("correlation", "Half"),
        # what they hide is not told
        *(inspected(kind, "Float") for kind in ("ForeignNode", "kgen", "runtime_fusion")),
    ],
)
def test_the_typed_network_is_the_proof_of_precision(tmp_path, text):
    built = compiled(tmp_path, half_model(), loading(text), inspect=True)
    assert built.layers["MATRIX_MULTIPLY"] == {"float16": 1}
    assert built.warnings == ()


@pytest.mark.parametrize("kind", ["gemm", "correlation"])
def test_an_inspector_that_says_otherwise_is_told_and_refuses_nothing(tmp_path, kind):
    built = compiled(tmp_path, half_model(), loading(inspected(kind, "Float")), inspect=True)
    assert built.layers["MATRIX_MULTIPLY"] == {"float16": 1}
    [warning] = built.warnings
    assert "types are fp16" in warning
    assert "products that are fp32" in warning


@pytest.mark.parametrize(
    ("precision", "window", "is_told"), [("fp16", 5, True), ("fp16", 4, False), ("fp32", 5, False)]
)
def test_an_attention_over_more_keys_than_fp16_counts_is_told(tmp_path, precision, window, is_told):
    """720x1280 has 14,400 places at stride 8, and FP16 ends at 65,504."""
    bundle = write_bundle(tmp_path, half={"propose": half_model()}, propose=classify_model())
    rule = dataclasses.replace(bundle.manifest.preprocess, network_size=(720, 1280))
    write_manifest(
        tmp_path, dataclasses.replace(bundle.manifest, preprocess=rule, window_length=window)
    )
    [result] = build_rtx(Bundle.open(tmp_path), precisions=[precision])
    assert any("72000 places" in warning for warning in result.warnings) == is_told


def test_a_library_that_does_not_start_says_why(tmp_path):
    def builder(log):
        log.log(RTX.module.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    library = TensorRtLibrary("tensorrt", Module(Builder=builder), "10.3.0")
    with pytest.raises(EngineError, match=r"(?s)10\.3\.0 does not start.*error: 35"):
        compiled(tmp_path, text_model(), library)


def stand_in(monkeypatch):
    monkeypatch.setattr(build_module, "tensorrt_library", lambda _: TENSORRT)


def test_tensorrt_needs_a_gpu_to_build(tmp_path, monkeypatch, no_gpu):
    stand_in(monkeypatch)
    bundle = write_bundle(tmp_path, text=text_model())
    with pytest.raises(
        UnavailableError, match=r"10.3.0 needs an NVIDIA GPU.*tensorrt-rtx"
    ) as caught:
        build_engines(bundle, backend="tensorrt")
    assert caught.value.exit_code == 3
    with pytest.raises(InputError, match="takes no list"):
        build_engines(bundle, backend="tensorrt", targets=["sm87"])


def test_ampere_engines_need_an_ampere_gpu_to_build(tmp_path, monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr(build_module, "gpu_of_this_machine", lambda: ("T4", "sm75"))
    bundle = write_bundle(tmp_path, text=text_model())
    options = BuildOptions(hardware_compatible="ampere+")
    with pytest.raises(UnavailableError, match="T4 is sm75"):
        build_engines(bundle, backend="tensorrt", options=options)


@pytest.mark.parametrize(
    ("installed", "gpu", "backend"),
    [
        ({"tensorrt_rtx"}, None, "tensorrt-rtx"),
        ({"tensorrt_rtx"}, ("Orin", "sm87"), "tensorrt-rtx"),
        ({"tensorrt"}, None, "tensorrt"),
        ({"tensorrt"}, ("Orin", "sm87"), "tensorrt"),
        ({"tensorrt", "tensorrt_rtx"}, None, "tensorrt-rtx"),
        ({"tensorrt", "tensorrt_rtx"}, ("Orin", "sm87"), "tensorrt"),
        (set(), None, "tensorrt-rtx"),
    ],
)
def test_default_backend_is_what_works_here(monkeypatch, installed, gpu, backend):
    monkeypatch.setattr(build_module, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(build_module, "gpu_of_this_machine", lambda: gpu)
    assert default_backend() == backend


# --- the command ---


def command(*arguments):
    from typer.testing import CliRunner

    from openvis_rt.cli.main import app

    return CliRunner().invoke(app, ["build", *map(str, arguments)])


def test_command_prints_json(tmp_path):
    write_bundle(tmp_path, text=text_model(), masks=masks_model())
    arguments = [tmp_path, "--targets", "sm86", "--graph", "text"]
    first = command(*arguments, "--json")
    assert first.exit_code == 0, first.output
    (entry,) = json.loads(first.stdout)
    assert (entry["graph"], entry["skipped"], entry["targets"]) == ("text", False, ["sm86"])
    assert entry["layers_from"] == "network"
    second = command(*arguments)
    assert "up to date" in second.stdout
    assert "building with tensorrt-rtx" in second.stderr


def test_command_builds_several_precisions(tmp_path):
    write_bundle(tmp_path, half={"classify": half_model()}, classify=classify_model())
    for text in ("all", "fp16, fp32"):
        ended = command(tmp_path, "--targets", "sm86", "--precision", text, "--json")
        assert {entry["precision_built"] for entry in json.loads(ended.stdout)} == {"fp16", "fp32"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--backend", "onnxruntime"], InputError),
        (["--optimization-level", "3"], InputError),
        (["--hardware-compatible", "ampere+"], InputError),
        (["--version-compatible"], InputError),
        (["--timing-cache"], InputError),
        (["--max-frame", "big"], InputError),
        (["--precision", "int4"], BundleError),
    ],
)
def test_command_refuses_what_has_no_effect(tmp_path, arguments, error):
    write_bundle(tmp_path, text=text_model())
    ended = command(tmp_path, "--backend", "tensorrt-rtx", *arguments)
    assert isinstance(ended.exception, error), ended.output
    assert not (tmp_path / "engines").exists()
