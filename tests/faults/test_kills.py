"""kill -9 at random moments of every command that writes: what stands there is old or new, whole.

`pytest tests/faults --kills 25` kills each command so often; a few times is what CI does.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.plan import check_plan
from openvis_rt.errors import EngineError
from openvis_rt.runtime.video.generated import write_sample_video

pytest.importorskip("torch", reason="exporting needs the extra [export]")

PRECISION = "int8-fp32"
EXPORT = ("export", "clip-vis-mini", "--size", "64x96", "--precision", "fp32", "--no-reference")


def openvis(*arguments: object) -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-m", "openvis_rt", *map(str, arguments)]


def run(*arguments: object) -> float:
    """Run the command to its end; seconds that it took."""
    begin = time.monotonic()
    done = subprocess.run(openvis(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begin


def killed(seconds: float, *arguments: object) -> bool:
    """Start the command and kill it after so long; false if it had ended before."""
    process = subprocess.Popen(
        openvis(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    assert process.returncode == 0
    return False


def names(folder: Path) -> list[str]:
    """What stands in a folder."""
    return sorted(path.name for path in folder.iterdir())


def contents(bundle: Path) -> list[str]:
    """Digests of a bundle's files, which were compared; what replaces a file has another name."""
    return sorted(entry.sha256 for entry in Bundle.open(bundle).manifest.files.values())


def moments(kills: int, whole: float) -> Sequence[float]:
    """So many moments of a command that takes so long: half of them in its last fifth."""
    rng = random.Random(kills)
    return [whole * rng.uniform(*rng.choice([(0.2, 1.0), (0.8, 1.02)])) for _ in range(kills)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """An exported miniature, which nothing is killed on."""
    path = tmp_path_factory.mktemp("whole") / "bundle"
    run(*EXPORT, "-o", path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Forty frames."""
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    write_sample_video(path, width=96, height=64, fps=10, seconds=4, objects=2)
    return path


def test_export_over_an_older_bundle(bundle, tmp_path, kills):
    whole = run(*EXPORT, "-o", tmp_path / "bundle", "--overwrite")
    for moment in moments(kills, whole):
        killed(moment, *EXPORT, "-o", tmp_path / "bundle", "--overwrite")
        assert Bundle.open(tmp_path / "bundle").manifest.variant == "clip-vis-mini"  # digests hold
    run(*EXPORT, "-o", tmp_path / "bundle", "--overwrite")
    assert names(tmp_path) == ["bundle"]


def test_run_over_older_results(bundle, video, tmp_path, kills):
    arguments = ("run", bundle, video, "-c", "ring", "-c", "star", "-o", tmp_path / "out")
    whole = run(*arguments)
    for moment in moments(kills, whole):
        killed(moment, *arguments, "--overwrite")
        folder = tmp_path / "out"
        assert names(folder) == ["categories.json", "frames.jsonl", "overlay.mp4", "results.json"]
        assert len((folder / "frames.jsonl").read_text().splitlines()) == 40
        json.loads((folder / "results.json").read_text())
    run(*arguments, "--overwrite")
    assert names(tmp_path) == ["out"]


def broken_engines(bundle: Path) -> list[str]:
    """What is said of each engine that stands in a bundle and is not whole."""
    graphs = Bundle.open(bundle).manifest.graphs["fp32"]
    said = []
    for plan in sorted(bundle.glob("engines/*/[!.]*.plan")):
        entry = graphs[plan.name.split(".")[0]]
        try:
            check_plan(plan, Bundle.open(bundle).manifest.files[entry.file].sha256)
        except EngineError as exc:
            said.append(str(exc))
    return said


@pytest.mark.parametrize("force", [False, True], ids=["build", "build --force"])
def test_build_in_a_bundle(bundle, tmp_path, kills, force):
    pytest.importorskip("tensorrt_rtx", reason="compiling needs the extra [rtx]")
    mine = tmp_path / "bundle"
    shutil.copytree(bundle, mine)
    build = ("build", mine, "--backend", "tensorrt-rtx", "--targets", "sm86", "--no-verify")
    whole = run(*build)
    assert not broken_engines(mine)
    for moment in moments(kills, whole):
        if not force:
            shutil.rmtree(mine / "engines")
        killed(moment, *build, *(["--force"] if force else []))
        # a kill may fall between an engine and its sidecar; the others are what they were
        said = broken_engines(mine)
        assert len(said) <= 1
        assert all("openvis build" in text for text in said)
    run(*build)  # what is up to date is left, the rest is made
    assert not broken_engines(mine)
    [folder] = (mine / "engines").iterdir()
    graphs = Bundle.open(mine).manifest.graphs["fp32"]
    assert names(folder) == sorted(f"{g}.fp32.{end}" for g in graphs for end in ("json", "plan"))


def test_calibrate_into_a_bundle(bundle, video, tmp_path, kills):
    pytest.importorskip("onnx", reason="calibrating needs the extra [calib]")
    options = ("--stride", 1, "--frames", 8, "--allow-few", "--no-check", "--precision", PRECISION)
    whole = run("calibrate", bundle, video, "-o", tmp_path / "whole", *options)
    mine = tmp_path / "bundle"
    shutil.copytree(bundle, mine)
    whole_ones = (contents(mine), contents(tmp_path / "whole"))
    for moment in moments(kills, whole):
        # an earlier one may have been killed after its last step
        if killed(moment, "calibrate", mine, video, "--into", "--overwrite", *options):
            assert contents(mine) in whole_ones
    run("calibrate", mine, video, "--into", "--overwrite", *options)
    assert PRECISION in Bundle.open(mine).manifest.graphs
    assert not [name for name in names(mine) if name.startswith(".")]
