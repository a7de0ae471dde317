"""What ``openvis_rt/engines/api.py`` declares, against TensorRT-RTX and against the double."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar, Protocol

import pytest
from doubles.tensorrt_double import tensorrt_double
from tensorrt_api import overloads, problems

from openvis_rt.engines.api import Module

FOR_BUILDING = frozenset(  # which the double does not play
    {
        *("Builder", "OnnxParser", "IProgressMonitor", "INetworkDefinition", "ITensor", "ILayer"),
        *("ParserError", "IBuilderConfig", "IOptimizationProfile", "ITimingCache", "IHostMemory"),
        *("LayerType", "NetworkDefinitionCreationFlag", "BuilderFlag", "ProfilingVerbosity"),
        *("MemoryPoolType", "ComputeCapability", "HardwareCompatibilityLevel"),
    }
)


def test_tensorrt_rtx_has_what_is_declared():
    module = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    assert problems(module, Module) == []


def test_the_double_has_what_is_declared_for_running():
    assert problems(tensorrt_double(None, "tensorrt-rtx"), Module, FOR_BUILDING) == []


# the check itself, which would be of no use if it let something pass


class Parts(Protocol):
    WHOLE: Any
    names: ClassVar[dict[str, Any]]
    assigned: int

    @property
    def fixed(self) -> int: ...

    def __init__(self, logger: Any, /) -> None: ...

    def method(self, one: int, two: int = ..., /) -> None: ...


class Library(Protocol):
    Part: type[Parts]


class Good:
    WHOLE = 1
    names = property()
    assigned = 0
    fixed = property(lambda self: 0)

    def __init__(self, logger):
        pass

    def method(self, one, two=0, three=0):
        pass


def one(self, one):
    pass


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"WHOLE": None}, None),
        ({"assigned": property(lambda self: 0, lambda self, value: None)}, None),
        ({"assigned": property(lambda self: 0)}, "Part.assigned: cannot be assigned"),
        ({"assigned": one}, "Part.assigned: is a method"),
        ({"fixed": one}, "Part.fixed: is a method"),
        ({"method": 1}, "Part.method: is no method"),
        ({"method": one}, "Part.method: takes [(1, 1)] of arguments, not 2"),
        ({"__init__": one}, None),
        ({"__init__": lambda self: None}, "Part.__init__: takes [(0, 0)] of arguments, not 1"),
    ],
)
def test_the_check_finds_what_is_otherwise(changes, problem):
    found = problems(SimpleNamespace(Part=type("Part", (Good,), changes)), Library)
    assert found == ([] if problem is None else [problem])


def test_the_check_finds_what_is_missing():
    assert problems(SimpleNamespace(), Library) == ["Part: no such class"]
    assert problems(SimpleNamespace(), Library, frozenset({"Part"})) == []
    part = type("Part", (), {n: v for n, v in vars(Good).items() if n != "method"})
    assert problems(SimpleNamespace(Part=part), Library) == ["Part.method: no such member"]
    assert problems(SimpleNamespace(Part=part), Library, frozenset({"Part.method"})) == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("method(self: Part, a: dict[str, int], b: int = 0) -> None\n\nText.", [(1, 2)]),
        (
            "method(*args, **kwargs)\nOverloaded function.\n\n"
            "1. method(self: Part) -> int\n\n2. method(self: Part, a: int, b: int) -> int",
            [(0, 0), (2, 2)],
        ),
        ("another(self: Part, a: int) -> None", []),
    ],
)
def test_a_binding_tells_its_parameters_in_its_text(text, numbers):
    assert overloads(SimpleNamespace(__doc__=text), "method") == numbers
