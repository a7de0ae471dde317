"""The import graph: arrows go down the design's list only, nothing imports in a circle.

``pytest tests/unit/test_imports.py -k arrows -s`` prints the graph. What an import costs, and what
works without the heavy libraries, is tried in processes of its own.
"""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import openvis_rt

PACKAGE = Path(openvis_rt.__file__).parent
ROOT = PACKAGE.name
FRONT_DOORS = {ROOT, f"{ROOT}.__main__"}  # they lead everywhere, and nothing here goes through them
ARROWS = {  # a folder, and what it may import besides itself and the ground floor, the root's files
    "": set(),
    "systems": set(),
    "bundle": {"systems"},
    "models": {"systems"},
    "checkpoints": {"models", "systems"},
    "compare": {"bundle", "systems"},
    "export": {"models", "compare", "bundle", "systems"},
    "engines": {"bundle", "compare", "systems"},
    "runtime": {
        *("bundle", "systems", "engines.gpu", "engines.library", "engines.plan", "engines.api"),
        *("compare.differences", "compare.inputs"),  # an engine is proven where it runs
    },
    "verify": {"runtime", "engines", "export", "models", "compare", "bundle", "systems"},
    "evaluation": {"runtime", "bundle"},
    "convert": {"runtime"},
    "calib": {
        *("runtime", "compare", "bundle", "systems"),
        *("evaluation", "export.multiply_adds"),
        *("export.fp16.convert", "export.fp16.emulation", "export.fp16.keeps"),
    },
    "bench": {
        *("systems", "bundle", "models", "checkpoints", "compare", "export", "runtime"),
        *("engines.gpu", "verify.torch_backend"),
    },
    "training": {"checkpoints", "models", "systems", "runtime"},
    "demo": {
        *("systems", "bundle", "checkpoints", "export", "engines", "runtime", "verify"),
        *("evaluation", "training"),
    },
    "serving": {"systems", "bundle", "engines.plan", "runtime"},
    "cli": {
        *("systems", "bundle", "models", "checkpoints", "compare", "export", "engines", "runtime"),
        *("verify", "evaluation", "calib", "bench", "convert", "training", "demo", "serving"),
    },
}
WITH_TORCH = (
    *("models", "checkpoints", "export", "training", "engines.build", "engines.rewrites"),
    "calib",
)
"""Who may name torch or onnx; elsewhere the files whose names say so."""
BY_NAME = ("compare.torch_", "verify.torch_", "verify.onnx_", "bench.torch_", "bench.onnx_")
TRAINING = {"torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript"}
HEAVY = TRAINING | {"polygraphy", "pycuda", "tensorrt", "tensorrt_rtx"}


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted name -> file; a package's is that of its ``__init__``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path) -> dict[str, bool]:
    """Names that a file imports, inside functions too -> whether for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and _is_for_types(n.test)]
    for_types = {id(inner) for block in blocks for part in block.body for inner in ast.walk(part)}
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found[name] = found.get(name, True) and id(node) in for_types
    return found


def _is_for_types(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in {getattr(test, "id", ""), getattr(test, "attr", "")}


def graph_of(package: Path) -> dict[str, dict[str, bool]]:
    """Module -> the modules of the package that it imports -> whether for type checkers only."""
    modules, graph = modules_of(package), {}
    for module, path in modules.items():
        graph[module] = {}
        for name, for_types in imports_of(path).items():
            if name.split(".")[0] != package.name:
                continue
            target = name
            while target not in modules:  # a function or a class of a module
                target = target.rpartition(".")[0]
            graph[module][target] = graph[module].get(target, True) and for_types
    return graph


def folder_of(module: str) -> str:
    """``runtime`` of ``openvis_rt.runtime.video.results``; empty for the ground floor."""
    parts = module.split(".")[1:]
    return parts[0] if parts and parts[0] in ARROWS else ""


def arrows_up(graph: dict[str, dict[str, bool]]) -> list[str]:
    """Imports that the design does not allow."""
    found = []
    for module, imported in graph.items():
        if module in FRONT_DOORS:
            continue
        allowed = ARROWS[folder_of(module)]
        for name in imported:
            folder, inside = folder_of(name), name.removeprefix(f"{ROOT}.")
            is_allowed = folder in {"", folder_of(module), *allowed} or inside in allowed
            if not is_allowed or name == f"{ROOT}.__main__":
                found.append(f"{module} -> {name}")
    return found


def circle_in(graph: dict[str, dict[str, bool]]) -> list[str]:
    """Modules that import each other in a circle when they run; empty if there are none."""
    running = {m: [n for n, typing in i.items() if not typing] for m, i in graph.items()}
    try:
        TopologicalSorter(running).prepare()
    except CycleError as exc:
        return list(exc.args[1])
    return []


def listed(graph: dict[str, dict[str, bool]]) -> str:
    """A line for each folder: how many files it has, and the folders that it imports."""
    lines = []
    for folder in ARROWS:
        own = [m for m in graph if folder_of(m) == folder and m not in FRONT_DOORS]
        to = {folder_of(name) for module in own for name in graph[module]} - {folder}
        names = ", ".join(sorted(name or "ground floor" for name in to))
        lines.append(f"{folder or 'ground floor':14}{len(own):4} files  -> {names or 'nothing'}")
    return "\n".join(lines)


def run(code: str, *args: object) -> str:
    command = [sys.executable, "-c", code, *map(str, args)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_every_folder_of_the_package_has_its_arrows():
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert folders == set(ARROWS) - {""}
    without = {path.parent for path in PACKAGE.rglob("*.py")} - {
        path.parent for path in PACKAGE.rglob("__init__.py")
    }
    assert without == set()  # or the wheel would not have it


def test_arrows_go_down_only():
    graph = graph_of(PACKAGE)
    print(listed(graph))
    assert arrows_up(graph) == []


def test_nothing_imports_in_a_circle():
    assert circle_in(graph_of(PACKAGE)) == []


def test_only_the_rooms_of_the_networks_name_torch_or_onnx():
    found = []
    for module, path in modules_of(PACKAGE).items():
        inside = module.removeprefix(f"{ROOT}.")
        if inside.startswith((*WITH_TORCH, *BY_NAME)):
            continue
        libraries = {name.split(".")[0] for name in imports_of(path)}
        found += [f"{module}: {name}" for name in sorted(libraries & TRAINING)]
    assert found == []


def test_bindings_of_a_gpu_are_named_in_one_file_each():
    naming = {
        module
        for module, path in modules_of(PACKAGE).items()
        if {name.split(".")[0] for name in imports_of(path)}
        & {"cuda", "pycuda", "tensorrt", "tensorrt_rtx"}
    }
    folder = f"{ROOT}.runtime.backends.tensorrt"
    assert naming == {f"{folder}.cuda_python", f"{folder}.pycuda"}


def test_the_ground_floor_and_the_systems_need_only_the_standard_library():
    for module, path in modules_of(PACKAGE).items():
        if folder_of(module) in ("", "systems"):
            libraries = {name.split(".")[0] for name in imports_of(path)} - {ROOT}
            assert libraries <= sys.stdlib_module_names, module


# the check itself


@pytest.fixture
def package(tmp_path):
    """Writes files of a package of the same name."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / ROOT / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return graph_of(tmp_path / ROOT)

    return write


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from openvis_rt.bundle.one import a", []),
        ("from openvis_rt.errors import a", []),
        ("from openvis_rt.engines.plan import a", []),
        ("from openvis_rt.engines import library", []),
        ("from openvis_rt.engines.build import a", ["runtime.one -> engines.build"]),
        ("import openvis_rt.cli.one", ["runtime.one -> cli.one"]),
        ("def f():\n    from openvis_rt.models import one", ["runtime.one -> models.one"]),
        (
            "if TYPE_CHECKING:\n    from openvis_rt.export.one import a",
            ["runtime.one -> export.one"],
        ),
    ],
)
def test_an_arrow_up_is_found(package, text, found):
    others = dict.fromkeys(
        (
            *("bundle__one", "errors", "engines__plan", "engines__library", "engines__build"),
            *("cli__one", "models__one", "export__one", "engines____init__"),
        ),
        "",
    )
    named = [f"{ROOT}.{arrow}".replace("-> ", f"-> {ROOT}.") for arrow in found]
    assert arrows_up(package(runtime__one=text, **others)) == named


@pytest.mark.parametrize(
    ("text", "is_circle"),
    [
        ("from openvis_rt.runtime.two import a", True),
        ("def f():\n    from openvis_rt.runtime.two import a", True),
        ("import typing\nif typing.TYPE_CHECKING:\n    import openvis_rt.runtime.two", False),
        ("", False),
    ],
)
def test_a_circle_inside_a_folder_is_found(package, text, is_circle):
    graph = package(runtime__one=text, runtime__two="from openvis_rt.runtime.one import b")
    circle = [f"{ROOT}.runtime.{name}" for name in ("one", "two")]
    assert set(circle_in(graph)) == (set(circle) if is_circle else set())


# what an import costs


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
        ("openvis_rt.convert.convert", {"onnxruntime", "rerun"}),
        ("openvis_rt.bench.benchmark", {"onnxruntime", "openvino", "pynvml"}),
        ("openvis_rt.cli.main", {"onnxruntime", "scipy", "av"}),  # --help is quick
        ("openvis_rt.engines.build.engines", {"onnxruntime"}),
        ("openvis_rt.evaluation.metrics", {"onnxruntime", "matplotlib", "av", "trackeval"}),
        ("openvis_rt.training.world", {"onnxruntime"}),  # is drawn without torch
        ("openvis_rt.demo.scene", {"onnxruntime"}),
        ("openvis_rt.evaluation.pictures", {"onnxruntime", "matplotlib"}),
        ("openvis_rt.serving.client", {"onnxruntime", "tritonclient", "grpc"}),
        ("openvis_rt.serving.triton.model", {"onnxruntime", "tritonclient"}),
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


@pytest.mark.parametrize(
    "script", sorted((PACKAGE.parent / "benchmarks").glob("*.py")), ids=lambda path: path.stem
)
def test_a_benchmark_imports_what_the_project_has(script):
    """Scripts are run by hand, so a name that moved would be missed when it is needed."""
    pytest.importorskip("torch", reason="some benchmarks need the extra [export]")
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == ROOT:
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")
