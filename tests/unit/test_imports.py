"""The arrows of the design: who may import whom, and what works without the heavy libraries."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import openvis_rt

PACKAGE = Path(openvis_rt.__file__).parent
ARROWS = {  # a sub-package, and the others that it may import; "" is the package's root
    "": set(),
    "systems": {""},
    "bundle": {"", "systems"},
    "models": {"", "systems"},
    "checkpoints": {"", "systems", "models"},
    "export": {"", "systems", "bundle", "models", "checkpoints", "compare"},
    "compare": {"", "systems", "bundle", "export"},
    "engines": {"", "systems", "bundle", "compare"},
    "runtime": {"", "systems", "bundle", "engines"},
    "cli": {
        *("", "systems", "bundle", "models", "checkpoints", "export", "compare", "engines"),
        "runtime",
    },
}
HEAVY = {
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "onnx",
    "onnxscript",
    "polygraphy",
    "pycuda",
    "tensorrt",
    "tensorrt_rtx",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def area_of(module: str) -> str:
    """The sub-package of a dotted name below ``openvis_rt``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ARROWS else ""


def imports_of(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, inside functions as well."""
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base]).rstrip(".")
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def run(code: str, *args: object) -> str:
    command = [sys.executable, "-c", code, *map(str, args)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_every_folder_of_the_package_has_its_arrows():
    folders = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()}
    assert folders <= set(ARROWS)
    assert {"runtime", "export", "models", "cli"} <= folders


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_where_its_arrows_point(path):
    own = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""
    allowed = ARROWS[own] | {own}
    if path == PACKAGE / "__init__.py":
        allowed = {"", "runtime"}  # the front door
    inside = {m for m in imports_of(path) if m.split(".")[0] == "openvis_rt"}
    assert {m for m in inside if area_of(m) not in allowed} == set()


@pytest.mark.parametrize("area", ["systems", "bundle", "runtime"])
def test_light_folders_never_name_a_library_of_the_export(area):
    for path in (PACKAGE / area).rglob("*.py"):
        libraries = {m.split(".")[0] for m in imports_of(path)}
        own = {"cuda", "pycuda"} if path.stem == "cuda" else set()
        assert libraries & (HEAVY - own) == set(), path.name


def test_the_root_needs_only_the_standard_library():
    for path in PACKAGE.glob("*.py"):
        libraries = {m.split(".")[0] for m in imports_of(path)} - {"openvis_rt"}
        assert libraries <= sys.stdlib_module_names, path.name


LOADED = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize(
    ("module", "also_absent"),
    [
        ("openvis_rt", {"numpy", "scipy", "av", "onnxruntime"}),
        ("openvis_rt.runtime", {"onnxruntime"}),
        ("openvis_rt.runtime.pipeline", {"onnxruntime"}),
        ("openvis_rt.runtime.run", {"onnxruntime"}),
        ("openvis_rt.cli.main", {"onnxruntime", "scipy", "av"}),  # --help is quick
        ("openvis_rt.engines.build.engines", {"onnxruntime"}),
    ],
)
def test_importing_loads_no_heavy_library(module, also_absent):
    loaded = set(json.loads(run(LOADED, module)))
    assert module in loaded
    assert loaded & (HEAVY | also_absent) == set()


WITHOUT = """
import importlib, pkgutil, sys

heavy = set(sys.argv[1].split(","))

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in heavy:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
import numpy as np
import openvis_rt.runtime
for module in pkgutil.walk_packages(openvis_rt.runtime.__path__, "openvis_rt.runtime."):
    importlib.import_module(module.name)
from openvis_rt import Pipeline
with Pipeline.open(sys.argv[2], vocabulary=["cat", "never seen before"]) as pipeline:
    for value in (0, 255):
        pipeline.step(np.full((40, 50, 3), value, np.uint8))
    print(pipeline.finish().frame_count)
"""


def test_a_video_runs_without_torch_and_onnx(bundle_copy):
    pytest.importorskip("onnxruntime", reason="running needs the extra [cpu]")
    assert run(WITHOUT, ",".join(HEAVY), bundle_copy) == "2\n"
