"""An engine is compared with ONNX Runtime before it serves, once; a wrong one does not serve."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from doubles.engines import CLASSES, write_plan

from openvis_rt import Pipeline
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli import inspect
from openvis_rt.engines.plan import Profile
from openvis_rt.errors import BackendError, ParityError
from openvis_rt.runtime.backends import proof as proofs
from openvis_rt.runtime.backends import proving
from openvis_rt.runtime.backends.proof_places import places_of
from openvis_rt.runtime.backends.registry import BackendOptions
from openvis_rt.runtime.backends.tensorrt.backend import TensorRt
from openvis_rt.systems.graphs import GraphSpec, TensorSpec

pytestmark = pytest.mark.proven


def opened(bundle, **options):
    return Pipeline.open(bundle, backend="tensorrt", vocabulary=CLASSES, **options)


def records(bundle):
    return {p.name: json.loads(p.read_text()) for p in bundle.path.glob("engines/*/*.proof.json")}


def test_engines_are_compared_once_at_every_corner(use, changeable, frames, monkeypatch):
    use()
    with opened(changeable) as pipeline:
        assert sum("comparing the engine" in w for w in pipeline.warnings) == len(changeable.graphs)
    found = records(changeable)
    assert set(found) == {f"{graph}.fp32.fake-gpu.proof.json" for graph in changeable.graphs}
    classify = found["classify.fp32.fake-gpu.proof.json"]["corners"]
    assert [(c["lengths"], c["slot"]) for c in classify] == [
        ({"K": length}, slot) for length in (1, 8, 64) for slot in (0, 1)
    ]
    outputs = {one["output"] for one in classify[0]["outputs"]}
    assert outputs == {t.name for t in changeable.graph("classify").spec.outputs}
    masks = found["masks.fp32.fake-gpu.proof.json"]["corners"]
    assert [(c["lengths"]["n"], c["sizes"]["frame_size"]) for c in masks[::4]] == [
        (1, [1, 1]),
        (8, [120, 180]),
        (1, [256, 256]),
    ]
    assert masks[0]["outputs"][0]["measure"] == "share"

    def never(*_: object) -> None:
        raise AssertionError("it was compared again")

    monkeypatch.setattr(proving, "_corners", never)
    with opened(changeable) as pipeline:
        assert not pipeline.warnings
        pipeline.step(frames[0])


def test_a_changed_engine_is_compared_again(use, changeable):
    use()
    opened(changeable).close()
    [place] = changeable.path.glob("engines/*/classify.fp32.fake-gpu.proof.json")
    record = json.loads(place.read_text())
    changes = {
        "plan_sha256": "0" * 64,
        "gpu": "another",
        "library": "tensorrt 99",
        "rules": "others",
    }
    for field, value in changes.items():
        place.write_text(json.dumps({**record, "held": {**record["held"], field: value}}))
        with opened(changeable) as pipeline:
            assert sum("comparing" in w for w in pipeline.warnings) == 1
        assert json.loads(place.read_text()) == record
    place.write_text("damaged")
    opened(changeable).close()
    assert json.loads(place.read_text()) == record


@pytest.mark.parametrize("how", [lambda x: x * 1.1, lambda x: np.full_like(x, np.nan)])
def test_a_wrong_engine_does_not_serve(use, changeable, frames, how):
    double = use()

    def wrong(stem, outputs):
        if stem == "propose":
            outputs["queries"] = how(outputs["queries"])

    double.edit = wrong
    for _ in range(2):  # the second time by what is known
        with pytest.raises(
            ParityError, match=r"(?s)propose.*queries.*needed at least 25"
        ) as caught:
            opened(changeable)
        assert caught.value.exit_code == 4
    double.edit = lambda *_: None
    with pytest.raises(ParityError, match="--no-verify"):
        opened(changeable)
    with opened(changeable, backend_options=BackendOptions(verify=False)) as pipeline:
        assert any("without having been compared" in w for w in pipeline.warnings)
        pipeline.step(frames[0])


def test_a_bundle_that_takes_no_files_has_its_proofs_in_the_cache(
    use, changeable, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    use()
    written = proofs.output_file

    def refuse(path):
        if path.is_relative_to(changeable.path):
            raise proofs.OutputError("read only")
        return written(path)

    monkeypatch.setattr(proofs, "output_file", refuse)
    opened(changeable).close()
    assert records(changeable) == {}
    assert len(list((tmp_path / "cache").glob("openvis-rt/proofs/*.json"))) == len(
        changeable.graphs
    )
    with opened(changeable) as pipeline:
        assert not [w for w in pipeline.warnings if "comparing" in w]


def test_inspect_takes_no_proof_of_other_bytes(use, changeable):
    """A new build leaves the old engine's proof beside it."""

    def told():
        [state] = [s for n, s in inspect.engines_of(changeable).items() if "classify" in n]
        return state

    use()
    opened(changeable).close()
    assert "compared with ONNX Runtime on Fake GPU" in told()
    write_plan(changeable, "classify", inspected="fp16")
    assert "not compared with ONNX Runtime yet" in told()


def test_windows_of_every_length_are_compared():
    spec = GraphSpec("propose", (TensorSpec("frames", "uint8", ("T", 6, 8, 3)),), ())
    sidecar = SimpleNamespace(
        profiles={"T": Profile(1, 4, 4), "K": Profile(1, 8, 64)}, shape_values={}
    )
    assert [p.lengths["T"] for p in places_of(sidecar, spec, {})] == [1, 4, 2, 3]


def test_the_words_of_a_proof(use, changeable):
    use()
    backend = TensorRt("tensorrt")
    try:
        found = proving.prove(backend, changeable, "fp32")
    finally:
        backend.close()
    assert proofs.proof_words([]).startswith("not compared")
    assert "compared with ONNX Runtime on" in proofs.proof_words([found["classify"]])


class Wrong:
    """Makes an output of one graph wrong in some of its executions, which go slot by slot."""

    def __init__(self, stem, output, when, how=lambda x: x * 1.5):
        self.calls, self._of, self._when, self._how = 0, (stem, output), when, how

    def __call__(self, stem, outputs):
        if stem == self._of[0]:
            if self._when(self.calls, outputs):
                outputs[self._of[1]] = self._how(outputs[self._of[1]])
            self.calls += 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Wrong("classify", "class_scores", lambda call, _: call % 2), r"K = 1, slot 1: "),
        # 0 to 3 are the first two runs of each slot; from the third on CUDA graphs are launched
        (Wrong("propose", "queries", lambda call, _: call % 8 >= 4), r"queries: "),
        (
            Wrong("masks", "masks", lambda _, found: found["masks"].shape[-2] == 256, np.invert),
            r"n = 1, .*frame_size = 256x256: ",
        ),
    ],
    ids=["slot", "third", "size"],
)
def test_every_slot_run_and_size_is_compared(use, changeable, wrong, message):
    use().edit = wrong
    with pytest.raises(ParityError, match=message):
        opened(changeable)


def test_what_ran_before_the_compared_run_does_not_matter(use, changeable):
    use().edit = Wrong("propose", "queries", lambda call, _: call % 8 < 4)
    opened(changeable).close()


def test_only_rounding_that_flips_a_bit_has_more_than_one_try(use, changeable):
    double = use()
    first = Wrong("propose", "queries", lambda call, _: call < 8)
    double.edit = first
    opened(changeable).close()
    assert first.calls > 8
    for path in changeable.path.glob("engines/*/*.proof.json"):
        path.unlink()
    nan = Wrong("propose", "queries", lambda call, _: call < 8, lambda x: np.full_like(x, np.nan))
    double.edit = nan
    with pytest.raises(ParityError, match="queries: NaN or infinity"):
        opened(changeable)
    for path in changeable.path.glob("engines/*/*.proof.json"):
        path.unlink()
    double.edit = Wrong("classify", "class_scores", lambda call, _: call < 8)
    with pytest.raises(ParityError, match="class_scores"):
        opened(changeable)


def test_two_models_of_gpu_may_share_a_bundle(use, changeable, monkeypatch):
    use()
    opened(changeable).close()
    monkeypatch.setattr(TensorRt, "gpu", "Other GPU")
    opened(changeable).close()
    for name in ("fake-gpu", "other-gpu"):
        assert len(list(changeable.path.glob(f"engines/*/*.{name}.proof.json"))) == len(
            changeable.graphs
        )
    [told] = [s for n, s in inspect.engines_of(changeable).items() if "classify" in n]
    assert "on Fake GPU: " in told
    assert "on Other GPU: " in told


def test_recorded_inputs_are_compared_too(use, recorded, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(recorded / "recorded", path, copy_function=os.link)
    bundle = Bundle.open(path)
    for graph in bundle.graphs:
        write_plan(bundle, graph)
    double = use()
    opened(bundle).close()
    corners = records(bundle)["propose.fp32.fake-gpu.proof.json"]["corners"]
    found = [(corner["inputs"], corner["slot"]) for corner in corners]
    assert found == [("seeded", 0), ("seeded", 1), ("recorded", 0), ("recorded", 1)]
    for place in path.glob("engines/*/*.proof.json"):
        place.unlink()
    # one try with seeded inputs, 8 runs; what comes then is recorded
    double.edit = Wrong("propose", "queries", lambda call, _: call >= 8)
    with pytest.raises(ParityError, match="queries at recorded inputs: "):
        opened(bundle)


def test_a_build_on_its_gpu_compares_what_it_built(use, changeable, monkeypatch):
    use()
    built = [(graph, "fp32") for graph in changeable.graphs]
    found = proving.prove_here("tensorrt", changeable, built)
    assert set(found) == {f"{graph}.fp32" for graph in changeable.graphs}
    assert len(records(changeable)) == len(changeable.graphs)
    for path in changeable.path.glob("engines/*/classify.fp32.plan"):  # as if for another GPU
        path.unlink()
    assert proving.prove_here("tensorrt", changeable, built) is None

    def no_gpu(*_: object, **__: object) -> None:
        raise BackendError("there is no NVIDIA driver here")

    monkeypatch.setattr("openvis_rt.runtime.backends.tensorrt.backend.open_cuda", no_gpu)
    assert proving.prove_here("tensorrt", changeable, built) is None
