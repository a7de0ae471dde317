"""What TensorRT-RTX makes of two miniatures, which are built of what the full-size models are.

    python tests/compiled_miniatures.py

writes the figures of the installed library to ``tests/model/compiler_report.json``, which
``tests/model/test_compiler_report.py`` holds the code to. Run it after a change that improves them,
or with a new release of the library, and look at the difference.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from openvis_rt.checkpoints.load import load_model
from openvis_rt.engines.build.engines import build_engines
from openvis_rt.engines.library import tensorrt_library
from openvis_rt.export.bundle import export_bundle
from openvis_rt.records import json_from_record

RECORDED = Path(__file__).parent / "model" / "compiler_report.json"
MINIATURES = ("clip-vis-mini", "instformer-mini")
TARGET = "sm89"
SIZE, SOURCE = (96, 160), (216, 360)  # 9 / 4, as from 1080p to 480 rows


def compiled(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Figures of each graph of a miniature in FP16, by "model graph precision"."""
    bundle = export_bundle(
        load_model(name).model,
        folder / name,
        network_size=SIZE,
        source_size=SOURCE,
        precisions=["fp16"],
        checkpoint={},
        verify=False,
    ).bundle
    results = build_engines(
        bundle, backend="tensorrt-rtx", targets=[TARGET], precisions=["fp16"], verify=False
    )
    figures = {}
    for result in results:
        assert result.compiled is not None, f"the library told of no kernels of {result.plan}"
        key = f"{name} {result.sidecar.graph} {result.sidecar.precision}"
        plan = {"plan_bytes": result.sidecar.plan_bytes}
        figures[key] = json_from_record(result.compiled) | plan
    return figures


def main() -> None:
    """Write the file anew."""
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MINIATURES:
            print(name, file=sys.stderr)
            figures |= compiled(name, Path(folder))
    version = tensorrt_library("tensorrt-rtx").version
    record = {"library": version, "target": TARGET, "figures": figures}
    RECORDED.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
