"""What this package uses of TensorRT's Python interface, read from its source, against a module.

    python tensorrt_api.py MODULE USES.json      prints a JSON list of what the module lacks

Attributes of the module are found wherever ``trt`` or ``library.module`` stands, those of the
library's objects by the names that our source gives such objects, as ``CLASS_OF_NAME`` lists them.
This file imports nothing but the standard library, so that it runs beside any version's bindings.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CLASS_OF_NAME = {
    "engines": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "error": "ParserError",
        "layer": "ILayer",
        "tensor": "ITensor",
        "profile": "IOptimizationProfile",
        "cache": "ITimingCache",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "inspector": "EngineInspector",
    },
    "runtime": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "cache": "IRuntimeCache",
    },
}
"""For each folder of the package, which class its names stand for."""

CALLBACKS = {"log", "phase_start", "phase_finish", "step_complete"}
"""Methods of ours that the library calls."""


@dataclass(frozen=True)
class Use:
    """One use of the interface.

    Attributes:
        owner: class or enumeration of the module; empty for something of the module itself.
        name: its member; ``__init__`` where the class is called.
        arguments: how many are given by position; -1 where nothing is called.
        keywords: names of the others.
        writes: the member is assigned.
        where: file and line.
    """

    owner: str
    name: str
    arguments: int = -1
    keywords: tuple[str, ...] = ()
    writes: bool = False
    where: str = ""

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}".strip(".")


def uses_of(paths: Iterable[Path]) -> list[Use]:
    """Every use in these source files, in order, each once."""
    found: dict[Use, None] = {}
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = CLASS_OF_NAME.get(path.parent.name, {})
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute):
                uses = _uses_of_attribute(node, calls.get(id(node)), classes, where)
                found.update(dict.fromkeys(uses))
            if isinstance(node, ast.ClassDef):
                found.update(dict.fromkeys(_overrides(node, where)))
    return list(found)


def _uses_of_attribute(
    node: ast.Attribute, call: ast.Call | None, classes: dict[str, str], where: str
) -> Iterator[Use]:
    arguments, keywords = _arguments(call)
    if _is_module(node.value):  # trt.Builder(log), trt.BuilderFlag
        yield Use("", node.attr, where=where)
        if call is not None:
            yield Use(node.attr, "__init__", arguments, keywords, where=where)
        return
    inner = node.value
    if isinstance(inner, ast.Attribute) and _is_module(inner.value):  # trt.BuilderFlag.TF32
        if node.attr == "__init__":  # of a base class, unbound
            return
        yield Use(inner.attr, node.attr, arguments, keywords, where=where)
        return
    owner = classes.get(_name(inner))
    if owner:
        writes = isinstance(node.ctx, ast.Store)
        yield Use(owner, node.attr, arguments, keywords, writes, where)


def _overrides(node: ast.ClassDef, where: str) -> Iterator[Use]:
    """What the library calls of a class that derives from one of its own."""
    for base in node.bases:
        if not (isinstance(base, ast.Attribute) and _is_module(base.value)):
            continue
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name in CALLBACKS:
                yield Use(base.attr, method.name, len(method.args.args) - 1, where=where)


def _is_module(node: ast.expr) -> bool:
    """``trt`` or ``library.module``."""
    return _name(node) == "trt" or (isinstance(node, ast.Attribute) and node.attr == "module")


def _name(node: ast.expr) -> str:
    """``engine`` of ``engine``, ``self._engine`` and ``self.engine``."""
    if isinstance(node, ast.Name):
        return node.id.lstrip("_")
    if isinstance(node, ast.Attribute) and _name(node.value) == "self":
        return node.attr.lstrip("_")
    return ""


def _arguments(call: ast.Call | None) -> tuple[int, tuple[str, ...]]:
    if call is None or any(isinstance(a, ast.Starred) for a in call.args):
        return -1, ()
    return len(call.args), tuple(k.arg for k in call.keywords if k.arg)


def problems(module: Any, uses: Iterable[Use]) -> list[str]:
    """What a module has not, or has otherwise."""
    found = {}
    for use in uses:
        problem = _problem(module, use)
        if problem:
            found[f"{use}: {problem} ({use.where})"] = None
    return list(found)


def _problem(module: Any, use: Use) -> str | None:
    owner = getattr(module, use.owner, None) if use.owner else module
    if owner is None:
        return f"no {use.owner}"
    members = getattr(owner, "__members__", None)
    if members is not None and not use.name.startswith("__"):
        return None if use.name in members or hasattr(owner, use.name) else "no such member"
    member = inspect.getattr_static(owner, use.name, None)
    if member is None:
        return "no such member"
    if use.writes and isinstance(member, property) and member.fset is None:
        return "cannot be assigned"
    if use.arguments < 0:
        return None
    if isinstance(member, property):
        return "is no method"
    signatures = _signatures(getattr(owner, use.name), use.name)
    if not any(_takes(parameters, use) for parameters in signatures):
        return f"takes {signatures}, called with {use.arguments} {list(use.keywords)}"
    return None


def _signatures(method: Any, name: str) -> list[list[tuple[str, bool]]]:
    """For each overload, the parameters after self with whether each may be left out."""
    text = method.__doc__ or ""
    overloads = []
    for line in re.findall(
        rf"^(?:\d+\. )?{re.escape(name)}\((.*)\)(?: ->.*)?$", text, re.MULTILINE
    ):
        if line.startswith("*args"):
            continue
        parameters = [p.strip() for p in _split(line)]
        parameters = [p for p in parameters if p and not p.startswith("self")]
        overloads.append([(p.split(":")[0].split("=")[0].strip(), "=" in p) for p in parameters])
    return overloads


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _takes(parameters: list[tuple[str, bool]], use: Use) -> bool:
    left = parameters[use.arguments :]
    enough = use.arguments <= len(parameters)
    known = {name for name, _ in left}
    missing = {name for name, optional in left if not optional} - set(use.keywords)
    return enough and set(use.keywords) <= known and not missing


def write_uses(uses: Iterable[Use], path: Path) -> None:
    """For another process, which reads them below."""
    path.write_text(json.dumps([asdict(use) for use in uses]))


if __name__ == "__main__":
    loaded = importlib.import_module(sys.argv[1])
    entries = json.loads(Path(sys.argv[2]).read_text())
    read = [Use(**{**entry, "keywords": tuple(entry["keywords"])}) for entry in entries]
    levels = [name for name in loaded.HardwareCompatibilityLevel.__members__ if name != "NONE"]
    answer = {"version": loaded.__version__, "problems": problems(loaded, read), "levels": levels}
    print(json.dumps(answer))
