"""What is shipped: exactly the package, typed, with its command and without the tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from openvis_rt.errors import EXPORT_PYTHON
from openvis_rt.vocabulary import NAME_LISTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.Path:
    pytest.importorskip("build", reason="building a wheel needs the extra [dev]")
    source = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist")
    inside = shutil.ignore_patterns("__pycache__")  # the package has a folder `build` of its own
    shutil.copytree(
        ROOT,
        source,
        ignore=lambda path, names: (unwanted if Path(path) == ROOT else inside)(path, names),
        dirs_exist_ok=True,
    )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    ended = subprocess.run(
        command, cwd=source, capture_output=True, text=True, timeout=55, check=False
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    [path] = (source / "dist").glob("*.whl")
    return zipfile.Path(path)


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel):
    [info] = [p.name for p in wheel.iterdir() if p.name.endswith(".dist-info")]
    assert info.startswith("openvis_rt-")
    assert sorted(p.name for p in wheel.iterdir()) == ["openvis_rt", info]
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "openvis_rt").rglob("*.py")}
    names = [n for n in wheel.root.namelist() if not n.endswith("/")]
    shipped = {n for n in names if n.startswith("openvis_rt/")}
    folder = ROOT / "openvis_rt" / "checkpoints" / "shipped"
    weights = {p.relative_to(ROOT).as_posix() for p in folder.glob("*") if p.is_file()}
    names = {f"openvis_rt/names/{name}.txt" for name in NAME_LISTS}
    assets = (ROOT / "openvis_rt" / "convert" / "page" / "assets").glob("*")
    page = {p.relative_to(ROOT).as_posix() for p in assets}
    others = {"openvis_rt/py.typed", "openvis_rt/runtime/views/page.html"}
    assert shipped == modules | weights | names | page | others


def test_the_wheel_brings_the_command_and_the_licence(wheel):
    [info] = [p for p in wheel.iterdir() if p.name.endswith(".dist-info")]
    assert "openvis = openvis_rt.__main__:main" in (info / "entry_points.txt").read_text()
    assert any(n.endswith("LICENSE") for n in wheel.root.namelist())


def wanted(wheel: zipfile.Path, extra: str, python: str) -> set[str]:
    """The distributions that an install asks for, of an extra or of none, on a Python."""
    requirements = pytest.importorskip("packaging.requirements", reason="build brings packaging")
    [info] = [p for p in wheel.iterdir() if p.name.endswith(".dist-info")]
    metadata = message_from_bytes((info / "METADATA").read_bytes())
    found = [requirements.Requirement(line) for line in metadata.get_all("Requires-Dist")]
    place = {"extra": extra, "python_version": python, "python_full_version": f"{python}.0"}
    return {r.name for r in found if r.marker is None or r.marker.evaluate(place)}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_a_plain_install_asks_for_no_training_library(wheel, python):
    plain = wanted(wheel, "", python)
    assert {"numpy", "av"} < plain
    assert not plain & {"torch", "torchvision", "onnx", "open_clip_torch", "timm", "tensorrt"}


def test_the_export_is_for_python_3_11_and_all_else_for_3_10(wheel):
    [info] = [p for p in wheel.iterdir() if p.name.endswith(".dist-info")]
    metadata = message_from_bytes((info / "METADATA").read_bytes())
    assert metadata["Requires-Python"] == ">=3.10"
    oldest = ".".join(map(str, EXPORT_PYTHON))
    assert oldest == "3.11"
    export = wanted(wheel, "export", oldest) - wanted(wheel, "", oldest)
    assert {"torch", "torchvision", "open_clip_torch", "onnx", "onnxscript"} <= export
    assert wanted(wheel, "export", "3.10") == wanted(wheel, "", "3.10")
    for extra in ("cpu", "gpu", "tensorrt", "rtx", "jetson", "pycuda"):
        assert wanted(wheel, extra, "3.10") == wanted(wheel, extra, oldest)
        assert wanted(wheel, extra, "3.10") > wanted(wheel, "", "3.10")


def test_every_extra_has_code_behind_it(wheel):
    [info] = [p for p in wheel.iterdir() if p.name.endswith(".dist-info")]
    metadata = message_from_bytes((info / "METADATA").read_bytes())
    used = {
        *("export", "cpu", "gpu", "tensorrt", "rtx"),  # each stands in an error or in doctor
        *("bench", "calib", "eval", "openvino", "ray", "rerun", "supervision", "triton", "verify"),
        *("jetson", "pycuda"),  # in docs/jetson.md
        "dev",
    }
    assert set(metadata.get_all("Provides-Extra")) == used
    code = "".join(path.read_text("utf-8") for path in (ROOT / "openvis_rt").rglob("*.py"))
    pages = (ROOT / "docs" / "jetson.md").read_text("utf-8")
    for extra in used - {"dev", "jetson", "pycuda"}:
        assert f'"{extra}"' in code
    assert all(f"[{extra}]" in pages or f",{extra}]" in pages for extra in ("jetson", "pycuda"))
