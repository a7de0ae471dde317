"""The protocols of ``openvis_rt/engines/api.py`` against a module that must have what they declare.

    python tensorrt_api.py MODULE API.py [WITHOUT ...]     prints what the module lacks, as JSON

WITHOUT are names that it need not have, see :func:`problems`.

It needs nothing but the standard library and the file of the protocols, so that it runs beside any
version's bindings.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Generic, Protocol, get_args, get_type_hints


def load_api(path: str) -> ModuleType:
    """The protocols, without their package."""
    spec = importlib.util.spec_from_file_location("declared_api", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["declared_api"] = module  # where get_type_hints looks
    spec.loader.exec_module(module)
    return module


def classes_of(module: type) -> dict[str, type]:
    """The library's name of a class -> the protocol that stands for it."""
    hints = get_type_hints(module)
    return {name: get_args(kind)[0] for name, kind in hints.items() if get_args(kind)}


def members_of(protocol: type) -> dict[str, Any]:
    """Name -> a function, a property, or None for an attribute, with those that are inherited."""
    found: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if base in (object, Protocol, Generic):
            continue
        for name, text in vars(base).get("__annotations__", {}).items():
            found[name] = property() if text.startswith("ClassVar") else None
        for name, value in vars(base).items():
            own = getattr(value, "__qualname__", "") == f"{base.__qualname__}.{name}"
            if isinstance(value, property) or (own and name in ("__init__", name.strip("_"))):
                found[name] = value
    return found


def problems(module: Any, declared: type, without: frozenset[str] = frozenset()) -> list[str]:
    """What a library lacks, or has otherwise.

    Args:
        module: the library.
        declared: the protocol of the module.
        without: classes, or members such as ``ICudaEngine.create_runtime_config``, that it need
            not have.
    """
    found = []
    for name, protocol in classes_of(declared).items():
        if name in without:
            continue
        owner = getattr(module, name, None)
        if owner is None:
            found.append(f"{name}: no such class")
            continue
        for member, wanted in members_of(protocol).items():
            if f"{name}.{member}" not in without:
                found += [f"{name}.{member}: {p}" for p in _problems(owner, member, wanted)]
    return found


def _problems(owner: Any, name: str, wanted: Any) -> Iterator[str]:
    held = inspect.getattr_static(owner, name, None)
    if held is None and not hasattr(owner, name):
        yield "no such member"
        return
    is_method = inspect.isroutine(getattr(owner, name, None))
    if not inspect.isfunction(wanted):
        if is_method:
            yield "is a method"
        elif wanted is None and isinstance(held, property) and held.fset is None:
            yield "cannot be assigned"
        return
    if not is_method:
        yield "is no method"
        return
    parameters = list(inspect.signature(wanted).parameters.values())[1:]
    required = sum(p.default is inspect.Parameter.empty for p in parameters)
    taken = overloads(getattr(owner, name), name)
    for count in range(required, len(parameters) + 1):
        if not any(fewest <= count <= most for fewest, most in taken):
            yield f"takes {taken or 'an unknown number'} of arguments, not {count}"


def overloads(method: Any, name: str) -> list[tuple[int, int]]:
    """The fewest and the most arguments that each overload takes by position."""
    if inspect.isfunction(method):
        parameters = list(inspect.signature(method).parameters.values())[1:]
        return [(sum(p.default is inspect.Parameter.empty for p in parameters), len(parameters))]
    found = []
    text = method.__doc__ or ""  # a binding's signature is in the first lines of its text
    for line in re.findall(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\)(?: ->.*)?$", text, re.M):
        if line.startswith("*args"):
            continue
        parameters = [p.strip() for p in _split(line)]
        parameters = [p for p in parameters if p and not p.startswith("self")]
        found.append((sum("=" not in p for p in parameters), len(parameters)))
    return found


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


if __name__ == "__main__":
    loaded, declared = importlib.import_module(sys.argv[1]), load_api(sys.argv[2]).Module
    levels = [name for name in loaded.HardwareCompatibilityLevel.__members__ if name != "NONE"]
    lacks = problems(loaded, declared, frozenset(sys.argv[3:]))
    print(json.dumps({"version": loaded.__version__, "levels": levels, "lacks": lacks}))
