"""Attention that is too long for FP16: what is said of it, and by whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from graph_bundle import window_models, write_bundle

from openvis_rt.bundle.attention import LARGEST_HALF, attention_keys, long_attention
from openvis_rt.export.bundle import ExportResult


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("attention"), window_length=5, **window_models())


def at(bundle, network_size, window_length, precision="fp16"):
    """The bundle as if it were of this size, length and precision."""
    manifest = bundle.manifest
    graphs = {
        precision: {n: replace(f, precision=precision) for n, f in manifest.graphs["fp32"].items()}
    }
    changed = replace(
        manifest,
        preprocess=replace(manifest.preprocess, network_size=network_size),
        window_length=window_length,
        graphs=graphs,
    )
    return replace(bundle, manifest=changed)


def test_the_keys_are_those_of_the_finest_level_and_the_whole_window(small):
    assert attention_keys(at(small, (720, 1280), 5)) == 90 * 160 * 5
    assert attention_keys(at(small, (480, 864), 1)) == 60 * 108


@pytest.mark.parametrize(
    ("size", "length", "precision", "told"),
    [
        ((720, 1280), 5, "fp16", True),
        ((720, 1280), 5, "int8", True),
        ((720, 1280), 5, "fp32", False),
        ((720, 1280), 4, "fp16", False),
        ((480, 864), 5, "fp16", False),
    ],
)
def test_an_export_says_that_an_engine_may_overflow(small, size, length, precision, told):
    bundle = at(small, size, length, precision)
    found = ExportResult(bundle, []).warnings
    assert len(found) == told
    if told:
        assert found == [long_attention(bundle, "propose", precision)]
        assert f"{90 * 160 * 5} places" in found[0]
        assert str(LARGEST_HALF) in found[0]
        assert "smaller --size" in found[0]
    assert long_attention(bundle, "classify", precision) is None
