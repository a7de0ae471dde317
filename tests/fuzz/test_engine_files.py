"""Sidecars of engines that a stranger made, and proofs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from borders import survives
from hypothesis import given
from hypothesis import strategies as st
from sidecars import PLAN, sidecar
from strange import changed, damaged

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.plan import check_plan, find_plan, sidecar_path
from openvis_rt.records import json_from_record

VERSIONS = [("1.7.1", "sm86"), ("10.0", "sm120"), ("", None)]


@pytest.fixture
def engine(bundle_copy):
    """An engine of no bytes, and its sidecar as JSON."""
    bundle = Bundle.open(bundle_copy, verify=False)
    plan = bundle.path / "engines/tensorrt-rtx-sm86/classify.fp32.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(PLAN)
    made = sidecar(onnx_sha256=bundle.graph_sha256("classify", "fp32"))
    return bundle, plan, json_from_record(made)


def use(bundle: Bundle, plan: Path) -> None:
    """What opening a backend, and `openvis inspect`, do with an engine."""
    survives(lambda: check_plan(plan, bundle.graph_sha256("classify", "fp32")))
    for version, capability in VERSIONS:
        survives(
            lambda v=version, c=capability: find_plan(
                *(bundle, "classify", "fp32"),
                backend="tensorrt-rtx",
                version=v,
                capability=c,
                gpu="a GPU",
            )
        )


@given(data=st.data())
def test_a_sidecar_with_strange_values(engine, data):
    bundle, plan, entry = engine
    text = json.dumps(data.draw(changed(entry)))
    sidecar_path(plan).write_bytes(text.encode("utf-8", "surrogatepass"))
    use(bundle, plan)


@given(data=st.data())
def test_a_sidecar_with_changed_bytes(engine, data):
    bundle, plan, entry = engine
    sidecar_path(plan).write_bytes(damaged(data, json.dumps(entry).encode()))
    use(bundle, plan)


@pytest.mark.parametrize("what", ["pipe", "folder", "device", "deep", "large"])
def test_a_sidecar_that_is_no_such_file(engine, what):
    bundle, plan, _ = engine
    place = sidecar_path(plan)
    if what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    elif what == "device":
        place.symlink_to("/dev/zero")
    else:
        place.write_bytes(b"[" * 100_000 if what == "deep" else b" " * (17 << 20))
    use(bundle, plan)
