"""The command: exit codes, one message instead of a traceback, what lies on disk afterwards."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from pycocotools import mask as coco
from tiny import VARIANT, tiny_model, traced_before

from openvis_rt import open_video
from openvis_rt.bundle.bundle import MANIFEST, Bundle
from openvis_rt.checkpoints import load
from openvis_rt.checkpoints.load import save_checkpoint
from openvis_rt.cli.main import app
from openvis_rt.export import bundle as bundle_export
from openvis_rt.models import clip_vis
from openvis_rt.runtime.video.generated import write_sample_video
from openvis_rt.runtime.video.run_lengths import decode_mask
from openvis_rt.systems import VARIANTS

MODEL = VARIANT.name
COMMAND = [sys.executable, "-m", "openvis_rt"]
VERBS = typer.main.get_command(app).commands
LONGEST_HELP = {"run": 112, "batch": 92}  # lines; the others have 78
WORDS = ("-c", "cat", "-c", "monkey, ape")
LIMIT = 40  # seconds to wait for a process


@pytest.fixture
def tiny_export(monkeypatch, tiny_bundle):
    """`openvis export` of the tiny model, whose graphs were traced before."""
    monkeypatch.setattr(clip_vis, "build", lambda *_, **__: tiny_model(seed=0))
    monkeypatch.setattr(bundle_export, "onnx_from_module", traced_before(tiny_bundle))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def one_line(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


# wrong usage and wrong input: 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("export", "clip-vis-r51", "-o", "new", "--random-weights", 0), "clip-vis-r50"),
        (("export", MODEL, "-o", "new"), "--checkpoint"),
        (
            ("export", MODEL, "-o", "new", "--random-weights", 0, "--checkpoint", "x"),
            "--random-weights",
        ),
        (("export", MODEL, "-o", "new", "--random-weights", "many"), "integer"),
        (("export", MODEL, "-o", "there", "--random-weights", 0), "exists"),
        (("export", MODEL, "-o", "new", "--checkpoint", "none.pth"), "none.pth"),
        (("export", MODEL, "-o", "new", "--checkpoint", "empty.pth"), "empty.pth"),
        *[
            (("export", MODEL, "-o", "new", "--random-weights", 0, "--size", size), size)
            for size in ("480", "480x", "x", "480x864x3", "-1x5", "0x10", "4.5x6", "axb")
        ],
        (("export", MODEL, "-o", "new", "--random-weights", 0, "--size", "16x16"), "too small"),
        (
            ("export", MODEL, "-o", "new", "--random-weights", 0, "--size", "9000x90"),
            "size 9000x90 is too large: sizes go up to 8192 pixels a side; the default of "
            "clip-vis-r50 is 480x853",
        ),
        (
            ("export", MODEL, "-o", "new", "--checkpoint", "none.pth", "--window-length", 3),
            "frame by",
        ),
        (
            (
                "export",
                "ovformer-video-r50",
                "-o",
                "x",
                "--random-weights",
                0,
                "--window-length",
                65,
            ),
            "1 to 64 frames",
        ),
        (("export", MODEL, "-o", "new", "--random-weights", 0, "--no-quick-gelu"), "give --clip"),
        (("run", "none", "video.mp4", "-o", "new", *WORDS), "none is not a bundle"),
        (("run", "there", "video.mp4", "-o", "new", *WORDS), "not a bundle"),
        (("run", "BUNDLE", "none.mp4", "-o", "new", *WORDS), "none.mp4"),
        (("run", "BUNDLE", "words.txt", "-o", "new", *WORDS), "words.txt"),
        (("run", "BUNDLE", "empty", "-o", "new", *WORDS), "empty"),
        (("run", "BUNDLE", "VIDEO", "-o", "new"), "--class"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", "-c", ""), "empty name"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", "-c", "cat", "-c", "cat"), "twice"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", "-c", "x" * 10_000), "tokens"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", "-c", "cat\udcff"), "cat"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", "-c", "cat", "--vocabulary", "words.txt"), "both"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", "--vocabulary", "none.txt"), "none.txt"),
        (("run", "BUNDLE", "VIDEO", "-o", "there", *WORDS), "exists"),
        (("run", "BUNDLE", "VIDEO", "-o", "words.txt/new", *WORDS), "cannot write"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--mode", "fast"), "fast"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--backend", "abacus"), "abacus"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--precision", "int3"), "int3"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--tracker-frames", 0), "T = 0"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--threshold", 2), "--threshold"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--max-frames", 0), "--max-frames"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--max-frames", 10**22), "--max-frames"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--video-id", -(10**22)), "--video-id"),
        (("run", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--timeout", "inf"), "--timeout"),
        (("run", "BUNDLE", "VIDEO", "-o", "x.html", *WORDS, "--html", "x.html"), "another place"),
        (("batch", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--memory-per-worker", "inf"), "memory"),
        (
            ("batch", "BUNDLE", "VIDEO", "-o", "new", *WORDS, "--gpus-per-worker", 1e9),
            "0 to 1024 GPUs",
        ),
        (("bench", "BUNDLE", "--threads", 10**11), "at most 1,024 threads"),
        (("bench", "BUNDLE", "--classes", 10**11), "at most 100,000 classes"),
        (("run", "BUNDLE", "rtsp://x", "-o", "new", *WORDS, "--mode", "video"), "--mode stream"),
        (("inspect", "none"), "none"),
        (("inspect", "there"), "not a bundle"),
        (("inspect", "words.txt"), "words.txt"),
        (("inspect", "empty.pth"), "empty.pth"),
        (("paint",), "paint"),
        (("run", "--nonsense"), "--nonsense"),
        ((), "Usage"),
    ],
    ids=lambda v: " ".join(map(str, v))[:60] if isinstance(v, tuple) else None,
)
def test_wrong_usage_exits_2_with_a_message_and_leaves_nothing(
    openvis, tiny_export, cached_bundle, small_video, tmp_path, monkeypatch, args, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.pth").touch()
    (tmp_path / "words.txt").write_text("cat\n")
    before = names(tmp_path)
    known = {"BUNDLE": cached_bundle, "VIDEO": small_video}
    code, out, err = openvis(*(known.get(a, a) for a in args))
    assert code == 2, err
    assert message in one_line(err + (out if not args else ""))
    assert names(tmp_path) == before
    assert names(tmp_path / "there") == []


def test_a_damaged_bundle_exits_2_and_names_the_file_and_the_cure(openvis, bundle_copy, tmp_path):
    (bundle_copy / "text.onnx").unlink()
    for args in (("inspect", bundle_copy), ("run", bundle_copy, "x", "-o", tmp_path / "o", *WORDS)):
        code, _, err = openvis(*args)
        assert code == 2
        assert "text.onnx is missing" in err
        assert "openvis export" in err


def test_markup_in_a_users_text_is_printed_as_it_is(openvis, tmp_path):
    code, _, err = openvis("inspect", tmp_path / "[red]x[/nonsense]")
    assert code == 2
    assert "[red]x[/nonsense]" in err


# what the environment lacks: 3, and what does not agree: 4


@pytest.mark.parametrize(
    ("library", "extra", "args"),
    [
        ("torch", "export", ("export", MODEL, "-o", "NEW", "--random-weights", 0)),
        ("open_clip", "export", ("export", MODEL, "-o", "NEW", "--random-weights", 0)),
        ("onnxruntime", "cpu", ("run", "BUNDLE", "VIDEO", "-o", "NEW", *WORDS)),
    ],
)
def test_a_missing_library_exits_3_and_names_the_extra(
    openvis, cached_bundle, small_video, tmp_path, monkeypatch, library, extra, args
):
    monkeypatch.setitem(sys.modules, library, None)
    known = {"BUNDLE": cached_bundle, "VIDEO": small_video, "NEW": tmp_path / "new"}
    code, _, err = openvis(*(known.get(a, a) for a in args))
    assert code == 3
    assert f"{library} is not installed" in err
    assert f"pip install 'openvis-rt[{extra}]'" in err
    assert names(tmp_path) == []


def test_a_stream_that_cannot_be_reached_exits_2(openvis, cached_bundle, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        address = f"rtsp://127.0.0.1:{unused.getsockname()[1]}/live"
        code, _, err = openvis("run", cached_bundle, address, "-o", tmp_path / "new", *WORDS)
    assert code == 2
    assert f"{address} cannot be opened: 127.0.0.1 refused the connection" in err
    assert names(tmp_path) == []


def test_a_device_that_is_not_there_exits_3(openvis, cached_bundle, small_video, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime offers CUDA")
    code, _, err = openvis(
        "run", cached_bundle, small_video, "-o", tmp_path / "new", *WORDS, "--device", "cuda"
    )
    assert code == 3
    assert "openvis-rt[gpu]" in err
    assert names(tmp_path) == []


def test_a_graph_that_is_not_the_networks_exits_4_and_writes_nothing(
    openvis, tiny_export, tmp_path, monkeypatch
):
    monkeypatch.setattr(clip_vis, "build", lambda _: tiny_model(seed=5))  # not what was traced
    code, _, err = openvis(
        "export", MODEL, "-o", tmp_path / "new", "--random-weights", 5, "--size", "60x90"
    )
    assert code == 4
    assert "'propose' (fp32) does not give PyTorch's numbers" in one_line(err)
    assert names(tmp_path) == []


# what works: 0


def test_export_reports_every_output_and_the_bundle_opens(openvis, tiny_export, tmp_path):
    code, out, err = openvis(
        *("export", MODEL, "-o", tmp_path / "new", "--random-weights", 0),
        *("--size", "60x90", "--json"),
    )
    assert code == 0, err
    report = json.loads(out)
    bundle = Bundle.open(report["bundle"])
    graphs = report["graphs"]["fp32"]
    outputs = {(name, t["name"]) for name, g in graphs.items() for t in g["spec"]["outputs"]}
    assert {(d["graph"], d["output"]) for d in report["differences"]} == outputs
    assert bundle.graphs == tuple(graphs)
    assert names(tmp_path) == ["new"]


def test_export_says_what_is_in_doubt(openvis, tiny_export, tmp_path, monkeypatch):
    save_checkpoint(tiny_model(seed=0), tmp_path / "file.pth")
    loaded = load.Loaded(tiny_model(seed=0), {"file": "file.pth"}, ("it may be another model",))
    monkeypatch.setattr(load, "load_model", lambda *_: loaded)
    code, out, err = openvis(
        *("export", MODEL, "-o", tmp_path / "new", "--checkpoint", tmp_path / "file.pth"),
        *("--size", "60x90", "--json", "--no-verify"),
    )
    assert code == 0, err
    assert "warning: it may be another model" in one_line(err)
    assert json.loads(out)["bundle"] == str(tmp_path / "new")


def test_inspect_says_what_a_bundle_is(openvis, cached_bundle):
    code, out, _ = openvis("inspect", cached_bundle, "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["variant"] == MODEL
    assert "propose.onnx" in facts["files"]
    assert facts["engines"] == {}
    code, out, _ = openvis("inspect", cached_bundle)
    assert code == 0
    assert "pool_mask" in out


def test_inspect_says_which_plans_are_not_its_own(openvis, bundle_copy):
    folder = bundle_copy / "engines" / "elsewhere"
    folder.mkdir(parents=True)
    for name in ("model.plan", "propose.fp32.plan"):
        (folder / name).write_bytes(b"plan")
    code, out, _ = openvis("inspect", bundle_copy, "--json")
    assert code == 0
    found = json.loads(out)["engines"]
    assert "not made by" in found["engines/elsewhere/model.plan"]
    assert "propose.fp32.json" in found["engines/elsewhere/propose.fp32.plan"]


def test_inspect_describes_a_graph_of_a_bundle_without_torch_and_onnx(
    openvis, cached_bundle, monkeypatch
):
    for library in ("torch", "onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, library, None)
    code, out, err = openvis("inspect", cached_bundle / "propose.fp16.onnx", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["graph"], facts["precision"], facts["model"]) == ("propose", "fp16", MODEL)
    assert facts["inputs"]["frames"].startswith("uint8 [1, 60, 90, 3]")
    assert facts["outputs"]["features"].startswith("float16 [1, 256, 2, 3]")
    code, out, _ = openvis("inspect", cached_bundle / "masks.onnx")
    assert code == 0
    assert "serves: fp32, fp16" in out  # nothing in it may be narrowed
    assert "  mask_logits: float32 [" in out
    code, out, _ = openvis("inspect", cached_bundle / "tokenizer" / "tokenizer.json")
    assert code == 0
    assert "sha256: " in out


def test_inspect_refuses_a_graph_that_was_changed(openvis, bundle_copy):
    content = (bundle_copy / "text.onnx").read_bytes()
    (bundle_copy / "text.onnx").unlink()  # it is a link
    (bundle_copy / "text.onnx").write_bytes(content + b"x")
    code, _, err = openvis("inspect", bundle_copy / "text.onnx")
    assert code == 2
    assert "was changed" in err


def test_inspect_describes_an_engine_of_a_bundle(openvis, bundle_copy):
    engine = bundle_copy / "engines" / "elsewhere" / "model.plan"
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"engine")
    code, out, err = openvis("inspect", engine)
    assert code == 0, err
    assert "engine: not made by" in out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pth", b"<!DOCTYPE html><title>Sign in</title>", "a web page ('Sign in')"),
        ("model.onnx", b"\x08\x0a\x12\x07pytorch", "an ONNX graph"),
        ("model.pkl", pickle.dumps({"model": {"a": np.zeros(2)}}), "a plain pickle"),
        ("model.bin", b"\x00\x01\x02\x03", "begins with the bytes 00 01 02 03"),
    ],
)
def test_inspect_needs_no_torch_to_say_that_a_file_is_no_checkpoint(
    openvis, tmp_path, monkeypatch, name, content, message
):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / name).write_bytes(content)
    code, _, err = openvis("inspect", tmp_path / name)
    assert code == 2
    assert message in err


def test_inspect_asks_for_torch_to_read_a_checkpoint(openvis, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"vision_model.a": torch.zeros(2), "text_model.b": torch.zeros(2)}, path)
    code, out, _ = openvis("inspect", path)
    assert code == 0
    assert "Hugging Face" in out
    code = """if True:
        import sys
        sys.modules["torch"] = None
        from openvis_rt.cli.main import main
        main()
    """
    ended = subprocess.run(
        [sys.executable, "-c", code, "inspect", path],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert ended.returncode == 3
    assert "torch is not installed" in ended.stderr


def test_inspect_prints_any_name_of_a_checkpoint(openvis, tmp_path):
    path = tmp_path / "[b]lvvis[red].pth"
    torch.save({"model": {"a": torch.zeros(2)}}, path)
    code, out, _ = openvis("inspect", path)
    assert code == 0
    assert str(path) in out


def test_models_lists_what_can_be_exported(openvis):
    code, out, _ = openvis("models", "--json")
    assert code == 0
    assert [m["name"] for m in json.loads(out)] == list(VARIANTS)
    code, out, _ = openvis("models")
    assert all(name in out for name in VARIANTS)


def test_the_models_are_listed_in_80_columns(openvis, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = openvis("models")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:]] == list(VARIANTS)  # a line each


def test_doctor_says_what_works_and_how_to_add_the_rest(openvis, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = openvis("doctor", "--json")
    assert code == 0
    findings = json.loads(out)
    assert next(f for f in findings if f["ability"] == "runtime")["works"]
    assert all(bool(f["add"]) != f["works"] for f in findings)
    code, out, _ = openvis("doctor")
    assert code == 0
    lines = out.splitlines()
    for finding in findings:
        assert any(line.endswith(finding["ability"]) for line in lines)
        if finding["add"]:  # to be copied: never in two lines
            assert f"     to add it: {finding['add']}" in lines
    assert all(len(line) <= 80 or "to add it" in line for line in lines)


# what --help, completion and `python -m` say


@pytest.mark.parametrize(
    "args", [("--help",), ("--version",), *[(v, "--help") for v in ("export", "run", "inspect")]]
)
def test_help_exits_0_on_stdout(openvis, args):
    code, out, err = openvis(*args)
    assert (code, err) == (0, "")
    assert out.strip()


@pytest.mark.parametrize("verb", VERBS)
def test_the_options_of_a_verb_are_whole_and_fit_on_a_screen(openvis, monkeypatch, verb):
    options = [p for p in VERBS[verb].params if p.param_type_name == "option"]
    names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    for columns in (80, 50):
        monkeypatch.setenv("COLUMNS", str(columns))
        _, out, _ = openvis(verb, "--help")
        assert names | {"--help"} <= set(re.findall(r"(?<![\w-])--?\w[\w-]*", out))
        if columns == 80:
            lines = out.splitlines()
            assert len(lines) <= LONGEST_HELP.get(verb, 78)
            assert max(map(len, lines)) <= 80
    if len(options) > 8:  # then they are in groups, with the general ones under Options
        headings = re.findall(r"^(\w.*):$", out, re.MULTILINE)
        assert len(headings) >= 4
        assert {"Arguments", "Options"} < set(headings)
        groups = {option.rich_help_panel for option in options} - {None}
        assert groups < set(headings)


def test_the_verbs_are_listed_with_whole_sentences(openvis, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = openvis("--help")
    assert len(out.splitlines()) <= 40
    listed = out.partition("Commands:")[2].splitlines()[1:]
    assert [line.split()[0] for line in listed] == list(VERBS)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_python_m_is_the_command(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "openvis_rt", "inspect", tmp_path / "none"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error:")


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("openvis ins", ["inspect"]),
        ("openvis run --wind", ["--window-length"]),
        ("openvis run bundle video --mode s", ["stream"]),
    ],
)
def test_bash_completes_verbs_options_and_values(tmp_path, words, completed):
    """With the script that ``--show-completion`` prints and ``--install-completion`` installs."""
    command = tmp_path / "openvis"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m openvis_rt "$@"\n')
    command.chmod(0o755)
    code = """
        eval "$(_OPENVIS_COMPLETE=source_bash openvis)"
        [[ $(complete -p openvis) == *"-F _openvis_completion"* ]] || exit 9
        COMP_WORDS=($WORDS) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _openvis_completion openvis
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    if (bash := shutil.which("bash")) is None:
        pytest.skip("there is no bash here")
    ended = subprocess.run(
        [bash, "-c", code],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "WORDS": words},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == completed


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_a_video_becomes_overlay_log_and_results(
    openvis, cached_bundle, small_video, tmp_path, mode
):
    output = tmp_path / "deep" / "out"
    code, out, err = openvis(
        *("run", cached_bundle, small_video, "-o", output, *WORDS, "--mode", mode),
        *("--threshold", 0, "--video-id", 42, "--json", "--backend", "onnxruntime"),
    )
    assert code == 0, err
    report = json.loads(out)
    files = ["categories.json", "frames.jsonl", "overlay.mp4"]
    files += ["results.json"] if mode == "video" else []
    assert names(output) == files
    assert sorted(report["outputs"].values()) == [str(output / f) for f in files]
    assert (report["mode"], report["frames"], report["warnings"]) == (mode, 12, [])
    lines = [json.loads(line) for line in (output / "frames.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(12))
    assert all(line["size"] == [120, 180] for line in lines)
    assert {i["name"] for line in lines for i in line["instances"]} <= {"cat", "monkey, ape"}
    assert lines[0]["instances"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--encoder", "x266"), 2, "no encoder 'x266'"),
        (("--encoder-preset", "quick"), 2, "no preset 'quick'"),
        (("--encoder", "mpeg4", "--encoder-preset", "fast"), 2, "mpeg4 takes no preset"),
        (("--encoder", "h264_videotoolbox"), 3, "h264_videotoolbox encodes no 180x120 video here"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="VideoToolbox is there")
def test_an_encoder_that_cannot_be_had_is_refused(
    openvis, cached_bundle, small_video, tmp_path, options, code, message
):
    found, _, err = openvis(
        "run", cached_bundle, small_video, "-o", tmp_path / "o", *WORDS, *options
    )
    assert found == code
    assert message in " ".join(err.split())
    assert not (tmp_path / "o").exists()


def test_results_are_in_the_format_of_lv_vis(openvis, cached_bundle, small_video, tmp_path):
    output = tmp_path / "out"
    code, _, err = openvis(
        "run", cached_bundle, small_video, "-o", output, *WORDS, "--video-id", 42, "--no-overlay"
    )
    assert code == 0, err
    results = json.loads((output / "results.json").read_text())
    assert len(results) == VARIANT.detections
    for entry in results:
        assert list(entry) == ["video_id", "score", "category_id", "segmentations"]
        assert entry["video_id"] == 42
        assert entry["category_id"] in (1, 2)  # counted from 1
        assert 0 <= entry["score"] <= 1
        assert len(entry["segmentations"]) == 12  # frames without the object have an empty mask
    rle = results[0]["segmentations"][0]
    assert rle["size"] == [120, 180]
    assert coco.area(rle) == decode_mask(rle).sum()  # pycocotools reads it as well


def test_classes_from_a_file_and_names_of_any_language(
    openvis, cached_bundle, small_video, tmp_path
):
    words = tmp_path / "wörter.json"
    words.write_text('["猫", "Straßenbahn, tram"]', encoding="utf-8")
    code, _, err = openvis(
        *(
            "run",
            cached_bundle,
            small_video,
            "-o",
            tmp_path / "aus gabe [1]",
            "--vocabulary",
            words,
        ),
        *("--threshold", 0, "--max-frames", 2),
    )
    assert code == 0, err
    lines = (tmp_path / "aus gabe [1]" / "frames.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert {i["name"] for i in json.loads(lines[1])["instances"]} <= {"猫", "Straßenbahn, tram"}


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_a_video_without_any_instance_is_no_error(
    openvis, cached_bundle, small_video, tmp_path, mode
):
    code, _, err = openvis(
        *("run", cached_bundle, small_video, "-o", tmp_path / "out", *WORDS, "--mode", mode),
        *("--threshold", 1, "--max-frames", 3),
    )
    assert code == 0, err
    lines = (tmp_path / "out" / "frames.jsonl").read_text().splitlines()
    assert [json.loads(line)["instances"] for line in lines] == [[]] * 3


def test_another_geometry_than_the_official_one_is_said(openvis, cached_bundle, tmp_path):
    write_sample_video(tmp_path / "tall.mp4", width=90, height=160, fps=5, seconds=0.4, objects=1)
    code, out, _ = openvis(
        *("run", cached_bundle, tmp_path / "tall.mp4", "-o", tmp_path / "out", *WORDS, "--json"),
        *("--backend", "onnxruntime"),
    )
    assert code == 0
    assert any("--size 107x60" in warning for warning in json.loads(out)["warnings"])


def test_a_bundle_runs_with_a_warning_where_no_cache_can_be_written(
    openvis, bundle_copy, small_video, tmp_path, monkeypatch
):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, _ = openvis(
        *("run", bundle_copy, small_video, "-o", tmp_path / "out", *WORDS, "--json"),
        *("--max-frames", 1),
    )
    assert code == 0
    assert any("not cached" in w for w in json.loads(out)["warnings"])


def test_an_output_is_replaced_only_when_asked_and_only_by_a_whole_one(
    openvis, cached_bundle, small_video, tmp_path
):
    output = tmp_path / "out"
    output.mkdir()
    (output / "frames.jsonl").write_text("mine")
    args = ("run", cached_bundle, small_video, "-o", output, *WORDS, "--max-frames", 1)
    assert openvis(*args)[0] == 2
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(small_video.read_bytes()[: small_video.stat().st_size // 2])
    assert openvis("run", cached_bundle, cut, "-o", output, *WORDS, "--overwrite")[0] == 2
    assert names(output) == ["frames.jsonl"]
    assert openvis(*args, "--overwrite")[0] == 0
    assert names(output) == ["categories.json", "frames.jsonl", "overlay.mp4", "results.json"]
    assert names(tmp_path) == ["cut.mp4", "out"]


# processes that end in the middle


@pytest.fixture
def long_source(tmp_path) -> Path:
    """A folder of ten thousand images, which are all one file."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(noise).save(folder / "0.png")
    for number in range(1, 10_000):
        os.link(folder / "0.png", folder / f"{number}.png")
    return folder


@contextlib.contextmanager
def running(*args: object):
    """The command as a process of its own; it is gone in the end."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_work(process: subprocess.Popen[str], folder: Path, mode: str) -> None:
    """Until frames are being written (a stream), or were written for a moment (a video)."""
    end = time.monotonic() + LIMIT
    pattern = ".partial-out-*/**/*" if mode == "stream" else ".partial-out-*"
    while time.monotonic() < end and process.poll() is None:
        found = [p for p in folder.glob(pattern) if p.is_dir() or "jsonl" in p.name]
        if mode == "video" and found:
            time.sleep(1.0)
            return
        if any(p.is_file() and p.stat().st_size for p in found):
            return
        time.sleep(0.02)
    pytest.fail(f"it did not begin: {process.communicate(timeout=5)}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("mode", ["video", "stream"])
def test_the_first_ctrl_c_ends_a_run_with_whole_files(
    cached_bundle, long_source, tmp_path, mode, number
):
    before = names(tmp_path)
    args = ("run", cached_bundle, long_source, "-o", tmp_path / "out", *WORDS, "--mode", mode)
    with running(*args, "--json") as process:
        wait_for_work(process, tmp_path, mode)
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    report = json.loads(out)
    assert report["stopped"]
    assert names(tmp_path) == sorted([*before, "out"])
    folder = tmp_path / "out"
    assert len((folder / "frames.jsonl").read_text().splitlines()) == report["frames"] > 0
    assert json.loads((folder / "stopped.json").read_text())["frames"] == report["frames"]
    assert (folder / "results.json").exists() == (mode == "video")
    with open_video(str(folder / "overlay.mp4")) as drawn:
        assert sum(1 for _ in drawn) == report["frames"]


def test_kill_9_leaves_no_output_and_the_next_run_cleans_up(
    openvis, cached_bundle, long_source, tmp_path
):
    before = names(tmp_path)
    args = ("run", cached_bundle, long_source, "-o", tmp_path / "out", *WORDS, "--mode", "stream")
    with running(*args) as process:
        wait_for_work(process, tmp_path, "stream")
        process.kill()
        process.communicate(timeout=LIMIT)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(names(tmp_path)) == len(before) + 1
    assert openvis(*args, "--max-frames", 1)[0] == 0
    assert names(tmp_path) == sorted([*before, "out"])


def test_a_full_disk_exits_2_and_leaves_nothing(cached_bundle, small_video, tmp_path):
    ended = subprocess.run(
        [*COMMAND, "run", cached_bundle, small_video, "-o", tmp_path / "out", *WORDS],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "cannot write" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("args", [("--help",), ("models",), ("models", "--json")])
def test_a_reader_of_stdout_that_goes_away_is_not_complained_about(args):
    with running(*args) as process:
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=LIMIT)
    assert err == ""


def test_the_installed_command_reports_its_error_on_stderr_alone(tmp_path):
    command = Path(sys.executable).with_name("openvis")
    if not command.is_file():
        pytest.skip("the package is not installed with its command")
    ended = subprocess.run(
        [command, "inspect", tmp_path / "none"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error:")
    assert MANIFEST not in ended.stderr


def test_run_writes_a_page_and_a_recording(openvis, cached_bundle, small_video, tmp_path):
    pytest.importorskip("onnxruntime", reason="running needs the extra [cpu]")
    pytest.importorskip("rerun", reason="needs the extra [rerun]")
    out = tmp_path / "out"
    command = ("run", cached_bundle, small_video, "-c", "cat", "-o", out, "--max-frames", "4")
    pictures = ("--html", out / "page.html", "--rerun", tmp_path / "a.rrd", "--threshold", "0")
    code, stdout, err = openvis(*command, *pictures, "--no-overlay", "--json")
    assert code == 0, err
    told = json.loads(stdout)["outputs"]
    assert told["html"] == str(out / "page.html")
    assert told["rerun"] == str(tmp_path / "a.rrd")
    assert "Content-Security-Policy" in (out / "page.html").read_text("utf-8")
    assert (tmp_path / "a.rrd").read_bytes()[:3] == b"RRF"
    code, _, err = openvis(*command, "--no-overlay", "--overwrite")  # the page is a run's own
    assert code == 0, err


@pytest.mark.parametrize(
    ("source", "option", "message"),
    [
        ("rtsp://127.0.0.1/live", ("--html", "a.html"), "reads the video a second time"),
        ("video.mp4", ("--html", "a.htm"), "html is a file that ends in .html"),
    ],
)
def test_run_refuses_pictures_before_its_work(openvis, tmp_path, source, option, message):
    code, _, err = openvis("run", tmp_path / "none", source, "-o", tmp_path / "out", *option)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("option", ["--annotations", "--results", "--split"])
def test_an_evaluation_does_not_replace_what_it_reads(openvis, tmp_path, option):
    given = {"--annotations": "val.json", "--results": "results.json", option: "out/metrics.json"}
    (tmp_path / "out").mkdir()
    for name in given.values():
        (tmp_path / name).write_text("[]")
    words = [word for name, path in given.items() for word in (name, tmp_path / path)]
    code, _, err = openvis("eval", *words, "-o", tmp_path / "out", "--overwrite")
    assert code == 2
    assert "is read from there" in err
    assert (tmp_path / "out/metrics.json").read_text() == "[]"


@pytest.mark.parametrize("arguments", ["models --json", "--help", "--version"])
def test_a_full_stdout_is_told_and_its_reader_may_leave(arguments):
    command = f"{sys.executable} -m openvis_rt {arguments}"
    full = subprocess.run(
        ["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True, check=False
    )
    assert full.returncode == 2
    assert "stdout cannot be written (No space left on device)" in full.stderr
    assert "Traceback" not in full.stderr
    left = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (left.returncode, left.stderr) == (0, "")


@pytest.mark.parametrize("where", ["2> /dev/full", "2>&-", "2> >(true)"])
def test_what_stderr_cannot_take_is_lost_and_the_work_is_done(cached_bundle, where):
    command = f"{sys.executable} -m openvis_rt inspect {cached_bundle} --json {where}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "graphs" in json.loads(done.stdout)


@pytest.mark.parametrize("verb", [["inspect"], ["verify"], ["bench"], ["build"]])
def test_a_place_that_may_not_be_read_is_bad_input(openvis, monkeypatch, tmp_path, verb):
    """As root, whom no mode keeps out, by what Python raises for anyone else."""

    def closed(self, *_args, **_named):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Bundle, "open", lambda path, **_: closed(path))
    (tmp_path / "bundle").mkdir()
    code, _, err = openvis(*verb, tmp_path / "bundle")
    assert code == 2
    assert f"{tmp_path / 'bundle'} cannot be used: Permission denied. Give files" in err
