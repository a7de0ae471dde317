"""What doctor finds, and that its advice can be followed."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError

import pytest

from openvis_rt.errors import DependencyError
from openvis_rt.runtime import environment
from openvis_rt.runtime.environment import find_abilities


def finding(ability: str, **options) -> environment.Finding:
    [found] = [f for f in find_abilities(**options) if f.ability == ability]
    return found


def test_each_ability_works_or_says_what_adds_it():
    findings = find_abilities()
    assert len({f.ability for f in findings}) == len(findings)
    assert all(f.found for f in findings)
    assert all(f.works == (not f.add) for f in findings)


def test_on_python_3_10_nothing_is_advised_that_fails_there():
    found = finding("export", python=(3, 10))
    assert not found.works
    assert "Python 3.10" in found.found
    assert found.add.startswith("a Python 3.11 or newer")
    assert "3.11" not in "".join(f.add for f in find_abilities(python=(3, 11)))


def test_what_is_missing_is_named_with_its_extra(monkeypatch):
    def version(name: str) -> str:
        if name in {"open_clip_torch", "tokenizers"}:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(environment, "version", version)
    for library in ("onnxruntime", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, library, None)
    export, runtime = finding("export", python=(3, 11)), finding("runtime")
    assert "no open_clip_torch" in export.found
    assert export.add == "pip install 'openvis-rt[export]'"
    assert "no tokenizers" in runtime.found
    assert runtime.add == "pip install openvis-rt"
    assert finding("run: onnxruntime on cpu").add == "pip install 'openvis-rt[cpu]'"
    assert finding("build: TensorRT-RTX engines (no GPU needed)").add.endswith("[rtx]'")


@pytest.mark.parametrize(
    ("version", "where"), [((3, 10, 9), " on Python 3.11 or newer"), ((3, 11), "")]
)
def test_a_missing_library_of_the_export_is_not_advised_on_python_3_10(monkeypatch, version, where):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", version)
        message = str(DependencyError("torch", "export"))
        other = str(DependencyError("onnxruntime", "cpu"))
    assert message.endswith(f"Install it{where} with: pip install 'openvis-rt[export]'")
    assert "Install it with: " in other


def test_doctor_ends_with_3_where_a_need_does_not_work(openvis, monkeypatch):
    """A container's health check goes by the exit code."""
    works = environment.Finding("runtime", True, "here")
    lacks = environment.Finding("run: a toaster", False, "no bread", "bread")
    monkeypatch.setattr(environment, "find_abilities", lambda: [works, lacks])
    assert openvis("doctor", "--json")[0] == 0
    assert openvis("doctor", "--needs", "runtime")[0] == 0
    code, out, err = openvis("doctor", "--json", "--needs", "runtime", "--needs", "run: a toaster")
    assert code == 3
    assert '"ability": "run: a toaster"' in out
    assert "run: a toaster: no bread. Add bread" in err
    code, _, err = openvis("doctor", "--needs", "toast")
    assert code == 2
    assert "there are runtime, run: a toaster" in err
