"""The compiled graphs do not get worse: kernels, FP32 products, copies and bytes."""

from __future__ import annotations

import json

import pytest
from compiled_miniatures import MINIATURES, RECORDED, compiled

pytest.importorskip("tensorrt_rtx", reason="compiling needs the extra [rtx]")

TOLERANCE = 0.05
MORE_IS_BETTER = ("fused_attentions", "int8_kernels")


@pytest.mark.parametrize("name", MINIATURES)
def test_compiled_graphs_are_as_good_as_recorded(name, tmp_path):
    """`python tests/compiled_miniatures.py` records them anew."""
    from openvis_rt.engines.library import tensorrt_library

    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    version = tensorrt_library("tensorrt-rtx").version
    if version != recorded["library"]:
        pytest.skip(f"figures are of TensorRT-RTX {recorded['library']}, and here is {version}")
    wanted = {k: v for k, v in recorded["figures"].items() if k.startswith(f"{name} ")}
    found = compiled(name, tmp_path)
    assert found.keys() == wanted.keys()
    worse = {
        f"{key} {figure}": (figures[figure], before)
        for key, figures in found.items()
        for figure, before in wanted[key].items()
        if is_worse(figure, figures[figure], before)
    }
    assert not worse, "figure: (now, recorded)"


def is_worse(figure: str, now: float, before: float) -> bool:
    """By more than the tolerance."""
    if figure in MORE_IS_BETTER:
        return now < before * (1 - TOLERANCE)
    return now > before * (1 + TOLERANCE)
