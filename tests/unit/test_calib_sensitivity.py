"""What each block costs in INT8, and the mix that is picked by it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime
import pytest
from generated_data_set import write_data_set
from int8_bundle import (
    BLOCKS,
    CLASSES,
    noise_frames,
    propose_int8_model,
    write_int8_bundle,
    write_video_bundle,
)
from PIL import Image

from openvis_rt import Pipeline, predict_videos, read_annotations, vocabulary_for
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.accuracy import DataSet
from openvis_rt.calib.block_choice import BlockChoice
from openvis_rt.calib.blocks import blocks_of
from openvis_rt.calib.calibrate import calibrate, rebuild_int8
from openvis_rt.calib.int8_graphs import int8_beside_fp32, placed_products
from openvis_rt.calib.mix import longest_within
from openvis_rt.calib.mixed_backend import MixedBackend
from openvis_rt.calib.reading import read_calibration
from openvis_rt.calib.saved_results import SavedResults
from openvis_rt.calib.sensitivity import sqnr_of
from openvis_rt.calib.sensitivity_record import saved_report
from openvis_rt.calib.windows import CalibrationFrames
from openvis_rt.errors import InputError, ParityError

pytestmark = pytest.mark.usefixtures("parts_of_a_system")

FRAMES = CalibrationFrames(16, stride=1, allow_few=True)
WORST = "backbone.res2"  # of a bundle that is made so


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise")
    for number, image in enumerate(noise_frames(24)):
        Image.fromarray(image).save(path / f"{number:03}.png")
    return path


@pytest.fixture
def bundle(tmp_path):
    return write_int8_bundle(tmp_path / "bundle", sensitive=True)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, folder):
    """Calibrated with a bound that holds without the worst block only."""
    bundle = write_int8_bundle(tmp_path_factory.mktemp("mixed") / "bundle", sensitive=True)
    return made(bundle, folder, min_sqnr=25.0)


def made(bundle, folder, **choice):
    blocks = BlockChoice(**choice)
    return calibrate(bundle, [str(folder)], frames=FRAMES, blocks=blocks, threads=1)


def files_of(bundle):
    return {p: p.read_bytes() for p in sorted(bundle.path.rglob("*")) if p.is_file()}


# blocks


def test_blocks_are_counted_by_their_shapes():
    model = propose_int8_model()
    products = placed_products(model, "propose")
    blocks = {b.name: b for b in blocks_of({"propose": model}, {"propose": products}, 1)}
    assert {name: block.products for name, block in blocks.items()} == BLOCKS
    cells = 6 * 8
    wanted = {
        "backbone.stem": cells * 8 * 3 * 16,
        "backbone.res2": cells * 8 * (8 * 9 + 8 * 9 + 8),
        "pixel_decoder.input_proj": cells * 16 * 8,
        "pixel_decoder.encoder.layers.0": cells * 16 * 16,
    }
    assert {name: block.multiply_adds for name, block in blocks.items()} == wanted
    assert {name: block.weight_bytes for name, block in blocks.items()} == {
        name: 4 * count // cells for name, count in wanted.items()
    }
    others = 2 * 10 * 16 * cells + 10 * 16 * 16  # of the query decoder
    total = sum(wanted.values()) + others
    for name, block in blocks.items():
        assert block.share == pytest.approx(wanted[name] / total)


def test_a_block_that_is_made_sensitive_ranks_last(mixed):
    found = mixed.sensitivity
    assert {block.block for block in found.blocks} == set(BLOCKS)
    assert found.blocks[-1].block == WORST
    ratios = [block.noise / block.share for block in found.blocks]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 100 * ratios[-2]
    for block in found.blocks:
        told = {(m.output, m.measure) for m in block.measured}
        assert told == {
            ("mask_logits", "SQNR dB"),
            ("mask_logits", "median IoU"),
            ("queries", "SQNR dB"),
        }
        assert block.noise == pytest.approx(10 ** (-sqnr_of(block.measured, "mask_logits") / 10))
        assert block.of_masks.median <= 1.0


def test_a_block_alone_is_what_tensorrt_has_and_the_rest_is_fp32(mixed):
    bundle, record = mixed.bundle, mixed.calibration
    [made] = int8_beside_fp32(bundle, record)
    half = onnx.load(bundle.graph_path("propose", "int8"))
    pairs = [
        {n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
        for model in (made.model, half)
    ]
    assert pairs[0] == pairs[1]
    assert onnx.TensorProto.FLOAT16 not in {t.data_type for t in made.model.graph.initializer}
    onnx.checker.check_model(made.model, full_check=True)


def test_the_same_block_is_not_sensitive_without_that_channel(tmp_path, folder):
    found = made(write_int8_bundle(tmp_path / "b"), folder).sensitivity
    worst = max(block.noise for block in found.blocks)
    assert worst < 10**-2.5
    assert all(block.chosen for block in found.blocks)
    assert found.bound is None
    assert found.probes == ()


def test_a_block_of_nothing_but_zeros_is_left_out(tmp_path, folder):
    bundle = write_int8_bundle(tmp_path / "black", scale=0.0)
    found = made(bundle, folder, min_sqnr=20.0)
    assert {block.block for block in found.sensitivity.blocks} == set(BLOCKS) - {"backbone.stem"}
    assert "stem" not in found.calibration.graphs["propose"].products


# the mix


@pytest.mark.parametrize("count", [1, 2, 3, 9, 16, 17])
def test_bisection_finds_the_longest_with_few_calls(count):
    for longest in range(count + 1):
        asked = []

        def within(number, longest=longest, asked=asked):
            asked.append(number)
            return number <= longest

        assert longest_within(count, within) == longest
        assert len(asked) <= math.ceil(math.log2(count)) + 1
        assert len(set(asked)) == len(asked)
        assert all(1 <= number <= count for number in asked)


def test_the_mix_holds_the_bound_in_every_precision(mixed):
    record, found = mixed.calibration, mixed.sensitivity
    assert [block.block for block in found.blocks if not block.chosen] == [WORST]
    assert record.graphs["propose"].products == ("stem", "features", "mixed")
    for measured in record.measured.values():
        assert sqnr_of(measured, "mask_logits") >= 25.0
    tried = {probe.blocks: probe for probe in found.probes}
    assert not tried[4].within
    assert tried[4].sqnr < 25.0
    assert tried[3].within
    worst = min(sqnr_of(measured, "mask_logits") for measured in record.measured.values())
    assert tried[3].sqnr == pytest.approx(worst, abs=1e-6)
    for precision in ("int8", "int8-fp32"):
        graph = onnx.load(mixed.bundle.graph_path("propose", precision)).graph
        floats = {t.name for t in graph.initializer if t.name[0] == "w" and len(t.name) == 2}
        assert floats == {"w1", "w2", "w3", "w6"}, precision  # w6 is the query decoder's


def test_the_mix_is_made_again_from_the_record(mixed, tmp_path):
    same = rebuild_int8(mixed.bundle, output=tmp_path / "same").bundle
    for precision in ("int8", "int8-fp32"):
        paths = [b.graph_path("propose", precision) for b in (same, mixed.bundle)]
        assert len({path.read_bytes() for path in paths}) == 1
    assert saved_report(same) == saved_report(mixed.bundle)
    assert set(saved_report(same)) == {"sensitivity.json", "sensitivity.svg"}
    again = rebuild_int8(same, overwrite=True).bundle
    assert saved_report(again) == saved_report(mixed.bundle)
    other = rebuild_int8(again, output=tmp_path / "other", method="max")
    assert other.calibration.graphs == mixed.calibration.graphs
    assert saved_report(other.bundle) == {}  # it was measured by another method


def test_one_precision_alone_is_made_and_held_to_the_bound(mixed, bundle, folder):
    options = {"frames": FRAMES, "threads": 1, "blocks": BlockChoice(min_sqnr=25.0)}
    told = calibrate(bundle, [str(folder)], **options).bundle
    one = calibrate(told, [str(folder)], precisions=["int8"], overwrite=True, **options)
    assert one.precisions == tuple(one.calibration.measured) == ("int8",)
    assert list(Bundle.open(bundle.path).manifest.graphs) == ["fp32", "fp16", "int8"]
    assert not list(bundle.path.glob("*int8-fp32*"))
    probes = {probe.blocks: probe.sqnr for probe in one.sensitivity.probes}
    assert probes[3] == sqnr_of(one.calibration.measured["int8"], "mask_logits")
    assert one.sensitivity.blocks == mixed.sensitivity.blocks  # ranked alike
    again = rebuild_int8(one.bundle, overwrite=True)
    assert again.precisions == ("int8",)
    cpu = calibrate(
        again.bundle, [str(folder)], precisions=["int8-fp32"], overwrite=True, **options
    )
    assert list(cpu.bundle.manifest.graphs) == ["fp32", "fp16", "int8-fp32"]
    Bundle.open(cpu.bundle.path)


def test_precisions_that_cannot_be_made_are_refused(tmp_path, folder):
    wide = write_int8_bundle(tmp_path / "wide", half=False)
    with pytest.raises(InputError, match="has no FP16 graphs: export with --precision fp32,fp16"):
        calibrate(wide, [str(folder)], frames=FRAMES, precisions=["int8"])
    with pytest.raises(InputError, match="there is no 'fp16' among them"):
        calibrate(wide, [str(folder)], frames=FRAMES, precisions=["fp16"])


def test_a_bound_that_all_blocks_hold_takes_all_in_one_measurement(bundle, folder):
    result = calibrate(
        bundle,
        [str(folder)],
        frames=FRAMES,
        blocks=BlockChoice(min_sqnr=0.0),
        threads=1,
        check=False,
    )
    assert [probe.blocks for probe in result.sensitivity.probes] == [4]
    assert len(result.calibration.graphs["propose"].products) == 6


def test_a_bound_that_no_block_holds_adds_nothing_and_gives_the_figures(openvis, bundle, folder):
    before = files_of(bundle)
    code, out, err = openvis(
        *("calibrate", bundle.path, folder, "--into", "--frames", 16, "--stride", 1),
        *("--allow-few", "--threads", 1, "--min-sqnr", 90),
    )
    assert (code, out) == (4, "")
    said = " ".join(err.split())
    assert "no block can be INT8 with mask logits at 90 dB or more on 4 windows" in said
    assert "the cheapest, leaves" in said
    for name in BLOCKS:
        assert f"{name} " in said.split("cheapest first: ")[1]
    assert files_of(bundle) == before


# a killed process

KILLED = """
import os, signal, sys
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.calibrate import calibrate
from openvis_rt.calib.block_choice import BlockChoice
from openvis_rt.calib.windows import CalibrationFrames

def progress(what, done, total):
    if "block 3 of 4" in what and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

frames = CalibrationFrames(16, stride=1, allow_few=True)
blocks = BlockChoice(min_sqnr=25.0)
bundle = Bundle.open(sys.argv[1])
calibrate(bundle, [sys.argv[2]], frames=frames, blocks=blocks, threads=1, progress=progress)
"""


def test_kill_9_loses_one_block_at_most(mixed, bundle, folder):
    before = files_of(bundle)
    command = [sys.executable, "-c", KILLED, str(bundle.path), str(folder)]
    ended = subprocess.run(command, capture_output=True, env={**os.environ}, timeout=50)
    assert ended.returncode == -9, ended.stderr
    assert files_of(bundle) == before
    [kept] = bundle.path.parent.glob(".bundle.sensitivity-*.json")
    assert len(json.loads(kept.read_text())) == 2
    done = set()

    def progress(what, *_):
        done.update(part for part in what.split(", ") if part.startswith("block "))

    again = calibrate(
        *(bundle, [str(folder)]),
        frames=FRAMES,
        blocks=BlockChoice(min_sqnr=25.0),
        threads=1,
        progress=progress,
    )
    assert done == {"block 3 of 4", "block 4 of 4"}
    assert again.sensitivity == mixed.sensitivity
    assert again.calibration.graphs == mixed.calibration.graphs
    assert [p.name for p in bundle.path.parent.iterdir()] == ["bundle"]


def test_results_are_kept_for_the_same_facts_only(tmp_path):
    def never():
        raise AssertionError

    first = SavedResults(tmp_path / "bundle", {"frames": 16})
    assert first.result("a", lambda: [1.5, None]) == [1.5, None]
    assert SavedResults(tmp_path / "bundle", {"frames": 16}).result("a", never) == [1.5, None]
    first.path.write_text(first.path.read_text().replace("1.5", "1.6"))  # a changed digit
    assert SavedResults(tmp_path / "bundle", {"frames": 16}).result("a", lambda: 2) == 2
    other = SavedResults(tmp_path / "bundle", {"frames": 17})
    assert other.result("a", lambda: 2) == 2
    other.path.write_text("[]")  # as no write of ours leaves it
    assert SavedResults(tmp_path / "bundle", {"frames": 17}).result("a", lambda: 3) == 3
    first.folder.mkdir()
    first.clear()
    assert list(tmp_path.iterdir()) == []


# the report


def test_the_picture_has_bars_of_cost_and_of_savings_for_each_block(mixed):
    text = saved_report(mixed.bundle)["sensitivity.svg"]
    assert len(text.encode()) < 60_000
    root = ElementTree.fromstring(text)
    bars = [e.get("class") for e in root.iter() if e.tag.endswith("rect") and len(e)]
    pale = [kind for kind in bars if kind.endswith(" left")]
    assert sorted(kind.split()[0] for kind in bars) == sorted(["cost", "work", "size"] * 4)
    assert sorted(pale) == ["cost left", "size left", "work left"]
    words = [e.text for e in root.iter() if e.tag.endswith("text")]
    names = [word for word in words if word in BLOCKS]
    assert names == [block.block for block in mixed.sensitivity.blocks]
    assert any("3 of 4 blocks are INT8" in word for word in words)


def test_the_command_tells_what_it_measured(openvis, bundle, folder, tmp_path):
    options = ("--frames", 16, "--stride", 1, "--allow-few", "--threads", 1, "--sensitivity")
    code, out, err = openvis("calibrate", bundle.path, folder, "--into", "--no-check", *options)
    assert code == 0, err
    assert "Each block alone in INT8" in out
    assert "4 of 4 blocks are INT8" in err
    assert str(bundle.path / "calibration" / "sensitivity.svg") in err
    new = tmp_path / "new"
    code, out, err = openvis(
        *("calibrate", bundle.path, folder, "-o", new, "--min-sqnr", 25, "--json"), *options
    )
    assert code == 0, err
    told = json.loads(out)
    assert told["sensitivity"]["bound"] == {"measure": "min_sqnr", "value": 25.0}
    assert [b["chosen"] for b in told["sensitivity"]["blocks"]] == [True] * 3 + [False]
    report = saved_report(Bundle.open(new))  # in place of the first one
    assert json.loads(report["sensitivity.json"]) == told["sensitivity"]
    assert {Path(path).name for path in told["report"].values()} <= {
        path.name for path in (new / "calibration").iterdir()
    }
    assert read_calibration(Bundle.open(new)).graphs["propose"].products == (
        "stem",
        "features",
        "mixed",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rebuild", "--sensitivity"), "--rebuild has no frames to measure blocks on"),
        (("--rebuild", "--min-sqnr", 30), "leave --min-sqnr out"),
        (("--rebuild", "--precision", "int8"), "leave --precision out"),
        (("video.mp4", "--min-sqnr", 30, "--max-ap-drop", 1), "give one of both"),
        (("video.mp4", "--max-ap-drop", 1), "give --evaluate FILE"),
        (("video.mp4", "--evaluate", "a.json"), "--evaluate is for --max-ap-drop"),
        (("video.mp4", "--min-sqnr", "nan"), "nan is no number that can be meant here"),
        (("video.mp4", "--min-sqnr", "-1"), "--min-sqnr is a number of dB, 0 or more; got -1"),
        (("video.mp4", "--max-ap-drop", "-1", "--evaluate", "a.json"), "points of AP, 0 or more"),
        (("video.mp4", "--min-sqnr", 30, "--graph", "classify"), "classify of"),
        (("video.mp4", "--sensitivity", "--evaluate", "none.json"), "none.json"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_words(openvis, bundle, arguments, message):
    before = files_of(bundle)
    code, out, err = openvis("calibrate", bundle.path, "--into", *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert files_of(bundle) == before


# AP


def test_fp16_graphs_are_emulated_and_others_replaced(mixed):
    bundle = mixed.bundle
    session = MixedBackend([], 1).open(bundle, "classify", "fp16")
    rng = np.random.default_rng(0)
    given = {t.name: t for t in session.spec.inputs}
    rows = {
        name: rng.standard_normal([4 if a == "K" else a for a in tensor.shape]).astype(tensor.dtype)
        for name, tensor in given.items()
    }
    for name, value in rows.items():
        session.write(name, value)
    session.run()
    found = np.array(session.fetch("class_scores"))
    path = bundle.graph_path("classify", "fp16")
    [wanted] = onnxruntime.InferenceSession(path).run(["class_scores"], rows)
    assert found.dtype == wanted.dtype
    assert np.abs(found.astype(np.float32) - wanted.astype(np.float32)).max() < 2e-3


@pytest.fixture(scope="module")
def video_bundle(tmp_path_factory):
    return write_video_bundle(tmp_path_factory.mktemp("video") / "bundle", sensitive=True)


@pytest.fixture(scope="module")
def evaluated_on(tmp_path_factory, video_bundle):
    """Annotations of videos by what FP32 itself finds in them; frames beside them."""
    folder = tmp_path_factory.mktemp("evaluated")
    names = [f"{number:05}.png" for number in range(3)]
    for video in ("a", "b"):
        (folder / video).mkdir()
        for name, image in zip(names, noise_frames(3, seed=ord(video)), strict=True):
            Image.fromarray(image).save(folder / video / name)
    data = {
        "videos": [
            {"id": i, "width": 32, "height": 24, "file_names": [f"{v}/{n}" for n in names]}
            for i, v in enumerate("ab", 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
        "annotations": [],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(data))
    annotations = read_annotations(path)
    words, classes = vocabulary_for(annotations)
    with Pipeline.open(video_bundle, vocabulary=words, backend=MixedBackend([], 1)) as pipeline:
        work = tmp_path_factory.mktemp("work") / "out"
        run = predict_videos(pipeline, annotations, folder, work, classes=classes)
    data["annotations"] = [
        {"id": number, "iscrowd": 0, **entry}
        for number, entry in enumerate(json.loads(run.results.read_text()), 1)
    ]
    path.write_text(json.dumps(data))
    return path


def evaluated(bundle, folder, output, **choice):
    blocks = BlockChoice(**choice)
    options = {"frames": FRAMES, "threads": 1, "check": False}
    return calibrate(bundle, [str(folder)], output=output, blocks=blocks, **options)


def test_a_drop_of_ap_is_held_by_the_projects_own_evaluation(
    video_bundle, evaluated_on, folder, tmp_path, openvis
):
    options = {"evaluate": evaluated_on, "max_ap_drop": 100.0, "ap_of_blocks": True}
    every = evaluated(video_bundle, folder, tmp_path / "all", **options).sensitivity
    assert 90.0 < every.evaluated.ap <= 100.0  # a track without a pixel counts as missed
    assert every.evaluated.videos == 2
    [of_all] = every.probes
    assert of_all.blocks == len(BLOCKS)
    alone = {block.block: block.ap for block in every.blocks}
    assert min(alone, key=alone.get) == WORST

    drop = (every.evaluated.ap - of_all.ap) / 2  # which all of them together break
    options = {"evaluate": evaluated_on, "max_ap_drop": drop}
    found = evaluated(video_bundle, folder, tmp_path / "some", **options).sensitivity
    assert [block.ap for block in found.blocks] == [None] * 4
    assert 1 < len(found.probes) <= math.ceil(math.log2(4)) + 1
    for probe in found.probes:
        assert probe.within == (probe.ap >= found.evaluated.ap - drop)
    chosen = [block.block for block in found.blocks if block.chosen]
    assert 0 < len(chosen) < 4
    assert WORST not in chosen
    [probe] = [probe for probe in found.probes if probe.blocks == len(chosen)]
    code, out, err = openvis(
        *("eval", tmp_path / "some", "--annotations", evaluated_on, "-o", tmp_path / "out"),
        *("--videos", evaluated_on.parent, "--backend", "onnxruntime", "--device", "cpu"),
        *("--precision", "int8-fp32", "--no-pictures", "--json"),
    )
    assert code == 0, err
    ap = 100 * json.loads(out)["metrics"]["overall"]["AP"]
    assert probe.ap <= ap + 1e-6  # the worst of both precisions
    assert ap >= found.evaluated.ap - drop


def test_a_drop_that_no_block_holds_gives_the_figures(video_bundle, evaluated_on, folder, tmp_path):
    with pytest.raises(ParityError) as caught:  # FP32's own results lose by any rounding
        evaluated(*(video_bundle, folder, tmp_path / "new"), max_ap_drop=0.0, evaluate=evaluated_on)
    said = str(caught.value)
    assert "no block can be INT8 within 0 points of AP" in said
    found = re.search(
        r"FP32 has ([\d.]+) there, and with (\S+), the cheapest, it is (\d+\.\d+)", said
    )
    assert float(found[3]) < float(found[1])
    assert found[2] in BLOCKS
    assert "Nothing was added" in said
    assert not (tmp_path / "new").exists()


def test_a_video_that_cannot_be_run_stops_the_evaluation(
    video_bundle, evaluated_on, folder, tmp_path
):
    data = json.loads(evaluated_on.read_text())
    data["videos"][1]["height"] += 1
    data["annotations"] = [a for a in data["annotations"] if a["video_id"] == 1]
    other = evaluated_on.with_name("other.json")
    other.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"1 videos of .*other\.json cannot be run, such as b"):
        evaluated(video_bundle, folder, tmp_path / "new", max_ap_drop=1.0, evaluate=other)


def test_a_data_set_that_is_calibrated_on_is_warned_of(video_bundle, evaluated_on, folder):
    told = []
    blocks = BlockChoice(max_ap_drop=1.0, evaluate=evaluated_on)
    with pytest.raises(InputError, match="frames that differ"):
        calibrate(video_bundle, [str(evaluated_on)], frames=FRAMES, blocks=blocks, warn=told.append)
    assert any("which is calibrated on as well" in text for text in told)


def test_a_data_set_that_nothing_can_be_told_from_is_refused(tmp_path):
    path, frames = write_data_set(tmp_path / "data", videos=1, frames=2)
    with pytest.raises(InputError, match=r"the frames that .* annotates are not found"):
        DataSet(path)
    data = json.loads(path.read_text())
    beside = frames / "a.json"
    beside.write_text(json.dumps({**data, "annotations": []}))
    with pytest.raises(InputError, match="has no annotated tracks, as the files of test sets"):
        DataSet(beside)
    beside.write_text(json.dumps(data))
    found = DataSet(beside)
    assert found.videos == 1
    assert found.is_among([str(tmp_path / "other"), str(beside)])
    assert found.is_among([str(frames)])
    assert found.is_among([str(frames / "clip-0")])
    assert not found.is_among([str(tmp_path / "other"), str(path)])


def test_choices_are_checked_in_python_too():
    assert BlockChoice().bound is None
    assert BlockChoice(min_sqnr=30.0).bound.measure == "min_sqnr"
    with pytest.raises(InputError, match="one of both"):
        replace(BlockChoice(min_sqnr=30.0), max_ap_drop=0.5)
