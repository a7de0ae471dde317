"""Results, annotations, proofs and records of a calibration that a stranger made."""

from __future__ import annotations

import contextlib
import json
import os

import numpy as np
from borders import survives
from hypothesis import given
from hypothesis import strategies as st
from sidecars import PLAN
from strange import changed, damaged

from openvis_rt.bench.report_reading import read_report
from openvis_rt.convert.finished import FinishedRun
from openvis_rt.engines.build.timing_cache import load_timing_cache
from openvis_rt.evaluation.annotation_files import read_annotations
from openvis_rt.evaluation.results_files import predictions_from, read_entries
from openvis_rt.runtime.backends.proof import proof_words, proofs_of
from openvis_rt.runtime.video.run_lengths import box_of, check_runs, decode_mask
from openvis_rt.serving.triton.settings import ModelSettings

MASK = {"size": [4, 6], "counts": "45?"}  # zeros, ones, zeros: 4, 5, 15
FOUND = {"id": 1, "name": "disc", "category_id": 1, "score": 0.5, "box": [1, 0, 2, 4]}
INSTANCE = {**FOUND, "segmentation": MASK}
FRAME = {"frame": 0, "time": 0.0, "size": [4, 6], "instances": [INSTANCE]}
TRUTH = {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "areas": [5]}
ANNOTATIONS = {
    "videos": [{"id": 1, "width": 6, "height": 4, "length": 1, "file_names": ["a/0.jpg"]}],
    "categories": [{"id": 1, "name": "disc"}],
    "annotations": [{**TRUTH, "bboxes": [[1, 0, 2, 4]], "segmentations": [MASK]}],
}
ENTRY = {"video_id": 1, "category_id": 1, "score": 0.5, "segmentations": [MASK]}


def encoded(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@given(data=st.data())
def test_the_folder_of_a_run(tmp_path, data):
    (tmp_path / "categories.json").write_bytes(encoded([{"id": 1, "name": "disc"}]))
    frame = encoded(data.draw(changed(FRAME)))
    if data.draw(st.booleans()):
        frame = damaged(data, encoded(FRAME))
    (tmp_path / "frames.jsonl").write_bytes(frame + b"\n")

    def read() -> None:
        for result in FinishedRun.open(tmp_path).frames():
            for instance in result.instances:
                mask = decode_mask(instance.segmentation)
                assert mask.shape == (result.height, result.width)
                assert np.isfinite([instance.score, *instance.box]).all()

    survives(read)


@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=130), max_size=30))
def test_run_lengths(tmp_path, text):
    mask, box = {**MASK, "counts": text}, (0, 0, 0, 0)
    with contextlib.suppress(ValueError):  # others have no box
        check_runs(mask, 4, 6)
        box = box_of(mask)
    entry = {**FOUND, "box": box, "segmentation": mask}
    (tmp_path / "categories.json").write_bytes(encoded([{"id": 1, "name": "disc"}]))
    (tmp_path / "frames.jsonl").write_bytes(encoded({**FRAME, "instances": [entry]}))

    def read() -> None:
        for result in FinishedRun.open(tmp_path).frames():
            assert decode_mask(result.instances[0].segmentation).shape == (4, 6)

    survives(read)


@given(data=st.data())
def test_annotations_and_results(tmp_path, data):
    truth, found = ANNOTATIONS, [ENTRY]
    if data.draw(st.booleans()):
        truth = data.draw(changed(ANNOTATIONS))
    else:
        found = data.draw(changed([ENTRY]))
    (tmp_path / "val.json").write_bytes(encoded(truth))
    (tmp_path / "results.json").write_bytes(encoded(found))

    def read() -> None:
        known = read_annotations(tmp_path / "val.json")
        list(predictions_from(read_entries(tmp_path / "results.json", known), known))

    survives(read)


@given(data=st.data())
def test_a_proof(tmp_path, data):
    held = {"plan_sha256": "1" * 64, "gpu": "a GPU", "library": "TensorRT 10", "rules": "0"}
    compared = {"output": "scores", "measure": "dB", "value": 40.0, "gate": 30.0, "passed": True}
    corner = {"lengths": {"K": 2}, "outputs": [compared], "sizes": {}, "slot": 0}
    good = {"held": held, "reference": "ONNX Runtime", "corners": [corner], "schema": 1}
    plan = tmp_path / "classify.fp32.plan"
    plan.write_bytes(PLAN)
    (tmp_path / "classify.fp32.gpu.proof.json").write_bytes(encoded(data.draw(changed(good))))
    survives(lambda: proof_words(proofs_of(plan, "1" * 64)))


@given(data=st.data())
def test_the_settings_of_a_model_repository(tmp_path, data):
    texts = {"precision": "fp32", "backend": "auto", "device": "cpu", "threshold": "0.3"}
    parameters = {**texts, "max_instances": "20", "threads": "2"}
    batching = {"oldest": {"max_candidate_sequences": 64}, "max_sequence_idle_microseconds": 1e6}
    strings = {key: {"string_value": value} for key, value in parameters.items()}
    config = data.draw(changed({"parameters": strings, "sequence_batching": batching}))
    names = data.draw(changed({"names": ["disc"], "others": []}))
    (tmp_path / "names.json").write_bytes(encoded(names))
    survives(lambda: ModelSettings.read(config, tmp_path / "names.json"))


@given(data=st.data())
def test_a_report_of_a_benchmark(tmp_path, data):
    (tmp_path / "old.json").write_bytes(encoded(data.draw(changed({"schema": "1.0"}))))
    survives(lambda: read_report(tmp_path / "old.json"))


class Config:
    """Of a builder that takes no cache."""

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        return not cache and not ignore_mismatch


def test_a_timing_cache_that_is_a_pipe_or_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, found in (("pipe", "a pipe"), ("zero", "a device")):
        warnings = load_timing_cache(Config(), tmp_path / name)
        assert found in warnings[0]
