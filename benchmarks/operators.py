"""The ONNX operators of each graph of a bundle, with their counts, as a Markdown table.

    python benchmarks/operators.py BUNDLE [BUNDLE ...]

`for TensorRT` is what `openvis build` compiles: the graph with GridSample rewritten to gathers.
"""

from __future__ import annotations

import sys
from collections import Counter

import onnx

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.rewrites.grid_sample import replace_grid_sample


def row(name: str, model: onnx.ModelProto) -> str:
    """One line of the table."""
    counts = Counter(node.op_type for node in model.graph.node)
    listing = ", ".join(f"{op} {n}" for op, n in sorted(counts.items()))
    return f"| {name} | {sum(counts.values())} | {listing} |"


def main() -> None:
    """Print a table for each bundle."""
    for path in sys.argv[1:]:
        bundle = Bundle.open(path)
        height, width = bundle.manifest.preprocess.network_size
        print(f"\n### {bundle.manifest.variant} at {height}x{width}\n")
        print("| graph | nodes | operators |\n|---|---|---|")
        for graph in bundle.graphs:
            model = onnx.load(bundle.graph_path(graph))
            print(row(f"`{graph}`", model))
            if any(node.op_type == "GridSample" for node in model.graph.node):
                print(row(f"`{graph}` for TensorRT", replace_grid_sample(model)))


if __name__ == "__main__":
    main()
