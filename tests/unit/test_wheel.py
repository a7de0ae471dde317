"""What is shipped: exactly the package, typed, with its command and without the tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.Path:
    pytest.importorskip("build", reason="building a wheel needs the extra [dev]")
    source = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist")
    shutil.copytree(ROOT, source, ignore=unwanted, dirs_exist_ok=True)
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
    assert shipped == modules | {"openvis_rt/py.typed"}


def test_the_wheel_brings_the_command_and_the_licence(wheel):
    [info] = [p for p in wheel.iterdir() if p.name.endswith(".dist-info")]
    assert "openvis = openvis_rt.cli.main:main" in (info / "entry_points.txt").read_text()
    assert any(n.endswith("LICENSE") for n in wheel.root.namelist())


def test_a_plain_install_asks_for_no_training_library(wheel):
    [info] = [p for p in wheel.iterdir() if p.name.endswith(".dist-info")]
    metadata = message_from_bytes((info / "METADATA").read_bytes())
    plain = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    heavy = ("torch", "onnx", "open_clip", "timm", "tensorrt")
    assert plain
    assert not [r for r in plain if r.lower().startswith(heavy)]
