"""What TensorRT-RTX makes of a bundle's graphs: kernels, FP32 products, bytes. No GPU is needed.

    python benchmarks/compiler_report.py BUNDLE [BUNDLE ...] [--precision fp16] [--graph propose]
        [--target sm89] [--json FILE]

Every graph is compiled as `openvis build` does it, for one target, and the compiler's own list of
the kernels is counted (openvis_rt/engines/build/compiler_log.py). A row is printed for each graph:

    kernels      launches of one run; those that only synchronise streams are left out
    FP32         matrix products and convolutions of FP32 operands, without TF32, and their 10^9
                 operations
    attentions   that are one kernel
    INT8         kernels that read INT8
    copies       kernels that only transpose, join, cut or cast
    traffic      MB that all kernels read and write, each operand once and whole: a bound that knows
                 no cache, for comparison with the same figure of another graph
    activations  MB of device memory beside the weights
    plan         MB of the file

Dynamic sizes count as 1 in the traffic and the operations of `classify`, `text` and `masks`.
Nothing is timed. The engines are put into the bundle, as `openvis build` would put them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.build.engines import BuildResult, build_engines
from openvis_rt.engines.library import tensorrt_library
from openvis_rt.errors import OpenVISError
from openvis_rt.files import output_file
from openvis_rt.records import json_from_record

HEADER = (
    *("model", "graph", "precision", "kernels", "FP32 products (GFLOP)", "attentions", "INT8"),
    *("copies", "traffic MB", "activations MB", "plan MB"),
)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--precision", default="fp16", help="several with commas")
    parser.add_argument("--graph", action="append", help="may be repeated; default: all")
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    print("| " + " | ".join(HEADER) + " |")
    print("|---" * len(HEADER) + "|")
    entries = []
    for path in options.bundles:
        for entry in measured(Bundle.open(path), options):
            entries.append(entry)
            print("| " + " | ".join(map(str, row(entry))) + " |", flush=True)
    if options.json:
        version = tensorrt_library("tensorrt-rtx").version
        text = json.dumps({"library": version, "target": options.target, "graphs": entries})
        with output_file(options.json) as partial:
            partial.write_text(text, "utf-8")
    return 0


def measured(bundle: Bundle, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of every graph of a bundle."""
    results: list[BuildResult] = build_engines(
        bundle,
        backend="tensorrt-rtx",
        targets=[options.target],
        precisions=options.precision.split(","),
        graphs=options.graph,
        verify=False,
        force=True,
    )
    return [
        {
            "model": bundle.manifest.variant,
            "graph": result.sidecar.graph,
            "precision": result.sidecar.precision,
            "plan_bytes": result.sidecar.plan_bytes,
            **(json_from_record(result.compiled) if result.compiled else {}),
        }
        for result in results
    ]


def row(entry: dict[str, Any]) -> list[str]:
    """Of the table."""
    return [
        *(entry["model"], f"`{entry['graph']}`", entry["precision"], str(entry["kernels"])),
        f"{entry['fp32_products']} ({entry['fp32_gflop']:.2f})",
        *(str(entry[name]) for name in ("fused_attentions", "int8_kernels", "copies")),
        *(
            f"{entry[name] / 1e6:.1f}"
            for name in ("traffic_bytes", "activation_bytes", "plan_bytes")
        ),
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OpenVISError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
